//! What the fuzz targets share: reading an input as a sequence of choices, seeds, and what every
//! error must be.

use std::sync::LazyLock;

pub mod seeds;

/// Whether the variable `TRACE` is set: a run tells what happens, for reading one finding.
pub static TRACE: LazyLock<bool> = LazyLock::new(|| std::env::var_os("TRACE").is_some());

/// Prints to standard error if [`TRACE`] says so.
#[macro_export]
macro_rules! trace {
    ($($part:tt)*) => { if *$crate::TRACE { eprintln!($($part)*); } };
}

/// The input of one run, taken from its front. Past its end everything is zero, so that every
/// input means something and a short one stays short.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// All of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// At most `count` bytes.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        head
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        self.bytes(usize::MAX)
    }

    /// One byte.
    pub fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// A choice that is rarely taken.
    pub fn one_in(&mut self, count: u8) -> bool {
        self.byte().is_multiple_of(count)
    }

    /// Two bytes.
    pub fn short(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// Four bytes.
    pub fn word(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// Eight bytes.
    pub fn long(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let bytes = self.bytes(N);
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }
}

/// The text in `bytes`; what is no UTF-8 is replaced, as in a file that was damaged.
#[must_use]
pub fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// What every error a user reads must be: one line, no control character, of bounded length.
///
/// # Panics
/// The error is not.
pub fn check_message(error: &impl std::fmt::Display, limit: usize) {
    let message = error.to_string();
    assert!(!message.is_empty(), "an error says nothing");
    assert!(message.len() <= limit, "an error of {} bytes: {message}", message.len());
    assert!(!message.chars().any(char::is_control), "a control character in {message:?}");
}
