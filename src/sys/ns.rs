//! `setns(fd, nstype)`, setns(2); `unshare(flags)`, unshare(2); sethostname(2); the loopback interface, netdevice(7).

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// Which namespaces of a process are entered, by its pidfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NsFlags(c_int);

impl NsFlags {
    pub const MOUNT: NsFlags = NsFlags(libc::CLONE_NEWNS);
    pub const CGROUP: NsFlags = NsFlags(libc::CLONE_NEWCGROUP);
    pub const UTS: NsFlags = NsFlags(libc::CLONE_NEWUTS);
    pub const IPC: NsFlags = NsFlags(libc::CLONE_NEWIPC);
    pub const PID: NsFlags = NsFlags(libc::CLONE_NEWPID);
    pub const USER: NsFlags = NsFlags(libc::CLONE_NEWUSER);
    pub const NET: NsFlags = NsFlags(libc::CLONE_NEWNET);

    /// Both.
    #[must_use]
    pub const fn with(self, other: NsFlags) -> NsFlags {
        NsFlags(self.0 | other.0)
    }
}

/// `setns(fd, flags)`: `fd` is a pidfd, or one namespace's own (then `flags` says which kind is expected).
///
/// Entering a pid namespace changes where later children are born, not where the caller is.
///
/// # Errors
/// Those of setns(2); `ESRCH` when the process is gone.
pub fn setns(fd: BorrowedFd<'_>, flags: NsFlags) -> io::Result<()> {
    // SAFETY: takes two integers; the descriptor is borrowed and so open.
    match unsafe { libc::setns(fd.as_raw_fd(), flags.0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `unshare(flags)`.
///
/// # Errors
/// Those of unshare(2).
pub fn unshare(flags: NsFlags) -> io::Result<()> {
    // SAFETY: takes an integer. No flag here touches memory or descriptors, which is what would be unsafe.
    match unsafe { libc::unshare(flags.0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A TCP socket of the network namespace that a process (by its pidfd) is in: it stays there, whoever uses it. Non-blocking,
/// close-on-exec. Made by a thread of its own, which is the only one to enter that namespace, and ends there.
///
/// # Errors
/// Those of setns(2) and socket(2); `EAGAIN` without a thread.
pub fn tcp_socket_in(process: BorrowedFd<'_>, v6: bool) -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let family = if v6 { AddressFamily::INET6 } else { AddressFamily::INET };
    let make = || {
        setns(process, NsFlags::NET)?;
        Ok(socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?)
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, make)?;
        thread.join().map_err(|_| io::Error::other("the thread that makes a socket ended"))?
    })
}

/// The user namespace of a process, by its pidfd: /proc/PID/ns/user.
///
/// # Errors
/// Those of open(2); `ESRCH` when the process is gone.
pub fn user_namespace_of(process: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    let path = format!("/proc/{}/ns/user", super::pidfd::pid_of(process)?);
    let namespace = rustix::fs::open(path, flags, rustix::fs::Mode::empty())?;
    // Still the same process, so the pid was its own all the while.
    super::pidfd::pid_of(process)?;
    Ok(namespace)
}

/// The pid namespace in which children of this process are born: /proc/self/ns/pid_for_children, namespaces(7).
///
/// # Errors
/// Those of open(2).
pub fn pid_for_children() -> io::Result<OwnedFd> {
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    Ok(rustix::fs::open("/proc/self/ns/pid_for_children", flags, rustix::fs::Mode::empty())?)
}

/// `sethostname(name)`, in this process's uts namespace.
///
/// # Errors
/// Those of sethostname(2); `EINVAL` when it is longer than 64 bytes.
pub fn sethostname(name: &[u8]) -> io::Result<()> {
    Ok(rustix::system::sethostname(name)?)
}

/// Brings up `lo` of this process's network namespace: SIOCSIFFLAGS, netdevice(7). The kernel adds 127.0.0.1/8 and ::1 by itself.
///
/// # Errors
/// Those of socket(2) and ioctl(2).
pub fn loopback_up() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: ifreq is integers and unions of them, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char; // ASCII, whichever sign it has here
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or_default(); // 0x41
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which outlives the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
