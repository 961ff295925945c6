//! What happens to a laptop that is carried about, as the kernel would tell it.

use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags};
use rtnetlink::packet_route::route::{RouteAttribute, RouteType};
use whimbrel_client_core::links::{Metering, Terms, Wishes};

use super::*;

/// An interface as one reading finds it.
#[derive(Clone, Copy)]
struct Told {
    index: u32,
    name: &'static str,
    up: bool,
    address: Ipv4Addr,
    metric: u32,
}

const WIFI: Told =
    Told { index: 3, name: "wlan0", up: true, address: Ipv4Addr::new(192, 0, 2, 7), metric: 600 };
const DOCK: Told =
    Told { index: 9, name: "eth1", up: true, address: Ipv4Addr::new(192, 0, 2, 80), metric: 100 };

impl Told {
    fn link(self) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = self.index;
        message.header.flags = LinkFlags::Up;
        if self.up {
            message.header.flags |= LinkFlags::LowerUp | LinkFlags::Running;
        }
        message.attributes.push(LinkAttribute::IfName(self.name.to_owned()));
        message
    }

    fn address(self) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.index = self.index;
        message.attributes.push(AddressAttribute::Local(self.address.into()));
        message
    }

    fn add(self, inventory: &mut Inventory) {
        inventory.add_link(&self.link(), "whimbrel0", &[]);
        if !self.up {
            return;
        }
        inventory.add_address(&self.address());
        let mut route = translate::table_of(Family::V4, MAIN_TABLE);
        route.header.kind = RouteType::Unicast;
        route.attributes.push(RouteAttribute::Oif(self.index));
        route.attributes.push(RouteAttribute::Priority(self.metric));
        inventory.add_route(Family::V4, &route);
    }
}

struct Laptop {
    watch: Watch,
    events: UnboundedReceiver<LinkEvent>,
}

impl Laptop {
    /// A laptop that knows these links.
    fn with(links: &[Told]) -> Self {
        let (sender, events) = unbounded_channel();
        let mut laptop =
            Self { watch: Watch::new("whimbrel0".to_owned(), Vec::new(), sender), events };
        laptop.read(links);
        while laptop.events.try_recv().is_ok() {}
        laptop
    }

    fn hear(&mut self, message: RouteNetlinkMessage) {
        self.watch.heed(NetlinkPayload::InnerMessage(message));
    }

    /// The reading that follows what was heard.
    fn read(&mut self, links: &[Told]) {
        let mut inventory = Inventory::default();
        links.iter().for_each(|link| link.add(&mut inventory));
        self.watch.overtaken = false;
        self.watch.learn(Ok(inventory));
    }

    fn told(&mut self) -> Vec<LinkEvent> {
        std::iter::from_fn(|| self.events.try_recv().ok()).collect()
    }
}

#[test]
fn roaming_that_keeps_the_carrier_changes_nothing() {
    let mut laptop = Laptop::with(&[WIFI]);
    // Scanning, authenticating and associating are messages about the interface, each.
    for _ in 0..20 {
        laptop.hear(RouteNetlinkMessage::NewLink(WIFI.link()));
    }
    // The lease is asked for again and stays.
    laptop.hear(RouteNetlinkMessage::NewAddress(WIFI.address()));
    laptop.read(&[WIFI]);
    assert_eq!(laptop.told(), []);
}

#[test]
fn roaming_that_drops_the_carrier_for_a_moment_takes_the_link_down_and_up() {
    let mut laptop = Laptop::with(&[WIFI]);
    let between = Told { up: false, ..WIFI };
    laptop.hear(RouteNetlinkMessage::NewLink(between.link()));
    let down = laptop.told();
    let [LinkEvent::Down { index: 3, reason: DownReason::NoCarrier, .. }] = down.as_slice() else {
        panic!("{down:?}")
    };
    laptop.hear(RouteNetlinkMessage::NewLink(WIFI.link()));
    assert_eq!(laptop.told(), [], "good news waits for the reading");
    laptop.read(&[WIFI]);
    let up = laptop.told();
    assert!(matches!(up.as_slice(), [LinkEvent::Up(up)] if up.v4 == [WIFI.address]), "{up:?}");
}

#[test]
fn another_lease_after_roaming_is_a_change_of_the_link() {
    let mut laptop = Laptop::with(&[WIFI]);
    let elsewhere = Told { address: Ipv4Addr::new(198, 51, 100, 7), ..WIFI };
    laptop.hear(RouteNetlinkMessage::NewAddress(elsewhere.address()));
    laptop.read(&[elsewhere]);
    let told = laptop.told();
    let [LinkEvent::Changed(both), LinkEvent::Changed(other)] = told.as_slice() else {
        panic!("{told:?}")
    };
    assert_eq!(both.v4, [WIFI.address, elsewhere.address]);
    assert_eq!(other.v4, [elsewhere.address]);
}

#[test]
fn an_address_that_takes_the_place_of_another_at_once_keeps_the_link_up() {
    let mut laptop = Laptop::with(&[WIFI]);
    let elsewhere = Told { address: Ipv4Addr::new(198, 51, 100, 7), ..WIFI };
    laptop.hear(RouteNetlinkMessage::NewAddress(elsewhere.address()));
    laptop.hear(RouteNetlinkMessage::DelAddress(WIFI.address()));
    laptop.read(&[elsewhere]);
    let told = laptop.told();
    assert!(told.iter().all(|event| matches!(event, LinkEvent::Changed(_))), "{told:?}");
    assert_eq!(laptop.watch.known[&WIFI.index].v4, [elsewhere.address]);
}

#[test]
fn docking_brings_a_link_that_ranks_before_the_wifi_and_undocking_takes_it_at_once() {
    let mut laptop = Laptop::with(&[WIFI]);
    laptop.hear(RouteNetlinkMessage::NewLink(DOCK.link()));
    laptop.hear(RouteNetlinkMessage::NewAddress(DOCK.address()));
    laptop.read(&[WIFI, DOCK]);
    let told = laptop.told();
    let [LinkEvent::Up(dock)] = told.as_slice() else { panic!("{told:?}") };
    let rank = |uplink: &Uplink| {
        Terms::of(uplink.class, Metering::Unknown, uplink.metric, Wishes::default()).rank
    };
    let wifi = laptop.watch.known[&WIFI.index].clone();
    assert!(rank(dock) < rank(&wifi));
    // Pulled out: the message about the device is all there is.
    laptop.hear(RouteNetlinkMessage::DelLink(DOCK.link()));
    let told = laptop.told();
    let gone =
        matches!(told.as_slice(), [LinkEvent::Down { index: 9, reason: DownReason::Removed, .. }]);
    assert!(gone, "{told:?}");
    laptop.read(&[WIFI]);
    assert_eq!(laptop.told(), []);
}
