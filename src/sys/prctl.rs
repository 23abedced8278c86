//! `prctl`, prctl(2): no_new_privs, keepcaps, dumpable, the name; and the seccomp filter, seccomp(2).

use std::ffi::CStr;
use std::io;

/// `prctl(PR_SET_NO_NEW_PRIVS, 1)`.
///
/// # Errors
/// None on a kernel that has it.
pub fn set_no_new_privs() -> io::Result<()> {
    Ok(rustix::thread::set_no_new_privs(true)?)
}

/// `prctl(PR_SET_KEEPCAPS, keep)`: whether the permitted set survives a change of uid.
///
/// # Errors
/// `EPERM` when securebits forbid it.
pub fn set_keepcaps(keep: bool) -> io::Result<()> {
    Ok(rustix::thread::set_keep_capabilities(keep)?)
}

/// `prctl(PR_SET_DUMPABLE, 0)`: its memory and /proc files are root's, and ptrace takes CAP_SYS_PTRACE. Ends at execve(2).
///
/// # Errors
/// None that a caller could cause.
pub fn set_not_dumpable() -> io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?)
}

/// `prctl(PR_SET_NAME)`: at most 15 bytes are kept.
///
/// # Errors
/// None that a caller could cause.
pub fn set_name(name: &CStr) -> io::Result<()> {
    Ok(rustix::thread::set_name(name)?)
}

/// Loads a filter: `seccomp(SECCOMP_SET_MODE_FILTER, flags, program)`. Each instruction is a `struct sock_filter` as eight bytes in
/// native order.
///
/// # Errors
/// `EACCES` with neither no_new_privs nor CAP_SYS_ADMIN, `EINVAL` for a program the kernel refuses, those of seccomp(2).
pub fn seccomp_load(program: &[[u8; 8]], flags: u64) -> io::Result<()> {
    /// linux/seccomp.h
    const SECCOMP_SET_MODE_FILTER: libc::c_ulong = 1;
    let len = libc::c_ushort::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let filter: Vec<libc::sock_filter> = program
        .iter()
        .map(|i| libc::sock_filter {
            code: u16::from_ne_bytes([i[0], i[1]]),
            jt: i[2],
            jf: i[3],
            k: u32::from_ne_bytes([i[4], i[5], i[6], i[7]]),
        })
        .collect();
    let program = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut() };
    // SAFETY: `program` says how long `filter` is; both outlive the call, which only reads them.
    match unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &raw const program) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
