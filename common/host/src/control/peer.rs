//! Who is at the other end of a control connection.
#![expect(unsafe_code, reason = "no crate in use wraps SO_PEERGROUPS")]

use std::os::fd::AsRawFd as _;

use tokio::net::UnixStream;

/// The process at the other end, as the kernel saw it connect (SO_PEERCRED, SO_PEERGROUPS).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
    /// Its process id, if it is in a namespace we can see.
    pub pid: Option<i32>,
    /// Its further groups.
    pub groups: Vec<u32>,
}

impl Peer {
    pub(super) fn of(stream: &UnixStream) -> std::io::Result<Self> {
        let seen = stream.peer_cred()?;
        let groups = supplementary(stream);
        Ok(Self { uid: seen.uid(), gid: seen.gid(), pid: seen.pid(), groups })
    }

    /// Whether the peer belongs to `group`.
    #[must_use]
    pub fn is_in(&self, group: u32) -> bool {
        self.gid == group || self.groups.contains(&group)
    }
}

/// The peer's supplementary groups; none if the kernel will not say.
fn supplementary(stream: &UnixStream) -> Vec<u32> {
    // NGROUPS_MAX is 65536, but nobody who needs more than this is kept out by mistake:
    // the kernel then answers ERANGE and only the effective group counts.
    let mut groups = vec![0u32; 1024];
    let mut length =
        libc::socklen_t::try_from(size_of_val(groups.as_slice())).expect("4 KiB fit a socklen_t");
    // SAFETY: `groups` is valid for writes of `length` bytes, `length` outlives the call, and
    // the descriptor is open because `stream` is borrowed.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERGROUPS,
            groups.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    let bytes = if result == 0 { usize::try_from(length).unwrap_or(0) } else { 0 };
    groups.truncate(bytes / size_of::<u32>());
    groups
}

/// The id of a group in `/etc/group`, where packages and sysusers put theirs.
#[must_use]
pub fn group_id(name: &str) -> Option<u32> {
    let table = std::fs::read_to_string("/etc/group").ok()?;
    table.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next() != Some(name) {
            return None;
        }
        fields.nth(1)?.parse().ok()
    })
}
