//! Interfaces, addresses and routes of one network namespace, by rtnetlink.

use anyhow::{Context, Result, bail};
use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, CacheInfo};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use tokio::runtime::Runtime;

/// Configures the network namespace of the thread it was opened on.
#[derive(Debug)]
pub struct Wiring {
    runtime: Runtime,
    handle: Handle,
}

impl Wiring {
    pub(super) fn open() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .context("starting a runtime for netlink")?;
        let (connection, handle, _) = {
            let _context = runtime.enter();
            rtnetlink::new_connection().context("opening a netlink socket")?
        };
        runtime.spawn(connection);
        Ok(Self { runtime, handle })
    }

    /// The index of an interface, if there is one of that name.
    ///
    /// # Errors
    /// When netlink fails for another reason.
    pub fn index(&self, name: &str) -> Result<Option<u32>> {
        let links = self.links()?;
        Ok(links.iter().find(|link| has_name(link, name)).map(|link| link.header.index))
    }

    /// Brings an interface up.
    ///
    /// # Errors
    /// When there is none, or the kernel refuses.
    pub fn set_up(&self, name: &str) -> Result<()> {
        let message = LinkUnspec::new_with_index(self.existing(name)?).up().build();
        self.wait(self.handle.link().set(message).execute(), "bringing the interface up")
    }

    /// Brings an interface down.
    ///
    /// # Errors
    /// When there is none, or the kernel refuses.
    pub fn set_down(&self, name: &str) -> Result<()> {
        let message = LinkUnspec::new_with_index(self.existing(name)?).down().build();
        self.wait(self.handle.link().set(message).execute(), "bringing the interface down")
    }

    /// Takes the carrier away from an interface that stays up, or gives it back, as an access point
    /// does to which Wi-Fi roams.
    ///
    /// # Errors
    /// When there is none, or the kernel refuses.
    pub fn set_carrier(&self, name: &str, on: bool) -> Result<()> {
        let message = LinkUnspec::new_with_index(self.existing(name)?)
            .append_extra_attribute(LinkAttribute::Carrier(u8::from(on)))
            .build();
        self.wait(self.handle.link().set(message).execute(), "changing the carrier")
    }

    /// Gives a new interface its Ethernet address, the largest packet in bytes and how many may
    /// wait in it, and frees it from resolving addresses.
    ///
    /// # Errors
    /// When there is none, or the kernel refuses.
    pub fn prepare(&self, name: &str, mac: [u8; 6], mtu: u32, queue: u32) -> Result<()> {
        let message = LinkUnspec::new_with_index(self.existing(name)?)
            .address(mac.to_vec())
            .arp(false)
            .mtu(mtu)
            .append_extra_attribute(LinkAttribute::TxQueueLen(queue))
            .build();
        self.wait(self.handle.link().set(message).execute(), "preparing the interface")
    }

    /// Deletes an interface; one that is gone already, such as a TUN whose last user has just
    /// closed it, is fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete(&self, name: &str) -> Result<()> {
        let Some(index) = self.index(name)? else { return Ok(()) };
        match self.runtime.block_on(self.handle.link().del(index).execute()) {
            Err(rtnetlink::Error::NetlinkError(answer)) if answer.raw_code() == -libc::ENODEV => {
                Ok(())
            }
            outcome => outcome.context("deleting the interface"),
        }
    }

    /// Adds an address; one that is there already is fine.
    ///
    /// # Errors
    /// When there is no such interface, or the kernel refuses.
    pub fn add_address(&self, name: &str, address: IpAddr, prefix: u8) -> Result<()> {
        let index = self.existing(name)?;
        let request = self.handle.address().add(index, address, prefix).replace();
        self.wait(request.execute(), "adding an address")
    }

    /// Adds an address that new connections shall not come from any more, or makes one such.
    ///
    /// # Errors
    /// When there is no such interface, or the kernel refuses.
    pub fn deprecate_address(&self, name: &str, address: IpAddr, prefix: u8) -> Result<()> {
        let index = self.existing(name)?;
        let mut request = self.handle.address().add(index, address, prefix).replace();
        let mut lifetime = CacheInfo::default();
        lifetime.ifa_valid = u32::MAX;
        request.message_mut().attributes.push(AddressAttribute::CacheInfo(lifetime));
        self.wait(request.execute(), "deprecating an address")
    }

    /// Removes one address of an interface.
    ///
    /// # Errors
    /// When netlink fails.
    pub fn remove_address(&self, address: IpAddr) -> Result<()> {
        self.runtime.block_on(async {
            let request = self.handle.address().get().set_address_filter(address).execute();
            for message in request.try_collect::<Vec<_>>().await.context("listing addresses")? {
                let request = self.handle.address().del(message);
                request.execute().await.context("removing an address")?;
            }
            Ok(())
        })
    }

    /// Removes every address of an interface but IPv6 link-local ones.
    ///
    /// # Errors
    /// When there is no such interface, or the kernel refuses.
    pub fn flush_addresses(&self, name: &str) -> Result<()> {
        let index = self.existing(name)?;
        self.runtime.block_on(async {
            let request = self.handle.address().get().set_link_index_filter(index).execute();
            for address in request.try_collect::<Vec<_>>().await.context("listing addresses")? {
                if address.header.scope != rtnetlink::packet_route::address::AddressScope::Link {
                    let request = self.handle.address().del(address);
                    request.execute().await.context("removing an address")?;
                }
            }
            Ok(())
        })
    }

    /// Adds a default route through a router on the interface's own network.
    ///
    /// # Errors
    /// When there is no such interface, or the kernel refuses.
    pub fn add_default_route(&self, name: &str, router: IpAddr, metric: u32) -> Result<()> {
        let index = self.existing(name)?;
        let route = match router {
            IpAddr::V4(router) => RouteMessageBuilder::<Ipv4Addr>::new()
                .gateway(router)
                .output_interface(index)
                .priority(metric)
                .build(),
            IpAddr::V6(router) => RouteMessageBuilder::<Ipv6Addr>::new()
                .gateway(router)
                .output_interface(index)
                .priority(metric)
                .build(),
        };
        let request = self.handle.route().add(route).replace();
        self.wait(request.execute(), "adding a default route")
    }

    /// Adds an IPv4 default route to another table than the main one.
    ///
    /// # Errors
    /// When there is no such interface, or the kernel refuses.
    pub fn add_default_route_to(&self, name: &str, router: Ipv4Addr, table: u32) -> Result<()> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(router)
            .output_interface(self.existing(name)?)
            .table_id(table)
            .build();
        self.wait(self.handle.route().add(route).execute(), "adding a default route")
    }

    /// Removes the default routes of an interface, both families.
    ///
    /// # Errors
    /// When there is no such interface, or the kernel refuses.
    pub fn remove_default_routes(&self, name: &str) -> Result<()> {
        let index = self.existing(name)?;
        for route in self.routes()? {
            let default = route.header.destination_prefix_length == 0;
            let ours = route.attributes.contains(&RouteAttribute::Oif(index));
            // The multicast and local tables hold routes of their own.
            if default && ours && route.header.table == 254 {
                let request = self.handle.route().del(route);
                self.wait(request.execute(), "removing a default route")?;
            }
        }
        Ok(())
    }

    /// Every route of both families, every table.
    ///
    /// # Errors
    /// When netlink fails.
    pub fn routes(&self) -> Result<Vec<RouteMessage>> {
        self.runtime.block_on(async {
            let mut routes = Vec::new();
            for family in [AddressFamily::Inet, AddressFamily::Inet6] {
                let mut filter = RouteMessage::default();
                filter.header.address_family = family;
                let request = self.handle.route().get(filter).execute();
                routes.extend(request.try_collect::<Vec<_>>().await.context("listing routes")?);
            }
            Ok(routes)
        })
    }

    /// Every routing rule of one family.
    ///
    /// # Errors
    /// When netlink fails.
    pub fn rules(&self, v6: bool) -> Result<Vec<rtnetlink::packet_route::rule::RuleMessage>> {
        let version = if v6 { rtnetlink::IpVersion::V6 } else { rtnetlink::IpVersion::V4 };
        self.runtime.block_on(async {
            let request = self.handle.rule().get(version).execute();
            request.try_collect::<Vec<_>>().await.context("listing rules")
        })
    }

    /// Removes every routing rule that the kernel did not make itself, and every route outside the
    /// tables `main` and `local`, as systemd-networkd does when it starts. How many rules there were.
    ///
    /// # Errors
    /// When netlink fails.
    pub fn flush_rules(&self) -> Result<usize> {
        let mut removed = 0;
        for v6 in [false, true] {
            for rule in self.rules(v6)? {
                let kernel = RuleAttribute::Protocol(RouteProtocol::Kernel);
                if !rule.attributes.contains(&kernel) {
                    self.wait(self.handle.rule().del(rule).execute(), "removing a rule")?;
                    removed += 1;
                }
            }
        }
        for route in self.routes()? {
            // RT_TABLE_MAIN and RT_TABLE_LOCAL; a table beyond 255 is in an attribute.
            if ![254, 255].contains(&route.header.table) {
                self.wait(self.handle.route().del(route).execute(), "removing a route")?;
            }
        }
        Ok(removed)
    }

    /// Adds a rule that leads every packet of IPv4 to a table, as a VPN's does.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add_rule(&self, priority: u32, table: u32) -> Result<()> {
        let request = self.handle.rule().add().v4().priority(priority).table_id(table);
        let request = request.action(RuleAction::ToTable);
        self.wait(request.execute(), "adding a rule")
    }

    fn links(&self) -> Result<Vec<LinkMessage>> {
        self.runtime.block_on(async {
            let request = self.handle.link().get().execute();
            request.try_collect::<Vec<_>>().await.context("listing interfaces")
        })
    }

    fn existing(&self, name: &str) -> Result<u32> {
        match self.index(name)? {
            Some(index) => Ok(index),
            None => bail!("there is no interface {name}"),
        }
    }

    fn wait(
        &self,
        request: impl Future<Output = Result<(), rtnetlink::Error>>,
        attempt: &'static str,
    ) -> Result<()> {
        self.runtime.block_on(request).context(attempt)
    }
}

fn has_name(link: &LinkMessage, name: &str) -> bool {
    link.attributes.contains(&LinkAttribute::IfName(name.to_owned()))
}
