//! NetworkManager, where there is one: what it knows of the cost of networks, and which of them want
//! a sign-in (org.freedesktop.NetworkManager.Device).
//!
//! Nothing is asked of it but what it knows already. Without it the class of a link decides.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::mpsc::UnboundedSender;
use tracing::{debug, info};
use whimbrel_client_core::links::Metering;
use zbus::message::Type;
use zbus::zvariant::{OwnedObjectPath, OwnedValue};
use zbus::{Connection, MatchRule, MessageStream, Proxy, connection, fdo, proxy};

const SERVICE: &str = "org.freedesktop.NetworkManager";
const PATH: &str = "/org/freedesktop/NetworkManager";
const DEVICE: &str = "org.freedesktop.NetworkManager.Device";

/// It answers within milliseconds; a bus that starts it takes up to 25 s.
const ANSWER: Duration = Duration::from_secs(30);

/// A bus without it is asked again after the first, doubling up to the second.
const PAUSE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(300));

/// A device that comes up changes a dozen properties within moments: one look for all of them.
const QUIET: Duration = Duration::from_millis(100);

/// What is known of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Known {
    pub(crate) metering: Metering,
    /// It wants a sign-in, says the manager's own look, if it takes any.
    pub(crate) portal: bool,
}

/// What is known of the networks, by interface name.
pub(crate) type News = BTreeMap<String, Known>;

/// Listens for as long as anybody is interested. What is known is told when it changes, all of it.
pub(crate) async fn follow(news: UnboundedSender<News>) {
    let mut pause = PAUSE.0;
    let mut told = News::new();
    loop {
        let Err(error) = attend(&news, &mut told).await else { return };
        debug!(%error, "No network manager");
        // What it knew is not known any more.
        if !std::mem::take(&mut told).is_empty() {
            info!("The network manager is gone");
            pause = PAUSE.0;
            if news.send(News::new()).is_err() {
                return;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = news.closed() => return,
        }
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// Follows one connection to its end; `Ok` when nobody is interested any more.
async fn attend(news: &UnboundedSender<News>, told: &mut News) -> zbus::Result<()> {
    let bus = connection::Builder::system()?.method_timeout(ANSWER).build().await?;
    let mut changes = changes(&bus).await?;
    let manager = device_at(&bus, PATH, SERVICE).await?;
    loop {
        let known = look(&bus, &manager).await?;
        if known != *told {
            debug!(?known, "The network manager says");
            told.clone_from(&known);
            if news.send(known).is_err() {
                return Ok(());
            }
        }
        tokio::select! {
            change = changes.next() => {
                if change.is_none() {
                    return Err(zbus::Error::Failure("the bus is gone".into()));
                }
            }
            () = news.closed() => return Ok(()),
        }
        // What comes meanwhile waits in the stream, and is looked at once.
        tokio::time::sleep(QUIET).await;
        while let Some(Some(_)) = futures_util::FutureExt::now_or_never(changes.next()) {}
    }
}

/// Devices that change, come and go; the manager itself, too.
async fn changes(bus: &Connection) -> zbus::Result<impl futures_util::Stream<Item = ()> + Unpin> {
    let properties = MatchRule::builder()
        .msg_type(Type::Signal)
        .sender(SERVICE)?
        .interface("org.freedesktop.DBus.Properties")?
        .member("PropertiesChanged")?
        .arg(0, DEVICE)?
        .build();
    let properties = MessageStream::for_match_rule(properties, bus, None).await?;
    // Statistics are properties of another interface; of this one few matter.
    let properties = properties.filter_map(|message| {
        let relevant = message.is_ok_and(|message| {
            let body = message.body();
            let changed = body.deserialize::<(String, HashMap<String, OwnedValue>, Vec<String>)>();
            changed.is_ok_and(|(_, changed, _)| RELEVANT.iter().any(|it| changed.contains_key(*it)))
        });
        std::future::ready(relevant.then_some(()))
    });
    let devices = MatchRule::builder()
        .msg_type(Type::Signal)
        .sender(SERVICE)?
        .path(PATH)?
        .interface(SERVICE)?
        .build();
    let devices = MessageStream::for_match_rule(devices, bus, None).await?.map(|_| ());
    let owners = fdo::DBusProxy::new(bus).await?;
    let owners = owners.receive_name_owner_changed_with_args(&[(0, SERVICE)]).await?.map(|_| ());
    let all = futures_util::stream::select(properties, devices);
    Ok(Box::pin(futures_util::stream::select(all, owners)))
}

/// The properties that tell something; `State` and the names, because a new network comes with it.
const RELEVANT: [&str; 5] =
    ["Metered", "Ip4Connectivity", "Ip6Connectivity", "State", "IpInterface"];

async fn look(bus: &Connection, manager: &Proxy<'_>) -> zbus::Result<News> {
    let devices: Vec<OwnedObjectPath> = manager.call("GetDevices", &()).await?;
    let mut known = News::new();
    for path in devices {
        let device = device_at(bus, path.as_str(), DEVICE).await?;
        // A device may be gone by now.
        let Ok(mut name) = device.get_property::<String>("IpInterface").await else { continue };
        if name.is_empty() {
            name = device.get_property("Interface").await.unwrap_or_default();
        }
        let number = async |property| device.get_property::<u32>(property).await.unwrap_or(0);
        let metering = metering(number("Metered").await);
        let portal =
            number("Ip4Connectivity").await == PORTAL || number("Ip6Connectivity").await == PORTAL;
        known.insert(name, Known { metering, portal });
    }
    Ok(known)
}

/// `NM_CONNECTIVITY_PORTAL`.
const PORTAL: u32 = 2;

/// `NMMetered`.
fn metering(number: u32) -> Metering {
    match number {
        1 => Metering::Yes,
        2 => Metering::No,
        3 => Metering::GuessYes,
        4 => Metering::GuessNo,
        _ => Metering::Unknown,
    }
}

async fn device_at<'a>(
    bus: &Connection,
    path: &'a str,
    interface: &'a str,
) -> zbus::Result<Proxy<'a>> {
    proxy::Builder::new(bus)
        .destination(SERVICE)?
        .path(path)?
        .interface(interface)?
        .cache_properties(proxy::CacheProperties::No)
        .build()
        .await
}
