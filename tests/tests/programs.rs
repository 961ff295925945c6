//! Programs people use, over Whimbrel, byte for byte, while the laptop moves between its
//! networks at least twice during each.
//!
//! They must be installed, and `PostgreSQL` needs a user of its own, so `tests/programs` runs
//! this as root; `cargo test` alone only says so.

#[path = "programs/browser.rs"]
mod browser;
#[path = "programs/curl.rs"]
mod curl;
#[path = "programs/git.rs"]
mod git;
#[path = "programs/go.rs"]
mod go;
#[path = "programs/iperf.rs"]
mod iperf;
#[path = "programs/nft.rs"]
mod nft;
#[path = "programs/ping.rs"]
mod ping;
#[path = "programs/psql.rs"]
mod psql;
#[path = "programs/ssh.rs"]
mod ssh;
#[path = "programs/stage.rs"]
mod stage;
#[path = "programs/terminal.rs"]
mod terminal;

use std::io::Write;
use std::process::ExitCode;
use whimbrel_tests::role;
use whimbrel_tests::suite::{self, Test};

/// Set by `tests/programs` once it has found every program.
const CONSENT: &str = "WHIMBREL_PROGRAMS";

const TESTS: [Test; 18] = [
    ("an_ssh_session_answers_before_during_and_after_moves", ssh::converse),
    ("scp_sends_200_mb_across_moves", ssh::send),
    ("scp_fetches_200_mb_across_moves", ssh::fetch),
    ("psql_copies_millions_of_rows_out_and_in_across_moves", psql::copy),
    ("git_clones_100_mb_across_moves", git::clone),
    ("curl_downloads_across_moves", curl::download),
    ("curl_uploads_across_moves", curl::upload),
    ("iperf3_runs_both_ways_across_moves", iperf::measure),
    ("ping_is_answered_through_the_gateway", ping::answer),
    ("a_wrapped_ping_is_answered_through_the_gateway", ping::answer_wrapped),
    ("a_wrapped_ssh_session_answers_across_moves", ssh::converse_wrapped),
    ("a_wrapped_psql_copies_millions_of_rows_across_moves", psql::copy_wrapped),
    ("a_wrapped_git_clones_100_mb_across_moves", git::clone_wrapped),
    ("a_wrapped_curl_downloads_across_moves", curl::download_wrapped),
    ("a_wrapped_static_go_program_downloads_across_moves", go::download_wrapped),
    ("a_wrapped_chromium_fetches_150_mb_across_moves", browser::browse_wrapped),
    ("a_firewall_that_drops_what_comes_back_is_named_and_mended", nft::drop_what_comes_back),
    ("a_firewall_that_forbids_what_goes_out_is_named_and_mended", nft::forbid_what_goes_out),
];

fn main() -> ExitCode {
    // A wrapped program knows nothing of our environment.
    if let Some(code) = role::play() {
        return code;
    }
    if std::env::var_os(CONSENT).is_none() {
        // Whoever closed standard error does not want to know.
        drop(writeln!(
            std::io::stderr(),
            "\nNOT RUN HERE: {} tests of Whimbrel with ssh, scp, psql, git, curl, iperf3, nft, ping, Go and\n\
             Chromium.\n\
             `tests/programs`, as root, runs them; the Debian packages it needs are listed in \
             tests/programs.apt.\n",
            TESTS.len()
        ));
        return ExitCode::SUCCESS;
    }
    suite::run(&TESTS)
}
