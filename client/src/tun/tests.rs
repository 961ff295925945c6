use std::os::fd::{AsFd, AsRawFd};

use rtnetlink::packet_route::link::LinkFlags;

use super::*;
use crate::host::lab::{Lab, isolated};

async fn create(name: &str) -> Result<Tun, TunError> {
    Tun::create(name, 1500, Some((DEFAULT_V4, 32)), Some((DEFAULT_V6, 128))).await
}

#[test]
fn the_interface_is_up_with_its_addresses_and_a_long_queue() {
    isolated(async || {
        let tun = create("whimbrel0").await.unwrap();
        assert!(tun.vnet(), "this kernel has offload");
        let netlink = Netlink::open().unwrap();
        let link = find(&netlink, "whimbrel0").await.unwrap();
        assert!(link.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp));
        assert!(link.attributes.contains(&LinkAttribute::TxQueueLen(QUEUE_LENGTH)));
        assert!(link.attributes.contains(&LinkAttribute::Mtu(1500)));
        let addresses: Vec<AddressMessage> =
            netlink.handle().address().get().execute().try_collect().await.unwrap();
        let index = tun.interface().unwrap().index;
        let of_tun = addresses.iter().filter(|message| message.header.index == index);
        let mut found: Vec<IpAddr> = of_tun.filter_map(address_of).collect();
        found.sort_unstable();
        assert_eq!(found, [IpAddr::V4(DEFAULT_V4), IpAddr::V6(DEFAULT_V6)]);
    });
}

#[test]
fn a_second_daemon_on_the_same_name_is_told_so() {
    isolated(async || {
        let first = create("whimbrel0").await.unwrap();
        let error = create("whimbrel0").await.unwrap_err();
        assert!(matches!(&error, TunError::Busy { name } if name == "whimbrel0"), "{error}");
        drop(first);
        create("whimbrel0").await.unwrap();
    });
}

#[test]
fn impossible_names_are_refused() {
    isolated(async || {
        Lab::open().veth("wan0", "isp0").await;
        for name in ["", "sixteen-bytes-xx", "with\0nul", "wan0"] {
            let error = create(name).await.unwrap_err();
            assert!(matches!(&error, TunError::Name { .. }), "{name:?}: {error}");
        }
    });
}

#[test]
fn an_address_of_another_interface_is_refused() {
    isolated(async || {
        let lab = Lab::open();
        lab.veth("wan0", "isp0").await;
        lab.address("wan0", DEFAULT_V4.into(), 24).await;
        let error = create("whimbrel0").await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "the TUN address 10.213.57.1 is already used by the interface wan0: configure another"
        );
    });
}

#[test]
fn without_the_capability_the_error_says_so() {
    isolated(async || {
        use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::NET_ADMIN);
        set_capabilities(None, sets).unwrap();
        let error = create("whimbrel0").await.unwrap_err();
        assert!(matches!(error, TunError::NotPermitted { .. }), "{error}");
    });
}

#[test]
fn whoever_passed_a_tun_cannot_make_its_reader_wait() {
    isolated(async || {
        let made = create("whimbrel0").await.unwrap();
        let tun = Tun::adopt(made.as_fd().try_clone_to_owned().unwrap()).unwrap();
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let index = made.interface().unwrap().index;
        let (v4, netlink) = (Ipv4Addr::new(10, 9, 9, 1), Netlink::open().unwrap());
        add_address(&netlink, index, v4.into(), 24).await.unwrap();
        socket.send_to(b"out", "10.9.9.2:7").unwrap();
        tun.readable().await.unwrap();
        rustix::io::ioctl_fionbio(&made, false).unwrap();
        let mut buf = [0; 2000];
        while tun.read(&mut buf).is_ok() {}
        let error = tun.read(&mut buf).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    });
}

#[test]
fn what_is_no_tun_of_ours_is_not_adopted() {
    isolated(async || {
        let refuse = |fd: OwnedFd| Tun::adopt(fd).unwrap_err().to_string();
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(refuse(null.into()).contains("no TUN"));
        let unmade = std::fs::File::open("/dev/net/tun").unwrap();
        assert!(refuse(unmade.into()).contains("no interface"));
        let plain = open("whimbrel1", false).unwrap();
        assert!(refuse(plain).contains("flags"));
        let header: libc::c_int = 12;
        let odd = open("whimbrel2", true).unwrap();
        // SAFETY: TUNSETVNETHDRSZ reads one int at the address it is given.
        let set = unsafe { libc::ioctl(odd.as_raw_fd(), 0x4004_54d8, &raw const header) };
        assert_eq!(set, 0);
        assert!(refuse(odd).contains("header of 12"));
    });
}

#[test]
fn only_inotify_is_a_pulse() {
    let made = rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::CLOEXEC).unwrap();
    assert_eq!(passed::check_pulse(made.as_fd()), Ok(()));
    let (pipe, _end) = io::pipe().unwrap();
    let named = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(named.path().join("anon_inode:inotify")).unwrap();
    for other in [pipe.as_fd(), file.as_fd()] {
        assert_eq!(passed::check_pulse(other), Err("the pulse is no inotify".to_owned()));
    }
}

#[test]
fn a_passed_descriptor_carries_packets_both_ways() {
    isolated(async || {
        let made = create("whimbrel0").await.unwrap();
        let passed = made.as_fd().try_clone_to_owned().unwrap();
        let index = made.interface().unwrap().index;
        add_address(&Netlink::open().unwrap(), index, Ipv4Addr::new(10, 9, 9, 1).into(), 24)
            .await
            .unwrap();
        drop(made);
        let tun = Tun::adopt(passed).unwrap();
        assert!(tun.vnet() && tun.interface().is_none());

        let socket = std::net::UdpSocket::bind("10.9.9.1:0").unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        socket.connect("10.9.9.2:7").unwrap();
        socket.send(b"out").unwrap();
        let mut buf = [0; 2000];
        let length = loop {
            match tun.read(&mut buf) {
                Ok(length) if buf[VNET_HEADER] >> 4 == 4 && buf[VNET_HEADER + 9] == 17 => {
                    break length;
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tun.readable().await.unwrap();
                }
                Err(error) => panic!("reading the TUN: {error}"),
            }
        };
        assert_eq!(&buf[length - 3..length], b"out");

        // Swapping addresses and ports turns the datagram into its answer, checksums included:
        // without the virtio flag the kernel takes the IP checksum as it is, and a zero UDP
        // checksum as absent.
        let packet = &mut buf[..length];
        packet[..VNET_HEADER].fill(0);
        let ip = &mut packet[VNET_HEADER..];
        let (source, destination) = ip[12..20].split_at_mut(4);
        source.swap_with_slice(destination);
        let (from, to) = ip[20..24].split_at_mut(2);
        from.swap_with_slice(to);
        ip[26..28].fill(0);
        assert_eq!(tun.write(packet).unwrap(), length);
        let mut answer = [0; 10];
        assert_eq!(socket.recv(&mut answer).unwrap(), 3);
        assert!(tun.write(&[0; 4]).is_err());
    });
}
