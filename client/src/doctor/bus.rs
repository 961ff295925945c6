//! What services on the system bus know: the unit's state, the login manager, the clock.

use std::time::Duration;

use whimbrel_client_core::doctor::{Sleep, UnitState};
use zbus::names::BusName;
use zbus::zvariant::OwnedObjectPath;
use zbus::{Connection, Proxy, connection, fdo, proxy};

/// Services answer within milliseconds, or are started within a few seconds.
const ANSWER: Duration = Duration::from_secs(5);

const UNIT: &str = "whimbrel.service";

/// What was asked, and what is known without a bus.
#[derive(Debug)]
pub(super) struct Answers {
    pub(super) unit: UnitState,
    pub(super) sleep: Sleep,
    pub(super) synchronised: Option<bool>,
    /// firewalld runs.
    pub(super) firewalld: bool,
}

impl Answers {
    pub(super) async fn ask() -> Self {
        let silent = Self {
            unit: UnitState::Unknown,
            sleep: Sleep::NoBus,
            synchronised: None,
            firewalld: false,
        };
        let Ok(Ok(bus)) = tokio::time::timeout(ANSWER, open()).await else { return silent };
        Self {
            unit: unit(&bus).await.unwrap_or(UnitState::Unknown),
            sleep: if has_login(&bus).await.unwrap_or(false) {
                Sleep::Announced
            } else {
                Sleep::NoLogin
            },
            synchronised: synchronised(&bus).await.ok(),
            firewalld: runs(&bus, "org.fedoraproject.FirewallD1").await.unwrap_or(false),
        }
    }
}

async fn open() -> zbus::Result<Connection> {
    connection::Builder::system()?.method_timeout(ANSWER).build().await
}

async fn unit(bus: &Connection) -> zbus::Result<UnitState> {
    let service = "org.freedesktop.systemd1";
    let manager =
        service_at(bus, service, "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager");
    let unit: OwnedObjectPath = manager.await?.call("LoadUnit", &(UNIT,)).await?;
    let unit = service_at(bus, service, unit.as_str(), "org.freedesktop.systemd1.Unit").await?;
    let state: String = unit.get_property("ActiveState").await?;
    Ok(match state.as_str() {
        "active" | "activating" | "reloading" | "refreshing" => UnitState::Active,
        "failed" => UnitState::Failed,
        _ => UnitState::Inactive,
    })
}

/// Whether there is a login manager, or one would be started.
async fn has_login(bus: &Connection) -> zbus::Result<bool> {
    const LOGIN: &str = "org.freedesktop.login1";
    let names = fdo::DBusProxy::new(bus).await?;
    if names.name_has_owner(BusName::try_from(LOGIN)?).await? {
        return Ok(true);
    }
    Ok(names.list_activatable_names().await?.iter().any(|name| name.as_str() == LOGIN))
}

async fn runs(bus: &Connection, service: &'static str) -> zbus::Result<bool> {
    Ok(fdo::DBusProxy::new(bus).await?.name_has_owner(BusName::try_from(service)?).await?)
}

async fn synchronised(bus: &Connection) -> zbus::Result<bool> {
    let name = "org.freedesktop.timedate1";
    service_at(bus, name, "/org/freedesktop/timedate1", name)
        .await?
        .get_property("NTPSynchronized")
        .await
}

async fn service_at<'a>(
    bus: &Connection,
    service: &'a str,
    path: &'a str,
    interface: &'a str,
) -> zbus::Result<Proxy<'a>> {
    proxy::Builder::new(bus)
        .destination(service)?
        .path(path)?
        .interface(interface)?
        .cache_properties(proxy::CacheProperties::No)
        .build()
        .await
}
