//! `whimbrel join`: from an invite to a client that can be started.

use std::io;
use std::path::Path;

use anyhow::bail;
use rustix::fs::{Access, access};
use whimbrel_common::config::ClientConfig;
use whimbrel_common::identity::SecretKey;
use whimbrel_common::invite::Invite;
use whimbrel_host::output::line;
use whimbrel_host::{Layout, files, random};

use crate::enrol::enrol;

pub(super) fn join(layout: &Layout, invite: &str) -> anyhow::Result<()> {
    let invite: Invite = invite.parse()?;
    if layout.config.exists() {
        let now = super::read_config(layout).map_or(String::new(), |c| format!(" ({})", c.gateway));
        bail!(
            "this machine belongs to a gateway already{now}; to join another one, remove {} and {} \
             first, or keep both apart with --config FILE",
            layout.config.display(),
            layout.key.display()
        );
    }
    // The token works once: nothing that can fail here may fail after it is used.
    let folder = layout.config.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or_else(|| Path::new("."));
    prepare(folder, 0o755)?;
    prepare(&layout.state, 0o750)?;
    let config = ClientConfig::new(&invite.gateway(), &invite.gateway_key);
    let config = files::prepare(&layout.config, &config.to_toml(), 0o644)?;
    let key = key(layout)?;

    line(format_args!("Asking the gateway {} …", invite.gateway()));
    let enrolled = enrol(&invite, &key)?;

    config.publish()?;
    line(format_args!("Joined as                {}", enrolled.name));
    line(format_args!("Wrote the configuration  {}", layout.config.display()));
    line("");
    let own = Layout::of_user(layout.role).is_some_and(|own| own.config == layout.config);
    if own {
        line("Next: carry a command:\n    whimbrel run -- CMD");
        return Ok(());
    }
    if layout.given.is_none() {
        line(
            "Next: start it:\n    systemctl enable --now whimbrel\n\
             or in the foreground:\n    whimbrel up",
        );
    } else {
        line(format_args!("Next: start it:\n    whimbrel up{}", layout.option()));
    }
    line(format_args!("and look:\n    whimbrel status{}", layout.option()));
    Ok(())
}

/// A key from an earlier attempt is used again: the gateway may have enrolled it without our
/// having heard of it.
fn key(layout: &Layout) -> anyhow::Result<SecretKey> {
    if layout.key.exists() {
        let key = files::read_key(&layout.key)?;
        line(format_args!("Kept the key             {}", layout.key.display()));
        return Ok(key);
    }
    let key = SecretKey::from_seed(random::bytes()?);
    files::create_key(&layout.key, &key)?;
    line(format_args!("Made the key             {}", layout.key.display()));
    Ok(key)
}

fn prepare(folder: &Path, mode: u32) -> anyhow::Result<()> {
    let usable = || {
        files::ensure_folder(folder, mode)?;
        Ok(access(folder, Access::WRITE_OK | Access::EXEC_OK).map_err(io::Error::from)?)
    };
    usable().map_err(|error: anyhow::Error| {
        let advice = if files::is_denied(&error) {
            "; run this as root, or use --config FILE to keep everything in a folder of your own"
        } else {
            ""
        };
        error.context(format!("cannot write to {}{advice}", folder.display()))
    })
}
