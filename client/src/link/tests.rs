mod simulated;

use std::time::Duration;

use super::*;
use crate::host::lab::{Lab, isolated};
use crate::link::wake::SleepMeter;
use crate::tun::{DEFAULT_V4, DEFAULT_V6, Tun};

const V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

struct Observer {
    lab: Lab,
    _monitor: LinkMonitor,
    events: UnboundedReceiver<LinkEvent>,
}

impl Observer {
    /// Watches a namespace with one uplink, `wan0`, once that is known.
    async fn of_one_uplink() -> (Self, Uplink) {
        let lab = Lab::open();
        uplink(&lab, "wan0", "isp0", V4, 100).await;
        let mut observer = Self::new(lab);
        assert_eq!(observer.next().await, LinkEvent::OwnAddresses(vec![]));
        let up = observer.next_up().await;
        (observer, up)
    }

    fn new(lab: Lab) -> Self {
        let (sender, events) = unbounded_channel();
        let monitor =
            LinkMonitor::spawn("whimbrel0".to_owned(), vec![GATEWAY.into()], vec![], sender)
                .unwrap();
        Self { lab, _monitor: monitor, events }
    }

    async fn next(&mut self) -> LinkEvent {
        let next = tokio::time::timeout(Duration::from_secs(10), self.events.recv()).await;
        next.expect("no link event came").expect("the monitor ended")
    }

    async fn next_up(&mut self) -> Uplink {
        let event = self.next().await;
        let LinkEvent::Up(uplink) = event else { panic!("expected an uplink, got {event:?}") };
        uplink
    }

    async fn next_changed(&mut self) -> Uplink {
        let event = self.next().await;
        let LinkEvent::Changed(uplink) = event else { panic!("expected a change, got {event:?}") };
        uplink
    }

    async fn next_down(&mut self) -> (String, DownReason) {
        let event = self.next().await;
        let LinkEvent::Down { name, reason, .. } = event else {
            panic!("expected a loss, got {event:?}")
        };
        (name, reason)
    }
}

/// Both ends of the link stay in this namespace; `peer` gets no address.
async fn uplink(lab: &Lab, name: &str, peer: &str, v4: Ipv4Addr, metric: u32) {
    lab.veth(name, peer).await;
    lab.address(name, v4.into(), 24).await;
    let [a, b, c, _] = v4.octets();
    lab.default_route(name, Ipv4Addr::new(a, b, c, 1).into(), metric).await;
}

#[test]
fn an_uplink_is_told_with_addresses_metric_and_way_to_the_gateway() {
    isolated(async || {
        let (observer, up) = Observer::of_one_uplink().await;
        let expected = Uplink {
            index: observer.lab.index("wan0").await,
            name: "wan0".to_owned(),
            v4: vec![V4],
            v6: vec![],
            metric: 100,
            gateway_reachable: true,
            class: Class::Wired,
        };
        assert_eq!(up, expected);
    });
}

#[test]
fn a_new_link_comes_up_and_a_deleted_one_goes() {
    isolated(async || {
        let (mut observer, _) = Observer::of_one_uplink().await;
        uplink(&observer.lab, "cell0", "isp1", Ipv4Addr::new(198, 51, 100, 2), 700).await;
        let up = observer.next_up().await;
        assert_eq!((up.name.as_str(), up.metric), ("cell0", 700));
        observer.lab.delete("cell0").await;
        let (name, reason) = observer.next_down().await;
        assert_eq!(name, "cell0");
        assert!(matches!(
            reason,
            DownReason::Disabled
                | DownReason::NoAddress
                | DownReason::Removed
                | DownReason::NoCarrier
        ));
    });
}

#[test]
fn a_lost_carrier_takes_the_link_down_until_it_is_back() {
    isolated(async || {
        let (mut observer, before) = Observer::of_one_uplink().await;
        observer.lab.down("isp0").await;
        assert_eq!(observer.next_down().await, ("wan0".to_owned(), DownReason::NoCarrier));
        observer.lab.up("isp0").await;
        assert_eq!(observer.next_up().await, before);
    });
}

#[test]
fn switching_an_interface_off_takes_it_down() {
    isolated(async || {
        let (mut observer, _) = Observer::of_one_uplink().await;
        observer.lab.down("wan0").await;
        assert_eq!(observer.next_down().await, ("wan0".to_owned(), DownReason::Disabled));
    });
}

#[test]
fn removing_addresses_changes_a_link_and_removing_the_last_takes_it_down() {
    isolated(async || {
        let (mut observer, _) = Observer::of_one_uplink().await;
        let second = Ipv4Addr::new(198, 51, 100, 7);
        observer.lab.address("wan0", second.into(), 24).await;
        assert_eq!(observer.next_changed().await.v4.len(), 2);
        observer.lab.remove_address("wan0", second.into()).await;
        assert_eq!(observer.next_changed().await.v4, [V4]);
        observer.lab.remove_address("wan0", V4.into()).await;
        assert_eq!(observer.next_down().await, ("wan0".to_owned(), DownReason::NoAddress));
    });
}

#[test]
fn a_link_without_default_route_stays_up_with_the_worst_metric() {
    isolated(async || {
        let (mut observer, _) = Observer::of_one_uplink().await;
        let filter = translate::table_of(Family::V4, MAIN_TABLE);
        let routes: Vec<_> =
            observer.lab.handle().route().get(filter).execute().try_collect().await.unwrap();
        for route in routes {
            if route.header.destination_prefix_length == 0 && translate::table(&route) == MAIN_TABLE
            {
                observer.lab.handle().route().del(route).execute().await.unwrap();
            }
        }
        let changed = observer.next_changed().await;
        assert_eq!((changed.metric, changed.gateway_reachable), (u32::MAX, false));
        observer.lab.remove_address("wan0", V4.into()).await;
        assert_eq!(observer.next_down().await.1, DownReason::NoAddress);
    });
}

#[test]
fn own_addresses_are_told_at_once_and_without_those_of_the_tun() {
    isolated(async || {
        let (mut observer, _) = Observer::of_one_uplink().await;
        observer.lab.address("wan0", V6.into(), 64).await;
        assert_eq!(observer.next().await, LinkEvent::OwnAddresses(vec![V6]));
        assert_eq!(observer.next_changed().await.v6, [V6]);
        observer.lab.remove_address("wan0", V6.into()).await;
        assert_eq!(observer.next_changed().await.v6, [] as [Ipv6Addr; 0]);
        assert_eq!(observer.next().await, LinkEvent::OwnAddresses(vec![]));
    });
}

#[test]
fn our_tun_and_ports_of_a_bridge_are_no_uplinks() {
    isolated(async || {
        let lab = Lab::open();
        let tun = Tun::create("whimbrel0", 1500, Some((DEFAULT_V4, 32)), Some((DEFAULT_V6, 128)));
        let _tun = tun.await.unwrap();
        let bridge = rtnetlink::LinkBridge::new("docker0").build();
        lab.handle().link().add(bridge).execute().await.unwrap();
        lab.up("docker0").await;
        lab.address("docker0", Ipv4Addr::new(172, 17, 0, 1).into(), 16).await;
        lab.veth("vethport", "container").await;
        let port = rtnetlink::LinkUnspec::new_with_name("vethport");
        let port = port.controller(lab.index("docker0").await).build();
        lab.handle().link().set(port).execute().await.unwrap();
        uplink(&lab, "wan0", "isp0", V4, 100).await;

        let mut observer = Observer::new(lab);
        assert_eq!(observer.next().await, LinkEvent::OwnAddresses(vec![]));
        assert_eq!(observer.next_up().await.name, "wan0");
        observer.lab.down("wan0").await;
        assert_eq!(observer.next_down().await.0, "wan0", "the first event after wan0's");
    });
}

/// Messages the kernel has dropped for want of room, over all netlink sockets of this namespace.
fn dropped_messages() -> u64 {
    let table = std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap();
    let drops = table.lines().skip(1).map(|line| line.split_whitespace().nth(8).unwrap());
    drops.map(|drops| drops.parse::<u64>().unwrap()).sum()
}

#[test]
fn lost_messages_cost_a_new_reading_and_no_event() {
    isolated(async || {
        let lab = Lab::open();
        uplink(&lab, "wan0", "isp0", V4, 100).await;
        let (sender, mut events) = unbounded_channel();
        let (gateway, orders) = unbounded_channel();
        let watch = Watch::new("whimbrel0".to_owned(), vec![GATEWAY.into()], sender);
        let watching = watch.run(orders, Sleep::watch().unwrap());
        let observing = async {
            assert_eq!(events.recv().await, Some(LinkEvent::OwnAddresses(vec![])));
            assert!(matches!(events.recv().await, Some(LinkEvent::Up(_))));
            // The watch shares this thread: while the thread waits, nobody reads its messages.
            let busy = std::thread::spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.unwrap().block_on(async {
                    let lab = Lab::open();
                    let mut rounds = 0;
                    while dropped_messages() == 0 && rounds < 20_000 {
                        let other = Ipv4Addr::new(198, 51, 100, 7).into();
                        lab.address("isp0", other, 24).await;
                        lab.remove_address("isp0", other).await;
                        rounds += 1;
                    }
                    assert!(dropped_messages() > 0, "the kernel dropped no message");
                    lab.delete("wan0").await;
                });
            });
            busy.join().unwrap();
            let event = events.recv().await;
            let Some(LinkEvent::Down { name, reason, .. }) = event else { panic!("{event:?}") };
            assert_eq!((name.as_str(), reason), ("wan0", DownReason::Removed));
            drop(gateway);
        };
        let both = async { tokio::join!(watching, observing) };
        tokio::time::timeout(Duration::from_secs(60), both).await.expect("no event came");
    });
}

#[test]
fn good_news_waits_no_longer_than_promised() {
    let (sender, _events) = unbounded_channel();
    let mut watch = Watch::new("whimbrel0".to_owned(), Vec::new(), sender);
    let start = Instant::now();
    for step in 0..20 {
        watch.news(start + step * Duration::from_millis(5));
    }
    assert_eq!(watch.due.unwrap().0, start + LONGEST_WAIT);
}

#[test]
fn a_reading_overtaken_by_bad_news_is_discarded() {
    isolated(async || {
        let lab = Lab::open();
        uplink(&lab, "wan0", "isp0", V4, 100).await;
        let stale = read(lab.handle(), "whimbrel0", vec![]).await.unwrap();
        let (sender, mut events) = unbounded_channel();
        let mut watch = Watch::new("whimbrel0".to_owned(), Vec::new(), sender);
        watch.lose(lab.index("wan0").await, DownReason::NoCarrier);
        watch.learn(Ok(stale));
        assert!(events.try_recv().is_err());
        assert!(watch.due.is_some());
    });
}

#[test]
fn only_suspend_counts_as_sleep() {
    let seconds = Duration::from_secs;
    let mut meter = SleepMeter::new(seconds(1000), seconds(900));
    assert_eq!(meter.read(seconds(5000), seconds(4900)), None);
    assert_eq!(meter.read(seconds(5000), seconds(4899)), None, "one second is no sleep");
    assert_eq!(meter.read(seconds(5060), seconds(4900)), Some(seconds(60)));
    assert_eq!(meter.read(seconds(5061), seconds(4901)), None, "told once");
}
