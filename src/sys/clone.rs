//! `clone3`, clone(2); a helper that shares memory with its parent, clone(2) with CLONE_VM | CLONE_VFORK; `_exit`, _exit(2).

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// What the child does not share with its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CloneFlags(u64);

impl CloneFlags {
    pub const NEWNS: CloneFlags = CloneFlags(0x0002_0000);
    pub const NEWCGROUP: CloneFlags = CloneFlags(0x0200_0000);
    pub const NEWUTS: CloneFlags = CloneFlags(0x0400_0000);
    pub const NEWIPC: CloneFlags = CloneFlags(0x0800_0000);
    pub const NEWUSER: CloneFlags = CloneFlags(0x1000_0000);
    pub const NEWPID: CloneFlags = CloneFlags(0x2000_0000);
    pub const NEWNET: CloneFlags = CloneFlags(0x4000_0000);

    /// Both.
    #[must_use]
    pub const fn with(self, other: CloneFlags) -> CloneFlags {
        CloneFlags(self.0 | other.0)
    }

    /// `other` when `yes`, nothing more otherwise.
    #[must_use]
    pub const fn with_if(self, yes: bool, other: CloneFlags) -> CloneFlags {
        if yes { self.with(other) } else { self }
    }
}

/// linux/sched.h; libc has them for some targets only.
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;

/// On which side of the clone this is.
#[derive(Debug)]
pub enum Cloned {
    Parent { pid: u32, pidfd: OwnedFd },
    Child,
}

/// How many threads this process has: the link count of /proc/self/task is two more, proc_pid_task(5).
///
/// # Errors
/// Those of stat(2): no /proc.
pub fn thread_count() -> io::Result<u64> {
    Ok(rustix::fs::stat("/proc/self/task")?.st_nlink.saturating_sub(2))
}

/// `clone3(CLONE_PIDFD | CLONE_INTO_CGROUP | CLONE_CLEAR_SIGHAND | flags)`: a copy of this process without its signal handlers, born in
/// `cgroup` (a directory of cgroup v2).
///
/// # Errors
/// `EBUSY` when this process has more than one thread (a lock held by another would be held for ever in the child), and when
/// the cgroup has controllers enabled for its children; those of clone3.
pub fn clone3(flags: CloneFlags, cgroup: BorrowedFd<'_>) -> io::Result<Cloned> {
    if thread_count()? != 1 {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    let mut pidfd: c_int = -1;
    // SAFETY: clone_args is plain integers, for which all zeroes is a value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags.0 | CLONE_PIDFD | CLONE_INTO_CGROUP | CLONE_CLEAR_SIGHAND;
    args.pidfd = (&raw mut pidfd).addr() as u64;
    args.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    args.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    // SAFETY: no CLONE_VM and no stack, so this is fork(2): the child goes on with a copy of everything, and there is no other
    // thread whose locks it could miss. `args` and `pidfd` outlive the call, which writes to nothing else.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match u32::try_from(pid) {
        Err(_) => Err(io::Error::last_os_error()),
        Ok(0) => Ok(Cloned::Child),
        Ok(pid) => {
            // SAFETY: the kernel has just stored it there, and it is nobody else's.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent { pid, pidfd })
        }
    }
}

/// `clone3(CLONE_PARENT | flags)`: a copy of this process that is its parent's child, as this one is. `Some` is its pid. For a child of
/// [`clone3`], which has one thread and may be where no /proc tells of it.
///
/// # Errors
/// Those of clone3(2).
pub fn clone3_sibling(flags: CloneFlags) -> io::Result<Option<u32>> {
    const CLONE_PARENT: u64 = 0x8000; // linux/sched.h
    // SAFETY: clone_args is plain integers, for which all zeroes is a value. No exit signal: it is the caller's own.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags.0 | CLONE_PARENT;
    // SAFETY: as in `clone3`: a copy of everything, and no other thread.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match u32::try_from(pid) {
        Err(_) => Err(io::Error::last_os_error()),
        Ok(0) => Ok(None),
        Ok(pid) => Ok(Some(pid)),
    }
}

/// A plain copy of this process, fork(2), in its cgroup.
///
/// # Errors
/// As [`clone3`].
pub fn fork() -> io::Result<Option<u32>> {
    if thread_count()? != 1 {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    // SAFETY: there is one thread, so the child misses none whose locks it could wait for.
    let pid = unsafe { libc::fork() };
    match u32::try_from(pid) {
        Err(_) => Err(io::Error::last_os_error()),
        Ok(0) => Ok(None),
        Ok(pid) => Ok(Some(pid)),
    }
}

/// Bytes of a helper's stack.
const HELPER_STACK_BYTES: usize = 256 << 10;

/// Runs `work` in a child with a mount namespace of its own that shares this process's memory and file descriptors (CLONE_VM |
/// CLONE_VFORK | CLONE_FILES | CLONE_NEWNS), and waits for it. What `work` opens stays open here; what it mounts goes with it.
///
/// It must not be visible to a pod (it *is* this process's memory): call it only while children are born in the host's pid
/// namespace.
///
/// # Errors
/// Those of clone(2) and mmap(2); `EIO` when the helper was killed.
pub fn helper_newns(work: &mut dyn FnMut()) -> io::Result<()> {
    extern "C" fn run(work: *mut c_void) -> c_int {
        // SAFETY: it is the `&mut &mut dyn FnMut()` given to clone below, alive since the parent waits; a panic aborts here, for
        // this function may not unwind.
        let work = unsafe { &mut *work.cast::<&mut dyn FnMut()>() };
        work();
        0
    }
    if thread_count()? != 1 {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    let mut stack = vec![0u128; HELPER_STACK_BYTES / size_of::<u128>()];
    let top = stack.as_mut_ptr_range().end;
    let mut work = work;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES | libc::CLONE_NEWNS | libc::SIGCHLD;
    // SAFETY: the stack is 16-aligned, its own and outlives the child, as does `work`: CLONE_VFORK suspends this (only) thread
    // until the child has exited, so memory has one user at a time.
    let pid = unsafe { libc::clone(run, top.cast(), flags, (&raw mut work).cast()) };
    let Some(pid) = rustix::process::Pid::from_raw(pid) else { return Err(io::Error::last_os_error()) };
    loop {
        match rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()) {
            Ok(Some((_, status))) if status.exit_status() == Some(0) => return Ok(()),
            Ok(_) => return Err(io::Error::from_raw_os_error(libc::EIO)),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// `_exit(code)`: ends a cloned child without what atexit(3) holds for its parent.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: always sound; nothing runs after it.
    unsafe { libc::_exit(code) }
}
