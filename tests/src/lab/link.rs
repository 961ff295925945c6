//! One link of a lab: what the operating system does to it, and what the network does.

use super::host::Host;
use super::layout::LinkLayout;
use super::wiring::Wiring;
use crate::internet::{Count, Direction, Expiry, Hook, Internet, Port, PortCount, PortPlan, Shape};
use anyhow::{Context, Result};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Both directions of a line.
pub const BOTH: [Direction; 2] = [Direction::Up, Direction::Down];

/// The largest packet of an interface, in bytes: Ethernet's.
const MTU: u32 = 1500;

/// Packets an interface may hold before the kernel drops them. Losses belong to the line's
/// shape, so this only has to be more than the lab ever lets pile up.
const DEVICE_QUEUE: u32 = 10_000;

/// A link: one interface of a host, plugged into the Internet.
#[derive(Clone, Copy, Debug)]
pub struct Link<'a> {
    pub(super) host: &'a Host,
    pub(super) layout: &'a LinkLayout,
    pub(super) internet: &'a Internet,
    pub(super) port: Port,
}

/// What the operating system does.
impl Link<'_> {
    /// The interface's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.layout.name
    }

    /// Loses the uplink: its addresses are removed and the interface goes down.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn down(&self) -> Result<()> {
        let name = self.layout.name.clone();
        self.wire("taking down", move |wiring| {
            wiring.flush_addresses(&name)?;
            wiring.set_down(&name)
        })?;
        self.internet.flush(self.port);
        Ok(())
    }

    /// Gets the uplink back: the interface comes up with its addresses and default routes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn up(&self) -> Result<()> {
        let layout = self.layout.clone();
        self.wire("bringing up", move |wiring| configure(wiring, &layout))
    }

    /// Removes the addresses, and with them the routes; the interface stays up.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_address(&self) -> Result<()> {
        let name = self.layout.name.clone();
        self.wire("removing the addresses of", move |wiring| wiring.flush_addresses(&name))
    }

    /// Removes the default routes only.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_default_route(&self) -> Result<()> {
        let name = self.layout.name.clone();
        self.wire("removing the routes of", move |wiring| wiring.remove_default_routes(&name))
    }

    /// Pulls the device out: the interface disappears.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn unplug(&self) -> Result<()> {
        let name = self.layout.name.clone();
        self.internet.plug(self.port, None);
        self.internet.flush(self.port);
        self.wire("unplugging", move |wiring| wiring.delete(&name))
    }

    /// Plugs a device in: an interface appears, comes up and gets its addresses and routes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn plug(&self) -> Result<()> {
        self.plug_unconfigured()?;
        self.up()
    }

    pub(super) fn plug_unconfigured(&self) -> Result<()> {
        let name = self.layout.name.clone();
        let mac = self.port.mac();
        let device = self.wire("creating", move |wiring| {
            let device = create_device(&name)?;
            wiring.prepare(&name, mac, MTU, DEVICE_QUEUE)?;
            Ok(device)
        })?;
        self.internet.plug(self.port, Some(Arc::new(device)));
        Ok(())
    }

    fn wire<T: Send + 'static>(
        &self,
        attempt: &str,
        job: impl FnOnce(&Wiring) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let outcome = self.host.run(job);
        outcome.with_context(|| format!("{attempt} {}/{}", self.host.name(), self.layout.name))
    }
}

/// What the network does.
impl Link<'_> {
    /// Gives each direction a shape.
    pub fn shape(&self, up: Shape, down: Shape) {
        self.internet.shape(self.port, Direction::Up, up);
        self.internet.shape(self.port, Direction::Down, down);
    }

    /// Gives both directions one shape.
    pub fn shape_both(&self, shape: Shape) {
        self.shape(shape, shape);
    }

    /// Swallows everything in these directions, silently; the interface never learns.
    pub fn black_hole(&self, directions: &[Direction]) {
        for direction in directions {
            self.internet.black_hole(self.port, *direction, true);
        }
    }

    /// Ends every black hole.
    pub fn heal(&self) {
        for direction in BOTH {
            self.internet.black_hole(self.port, direction, false);
        }
    }

    /// The translator forgets its mappings: what follows leaves from new ports, and what comes
    /// to the old ones is dropped.
    pub fn rebind(&self) {
        self.internet.forget_mappings(self.port);
    }

    /// The translator gets other public addresses.
    pub fn rebind_to(&self, v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) {
        self.internet.move_translator(self.port, v4, v6);
    }

    /// How long the translator keeps unused mappings.
    pub fn set_expiry(&self, expiry: Expiry) {
        self.internet.set_expiry(self.port, expiry);
    }

    /// Makes the network one that wants a sign-in: it answers echo requests and every TCP
    /// connection itself and drops everything else.
    pub fn captive(&self, on: bool) {
        self.internet.set_captive(self.port, on);
    }

    /// Lets a hook see every packet at the Internet's side of the link, or removes it.
    pub fn set_hook(&self, hook: Option<Hook>) {
        self.internet.set_hook(self.port, hook);
    }

    /// What has passed and what has not.
    #[must_use]
    pub fn count(&self) -> PortCount {
        self.internet.count(self.port)
    }

    /// Packets delivered and lost in one direction.
    #[must_use]
    pub fn count_one(&self, direction: Direction) -> Count {
        match direction {
            Direction::Up => self.count().up,
            Direction::Down => self.count().down,
        }
    }

    /// Mappings in the translator.
    #[must_use]
    pub fn mappings(&self) -> usize {
        self.internet.mappings(self.port)
    }
}

/// How a link is connected to the Internet.
pub(super) fn port_plan(layout: &LinkLayout) -> PortPlan {
    let outside_v4 = layout.outside_v4.filter(|_| layout.v4.is_some()).map(IpAddr::from);
    let outside_v6 = layout.outside_v6.filter(|_| layout.v6.is_some()).map(IpAddr::from);
    let translated = outside_v4.is_some() || outside_v6.is_some();
    let own_v4 = layout.v4.map(|lease| IpAddr::from(lease.address));
    let own_v6 = layout.v6.map(|lease| IpAddr::from(lease.address));
    let addresses = if translated {
        [outside_v4, outside_v6].into_iter().flatten().collect()
    } else {
        let further = layout.further.iter().map(|(address, _)| *address);
        [own_v4, own_v6].into_iter().flatten().chain(further).collect()
    };
    let router_v4 = layout.v4.map(|lease| IpAddr::from(lease.router));
    let router_v6 = layout.v6.map(|lease| IpAddr::from(lease.router));
    PortPlan {
        addresses,
        translated,
        routers: [router_v4, router_v6].into_iter().flatten().collect(),
    }
}

fn configure(wiring: &Wiring, layout: &LinkLayout) -> Result<()> {
    let name = &layout.name;
    wiring.set_up(name)?;
    let leases = [
        layout.v4.map(|lease| (lease.address.into(), lease.prefix, IpAddr::from(lease.router))),
        layout.v6.map(|lease| (lease.address.into(), lease.prefix, IpAddr::from(lease.router))),
    ];
    for (address, prefix, _) in leases.iter().flatten() {
        wiring.add_address(name, *address, *prefix)?;
    }
    for (address, prefix) in &layout.further {
        wiring.add_address(name, *address, *prefix)?;
    }
    for (_, _, router) in leases.iter().flatten() {
        wiring.add_default_route(name, *router, layout.metric)?;
    }
    Ok(())
}

/// A TAP, not a TUN: to a laptop it is as good as a wire, where a TUN would be some tunnel.
fn create_device(name: &str) -> Result<tun::Device> {
    let mut configuration = tun::Configuration::default();
    configuration.tun_name(name).layer(tun::Layer::L2);
    configuration.platform_config(|platform| {
        platform.ensure_root_privileges(false);
    });
    let device = tun::create(&configuration).context("creating a TAP device")?;
    device.set_nonblock().context("making a TAP device non-blocking")?;
    Ok(device)
}
