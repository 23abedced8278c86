//! The default seccomp profile: what a container may call when nothing else was asked for (CRI `RuntimeDefault`).
//!
//! The table says the same as Docker's and containerd's default of 2026: an allow list, EPERM for the rest, ENOSYS for clone3
//! (its flags are in memory, where a filter cannot look; the C libraries then use clone) and for calls newer than the list; socket
//! families by allow list, without AF_VSOCK (reaches the host's virtual machines) and AF_ALG (CVE-2026-31431); no io_uring.
//!
//! One difference: i386's socketcall(2) may not make sockets (ENOSYS), for its address family is behind a pointer, and every
//! process on x86_64 can reach it by `int 0x80`; else the families would be blocked in name only. 32-bit programs of musl use
//! socket(2), those of glibc need a Localhost profile that allows socketcall.
//!
//! The table is one list of names; numbers are looked up by the compiler, so that a program is made without comparing strings.
//! A table, and longer for it. How rules become instructions: `seccomp`, `seccomp_program`.

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompOperator as Operator,
    LinuxSyscall,
};

use super::seccomp::{ENOSYS, EPERM, Machine, Program, push_table};
use super::seccomp_abi::{Abi, SEQUENCE_END};
use super::seccomp_program::{
    Architecture, Comparison, Condition, Decision, RET_ALLOW, RET_ERRNO, RET_KILL_PROCESS, Rule, assemble,
};
use crate::error::Result;
use std::sync::OnceLock;

/// The capabilities that most containers are bounded by, those of Docker, which the engine gives too. The program for these is kept: a
/// shim makes it before it has a pod, and uses it for every start and exec.
pub const USUAL: u64 = 0xa804_25fb;
static OF_USUAL: OnceLock<Program> = OnceLock::new();

/// When a group of calls is allowed. Capabilities are those of the container's bounding set, as `1 << CAP_X`.
#[derive(Debug, Clone, Copy)]
enum Grant {
    Always,
    /// With any of these capabilities.
    With(u64),
    /// For these values of the first argument.
    Values(&'static [Value]),
    /// Without conditions with the capability, else for these values of the first argument.
    WithElseValues(u64, &'static [Value]),
    /// With the capability, else ENOSYS.
    WithElseEnosys(u64),
}

/// A comparison of a call's first argument, and what follows if it holds.
#[derive(Debug, Clone, Copy)]
struct Value {
    comparison: Comparison,
    errno: Option<u32>,
}

const fn allow(comparison: Comparison) -> Value {
    Value { comparison, errno: None }
}

const fn equal(value: u64) -> Value {
    allow(Comparison::Equal(value))
}

// linux/capability.h
const CAP_DAC_READ_SEARCH: u64 = 1 << 2;
const CAP_SYS_MODULE: u64 = 1 << 16;
const CAP_SYS_RAWIO: u64 = 1 << 17;
const CAP_SYS_CHROOT: u64 = 1 << 18;
const CAP_SYS_PTRACE: u64 = 1 << 19;
const CAP_SYS_PACCT: u64 = 1 << 20;
const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_SYS_BOOT: u64 = 1 << 22;
const CAP_SYS_NICE: u64 = 1 << 23;
const CAP_SYS_TIME: u64 = 1 << 25;
const CAP_SYS_TTY_CONFIG: u64 = 1 << 26;
const CAP_SYSLOG: u64 = 1 << 34;
const CAP_PERFMON: u64 = 1 << 38;
const CAP_BPF: u64 = 1 << 39;

/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET, linux/sched.h. NEWTIME is not a flag of clone(2).
const CLONE_NEW: u64 = 0x0002_0000 | 0x0200_0000 | 0x0400_0000 | 0x0800_0000 | 0x1000_0000 | 0x2000_0000 | 0x4000_0000;

/// `SYS_SOCKET`, linux/net.h.
const SYS_SOCKET: u64 = 1;

/// Address families, linux/socket.h: AF_UNIX (1) to AF_ROSE (11), and the later ones that a kernel still has, but for AF_ALG (38)
/// and AF_VSOCK (40). Comparing 64 bits matters: the kernel looks at 32 of them, so "not 38" would let `1 << 32 | 38` through.
const SOCKET: &[Value] = &[
    allow(Comparison::Less(12)),
    equal(13), // NETBEUI
    equal(14), // SECURITY
    equal(15), // KEY
    equal(16), // NETLINK
    equal(17), // PACKET
    equal(18), // ASH
    equal(21), // RDS
    equal(22), // SNA
    equal(24), // PPPOX
    equal(26), // LLC
    equal(27), // IB
    equal(28), // MPLS
    equal(29), // CAN
    equal(30), // TIPC
    equal(31), // BLUETOOTH
    equal(32), // IUCV
    equal(33), // RXRPC
    equal(35), // PHONET
    equal(36), // IEEE802154
    equal(39), // NFC
    equal(41), // KCM
    equal(42), // QIPCRTR
    equal(43), // SMC
    equal(44), // XDP
    equal(45), // MCTP
];

/// Ask (all ones), PER_LINUX, PER_LINUX32, each with and without UNAME26, linux/personality.h.
const PERSONALITY: &[Value] = &[equal(0), equal(8), equal(0x2_0000), equal(0x2_0008), equal(0xffff_ffff)];

/// The profile. A name is in one group; names of other machines are ignored. socketcall comes before socket, or libseccomp, which
/// external runtimes use, would derive an allowance of the former from the latter.
#[rustfmt::skip] // one name a line would be four pages
const PROFILE: &[(Grant, &[&str])] = &[
    (
        // The only long group: sorted, for it is searched (and a test sees to it).
        Grant::Always,
        &[
            "_llseek", "_newselect", "accept", "accept4", "access", "adjtimex", "alarm", "arch_prctl",
            "arm_fadvise64_64", "arm_sync_file_range", "bind", "breakpoint", "brk", "cacheflush", "cachestat",
            "capget", "capset", "chdir", "chmod", "chown", "chown32", "clock_adjtime", "clock_adjtime64",
            "clock_getres", "clock_getres_time64", "clock_gettime", "clock_gettime64", "clock_nanosleep",
            "clock_nanosleep_time64", "close", "close_range", "connect", "copy_file_range", "creat", "dup", "dup2",
            "dup3", "epoll_create", "epoll_create1", "epoll_ctl", "epoll_ctl_old", "epoll_pwait", "epoll_pwait2",
            "epoll_wait", "epoll_wait_old", "eventfd", "eventfd2", "execve", "execveat", "exit", "exit_group",
            "faccessat", "faccessat2", "fadvise64", "fadvise64_64", "fallocate", "fanotify_mark", "fchdir", "fchmod",
            "fchmodat", "fchmodat2", "fchown", "fchown32", "fchownat", "fcntl", "fcntl64", "fdatasync", "fgetxattr",
            "flistxattr", "flock", "fork", "fremovexattr", "fsetxattr", "fstat", "fstat64", "fstatat64", "fstatfs",
            "fstatfs64", "fsync", "ftruncate", "ftruncate64", "futex", "futex_requeue", "futex_time64", "futex_wait",
            "futex_waitv", "futex_wake", "futimesat", "get_robust_list", "get_thread_area", "getcpu", "getcwd",
            "getdents", "getdents64", "getegid", "getegid32", "geteuid", "geteuid32", "getgid", "getgid32",
            "getgroups", "getgroups32", "getitimer", "getpeername", "getpgid", "getpgrp", "getpid", "getppid",
            "getpriority", "getrandom", "getresgid", "getresgid32", "getresuid", "getresuid32", "getrlimit",
            "getrusage", "getsid", "getsockname", "getsockopt", "gettid", "gettimeofday", "getuid", "getuid32",
            "getxattr", "getxattrat", "inotify_add_watch", "inotify_init", "inotify_init1", "inotify_rm_watch",
            "io_cancel", "io_destroy", "io_getevents", "io_pgetevents", "io_pgetevents_time64", "io_setup",
            "io_submit", "ioctl", "ioprio_get", "ioprio_set", "ipc", "kill", "landlock_add_rule",
            "landlock_create_ruleset", "landlock_restrict_self", "lchown", "lchown32", "lgetxattr", "link", "linkat",
            "listen", "listmount", "listxattr", "listxattrat", "llistxattr", "lremovexattr", "lseek", "lsetxattr",
            "lstat", "lstat64", "madvise", "map_shadow_stack", "membarrier", "memfd_create", "memfd_secret",
            "mincore", "mkdir", "mkdirat", "mknod", "mknodat", "mlock", "mlock2", "mlockall", "mmap", "mmap2",
            "modify_ldt", "mprotect", "mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive",
            "mq_timedreceive_time64", "mq_timedsend", "mq_timedsend_time64", "mq_unlink", "mremap", "mseal", "msgctl",
            "msgget", "msgrcv", "msgsnd", "msync", "munlock", "munlockall", "munmap", "name_to_handle_at",
            "nanosleep", "newfstatat", "open", "openat", "openat2", "pause", "pidfd_open", "pidfd_send_signal",
            "pipe", "pipe2", "pkey_alloc", "pkey_free", "pkey_mprotect", "poll", "ppoll", "ppoll_time64", "prctl",
            "pread64", "preadv", "preadv2", "prlimit64", "process_mrelease", "process_vm_readv", "process_vm_writev",
            "pselect6", "pselect6_time64", "ptrace", "pwrite64", "pwritev", "pwritev2", "read", "readahead",
            "readlink", "readlinkat", "readv", "recv", "recvfrom", "recvmmsg", "recvmmsg_time64", "recvmsg",
            "remap_file_pages", "removexattr", "removexattrat", "rename", "renameat", "renameat2", "restart_syscall",
            "rmdir", "rseq", "rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigqueueinfo", "rt_sigreturn",
            "rt_sigsuspend", "rt_sigtimedwait", "rt_sigtimedwait_time64", "rt_tgsigqueueinfo",
            "sched_get_priority_max", "sched_get_priority_min", "sched_getaffinity", "sched_getattr",
            "sched_getparam", "sched_getscheduler", "sched_rr_get_interval", "sched_rr_get_interval_time64",
            "sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler", "sched_yield", "seccomp",
            "select", "semctl", "semget", "semop", "semtimedop", "semtimedop_time64", "send", "sendfile",
            "sendfile64", "sendmmsg", "sendmsg", "sendto", "set_robust_list", "set_thread_area", "set_tid_address",
            "set_tls", "setfsgid", "setfsgid32", "setfsuid", "setfsuid32", "setgid", "setgid32", "setgroups",
            "setgroups32", "setitimer", "setpgid", "setpriority", "setregid", "setregid32", "setresgid",
            "setresgid32", "setresuid", "setresuid32", "setreuid", "setreuid32", "setrlimit", "setsid", "setsockopt",
            "setuid", "setuid32", "setxattr", "setxattrat", "shmat", "shmctl", "shmdt", "shmget", "shutdown",
            "sigaltstack", "signalfd", "signalfd4", "sigprocmask", "sigreturn", "socketpair", "splice", "stat",
            "stat64", "statfs", "statfs64", "statmount", "statx", "symlink", "symlinkat", "sync", "sync_file_range",
            "sync_file_range2", "syncfs", "sysinfo", "tee", "tgkill", "time", "timer_create", "timer_delete",
            "timer_getoverrun", "timer_gettime", "timer_gettime64", "timer_settime", "timer_settime64",
            "timerfd_create", "timerfd_gettime", "timerfd_gettime64", "timerfd_settime", "timerfd_settime64", "times",
            "tkill", "truncate", "truncate64", "ugetrlimit", "umask", "uname", "unlink", "unlinkat", "uretprobe",
            "utime", "utimensat", "utimensat_time64", "utimes", "vfork", "vmsplice", "wait4", "waitid", "waitpid",
            "write", "writev",
        ],
    ),
    (
        Grant::Values(&[
            Value { comparison: Comparison::Equal(SYS_SOCKET), errno: Some(ENOSYS) },
            allow(Comparison::NotEqual(SYS_SOCKET)),
        ]),
        &["socketcall"],
    ),
    (Grant::Values(SOCKET), &["socket"]),
    (Grant::Values(PERSONALITY), &["personality"]),
    (
        Grant::WithElseValues(CAP_SYS_ADMIN, &[allow(Comparison::Masked { mask: CLONE_NEW, value: 0 })]),
        &["clone"],
    ),
    (Grant::WithElseEnosys(CAP_SYS_ADMIN), &["clone3"]),
    (
        Grant::With(CAP_SYS_ADMIN),
        &[
            "fanotify_init", "fsconfig", "fsmount", "fsopen", "fspick", "lookup_dcookie", "lsm_get_self_attr",
            "lsm_list_modules", "lsm_set_self_attr", "mount", "mount_setattr", "move_mount", "open_tree", "quotactl",
            "quotactl_fd", "setdomainname", "sethostname", "setns", "umount", "umount2", "unshare",
        ],
    ),
    (Grant::With(CAP_SYS_ADMIN | CAP_SYSLOG), &["syslog"]),
    (Grant::With(CAP_SYS_ADMIN | CAP_BPF), &["bpf"]),
    (Grant::With(CAP_SYS_ADMIN | CAP_PERFMON), &["perf_event_open"]),
    (Grant::With(CAP_SYS_PTRACE), &["kcmp", "pidfd_getfd", "process_madvise"]),
    (Grant::With(CAP_DAC_READ_SEARCH), &["open_by_handle_at"]),
    (Grant::With(CAP_SYS_BOOT), &["reboot"]),
    (Grant::With(CAP_SYS_CHROOT), &["chroot"]),
    (Grant::With(CAP_SYS_MODULE), &["delete_module", "finit_module", "init_module"]),
    (Grant::With(CAP_SYS_PACCT), &["acct"]),
    (Grant::With(CAP_SYS_RAWIO), &["ioperm", "iopl"]),
    (Grant::With(CAP_SYS_TIME), &["clock_settime", "clock_settime64", "settimeofday", "stime"]),
    (Grant::With(CAP_SYS_TTY_CONFIG), &["vhangup"]),
    (Grant::With(CAP_SYS_NICE), &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
];

/// In [`CLASSES`]: in no group.
const NO_GROUP: u8 = u8::MAX;
const TABLE: usize = SEQUENCE_END as usize;

/// For each number of a table, the group of [`PROFILE`] that its name is in; worked out by the compiler.
static X86_64: [u8; TABLE] = classes(Abi::X86_64);
static I386: [u8; TABLE] = classes(Abi::I386);
static AARCH64: [u8; TABLE] = classes(Abi::Aarch64);
static ARM: [u8; TABLE] = classes(Abi::Arm);
/// The same for the islands; as long as the longest of them.
static X32_ISLAND: [u8; 36] = island_classes(Abi::X32);
static ARM_ISLAND: [u8; 36] = island_classes(Abi::Arm);

#[allow(clippy::cast_possible_truncation)] // below TABLE, and there is no try_from in a const fn
const fn classes(abi: Abi) -> [u8; TABLE] {
    let mut classes = [NO_GROUP; TABLE];
    let mut number = 0;
    while number < TABLE {
        if let Some(name) = abi.name(number as u32) {
            classes[number] = group(name);
        }
        number += 1;
    }
    classes
}

const fn island_classes(abi: Abi) -> [u8; 36] {
    let mut classes = [NO_GROUP; 36];
    let names = abi.island().1;
    let mut i = 0;
    while i < names.len() {
        classes[i] = group(names[i]);
        i += 1;
    }
    classes
}

/// The group a name is in: the first one is searched by halves, the others are short.
#[allow(clippy::cast_possible_truncation)] // there are far fewer than 255 groups
const fn group(name: &str) -> u8 {
    let sorted = PROFILE[0].1;
    let (mut low, mut high) = (0, sorted.len());
    while low < high {
        let middle = low + (high - low) / 2;
        match order(sorted[middle].as_bytes(), name.as_bytes()) {
            0 => return 0,
            1 => high = middle,
            _ => low = middle + 1,
        }
    }
    let mut group = 1;
    while group < PROFILE.len() {
        let mut i = 0;
        while i < PROFILE[group].1.len() {
            if order(PROFILE[group].1[i].as_bytes(), name.as_bytes()) == 0 {
                return group as u8;
            }
            i += 1;
        }
        group += 1;
    }
    NO_GROUP
}

/// -1, 0 or 1 as `a` is less than, equal to or greater than `b`; `Ord` is not const.
const fn order(a: &[u8], b: &[u8]) -> i8 {
    let mut i = 0;
    while i < a.len() && i < b.len() {
        if a[i] != b[i] {
            return if a[i] < b[i] { -1 } else { 1 };
        }
        i += 1;
    }
    if a.len() == b.len() {
        0
    } else if a.len() < b.len() {
        -1
    } else {
        1
    }
}

/// The group of a number, without the table's base.
fn class(abi: Abi, number: u32) -> u8 {
    let table = match abi {
        Abi::X86_64 | Abi::X32 => &X86_64,
        Abi::I386 => &I386,
        Abi::Aarch64 => &AARCH64,
        Abi::Arm => &ARM,
    };
    let island = if abi == Abi::X32 { &X32_ISLAND } else { &ARM_ISLAND };
    let at = |table: &[u8], index: u32| usize::try_from(index).ok().and_then(|i| table.get(i)).copied();
    at(table, number)
        .filter(|_| number < SEQUENCE_END)
        .or_else(|| at(island, number.checked_sub(abi.island().0)?))
        .unwrap_or(NO_GROUP)
}

/// What a group means to a container with these capabilities; `None` for the default action.
fn decide(grant: Grant, capabilities: u64) -> Option<Decision> {
    let values = |values: &[Value]| Decision {
        rules: values.iter().map(|value| rule(*value)).collect(),
        otherwise: RET_ERRNO | EPERM,
    };
    let with = |mask: u64| capabilities & mask != 0;
    match grant {
        Grant::Always => Some(Decision::always(RET_ALLOW)),
        Grant::With(mask) => with(mask).then(|| Decision::always(RET_ALLOW)),
        Grant::WithElseValues(mask, _) | Grant::WithElseEnosys(mask) if with(mask) => Some(Decision::always(RET_ALLOW)),
        Grant::Values(all) | Grant::WithElseValues(_, all) => Some(values(all)),
        Grant::WithElseEnosys(_) => Some(Decision::always(RET_ERRNO | ENOSYS)),
    }
}

fn rule(value: Value) -> Rule {
    Rule {
        conditions: vec![Condition { argument: 0, comparison: value.comparison }],
        verdict: value.errno.map_or(RET_ALLOW, |errno| RET_ERRNO | errno),
    }
}

/// The default profile, compiled, for the machine this runs on and a container with these capabilities (`1 << CAP_X`) in its
/// bounding set. The same program in effect as that of [`default_profile`], without a name compared.
///
/// # Errors
/// None in practice: the length of the program is bounded by the table, and a test knows it.
pub fn compile_default(capabilities: u64) -> Result<Program> {
    if capabilities != USUAL {
        return compile_default_for(Machine::HOST, capabilities);
    }
    match OF_USUAL.get() {
        Some(program) => Ok(program.clone()),
        None => {
            let program = compile_default_for(Machine::HOST, USUAL)?;
            Ok(OF_USUAL.get_or_init(|| program).clone())
        }
    }
}

fn compile_default_for(machine: Machine, capabilities: u64) -> Result<Program> {
    let mut architectures: Vec<Architecture> = Vec::with_capacity(2);
    for &abi in machine.abis() {
        if abi != Abi::X32 {
            let default = Decision::always(RET_ERRNO | EPERM);
            architectures.push(Architecture::new(abi.audit_arch(), abi.wide(), default));
        }
        let Some(architecture) = architectures.last_mut() else { continue };
        let unknown = architecture.decision(Decision::always(RET_ERRNO | ENOSYS));
        let groups: Vec<usize> = PROFILE
            .iter()
            .map(|(grant, _)| decide(*grant, capabilities).map_or(0, |decision| architecture.decision(decision)))
            .collect();
        let of_number = |number: u32| groups.get(usize::from(class(abi, number))).copied().unwrap_or(0);
        let newest = (0..SEQUENCE_END).rev().find(|number| class(abi, *number) != NO_GROUP).unwrap_or(0);
        push_table(architecture, abi, newest, unknown, of_number);
        if abi == Abi::X32 {
            architecture.push(u32::MAX, unknown); // -1, see seccomp::Rules::x86_64
        }
    }
    Ok(Program { code: assemble(&architectures, RET_KILL_PROCESS)?, flags: 0 })
}

/// The default profile as the OCI runtime spec writes it, to be shown and to be given to other runtimes.
pub fn default_profile(capabilities: u64, machine: Machine) -> LinuxSeccomp {
    let mut syscalls = Vec::new();
    for (grant, names) in PROFILE {
        let Some(decision) = decide(*grant, capabilities) else { continue };
        let mut push = |verdict: u32, condition: Option<&Condition>| {
            let mut syscall = LinuxSyscall::default();
            syscall.set_names(names.iter().map(ToString::to_string).collect());
            syscall.set_action(LinuxSeccompAction::ScmpActAllow);
            if verdict != RET_ALLOW {
                syscall.set_action(LinuxSeccompAction::ScmpActErrno).set_errno_ret(Some(verdict & 0xffff));
            }
            syscall.set_args(condition.map(|condition| vec![argument(condition)]));
            syscalls.push(syscall);
        };
        if decision.rules.is_empty() {
            push(decision.otherwise, None);
        }
        for rule in &decision.rules {
            push(rule.verdict, rule.conditions.first());
        }
    }
    let mut profile = LinuxSeccomp::default();
    profile.set_default_action(LinuxSeccompAction::ScmpActErrno).set_default_errno_ret(Some(EPERM));
    profile.set_architectures(Some(match machine {
        Machine::X86_64 => vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32],
        Machine::Aarch64 => vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm],
    }));
    profile.set_syscalls(Some(syscalls));
    profile
}

fn argument(condition: &Condition) -> LinuxSeccompArg {
    let (op, value, second) = match condition.comparison {
        Comparison::Equal(v) => (Operator::ScmpCmpEq, v, None),
        Comparison::NotEqual(v) => (Operator::ScmpCmpNe, v, None),
        Comparison::Less(v) => (Operator::ScmpCmpLt, v, None),
        Comparison::LessOrEqual(v) => (Operator::ScmpCmpLe, v, None),
        Comparison::Greater(v) => (Operator::ScmpCmpGt, v, None),
        Comparison::GreaterOrEqual(v) => (Operator::ScmpCmpGe, v, None),
        Comparison::Masked { mask, value } => (Operator::ScmpCmpMaskedEq, mask, Some(value)),
    };
    let argument = LinuxSeccompArgBuilder::default().index(usize::from(condition.argument)).op(op).value(value);
    match second {
        Some(second) => argument.value_two(second),
        None => argument,
    }
    .build()
    .expect("every field of this builder has a default")
}

#[cfg(test)]
mod tests {
    use super::super::seccomp::compile;
    use super::super::seccomp_abi::X32_BIT;
    use super::super::seccomp_program::machine::run;
    use super::*;

    const ALLOW: u32 = RET_ALLOW;
    const DENY: u32 = RET_ERRNO | EPERM;
    const UNKNOWN: u32 = RET_ERRNO | ENOSYS;

    fn verdict(machine: Machine, capabilities: u64, abi: Abi, number: u32, first: u64) -> u32 {
        let program = compile_default_for(machine, capabilities).expect("it compiles");
        run(&program.code, abi.audit_arch(), number, [first, 0, 0, 0, 0, 0])
    }

    fn number(abi: Abi, name: &str) -> Option<u32> {
        let numbers = abi.numbers().get(name).copied()?;
        numbers.into_iter().flatten().next_back().map(|number| abi.base() + number)
    }

    const EVERYWHERE: [(Machine, Abi); 5] = [
        (Machine::X86_64, Abi::X86_64),
        (Machine::X86_64, Abi::X32),
        (Machine::X86_64, Abi::I386),
        (Machine::Aarch64, Abi::Aarch64),
        (Machine::Aarch64, Abi::Arm),
    ];

    #[test]
    fn the_searched_group_is_sorted_and_no_name_is_in_two_groups() {
        assert!(PROFILE[0].1.is_sorted());
        let mut all: Vec<_> = PROFILE.iter().flat_map(|(_, names)| *names).collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn every_name_is_a_system_call_somewhere() {
        for name in PROFILE.iter().flat_map(|(_, names)| *names) {
            assert!(EVERYWHERE.iter().any(|(_, abi)| abi.numbers().contains_key(name)), "{name}: misspelt?");
        }
    }

    #[test]
    fn what_reaches_the_host_is_denied_in_every_table() {
        let denied = [
            "keyctl",
            "add_key",
            "request_key",
            "bpf",
            "mount",
            "umount2",
            "move_mount",
            "open_tree",
            "fsopen",
            "fsmount",
            "fsconfig",
            "fspick",
            "mount_setattr",
            "pivot_root",
            "chroot",
            "setns",
            "unshare",
            "kexec_load",
            "kexec_file_load",
            "io_uring_setup",
            "io_uring_enter",
            "io_uring_register",
            "userfaultfd",
            "perf_event_open",
            "init_module",
            "finit_module",
            "delete_module",
            "reboot",
            "swapon",
            "swapoff",
            "quotactl",
            "acct",
            "open_by_handle_at",
            "settimeofday",
            "clock_settime",
            "syslog",
            "sethostname",
            "setdomainname",
            "iopl",
            "ioperm",
            "kcmp",
            "pidfd_getfd",
            "process_madvise",
            "move_pages",
            "migrate_pages",
            "mbind",
            "fanotify_init",
            "lookup_dcookie",
            "vhangup",
            "uselib",
            "ustat",
            "sysfs",
            "nfsservctl",
            "vm86",
            "lsm_set_self_attr",
        ];
        let usual_but_chroot = USUAL & !CAP_SYS_CHROOT;
        for (machine, abi) in EVERYWHERE {
            for name in denied {
                let Some(number) = number(abi, name) else { continue };
                assert_eq!(verdict(machine, usual_but_chroot, abi, number, 0), DENY, "{name} in {abi:?}");
            }
            assert!(denied.iter().filter(|name| number(abi, name).is_some()).count() > 44, "{abi:?} hardly tested");
        }
    }

    #[test]
    fn what_programs_live_on_is_allowed_in_every_table() {
        let allowed = [
            "read",
            "write",
            "openat",
            "close",
            "execve",
            "exit_group",
            "futex",
            "ptrace",
            "prctl",
            "seccomp",
            "clock_gettime",
            "rseq",
            "statx",
            "pidfd_open",
            "landlock_restrict_self",
            "memfd_create",
            "wait4",
            "mseal",
            "ioctl",
            "execveat",
        ];
        for (machine, abi) in EVERYWHERE {
            for name in allowed {
                let number = number(abi, name).expect(name);
                assert_eq!(verdict(machine, 0, abi, number, 0), ALLOW, "{name} in {abi:?}");
            }
        }
        assert_eq!(verdict(Machine::X86_64, USUAL, Abi::X86_64, 161, 0), ALLOW, "chroot with its capability");
    }

    #[test]
    fn socket_families_are_allowed_by_list_and_compared_whole() {
        for (machine, abi) in EVERYWHERE {
            let socket = number(abi, "socket").expect("every table has it");
            for (family, expected) in [(1, ALLOW), (2, ALLOW), (10, ALLOW), (16, ALLOW), (17, ALLOW), (44, ALLOW)]
                .into_iter()
                .chain([38, 40, 12, 23, 34, 37, 46, 99].map(|family| (family, DENY)))
            {
                assert_eq!(verdict(machine, u64::MAX, abi, socket, family), expected, "family {family} in {abi:?}");
            }
            if abi.wide() {
                assert_eq!(verdict(machine, 0, abi, socket, 1 << 32 | 38), DENY, "the kernel cuts it to 38");
                assert_eq!(verdict(machine, 0, abi, socket, 1 << 32 | 2), DENY);
            }
        }
    }

    #[test]
    fn socketcall_makes_no_sockets_but_does_the_rest() {
        let call = |selector| verdict(Machine::X86_64, u64::MAX, Abi::I386, 102, selector);
        assert_eq!(call(SYS_SOCKET), UNKNOWN);
        assert!((2..=20).all(|selector| call(selector) == ALLOW));
    }

    #[test]
    fn namespaces_need_sys_admin_by_either_clone() {
        for (machine, abi) in EVERYWHERE {
            let (clone, clone3) = (number(abi, "clone").expect("clone"), number(abi, "clone3").expect("clone3"));
            for bit in 0..32 {
                let expected = if CLONE_NEW >> bit & 1 == 1 { DENY } else { ALLOW };
                assert_eq!(verdict(machine, USUAL, abi, clone, 1 << bit | 0x11), expected, "bit {bit} in {abi:?}");
                assert_eq!(verdict(machine, CAP_SYS_ADMIN, abi, clone, 1 << bit), ALLOW);
            }
            assert_eq!(verdict(machine, USUAL, abi, clone3, 0), UNKNOWN);
            assert_eq!(verdict(machine, CAP_SYS_ADMIN, abi, clone3, 0), ALLOW);
        }
    }

    #[test]
    fn personality_takes_five_values() {
        for value in [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff] {
            assert_eq!(verdict(Machine::X86_64, 0, Abi::X86_64, 135, value), ALLOW);
        }
        assert_eq!(verdict(Machine::X86_64, 0, Abi::X86_64, 135, 0x40000), DENY, "ADDR_NO_RANDOMIZE");
    }

    #[test]
    fn capabilities_grant_what_they_are_for() {
        let x86_64 = |capabilities, name| {
            verdict(Machine::X86_64, capabilities, Abi::X86_64, number(Abi::X86_64, name).expect(name), 0)
        };
        for (capability, names) in [
            (CAP_SYS_ADMIN, &["mount", "bpf", "perf_event_open", "syslog", "setns", "unshare", "fsopen"][..]),
            (CAP_SYS_PTRACE, &["kcmp", "process_madvise", "pidfd_getfd"]),
            (CAP_SYS_CHROOT, &["chroot"]),
            (CAP_SYS_MODULE, &["init_module", "finit_module", "delete_module"]),
            (CAP_SYS_TIME, &["clock_settime", "settimeofday"]),
            (CAP_SYS_NICE, &["mbind", "set_mempolicy"]),
            (CAP_SYSLOG, &["syslog"]),
            (CAP_BPF, &["bpf"]),
            (CAP_PERFMON, &["perf_event_open"]),
            (CAP_DAC_READ_SEARCH, &["open_by_handle_at"]),
            (CAP_SYS_BOOT, &["reboot"]),
            (CAP_SYS_RAWIO, &["iopl"]),
            (CAP_SYS_PACCT, &["acct"]),
            (CAP_SYS_TTY_CONFIG, &["vhangup"]),
        ] {
            for name in names {
                assert_eq!(x86_64(capability, name), ALLOW, "{name}");
                assert_eq!(x86_64(0, name), DENY, "{name}");
            }
        }
        for never in ["keyctl", "kexec_load", "userfaultfd", "io_uring_setup", "swapon", "pivot_root"] {
            assert_eq!(x86_64(u64::MAX, never), DENY, "{never}");
        }
    }

    #[test]
    fn calls_newer_than_the_list_do_not_exist_and_strange_architectures_die() {
        for (machine, abi) in EVERYWHERE {
            for number in [467, 470, 511, 600, 4000, 0x0f_0007] {
                assert_eq!(verdict(machine, u64::MAX, abi, abi.base() + number, 0), UNKNOWN, "{number} in {abi:?}");
            }
            assert_eq!(verdict(machine, 0, abi, u32::MAX, 0), UNKNOWN);
        }
        assert_eq!(verdict(Machine::X86_64, 0, Abi::X86_64, 520, 0), UNKNOWN, "x32's execve without its bit");
        assert_eq!(verdict(Machine::X86_64, 0, Abi::Arm, 1, 0), RET_KILL_PROCESS);
        assert_eq!(verdict(Machine::Aarch64, 0, Abi::Arm, 0x0f_0005, 0), ALLOW, "set_tls");
        assert_eq!(verdict(Machine::Aarch64, 0, Abi::Arm, 0x0f_0003, 0), DENY, "usr26");
    }

    #[test]
    fn the_shown_profile_and_the_installed_program_say_the_same() {
        for capabilities in [0, USUAL, u64::MAX, CAP_SYS_ADMIN, CAP_BPF | CAP_SYSLOG, CAP_SYS_PTRACE] {
            for machine in [Machine::X86_64, Machine::Aarch64] {
                let installed = compile_default_for(machine, capabilities).expect("it compiles").code;
                let shown = compile(&default_profile(capabilities, machine), machine).expect("it compiles").code;
                let sequences = (0..560).chain(X32_BIT..X32_BIT + 560).chain(0x0f_0000..0x0f_0010);
                for number in sequences.chain([X32_BIT - 1, u32::MAX - 1, u32::MAX]) {
                    for arch in machine.abis().iter().map(|abi| abi.audit_arch()).chain([0]) {
                        for first in [0, 1, 2, 8, 38, 40, 0x1000_0000, 0xffff_ffff, 1 << 32 | 38] {
                            let arguments = [first, 0, 0, 0, 0, 0];
                            let (a, b) =
                                (run(&installed, arch, number, arguments), run(&shown, arch, number, arguments));
                            assert_eq!(a, b, "{number} of {arch:#x} with {first:#x} and {capabilities:#x}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_program_that_is_kept_is_the_one_that_would_be_made() {
        for _ in 0..2 {
            let kept = compile_default(USUAL).expect("it compiles");
            assert_eq!(kept, compile_default_for(Machine::HOST, USUAL).expect("it compiles"));
        }
    }

    #[test]
    fn the_program_is_short_and_made_fast() {
        for machine in [Machine::X86_64, Machine::Aarch64] {
            for capabilities in [0, USUAL, u64::MAX] {
                let length = compile_default_for(machine, capabilities).expect("it compiles").code.len();
                println!("{machine:?}, capabilities {capabilities:#x}: {length} instructions");
                assert!(length < 700, "{length} instructions: the kernel runs them before system calls");
            }
        }
        let begin = std::time::Instant::now();
        for _ in 0..100 {
            compile_default(USUAL).expect("it compiles");
        }
        println!("compile_default: {} us", begin.elapsed().as_micros() / 100);
        let profile = default_profile(USUAL, Machine::HOST);
        let begin = std::time::Instant::now();
        for _ in 0..100 {
            compile(&profile, Machine::HOST).expect("it compiles");
        }
        println!("compile(default_profile): {} us", begin.elapsed().as_micros() / 100);
    }
}
