//! What became of the host's rules and routes.

use tracing::warn;
use whimbrel_host::service;

use super::Daemon;
use crate::capture::{Done, Outcome};
use crate::host::HostError;
use crate::report::EventKind;

impl Daemon {
    pub(super) fn handle_host(&mut self, outcome: Outcome) {
        match outcome {
            Ok(Done::Followed) => self.announce_ready(),
            Ok(Done::Mended(count)) => {
                self.restored += 1;
                warn!(count, "Another program had removed rules or routes; they are back");
                let text = format!("another program removed {count} routing rules; they are back");
                self.client.journal.tell(EventKind::Restored, text);
            }
            Err(failure) => self.fail_capture(failure),
        }
    }

    /// A rule or route of ours has gone.
    pub(super) fn mend_capture(&mut self) {
        if let Some(capture) = &self.capture {
            capture.mend();
        }
    }

    fn fail_capture(&mut self, failure: HostError) {
        let context = if failure.is_permission() {
            "the daemon needs the capability CAP_NET_ADMIN; run it as root or as a system service"
        } else {
            "cannot capture this host's connections"
        };
        self.fatal = Some(anyhow::Error::new(failure).context(context));
    }

    /// Tells the service manager, once, that the host is set up.
    fn announce_ready(&mut self) {
        if !std::mem::replace(&mut self.ready, true) {
            service::ready();
        }
    }
}
