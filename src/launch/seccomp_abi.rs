//! The system call tables that a process can reach: which numbers a name has in each of them.
//!
//! Numbers come from the `syscalls` crate. What it lacks is here: x32's own numbers, ARM's private ones, and the two i386 calls
//! that carry others inside them (socketcall, ipc). No rules here.

/// The machine's own instruction set. Its 32-bit relatives are reachable from every process: `int 0x80` on x86_64 needs no 32-bit
/// program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    X86_64,
    Aarch64,
}

impl Machine {
    /// The one that this program was built for.
    #[cfg(target_arch = "x86_64")]
    pub const HOST: Machine = Machine::X86_64;
    /// The one that this program was built for.
    #[cfg(target_arch = "aarch64")]
    pub const HOST: Machine = Machine::Aarch64;

    /// The tables a process on this machine can call into, its own first.
    pub fn abis(self) -> &'static [Abi] {
        match self {
            Machine::X86_64 => &[Abi::X86_64, Abi::X32, Abi::I386],
            Machine::Aarch64 => &[Abi::Aarch64, Abi::Arm],
        }
    }
}

/// One system call table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Abi {
    X86_64,
    X32,
    I386,
    Aarch64,
    Arm,
}

/// `__X32_SYSCALL_BIT`, asm/unistd.h: x32 has x86_64's architecture and this bit in the number.
pub const X32_BIT: u32 = 0x4000_0000;

/// Above every number that the tables have in sequence (the newest is 470 in Linux 6.18), below every island.
pub const SEQUENCE_END: u32 = 512;

/// asm-generic/unistd.h.
const NEWFSTATAT_AARCH64: u32 = 79;

/// x32's own entries, 512 upwards, arch/x86/entry/syscalls/syscall_64.tbl. No more will be added, its comment says.
const X32_ISLAND: [&str; 36] = [
    "rt_sigaction",
    "rt_sigreturn",
    "ioctl",
    "readv",
    "writev",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "execve",
    "ptrace",
    "rt_sigpending",
    "rt_sigtimedwait",
    "rt_sigqueueinfo",
    "sigaltstack",
    "timer_create",
    "mq_notify",
    "kexec_load",
    "waitid",
    "set_robust_list",
    "get_robust_list",
    "vmsplice",
    "move_pages",
    "preadv",
    "pwritev",
    "rt_tgsigqueueinfo",
    "recvmmsg",
    "sendmmsg",
    "process_vm_readv",
    "process_vm_writev",
    "setsockopt",
    "getsockopt",
    "io_setup",
    "io_submit",
    "execveat",
    "preadv2",
    "pwritev2",
];

/// ARM's private calls, 0x0f0001 upwards, arch/arm/include/uapi/asm/unistd.h.
const ARM_ISLAND: [&str; 6] = ["breakpoint", "cacheflush", "usr26", "usr32", "set_tls", "get_tls"];

impl Abi {
    /// `AUDIT_ARCH_*`, linux/audit.h: what the kernel puts into `seccomp_data.arch`.
    pub const fn audit_arch(self) -> u32 {
        match self {
            Abi::X86_64 | Abi::X32 => 0xc000_003e,
            Abi::I386 => 0x4000_0003,
            Abi::Aarch64 => 0xc000_00b7,
            Abi::Arm => 0x4000_0028,
        }
    }

    /// Whether arguments are compared in 64 bits. In x32 too: the kernel passes its registers whole.
    pub const fn wide(self) -> bool {
        !matches!(self, Abi::I386 | Abi::Arm)
    }

    /// What is added to a number of the table.
    pub const fn base(self) -> u32 {
        if matches!(self, Abi::X32) { X32_BIT } else { 0 }
    }

    /// The names outside the sequence, with the number (less [`Abi::base`]) of the first; they are consecutive.
    pub const fn island(self) -> (u32, &'static [&'static str]) {
        match self {
            Abi::X32 => (512, &X32_ISLAND),
            Abi::Arm => (0x0f_0001, &ARM_ISLAND),
            _ => (0, &[]),
        }
    }

    /// The name of a number (less [`Abi::base`]) below [`SEQUENCE_END`]; `None` for a gap.
    ///
    /// In x32 the numbers of 64-bit calls that have a number of their own up there are included: a kernel answers them with ENOSYS,
    /// but a profile that denies a name means every road to it.
    pub const fn name(self, number: u32) -> Option<&'static str> {
        let id = number as usize;
        macro_rules! name {
            ($table:ident) => {
                match syscalls::$table::Sysno::new(id) {
                    Some(found) => Some(found.name()),
                    None => None,
                }
            };
        }
        match self {
            Abi::X86_64 | Abi::X32 => name!(x86_64),
            Abi::I386 => name!(x86),
            // The crate has the header's internal spelling of this one; profiles have newfstatat, as on x86_64.
            Abi::Aarch64 if number == NEWFSTATAT_AARCH64 => Some("newfstatat"),
            Abi::Aarch64 => name!(aarch64),
            Abi::Arm => name!(arm),
        }
    }

    /// Every number of every name, without [`Abi::base`]; a name has two numbers at most, and most have one.
    #[cfg(test)]
    pub fn numbers(self) -> std::collections::HashMap<&'static str, [Option<u32>; 2]> {
        let mut numbers = std::collections::HashMap::new();
        for number in 0..SEQUENCE_END {
            if let Some(name) = self.name(number) {
                numbers.insert(name, [Some(number), None]);
                numbers.extend(self.alias(name).map(|alias| (alias, [Some(number), None])));
            }
        }
        let (first, names) = self.island();
        for (number, name) in (first..).zip(names) {
            numbers.entry(name).or_insert([None, None])[1] = Some(number);
        }
        numbers
    }

    /// Another name of the same number.
    pub fn alias(self, name: &str) -> Option<&'static str> {
        (self == Abi::Arm && name == "arm_sync_file_range").then_some("sync_file_range2")
    }

    /// The calls that carry others, with the names of those: i386's socketcall(2) and ipc(2) only.
    pub fn carriers(self) -> &'static [Carrier] {
        if self == Abi::I386 { &CARRIERS } else { &[] }
    }
}

/// A system call that carries others, chosen by its first argument under a mask.
#[derive(Debug)]
pub struct Carrier {
    pub name: &'static str,
    pub mask: u32,
    pub carried: &'static [(u32, &'static str)],
}

static CARRIERS: [Carrier; 2] = [
    Carrier { name: "socketcall", mask: u32::MAX, carried: SOCKETCALL },
    // The upper half is a version, ipc/syscall.c: whatever it says, the call is made.
    Carrier { name: "ipc", mask: 0xffff, carried: IPC },
];

/// `SYS_SOCKET` and the rest of linux/net.h.
const SOCKETCALL: &[(u32, &str)] = &[
    (1, "socket"),
    (2, "bind"),
    (3, "connect"),
    (4, "listen"),
    (5, "accept"),
    (6, "getsockname"),
    (7, "getpeername"),
    (8, "socketpair"),
    (9, "send"),
    (10, "recv"),
    (11, "sendto"),
    (12, "recvfrom"),
    (13, "shutdown"),
    (14, "setsockopt"),
    (15, "getsockopt"),
    (16, "sendmsg"),
    (17, "recvmsg"),
    (18, "accept4"),
    (19, "recvmmsg"),
    (20, "sendmmsg"),
];

/// `SEMOP` and the rest of linux/ipc.h.
const IPC: &[(u32, &str)] = &[
    (1, "semop"),
    (2, "semget"),
    (3, "semctl"),
    (4, "semtimedop"),
    (11, "msgsnd"),
    (12, "msgrcv"),
    (13, "msgget"),
    (14, "msgctl"),
    (21, "shmat"),
    (22, "shmdt"),
    (23, "shmget"),
    (24, "shmctl"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_kernels_tables() {
        let of = |abi: Abi, name: &str| abi.numbers().get(name).copied().unwrap_or_default();
        assert_eq!(of(Abi::X86_64, "execve"), [Some(59), None]);
        assert_eq!(of(Abi::X32, "execve"), [Some(59), Some(520)]);
        assert_eq!(of(Abi::X32, "pwritev2"), [Some(328), Some(547)]);
        assert_eq!(of(Abi::I386, "socketcall"), [Some(102), None]);
        assert_eq!(of(Abi::Aarch64, "execve"), [Some(221), None]);
        assert_eq!(of(Abi::Aarch64, "newfstatat"), [Some(79), None]);
        assert_eq!(of(Abi::Arm, "sync_file_range2"), [Some(341), None]);
        assert_eq!(of(Abi::Arm, "set_tls"), [None, Some(0x0f_0005)]);
        assert_eq!(of(Abi::X86_64, "no_such_call"), [None, None]);
    }

    #[test]
    fn every_table_fits_below_its_end() {
        for abi in [Abi::X86_64, Abi::X32, Abi::I386, Abi::Aarch64, Abi::Arm] {
            assert!(abi.name(SEQUENCE_END - 1).is_none(), "{abi:?} has grown: raise SEQUENCE_END, mind x32's 512");
            assert!(abi.name(466).is_some());
        }
    }
}
