//! Constants of the running kernel: sysconf(3).

/// Bytes of a page of memory: `sysconf(_SC_PAGESIZE)`.
///
/// Of libc, which has it from its start. rustix asks when it is first wanted: the kernel, and before Linux 6.4, which has no
/// PR_GET_AUXV, /proc. Pause has no /proc, and ended there half a second after its start.
pub fn page_bytes() -> u64 {
    // SAFETY: it takes a number and gives one; there is nothing else to hold.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(bytes).unwrap_or(4096) // it never fails, sysconf(3)
}
