use super::*;

struct Place {
    folder: PathBuf,
}

impl Drop for Place {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.folder).unwrap();
    }
}

impl Place {
    fn new() -> Self {
        let number = u64::from_ne_bytes(whimbrel_host::random::bytes().unwrap());
        let folder = std::env::temp_dir().join(format!("whimbrel-cli-{number:016x}"));
        std::fs::create_dir(&folder).unwrap();
        Self { folder }
    }

    fn config(&self) -> PathBuf {
        self.folder.join("gw.toml")
    }

    fn layout(&self) -> Layout {
        Layout::for_config(Some(self.config()), Role::Gateway)
    }

    /// Runs a command with `--config` and returns whether it succeeded, was a usage error, ….
    fn run(&self, args: &[&str]) -> ExitCode {
        let mut line: Vec<OsString> = vec!["whimbrel-gateway".into()];
        line.extend(args.iter().map(OsString::from));
        line.extend(["--config".into(), self.config().into_os_string()]);
        main(line)
    }
}

#[test]
fn help_names_every_command() {
    let help = Cli::command().render_long_help().to_string();
    assert_eq!(
        help,
        "\
Carries the connections of Whimbrel clients to their destinations

Usage: whimbrel-gateway <COMMAND>

Commands:
  init     Make a key and a configuration
  run      Run the gateway in the foreground (systemd runs this)
  invite   Print an invite for a new client: one line, for `whimbrel join`
  clients  List clients and open invites
  revoke   Cut a client off, its live sessions included
  status   Show what the gateway does
  metrics  Print figures for a monitoring system, as Prometheus reads them
  check    Validate a configuration
  help     Print this message or the help of the given subcommand(s)

Options:
  -h, --help
          Print help

  -V, --version
          Print version

Exit codes: 0 done, 1 failed, 2 wrong usage, 72 no TUN device, 73 address or name taken, 74 disk full, 75 already running, 77 not permitted, 78 wrong configuration
"
    );
}

#[test]
fn set_up_takes_two_commands_and_is_safe_to_repeat() {
    let place = Place::new();
    let init = ["init", "--public", "gw.example.org:4433", "--listen", "[::]:4433"];
    assert_eq!(place.run(&init), ExitCode::SUCCESS);
    let config = read_config(&place.layout()).unwrap();
    assert_eq!(config.public.to_string(), "gw.example.org:4433");
    assert_eq!(config.listen, ["[::]:4433".parse().unwrap()]);
    let key = files::read_key(&place.layout().key).unwrap().public();
    assert_eq!(place.run(&["check"]), ExitCode::SUCCESS);

    assert_eq!(place.run(&["init"]), ExitCode::SUCCESS);
    assert_eq!(place.run(&init), ExitCode::FAILURE);
    assert_eq!(files::read_key(&place.layout().key).unwrap().public(), key);

    assert_eq!(place.run(&["invite", "laptop", "--valid", "1h"]), ExitCode::SUCCESS);
    let mut state = State::open(&place.layout()).unwrap();
    assert_eq!(state.invites().iter().count(), 1);
    assert_eq!(place.run(&["clients"]), ExitCode::SUCCESS);
    assert_eq!(place.run(&["clients", "--json"]), ExitCode::SUCCESS);
    assert_eq!(place.run(&["revoke", "laptop"]), ExitCode::SUCCESS);
    assert_eq!(place.run(&["revoke", "laptop"]), ExitCode::FAILURE);
    assert_eq!(place.run(&["status"]), ExitCode::FAILURE);
    assert_eq!(place.run(&["status", "--json"]), ExitCode::FAILURE);
}

#[test]
fn the_invite_on_disk_leads_to_the_gateway() {
    let place = Place::new();
    assert_eq!(place.run(&["init", "--public", "[2001:db8::1]:443"]), ExitCode::SUCCESS);
    let name = "laptop".parse().unwrap();
    let text = invite_on_disk(&place.layout(), &name, "1h".parse().unwrap()).unwrap();
    let invite: Invite = text.parse().unwrap();
    assert_eq!(invite.host, "2001:db8::1");
    assert_eq!(invite.gateway_key, files::read_key(&place.layout().key).unwrap().public());
    let mut state = State::open(&place.layout()).unwrap();
    assert_eq!(state.redeem(&invite.token, invite.gateway_key, unix_now()).unwrap(), name);
}

#[test]
fn a_bad_or_missing_configuration_is_exit_code_78() {
    let place = Place::new();
    assert_eq!(place.run(&["run"]), ExitCode::from(78));
    assert_eq!(place.run(&["clients"]), ExitCode::from(78));
    std::fs::write(place.config(), "publik = \"gw.example.org:443\"\n").unwrap();
    assert_eq!(place.run(&["run"]), ExitCode::from(78));
    let error = read_config(&place.layout()).unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "{}:1: unknown key \"publik\"; the nearest valid one is public",
            place.config().display()
        )
    );
}

#[test]
fn a_missing_key_says_how_to_make_one() {
    let place = Place::new();
    std::fs::write(place.config(), "public = \"gw.example.org:443\"\n").unwrap();
    let error = exit::sentence(&run(place.layout()).unwrap_err());
    assert!(error.starts_with("the gateway has no usable key (`whimbrel-gateway init --config"));
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let place = Place::new();
    assert_eq!(place.run(&[]), ExitCode::from(2));
    assert_eq!(place.run(&["dance"]), ExitCode::from(2));
    assert_eq!(place.run(&["invite", "../etc"]), ExitCode::from(2));
    assert_eq!(place.run(&["invite", "laptop", "--valid", "soon"]), ExitCode::from(2));
    assert_eq!(place.run(&["invite", "laptop", "--valid", "0s"]), ExitCode::from(2));
    assert_eq!(place.run(&["init", "--public", "gw"]), ExitCode::from(2));
    assert_eq!(main(vec!["whimbrel-gateway".into(), "--help".into()]), ExitCode::SUCCESS);
}

#[test]
fn status_reads_well() {
    let status = crate::status::Status {
        state: "running".to_owned(),
        version: "0.1.0".to_owned(),
        uptime_s: 7384,
        listen: vec!["[::]:443".parse().unwrap()],
        public: "gw.example.org:443".to_owned(),
        key: "k".to_owned(),
        clients: 3,
        connected: 1,
        flows: 12,
        parked: crate::status::Waiting { sessions: 2, flows: 9 },
        held: crate::status::Held { bytes: 5_000_000, limit: 250_000_000 },
        evicted: 1,
        restored: 7,
        unkept: 3,
        outlives: true,
        dials: crate::status::Dials { connected: 100, failed: 2, denied: 1, limited: 0 },
        datagrams: crate::status::Datagrams {
            ports: 3,
            up: 50,
            down: 60,
            echoes: true,
            echo_requests: 5,
            echo_replies: 4,
            ..crate::status::Datagrams::default()
        },
        tx_bytes: 1_500_000,
        rx_bytes: 20,
        slots: vec![slot(0, 1), slot(1, 0)],
    };
    assert_eq!(
        show::describe(&status, &Layout::for_config(None, Role::Gateway)),
        "\
Gateway    running (version 0.1.0), for 2h 03m
Listens    [::]:443 (UDP); clients use gw.example.org:443
Key        k
Clients    1 connected of 3
Flows      12 open, which outlive this process, but for 3 since its start; 7 came from one before
Dials      100 connected, 2 failed, 1 denied, 0 over a limit
UDP        3 ports, 50 datagrams out and 60 in; 0 denied, 0 dropped
Ping       5 requests out and 4 replies in
Waiting    2 sessions with 9 flows; 1 given up
Memory     5.0 MB held of 250.0 MB
Traffic    1.5 MB to clients, 20 B from clients
Slots      2 with 1 + 0 clients; 6 changes of address, 0 datagrams astray, 4 sessions moved"
    );
}

fn slot(slot: u8, connections: u64) -> crate::status::SlotStatus {
    let (moved_in, readdressed) = (2, 3);
    let status = crate::status::SlotStatus { slot, connections, ..Default::default() };
    crate::status::SlotStatus { moved_in, readdressed, ..status }
}

#[test]
fn the_client_table_shows_clients_and_invites() {
    let key = whimbrel_common::identity::PublicKey::from_bytes([0; 32]);
    let rows = [
        crate::status::ClientRow {
            name: "laptop".parse().unwrap(),
            key: Some(key),
            state: "connected".to_owned(),
            invite_expires: None,
            activity: Some(crate::status::Activity {
                flows: 3,
                tx_bytes: 1000,
                ..Default::default()
            }),
        },
        crate::status::ClientRow {
            name: "tablet".parse().unwrap(),
            key: Some(key),
            state: "connected".to_owned(),
            invite_expires: None,
            activity: Some(crate::status::Activity { silent_s: Some(200), ..Default::default() }),
        },
        crate::status::ClientRow {
            name: "phone".parse().unwrap(),
            key: None,
            state: "invited".to_owned(),
            invite_expires: Some(0),
            activity: None,
        },
    ];
    assert_eq!(
        show::client_table(&rows),
        "\
NAME    STATE                         FLOWS  FROM IT  TO IT   KEY
laptop  connected                     3      0 B      1.0 kB  AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
tablet  connected, silent for 3m 20s  0      0 B      0 B     AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
phone   invited                       -      -        -       invite until 1970-01-01 00:00:00 UTC"
    );
}
