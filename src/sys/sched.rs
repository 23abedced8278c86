//! How a thread gets at a processor: whether its quota applies to it (`sched_setscheduler`, sched_setscheduler(2), sched(7)), and how soon
//! after waking (`sched_setattr`, sched_setattr(2)).

use std::io;

/// The scheduling policies that are used here (linux/sched.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// `SCHED_OTHER`: `cpu.max` of its cgroup and of those above applies. Anybody may go back to it.
    Ordinary,
    /// `SCHED_RR` of the lowest priority: `cpu.max` does not apply (Documentation/scheduler/sched-bwc.rst: it is for SCHED_OTHER).
    Unthrottled,
}

/// Sets the policy of the calling thread. It is inherited by fork(2) and kept by execve(2).
///
/// # Errors
/// `EPERM` for [`Policy::Unthrottled`] without CAP_SYS_NICE, and in a cgroup that has no real-time quota on a kernel with
/// CONFIG_RT_GROUP_SCHED.
pub fn set_policy(policy: Policy) -> io::Result<()> {
    set_policy_of(0, policy)
}

/// The same of any thread.
///
/// The raw call: musl's function of this name refuses, since POSIX means it for processes.
///
/// # Errors
/// As [`set_policy`]; `ESRCH` when there is no such thread.
pub fn set_policy_of(thread: u32, policy: Policy) -> io::Result<()> {
    let (policy, priority) = match policy {
        Policy::Ordinary => (libc::SCHED_OTHER, 0),
        Policy::Unthrottled => (libc::SCHED_RR, 1),
    };
    let priority: libc::c_int = priority;
    // SAFETY: struct sched_param of the kernel is one int, read during the call; 0 is the calling thread.
    let done = unsafe { libc::syscall(libc::SYS_sched_setscheduler, thread, policy, &raw const priority) };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What the shortest slice is, in nanoseconds (kernel/sched/syscalls.c, `__setparam_fair`).
const SHORTEST_SLICE: u64 = 100_000;
/// `SCHED_FLAG_RESET_ON_FORK` of linux/sched.h: not to be had with `SCHED_FLAG_KEEP_POLICY`, which keeps it as it was.
const RESET_ON_FORK: u64 = 1;

/// `struct sched_attr` of linux/sched/types.h, as far as SCHED_ATTR_SIZE_VER0.
#[repr(C)]
#[derive(Debug, Default)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Has the calling thread run soon whenever it wakes, before what has run for a while, in return for shorter turns; it gets no larger share
/// (Documentation/scheduler/sched-eevdf.rst). For threads that mostly wait and answer. Neither threads nor processes that it makes inherit it,
/// nor a nice value below 0, which is the price of that: both go by the one flag.
/// Before Linux 6.12 it changes nothing, nor does it for a thread of another policy than `SCHED_OTHER`, which somebody has given it.
///
/// # Errors
/// Those of sched_setattr(2).
pub fn answer_soon() -> io::Result<()> {
    // SAFETY: no memory is passed; 0 is the calling thread. The raw call for the same reason as above.
    if unsafe { libc::syscall(libc::SYS_sched_getscheduler, 0) } != libc::c_long::from(libc::SCHED_OTHER) {
        return Ok(());
    }
    let size = u32::try_from(size_of::<Attributes>()).unwrap_or_default();
    let attributes = Attributes {
        size,
        flags: RESET_ON_FORK,
        nice: rustix::process::getpriority_process(None)?,
        runtime: SHORTEST_SLICE,
        ..Attributes::default()
    };
    // SAFETY: the structure is read during the call, and is as long as it says; 0 is the calling thread, and no flags are known.
    let done = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `se.slice` of /proc/thread-self/sched, in nanoseconds; `None` on a kernel that does not tell.
    fn slice() -> Option<u64> {
        let text = std::fs::read_to_string("/proc/thread-self/sched").ok()?;
        let line = text.lines().find(|line| line.starts_with("se.slice"))?;
        line.rsplit_once(':')?.1.trim().parse().ok()
    }

    /// Major and minor version.
    fn kernel() -> (u32, u32) {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("/proc");
        let mut numbers = release.split('.').map(|number| number.trim().parse().expect("a number"));
        (numbers.next().expect("major"), numbers.next().expect("minor"))
    }

    #[test]
    fn a_thread_that_answers_soon_has_a_short_slice_that_others_do_not_inherit() {
        std::thread::spawn(|| {
            let before = slice();
            answer_soon().expect("anybody may");
            // Linux 6.6 tells of slices, 6.12 takes them.
            let taken = if kernel() < (6, 12) { before } else { before.map(|_| SHORTEST_SLICE) };
            assert_eq!(slice(), taken);
            let inherited = std::thread::spawn(slice).join().expect("no panic");
            assert_eq!(inherited, before);
        })
        .join()
        .expect("no panic");
    }

    /// Field 41 of /proc/self/task/N/stat: the policy's number.
    fn policy() -> String {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").expect("/proc");
        let fields = stat.rsplit_once(") ").map(|(_, rest)| rest.to_owned()).expect("a name");
        fields.split(' ').nth(41 - 3).expect("policy").to_owned()
    }

    #[test]
    fn a_thread_leaves_its_quota_and_comes_back_to_it() {
        set_policy(Policy::Unthrottled).expect("tests run as root");
        assert_eq!(policy(), libc::SCHED_RR.to_string());
        set_policy(Policy::Ordinary).expect("anybody may");
        assert_eq!(policy(), libc::SCHED_OTHER.to_string());
    }
}
