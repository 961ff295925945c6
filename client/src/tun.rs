//! The TUN device: packets in and out, with segmentation offload where the kernel has it.
//!
//! This file moves bytes. With [`Tun::vnet`] every packet is preceded by a 10-byte virtio-net
//! header, which is the business of whoever reads and writes.
#![expect(unsafe_code, reason = "TUNSETOFFLOAD, and taking over the descriptor of the tun crate")]

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::task::{Context, Poll, ready};

use futures_util::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkMessage,
};
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{Error as NetlinkError, LinkUnspec, RouteMessageBuilder};
use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev2};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use whimbrel_client_core::plan::{Family, MAIN_TABLE};

use crate::host::netlink::{Netlink, io_error};
use crate::host::translate::{self, address_of, name_of};

pub(crate) mod passed;

/// The largest packet a TUN takes or gives: one of IPv6, whose length does not count its header.
pub(crate) const LARGEST_PACKET: usize = 40 + 65_535;

/// The TUN's IPv4 address unless configured: one address out of the private ranges, away from
/// the parts that routers, containers and other tunnels hand out by default.
pub const DEFAULT_V4: Ipv4Addr = Ipv4Addr::new(10, 213, 57, 1);

/// The TUN's IPv6 address unless configured: a unique local address with a random global
/// identifier (RFC 4193 §3.2).
pub const DEFAULT_V6: Ipv6Addr = Ipv6Addr::new(0xfd5b, 0x7f3a, 0xc2e1, 0x5211, 0, 0, 0, 1);

/// Bytes of the virtio-net header in front of every packet when [`Tun::vnet`] says so.
pub const VNET_HEADER: usize = 10;

/// The MTU without offload: large packets replace segmentation. 16 bytes below the limit of an
/// IPv4 packet, rounded down.
const PLAIN_MTU: u16 = 65520;

/// Packets the kernel queues towards us. The default of 500 drops whole bursts, and each drop
/// costs the sender a retransmission timeout.
const QUEUE_LENGTH: u32 = 10_000;

/// Says that a file has no position (`preadv2(2)`).
const NO_OFFSET: u64 = u64::MAX;

/// `TUNSETOFFLOAD` of `linux/if_tun.h`.
const TUNSETOFFLOAD: rustix::ioctl::Opcode =
    rustix::ioctl::opcode::write::<libc::c_uint>(b'T', 208);

/// `TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6`.
const OFFLOADS: usize = 1 | 2 | 4;

/// Why there is no TUN.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The kernel has no TUN driver, or the device node is missing.
    #[error(
        "/dev/net/tun does not exist: load the driver with `modprobe tun`, or give the container the device"
    )]
    NoDevice,
    /// The device node may not be opened.
    #[error("/dev/net/tun cannot be opened; it must be readable and writable for this user")]
    DeviceDenied(#[source] io::Error),
    /// The capability to make interfaces is missing.
    #[error(
        "making the interface {name} needs CAP_NET_ADMIN: run as root or through the systemd unit"
    )]
    NotPermitted {
        /// The interface asked for.
        name: String,
    },
    /// Another process has the interface open.
    #[error("the interface {name} is in use by another process: is another daemon running?")]
    Busy {
        /// The interface asked for.
        name: String,
    },
    /// An interface of that name exists and is no TUN, or the name is impossible.
    #[error(
        "{name:?} cannot be the TUN's name: it is longer than 15 bytes, empty, or taken by an interface of another kind"
    )]
    Name {
        /// The interface asked for.
        name: String,
    },
    /// Another interface of this host has the address.
    #[error(
        "the TUN address {address} is already used by the interface {interface}: configure another"
    )]
    AddressTaken {
        /// The address asked for.
        address: IpAddr,
        /// Who has it.
        interface: String,
    },
    /// A descriptor that another process passed is no TUN of the kind that is needed.
    #[error("{0}; Whimbrel needs one of its own making")]
    Passed(String),
    /// Anything else; `action` says what was tried.
    #[error("{action}: {source}")]
    Failed {
        /// What was tried.
        action: String,
        /// The system's answer.
        source: io::Error,
    },
}

/// A TUN interface of this namespace as it was configured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Bytes of the largest packet without segmentation.
    pub mtu: u16,
    /// Its IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// Its IPv6 address; `None` where the host has IPv6 switched off.
    pub v6: Option<Ipv6Addr>,
}

/// An open TUN device.
#[derive(Debug)]
pub struct Tun {
    fd: AsyncFd<OwnedFd>,
    vnet: bool,
    interface: Option<Interface>,
}

impl Tun {
    /// Makes the interface `name` with these addresses (each with its prefix length) and brings
    /// it up. Where the kernel refuses segmentation offload, the MTU becomes 65520 and
    /// [`Tun::vnet`] false. The interface goes away with the value.
    ///
    /// # Errors
    /// Each cause has its own [`TunError`]. IPv6 being switched off is none.
    pub async fn create(
        name: &str,
        mtu: u16,
        v4: Option<(Ipv4Addr, u8)>,
        v6: Option<(Ipv6Addr, u8)>,
    ) -> Result<Self, TunError> {
        let netlink = Netlink::open().map_err(|e| failed("opening a netlink socket", e))?;
        let wanted = [v4.map(|(v4, _)| v4.into()), v6.map(|(v6, _)| v6.into())];
        for address in wanted.into_iter().flatten() {
            check_clash(&netlink, name, address).await?;
        }
        check_device_node()?;
        let (fd, vnet) = match open(name, true) {
            Ok(fd) if offload(&fd).is_ok() => (fd, true),
            // Close the refused device before the same name is opened again.
            Ok(refused) => {
                drop(refused);
                (open(name, false)?, false)
            }
            Err(error) => return Err(error),
        };
        let mtu = if vnet { mtu } else { PLAIN_MTU };
        let mut tun = Self::wrap(fd, vnet)?;
        tun.interface = Some(configure(&netlink, name, mtu, v4, v6).await?);
        Ok(tun)
    }

    /// Leads packets for one more address here, wherever else they would go. It ends with the
    /// interface.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn lead(&self, to: Ipv4Addr) -> Result<(), TunError> {
        let Some(interface) = &self.interface else { return Ok(()) };
        let fail = |error| failed(format!("leading {to} to {}", interface.name), error);
        let netlink = Netlink::open().map_err(fail)?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(to, 32)
            .output_interface(interface.index)
            .scope(RouteScope::Link)
            .build();
        let added = netlink.handle().route().add(route).replace().execute().await;
        added.map_err(|error| fail(io_error(error)))
    }

    /// Takes over the TUN that another process made, perhaps in another network namespace, with
    /// virtio headers. Offload is switched on. That process may keep a duplicate, so nothing is
    /// taken for granted later: not even that reading does not block.
    ///
    /// # Errors
    /// Another kind of descriptor, or no runtime to wait for it.
    pub fn adopt(fd: OwnedFd) -> Result<Self, TunError> {
        passed::check(fd.as_fd()).map_err(TunError::Passed)?;
        offload(&fd).map_err(|e| failed("switching on offload for a passed TUN", e))?;
        Self::wrap(fd, true)
    }

    /// Whether packets carry the virtio-net header, and may be larger than the MTU.
    #[must_use]
    pub fn vnet(&self) -> bool {
        self.vnet
    }

    /// The interface, unless the descriptor came from elsewhere.
    #[must_use]
    pub fn interface(&self) -> Option<&Interface> {
        self.interface.as_ref()
    }

    /// Ready when [`Tun::read`] may find a packet; read until it says [`io::ErrorKind::WouldBlock`].
    ///
    /// # Errors
    /// The runtime is shutting down.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ready = ready!(self.fd.poll_read_ready(cx));
        Poll::Ready(ready.map(|_guard| ()))
    }

    /// Waits for [`Tun::poll_readable`].
    ///
    /// # Errors
    /// The runtime is shutting down.
    pub async fn readable(&self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_readable(cx)).await
    }

    /// Reads one packet, header included, and returns its length. A longer packet is cut off.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is none; others when the interface is gone.
    pub fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.fd.try_io(Interest::READABLE, |fd| {
            let read = preadv2(fd, &mut [IoSliceMut::new(buf)], NO_OFFSET, ReadWriteFlags::NOWAIT);
            Ok(match read {
                // Kernels before 5.13.
                Err(Errno::OPNOTSUPP) => rustix::io::read(fd, &mut *buf)?,
                other => other?,
            })
        })
    }

    /// Writes one packet, header included.
    ///
    /// # Errors
    /// `EINVAL` for what the kernel takes for no packet, `EIO` when the interface is down.
    pub fn write(&self, packet: &[u8]) -> io::Result<usize> {
        let fd = self.fd.get_ref();
        Ok(match pwritev2(fd, &[IoSlice::new(packet)], NO_OFFSET, ReadWriteFlags::NOWAIT) {
            Err(Errno::OPNOTSUPP) => rustix::io::write(fd, packet)?,
            other => other?,
        })
    }

    fn wrap(fd: OwnedFd, vnet: bool) -> Result<Self, TunError> {
        rustix::io::ioctl_fionbio(&fd, true)
            .map_err(|e| failed("making the TUN nonblocking", e.into()))?;
        let fd = watch(fd).map_err(|e| failed("waiting for the TUN", e))?;
        Ok(Self { fd, vnet, interface: None })
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.get_ref().as_fd()
    }
}

/// Registers `fd` with the runtime, for reading.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, and stays the same descriptor until it is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

fn failed(action: impl Into<String>, source: io::Error) -> TunError {
    TunError::Failed { action: action.into(), source }
}

/// Tells "no driver" and "no access" apart, which the attempt to make an interface does not.
fn check_device_node() -> Result<(), TunError> {
    let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    match opened {
        Ok(_) => Ok(()),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => Err(TunError::NoDevice),
            Some(_) | None => Err(TunError::DeviceDenied(error)),
        },
    }
}

fn open(name: &str, vnet: bool) -> Result<OwnedFd, TunError> {
    let named = || name.to_owned();
    if name.is_empty() {
        return Err(TunError::Name { name: named() });
    }
    let mut config = tun::Configuration::default();
    config.tun_name(name);
    config.platform_config(|platform| {
        platform.vnet_hdr(vnet).ensure_root_privileges(false);
    });
    let device = match tun::create(&config) {
        Ok(device) => device,
        Err(tun::Error::NameTooLong | tun::Error::InvalidName | tun::Error::Nul(_)) => {
            return Err(TunError::Name { name: named() });
        }
        Err(error) => {
            let error = io::Error::from(error);
            return Err(match error.raw_os_error() {
                Some(libc::EBUSY) => TunError::Busy { name: named() },
                Some(libc::EPERM) => TunError::NotPermitted { name: named() },
                Some(libc::EINVAL) => TunError::Name { name: named() },
                Some(_) | None => failed(format!("making the interface {name}"), error),
            });
        }
    };
    // SAFETY: `into_raw_fd` gives up the descriptor, which is open and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(device.into_raw_fd()) })
}

fn offload(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: `TUNSETOFFLOAD` takes its flags by value.
    let request = unsafe { rustix::ioctl::IntegerSetter::<TUNSETOFFLOAD>::new_usize(OFFLOADS) };
    // SAFETY: the request reads and writes no memory, whatever kind of descriptor this is.
    unsafe { rustix::ioctl::ioctl(fd, request) }?;
    Ok(())
}

async fn configure(
    netlink: &Netlink,
    name: &str,
    mtu: u16,
    v4: Option<(Ipv4Addr, u8)>,
    v6: Option<(Ipv6Addr, u8)>,
) -> Result<Interface, TunError> {
    let index = find(netlink, name).await?.header.index;
    let set = async |action: &str, message| {
        netlink
            .handle()
            .link()
            .set(message)
            .execute()
            .await
            .map_err(|e| failed(format!("{action} of {name}"), io_error(e)))
    };
    let link = || LinkUnspec::new_with_index(index);
    set("setting the MTU", link().mtu(mtu.into()).build()).await?;
    let queue = LinkAttribute::TxQueueLen(QUEUE_LENGTH);
    set("setting the queue length", link().append_extra_attribute(queue).build()).await?;
    // No link-local address, so that the kernel sends no solicitations into the TUN. A host
    // without IPv6 refuses, and needs it no more.
    let _refused =
        set("switching off address generation", link().append_extra_attribute(silent()).build())
            .await;
    set("bringing up", link().up().build()).await?;
    if let Some((address, prefix)) = v4 {
        add_address(netlink, index, address.into(), prefix).await.map_err(|error| {
            failed(format!("adding {address}/{prefix} to {name}"), io_error(error))
        })?;
    }
    let v6 = match v6 {
        None => None,
        Some((address, prefix)) => {
            match add_address(netlink, index, address.into(), prefix).await.map_err(io_error) {
                Ok(()) => Some(address),
                Err(error) if is_without_v6(&error) => {
                    tracing::info!("IPv6 is switched off on this host: capturing IPv4 only");
                    None
                }
                Err(error) => {
                    return Err(failed(format!("adding {address}/{prefix} to {name}"), error));
                }
            }
        }
    };
    Ok(Interface { name: name.to_owned(), index, mtu, v4: v4.map(|(v4, _)| v4), v6 })
}

fn silent() -> LinkAttribute {
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])])
}

fn is_without_v6(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    // EACCES: `disable_ipv6` is set; the others: the kernel runs without IPv6.
    matches!(code, Some(libc::EACCES | libc::EAFNOSUPPORT | libc::EOPNOTSUPP))
}

async fn find(netlink: &Netlink, name: &str) -> Result<LinkMessage, TunError> {
    let found = netlink.handle().link().get().match_name(name.to_owned()).execute();
    let missing = || io::Error::from_raw_os_error(libc::ENODEV);
    let found = std::pin::pin!(found).try_next().await.map_err(io_error);
    found
        .and_then(|link| link.ok_or_else(missing))
        .map_err(|e| failed(format!("looking up the interface {name}"), e))
}

async fn add_address(
    netlink: &Netlink,
    index: u32,
    address: IpAddr,
    prefix: u8,
) -> Result<(), NetlinkError> {
    let mut request = netlink.handle().address().add(index, address, prefix).replace();
    if address.is_ipv6() {
        // Nobody else is on a TUN, and a tentative address cannot be connected from.
        let flags = AddressAttribute::Flags(AddressFlags::Nodad);
        request.message_mut().attributes.push(flags);
    }
    request.execute().await
}

/// Refuses an address another interface has, and warns about a network that contains it.
async fn check_clash(netlink: &Netlink, name: &str, wanted: IpAddr) -> Result<(), TunError> {
    let reading = |e| failed("reading the host's addresses", io_error(e));
    let addresses: Vec<AddressMessage> =
        netlink.handle().address().get().execute().try_collect().await.map_err(reading)?;
    for message in addresses {
        if address_of(&message) != Some(wanted) {
            continue;
        }
        let interface = interface_name(netlink, message.header.index).await;
        if interface != name {
            return Err(TunError::AddressTaken { address: wanted, interface });
        }
    }
    let family = Family::of(wanted);
    let routes = netlink.handle().route().get(translate::table_of(family, MAIN_TABLE)).execute();
    let mut routes = std::pin::pin!(routes);
    // A family without routes answers with an error; there is nothing to warn about then.
    while let Ok(Some(route)) = routes.try_next().await {
        let Some(network) = translate::destination(family, &route) else { continue };
        let device = translate::output_interface(&route);
        if translate::table(&route) == MAIN_TABLE
            && network.prefix() > 0
            && network.contains(wanted)
        {
            let interface = interface_name(netlink, device.unwrap_or(0)).await;
            if interface != name {
                tracing::warn!(address = %wanted, %network, interface,
                    "The TUN address lies in a network of this host: that one address there is out of reach");
            }
        }
    }
    Ok(())
}

async fn interface_name(netlink: &Netlink, index: u32) -> String {
    let found = netlink.handle().link().get().match_index(index).execute();
    let link = std::pin::pin!(found).try_next().await.ok().flatten();
    link.and_then(|link| name_of(&link)).unwrap_or_else(|| format!("#{index}"))
}

#[cfg(test)]
mod tests;
