//! The one line that turns a laptop into a client: where the gateway is, its key, and a token
//! that enrols one client once.
//!
//! `whimbrel://gw.example.org:443?k=<gateway key>&t=<token>`

#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::config::{HostPort, HostPortError};
use crate::identity::PublicKey;
use crate::units::serde_as_text;

/// What a gateway's owner hands to a new client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Invite {
    /// Name or address of the gateway, IPv6 without brackets.
    pub host: String,
    /// UDP port of the gateway.
    pub port: u16,
    /// The key the gateway must prove it owns.
    pub gateway_key: PublicKey,
    /// Enrols one client, once.
    pub token: Token,
}

/// 16 random bytes that enrol one client. A secret until used; [`fmt::Debug`] hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token([u8; 16]);

/// SHA-256 of a token: all that a gateway keeps of it. Written as 43 characters of base64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TokenHash([u8; 32]);

const SCHEME: &str = "whimbrel://";

/// The longest invite that is looked at: a DNS name has at most 253 characters, the rest 100.
const LONGEST: usize = 512;

impl Invite {
    /// Where the gateway is.
    #[must_use]
    pub fn gateway(&self) -> HostPort {
        HostPort { host: self.host.clone(), port: self.port }
    }
}

impl Token {
    /// The token with these bytes. Give 16 bytes from the system's random source.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes, as they go over the wire.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// What the gateway stores and compares.
    #[must_use]
    pub fn hash(&self) -> TokenHash {
        let digest = ring::digest::digest(&ring::digest::SHA256, &self.0);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        TokenHash(bytes)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

/// A text that is no token hash.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a token hash: it is 43 characters, A-Z a-z 0-9 - and _")]
pub struct TokenHashError;

impl FromStr for TokenHash {
    type Err = TokenHashError;

    fn from_str(text: &str) -> Result<Self, TokenHashError> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| TokenHashError)?;
        bytes.try_into().map(Self).map_err(|_| TokenHashError)
    }
}

serde_as_text!(TokenHash);

impl fmt::Display for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = URL_SAFE_NO_PAD.encode(self.token.0);
        write!(f, "{SCHEME}{}?k={}&t={token}", self.gateway(), self.gateway_key)
    }
}

/// Why a text is no invite. None of them quotes the token.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InviteError {
    /// Nothing there.
    #[error("the invite is empty")]
    Empty,
    /// Longer than any invite.
    #[error("this is too long for an invite: pass the one line that the gateway printed")]
    TooLong,
    /// Not `whimbrel://`.
    #[error("an invite starts with \"whimbrel://\", this does not")]
    Scheme,
    /// Ends before the key, or in the middle of the key or the token.
    #[error("the invite is truncated: {0}; copy the whole line, quoted")]
    Truncated(&'static str),
    /// The host or port is wrong.
    #[error("the gateway's address in the invite is wrong: {0}")]
    Gateway(#[from] HostPortError),
    /// The key is wrong.
    #[error("the gateway's key in the invite (k=) is damaged; copy the line again")]
    Key,
    /// No token.
    #[error("the invite has no token (t=); ask for a new one with `whimbrel-gateway invite`")]
    MissingToken,
    /// The token is wrong.
    #[error("the token in the invite (t=) is damaged; copy the line again")]
    Token,
    /// A parameter this version does not know, or one given twice.
    #[error("the invite has an unexpected part {0:?}; it may be from a later version")]
    Unexpected(String),
}

impl FromStr for Invite {
    type Err = InviteError;

    fn from_str(text: &str) -> Result<Self, InviteError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(InviteError::Empty);
        }
        if text.len() > LONGEST {
            return Err(InviteError::TooLong);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(InviteError::Scheme)?;
        let (gateway, query) =
            rest.split_once('?').ok_or(InviteError::Truncated("the gateway's key is missing"))?;
        let gateway: HostPort = gateway.strip_suffix('/').unwrap_or(gateway).parse()?;
        let (key, token) = parameters(query)?;
        let key = key.ok_or(InviteError::Truncated("the gateway's key is missing"))?;
        let gateway_key = parse_key(key, token.is_none())?;
        let token = parse_token(token.ok_or(InviteError::MissingToken)?)?;
        Ok(Self { host: gateway.host, port: gateway.port, gateway_key, token })
    }
}

fn parameters(query: &str) -> Result<(Option<&str>, Option<&str>), InviteError> {
    let (mut key, mut token) = (None, None);
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let place = match name {
            "k" => &mut key,
            "t" => &mut token,
            other => return Err(InviteError::Unexpected(other.chars().take(16).collect())),
        };
        if place.replace(value).is_some() {
            return Err(InviteError::Unexpected(name.to_owned()));
        }
    }
    Ok((key, token))
}

fn parse_key(text: &str, last: bool) -> Result<PublicKey, InviteError> {
    if last && text.len() < 43 {
        return Err(InviteError::Truncated("it ends inside the gateway's key"));
    }
    text.parse().map_err(|_| InviteError::Key)
}

fn parse_token(text: &str) -> Result<Token, InviteError> {
    if text.is_empty() {
        return Err(InviteError::MissingToken);
    }
    if text.len() < 22 {
        return Err(InviteError::Truncated("it ends inside the token"));
    }
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| InviteError::Token)?;
    bytes.try_into().map(Token).map_err(|_| InviteError::Token)
}
