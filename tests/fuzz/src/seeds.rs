//! The inputs a target starts from, made with our own encoders.

use std::net::SocketAddr;
use std::path::Path;

use bytes::{Bytes, BytesMut};
use whimbrel_common::config::{ClientConfig, GatewayConfig};
use whimbrel_common::identity::{PublicKey, SecretKey};
use whimbrel_common::invite::{Invite, Token};
use whimbrel_common::wire::{
    self, Association, Control, Echo, FlowAnswer, FlowHeader, Limit, Parcel, SessionId, Taken,
    Undelivered, WireFlow,
};

type Seeds = Vec<Vec<u8>>;

/// Writes the seeds of `target` into the folder that the variable `SEEDS` names, if it is set.
///
/// # Panics
/// There is no such target, or the folder cannot be written.
pub fn plant(target: &str) {
    let Some(folder) = std::env::var_os("SEEDS") else { return };
    let seeds = match target {
        "packets" => packets(),
        "frames" => frames(),
        "invite" => vec![invite().to_string().into_bytes()],
        "config" => config(),
        "keys" => keys(),
        other => panic!("no target {other}"),
    };
    for (number, seed) in seeds.iter().enumerate() {
        let path = Path::new(&folder).join(format!("seed-{number}"));
        std::fs::write(&path, seed).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

fn invite() -> Invite {
    Invite {
        host: "gw.example.org".into(),
        port: 443,
        gateway_key: PublicKey::from_bytes([0x5a; 32]),
        token: Token::from_bytes([0x33; 16]),
    }
}

fn with_kind(kind: u8, text: &str) -> Vec<u8> {
    [&[kind], text.as_bytes()].concat()
}

fn config() -> Seeds {
    vec![
        with_kind(0, &ClientConfig::sample()),
        with_kind(1, "[capture]\nexclude = [\"10.0.0.0/8\"]\n[paths]\nmark = 0xff\n"),
        with_kind(2, &GatewayConfig::sample()),
        with_kind(3, "[limits]\nhold = \"1h 30m\"\nbuffered_per_client = \"8MiB\"\n"),
        with_kind(4, "[2001:db8::1]:443"),
        with_kind(4, "10.0.0.0/8"),
        with_kind(4, "1h 30m"),
        with_kind(4, "512KiB"),
    ]
}

fn keys() -> Seeds {
    let key = PublicKey::from_bytes([0x5a; 32]);
    let hash = Token::from_bytes([0x33; 16]).hash();
    let list = format!("# who\nlaptop {key} flows=500 dials=7 # mine\n\nphone {hash}\n");
    let mut invites = vec![3; 9];
    invites.extend(format!("laptop {hash} 1700000000 1600000000\nphone {key} 9\n").bytes());
    vec![
        with_kind(0, &SecretKey::from_seed([0x5a; 32]).to_key_file()),
        with_kind(1, &key.to_string()),
        [&[1], &key.to_spki()[..]].concat(),
        with_kind(2, &list),
        invites,
    ]
}

fn frames() -> Seeds {
    let session = SessionId([7; 16]);
    let mut control = BytesMut::from(&[0, 3, 1, 200, 9][..]);
    for frame in [
        Control::Hello { version: wire::VERSION, capabilities: 0 },
        Control::Enrol { token: [9; 16] },
        Control::Attach { session: Some(session), epoch: 300 },
        Control::Attached { session, epoch: 2, hold: 86_400, flows: 20_000 },
        Control::Enrolled { name: "laptop".into() },
        Control::Denied { reason: wire::Denial::Revoked },
        Control::Holding { flows: vec![WireFlow(1), WireFlow(300)], last: true },
        Control::Park,
        Control::Over(vec![WireFlow(1), WireFlow(300)]),
        Control::Limited(Limit::Buffered),
        Control::Taken(vec![Taken {
            flow: WireFlow(1),
            offset: 70_000,
            limit: 140_000,
            fin: true,
        }]),
    ] {
        wire::encode_control(&frame, &mut control);
    }
    let mut header = BytesMut::from(&[1, 3, 1, 200, 9][..]);
    let destination = "[2001:db8::1]:443".parse().expect("an address");
    wire::encode_header(
        &FlowHeader::Open { flow: WireFlow(4), destination, limit: 65_536 },
        &mut header,
    );
    let resume = FlowHeader::Resume {
        flow: WireFlow(6),
        epoch: 2,
        taken: 10,
        fin_taken: true,
        offset: 3,
        limit: 99,
    };
    wire::encode_header(&resume, &mut header);
    let mut answer = BytesMut::from(&[2, 3, 1, 200, 9][..]);
    for head in [
        FlowAnswer::Opened { limit: 65_536 },
        FlowAnswer::Refused { reason: wire::RefuseReason::Denied },
        FlowAnswer::Resumed { taken: 10, fin_taken: false, offset: 3, limit: 99, repeated: 7 },
        FlowAnswer::NeverSeen,
    ] {
        wire::encode_answer(&head, &mut answer);
    }
    let moves = |kind: u8| (0..200u8).fold(vec![kind], |all, at| [all, vec![at, 77, 3]].concat());
    let mut seeds = vec![
        control.to_vec(),
        header.to_vec(),
        answer.to_vec(),
        vec![3, 1, 2, 3, 4, 5],
        moves(4),
        moves(7),
    ];
    let mut stream = BytesMut::from(&[5, 3, 1, 200, 9][..]);
    for parcel in parcels() {
        let bytes = wire::encode_parcel(&parcel);
        wire::put_parcel(&bytes, &mut stream);
        seeds.push([&[6], &bytes[..]].concat());
    }
    seeds.push(stream.to_vec());
    seeds
}

fn parcels() -> Vec<Parcel> {
    let (v4, v6) = ("192.0.2.1:443", "[2001:db8::1]:53");
    let [v4, v6] = [v4, v6].map(|text| text.parse().expect("an address"));
    let echo = |remote: SocketAddr, sequence| Echo {
        association: Association(70_000),
        remote: remote.ip(),
        sequence,
    };
    let association = Association(5);
    vec![
        Parcel::Datagram { association, remote: v4, payload: Bytes::from_static(b"question") },
        Parcel::Unreachable { association, remote: v6, reason: Undelivered::Port },
        Parcel::Renew { association, remote: v6 },
        Parcel::Echo { echo: echo(v4, 1), hops: 64, payload: Bytes::from_static(b"ping") },
        Parcel::EchoFailed { echo: echo(v6, 9), by: v6.ip(), reason: Undelivered::Expired },
    ]
}

/// Openings of flows: SYN, flush, accept, flush, ACK, data, read, write, FIN.
fn packets() -> Seeds {
    let syn = [4, 0, 100, 1, 0, 0, 0, 0, 0, 0, 1, 0];
    let ack = [4, 0, 0, 0, 0, 1, 0];
    let data = [4, 0, 0, 0, 0, 1, 255, 0x10, 0x27];
    let fin = [4, 0, 140, 0, 0, 1, 0];
    let (flush, accept, read, write) = ([31], [14, 0, 255], [19, 0, 255, 255], [21, 0, 99, 9]);
    let finish = [18, 0];
    let opening: [&[u8]; 8] = [&[1, 4], &syn, &flush, &accept, &flush, &ack, &flush, &data];
    let closing: [&[u8]; 8] = [&flush, &read, &write, &flush, &finish, &fin, &flush, &read];
    let life = [opening.concat(), closing.concat()].concat();
    let mut pass = life.clone();
    pass.extend([24, 255, 255, 24, 255, 255, 31]);
    vec![opening.concat(), life, pass]
}
