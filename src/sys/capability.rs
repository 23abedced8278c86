//! Capabilities, capabilities(7): names and bits, capset(2), the bounding and the ambient set (prctl(2)).

use std::io;

/// The bit of a capability by its name (`CAP_CHOWN`), capabilities(7).
pub fn bit(name: &str) -> Option<u64> {
    name.parse::<caps::Capability>().ok().map(|capability| capability.bitmask())
}

/// CAP_SYS_ADMIN's bit: what loading a seccomp filter without no_new_privs takes, seccomp(2).
pub const SYS_ADMIN: u64 = 1 << 21;

/// CAP_SYS_RESOURCE's bit: what raising a hard limit takes, setrlimit(2).
pub const SYS_RESOURCE: u64 = 1 << 24;

/// What this process may make effective: its permitted set, capget(2).
///
/// # Errors
/// Those of capget(2).
pub fn permitted() -> io::Result<u64> {
    Ok(rustix::thread::capabilities(None)?.permitted.bits())
}

/// Sets all three at once: `capset` of one's own, capset(2).
///
/// # Errors
/// `EPERM` when `permitted` is not within what is permitted now.
pub fn capset(permitted: u64, effective: u64, inheritable: u64) -> io::Result<()> {
    use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
    let sets = CapabilitySets {
        effective: CapabilitySet::from_bits_retain(effective),
        permitted: CapabilitySet::from_bits_retain(permitted),
        inheritable: CapabilitySet::from_bits_retain(inheritable),
    };
    Ok(set_capabilities(None, sets)?)
}

/// Removes everything but `keep` from the bounding set: `prctl(PR_CAPBSET_DROP)`, up to the last capability the kernel knows.
///
/// # Errors
/// `EPERM` without CAP_SETPCAP.
pub fn limit_bounding_set(keep: u64) -> io::Result<()> {
    for number in (0..u64::BITS).filter(|number| keep & (1 << number) == 0) {
        // SAFETY: PR_CAPBSET_DROP takes an integer.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0) } == 0 {
            continue;
        }
        let refused = io::Error::last_os_error();
        // SAFETY: as above, of PR_CAPBSET_READ.
        match unsafe { libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(number), 0, 0, 0) } {
            0 => {} // it was not there
            1 => return Err(refused),
            _ => return Ok(()), // EINVAL: beyond the last one
        }
    }
    Ok(())
}

/// Makes the ambient set exactly `set`: `prctl(PR_CAP_AMBIENT)`. Each must be permitted and inheritable.
///
/// # Errors
/// `EPERM` for one that is not.
pub fn set_ambient(set: u64) -> io::Result<()> {
    rustix::thread::clear_ambient_capability_set()?;
    for number in (0..u64::BITS).filter(|n| set & (1 << n) != 0) {
        let raise = libc::c_ulong::try_from(libc::PR_CAP_AMBIENT_RAISE).unwrap_or_default();
        // SAFETY: PR_CAP_AMBIENT takes integers.
        if unsafe { libc::prctl(libc::PR_CAP_AMBIENT, raise, libc::c_ulong::from(number), 0, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_have_the_kernels_bits() {
        assert_eq!(super::bit("CAP_CHOWN"), Some(1));
        assert_eq!(super::bit("CAP_SYS_ADMIN"), Some(super::SYS_ADMIN));
        assert_eq!(super::bit("CAP_NONSENSE"), None);
    }
}
