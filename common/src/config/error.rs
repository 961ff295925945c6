//! What is wrong with a configuration file, and where.

use std::fmt;

/// One thing wrong with a configuration file. Reads as `client.toml:7: what; what to do`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigError {
    /// The file, as the user named it.
    pub file: String,
    /// The line it is on, from 1; none for something that is missing.
    pub line: Option<usize>,
    /// A sentence: what is wrong and what is allowed.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file, self.message),
            None => write!(f, "{}: {}", self.file, self.message),
        }
    }
}

impl std::error::Error for ConfigError {}
