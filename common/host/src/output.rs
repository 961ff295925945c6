//! What commands print: on stdout, for people.

use std::fmt::Display;
use std::io::Write as _;

mod paint;
mod plain;

pub use paint::{Palette, Tone, clip, is_dumb, width, wrap};
pub use plain::{plain, plain_document};

/// Prints one text and a line end on stdout.
///
/// A reader that hangs up (`| head`) is no failure: what is left to say interests nobody.
pub fn line(text: impl Display) {
    let _ = says(text);
}

/// The same for one line of many that are still to come: whether anybody reads on.
#[must_use]
pub fn says(text: impl Display) -> bool {
    writeln!(std::io::stdout().lock(), "{text}").is_ok()
}

/// Prints a text as it is on stdout.
pub fn print(text: impl Display) {
    let _ = write!(std::io::stdout().lock(), "{text}");
}

/// Prints a remark on stderr, beside output that a program may read.
pub fn remark(text: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Prints a JSON document on stdout, indented.
pub fn document(value: &serde_json::Value) {
    line(plain::escaped(&format!("{value:#}")));
}

/// Prints a JSON document on stdout as one line of many that are still to come: whether anybody
/// reads on.
#[must_use]
pub fn says_document(value: &serde_json::Value) -> bool {
    says(plain::escaped(&value.to_string()))
}

/// Rows in aligned columns under their headings, without a final line end. The last column is
/// not padded.
#[must_use]
pub fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = headings.map(width);
    for row in rows {
        for (widest, cell) in widths.iter_mut().zip(row) {
            *widest = (*widest).max(width(cell));
        }
    }
    let mut lines = vec![aligned(&headings, &widths)];
    lines.extend(rows.iter().map(|row| aligned(&row.each_ref().map(String::as_str), &widths)));
    lines.join("\n")
}

/// A number of bytes for people: `812 B`, `1.4 MB`. Decimal units, as networks count.
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [(&str, u64); 4] =
        [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1000)];
    for (unit, scale) in UNITS {
        if count >= scale {
            let tenths = u128::from(count) * 10 / u128::from(scale);
            return format!("{}.{} {unit}", tenths / 10, tenths % 10);
        }
    }
    format!("{count} B")
}

/// A length of time for people, in its two largest units: `3d 4h`, `2m 05s`, `12s`.
#[must_use]
pub fn seconds(count: u64) -> String {
    let (days, hours, minutes) = (count / 86_400, count / 3600 % 24, count / 60 % 60);
    if days > 0 {
        format!("{days}d {hours}h")
    } else if hours > 0 {
        format!("{hours}h {minutes:02}m")
    } else if minutes > 0 {
        format!("{minutes}m {:02}s", count % 60)
    } else {
        format!("{count}s")
    }
}

/// Seconds since 1970 as `2026-11-21 02:44:42 UTC`.
#[must_use]
pub fn date(unix_seconds: u64) -> String {
    let (day, second) = (unix_seconds / 86_400, unix_seconds % 86_400);
    let (year, month, day) = civil(day);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// Seconds since 1970, now.
#[must_use]
pub fn unix_now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn aligned(cells: &[&str], widths: &[usize]) -> String {
    let mut text = String::new();
    for (cell, widest) in cells.iter().zip(widths) {
        text.push_str(cell);
        text.extend(std::iter::repeat_n(' ', widest.saturating_sub(width(cell)) + 2));
    }
    text.truncate(text.trim_end().len());
    text
}

/// Year, month and day of the Gregorian calendar from days since 1970. Years begin in March
/// here, so that a leap day is a year's last.
fn civil(days: u64) -> (u64, u64, u64) {
    const DAYS_IN_400_YEARS: u64 = 146_097;
    // From 0000-03-01.
    let days = days + 719_468;
    let (era, day) = (days / DAYS_IN_400_YEARS, days % DAYS_IN_400_YEARS);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_without_trailing_space() {
        let rows = [["wlan0".to_owned(), "active".to_owned()], ["wwan0".to_owned(), String::new()]];
        assert_eq!(table(["LINK", "STATE"], &rows), "LINK   STATE\nwlan0  active\nwwan0");
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1_449_999), "1.4 MB");
        assert_eq!(bytes(u64::MAX), "18446744.0 TB");
        assert_eq!(seconds(59), "59s");
        assert_eq!(seconds(125), "2m 05s");
        assert_eq!(seconds(3600), "1h 00m");
        assert_eq!(seconds(90_000), "1d 1h");
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(date(951_782_399), "2000-02-28 23:59:59 UTC");
        assert_eq!(date(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(date(1_795_142_682), "2026-11-20 02:44:42 UTC");
        assert_eq!(date(4_107_542_400), "2100-03-01 00:00:00 UTC");
    }
}
