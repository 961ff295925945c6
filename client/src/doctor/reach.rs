//! Whether the gateway can be reached from here, while no daemon does.

use std::net::SocketAddr;
use std::time::Duration;

use whimbrel_client_core::doctor::{Link, Reach};
use whimbrel_client_core::trouble::Trouble;
use whimbrel_common::config::ClientConfig;
use whimbrel_common::identity::SecretKey;
use whimbrel_common::wire::Control;
use whimbrel_host::{Layout, exit, files, random};

use crate::exchange::{NoAnswer, Question, ask};
use crate::resolver::translated;
use crate::tunnel::{describe, trouble};

/// A gateway is a few hundred milliseconds away; this is ten times as much, and what a person
/// waits for.
const PATIENCE: Duration = Duration::from_secs(4);

/// Asks the gateway to attach a session, and ends it. Whoever may not read the client's key learns
/// only whether the gateway is there and has its own.
pub(super) async fn reach(
    layout: &Layout,
    config: &ClientConfig,
    addresses: Result<Vec<SocketAddr>, String>,
    links: &[Link],
) -> Reach {
    let addresses = match addresses {
        Ok(addresses) => addresses,
        Err(why) => return Reach::Failed(Trouble::NameUnknown, why),
    };
    let families =
        |family: usize| links.iter().any(|link| link.trouble.is_none() && link.families[family]);
    let is_reachable = |address: &SocketAddr| {
        families(usize::from(address.is_ipv6())) || address.ip().is_loopback()
    };
    let mut reachable: Vec<SocketAddr> = addresses.iter().copied().filter(is_reachable).collect();
    if reachable.is_empty() && families(1) {
        reachable = translated(&addresses).await;
    }
    if reachable.is_empty() {
        // Without any network that says nothing about the gateway.
        let any = families(0) || families(1);
        return if any {
            Reach::Failed(Trouble::NoFamily, "no address of a family in use".to_owned())
        } else {
            Reach::NotTried
        };
    }
    let mut outcome = Reach::NotTried;
    for address in reachable {
        outcome = talk(layout, config, address).await;
        if matches!(outcome, Reach::Proved | Reach::Admitted) {
            break;
        }
    }
    outcome
}

async fn talk(layout: &Layout, config: &ClientConfig, gateway: SocketAddr) -> Reach {
    let (key, words) = match files::read_key(layout.key_to_read()) {
        Ok(key) => (key, Some(Control::Attach { session: None, epoch: 1 })),
        Err(_) => match random::bytes() {
            Ok(seed) => (SecretKey::from_seed(seed), None),
            Err(_) => return Reach::NotTried,
        },
    };
    let gateway_key = config.gateway_key;
    let question = Question { gateway, gateway_key, key: &key, words, patience: PATIENCE };
    match ask(question, |frame| matches!(frame, Control::Attached { .. })).await {
        Ok(Some(_)) => Reach::Admitted,
        Ok(None) => Reach::Proved,
        Err(NoAnswer::Silence) => {
            Reach::Failed(Trouble::Unreachable, format!("no answer from {gateway}"))
        }
        Err(NoAnswer::Forbidden) => {
            Reach::Failed(Trouble::Forbidden, format!("nothing may be sent to {gateway}"))
        }
        Err(NoAnswer::Lost { reason, .. }) => Reach::Failed(trouble(&reason), describe(&reason)),
        Err(NoAnswer::Here(error)) => Reach::Failed(Trouble::Other, exit::sentence(&error)),
    }
}
