//! The network inside: the TUN, and routes that lead nowhere else.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, bail};
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::{LinkUnspec, RouteMessageBuilder};

use super::ADDRESS;
use crate::host::netlink::{Netlink, io_error};
use crate::tun::Tun;

/// The name of the TUN inside.
const NAME: &str = "whimbrel0";

/// The MTU programs see inside, as that of the host's own TUN.
const MTU: u16 = 1500;

/// Makes the TUN of this network namespace and leads every route to it.
pub(super) fn lay() -> anyhow::Result<Tun> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
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
        Ok(tun)
    })
}

async fn route(netlink: &Netlink, message: RouteMessage) -> io::Result<()> {
    netlink.handle().route().add(message).execute().await.map_err(io_error)
}
