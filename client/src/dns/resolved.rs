//! systemd-resolved: it is told that names lead through the TUN (org.freedesktop.resolve1(5)).

use std::net::Ipv4Addr;
use std::time::Duration;

use futures_util::StreamExt;
use zbus::fdo::DBusProxy;
use zbus::names::BusName;
use zbus::{Connection, Proxy, connection, proxy};

use super::file::SettingsFile;

const SERVICE: &str = "org.freedesktop.resolve1";
const PATH: &str = "/org/freedesktop/resolve1";
const MANAGER: &str = "org.freedesktop.resolve1.Manager";
const LINK: &str = "org.freedesktop.resolve1.Link";

/// It answers at once, or asks polkit first.
const ANSWER: Duration = Duration::from_secs(2);

/// Every name (systemd.network(5), Domains=).
const EVERYTHING: (&str, bool) = (".", true);

/// `AF_INET`.
const IPV4: i32 = 2;

/// See the [module](self).
pub(super) struct Resolved {
    connection: Connection,
}

impl Resolved {
    /// The one that programs of this host ask, if they ask any.
    ///
    /// # Errors
    /// They ask one that is not there.
    pub(super) async fn find(file: &SettingsFile) -> Result<Option<Self>, String> {
        if !file.leads_to_resolved() {
            return Ok(None);
        }
        let absent = |error: zbus::Error| format!("systemd-resolved is out of reach: {error}");
        let connect = async {
            let builder = connection::Builder::system()?.method_timeout(ANSWER);
            let connection = builder.build().await?;
            let bus = DBusProxy::new(&connection).await?;
            bus.get_name_owner(BusName::try_from(SERVICE)?).await?;
            Ok(Self { connection })
        };
        connect.await.map(Some).map_err(absent)
    }

    /// Names are asked of `server`, through this link.
    pub(super) async fn set(&self, index: u32, server: Ipv4Addr) -> zbus::Result<()> {
        let manager = self.object(PATH, MANAGER).await?;
        let index = i32::try_from(index).unwrap_or_default();
        let servers = vec![(IPV4, server.octets().to_vec())];
        manager.call::<_, _, ()>("SetLinkDNS", &(index, servers)).await?;
        manager.call::<_, _, ()>("SetLinkDomains", &(index, vec![EVERYTHING])).await?;
        manager.call::<_, _, ()>("SetLinkDefaultRoute", &(index, true)).await?;
        // The way to the gateway is encrypted; behind it its own resolver decides.
        for quiet in ["SetLinkDNSOverTLS", "SetLinkLLMNR", "SetLinkMulticastDNS"] {
            manager.call::<_, _, ()>(quiet, &(index, "no")).await?;
        }
        manager.call::<_, _, ()>("FlushCaches", &()).await
    }

    /// Whether that is still so.
    pub(super) async fn is_set(&self, index: u32, server: Ipv4Addr) -> bool {
        let ask = async {
            let manager = self.object(PATH, MANAGER).await?;
            let index = i32::try_from(index).unwrap_or_default();
            let path: zbus::zvariant::OwnedObjectPath = manager.call("GetLink", &(index,)).await?;
            let link = self.object(path.as_str(), LINK).await?;
            let servers: Vec<(i32, Vec<u8>)> = link.get_property("DNS").await?;
            let domains: Vec<(String, bool)> = link.get_property("Domains").await?;
            let (everything, routes) = EVERYTHING;
            Ok::<_, zbus::Error>(
                servers == [(IPV4, server.octets().to_vec())]
                    && domains.contains(&(everything.to_owned(), routes)),
            )
        };
        ask.await.unwrap_or(false)
    }

    /// Takes back everything about the link.
    pub(super) async fn revert(&self, index: u32) -> zbus::Result<()> {
        let manager = self.object(PATH, MANAGER).await?;
        let index = i32::try_from(index).unwrap_or_default();
        manager.call::<_, _, ()>("RevertLink", &(index,)).await
    }

    /// Waits until it is started anew, and has forgotten what it was told.
    pub(super) async fn until_restarted(&self) {
        let watch = async {
            let bus = DBusProxy::new(&self.connection).await?;
            let mut changes = bus.receive_name_owner_changed_with_args(&[(0, SERVICE)]).await?;
            while let Some(change) = changes.next().await {
                if change.args().is_ok_and(|args| args.new_owner().is_some()) {
                    break;
                }
            }
            Ok::<_, zbus::Error>(())
        };
        if watch.await.is_err() {
            // The bus itself is gone.
            tokio::time::sleep(ANSWER).await;
        }
    }

    async fn object(&self, path: &str, interface: &str) -> zbus::Result<Proxy<'static>> {
        proxy::Builder::new(&self.connection)
            .destination(SERVICE)?
            .path(path.to_owned())?
            .interface(interface.to_owned())?
            .cache_properties(proxy::CacheProperties::No)
            .build()
            .await
    }
}

/// What went wrong, and what to do about it.
pub(super) fn explain(error: zbus::Error) -> String {
    let text = error.to_string();
    if text.contains("AccessDenied") || text.contains("InteractiveAuthorizationRequired") {
        "systemd-resolved does not let this user decide about names: install our polkit rules \
         (systemd/polkit.rules), or run the daemon as root"
            .to_owned()
    } else {
        format!("systemd-resolved: {text}")
    }
}
