//! Durations ("24h", "90s", "500ms") and sizes ("8MiB") as people write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A length of time, to the millisecond, written as whole numbers with units: `90s`, `1h 30m`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Period(pub Duration);

/// A number of bytes, written with a unit: `8MiB`, `512KiB`, `1500B`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Size(pub u64);

/// Why a text is no duration or size. The text says what is allowed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UnitError {
    /// Not a duration.
    #[error(
        "\"{0}\" is not a duration: write whole numbers with ms, s, m, h or d, as in \"90s\" or \"1h 30m\""
    )]
    Period(String),
    /// Not a size.
    #[error("\"{0}\" is not a size: write a whole number with B, KiB, MiB or GiB, as in \"8MiB\"")]
    Size(String),
    /// A number that no machine can wait for or hold.
    #[error("\"{0}\" is too large")]
    TooLarge(String),
}

/// Longest first, so that a duration is shown in the largest units that fit.
const PERIOD_UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// A century in milliseconds: far enough for any wait, and safe to add to any instant.
const LONGEST_PERIOD: u64 = 100 * 366 * 86_400_000;

const SIZE_UNITS: [(&str, u64); 4] =
    [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl FromStr for Period {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = || UnitError::Period(text.to_owned());
        let mut rest = text.trim();
        let mut total: u64 = 0;
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let (number, after) = split_where(rest, |c| !c.is_ascii_digit());
            let (unit, after) = split_where(after, |c| !c.is_ascii_alphabetic());
            let scale = scale_of(&PERIOD_UNITS, unit).ok_or_else(wrong)?;
            total = scaled(number, scale)
                .ok_or_else(wrong)?
                .and_then(|part| total.checked_add(part))
                .filter(|&sum| sum <= LONGEST_PERIOD)
                .ok_or_else(|| UnitError::TooLarge(text.to_owned()))?;
            rest = after.trim_start();
        }
        Ok(Self(Duration::from_millis(total)))
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if rest == 0 {
            return f.write_str("0s");
        }
        let mut gap = "";
        for (unit, scale) in PERIOD_UNITS {
            let count = rest / scale;
            // A day reads as "24h", the way the manual writes it; days begin at two.
            if count == 0 || (unit == "d" && rest < 2 * scale) {
                continue;
            }
            write!(f, "{gap}{count}{unit}")?;
            rest %= scale;
            gap = " ";
        }
        Ok(())
    }
}

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = || UnitError::Size(text.to_owned());
        let (number, unit) = split_where(text.trim(), |c| !c.is_ascii_digit());
        let scale = scale_of(&SIZE_UNITS, unit.trim_start()).ok_or_else(wrong)?;
        let bytes = scaled(number, scale).ok_or_else(wrong)?;
        bytes.map(Self).ok_or_else(|| UnitError::TooLarge(text.to_owned()))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, scale) = SIZE_UNITS
            .into_iter()
            .find(|(_, scale)| self.0 >= *scale && self.0.is_multiple_of(*scale))
            .unwrap_or(("B", 1));
        write!(f, "{}{unit}", self.0 / scale)
    }
}

macro_rules! serde_as_text {
    ($type:ty) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(input)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use serde_as_text;

serde_as_text!(Period);
serde_as_text!(Size);

/// For `#[serde(with = "units::duration")]` on a plain [`Duration`].
pub mod duration {
    use super::{Duration, Period};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    /// Writes "24h".
    ///
    /// # Errors
    /// Only the serializer's own.
    pub fn serialize<S: Serializer>(value: &Duration, output: S) -> Result<S::Ok, S::Error> {
        Period(*value).serialize(output)
    }

    /// Reads "24h".
    ///
    /// # Errors
    /// Anything that is no [`Period`].
    pub fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
        Period::deserialize(input).map(|period| period.0)
    }
}

/// For `#[serde(with = "units::bytes")]` on a plain number of bytes.
pub mod bytes {
    use super::Size;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    /// Writes "8MiB".
    ///
    /// # Errors
    /// Only the serializer's own.
    pub fn serialize<S: Serializer>(value: &u64, output: S) -> Result<S::Ok, S::Error> {
        Size(*value).serialize(output)
    }

    /// Reads "8MiB".
    ///
    /// # Errors
    /// Anything that is no [`Size`].
    pub fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<u64, D::Error> {
        Size::deserialize(input).map(|size| size.0)
    }
}

fn split_where(text: &str, stop: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(stop).unwrap_or(text.len()))
}

fn scale_of(units: &[(&str, u64)], unit: &str) -> Option<u64> {
    units.iter().find(|(name, _)| *name == unit).map(|(_, scale)| *scale)
}

/// Outer `None`: no number at all; inner `None`: too large.
fn scaled(digits: &str, scale: u64) -> Option<Option<u64>> {
    if digits.is_empty() {
        return None;
    }
    Some(digits.parse::<u64>().ok().and_then(|number| number.checked_mul(scale)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_are_read_in_every_unit() {
        let millis = |text: &str| text.parse::<Period>().unwrap().0.as_millis();
        assert_eq!(millis("250ms"), 250);
        assert_eq!(millis("90s"), 90_000);
        assert_eq!(millis("24h"), 86_400_000);
        assert_eq!(millis("1d"), 86_400_000);
        assert_eq!(millis("1h 30m"), 5_400_000);
        assert_eq!(millis("1h30m"), 5_400_000);
        assert_eq!(millis("0s"), 0);
    }

    #[test]
    fn periods_are_shown_as_they_are_written() {
        for text in ["250ms", "24h", "1m 30s", "2d", "0s", "5s", "10m"] {
            assert_eq!(text.parse::<Period>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn sizes_survive_a_round_trip() {
        for (text, bytes) in [("8MiB", 8 << 20), ("512KiB", 512 << 10), ("1500B", 1500), ("0B", 0)]
        {
            assert_eq!(text.parse::<Size>().unwrap(), Size(bytes));
            assert_eq!(Size(bytes).to_string(), text);
        }
    }

    #[test]
    fn nonsense_is_refused_with_what_is_allowed() {
        for text in ["", "24", "h", "24 h", "-1s", "1.5h", "24H", "24hours", "1h,2m"] {
            let error = text.parse::<Period>().unwrap_err();
            assert_eq!(error, UnitError::Period(text.to_owned()), "{text}");
        }
        assert_eq!(
            "24".parse::<Period>().unwrap_err().to_string(),
            "\"24\" is not a duration: write whole numbers with ms, s, m, h or d, \
             as in \"90s\" or \"1h 30m\""
        );
        assert_eq!(
            "8MB".parse::<Size>().unwrap_err().to_string(),
            "\"8MB\" is not a size: write a whole number with B, KiB, MiB or GiB, as in \"8MiB\""
        );
    }

    #[test]
    fn absurd_numbers_are_too_large() {
        for text in ["99999999999999999999s", "200000d", "18446744073709551615ms"] {
            let error = text.parse::<Period>().unwrap_err();
            assert_eq!(error, UnitError::TooLarge(text.to_owned()));
        }
        let error = "18446744073709551615GiB".parse::<Size>().unwrap_err();
        assert_eq!(error.to_string(), "\"18446744073709551615GiB\" is too large");
    }
}
