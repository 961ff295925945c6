//! What listens at the gateway's machine is not for clients.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::time::Instant;

use anyhow::{Result, ensure};
use whimbrel_tests::traffic::Event;

use crate::PATIENCE;
use crate::limits::stage;

/// An address of the Internet, so that nothing but whose it is speaks against it.
const LEASED: Ipv4Addr = Ipv4Addr::new(93, 184, 215, 14);

/// A lease, a prefix that is announced, or a floating IP comes when it likes.
pub(crate) fn an_address_that_comes_later_is_the_gateways_own() -> Result<()> {
    let (world, _origin, _gateway, _client) = stage(&[])?;
    let service: SocketAddr = (LEASED, 7777).into();
    let host = world.host("gateway");
    host.run(|wiring| wiring.add_address("lo", IpAddr::from(LEASED), 32))?;
    let _listener = host.run(move |_| TcpListener::bind(service))?;
    let began = Instant::now();
    loop {
        let mut knock = world.start_program("laptop", "knock", service, &[])?;
        let events = knock.finish(PATIENCE)?.1;
        let refused = |event: &Event| matches!(event, Event::Failed { kind, .. } if kind == "HostUnreachable");
        if events.iter().any(refused) {
            return Ok(());
        }
        ensure!(began.elapsed() < PATIENCE, "clients reach it still: {events:?}");
    }
}
