//! Whether packets get through the TUN and back, and who would keep them from it.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::net::TcpStream;
use whimbrel_client_core::doctor::{Capture, Daemon, DaemonState, Firewall, Passage};

use crate::run::NAMESERVER;

/// A gateway is a few hundred milliseconds away; the answer that is waited for passes it once.
const PATIENCE: Duration = Duration::from_secs(2);

/// Ports of the name server in the TUN: that of names, which the gateway opens, and one that it
/// refuses (RFC 863).
const PORTS: [u16; 2] = [53, 9];

/// Asks for two connections through the TUN. What comes of them does not matter, as long as it comes.
pub(super) async fn passage(daemon: &Daemon) -> Passage {
    let Daemon::Running(running) = daemon else { return Passage::NotTried };
    if running.state != DaemonState::Attached || running.capture != Capture::On {
        return Passage::NotTried;
    }
    let [names, refused] = PORTS.map(is_answered);
    let answered = async {
        tokio::select! {
            true = names => {}
            true = refused => {}
            else => std::future::pending().await,
        }
    };
    match tokio::time::timeout(PATIENCE, answered).await {
        Ok(()) => Passage::Open,
        Err(_) => Passage::Closed,
    }
}

async fn is_answered(port: u16) -> bool {
    match TcpStream::connect(SocketAddr::new(NAMESERVER.into(), port)).await {
        Ok(_) => true,
        // A filter here refused to let it out.
        Err(error) => error.kind() != ErrorKind::PermissionDenied,
    }
}

/// Who filters packets here, the one that decides most first. `firewalld` is on the bus.
pub(super) fn firewall(firewalld: bool) -> Firewall {
    let ufw = std::fs::read_to_string("/etc/ufw/ufw.conf").unwrap_or_default();
    let has = |program| {
        ["/usr/sbin", "/sbin"].iter().any(|folder| Path::new(folder).join(program).exists())
    };
    if firewalld {
        Firewall::Firewalld
    } else if ufw.lines().any(|line| line.trim() == "ENABLED=yes") {
        Firewall::Ufw
    } else if has("nft") {
        Firewall::Nftables
    } else if has("iptables") {
        Firewall::Iptables
    } else {
        Firewall::Unknown
    }
}
