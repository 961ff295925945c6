//! A world of network namespaces joined by a network of our own: no privileges beyond those of
//! an ordinary user where the kernel allows user namespaces, and no external program.
//!
//! ```text
//! laptop   wifi0  192.168.10.2  fd10::2 ─ line ─ NAT ─┐
//!          cell0  10.64.0.2     fd64::2 ─ line ─ NAT ─┤
//! gateway  eth0   192.0.2.10    2001:db8:2::10   ─────┼─ Internet
//! origin   eth0   198.18.0.20   2001:db8:18::20  ─────┘
//!                 198.18.1.20   2001:db8:181::20   the reference: never tunnelled
//! ```
//!
//! [`enter`] first thing in `main`, then [`World::build`].

use crate::internet::{Internet, Port, Stray};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

mod ground;
mod host;
mod layout;
mod link;
mod ping;
mod process;
mod wiring;

pub use ground::{Denied, enter, entered};
pub use host::{Host, unprivileged};
pub use layout::{
    GATEWAY_V4, GATEWAY_V6, HostLayout, Layout, Lease, LinkLayout, ORIGIN_V4, ORIGIN_V6,
    REFERENCE_V4, REFERENCE_V6, SILENT_V4, UNREACHABLE_V4, UNREACHABLE_V6,
};
pub use link::{BOTH, Link};
pub use ping::{Ping, ping, shortest};
pub use process::Process;
pub use wiring::Wiring;

/// A whole lab. Dropping it ends its processes, its namespaces and its folder.
#[derive(Debug)]
pub struct World {
    ports: Vec<(usize, usize, Port)>,
    layout: Layout,
    // Fields drop in this order: processes die with their hosts before the network stops.
    hosts: Vec<Host>,
    internet: Internet,
    folder: TempDir,
}

impl World {
    /// Builds a lab: every interface is up, with addresses and routes.
    ///
    /// # Errors
    /// When [`enter`] was not called, or the kernel refuses.
    pub fn build(layout: Layout) -> Result<Self> {
        let folder = TempDir::with_prefix("whimbrel-lab-").context("making the lab's folder")?;
        let internet = Internet::start(layout.seed).context("starting the Internet")?;
        internet.set_unreachable(UNREACHABLE_V4.into());
        internet.set_unreachable(UNREACHABLE_V6.into());
        let hosts = layout.hosts.iter().map(|host| Host::start(&host.name));
        let hosts = hosts.collect::<Result<Vec<_>>>()?;
        let mut world = Self { ports: Vec::new(), layout, hosts, internet, folder };
        world.add_ports();
        for index in 0..world.ports.len() {
            world.link_at(index).plug()?;
        }
        world.host("laptop").run(|_| {
            // What Debian, Fedora and Ubuntu set on laptops.
            host::set_sysctl("ipv4/conf/all/rp_filter", "2");
        });
        Ok(world)
    }

    fn add_ports(&mut self) {
        for (host, layout) in self.layout.hosts.iter().enumerate() {
            for (index, link) in layout.links.iter().enumerate() {
                let port = self.internet.add_port(link::port_plan(link));
                self.ports.push((host, index, port));
                self.internet.shape(port, crate::internet::Direction::Up, link.up);
                self.internet.shape(port, crate::internet::Direction::Down, link.down);
            }
        }
    }

    /// A host by name.
    ///
    /// # Panics
    /// When the lab has no such host.
    #[must_use]
    pub fn host(&self, name: &str) -> &Host {
        let host = self.hosts.iter().find(|host| host.name() == name);
        host.unwrap_or_else(|| panic!("the lab has no host {name}"))
    }

    /// A link by the name of its interface, or `host/interface` where that is not unique.
    ///
    /// # Panics
    /// When the lab has no such link.
    #[must_use]
    pub fn link(&self, name: &str) -> Link<'_> {
        let (host, interface) = layout::split_name(name);
        let found = (0..self.ports.len()).map(|index| self.link_at(index)).find(|link| {
            link.name() == interface && host.is_none_or(|host| link.host.name() == host)
        });
        found.unwrap_or_else(|| panic!("the lab has no link {name}"))
    }

    fn link_at(&self, index: usize) -> Link<'_> {
        let (host, link, port) = self.ports[index];
        let layout = &self.layout.hosts[host].links[link];
        Link { host: &self.hosts[host], layout, internet: &self.internet, port }
    }

    /// Sends a whole IP packet as if a stranger on the Internet had.
    pub fn inject(&self, packet: Vec<u8>) {
        self.internet.inject(packet);
    }

    /// What was sent to an address where nobody lives.
    #[must_use]
    pub fn stray(&self, address: IpAddr) -> Stray {
        self.internet.stray(address)
    }

    /// Every address that got packets although nobody lives there.
    #[must_use]
    pub fn strays(&self) -> BTreeMap<IpAddr, Stray> {
        self.internet.strays()
    }

    /// A folder for configurations, keys and logs; it vanishes with the lab.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The log of something that runs in the lab.
    #[must_use]
    pub fn log(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.log"))
    }
}
