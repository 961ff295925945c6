//! The `clients` file: who may use the gateway.
//!
//! One line per client: name, public key, options. Blank lines and lines starting with `#` are
//! kept where they are.
//!
//! ```text
//! # the office
//! laptop  11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo  flows=500
//! ```

#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use whimbrel_common::identity::{ClientName, NameError, PublicKey};

/// The clients of a gateway, in the order of its file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Clients {
    lines: Vec<Line>,
}

/// One client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Client {
    /// What the gateway's owner calls it.
    pub name: ClientName,
    /// How it proves who it is.
    pub key: PublicKey,
    /// What is different for it.
    pub options: Options,
}

/// Exceptions for one client.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// `flows=N`: in place of `limits.flows_per_client`.
    pub flows: Option<u32>,
    /// `dials=N`: in place of `limits.dials_per_second`.
    pub dials: Option<u32>,
}

/// A line that is no client.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("line {line} of the clients file: {fault}")]
pub struct ClientsError {
    /// From 1.
    pub line: usize,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with a line.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// The first word.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The second word.
    #[error("the second word is not a public key; write: name key [option…]")]
    Key,
    /// A further word.
    #[error("unknown option {0:?}; write flows=N or dials=N, N from 1 to 1000000")]
    Option(String),
    /// The name occurs twice.
    #[error("there is another client {0} above")]
    NameTwice(ClientName),
    /// The key occurs twice.
    #[error("the key belongs to {0} above; every client has a key of its own")]
    KeyTwice(ClientName),
}

/// Why a client cannot be added.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AddError {
    /// Another client has the name.
    #[error("there is a client {0} already; revoke it first, or use another name")]
    NameTaken(ClientName),
    /// The key is another client's.
    #[error("this key is known already, as client {0}")]
    KeyKnown(ClientName),
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Line {
    Client(Client),
    Other(String),
}

impl Clients {
    /// The clients, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &Client> {
        self.lines.iter().filter_map(Line::client)
    }

    /// The client with this key.
    #[must_use]
    pub fn by_key(&self, key: &PublicKey) -> Option<&Client> {
        self.iter().find(|client| client.key == *key)
    }

    /// The client with this name.
    #[must_use]
    pub fn by_name(&self, name: &ClientName) -> Option<&Client> {
        self.iter().find(|client| client.name == *name)
    }

    /// Adds a client at the end.
    ///
    /// # Errors
    /// Its name or key is taken.
    pub fn add(&mut self, client: Client) -> Result<(), AddError> {
        if self.by_name(&client.name).is_some() {
            return Err(AddError::NameTaken(client.name));
        }
        if let Some(other) = self.by_key(&client.key) {
            return Err(AddError::KeyKnown(other.name.clone()));
        }
        self.lines.push(Line::Client(client));
        Ok(())
    }

    /// Takes a client out. Comments stay.
    pub fn remove(&mut self, name: &ClientName) -> Option<Client> {
        let found =
            self.lines.iter().position(|line| line.client().is_some_and(|c| c.name == *name))?;
        match self.lines.remove(found) {
            Line::Client(client) => Some(client),
            Line::Other(_) => None,
        }
    }
}

impl Line {
    fn client(&self) -> Option<&Client> {
        match self {
            Self::Client(client) => Some(client),
            Self::Other(_) => None,
        }
    }
}

impl FromStr for Clients {
    type Err = ClientsError;

    fn from_str(text: &str) -> Result<Self, ClientsError> {
        let mut clients = Self::default();
        for (index, line) in text.lines().enumerate() {
            if line.trim().is_empty() || line.trim_start().starts_with('#') {
                clients.lines.push(Line::Other(line.to_owned()));
                continue;
            }
            let at_line = |fault| ClientsError { line: index + 1, fault };
            let client = parse_client(line).map_err(at_line)?;
            clients.add(client).map_err(|error| {
                at_line(match error {
                    AddError::NameTaken(name) => Fault::NameTwice(name),
                    AddError::KeyKnown(name) => Fault::KeyTwice(name),
                })
            })?;
        }
        Ok(clients)
    }
}

impl fmt::Display for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            match line {
                Line::Client(client) => writeln!(f, "{client}")?,
                Line::Other(text) => writeln!(f, "{text}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.key)?;
        if let Some(flows) = self.options.flows {
            write!(f, " flows={flows}")?;
        }
        if let Some(dials) = self.options.dials {
            write!(f, " dials={dials}")?;
        }
        Ok(())
    }
}

fn parse_client(line: &str) -> Result<Client, Fault> {
    let mut words = line.split_whitespace();
    let name = words.next().unwrap_or_default().parse()?;
    let key = words.next().unwrap_or_default().parse().map_err(|_| Fault::Key)?;
    let mut options = Options::default();
    for word in words.take_while(|word| !word.starts_with('#')) {
        set_option(&mut options, word).ok_or_else(|| Fault::Option(shown(word)))?;
    }
    Ok(Client { name, key, options })
}

/// Bounds what an error repeats.
fn shown(word: &str) -> String {
    word.chars().take(80).collect()
}

fn set_option(options: &mut Options, word: &str) -> Option<()> {
    let (name, value) = word.split_once('=')?;
    let number = value.parse().ok().filter(|number| (1..=1_000_000).contains(number))?;
    let place = match name {
        "flows" => &mut options.flows,
        "dials" => &mut options.dials,
        _ => return None,
    };
    place.replace(number).is_none().then_some(())
}
