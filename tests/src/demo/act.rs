//! What the networks do to the laptop.

use anyhow::Result;
use std::time::Duration;
use whimbrel_tests::lab::{BOTH, World};

/// One thing that happens, and how long everybody has to cope with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// Wi-Fi stays associated and carries nothing.
    BlackHole,
    /// Wi-Fi carries again, and being preferred takes over without anything having broken.
    Return,
    /// The router of the link in use forgets its mappings.
    Rebinding,
    /// Wi-Fi goes: interface down, address gone.
    LinkDown,
    /// No network at all.
    Outage,
}

/// All acts, in an order in which each finds what it needs.
pub(super) const ACTS: [Act; 5] =
    [Act::BlackHole, Act::Return, Act::Rebinding, Act::LinkDown, Act::Outage];

/// How long no network is there in [`Act::Outage`].
pub(super) const OUTAGE: Duration = Duration::from_secs(10);

impl Act {
    /// What happens, for the timeline.
    pub(super) fn story(self) -> &'static str {
        match self {
            Self::BlackHole => "Wi-Fi stays up but swallows everything; nobody tells the laptop",
            Self::Return => "Wi-Fi works again, and Whimbrel prefers it: a move without a break",
            Self::Rebinding => "the Wi-Fi router forgets its NAT mappings: new ports from here on",
            Self::LinkDown => "Wi-Fi is gone: interface down, address removed",
            Self::Outage => "cellular is gone as well: no network at all for 10 s",
        }
    }

    /// What happened, for the table.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::BlackHole => "black hole on Wi-Fi",
            Self::Return => "Wi-Fi returns (graceful)",
            Self::Rebinding => "NAT rebinding",
            Self::LinkDown => "Wi-Fi goes down",
            Self::Outage => "no network for 10 s",
        }
    }

    /// Does it.
    pub(super) fn begin(self, world: &World) -> Result<()> {
        match self {
            Self::BlackHole => world.link("wifi0").black_hole(&BOTH),
            Self::Return => world.link("wifi0").heal(),
            Self::Rebinding => world.link("wifi0").rebind(),
            Self::LinkDown => world.link("wifi0").down()?,
            Self::Outage => {
                world.link("wifi0").down()?;
                world.link("cell0").down()?;
            }
        }
        Ok(())
    }

    /// How long it goes on at least, before the next.
    pub(super) fn lasts(self) -> Duration {
        match self {
            Self::BlackHole | Self::LinkDown => Duration::from_secs(4),
            Self::Return | Self::Rebinding => Duration::from_secs(3),
            Self::Outage => OUTAGE,
        }
    }
}
