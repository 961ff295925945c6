//! Makes a gateway know this client's key, with the token of an invite.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use whimbrel_carrier::Lost;
use whimbrel_common::identity::{ClientName, SecretKey};
use whimbrel_common::invite::Invite;
use whimbrel_common::wire::{Control, DETACH};

use crate::exchange::{self, NoAnswer, Question};
use crate::resolver::translated;
use crate::tunnel::describe;

/// A gateway that has not answered by then is out of reach.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the gateway said.
#[derive(Debug)]
pub struct Enrolled {
    /// What it calls this client.
    pub name: ClientName,
}

/// Uses up the invite.
///
/// # Errors
/// A sentence about why the gateway did not enrol this key.
pub fn enrol(invite: &Invite, key: &SecretKey) -> anyhow::Result<Enrolled> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let gateway = invite.gateway();
        let mut addresses: Vec<SocketAddr> =
            tokio::net::lookup_host((gateway.host.as_str(), gateway.port))
                .await
                .with_context(|| format!("cannot find the gateway {gateway}"))?
                .collect();
        if !addresses.is_empty() && !addresses.iter().any(is_led_to) {
            let translated = translated(&addresses).await;
            if translated.is_empty() {
                return Err(anyhow!(
                    "no network of this machine leads to the gateway {gateway}: there is none, or \
                     the gateway has no address of its family (IPv4 or IPv6)"
                ));
            }
            addresses = translated;
        }
        let mut failure = anyhow!("the gateway {gateway} has no address");
        for address in addresses {
            match ask(invite, key, address).await {
                Ok(name) => return Ok(Enrolled { name }),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    })
}

/// Whether this machine has a route to an address: a datagram socket asks the kernel, not the network.
fn is_led_to(address: &SocketAddr) -> bool {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    UdpSocket::bind((any, 0)).and_then(|socket| socket.connect(address)).is_ok()
}

async fn ask(invite: &Invite, key: &SecretKey, gateway: SocketAddr) -> anyhow::Result<ClientName> {
    let question = Question {
        gateway,
        gateway_key: invite.gateway_key,
        key,
        words: Some(Control::Enrol { token: *invite.token.as_bytes() }),
        patience: PATIENCE,
    };
    let answer = exchange::ask(question, |frame| matches!(frame, Control::Enrolled { .. })).await;
    let answer = answer.map_err(|failure| explain(failure, gateway))?;
    let Some(Control::Enrolled { name }) = answer else {
        return Err(anyhow!("the gateway at {gateway} said nothing"));
    };
    name.parse().with_context(|| format!("the gateway calls this client {name:?}"))
}

fn explain(failure: NoAnswer, gateway: SocketAddr) -> anyhow::Error {
    match failure {
        NoAnswer::Here(error) => error,
        NoAnswer::Silence
        | NoAnswer::Lost { reason: Lost::Closed | Lost::TimedOut, asked: false } => {
            anyhow!(
                "the gateway at {gateway} does not answer; is it running, and is UDP port {} open?",
                gateway.port()
            )
        }
        NoAnswer::Forbidden => anyhow!(
            "a firewall of this machine forbids UDP to the gateway at {gateway}; let port {} out",
            gateway.port()
        ),
        NoAnswer::Lost { reason: Lost::ClosedByPeer(DETACH), .. } => {
            anyhow!("the gateway at {gateway} heard nothing of this client in time")
        }
        NoAnswer::Lost { reason: Lost::Authentication(_), .. } => anyhow!(
            "this invite is for another gateway: what answers at {gateway} has another key than it \
             names; ask the owner of this one"
        ),
        NoAnswer::Lost { reason, .. } => anyhow!("{} ({gateway})", describe(&reason)),
    }
}
