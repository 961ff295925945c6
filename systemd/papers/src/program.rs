//! The two programs, as their own crates define them.

use clap::Command;
use whimbrel_common::config::{ClientConfig, Entry, GatewayConfig};
use whimbrel_host::{Layout, Role};

/// A program and its configuration file.
pub(crate) struct Program {
    /// Without what is hidden.
    pub(crate) command: Command,
    /// Where its files are unless told otherwise.
    pub(crate) layout: Layout,
    /// The keys of its configuration file.
    pub(crate) entries: Vec<Entry>,
    /// A configuration that sets each of them.
    pub(crate) sample: String,
}

impl Program {
    pub(crate) fn all() -> [Self; 2] {
        let client = Self {
            command: shown("whimbrel", &whimbrel::cli::command()),
            layout: Layout::for_config(None, Role::Client),
            entries: ClientConfig::entries().collect(),
            sample: ClientConfig::sample(),
        };
        let gateway = Self {
            command: shown("whimbrel-gateway", &whimbrel_gateway::cli::command()),
            layout: Layout::for_config(None, Role::Gateway),
            entries: GatewayConfig::entries().collect(),
            sample: GatewayConfig::sample(),
        };
        [client, gateway]
    }

    /// The package it is in, which is also the name of the program.
    pub(crate) fn package(&self) -> &str {
        self.command.get_name()
    }

    /// The name of its configuration file.
    pub(crate) fn config_name(&self) -> String {
        format!("{}.toml", self.layout.role.as_str())
    }

    /// The name of the manual page of its configuration file, without the section.
    pub(crate) fn config_page(&self) -> String {
        format!("whimbrel-{}", self.config_name())
    }
}

/// The command without the subcommands that are hidden, which completions would offer.
fn shown(name: &'static str, command: &Command) -> Command {
    Command::new(name)
        // The workspace has one version.
        .version(env!("CARGO_PKG_VERSION"))
        .about(command.get_about().cloned().unwrap_or_default())
        .subcommand_required(command.is_subcommand_required_set())
        .subcommand_help_heading("COMMANDS")
        .subcommand_value_name("COMMAND")
        .args(command.get_arguments().cloned())
        .subcommands(command.get_subcommands().filter(|sub| !sub.is_hide_set()).cloned())
}
