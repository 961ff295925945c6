//! Garbage handed to the real programs: a sentence and the right exit code, and what runs goes
//! on running.

use crate::frames::{Honest, noise};
use crate::stage::{Stage, no_panics};
use anyhow::{Context, Result, ensure};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use whimbrel_tests::lab::{Layout, World};
use whimbrel_tests::role;

/// Runs a program of ours on a host; its exit code and what it said.
fn run(world: &World, host: &str, program: &str, arguments: &[&str]) -> Result<(i32, String)> {
    let mut command = Command::new("/proc/self/exe");
    command.arg(program).args(arguments).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = world.host(host).spawn(command)?.wait_with_output()?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let code = output.status.code().with_context(|| format!("killed: {said}"))?;
    ensure!(!said.contains("panicked"), "{program} {arguments:?}: {said}");
    Ok((code, said))
}

/// Expects this exit code and a sentence with these words.
fn refuses(world: &World, program: &str, arguments: &[&str], code: i32, words: &str) -> Result<()> {
    let host = if program == role::CLIENT { "laptop" } else { "gateway" };
    let (is, said) = run(world, host, program, arguments)?;
    ensure!(is == code, "{arguments:?} ended with {is} instead of {code}: {said}");
    ensure!(said.contains(words), "{arguments:?} does not speak of {words:?}: {said}");
    ensure!(said.len() < 2000, "{arguments:?} says too much: {said}");
    Ok(())
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the lab's own folders have plain names")
}

pub(crate) fn garbage_as_an_invite_is_a_sentence() -> Result<()> {
    let world = World::build(Layout::standard())?;
    let config = world.folder().join("new/client.toml");
    std::fs::create_dir_all(world.folder().join("new"))?;
    let join = |invite: &str, code, words: &str| {
        let arguments = ["join", invite, "--config", text(&config)];
        refuses(&world, role::CLIENT, &arguments, code, words)
    };
    let key = "A".repeat(43);
    let long = format!("whimbrel://{}:443?k={key}&t=AAAAAAAAAAAAAAAAAAAAAA", "a".repeat(5000));
    for invite in [
        "hello",
        "whimbrel://",
        "whimbrel://gw.example.org",
        "whimbrel://gw.example.org:99999?k=x&t=y",
        "https://gw.example.org:443?k=x&t=y",
        "whimbrel://[::1:443?k=x&t=y",
        &format!("whimbrel://gw.example.org:443?k={key}"),
        &format!("whimbrel://gw.example.org:443?k={key}&t=%00%ff"),
        &long,
        "\u{202e}whimbrel://\u{0}",
    ] {
        // A NUL cannot be an argument at all.
        let invite = invite.replace('\0', "");
        join(&invite, 1, "invite")?;
    }
    ensure!(!config.exists(), "garbage made a configuration");
    refuses(&world, role::CLIENT, &["join", "--config", text(&config)], 2, "INVITE")?;
    refuses(&world, role::CLIENT, &["jion"], 2, "join")?;
    refuses(&world, role::GATEWAY, &["invite", "--config", text(&config)], 2, "NAME")
}

pub(crate) fn garbage_in_configurations_is_named_by_line_and_key() -> Result<()> {
    let world = World::build(Layout::standard())?;
    let folder = world.folder().join("bad");
    std::fs::create_dir_all(&folder)?;
    let config = folder.join("x.toml");
    let key = "A".repeat(43);
    let right = format!("gateway = \"192.0.2.10:443\"\ngateway_key = \"{key}\"\n");
    let noise = String::from_utf8_lossy(&noise(5, 3000)).into_owned();
    let bad = [
        (String::new(), "gateway"),
        (noise, ".toml:1:"),
        ("= = =".into(), ".toml:1:"),
        (format!("{right}[capture]\nofline = \"direct\"\n"), "capture.offline"),
        (format!("{right}[capture]\nmode = \"most\"\n"), "capture.mode"),
        (format!("{right}[capture]\ninclude = [\"10.0.0.0/33\"]\n"), "capture.include"),
        (format!("{right}[capture]\nexclude = 7\n"), "capture.exclude"),
        (format!("{right}[session]\nhold = \"-1h\"\n"), "session.hold"),
        (format!("{right}[[capture]]\n"), "capture"),
        (format!("{right}[capture]\ninterface = \"../../etc\"\n"), "capture.interface"),
        ("gateway = \"192.0.2.10:443\"\ngateway_key = \"short\"\n".into(), "gateway_key"),
    ];
    for (text_of_it, words) in bad {
        std::fs::write(&config, text_of_it)?;
        for verb in ["up", "check"] {
            let arguments = [verb, "--config", text(&config)];
            refuses(&world, role::CLIENT, &arguments, 78, words)?;
        }
    }
    for (text_of_it, words) in [
        ("public = \"gw:443\"\nlisten = [\"nowhere\"]\n", "listen"),
        ("public = \"gw:443\"\n[egress]\nalow = []\n", "egress.allow"),
        ("public = \"gw:443\"\n[limits]\nflows_per_client = \"many\"\n", "flows_per_client"),
        ("\u{0}\u{1}\u{2}", ".toml:1:"),
    ] {
        std::fs::write(&config, text_of_it)?;
        let arguments = ["run", "--config", text(&config)];
        refuses(&world, role::GATEWAY, &arguments, 78, words)?;
    }
    Ok(())
}

pub(crate) fn garbage_as_a_key_is_a_sentence() -> Result<()> {
    let mut stage = Stage::raise()?;
    stage.client.process().signal(rustix::process::Signal::TERM)?;
    stage.client.process().wait(crate::stage::PATIENCE)?;
    let config = stage.world.client_config("laptop");
    let key = config.with_extension("key");
    let right = std::fs::read(&key)?;
    let up = ["up", "--config", text(&config)];
    let own = key.file_name().and_then(|name| name.to_str()).context("no name")?;
    for bad in
        [Vec::new(), b"garbage\n".to_vec(), noise(3, 5000), right[..right.len() / 2].to_vec()]
    {
        std::fs::write(&key, &bad)?;
        refuses(&stage.world, role::CLIENT, &up, 1, own)?;
    }
    std::fs::write(&key, &right)?;
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644))?;
    refuses(&stage.world, role::CLIENT, &up, 1, own)?;
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600))?;
    stage.client = stage.world.start_client("laptop")?;
    // A list of clients that does not parse leaves the last good one in force.
    let clients = stage.gateway.config().with_extension("clients");
    let good = std::fs::read(&clients)?;
    std::fs::write(&clients, noise(4, 2000))?;
    stage.pair(crate::stage::ORIGIN[0])?.converse()?;
    ensure!(stage.gateway.process().is_running(), "the gateway ended");
    std::fs::write(&clients, good)?;
    no_panics(&stage.world)
}

pub(crate) fn garbage_on_the_control_sockets_is_answered_or_dropped() -> Result<()> {
    let mut stage = Stage::raise()?;
    let honest = Honest::begin(&stage)?;
    for socket in [stage.client.config(), stage.gateway.config()] {
        let socket = socket.with_extension("sock");
        let garbage = [
            b"\n".to_vec(),
            b"hello\n".to_vec(),
            b"{\"verb\":7}\n".to_vec(),
            b"{\"verb\":\"status\",\"more\":1}\n".to_vec(),
            b"{\"verb\":\"nonsense\"}\n".to_vec(),
            b"{\"verb\":\"move\",\"args\":{\"link\":[]}}\n".to_vec(),
            b"{\"verb\":\"pause\",\"args\":{\"duration\":\"soon\"}}\n".to_vec(),
            b"{\"verb\":\"revoke\",\"args\":{\"name\":{}}}\n".to_vec(),
            b"{\"verb\":\"invite\",\"args\":\"\"}\n".to_vec(),
            format!("{}\n", "[".repeat(60_000)).into_bytes(),
            [noise(1, 3000), b"\n".to_vec()].concat(),
            vec![b'x'; 200_000],
        ];
        for bytes in garbage {
            let mut stream = UnixStream::connect(&socket)?;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            // A peer that has heard enough may hang up on the rest.
            drop(stream.write_all(&bytes));
            let mut answer = String::new();
            let heard = stream.read_to_string(&mut answer);
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]);
            let reset = heard.is_err_and(|it| it.kind() == std::io::ErrorKind::ConnectionReset);
            ensure!(reset || answer.contains("\"error\""), "{shown:?} was answered {answer:?}");
        }
        // Somebody who connects and says nothing holds nobody up.
        let silent: Vec<_> =
            (0..40).map(|_| UnixStream::connect(&socket)).collect::<Result<_, _>>()?;
        stage.client.status(&stage.world)?;
        stage.gateway.status(&stage.world)?;
        drop(silent);
    }
    honest.prove(&mut stage)
}
