//! Whether a thread's quota of processor time applies to it: `sched_setscheduler`, sched_setscheduler(2), sched(7).

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

#[cfg(test)]
mod tests {
    use super::*;

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
