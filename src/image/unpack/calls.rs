//! The system calls that a worker may make once it is confined: those of reading a stream and writing a tree, and of a program's memory and
//! end. Any other ends the process. Which files it may reach is not decided here but by its root, its uid and its capabilities.

use crate::error::{Context, Error, Result};
use crate::launch::seccomp::{self, Machine, Program};
use crate::sys;
use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArgBuilder, LinuxSeccompOperator as Operator, LinuxSyscall,
};

/// By name, for both machines: `open` and `brk` and the like are there for one C library or machine only.
const ALLOWED: &[&str] = &[
    // The blob, the replies, the files.
    "read",
    "readv",
    "pread64",
    "write",
    "writev",
    "pwrite64",
    "lseek",
    "close",
    "fcntl",
    "ftruncate",
    "open",
    "openat",
    "openat2",
    "getdents64",
    "fstat",
    "newfstatat",
    "statx",
    "stat",
    "lstat",
    // The tree.
    "mkdirat",
    "mknodat",
    "symlinkat",
    "linkat",
    "unlinkat",
    "fchown",
    "fchownat",
    "fchmod",
    "utimensat",
    "fsetxattr",
    // The program itself: memory, signals, locks, a panic's message, the end.
    "brk",
    "munmap",
    "mremap",
    "madvise",
    "futex",
    "sched_yield",
    "getrandom",
    "clock_gettime",
    "sigaltstack",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "restart_syscall",
    "getpid",
    "gettid",
    "tgkill",
    "tkill",
    "exit",
    "exit_group",
];
/// Allowed unless the memory is to be executed: everything that runs here was mapped before.
const ALLOWED_WITHOUT_EXEC: &[&str] = &["mmap", "mprotect"];
/// `PROT_EXEC`, asm-generic/mman-common.h, and the argument of both calls that it is in.
const PROT_EXEC: (usize, u64) = (2, 4);

/// Makes every other system call of this thread, and of what it starts, its end (SIGSYS). Needs no_new_privs.
///
/// # Errors
/// `Internal`: the kernel does not take the filter.
pub fn forbid_others() -> Result<()> {
    let program = program()?;
    sys::install_seccomp(&program.code, program.flags).context(|| "install the seccomp filter of the unpack process")
}

fn program() -> Result<Program> {
    let names = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mut plain = LinuxSyscall::default();
    plain.set_names(names(ALLOWED)).set_action(Action::ScmpActAllow);
    let (index, bit) = PROT_EXEC;
    let not_executed =
        LinuxSeccompArgBuilder::default().index(index).op(Operator::ScmpCmpMaskedEq).value(bit).value_two(0_u64);
    let not_executed = not_executed.build().map_err(|e| Error::internal(format!("seccomp filter: {e}")))?;
    let mut mapped = LinuxSyscall::default();
    mapped.set_names(names(ALLOWED_WITHOUT_EXEC)).set_action(Action::ScmpActAllow).set_args(Some(vec![not_executed]));
    let mut profile = LinuxSeccomp::default();
    profile.set_default_action(Action::ScmpActKillProcess).set_syscalls(Some(vec![plain, mapped]));
    seccomp::compile(&profile, Machine::HOST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::seccomp_abi::Abi;

    #[test]
    fn every_name_is_one_of_a_machine() {
        let tables = [Abi::X86_64.numbers(), Abi::Aarch64.numbers()];
        for name in ALLOWED.iter().chain(ALLOWED_WITHOUT_EXEC) {
            assert!(tables.iter().any(|table| table.contains_key(name)), "{name}");
        }
    }
}
