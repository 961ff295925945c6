//! Colours, and texts that have some: only where a person reads them on a terminal.

use std::fmt::Display;
use std::io::IsTerminal as _;

/// What a colour says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tone {
    /// It is as it should be.
    Good,
    /// It is not.
    Bad,
    /// It may be, or will be.
    Doubtful,
    /// It matters most.
    Strong,
    /// It matters least.
    Faint,
}

/// Whether colours are used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Palette {
    colours: bool,
}

impl Palette {
    /// No colours.
    pub const PLAIN: Self = Self { colours: false };

    /// Colours.
    pub const COLOURED: Self = Self { colours: true };

    /// Colours if stdout is a terminal that has them, and nobody asked for none (`NO_COLOR`, see
    /// no-color.org).
    #[must_use]
    pub fn of_stdout() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { colours: !refused && !is_dumb() && std::io::stdout().is_terminal() }
    }

    /// The text in the colour of its tone.
    #[must_use]
    pub fn paint(self, tone: Tone, text: impl Display) -> String {
        let code = match tone {
            Tone::Good => 32,
            Tone::Bad => 31,
            Tone::Doubtful => 33,
            Tone::Strong => 1,
            Tone::Faint => 2,
        };
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }
}

/// Whether the terminal says of itself that it does nothing but show letters (`TERM`).
#[must_use]
pub fn is_dumb() -> bool {
    std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb")
}

/// How many columns a text takes, colours aside. One for each letter: what is printed here is ASCII
/// and a few signs of the same width.
#[must_use]
pub fn width(text: &str) -> usize {
    pieces(text).filter(|piece| matches!(piece, Piece::Letter(_))).count()
}

/// The text in at most `columns` columns.
#[must_use]
pub fn clip(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let (mut clipped, mut left) = (String::new(), columns.saturating_sub(1));
    for piece in pieces(text) {
        match piece {
            // Colours are ended beyond the edge too.
            Piece::Colour(colour) => clipped.push_str(colour),
            Piece::Letter(letter) if left > 0 => {
                clipped.push(letter);
                left -= 1;
            }
            Piece::Letter(_) => {}
        }
    }
    if columns > 0 {
        clipped.push('…');
    }
    clipped
}

/// The text in lines of at most `columns` columns, broken between words where possible; every line
/// after the first begins with `indent`.
#[must_use]
pub fn wrap(text: &str, columns: usize, indent: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut line = String::new();
    for word in text.split(' ') {
        let begun = width(&line) > if lines.is_empty() { 0 } else { width(indent) };
        if begun && width(&line) + 1 + width(word) > columns {
            lines.push(std::mem::replace(&mut line, indent.to_owned()));
            line.push_str(word);
        } else {
            if begun {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines.push(line);
    lines.join("\n")
}

enum Piece<'a> {
    Letter(char),
    Colour(&'a str),
}

/// A text as letters and colours (`ESC [ … m`).
fn pieces(text: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.starts_with("\x1b[")
            && let Some(end) = rest.find('m')
        {
            let (colour, after) = rest.split_at(end + 1);
            rest = after;
            return Some(Piece::Colour(colour));
        }
        let letter = rest.chars().next()?;
        rest = &rest[letter.len_utf8()..];
        Some(Piece::Letter(letter))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_take_no_room() {
        let red = Palette::COLOURED.paint(Tone::Bad, "dead");
        assert_eq!(red, "\x1b[31mdead\x1b[0m");
        assert_eq!(width(&red), 4);
        assert_eq!(Palette::PLAIN.paint(Tone::Bad, "dead"), "dead");
    }

    #[test]
    fn what_is_clipped_keeps_its_colours_and_ends_them() {
        let red = Palette::COLOURED.paint(Tone::Bad, "offline");
        assert_eq!(clip(&red, 7), red);
        assert_eq!(clip(&red, 4), "\x1b[31moff\x1b[0m…");
        assert_eq!(clip("ünïcödé", 3), "ün…");
        assert_eq!(clip("a", 0), "");
    }

    #[test]
    fn long_sentences_are_broken_between_words() {
        assert_eq!(wrap("one two three", 7, "  "), "one two\n  three");
        assert_eq!(wrap("incomprehensible word", 5, "> "), "incomprehensible\n> word");
        assert_eq!(wrap("", 5, "> "), "");
    }
}
