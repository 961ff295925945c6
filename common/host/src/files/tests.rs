use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn key() -> SecretKey {
    SecretKey::from_seed([3; 32])
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().mode() & 0o777
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn keys_are_private_and_survive_a_round_trip() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("client.key");
    create_key(&path, &key()).unwrap();
    assert_eq!(mode(&path), 0o600);
    assert_eq!(read_key(&path).unwrap().seed(), key().seed());
}

#[test]
fn an_existing_key_is_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("client.key");
    std::fs::write(&path, "precious").unwrap();
    assert!(create_key(&path, &key()).is_err());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn a_key_is_not_written_through_a_link() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("client.key");
    std::os::unix::fs::symlink(folder.path().join("elsewhere"), &path).unwrap();
    assert!(create_key(&path, &key()).is_err());
    assert!(!folder.path().join("elsewhere").exists());
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("client.key");
    create_key(&path, &key()).unwrap();
    for open in [0o640, 0o604, 0o620] {
        set_mode(&path, open);
        let error = read_key(&path).unwrap_err().to_string();
        let shown = path.display();
        assert_eq!(
            error,
            format!(
                "the key {shown} can be read by others (mode {open:03o}); run `chmod 600 {shown}`, \
                 and make a new key if anybody else has an account here"
            )
        );
    }
    set_mode(&path, 0o400);
    read_key(&path).unwrap();
}

#[test]
fn a_damaged_key_is_named_but_not_quoted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("client.key");
    create(&path, "whimbrel-key-1 secretsecret\n", 0o600).unwrap();
    let error = crate::exit::sentence(&read_key(&path).unwrap_err());
    assert!(error.contains("client.key"), "{error}");
    assert!(!error.contains("secretsecret"), "{error}");
}

#[test]
fn replacing_keeps_the_mode_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clients");
    replace(&path, "one\n", 0o640).unwrap();
    assert_eq!(mode(&path), 0o640);
    set_mode(&path, 0o600);
    replace(&path, "two\n", 0o640).unwrap();
    assert_eq!(mode(&path), 0o600);
    assert_eq!(read_if_any(&path).unwrap().as_deref(), Some("two\n"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_failed_replacement_leaves_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("missing").join("clients");
    assert!(replace(&path, "one\n", 0o640).is_err());
    assert_eq!(read_if_any(&path).unwrap(), None);
}

#[test]
fn an_edit_changes_the_stamp() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clients");
    assert_eq!(Stamp::of(&path), None);
    replace(&path, "one\n", 0o640).unwrap();
    let before = Stamp::of(&path);
    assert_eq!(Stamp::of(&path), before);
    replace(&path, "two\n", 0o640).unwrap();
    assert_ne!(Stamp::of(&path), before);
}

#[test]
fn the_lock_is_exclusive_until_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.lock");
    let held = Lock::acquire(&path).unwrap();
    let other = File::open(&path).unwrap();
    rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap_err();
    drop(held);
    rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
}

#[test]
fn a_prepared_file_appears_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("client.toml");
    let names = || std::fs::read_dir(folder.path()).unwrap().count();
    let prepared = prepare(&path, "text", 0o644).unwrap();
    assert!(!path.exists());
    drop(prepared);
    assert_eq!(names(), 0, "nothing is left of what was not wanted");
    prepare(&path, "text", 0o644).unwrap().publish().unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "text");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
    assert_eq!(names(), 1);
    prepare(&path, "other", 0o644).unwrap().publish().unwrap_err();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "text");
    assert_eq!(names(), 1);
}
