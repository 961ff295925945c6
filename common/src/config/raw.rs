//! A configuration file as read: TOML whose keys are known, no value looked at yet.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::{Range, RangeInclusive};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::ConfigError;
use super::schema::Key;
use super::value::{Value, Wrong};

/// The values of a file by `section.name`, and the defaults of the keys it leaves out.
#[derive(Debug)]
pub(super) struct Raw<'t> {
    file: &'t str,
    text: &'t str,
    values: BTreeMap<String, Spanned<DeValue<'t>>>,
    defaults: BTreeMap<String, Option<&'static str>>,
}

impl<'t> Raw<'t> {
    pub(super) fn parse<C>(
        text: &'t str,
        file: &'t str,
        keys: &[Key<C>],
    ) -> Result<Self, ConfigError> {
        let defaults = keys.iter().map(|key| (key.path(), key.default)).collect();
        let mut raw = Self { file, text, values: BTreeMap::new(), defaults };
        let table = DeTable::parse(text).map_err(|error| raw.syntax_error(&error))?;
        for (name, value) in table.into_inner() {
            raw.admit(&name, value)?;
        }
        Ok(raw)
    }

    /// The value of the key `path`, from the file or else its default.
    pub(super) fn read<T: Value>(&self, path: &str) -> Result<T, ConfigError> {
        let Some(value) = self.values.get(path) else {
            return self.read_default(path);
        };
        T::read(value.get_ref()).map_err(|wrong| self.wrong(path, &wrong))
    }

    /// [`Raw::read`], refusing what is outside `range`.
    pub(super) fn read_within<T: Value + PartialOrd + Display>(
        &self,
        path: &str,
        range: RangeInclusive<T>,
    ) -> Result<T, ConfigError> {
        let value = self.read(path)?;
        if range.contains(&value) {
            return Ok(value);
        }
        let allowed = format!("{}, from {} to {}", T::allowed(), range.start(), range.end());
        Err(self.wrong(path, &Wrong { found: format!("is {value}"), allowed }))
    }

    /// An error about the value of `path`: `because` follows the key's name.
    pub(super) fn refuse(&self, path: &str, because: &str) -> ConfigError {
        let line = self.values.get(path).map(|value| self.line(value.span()));
        self.error(line, format!("{path} {because}"))
    }

    fn admit(
        &mut self,
        name: &Spanned<std::borrow::Cow<'t, str>>,
        value: Spanned<DeValue<'t>>,
    ) -> Result<(), ConfigError> {
        let section = name.get_ref();
        if !self.is_section(section) {
            if value.get_ref().is_table() && !self.defaults.contains_key(section.as_ref()) {
                return Err(self.unknown(section, name.span(), "section"));
            }
            return self.insert(section.to_string(), name.span(), value);
        }
        let DeValue::Table(table) = value.into_inner() else {
            return Err(self.error(
                Some(self.line(name.span())),
                format!("{section} is a section: write [{section}] on a line of its own"),
            ));
        };
        for (name, value) in table {
            self.insert(format!("{section}.{}", name.get_ref()), name.span(), value)?;
        }
        Ok(())
    }

    fn insert(
        &mut self,
        path: String,
        span: Range<usize>,
        value: Spanned<DeValue<'t>>,
    ) -> Result<(), ConfigError> {
        if !self.defaults.contains_key(&path) {
            return Err(self.unknown(&path, span, "key"));
        }
        self.values.insert(path, value);
        Ok(())
    }

    fn is_section(&self, name: &str) -> bool {
        self.defaults
            .keys()
            .any(|path| path.split_once('.').is_some_and(|(section, _)| section == name))
    }

    fn unknown(&self, path: &str, span: Range<usize>, what: &str) -> ConfigError {
        let nearest = match what {
            "section" => self.nearest_section(path).map(|name| format!("[{name}]")),
            _ => self.nearest_key(path).map(str::to_owned),
        };
        let hint =
            nearest.map_or(String::new(), |name| format!("; the nearest valid one is {name}"));
        let shown: String = path.chars().take(80).collect();
        self.error(Some(self.line(span)), format!("unknown {what} {shown:?}{hint}"))
    }

    fn nearest_key(&self, path: &str) -> Option<&str> {
        let name = path.rsplit('.').next().unwrap_or(path);
        self.defaults.keys().map(String::as_str).min_by_key(|known| {
            let known_name = known.rsplit('.').next().unwrap_or(known);
            // The right name in the wrong section is a nearer miss than a like-sounding path.
            let by_name = if known_name == name { 1 } else { usize::MAX };
            by_name.min(distance(path, known))
        })
    }

    fn nearest_section(&self, name: &str) -> Option<&str> {
        self.defaults
            .keys()
            .filter_map(|path| path.split_once('.').map(|(section, _)| section))
            .min_by_key(|section| distance(name, section))
    }

    fn read_default<T: Value>(&self, path: &str) -> Result<T, ConfigError> {
        let default = self.defaults.get(path).copied().flatten();
        let Some(default) = default else {
            let message = format!("{path} is missing: write {path} = followed by {}", T::allowed());
            return Err(self.error(None, message));
        };
        let value = DeValue::parse(default)
            .map_err(|error| self.error(None, format!("default of {path}: {}", error.message())))?;
        T::read(value.get_ref()).map_err(|wrong| self.wrong(path, &wrong))
    }

    fn wrong(&self, path: &str, wrong: &Wrong) -> ConfigError {
        self.refuse(path, &format!("{}; write {}", wrong.found, wrong.allowed))
    }

    fn syntax_error(&self, error: &toml::de::Error) -> ConfigError {
        let line = error.span().map(|span| self.line(span));
        let message = error.message().trim().replace('\n', ", ");
        self.error(line, format!("not valid TOML: {message}"))
    }

    fn error(&self, line: Option<usize>, message: String) -> ConfigError {
        ConfigError { file: self.file.to_owned(), line, message }
    }

    fn line(&self, span: Range<usize>) -> usize {
        let before = self.text.as_bytes().get(..span.start).unwrap_or(self.text.as_bytes());
        1 + before.iter().filter(|&&byte| byte == b'\n').count()
    }
}

/// The least number of letters to insert, delete or replace (Levenshtein), over at most the
/// first 64 letters of each.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, from) in left.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}
