//! A program in a new process that is born in its cgroup: clone3(2) with CLONE_INTO_CGROUP, execveat(2), waitid(2).
//!
//! `std::process::Command` cannot do it, and to write a pid to cgroup.procs afterwards takes a grace period of RCU: 8 ms, in
//! which no other process on the machine can make, remove or enter a cgroup (cgroup_threadgroup_rwsem, cgroup_mutex).

use super::exec::pointers;
use super::{pidfd, session};
use std::ffi::{CString, c_int};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// linux/sched.h; libc has them for some targets only.
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// Exit code of a child that never ran its program; nobody is shown it.
const CHILD_FAILED: c_int = 127;

/// What to run, and where.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// An open program.
    pub program: BorrowedFd<'a>,
    pub argv: &'a [CString],
    pub envp: &'a [CString],
    /// Its descriptor 0; 1 is /dev/null and 2 is ours.
    pub stdin: BorrowedFd<'a>,
    /// A directory of cgroup v2; `None`: our own cgroup.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// A child of this process. Nothing happens to it when this is dropped.
#[derive(Debug)]
pub struct Child {
    pid: u32,
    pidfd: OwnedFd,
}

impl Child {
    pub fn id(&self) -> u32 {
        self.pid
    }

    /// Whether it has ended; it is still to be reaped then.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn has_ended(&self) -> io::Result<bool> {
        super::poll::poll_until(self.pidfd.as_fd(), super::poll::Interest::Read, std::time::Duration::ZERO)
    }

    /// Sends SIGKILL.
    ///
    /// # Errors
    /// `ESRCH` when it has been reaped.
    pub fn kill(&self) -> io::Result<()> {
        session::pidfd_send_signal(self.pidfd.as_fd(), libc::SIGKILL)
    }

    /// By which it can be waited for together with others.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Waits until it has ended, and reaps it.
    ///
    /// # Errors
    /// `ECHILD` when it has been reaped.
    pub fn wait(&self) -> io::Result<()> {
        loop {
            let id = rustix::process::WaitId::PidFd(self.pidfd.as_fd());
            match rustix::process::waitid(id, rustix::process::WaitIdOptions::EXITED) {
                Err(rustix::io::Errno::INTR) => {}
                done => return Ok(done.map(|_| ())?),
            }
        }
    }
}

/// Starts a program in a process group of its own, in the directory `/`, with no signal blocked. When this returns it runs.
///
/// # Errors
/// Those of clone3(2) (`ENODEV` for a cgroup that is gone) and execveat(2).
pub fn spawn(spawn: &Spawn<'_>) -> io::Result<Child> {
    let (argv, envp) = (pointers(spawn.argv), pointers(spawn.envp));
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null")?;
    let (reader, writer) = pidfd::pipe()?;
    let mut old = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: fills the set it is given.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // A handler of ours must not run in the child. SAFETY: the one set is filled, the other is written to.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), old.as_mut_ptr()) };
    let born = clone3(spawn.cgroup);
    if matches!(born, Ok(None)) {
        let standard = [spawn.stdin.as_raw_fd(), null.as_raw_fd()];
        // SAFETY: this is the child, with copies of everything that these point to.
        let errno = unsafe { become_program(spawn.program.as_raw_fd(), &argv, &envp, standard) };
        // SAFETY: a live descriptor and four bytes that live; if the parent has gone, nobody is left to tell.
        let _ = unsafe { libc::write(writer.as_raw_fd(), (&raw const errno).cast(), size_of::<c_int>()) };
        super::clone::exit_now(CHILD_FAILED);
    }
    // SAFETY: `old` was written by the call above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, old.as_ptr(), std::ptr::null_mut()) };
    drop(writer); // the child's is the only one left: it goes with exec
    let child = born?.ok_or_else(|| io::Error::from_raw_os_error(libc::ECHILD))?; // `None` is the child, which has ended
    let mut errno = [0; size_of::<c_int>()];
    match std::io::Read::read(&mut std::fs::File::from(reader), &mut errno)? {
        0 => Ok(child),
        _ => {
            let _ = child.wait(); // it is ours, so there is nothing that could fail
            Err(io::Error::from_raw_os_error(c_int::from_ne_bytes(errno)))
        }
    }
}

/// A copy of this process, as fork(2) makes it; `None` in the child.
fn clone3(cgroup: Option<BorrowedFd<'_>>) -> io::Result<Option<Child>> {
    let mut pidfd: c_int = -1;
    // SAFETY: clone_args is plain integers, for which all zeroes is a value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = CLONE_PIDFD;
    args.pidfd = (&raw mut pidfd).addr() as u64;
    args.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    }
    // SAFETY: no CLONE_VM and no stack, so this is fork(2). Other threads may hold locks that are held for ever in the child:
    // `spawn` calls only what signal-safety(7) allows there, and allocates nothing. `args` and `pidfd` outlive the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match u32::try_from(pid) {
        Err(_) => Err(io::Error::last_os_error()),
        Ok(0) => Ok(None),
        // SAFETY: the kernel has just stored it there, and it is nobody else's.
        Ok(pid) => Ok(Some(Child { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })),
    }
}

/// The child's half; returns the errno of what failed.
///
/// # Safety
/// To be called in a child of one thread; `argv` and `envp` end in null and point to strings.
unsafe fn become_program(
    program: c_int,
    argv: &[*const libc::c_char],
    envp: &[*const libc::c_char],
    [stdin, stdout]: [c_int; 2],
) -> c_int {
    // SAFETY: as the caller says; the calls take integers, a literal and an empty set on this stack.
    #[allow(clippy::multiple_unsafe_ops_per_block, reason = "one sequence with one argument: nothing in it is shared")]
    unsafe {
        let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        let ready = libc::dup2(stdin, 0) == 0
            && libc::dup2(stdout, 1) == 1
            && libc::setpgid(0, 0) == 0
            && libc::chdir(c"/".as_ptr()) == 0
            && libc::sigemptyset(none.as_mut_ptr()) == 0
            && libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut()) == 0;
        if ready {
            let (path, flags) = (c"".as_ptr(), libc::AT_EMPTY_PATH);
            libc::syscall(libc::SYS_execveat, program, path, argv.as_ptr(), envp.as_ptr(), flags);
        }
    }
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn run(program: &str, script: &str) -> io::Result<(Child, std::os::unix::net::UnixStream)> {
        let program = std::fs::File::open(program).expect("it is there");
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("socketpair");
        let word = |text: &str| CString::new(text).expect("no NUL");
        let (argv, envp) = ([word("sh"), word("-c"), word(script)], [word("A=b")]);
        let (program, stdin) = (program.as_fd(), theirs.as_fd());
        Ok((spawn(&Spawn { program, argv: &argv, envp: &envp, stdin, cgroup: None })?, ours))
    }

    #[test]
    fn a_child_has_its_own_group_the_root_directory_the_given_environment_and_stdin() {
        let script = r#"read line; echo "$line $A $PWD $(cut -d' ' -f5 /proc/$$/stat)" >&0"#;
        let (child, mut socket) = run("/bin/sh", script).expect("it starts");
        socket.write_all(b"hello\n").expect("written");
        child.wait().expect("it ends");
        let mut said = String::new();
        socket.read_to_string(&mut said).expect("read");
        assert_eq!(said, format!("hello b / {}\n", child.id()));
    }

    #[test]
    fn what_cannot_be_executed_is_an_error_and_no_child() {
        let e = run("/etc/passwd", "").expect_err("no program");
        assert_eq!(e.raw_os_error(), Some(libc::EACCES));
    }

    #[test]
    fn a_killed_child_is_reaped_once() {
        let (child, _socket) = run("/bin/sh", "read forever").expect("it starts");
        assert!(!child.has_ended().expect("poll"));
        child.kill().expect("killed");
        child.wait().expect("reaped");
        assert_eq!(child.wait().expect_err("gone").raw_os_error(), Some(libc::ECHILD));
    }
}
