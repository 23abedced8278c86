//! The last steps before a program: execve(2), execveat(2), close_range(2), dup3(2), the signals (sigaction(2), sigprocmask(2)),
//! and where the process stands (fchdir(2), getcwd(2)).

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// A null-terminated array of C strings, as execve(2) wants it; the strings are borrowed.
pub(super) fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
}

/// `execve(path, argv, envp)`: returns only what went wrong.
pub fn execve(path: &CStr, argv: &[CString], envp: &[CString]) -> io::Error {
    let (argv, envp) = (pointers(argv), pointers(envp));
    // SAFETY: both arrays end in null, their strings live, and nothing is written to.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

/// `execveat(program, "", argv, envp, AT_EMPTY_PATH)`: the same for an open file.
pub fn fexecve(program: BorrowedFd<'_>, argv: &[CString], envp: &[CString]) -> io::Error {
    let (argv, envp) = (pointers(argv), pointers(envp));
    // SAFETY: as in `execve`.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// `close_range(first, last, flags)`.
fn close_range(first: u32, last: u32, flags: u32) -> io::Result<()> {
    // SAFETY: takes integers. Closing what somebody owns is the callers' matter, which are about to exec.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Closes every descriptor but those of `keep` (and 0 to 2 when `standard`). For a cloned child that goes on with `keep` only:
/// whatever else this process's memory calls an open file no longer is one.
///
/// # Errors
/// Those of close_range(2).
pub fn close_all_but(keep: &[BorrowedFd<'_>], standard: bool) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(fd.as_raw_fd()).ok()).collect();
    keep.sort_unstable();
    let mut first = if standard { 3 } else { 0 };
    for fd in keep {
        if fd > first {
            close_range(first, fd - 1, 0)?;
        }
        first = first.max(fd + 1);
    }
    close_range(first, u32::MAX, 0)
}

/// Marks every descriptor from 3 on to be closed by execve(2): `close_range(3, ~0, CLOSE_RANGE_CLOEXEC)`.
///
/// # Errors
/// Those of close_range(2).
pub fn cloexec_from_3() -> io::Result<()> {
    /// linux/close_range.h
    const CLOSE_RANGE_CLOEXEC: u32 = 4;
    close_range(3, u32::MAX, CLOSE_RANGE_CLOEXEC)
}

/// `dup3(from, to, 0)` onto one of 0, 1 and 2.
///
/// # Errors
/// Those of dup(2); `EINVAL` for another number.
pub fn dup_to_standard(from: BorrowedFd<'_>, to: RawFd) -> io::Result<()> {
    if !(0..=2).contains(&to) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: `from` is open; 0 to 2 are no OwnedFd of this program's, which leaves them to whoever started it.
    match unsafe { libc::dup2(from.as_raw_fd(), to) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Moves a descriptor to a number above the standard three, so that they can be replaced: `fcntl(F_DUPFD_CLOEXEC, 3)`.
///
/// # Errors
/// Those of fcntl(2).
pub fn dup_above_standard(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, 3)?)
}

/// Makes a descriptor number 3 as well, to be handed through an execve(2): dup3(2). For a child that is about to execute a
/// program and holds nothing at 3 that it still wants.
///
/// # Errors
/// Those of dup(2).
pub fn become_fd_3(fd: &OwnedFd) -> io::Result<()> {
    if fd.as_raw_fd() == 3 {
        return Ok(rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?);
    }
    // SAFETY: `fd` is open. Whoever owned 3 in this process is not run again: the caller execs or exits.
    match unsafe { libc::dup2(fd.as_raw_fd(), 3) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Takes descriptor 3 as it was handed through an execve(2), O_CLOEXEC again.
///
/// # Errors
/// `EBADF` when it is not open.
pub fn take_fd_3() -> io::Result<OwnedFd> {
    // SAFETY: takes integers; this asks whether 3 is open and marks it.
    if unsafe { libc::fcntl(3, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and a program that has just begun has given nobody else ownership of it.
    Ok(unsafe { OwnedFd::from_raw_fd(3) })
}

/// Gives up whatever this process ignores by inheritance: nohup(1)'s SIGHUP, a shell's SIGQUIT. All but SIGPIPE, which Rust's start ignores
/// because its programs want the error instead. For a process whose children then need no more than [`reset_signals`].
pub fn ignore_nothing_inherited() {
    (1..=SIGNALS).filter(|signal| *signal != libc::SIGPIPE).for_each(to_default_if_ignored);
}

/// `_NSIG` of asm-generic/signal.h.
const SIGNALS: i32 = 64;
/// Bytes of a mask of so many.
const MASK_BYTES: usize = 8;

/// One signal's disposition to SIG_DFL if it is SIG_IGN. A handler stays: it ends with the program.
fn to_default_if_ignored(signal: i32) {
    /// `struct kernel_sigaction` of the largest architecture; all zeroes: SIG_DFL, no flags, an empty mask.
    const DEFAULT: [u64; 4] = [0; 4];
    let mut now = DEFAULT;
    // The raw call, for libc keeps 32 and 33 for itself, and they may be ignored by inheritance as well.
    // SAFETY: it writes at most that much of `now`, and no action is given.
    unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, ptr::null::<u64>(), now.as_mut_ptr(), MASK_BYTES) };
    if now[0] == libc::SIG_IGN as u64 {
        // SAFETY: it reads at most that much of DEFAULT and writes nothing. SIGKILL and SIGSTOP are never ignored.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, DEFAULT.as_ptr(), ptr::null::<u64>(), MASK_BYTES) };
    }
}

/// SIGPIPE's disposition to SIG_DFL and the mask empty: both are inherited across execve(2). Handlers end there, and nothing else is ignored
/// by a process that has begun with [`ignore_nothing_inherited`].
///
/// # Errors
/// Those of sigprocmask(2).
pub fn reset_signals() -> io::Result<()> {
    to_default_if_ignored(libc::SIGPIPE);
    let empty = nix::sys::signal::SigSet::empty();
    Ok(nix::sys::signal::sigprocmask(nix::sys::signal::SigmaskHow::SIG_SETMASK, Some(&empty), None)?)
}

/// Ignores SIGCHLD so that the kernel reaps: SA_NOCLDWAIT, sigaction(2). Orphans that become this process's children included.
///
/// # Errors
/// Those of sigaction(2).
pub fn let_kernel_reap() -> io::Result<()> {
    // SAFETY: as in `reset_signals`.
    let mut ignore: libc::sigaction = unsafe { std::mem::zeroed() };
    ignore.sa_sigaction = libc::SIG_IGN;
    ignore.sa_flags = libc::SA_NOCLDWAIT;
    // SAFETY: `ignore` outlives the call, which only reads it; no handler is installed.
    match unsafe { libc::sigaction(libc::SIGCHLD, &raw const ignore, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Blocks every signal, sigprocmask(2): they wait for [`wait_signal`].
///
/// # Errors
/// Those of sigprocmask(2).
pub fn block_signals() -> io::Result<()> {
    let all = nix::sys::signal::SigSet::all();
    Ok(nix::sys::signal::sigprocmask(nix::sys::signal::SigmaskHow::SIG_SETMASK, Some(&all), None)?)
}

/// The next signal that was blocked: `sigtimedwait`, sigtimedwait(2); `None` when the time is over, `timeout: None` waits for ever.
///
/// # Errors
/// Those of sigtimedwait(2), but `EINTR` and `EAGAIN`.
pub fn wait_signal(timeout: Option<std::time::Duration>) -> io::Result<Option<i32>> {
    // SAFETY: sigset_t is plain integers, for which all zeroes is a value.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: it writes to `set` only.
    unsafe { libc::sigfillset(&raw mut set) };
    // SAFETY: timespec is plain integers, for which all zeroes is a value.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    let time = timeout.map_or(ptr::null(), |timeout| {
        time.tv_sec = timeout.as_secs().try_into().unwrap_or(i64::MAX);
        time.tv_nsec = timeout.subsec_nanos().into();
        &raw const time
    });
    loop {
        // SAFETY: `set` and what `time` points to outlive the call, which only reads them; no siginfo is asked for.
        let signal = unsafe { libc::sigtimedwait(&raw const set, ptr::null_mut(), time) };
        if signal > 0 {
            return Ok(Some(signal));
        }
        let e = io::Error::last_os_error();
        match e.kind() {
            io::ErrorKind::WouldBlock => return Ok(None),
            io::ErrorKind::Interrupted => {}
            _ => return Err(e),
        }
    }
}

/// `kill(pid, signal)`, kill(2).
///
/// # Errors
/// Those of kill(2).
pub fn kill(pid: u32, signal: i32) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
    // SAFETY: takes integers.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `fchdir(dir)`.
///
/// # Errors
/// Those of fchdir(2).
pub fn fchdir(dir: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::process::fchdir(dir)?)
}

/// The working directory as the kernel sees it from this root: the raw getcwd(2), which says `(unreachable)` for one outside.
///
/// # Errors
/// Those of getcwd(2).
pub fn getcwd() -> io::Result<CString> {
    Ok(rustix::process::getcwd(Vec::new())?)
}
