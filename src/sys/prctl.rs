//! `prctl`, prctl(2): no_new_privs, keepcaps, dumpable, the name.

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
