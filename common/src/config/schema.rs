//! The keys of a configuration file as data, and the files written from them.

/// One key of the configuration `C`.
pub(super) struct Key<C> {
    /// The table it is in; empty for the top of the file.
    pub(super) section: &'static str,
    pub(super) name: &'static str,
    /// The default as TOML; `None` for a key the file must have.
    pub(super) default: Option<&'static str>,
    /// Shown in the sample where there is no default.
    pub(super) example: &'static str,
    /// What it does, with its unit and range. One line of the sample per line.
    pub(super) comment: &'static str,
    /// The value in a configuration, as TOML.
    pub(super) show: fn(&C) -> String,
}

/// A key for people to read about: what it is called, what it does, what it is if nobody says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The table it is in; empty for the top of the file.
    pub section: &'static str,
    /// The key.
    pub name: &'static str,
    /// The default as TOML; `None` for a key the file must have.
    pub default: Option<&'static str>,
    /// A value as TOML, where there is no default.
    pub example: &'static str,
    /// What it does, with its unit and range, in lines.
    pub comment: &'static str,
}

impl<C> Key<C> {
    pub(super) fn entry(&self) -> Entry {
        let Self { section, name, default, example, comment, show: _ } = *self;
        Entry { section, name, default, example, comment }
    }

    /// `section.name`, or the bare name at the top.
    pub(super) fn path(&self) -> String {
        if self.section.is_empty() {
            self.name.to_owned()
        } else {
            format!("{}.{}", self.section, self.name)
        }
    }
}

/// The whole file: keys that differ from their default are set, and empty lists stand ready to be
/// filled; the others stand as comments.
pub(super) fn write<C>(title: &str, keys: &[Key<C>], config: Option<&C>) -> String {
    let mut text = format!("# {title}\n");
    let mut section = "";
    for key in keys {
        if key.section != section {
            section = key.section;
            text.push_str(&format!("\n[{section}]"));
        }
        text.push('\n');
        for line in key.comment.lines() {
            text.push_str(&format!("# {line}\n"));
        }
        let name = key.name;
        let line = match (config.map(key.show), key.default) {
            (Some(value), Some(default)) if value == default && default != "[]" => {
                format!("#{name} = {default}\n")
            }
            (Some(value), _) => format!("{name} = {value}\n"),
            (None, Some(default)) => format!("{name} = {default}\n"),
            (None, None) => format!("{name} = {}\n", key.example),
        };
        text.push_str(&line);
    }
    text
}

/// A value as a TOML string.
pub(super) fn quoted(value: &impl ToString) -> String {
    toml::Value::String(value.to_string()).to_string()
}

/// Values as a TOML array of strings.
pub(super) fn list<T: ToString>(values: &[T]) -> String {
    let items: Vec<String> = values.iter().map(quoted).collect();
    format!("[{}]", items.join(", "))
}
