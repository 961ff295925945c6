//! What kind of network a link is, and what follows from that unless a person says otherwise: which
//! link carries, and which is probed sparingly because it costs money.

use std::fmt;

/// What kind of network a link is, the one to prefer first where nothing else decides.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Class {
    /// A cable, or what looks like one.
    #[default]
    Wired,
    /// Wi-Fi.
    Wifi,
    /// A phone that shares its network, by USB or Bluetooth.
    Tether,
    /// A modem of this machine's own.
    Cellular,
}

/// What the kernel knows of an interface (sysfs-class-net, and `IFLA_INFO_KIND`).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Traits {
    /// There is a `wireless` or `phy80211` beside it.
    pub wireless: bool,
    /// `DEVTYPE` of its uevent: `wlan`, `wwan`, `bluetooth`, …
    pub devtype: Option<String>,
    /// The driver of its device.
    pub driver: Option<String>,
    /// Its netlink kind: `wwan`, `vlan`, …
    pub kind: Option<String>,
    /// Its hardware address was made up by whoever made the device, as phones do, and not assigned
    /// to a maker of adapters.
    pub local_address: bool,
}

/// Drivers of modems.
const MODEMS: [&str; 9] = [
    "qmi_wwan",
    "cdc_mbim",
    "huawei_cdc_ncm",
    "sierra_net",
    "hso",
    "mhi_net",
    "mhi_wwan_mbim",
    "iosm",
    "mtk_t7xx",
];

/// Drivers of phones that share their network.
const PHONES: [&str; 2] = ["rndis_host", "ipheth"];

/// Drivers of phones, and of adapters and docks with a cable. The kernel tells them apart by their
/// hardware address too (`usbnet_probe`).
const EITHER: [&str; 3] = ["cdc_ether", "cdc_ncm", "cdc_eem"];

impl Class {
    /// The class of an interface with these traits.
    #[must_use]
    pub fn of(traits: &Traits) -> Self {
        let driver = traits.driver.as_deref().unwrap_or_default();
        let is = |what: &str| {
            traits.devtype.as_deref() == Some(what) || traits.kind.as_deref() == Some(what)
        };
        if is("wwan") || MODEMS.contains(&driver) {
            Self::Cellular
        } else if traits.wireless || is("wlan") {
            Self::Wifi
        } else if is("bluetooth")
            || PHONES.contains(&driver)
            || (EITHER.contains(&driver) && traits.local_address)
        {
            Self::Tether
        } else {
            Self::Wired
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Wired => "wired",
            Self::Wifi => "wifi",
            Self::Tether => "tether",
            Self::Cellular => "cellular",
        })
    }
}

/// What a network manager says of the money a network costs (`NMMetered`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Metering {
    /// Nothing.
    #[default]
    Unknown,
    /// A person or the network said that it does.
    Yes,
    /// A person said that it does not.
    No,
    /// It seems so, as with a phone's hotspot.
    GuessYes,
    /// It seems not.
    GuessNo,
}

/// Where the word about a link's cost comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CostBy {
    /// The configuration.
    Configuration,
    /// The network manager.
    Manager,
    /// The class of the link.
    Class,
}

/// What is known of a link, and what a person wishes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Wishes {
    /// Its place among `paths.prefer`.
    pub preferred: Option<usize>,
    /// `paths.metered` names it.
    pub metered: bool,
    /// `paths.unmetered` names it.
    pub unmetered: bool,
}

/// How a link is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Terms {
    /// Lower is better.
    pub rank: u32,
    /// It costs money: used last, probed sparingly.
    pub metered: bool,
    /// Who says so.
    pub by: CostBy,
}

/// Ranks of preferred links are below this. More than a machine has interfaces.
const PREFERRED: u32 = 1000;

/// Ranks between two route metrics, for the classes: as many as there are.
const CLASSES: u32 = 4;

impl Terms {
    /// The terms of a link: what a person wishes, then what the network manager says, then what its
    /// class suggests. Preferred links go in their order; others by the kernel's route metric, of
    /// equal ones by their class.
    #[must_use]
    pub fn of(class: Class, metering: Metering, metric: u32, wishes: Wishes) -> Self {
        let rank = match wishes.preferred {
            Some(place) => u32::try_from(place).unwrap_or(u32::MAX).min(PREFERRED - 1),
            None => metric.saturating_mul(CLASSES).saturating_add(PREFERRED + class as u32),
        };
        let (metered, by) = if wishes.metered {
            (true, CostBy::Configuration)
        } else if wishes.unmetered {
            (false, CostBy::Configuration)
        } else {
            cost(class, metering)
        };
        Self { rank, metered, by }
    }
}

fn cost(class: Class, metering: Metering) -> (bool, CostBy) {
    match (metering, class) {
        (Metering::Yes | Metering::GuessYes, _) => (true, CostBy::Manager),
        (Metering::No, _) => (false, CostBy::Manager),
        (Metering::Unknown | Metering::GuessNo, Class::Cellular | Class::Tether) => {
            (true, CostBy::Class)
        }
        (Metering::Unknown | Metering::GuessNo, Class::Wired | Class::Wifi) => {
            (false, CostBy::Class)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn driven_by(driver: &str) -> Traits {
        Traits { driver: Some(driver.to_owned()), ..Traits::default() }
    }

    #[test]
    fn interfaces_are_told_apart_by_what_the_kernel_knows() {
        let devtype =
            |devtype: &str| Traits { devtype: Some(devtype.to_owned()), ..Traits::default() };
        let kind = |kind: &str| Traits { kind: Some(kind.to_owned()), ..Traits::default() };
        let cases = [
            (Traits::default(), Class::Wired),
            (driven_by("e1000e"), Class::Wired),
            (kind("vlan"), Class::Wired),
            (Traits { wireless: true, ..driven_by("iwlwifi") }, Class::Wifi),
            (devtype("wlan"), Class::Wifi),
            (devtype("wwan"), Class::Cellular),
            (kind("wwan"), Class::Cellular),
            (driven_by("cdc_mbim"), Class::Cellular),
            (driven_by("rndis_host"), Class::Tether),
            (driven_by("ipheth"), Class::Tether),
            (devtype("bluetooth"), Class::Tether),
        ];
        for (traits, class) in cases {
            assert_eq!(Class::of(&traits), class, "{traits:?}");
        }
    }

    #[test]
    fn a_phone_and_a_dock_with_the_same_driver_differ_by_their_address() {
        for driver in EITHER {
            let phone = Traits { local_address: true, ..driven_by(driver) };
            assert_eq!(Class::of(&phone), Class::Tether);
            assert_eq!(Class::of(&driven_by(driver)), Class::Wired);
        }
    }

    #[test]
    fn a_person_overrules_the_manager_and_the_manager_the_class() {
        let terms = |class, metering, wishes| Terms::of(class, metering, 100, wishes);
        let none = Wishes::default();
        let cost = |terms: Terms| (terms.metered, terms.by);
        let of = |class, metering| cost(terms(class, metering, none));
        assert_eq!(of(Class::Wifi, Metering::Unknown), (false, CostBy::Class));
        assert_eq!(of(Class::Wifi, Metering::GuessYes), (true, CostBy::Manager));
        assert_eq!(of(Class::Cellular, Metering::Unknown), (true, CostBy::Class));
        assert_eq!(of(Class::Tether, Metering::GuessNo), (true, CostBy::Class));
        assert_eq!(of(Class::Cellular, Metering::No), (false, CostBy::Manager));
        let metered = Wishes { metered: true, ..none };
        let free = Wishes { unmetered: true, ..none };
        assert_eq!(cost(terms(Class::Wired, Metering::No, metered)), (true, CostBy::Configuration));
        assert_eq!(
            cost(terms(Class::Cellular, Metering::Yes, free)),
            (false, CostBy::Configuration)
        );
    }

    #[test]
    fn metrics_rank_links_and_classes_decide_between_equals() {
        let rank = |class, metric, preferred| {
            let wishes = Wishes { preferred, ..Wishes::default() };
            Terms::of(class, Metering::Unknown, metric, wishes).rank
        };
        let order = [
            rank(Class::Cellular, u32::MAX, Some(0)),
            rank(Class::Wired, 0, Some(1)),
            rank(Class::Wired, 0, None),
            rank(Class::Wifi, 0, None),
            rank(Class::Cellular, 0, None),
            rank(Class::Wired, 1, None),
            rank(Class::Wifi, 600, None),
            rank(Class::Wired, u32::MAX, None),
        ];
        assert!(order.is_sorted_by(|a, b| a < b), "{order:?}");
    }
}
