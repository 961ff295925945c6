//! The login manager's words about sleep, and ours to it.

use std::time::Instant;

use tracing::info;

use super::Daemon;
use crate::login;

impl Daemon {
    pub(super) fn handle_login(&mut self, news: login::News) {
        let now = Instant::now();
        match news {
            login::News::Sleep(go) => {
                info!("The machine is about to sleep");
                self.waits = Some(go);
                self.client.sleep(now);
            }
            login::News::Awake => {
                self.waits = None;
                self.client.awake(now);
            }
            login::News::Watch(watch) => self.sleep_watch = watch,
        }
    }

    /// Lets the machine sleep that has waited long enough.
    pub(super) fn let_go(&mut self) {
        if self.client.may_sleep()
            && let Some(go) = self.waits.take()
        {
            // Nobody listens: nobody waits.
            let _ended = self.login.send(go);
        }
    }
}
