//! Texts that came from elsewhere, so that a terminal shows them and obeys none of them.

use std::borrow::Cow;

use serde_json::Value;

/// Stands where something was that a terminal obeys.
const REPLACEMENT: char = '\u{fffd}';

/// The text with a replacement for every character that steers a terminal (C0 and C1 controls, of
/// ECMA-48) or turns the direction of writing (the explicit ones of UAX #9). Line ends stay.
#[must_use]
pub fn plain(text: &str) -> Cow<'_, str> {
    if !text.chars().any(steers) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(
        text.chars().map(|letter| if steers(letter) { REPLACEMENT } else { letter }).collect(),
    )
}

/// The document with [`plain`] texts of one line each.
#[must_use]
pub fn plain_document(value: Value) -> Value {
    match value {
        Value::String(text) => plain(&text.replace('\n', " ")).into(),
        Value::Array(values) => values.into_iter().map(plain_document).collect(),
        Value::Object(fields) => {
            fields.into_iter().map(|(name, value)| (name, plain_document(value))).collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value,
    }
}

/// A JSON text in which nothing steers a terminal, and which means the same: what steers can stand
/// in strings only, and is written by its number there (RFC 8259 §7).
#[must_use]
pub(super) fn escaped(json: &str) -> Cow<'_, str> {
    if !json.chars().any(steers) {
        return Cow::Borrowed(json);
    }
    let mut text = String::with_capacity(json.len());
    for letter in json.chars() {
        if steers(letter) {
            text.push_str(&format!("\\u{:04x}", u32::from(letter)));
        } else {
            text.push(letter);
        }
    }
    Cow::Owned(text)
}

fn steers(letter: char) -> bool {
    let turns = matches!(letter, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    turns || (letter.is_control() && letter != '\n')
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Clears the screen, sets the title, does it again as one character, and turns the line.
    const HOSTILE: &str = "wlan0\x1b[2J\x1b]0;owned\x07\u{9b}2J\u{202e}0nalw";

    #[test]
    fn nothing_that_steers_a_terminal_is_left() {
        let shown = plain(HOSTILE);
        assert!(!shown.chars().any(steers), "{shown:?}");
        assert_eq!(shown.chars().count(), HOSTILE.chars().count());
        assert!(matches!(plain("wlan0 – ünïcödé\nand so on"), Cow::Borrowed(_)));
    }

    #[test]
    fn documents_are_plain_down_to_their_leaves() {
        let shown = plain_document(json!({ "paths": [{ "link": HOSTILE, "mtu": 1452 }, "a\nb"] }));
        assert_eq!(shown["paths"][0]["link"], plain(HOSTILE).into_owned());
        assert_eq!(shown["paths"][0]["mtu"], 1452);
        assert_eq!(shown["paths"][1], "a b");
    }

    #[test]
    fn a_program_reads_what_a_terminal_is_spared() {
        let value = json!({ "link": HOSTILE });
        let text = value.to_string();
        let written = escaped(&text);
        assert!(!written.chars().any(steers), "{written:?}");
        assert_eq!(serde_json::from_str::<Value>(&written).unwrap(), value);
    }
}
