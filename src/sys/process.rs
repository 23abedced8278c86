//! This process and others: kill(2), /proc/pid/stat, clock_gettime(2).

use std::io;
use std::ptr::NonNull;
use std::time::Duration;

/// `kill(getpid(), SIGKILL)`, kill(2). Returns only if the signal is still on its way.
pub fn kill_self() {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL); // one may always kill oneself
}

/// Appends one line to a file with one write(2), so that lines of several processes do not mix. Errors are ignored: tests read it.
pub fn append_line(path: &str, line: &str) {
    use std::io::Write;
    if let Ok(mut file) = std::fs::OpenOptions::new().create(true).append(true).open(path) {
        let _ = file.write_all(format!("{line}\n").as_bytes()); // a test that finds its list short will fail by itself
    }
}

/// Whether the effective user id is 0, geteuid(2).
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Field 22 of /proc/pid/stat: clock ticks after boot at which the process started, proc_pid_stat(5).
///
/// # Errors
/// `ENOENT` or `ESRCH` when there is no such process.
pub fn start_time(pid: u32) -> io::Result<u64> {
    stat_field(pid, 22)
}

/// Field 4 of /proc/pid/stat: the pid of its parent, proc_pid_stat(5).
///
/// # Errors
/// `ENOENT` or `ESRCH` when there is no such process.
pub fn parent_of(pid: u32) -> io::Result<u32> {
    stat_field(pid, 4)
}

/// Whether a process has executed a program since it was forked; of a zombie, whether it had. `PF_FORKNOEXEC` (linux/sched.h, the same since
/// Linux 2.4) of field 9 of /proc/pid/stat, proc_pid_stat(5).
///
/// # Errors
/// `ENOENT` or `ESRCH` when there is no such process.
pub fn has_executed(pid: u32) -> io::Result<bool> {
    const PF_FORKNOEXEC: u32 = 0x40;
    Ok(stat_field::<u32>(pid, 9)? & PF_FORKNOEXEC == 0)
}

/// A field from the fourth to the twenty-second.
fn stat_field<T: std::str::FromStr>(pid: u32, number: usize) -> io::Result<T> {
    /// More than field 22 can be away from the start: a pid, 64 bytes of a name, and twenty numbers.
    const MOST_BYTES: usize = 1024;
    let mut bytes = [0; MOST_BYTES];
    // The kernel writes it whole into one read of this size.
    let filled = std::io::Read::read(&mut std::fs::File::open(format!("/proc/{pid}/stat"))?, &mut bytes)?;
    let stat = String::from_utf8_lossy(&bytes[..filled]);
    // The name in parentheses may contain anything, so the fields are counted after the last ')'; field 3 follows it.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    fields
        .split_whitespace()
        .nth(number - 3)
        .and_then(|f| f.parse().ok())
        .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
}

/// CPU time of all threads of this process since it started: `clock_gettime(CLOCK_PROCESS_CPUTIME_ID)`.
pub fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// The children of this process that have ended and wait to be reaped: those of all its threads in /proc/self/task/tid/children
/// (proc_tid_children(5)) whose state is `Z`. None on a kernel without that file (CONFIG_PROC_CHILDREN).
pub fn ended_children() -> Vec<u32> {
    let children = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children")).ok();
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let pids: Vec<u32> = tasks
        .filter_map(children)
        .flat_map(|text| text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>())
        .collect();
    let ended = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
    };
    pids.into_iter().filter(ended).collect()
}

/// The arguments of this process as others see them, /proc/pid/cmdline of proc_pid_cmdline(5): memory of its own, which may be changed.
#[derive(Debug)]
pub struct CommandLine {
    first: NonNull<u8>,
    text: Vec<u8>,
}

impl CommandLine {
    /// Finds where they are (`arg_start`, field 48 of proc_pid_stat(5)).
    ///
    /// # Errors
    /// `EINVAL` when the kernel does not say; those of reading /proc.
    pub fn own() -> io::Result<CommandLine> {
        let text = std::fs::read("/proc/self/cmdline")?;
        let stat = std::fs::read_to_string("/proc/self/stat")?;
        let field = |n: usize| stat.rsplit_once(')')?.1.split_whitespace().nth(n - 3)?.parse::<usize>().ok();
        let unknown = || io::Error::from_raw_os_error(libc::EINVAL);
        let (start, end) = field(48).zip(field(49)).ok_or_else(unknown)?;
        if end.checked_sub(start) != Some(text.len()) {
            return Err(unknown());
        }
        let first = NonNull::new(std::ptr::with_exposed_provenance_mut(start)).ok_or_else(unknown)?;
        Ok(CommandLine { first, text })
    }

    /// Shows `to` where `from` stood first; nothing happens unless they are equally long.
    pub fn replace(&mut self, from: &str, to: &str) {
        let at = self.text.windows(from.len().max(1)).position(|part| part == from.as_bytes());
        if let Some(at) = at.filter(|_| from.len() == to.len()) {
            self.text[at..at + to.len()].copy_from_slice(to.as_bytes());
            // SAFETY: the kernel said that `text.len()` bytes from `first` are this process's arguments, and `at` is one of them.
            let there = unsafe { self.first.add(at) };
            // SAFETY: they stay mapped and writable on its stack, and `to` is no longer than what is there. Nothing in Rust refers to
            // them but what std::env copies from while it is called, and this process has one thread.
            unsafe { std::ptr::copy_nonoverlapping(to.as_ptr(), there.as_ptr(), to.len()) };
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn work_takes_cpu_time() {
        let before = super::cpu_time();
        let sum = std::hint::black_box((0..1_000_000u64).fold(0, u64::wrapping_add));
        assert!(super::cpu_time() > before, "{sum}");
    }

    #[test]
    fn others_see_the_arguments_that_were_replaced() {
        let own = || std::fs::read("/proc/self/cmdline").expect("proc");
        let before = own();
        let name = String::from_utf8_lossy(&before).split('\0').next().expect("a name").to_owned();
        let other = "x".repeat(name.len());
        let mut line = super::CommandLine::own().expect("found");
        line.replace(&name, &format!("{other}y"));
        assert_eq!(own(), before, "another length");
        line.replace(&name, &other);
        assert!(own().starts_with(other.as_bytes()));
        line.replace(&other, &name);
        assert_eq!(own(), before);
    }

    #[test]
    fn a_process_has_a_start_time_and_a_dead_one_has_none() {
        assert!(super::start_time(std::process::id()).expect("ourselves") > 0);
        assert!(super::start_time(u32::MAX >> 2).is_err());
    }

    #[test]
    fn a_process_that_has_executed_is_told_from_one_that_was_forked_only() {
        use std::io::{BufRead, BufReader};
        use std::process::{Command, Stdio};
        // A shell, and a fork of it that does not get further before its input has ended.
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec 3<&0; ( read -r line <&3; exec true ) & echo $!; wait"]);
        let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("sh");
        let mut line = String::new();
        BufReader::new(shell.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        let fork = line.trim().parse().expect("a pid");
        assert!(super::has_executed(shell.id()).expect("there"));
        assert!(!super::has_executed(fork).expect("there"));
        drop(shell.stdin.take());
        assert!(shell.wait().expect("wait").success());
    }
}
