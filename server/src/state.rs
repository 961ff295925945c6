//! The gateway's state on disk: its clients and invites.
//!
//! Every edit happens under a lock and replaces the file in one step, so the running gateway,
//! the command line and a person with an editor can all change it. Files that changed are read
//! again; a file that no longer parses is reported once and the last good one stays in force.

#[cfg(test)]
mod tests;

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use whimbrel_common::identity::{ClientName, PublicKey};
use whimbrel_common::invite::Token;
use whimbrel_gateway_core::clients::{AddError, Client, Clients, Options};
use whimbrel_gateway_core::invites::{Invites, RedeemError, UnixSeconds};
use whimbrel_host::Layout;
use whimbrel_host::files::{self, Lock, Stamp};

/// Clients and invites. Small files, read and written synchronously.
#[derive(Debug)]
pub struct State {
    layout: Layout,
    clients: Watched<Clients>,
    invites: Watched<Invites>,
    /// The clients changed on disk since somebody [asked](Self::reload).
    changed: bool,
}

/// Why a newcomer is not enrolled.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The token.
    #[error(transparent)]
    Invite(#[from] RedeemError),
    /// The name or key.
    #[error(transparent)]
    Client(#[from] AddError),
    /// The gateway's disk. The newcomer learns no more than this; the log has the cause.
    #[error("the gateway cannot store its clients; tell its owner")]
    Storage(#[source] anyhow::Error),
}

/// A file and what it held when it was last readable.
#[derive(Debug)]
struct Watched<T> {
    value: T,
    stamp: Option<Stamp>,
}

impl State {
    /// Reads the state of a gateway; files that do not exist yet are empty.
    ///
    /// # Errors
    /// A file that cannot be read or does not parse.
    pub fn open(layout: &Layout) -> anyhow::Result<Self> {
        Ok(Self {
            clients: Watched::read(&layout.clients)?,
            invites: Watched::read(&layout.invites)?,
            layout: layout.clone(),
            changed: false,
        })
    }

    /// The clients, from the file as it is now.
    pub fn clients(&mut self) -> &Clients {
        self.refresh();
        &self.clients.value
    }

    /// The invites, from the file as it is now.
    pub fn invites(&mut self) -> &Invites {
        self.refresh();
        &self.invites.value
    }

    /// The name of the client with this key; `None` for a stranger. Ask at every attach.
    pub fn admit(&mut self, key: &PublicKey) -> Option<ClientName> {
        self.clients().by_key(key).map(|client| client.name.clone())
    }

    /// The name and the exceptions of the client with this key; `None` for a stranger.
    pub fn client(&mut self, key: &PublicKey) -> Option<(ClientName, Options)> {
        self.clients().by_key(key).map(|client| (client.name.clone(), client.options))
    }

    /// Enrols the owner of `key` with a token. Repeating it with the same key succeeds again: the
    /// answer to the first attempt may have been lost on the way.
    ///
    /// # Errors
    /// See [`EnrolError`].
    pub fn redeem(
        &mut self,
        token: &Token,
        key: PublicKey,
        now: UnixSeconds,
    ) -> Result<ClientName, EnrolError> {
        let _lock = self.lock().map_err(EnrolError::Storage)?;
        self.refresh();
        let mut invites = self.invites.value.clone();
        let name = match invites.redeem(token.hash(), now) {
            Ok(name) => name,
            Err(error) => return Ok(self.enrolled_before(token, &key).ok_or(error)?),
        };
        let mut clients = self.clients.value.clone();
        clients.add(Client { name: name.clone(), key, options: Options::default() })?;
        // The client first: a crash in between leaves an invite that can be tried again.
        self.store_clients(clients).map_err(EnrolError::Storage)?;
        self.store_invites(invites).map_err(EnrolError::Storage)?;
        Ok(name)
    }

    /// Takes a client out, and its open invites; its key, so that the caller ends its sessions.
    /// `None` if only invites were withdrawn.
    ///
    /// # Errors
    /// There is neither client nor invite of that name, or the files cannot be written.
    pub fn revoke(&mut self, name: &ClientName) -> anyhow::Result<Option<PublicKey>> {
        let _lock = self.lock()?;
        self.refresh();
        let mut invites = self.invites.value.clone();
        let mut clients = self.clients.value.clone();
        let withdrawn = invites.withdraw(name);
        let removed = clients.remove(name);
        if withdrawn > 0 {
            self.store_invites(invites)?;
        }
        match removed {
            Some(client) => {
                self.store_clients(clients)?;
                Ok(Some(client.key))
            }
            None if withdrawn > 0 => Ok(None),
            None => bail!(
                "there is no client {name}; `whimbrel-gateway clients{}` lists them",
                self.layout.option()
            ),
        }
    }

    /// Makes an invite for a new client. An earlier open one for the same name stops working.
    ///
    /// # Errors
    /// A client has the name already, or the file cannot be written.
    pub fn issue_invite(
        &mut self,
        name: &ClientName,
        valid: Duration,
        now: UnixSeconds,
    ) -> anyhow::Result<Token> {
        let _lock = self.lock()?;
        self.refresh();
        if self.clients.value.by_name(name).is_some() {
            bail!(
                "there is a client {name} already; run `whimbrel-gateway revoke {name}{}` first, \
                 or use another name",
                self.layout.option()
            );
        }
        let token = Token::from_bytes(whimbrel_host::random::bytes()?);
        let mut invites = self.invites.value.clone();
        invites.forget_old(now);
        invites.create(name.clone(), token.hash(), now, valid);
        self.store_invites(invites)?;
        Ok(token)
    }

    /// Reads files that changed on disk. `true` if the clients did since the last call: then check
    /// live sessions.
    pub fn reload(&mut self) -> bool {
        self.refresh();
        std::mem::take(&mut self.changed)
    }

    fn refresh(&mut self) {
        self.invites.reload(&self.layout.invites);
        self.changed |= self.clients.reload(&self.layout.clients);
    }

    /// The client this token and key belong together for, if they were enrolled earlier.
    fn enrolled_before(&self, token: &Token, key: &PublicKey) -> Option<ClientName> {
        let entry = self.invites.value.find(token.hash())?;
        let client = self.clients.value.by_key(key)?;
        (entry.name == client.name).then(|| client.name.clone())
    }

    fn lock(&self) -> anyhow::Result<Lock> {
        Lock::acquire(&self.layout.lock)
    }

    fn store_clients(&mut self, clients: Clients) -> anyhow::Result<()> {
        files::replace(&self.layout.clients, &clients.to_string(), 0o640)?;
        self.clients.set(clients, &self.layout.clients);
        Ok(())
    }

    fn store_invites(&mut self, invites: Invites) -> anyhow::Result<()> {
        files::replace(&self.layout.invites, &invites.to_string(), 0o600)?;
        self.invites.set(invites, &self.layout.invites);
        Ok(())
    }
}

impl<T> Watched<T>
where
    T: FromStr + Default,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    fn read(path: &Path) -> anyhow::Result<Self> {
        // The stamp first: a change in between is then seen as one at the next look.
        let stamp = Stamp::of(path);
        let text = files::read_if_any(path)?.unwrap_or_default();
        let value = text.parse().map_err(|error| anyhow!("{}: {error}", path.display())).context(
            "the gateway's state is damaged; correct the file or restore it from a backup",
        )?;
        Ok(Self { value, stamp })
    }

    fn reload(&mut self, path: &Path) -> bool {
        let stamp = Stamp::of(path);
        if stamp == self.stamp {
            return false;
        }
        match Self::read(path) {
            Ok(fresh) => {
                *self = fresh;
                true
            }
            Err(error) => {
                self.stamp = stamp;
                let error = whimbrel_host::exit::sentence(&error);
                tracing::warn!(%error, "Keeping the state from before the last change");
                false
            }
        }
    }

    fn set(&mut self, value: T, path: &Path) {
        self.value = value;
        self.stamp = Stamp::of(path);
    }
}
