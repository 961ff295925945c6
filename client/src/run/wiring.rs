//! The network inside: the TUN, and routes that lead nowhere else.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, bail};
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::{LinkUnspec, RouteMessageBuilder};
use tracing::debug;

use super::ADDRESS;
use crate::host::netlink::{Netlink, io_error};
use crate::tun::Tun;

/// The name of the TUN inside.
const NAME: &str = "whimbrel0";

/// The MTU programs see inside, as that of the host's own TUN.
const MTU: u16 = 1500;

/// The groups that may open ICMP sockets in this network namespace (`icmp(7)`).
const PING_GROUPS: &str = "/proc/sys/net/ipv4/ping_group_range";

/// Makes the TUN of this network namespace and leads every route to it.
pub(super) fn lay() -> anyhow::Result<Tun> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let tun = runtime.block_on(async {
        let (v4, v6) = ADDRESS;
        let tun = Tun::create(NAME, MTU, Some((v4, 32)), Some((v6, 128))).await?;
        if !tun.vnet() {
            bail!("this kernel's TUN has no segmentation offload, which Whimbrel needs");
        }
        let interface = tun.interface().context("the TUN has no interface")?;
        let netlink = Netlink::open().context("opening a netlink socket")?;
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new().output_interface(interface.index);
        route(&netlink, v4.build()).await.context("adding the default route")?;
        if interface.v6.is_some() {
            let v6 = RouteMessageBuilder::<Ipv6Addr>::new().output_interface(interface.index);
            route(&netlink, v6.build()).await.context("adding the default route of IPv6")?;
        }
        // The loopback interface is the first of every network namespace.
        let lo = LinkUnspec::new_with_index(1).up().build();
        netlink
            .handle()
            .link()
            .set(lo)
            .execute()
            .await
            .map_err(io_error)
            .context("bringing up lo")?;
        anyhow::Ok(tun)
    })?;
    allow_pings();
    Ok(tun)
}

/// Lets programs ping without privilege, as far as that is carried. Where it cannot be allowed, they
/// say so themselves.
fn allow_pings() {
    let group = rustix::process::getegid().as_raw();
    if let Err(error) = fs::write(PING_GROUPS, format!("{group} {group}")) {
        debug!(%error, "Pings stay forbidden in here");
    }
}

async fn route(netlink: &Netlink, message: RouteMessage) -> io::Result<()> {
    netlink.handle().route().add(message).execute().await.map_err(io_error)
}
