//! Invites: a token enrols one client, once, before it expires.
//!
//! The `invites` file has one line per invite: name, hash of the token, expiry, and when it was
//! used. Times are seconds since 1970. The tokens themselves are not kept. Used and expired
//! invites stay for [`REMEMBERED`], so that a late guest is told which of the two it was.

#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use whimbrel_common::identity::ClientName;
use whimbrel_common::invite::TokenHash;

/// How long used and expired invites are remembered: longer than a message lies unread.
pub const REMEMBERED: Duration = Duration::from_hours(30 * 24);

/// A point in time: seconds since 1970-01-01 00:00 UTC.
pub type UnixSeconds = u64;

/// The invites of a gateway.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Invites {
    entries: Vec<Entry>,
}

/// One invite.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// What the client will be called.
    pub name: ClientName,
    /// Proves the token without keeping it.
    pub hash: TokenHash,
    /// The first second at which it is too late.
    pub expires: UnixSeconds,
    /// When it was redeemed.
    pub used: Option<UnixSeconds>,
}

/// Why a token enrols nobody.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RedeemError {
    /// No invite of this gateway, or one replaced by a later one for the same name.
    #[error("the gateway does not know this invite; ask for a new one")]
    Unknown,
    /// Redeemed before.
    #[error("the invite was used already; ask for a new one")]
    Used,
    /// Too late.
    #[error("the invite has expired; ask for a new one")]
    Expired,
}

/// A line that is no invite.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("line {line} of the invites file is damaged; remove it and invite again")]
pub struct InvitesError {
    /// From 1.
    pub line: usize,
}

impl Invites {
    /// The invites, in the order they were made.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// Notes an invite that is good for `valid`. It replaces an earlier one for the same name
    /// that is still open: the last invite is the one that works.
    pub fn create(
        &mut self,
        name: ClientName,
        hash: TokenHash,
        now: UnixSeconds,
        valid: Duration,
    ) -> &Entry {
        self.entries.retain(|entry| entry.name != name || entry.used.is_some());
        let expires = now.saturating_add(valid.as_secs());
        self.entries.push(Entry { name, hash, expires, used: None });
        self.entries.last().expect("an entry was just pushed")
    }

    /// Uses up the invite with this token.
    ///
    /// # Errors
    /// Unknown, used or expired; nothing changes then.
    pub fn redeem(&mut self, hash: TokenHash, now: UnixSeconds) -> Result<ClientName, RedeemError> {
        let entry = self.entries.iter_mut().find(|entry| entry.hash == hash);
        let entry = entry.ok_or(RedeemError::Unknown)?;
        if entry.used.is_some() {
            return Err(RedeemError::Used);
        }
        if now >= entry.expires {
            return Err(RedeemError::Expired);
        }
        entry.used = Some(now);
        Ok(entry.name.clone())
    }

    /// The invite with this token, in whatever state.
    #[must_use]
    pub fn find(&self, hash: TokenHash) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.hash == hash)
    }

    /// Withdraws the open invites for a name; the number withdrawn.
    pub fn withdraw(&mut self, name: &ClientName) -> usize {
        let before = self.entries.len();
        self.entries.retain(|entry| entry.name != *name || entry.used.is_some());
        before - self.entries.len()
    }

    /// Forgets what was used or has expired long ago.
    pub fn forget_old(&mut self, now: UnixSeconds) {
        self.entries.retain(|entry| {
            let over = entry.used.unwrap_or(entry.expires);
            now < over.saturating_add(REMEMBERED.as_secs())
        });
    }
}

impl FromStr for Invites {
    type Err = InvitesError;

    fn from_str(text: &str) -> Result<Self, InvitesError> {
        let mut entries = Vec::new();
        for (index, line) in text.lines().enumerate() {
            if line.trim().is_empty() || line.trim_start().starts_with('#') {
                continue;
            }
            entries.push(parse_entry(line).ok_or(InvitesError { line: index + 1 })?);
        }
        Ok(Self { entries })
    }
}

impl fmt::Display for Invites {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# name, hash of the token, expires, [used]: seconds since 1970")?;
        for entry in &self.entries {
            write!(f, "{} {} {}", entry.name, entry.hash, entry.expires)?;
            if let Some(used) = entry.used {
                write!(f, " {used}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

fn parse_entry(line: &str) -> Option<Entry> {
    let mut words = line.split_whitespace();
    let entry = Entry {
        name: words.next()?.parse().ok()?,
        hash: words.next()?.parse().ok()?,
        expires: words.next()?.parse().ok()?,
        used: words.next().map(str::parse).transpose().ok()?,
    };
    words.next().is_none().then_some(entry)
}
