//! Names inside: through the gateway, and nothing around it.

use crate::inside::{As, shell};
use crate::stage::{PATIENCE, Stage};
use anyhow::{Context, Result, ensure};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use whimbrel_tests::lab::{GATEWAY_V4, Host, Layout, ORIGIN_V4};

/// What the lab's name server says of every name, in IPv4.
const ANSWER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 99);

pub(crate) fn names_are_looked_up_through_the_gateway_and_nowhere_else() -> Result<()> {
    let mut stage = Stage::raise_with(
        Layout::standard(),
        |_| {},
        |client| {
            let run = toml::Table::from_iter([(
                "resolvers".to_owned(),
                vec![ORIGIN_V4.to_string()].into(),
            )]);
            client.insert("run".to_owned(), run.into());
        },
    )?;
    let asked = serve(stage.world.host("origin"))?;
    // Behind each of these somebody would look a name up outside.
    let sockets = [
        "/run/systemd/resolve/io.systemd.Resolve",
        "/run/nscd/socket",
        "/run/avahi-daemon/socket",
        "/run/dbus/system_bus_socket",
    ];
    let _listening = stage.world.host("laptop").run(move |_| {
        sockets.map(Path::new).map(|socket| {
            std::fs::create_dir_all(socket.parent().context("a folder")?)?;
            Ok::<_, anyhow::Error>(UnixListener::bind(socket)?)
        })
    });
    for who in [As::Root, As::User] {
        let found = shell(&stage.world, who, "getent ahostsv4 somewhere.test")?;
        ensure!(found.starts_with(&ANSWER.to_string()), "{found:?}");
        let from = asked.recv_timeout(PATIENCE).context("nobody asked")?;
        ensure!(from == GATEWAY_V4, "{from} asked");
        let left =
            shell(&stage.world, who, &format!("ls {} 2>/dev/null || true", sockets.join(" ")))?;
        ensure!(left.is_empty(), "still there inside: {left}");
        let servers = shell(&stage.world, who, "grep nameserver /etc/resolv.conf")?;
        ensure!(servers.trim() == "nameserver 10.213.52.53", "{servers:?}");
    }
    // The name server closes right behind its answer.
    stage.quiet()?;
    let outside = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    ensure!(!outside.contains("10.213.52.53"), "the machine's own settings were changed");
    Ok(())
}

/// A name server on TCP that knows every name. Whom each question came from.
fn serve(host: &Host) -> Result<Receiver<Ipv4Addr>> {
    let listener = host.run(|_| TcpListener::bind((ORIGIN_V4, 53))).context("listening")?;
    let (sender, asked) = mpsc::channel();
    host.thread(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let Ok(std::net::SocketAddr::V4(peer)) = stream.peer_addr() else { continue };
            // A question that breaks off is asked again.
            if answer(&mut stream).is_ok() && sender.send(*peer.ip()).is_err() {
                break;
            }
        }
    });
    Ok(asked)
}

fn answer(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut question)?;
    let name = question.iter().skip(12).position(|byte| *byte == 0).unwrap_or(0);
    let end = (12 + name + 5).min(question.len());
    let for_v4 = question.get(end - 4..end - 2) == Some(&[0, 1]);
    let mut reply = question[..end].to_vec();
    reply[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(for_v4), 0, 0, 0, 0]);
    if for_v4 {
        reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        reply.extend_from_slice(&ANSWER.octets());
    }
    let length = u16::try_from(reply.len()).unwrap_or(u16::MAX);
    stream.write_all(&[&length.to_be_bytes(), reply.as_slice()].concat())
}
