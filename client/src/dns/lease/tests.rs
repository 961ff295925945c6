use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Instant;

use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::*;
use crate::dns::file::SettingsFile;

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 213, 52, 53);
const BEFORE: &str = "search lan\nnameserver 192.168.1.1\n";
const NEWER: &str = "nameserver 192.168.7.7\n";

/// A host with settings of its own and the service.
struct Host {
    folder: TempDir,
    service: JoinHandle<anyhow::Result<()>>,
}

impl Host {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("resolv.conf"), BEFORE).unwrap();
        Self { service: service(&folder), folder }
    }

    fn place(&self) -> PathBuf {
        self.folder.path().join("resolv.conf")
    }

    fn text(&self) -> String {
        fs::read_to_string(self.place()).unwrap()
    }

    fn leads(&self) -> bool {
        self.text().contains("nameserver 10.213.52.53")
    }

    async fn connect(&self) -> Lease {
        Lease::open(&self.folder.path().join("socket")).await.unwrap().unwrap()
    }

    async fn until(&self, what: &str, settled: impl Fn(&Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !settled(self) {
            assert!(Instant::now() < end, "{what}: {}", self.text());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

fn service(folder: &TempDir) -> JoinHandle<anyhow::Result<()>> {
    let path = folder.path();
    let listener = UnixListener::bind(path.join("socket")).unwrap();
    let file = SettingsFile::at(path.join("resolv.conf"), path.join("before"));
    tokio::spawn(async move { serve(listener, &mut Scribe::of(file, SERVER)).await })
}

#[tokio::test]
async fn settings_are_ours_for_as_long_as_the_connection_is_open() {
    let host = Host::new();
    let mut lease = host.connect().await;
    assert_eq!(host.text(), BEFORE, "a connection alone changes nothing");
    assert_eq!(lease.lead().await.unwrap(), "/etc/resolv.conf");
    assert!(host.leads() && host.text().contains("search lan"), "{}", host.text());
    // As the kernel closes it for a daemon that was killed.
    drop(lease);
    host.until("they are as before", |host| host.text() == BEFORE).await;
}

#[tokio::test]
async fn they_are_as_before_when_the_daemon_has_its_answer() {
    let host = Host::new();
    let mut lease = host.connect().await;
    lease.lead().await.unwrap();
    lease.give_back().await.unwrap();
    assert_eq!(host.text(), BEFORE);
}

#[tokio::test]
async fn whoever_writes_meanwhile_is_answered_and_gets_its_own_back() {
    let host = Host::new();
    let mut lease = host.connect().await;
    lease.lead().await.unwrap();
    // In place, as scripts do, and by a new file, as NetworkManager does.
    fs::write(host.place(), "nameserver 192.168.5.5\n").unwrap();
    host.until("a text is replaced", Host::leads).await;
    let fresh = host.folder.path().join("fresh");
    fs::write(&fresh, NEWER).unwrap();
    fs::rename(&fresh, host.place()).unwrap();
    host.until("a file is replaced", Host::leads).await;
    fs::remove_file(host.place()).unwrap();
    host.until("a file is made", |host| host.place().exists() && host.leads()).await;
    fs::write(&fresh, NEWER).unwrap();
    fs::rename(&fresh, host.place()).unwrap();
    host.until("the last one is replaced", Host::leads).await;
    lease.give_back().await.unwrap();
    assert_eq!(host.text(), NEWER);
}

#[tokio::test]
async fn what_a_killed_service_left_is_restored_by_the_next() {
    let mut host = Host::new();
    let mut lease = host.connect().await;
    lease.lead().await.unwrap();
    host.service.abort();
    assert!((&mut host.service).await.unwrap_err().is_cancelled());
    lease.until_over().await;
    assert!(host.leads(), "nobody was there to restore them");
    fs::remove_file(host.folder.path().join("socket")).unwrap();
    host.service = service(&host.folder);
    host.until("they are as before", |host| host.text() == BEFORE).await;
    let mut lease = host.connect().await;
    lease.lead().await.unwrap();
    assert!(host.leads());
}

#[tokio::test]
async fn a_word_nobody_knows_ends_the_connection() {
    let host = Host::new();
    let mut lease = host.connect().await;
    lease.lead().await.unwrap();
    assert!(lease.say(b'x').await.is_err());
    host.until("they are as before", |host| host.text() == BEFORE).await;
}

#[tokio::test]
async fn a_host_without_the_service_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    assert!(Lease::open(&folder.path().join("socket")).await.unwrap().is_none());
}
