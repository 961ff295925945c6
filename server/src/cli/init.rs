//! `whimbrel-gateway init`: from nothing to a gateway that can be started.

use std::net::{IpAddr, SocketAddr};

use anyhow::bail;
use whimbrel_common::config::{Egress, GatewayConfig, HostPort};
use whimbrel_common::identity::SecretKey;
use whimbrel_gateway_core::egress::Policy;
use whimbrel_host::output::line;
use whimbrel_host::{Layout, addresses, files, random};

pub(super) fn init(
    layout: &Layout,
    listen: Vec<SocketAddr>,
    public: Option<HostPort>,
) -> anyhow::Result<()> {
    if layout.config.exists() && (!listen.is_empty() || public.is_some()) {
        bail!(
            "{} exists already; edit it there, or remove it to start anew",
            layout.config.display()
        );
    }
    let config = if layout.config.exists() {
        line(format_args!("Kept the configuration   {}", layout.config.display()));
        super::read_config(layout)?
    } else {
        write_config(layout, listen, public)?
    };
    let key = if layout.key.exists() {
        line(format_args!("Kept the key             {}", layout.key.display()));
        files::read_key(&layout.key)?
    } else {
        write_key(layout)?
    };
    say_what_next(layout, &config, &key);
    Ok(())
}

fn write_config(
    layout: &Layout,
    listen: Vec<SocketAddr>,
    public: Option<HostPort>,
) -> anyhow::Result<GatewayConfig> {
    let port = listen.first().map_or(443, SocketAddr::port);
    let public = match public {
        Some(public) => public,
        None => own_public_address(port)?,
    };
    let mut config = GatewayConfig::new(&public);
    if !listen.is_empty() {
        config.listen = listen;
    }
    if let Some(folder) = layout.config.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        files::ensure_folder(folder, 0o755).map_err(advise)?;
    }
    files::create(&layout.config, &config.to_toml(), 0o644).map_err(advise)?;
    line(format_args!("Wrote the configuration  {}", layout.config.display()));
    Ok(config)
}

fn write_key(layout: &Layout) -> anyhow::Result<SecretKey> {
    files::ensure_folder(&layout.state, 0o750).map_err(advise)?;
    let key = SecretKey::from_seed(random::bytes()?);
    files::create_key(&layout.key, &key).map_err(advise)?;
    line(format_args!("Made the key             {}", layout.key.display()));
    Ok(key)
}

/// An address of this machine that the Internet can reach; IPv4 first, which more networks have.
fn own_public_address(port: u16) -> anyhow::Result<HostPort> {
    let policy = Policy::new(&Egress::default());
    let public = |address: &IpAddr| policy.check(SocketAddr::new(*address, 443)).is_ok();
    match addresses::own()?.into_iter().find(public) {
        Some(address) => Ok(HostPort { host: address.to_string(), port }),
        None => bail!(
            "this machine has no public address of its own; say where clients find it: \
             `whimbrel-gateway init --public HOST:PORT`"
        ),
    }
}

fn advise(error: anyhow::Error) -> anyhow::Error {
    if files::is_denied(&error) {
        error.context(
            "init failed; run it as root, or use --config to keep everything in a folder of your own",
        )
    } else {
        error.context("init failed")
    }
}

fn say_what_next(layout: &Layout, config: &GatewayConfig, key: &SecretKey) {
    let option = layout.option();
    line(format_args!("Public key               {}", key.public()));
    line(format_args!("Clients find it at       {} (UDP)", config.public));
    line("");
    if layout.given.is_none() {
        line(format_args!(
            "Next: open UDP port {} in the firewall and start the gateway:\n    \
             systemctl enable --now whimbrel-gateway\n\
             or in the foreground:\n    whimbrel-gateway run",
            config.public.port
        ));
    } else {
        line(format_args!("Next: start the gateway:\n    whimbrel-gateway run{option}"));
    }
    let ports: Vec<u16> = config.listen.iter().map(SocketAddr::port).collect();
    if layout.given.is_none() && ports != [443] {
        line(
            "The socket unit listens on port 443 whatever the configuration says; to change it:\n    \
             systemctl edit whimbrel-gateway.socket",
        );
    }
    line(format_args!("Then invite a client:\n    whimbrel-gateway invite NAME{option}"));
}
