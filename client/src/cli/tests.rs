use super::*;

const CONFIG: &str = "gateway = \"gw.example.org:443\"\n\
                      gateway_key = \"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo\"\n";

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

impl Folder {
    fn new() -> Self {
        let number = u64::from_ne_bytes(whimbrel_host::random::bytes().unwrap());
        let folder = std::env::temp_dir().join(format!("whimbrel-client-{number:016x}"));
        std::fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    fn config(&self) -> PathBuf {
        self.0.join("client.toml")
    }

    fn layout(&self) -> Layout {
        Layout::for_config(Some(self.config()), Role::Client)
    }

    fn run(&self, args: &[&str]) -> ExitCode {
        let mut line: Vec<OsString> = vec!["whimbrel".into()];
        line.extend(args.iter().map(OsString::from));
        line.extend(["--config".into(), self.config().into_os_string()]);
        main(line)
    }
}

#[test]
fn help_names_every_command() {
    assert_eq!(
        Cli::command().render_long_help().to_string(),
        "\
Keeps TCP connections alive while the network under them changes

Usage: whimbrel <COMMAND>

Commands:
  join       Become a client of a gateway, with the invite its owner sent
  up         Run the daemon in the foreground (systemd runs this)
  run        Run a command with its TCP carried, or around the capture, without root
  status     Show what the daemon does
  paths      List the paths to the gateway
  flows      List the connections that are carried
  events     List what happened lately
  metrics    Print figures for a monitoring system, as Prometheus reads them
  trace      Write down what paths, moves and connections do, as a qlog, until Ctrl-C
  move       Move to a link by hand
  pause      Let new connections go direct, for a time or until `resume`
  resume     Capture new connections again
  check      Validate a configuration
  doctor     Examine this host: what is wrong, and what to do about it
  bugreport  Gather what somebody who looks for a bug wants to know, in one file
  demo       Show the whole story on one machine: no root, no set-up
  help       Print this message or the help of the given subcommand(s)

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
fn wrong_usage_is_exit_code_2() {
    let folder = Folder::new();
    for args in [
        &["dance"][..],
        &["join"],
        &["move"],
        &["move", "wlan0", "--auto"],
        &["move", "wl/an0"],
        &["pause", "soon"],
        &["pause", "0s"],
        &["status", "--follow"],
        &["status", "--watch", "--json"],
        &["run"],
        &["doctor", "--follow"],
    ] {
        assert_eq!(folder.run(args), ExitCode::from(2), "{args:?}");
    }
    assert_eq!(main(vec!["whimbrel".into(), "--version".into()]), ExitCode::SUCCESS);
}

#[test]
fn check_tells_good_from_bad_by_exit_code() {
    let folder = Folder::new();
    assert_eq!(folder.run(&["check"]), ExitCode::from(78));
    std::fs::write(folder.config(), CONFIG).unwrap();
    assert_eq!(folder.run(&["check"]), ExitCode::SUCCESS);
    std::fs::write(folder.config(), format!("{CONFIG}[capture]\nmode = \"some\"\n")).unwrap();
    assert_eq!(folder.run(&["check"]), ExitCode::from(78));
    assert_eq!(folder.run(&["up"]), ExitCode::from(78));
}

#[test]
fn a_damaged_invite_changes_nothing_and_is_not_repeated() {
    let folder = Folder::new();
    let invite = "whimbrel://gw.example.org:443?k=short&t=BwcHBwcHBwcHBwcHBwcHBw";
    let error = exit::sentence(&join::join(&folder.layout(), invite).unwrap_err());
    assert_eq!(error, "the gateway's key in the invite (k=) is damaged; copy the line again");
    assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 0);
}

#[test]
fn joining_twice_is_refused_before_the_token_is_used() {
    let folder = Folder::new();
    std::fs::write(folder.config(), CONFIG).unwrap();
    let invite = "whimbrel://127.0.0.1:9?k=11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo\
                  &t=BwcHBwcHBwcHBwcHBwcHBw";
    let error = exit::sentence(&join::join(&folder.layout(), invite).unwrap_err());
    assert!(
        error.starts_with("this machine belongs to a gateway already (gw.example.org:443)"),
        "{error}"
    );
    assert!(!folder.layout().key.exists());
}

#[test]
fn commands_say_how_to_start_what_is_not_running() {
    let folder = Folder::new();
    let layout = folder.layout();
    let error = exit::sentence(&ask::status(&layout, true).unwrap_err());
    assert_eq!(
        error,
        format!(
            "Whimbrel is not running (nobody answers on {}); start it with `whimbrel up --config {}`",
            layout.socket.display(),
            layout.config.display()
        )
    );
    for args in [&["paths"][..], &["flows"], &["events", "--follow"], &["resume"], &["pause", "1m"]]
    {
        assert_eq!(folder.run(args), ExitCode::FAILURE, "{args:?}");
    }
}
