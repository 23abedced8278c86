//! Which devices a container may open and make: the rules of the OCI spec (`linux.resources.devices`) as a BPF program on its cgroup.
//!
//! The meaning of a list: for each of read, write and mknod that a process asks for, the last rule decides that names the device
//! and that access; with no such rule it is denied. That is what the files of cgroup v1 did for every list that they took, and
//! what runc and crun do; lists that v1 could not hold (a hole in a wildcard) mean what they say here.
//!
//! [`Devices`] loads a program once for all containers of a pod that have the same rules. Not here: making device nodes (the plan
//! of the root), and the bpf(2) calls (`sys::bpf`).

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::error::{Context, Error, Kind, Result};
use crate::sys::{BpfInsn, attach_device_program, detach_device_program, load_device_program};

/// Rules a container may have: the verifier follows 8192 pending branches (BPF_COMPLEXITY_LIMIT_JMP_SEQ), a rule has two.
const MAX_RULES: usize = 1024;

/// Programs kept loaded for the next container of the pod; more kinds than this are loaded again.
const MAX_LOADED: usize = 8;

// BPF_DEVCG_*, linux/bpf.h.
const ACC_MKNOD: u8 = 1;
const ACC_READ: u8 = 2;
const ACC_WRITE: u8 = 4;
const ACC_ALL: u8 = ACC_MKNOD | ACC_READ | ACC_WRITE;
const DEV_BLOCK: u8 = 1;
const DEV_CHAR: u8 = 2;

/// One rule, read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    /// `DEV_BLOCK` or `DEV_CHAR`; `None`: both.
    device: Option<u8>,
    major: Option<u32>,
    minor: Option<u32>,
    /// `ACC_*`, at least one.
    access: u8,
}

impl Rule {
    fn covers_everything(&self) -> bool {
        *self == Rule { allow: self.allow, device: None, major: None, minor: None, access: ACC_ALL }
    }
}

/// What a container may do with devices when nothing else was asked for: make any node (without CAP_MKNOD it cannot), and open the
/// devices that every container has.
///
/// As containerd's, but for 5:1: a container's /dev/console is a pty, and 5:1 made by mknod would be the host's console.
pub fn default_rules() -> Vec<LinuxDeviceCgroup> {
    let rule = |allow: bool, device: LinuxDeviceType, numbers: (Option<i64>, Option<i64>), access: &str| {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(allow).set_typ(Some(device)).set_major(numbers.0).set_minor(numbers.1);
        rule.set_access(Some(access.to_string()));
        rule
    };
    let mut rules = vec![
        rule(false, LinuxDeviceType::A, (None, None), "rwm"),
        rule(true, LinuxDeviceType::C, (None, None), "m"),
        rule(true, LinuxDeviceType::B, (None, None), "m"),
    ];
    // Documentation/admin-guide/devices.txt: null, zero, full, random, urandom; tty, ptmx; the slaves of /dev/pts.
    let memory = [3, 5, 7, 8, 9].map(|minor| (Some(1), Some(minor)));
    let terminals = [(Some(5), Some(0)), (Some(5), Some(2)), (Some(136), None)];
    rules.extend(memory.into_iter().chain(terminals).map(|numbers| rule(true, LinuxDeviceType::C, numbers, "rwm")));
    rules
}

/// What allows everything: privileged containers.
pub fn everything() -> Vec<LinuxDeviceCgroup> {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(true).set_typ(Some(LinuxDeviceType::A)).set_access(Some("rwm".to_string()));
    vec![rule]
}

/// The program for a list of rules; `None` when everything is allowed, which needs none.
///
/// # Errors
/// InvalidArgument or ResourceExhausted, naming the field.
pub fn compile(rules: &[LinuxDeviceCgroup]) -> Result<Option<Vec<BpfInsn>>> {
    if rules.len() > MAX_RULES {
        return Err(Error::exhausted(format!(
            "linux.resources.devices: {} rules are more than {MAX_RULES}: use wildcards",
            rules.len()
        )));
    }
    let rules: Vec<Rule> = rules.iter().enumerate().map(|(i, rule)| read(i, rule)).collect::<Result<_>>()?;
    match rules.last() {
        Some(last) if last.allow && last.covers_everything() => Ok(None),
        _ => Ok(Some(assemble(&rules))),
    }
}

fn read(index: usize, rule: &LinuxDeviceCgroup) -> Result<Rule> {
    let wrong = |field: &str, why: String| Error::invalid(format!("linux.resources.devices[{index}].{field}: {why}"));
    let device = match rule.typ().unwrap_or_default() {
        LinuxDeviceType::A => None,
        LinuxDeviceType::B => Some(DEV_BLOCK),
        LinuxDeviceType::C | LinuxDeviceType::U => Some(DEV_CHAR),
        LinuxDeviceType::P => return Err(wrong("type", "a FIFO is no device, use a, b or c".to_string())),
    };
    let number = |field: &str, number: Option<i64>| match number {
        None | Some(-1) => Ok(None), // the kernel's files have `*`, the field -1
        Some(number) => match u32::try_from(number) {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(wrong(field, format!("{number} is no device number, leave it out for all"))),
        },
    };
    let mut access = 0;
    for letter in rule.access().as_deref().unwrap_or_default().chars() {
        access |= match letter {
            'r' => ACC_READ,
            'w' => ACC_WRITE,
            'm' => ACC_MKNOD,
            _ => return Err(wrong("access", format!("{letter:?} is none of r, w and m"))),
        };
    }
    if access == 0 {
        if rule.allow() {
            return Err(wrong("access", "nothing is allowed, use a combination of r, w and m".to_string()));
        }
        access = ACC_ALL; // a denial that does not say of what
    }
    let (major, minor) = (number("major", rule.major())?, number("minor", rule.minor())?);
    Ok(Rule { allow: rule.allow(), device, major, minor, access })
}

// linux/bpf_common.h and linux/bpf.h: class, operation and source; 32-bit forms, so that no number is taken for a negative one.
const LDX_MEM_W: u8 = 0x61;
const ALU32_MOV_X: u8 = 0xbc;
const ALU32_MOV_K: u8 = 0xb4;
const ALU32_AND_K: u8 = 0x54;
const ALU32_RSH_K: u8 = 0x74;
const ALU32_XOR_K: u8 = 0xa4;
const ALU32_OR_X: u8 = 0x4c;
const JMP32_JNE_K: u8 = 0x56;
const JMP32_JSET_K: u8 = 0x46;
const JMP_JA: u8 = 0x05;
const JMP_EXIT: u8 = 0x95;

// struct bpf_cgroup_dev_ctx, linux/bpf.h.
const OFFSET_ACCESS_TYPE: i16 = 0;
const OFFSET_MAJOR: i16 = 4;
const OFFSET_MINOR: i16 = 8;

// Registers: the verdict, the context at entry, then what was loaded from it.
const R_VERDICT: u8 = 0;
const R_CONTEXT: u8 = 1;
/// The access asked for and not yet allowed.
const R_WANTED: u8 = 2;
const R_DEVICE: u8 = 3;
const R_MAJOR: u8 = 4;
const R_MINOR: u8 = 5;
/// Not zero where the device is not the rule's.
const R_DIFFERENT: u8 = 6;
const R_BITS: u8 = 7;

fn instruction(code: u8, target: u8, source: u8, off: i16, imm: i32) -> BpfInsn {
    BpfInsn { code, registers: target | source << 4, off, imm }
}

fn exit(verdict: i32) -> [BpfInsn; 2] {
    [instruction(ALU32_MOV_K, R_VERDICT, 0, 0, verdict), instruction(JMP_EXIT, 0, 0, 0, 0)]
}

/// From the last rule to the first: what a rule allows is no longer wanted; a rule that denies something wanted ends it.
fn assemble(rules: &[Rule]) -> Vec<BpfInsn> {
    let mut code = vec![
        instruction(LDX_MEM_W, R_WANTED, R_CONTEXT, OFFSET_ACCESS_TYPE, 0),
        instruction(ALU32_MOV_X, R_DEVICE, R_WANTED, 0, 0),
        instruction(ALU32_AND_K, R_DEVICE, 0, 0, 0xffff),
        instruction(ALU32_RSH_K, R_WANTED, 0, 0, 16),
        instruction(LDX_MEM_W, R_MAJOR, R_CONTEXT, OFFSET_MAJOR, 0),
        instruction(LDX_MEM_W, R_MINOR, R_CONTEXT, OFFSET_MINOR, 0),
    ];
    for rule in rules.iter().rev() {
        if rule.covers_everything() {
            code.extend(exit(i32::from(rule.allow)));
            return code; // the verifier refuses instructions that cannot be reached
        }
        let access = i32::from(rule.access);
        let mut body = Vec::with_capacity(4);
        if rule.allow {
            body.push(instruction(ALU32_AND_K, R_WANTED, 0, 0, !access));
            body.push(instruction(JMP32_JNE_K, R_WANTED, 0, 2, 0));
        } else {
            body.push(instruction(JMP32_JSET_K, R_WANTED, 0, 1, access));
            body.push(instruction(JMP_JA, 0, 0, 2, 0));
        }
        body.extend(exit(i32::from(rule.allow)));

        let numbers = [(R_DEVICE, rule.device.map(u32::from)), (R_MAJOR, rule.major), (R_MINOR, rule.minor)];
        let numbers = numbers.into_iter().filter_map(|(register, number)| Some((register, number?)));
        code.extend(differs(numbers, i16::try_from(body.len()).unwrap_or(i16::MAX))); // four at most
        code.extend(body);
    }
    code.extend(exit(0));
    code
}

/// Skips what follows if any of the registers has another number. By bits that differ, not by a comparison of each: what the
/// verifier learns of a number in one rule it would follow through all others, once a rule.
fn differs(numbers: impl Iterator<Item = (u8, u32)>, skip: i16) -> Vec<BpfInsn> {
    let mut code = Vec::with_capacity(9);
    for (register, number) in numbers {
        let target = if code.is_empty() { R_DIFFERENT } else { R_BITS };
        code.push(instruction(ALU32_MOV_X, target, register, 0, 0));
        code.push(instruction(ALU32_XOR_K, target, 0, 0, number.cast_signed()));
        if target == R_BITS {
            code.push(instruction(ALU32_OR_X, R_DIFFERENT, R_BITS, 0, 0));
        }
    }
    if !code.is_empty() {
        code.push(instruction(JMP32_JNE_K, R_DIFFERENT, 0, skip, 0));
    }
    code
}

/// The programs a shim has loaded.
#[derive(Debug, Default)]
pub struct Devices {
    loaded: VecDeque<(Vec<BpfInsn>, Rc<OwnedFd>)>,
}

/// What is on a container's cgroup; `None`: nothing, everything is allowed. Dropping it leaves the cgroup as it is.
#[derive(Debug, Default)]
pub struct Attached(Option<Rc<OwnedFd>>);

impl Devices {
    /// Loads the program of the default rules ahead of the container that will need it.
    pub fn prepare(&mut self) {
        if let Ok(Some(program)) = compile(&default_rules()) {
            let _ = self.load(program); // tried again, and told, when a container needs it
        }
    }

    /// Puts the rules on a container's cgroup (v2) in place of `before`: [`Attached::default`] at first. Do it before the first
    /// process is there: an open file stays open.
    ///
    /// # Errors
    /// As [`compile`]; Unsupported with the remedy when the kernel refuses BPF.
    pub fn apply(
        &mut self,
        cgroup: BorrowedFd<'_>,
        rules: &[LinuxDeviceCgroup],
        before: &Attached,
    ) -> Result<Attached> {
        let after = match compile(rules)? {
            Some(program) => Some(self.load(program)?),
            None => None,
        };
        match (&before.0, &after) {
            (None, None) => {}
            (Some(old), Some(new)) if Rc::ptr_eq(old, new) => {}
            (Some(old), None) => {
                detach_device_program(cgroup, old.as_fd()).context(|| "detach the device filter from the cgroup")?;
            }
            (old, Some(new)) => {
                attach_device_program(cgroup, new.as_fd(), old.as_ref().map(|old| old.as_fd()))
                    .map_err(|e| explain("attach the device filter to the cgroup", &e))?;
            }
        }
        Ok(Attached(after))
    }

    fn load(&mut self, program: Vec<BpfInsn>) -> Result<Rc<OwnedFd>> {
        if let Some((_, fd)) = self.loaded.iter().find(|(known, _)| *known == program) {
            return Ok(Rc::clone(fd));
        }
        let fd = load_device_program(&program).map_err(|e| explain("load the device filter", &e))?;
        let fd = Rc::new(fd);
        if self.loaded.len() == MAX_LOADED {
            self.loaded.pop_front();
        }
        self.loaded.push_back((program, Rc::clone(&fd)));
        Ok(fd)
    }
}

/// The error of a bpf(2) call, with what can be done where something can.
fn explain(doing: &str, error: &std::io::Error) -> Error {
    let remedy = match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            "bpf(2) needs CAP_SYS_ADMIN outside of any user namespace and no seccomp filter in front of it: in a container, run podwright privileged"
        }
        std::io::ErrorKind::Unsupported | std::io::ErrorKind::InvalidInput => {
            "the kernel needs CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF"
        }
        _ => return Error::internal(crate::error::describe_io(error)).context(doing),
    };
    Error::new(Kind::Unsupported, format!("{}: {remedy}", crate::error::describe_io(error))).context(doing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An interpreter of what is emitted, as strict as the verifier about jumps and unreachable instructions.
    fn run(code: &[BpfInsn], device: u8, access: u8, major: u32, minor: u32) -> bool {
        let context = [u32::from(access) << 16 | u32::from(device), major, minor];
        let mut registers = [0u32; 8];
        let mut pc = 0;
        loop {
            let BpfInsn { code: op, registers: pair, off, imm } = code[pc];
            let (target, source) = (usize::from(pair & 15), usize::from(pair >> 4));
            pc += 1;
            let mut branch = |holds: bool| pc += if holds { usize::try_from(off).expect("forward") } else { 0 };
            match op {
                LDX_MEM_W => {
                    assert_eq!(source, 1);
                    registers[target] = context[usize::try_from(off).expect("positive") / 4];
                }
                ALU32_MOV_X => registers[target] = registers[source],
                ALU32_MOV_K => registers[target] = imm.cast_unsigned(),
                ALU32_AND_K => registers[target] &= imm.cast_unsigned(),
                ALU32_RSH_K => registers[target] >>= imm,
                ALU32_XOR_K => registers[target] ^= imm.cast_unsigned(),
                ALU32_OR_X => registers[target] |= registers[source],
                JMP32_JNE_K => branch(registers[target] != imm.cast_unsigned()),
                JMP32_JSET_K => branch(registers[target] & imm.cast_unsigned() != 0),
                JMP_JA => branch(true),
                JMP_EXIT => return registers[0] == 1,
                other => panic!("instruction {other:#x} is not emitted"),
            }
        }
    }

    fn every_instruction_is_reachable(code: &[BpfInsn]) -> bool {
        let mut seen = vec![false; code.len()];
        let mut open = vec![0];
        while let Some(pc) = open.pop() {
            if std::mem::replace(&mut seen[pc], true) {
                continue;
            }
            let target = || pc + 1 + usize::try_from(code[pc].off).expect("forward");
            match code[pc].code {
                JMP_EXIT => {}
                JMP_JA => open.push(target()),
                JMP32_JNE_K | JMP32_JSET_K => open.extend([pc + 1, target()]),
                _ => open.push(pc + 1),
            }
        }
        seen.into_iter().all(|seen| seen)
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let number = || prop_oneof![Just(None), (0u32..3).prop_map(Some), Just(Some(u32::MAX))];
        (any::<bool>(), prop::option::of(1u8..=2), number(), number(), 1u8..=7)
            .prop_map(|(allow, device, major, minor, access)| Rule { allow, device, major, minor, access })
    }

    proptest! {
        #[test]
        fn the_last_rule_about_each_access_decides(
            rules in prop::collection::vec(rule(), 0..12),
            asked in prop::collection::vec((1u8..=2, 1u8..=7, prop_oneof![0u32..4, Just(u32::MAX)], prop_oneof![0u32..4, Just(u32::MAX)]), 30),
        ) {
            let code = assemble(&rules);
            prop_assert!(every_instruction_is_reachable(&code));
            for (device, access, major, minor) in asked {
                let expected = [1u8, 2, 4].iter().filter(|bit| access & **bit != 0).all(|bit| {
                    rules.iter().rfind(|r| {
                        r.access & bit != 0
                            && r.device.is_none_or(|d| d == device)
                            && r.major.is_none_or(|m| m == major)
                            && r.minor.is_none_or(|m| m == minor)
                    }).is_some_and(|r| r.allow)
                });
                prop_assert_eq!(run(&code, device, access, major, minor), expected);
            }
        }
    }

    #[test]
    fn by_default_any_node_may_be_made_and_the_usual_ones_opened() {
        let code = compile(&default_rules()).expect("it compiles").expect("a program");
        for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, 0), (136, 77)] {
            assert!(run(&code, DEV_CHAR, ACC_ALL, major, minor), "{major}:{minor}");
            assert!(!run(&code, DEV_BLOCK, ACC_READ, major, minor));
        }
        for (major, minor) in
            [(1, 1), (1, 2), (1, 4), (1, 11), (5, 1), (10, 200), (10, 229), (10, 232), (4, 0), (137, 0)]
        {
            assert!(!run(&code, DEV_CHAR, ACC_READ, major, minor), "{major}:{minor}");
            assert!(run(&code, DEV_CHAR, ACC_MKNOD, major, minor));
        }
        assert!(run(&code, DEV_BLOCK, ACC_MKNOD, 8, 0));
        assert!(!run(&code, DEV_BLOCK, ACC_READ, 8, 0));
    }

    #[test]
    fn everything_needs_no_program_unless_something_is_denied_after_it() {
        assert_eq!(compile(&everything()).expect("it compiles"), None);
        let mut rules = everything();
        let json = serde_json::json!({ "allow": false, "type": "c", "major": 10, "minor": 229 });
        rules.push(serde_json::from_value(json).expect("a rule"));
        let code = compile(&rules).expect("it compiles").expect("a program");
        assert!(!run(&code, DEV_CHAR, ACC_READ, 10, 229), "a denial without access is of all access");
        assert!(run(&code, DEV_CHAR, ACC_READ, 10, 228));
        assert!(!run(&compile(&[]).expect("it compiles").expect("a program"), DEV_CHAR, ACC_READ, 1, 3));
    }

    #[test]
    fn a_wrong_rule_is_refused_by_field() {
        for (json, message) in [
            (serde_json::json!({ "allow": true, "access": "rx" }), "linux.resources.devices[0].access: 'x'"),
            (serde_json::json!({ "allow": true }), "linux.resources.devices[0].access: nothing"),
            (serde_json::json!({ "allow": true, "access": "r", "type": "p" }), "linux.resources.devices[0].type: "),
            (serde_json::json!({ "allow": true, "access": "r", "major": -2 }), "linux.resources.devices[0].major: -2"),
            (
                serde_json::json!({ "allow": true, "access": "r", "minor": 1u64 << 32 }),
                "linux.resources.devices[0].minor: ",
            ),
        ] {
            let rule = serde_json::from_value(json).expect("a rule");
            let e = compile(&[rule]).expect_err("it is wrong").to_string();
            assert!(e.starts_with(message), "{e}");
        }
    }
}
