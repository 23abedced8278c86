//! Who a process is: setgroups(2), setresgid(2), setresuid(2), umask(2), setsid(2), a session keyring (keyctl(2)), and the
//! controlling terminal (ioctl_tty(2)). One thread's, as the raw calls are: the caller is a process of one thread.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The largest user or group id that is accepted, as in runc and Kubernetes: 2^31-1.
pub const ID_MAX: u32 = 0x7fff_ffff;
/// The most supplementary groups, NGROUPS_MAX of linux/limits.h.
pub const GROUPS_MAX: usize = 65536;

/// `setgroups(groups)`.
///
/// # Errors
/// Those of setgroups(2).
pub fn setgroups(groups: &[u32]) -> io::Result<()> {
    let groups: Vec<_> = groups.iter().map(|g| rustix::process::Gid::from_raw(*g)).collect();
    Ok(rustix::thread::set_thread_groups(&groups)?)
}

/// `setresgid(gid, gid, gid)`.
///
/// # Errors
/// Those of setresgid(2).
pub fn setresgid(gid: u32) -> io::Result<()> {
    let gid = rustix::process::Gid::from_raw(gid);
    Ok(rustix::thread::set_thread_res_gid(gid, gid, gid)?)
}

/// `setresuid(uid, uid, uid)`.
///
/// # Errors
/// Those of setresuid(2).
pub fn setresuid(uid: u32) -> io::Result<()> {
    let uid = rustix::process::Uid::from_raw(uid);
    Ok(rustix::thread::set_thread_res_uid(uid, uid, uid)?)
}

/// `umask(mask)`.
pub fn umask(mask: u32) {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(mask));
}

/// Makes files from now on as another user, with all capabilities that this process has: setfsuid(2), setfsgid(2), capset(2).
///
/// # Errors
/// `EPERM` when it did not become that user; those of capset(2).
pub fn make_files_as(uid: u32, gid: u32) -> io::Result<()> {
    // Both answer with what was before, and with -1, which is no id and changes nothing, so with what is.
    let set = |uid, gid| {
        // SAFETY: takes an integer.
        let before_gid = unsafe { libc::setfsgid(gid) };
        // SAFETY: likewise.
        let before_uid = unsafe { libc::setfsuid(uid) };
        (before_uid.cast_unsigned(), before_gid.cast_unsigned())
    };
    set(uid, gid);
    if set(u32::MAX, u32::MAX) != (uid, gid) {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    // To be no longer root for files took those of its capabilities away that are for files.
    let all = super::capability::permitted()?;
    super::capability::capset(all, all, 0)
}

/// `setsid()`.
///
/// # Errors
/// `EPERM` when the process leads a group already.
pub fn setsid() -> io::Result<()> {
    rustix::process::setsid()?;
    Ok(())
}

/// `keyctl(KEYCTL_JOIN_SESSION_KEYRING, NULL)`: a new, empty session keyring, instead of the parent's.
///
/// # Errors
/// `ENOSYS` for a kernel without keyrings, `EDQUOT`; those of keyctl(2).
pub fn join_session_keyring() -> io::Result<()> {
    /// linux/keyctl.h
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: the second argument is a name or null, and null asks for an anonymous one.
    match unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Makes a terminal the controlling one of this session: `ioctl(tty, TIOCSCTTY, 0)`.
///
/// # Errors
/// `EPERM` when it is another session's.
pub fn tiocsctty(tty: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer.
    match unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCSCTTY as _, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
