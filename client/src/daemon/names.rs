//! Of whom the host asks names: what is wished, and what came of it.

use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{oneshot, watch};
use tracing::warn;
use whimbrel_host::Layout;

use super::Daemon;
use crate::dns::{self, Place, Wish, Wishes};
use crate::link::LinkMonitor;
use crate::report::{CaptureState, NamesReport};
use crate::tun::Tun;

/// An orderly stop waits this long for the host's settings to be given back.
const GIVING_BACK: Duration = Duration::from_secs(3);

/// See the [module](self).
pub(super) struct Names {
    /// `None` where only wrapped commands are served.
    wishes: Option<Wishes>,
    pub(super) report: NamesReport,
}

/// Begins to follow wishes, on the thread of the links, with settings that are nobody's.
pub(super) async fn begin(
    monitor: &LinkMonitor,
    tun: Option<&Tun>,
    layout: &Layout,
) -> (Names, UnboundedReceiver<NamesReport>) {
    let (reports, inbox) = unbounded_channel();
    let interface = tun.and_then(Tun::interface);
    if interface.is_some() {
        dns::mend(&layout.state).await;
    }
    let wishes = interface.map(|interface| {
        let (wish, followed) = watch::channel(Wish { through: false, round: 0 });
        let (done, ended) = oneshot::channel();
        let place = Place { index: interface.index, state: layout.state.clone() };
        monitor.accompany(dns::follow(place, followed, reports, done));
        Wishes { wish, done: ended }
    });
    (Names { wishes, report: NamesReport::default() }, inbox)
}

impl Names {
    /// Others may have changed the host's settings.
    pub(super) fn look_again(&self) {
        if let Some(wishes) = &self.wishes {
            wishes.wish.send_if_modified(|wish| {
                wish.round += 1;
                wish.through
            });
        }
    }

    fn wish(&self, through: bool) {
        if let Some(wishes) = &self.wishes {
            wishes
                .wish
                .send_if_modified(|wish| std::mem::replace(&mut wish.through, through) != through);
        }
    }

    /// Gives the host's settings back, and waits for it.
    pub(super) async fn give_back(&mut self) {
        let Some(Wishes { wish, done }) = self.wishes.take() else { return };
        drop(wish);
        if tokio::time::timeout(GIVING_BACK, done).await.is_err() {
            warn!("The host's DNS settings were not given back in time; run `whimbrel cleanup`");
        }
    }
}

impl Daemon {
    /// Names go where new connections go.
    pub(super) fn wish_names(&self) {
        let carried = match self.capture_state() {
            CaptureState::On | CaptureState::Blocked => self.client.knows_resolver(),
            CaptureState::Paused | CaptureState::Direct | CaptureState::Commands => false,
        };
        self.names.wish(carried && self.config.capture.asks_gateway());
    }

    pub(super) fn handle_names(&mut self, report: NamesReport) {
        self.names.report = report;
    }
}
