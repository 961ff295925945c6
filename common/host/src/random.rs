//! Random bytes from the kernel.

use ring::rand::{SecureRandom as _, SystemRandom};

/// `N` random bytes, fit for keys.
///
/// # Errors
/// The kernel has no random source (a chroot without `getrandom` and `/dev/urandom`).
pub fn bytes<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| anyhow::anyhow!("the kernel gives no random bytes, so no key can be made"))?;
    Ok(bytes)
}
