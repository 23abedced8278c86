//! A seccomp profile of the OCI runtime spec, compiled to the program that the kernel runs before every system call.
//!
//! Where the spec is silent, what profiles in the field were written against holds (runc with libseccomp):
//!
//! * A rule without arguments wins over rules with arguments for the same call, the first such rule over later ones; else the
//!   first rule that holds. A rule whose action is the default one is dropped before that.
//! * Arguments of a rule must all hold; if two of them compare the same argument, each of them is a rule of its own.
//! * The machine's own architecture is always covered; names that a table does not have are ignored in it.
//! * Calls newer than every call the profile names get ENOSYS unless the default action lets them through: programs probe for
//!   new calls and fall back on ENOSYS, but not on EPERM.
//!
//! Stricter than that: an architecture the profile does not list kills the process, not the thread; and on i386 a call that also
//! exists inside socketcall(2) or ipc(2) is decided there too, and where its arguments would decide, it is not allowed there.
//!
//! Pure: `sys::seccomp::install` gives a program to the kernel. The default profile is in `seccomp_profile`.

use std::collections::HashMap;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompFilterFlag as Flag,
    LinuxSeccompOperator as Operator, LinuxSyscall,
};

use super::seccomp_abi::{Abi, SEQUENCE_END, X32_BIT};
use super::seccomp_program::{
    Architecture, Comparison, Condition, Decision, RET_ALLOW, RET_ERRNO, RET_KILL_PROCESS, RET_KILL_THREAD, RET_LOG,
    RET_TRACE, RET_TRAP, Rule, assemble,
};
use crate::error::{Error, Result};
use crate::sys::{SECCOMP_FILTER_FLAG_LOG, SECCOMP_FILTER_FLAG_SPEC_ALLOW, SECCOMP_FILTER_FLAG_TSYNC, SockFilter};

pub use super::seccomp_abi::Machine;

/// asm-generic/errno.h; the same on both machines.
pub(super) const ENOSYS: u32 = 38;
/// asm-generic/errno-base.h.
pub(super) const EPERM: u32 = 1;
/// `MAX_ERRNO`, linux/err.h: the kernel would silently cut a larger one down to it.
const MAX_ERRNO: u32 = 4095;
/// Arguments a system call has.
const MAX_ARGUMENTS: usize = 6;

/// What `sys::install_seccomp` takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    pub code: Vec<SockFilter>,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: u32,
}

/// Compiles the `linux.seccomp` of an OCI spec for `machine`.
///
/// # Errors
/// InvalidArgument or Unsupported naming the field; ResourceExhausted when the program is longer than the kernel takes.
pub fn compile(profile: &LinuxSeccomp, machine: Machine) -> Result<Program> {
    let flags = flags(profile)?;
    if profile.listener_path().is_some() || profile.listener_metadata().is_some() {
        return Err(Error::unsupported(
            "linux.seccomp.listenerPath, listenerMetadata: seccomp notification is not supported, remove them",
        ));
    }
    let default = verdict("linux.seccomp.default", profile.default_action(), profile.default_errno_ret())?;
    let rules = Rules::read(profile, default)?;
    let wanted = |abi: Abi| abi == machine.abis()[0] || listed(profile, abi);
    let mut architectures: Vec<Architecture> = Vec::new();
    for &abi in machine.abis() {
        match abi {
            Abi::X32 => {} // a part of x86_64
            Abi::X86_64 => architectures.push(rules.x86_64(wanted(Abi::X32))),
            _ if wanted(abi) => {
                let mut architecture = Architecture::new(abi.audit_arch(), abi.wide(), Decision::always(default));
                rules.lay_out(abi, &mut architecture);
                architectures.push(architecture);
            }
            _ => {}
        }
    }
    Ok(Program { code: assemble(&architectures, RET_KILL_PROCESS)?, flags })
}

fn listed(profile: &LinuxSeccomp, abi: Abi) -> bool {
    let arch = match abi {
        Abi::X86_64 => Arch::ScmpArchX86_64,
        Abi::X32 => Arch::ScmpArchX32,
        Abi::I386 => Arch::ScmpArchX86,
        Abi::Aarch64 => Arch::ScmpArchAarch64,
        Abi::Arm => Arch::ScmpArchArm,
    };
    profile.architectures().as_ref().is_some_and(|all| all.contains(&arch))
}

fn flags(profile: &LinuxSeccomp) -> Result<u32> {
    profile.flags().iter().flatten().try_fold(0, |flags, flag| {
        Ok(flags
            | match flag {
                Flag::SeccompFilterFlagTsync => SECCOMP_FILTER_FLAG_TSYNC,
                Flag::SeccompFilterFlagLog => SECCOMP_FILTER_FLAG_LOG,
                Flag::SeccompFilterFlagSpecAllow => SECCOMP_FILTER_FLAG_SPEC_ALLOW,
                Flag::SeccompFilterFlagWaitKillableRecv => {
                    return Err(Error::unsupported(
                        "linux.seccomp.flags: SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV needs seccomp notification, which is not supported",
                    ));
                }
            })
    })
}

/// The verdict of an action. `at` is the field without its last word, which is `Action` or `ErrnoRet` for the default.
fn verdict(at: &str, action: Action, errno: Option<u32>) -> Result<u32> {
    let default = at.ends_with("default");
    let (action_field, errno_field) = if default { ("Action", "ErrnoRet") } else { (".action", ".errnoRet") };
    if errno.is_some() && !matches!(action, Action::ScmpActErrno | Action::ScmpActTrace) {
        return Err(Error::invalid(format!("{at}{errno_field}: {action} returns no errno, remove it")));
    }
    let errno = errno.unwrap_or(EPERM);
    if errno > MAX_ERRNO {
        return Err(Error::invalid(format!("{at}{errno_field}: {errno} is above {MAX_ERRNO}, the largest errno")));
    }
    Ok(match action {
        Action::ScmpActAllow => RET_ALLOW,
        Action::ScmpActErrno => RET_ERRNO | errno,
        Action::ScmpActKill | Action::ScmpActKillThread => RET_KILL_THREAD,
        Action::ScmpActKillProcess => RET_KILL_PROCESS,
        Action::ScmpActTrap => RET_TRAP,
        Action::ScmpActTrace => RET_TRACE | errno,
        Action::ScmpActLog => RET_LOG,
        Action::ScmpActNotify => {
            return Err(Error::unsupported(format!(
                "{at}{action_field}: SCMP_ACT_NOTIFY is not supported, choose another action"
            )));
        }
    })
}

/// Whether the call is made, or is a tracer's to judge, who knows what to do about new calls.
fn lets_through(verdict: u32) -> bool {
    [RET_ALLOW, RET_LOG, RET_TRACE].contains(&(verdict & 0xffff_0000))
}

/// What is said about one name; nothing, if its rule is no other than the default.
#[derive(Debug, Clone, Default)]
struct Said {
    always: Option<u32>,
    rules: Vec<Rule>,
}

/// The rules of a profile by name.
struct Rules<'a> {
    by_name: HashMap<&'a str, Said>,
    default: u32,
}

impl<'a> Rules<'a> {
    fn read(profile: &'a LinuxSeccomp, default: u32) -> Result<Self> {
        let mut rules = Rules { by_name: HashMap::with_capacity(SEQUENCE_END as usize), default };
        for (i, syscall) in profile.syscalls().iter().flatten().enumerate() {
            let at = format!("linux.seccomp.syscalls[{i}]");
            rules.add(&at, syscall)?;
        }
        Ok(rules)
    }

    fn add(&mut self, at: &str, syscall: &'a LinuxSyscall) -> Result<()> {
        let verdict = verdict(at, syscall.action(), syscall.errno_ret())?;
        let conditions = conditions(at, syscall.args().as_deref().unwrap_or_default())?;
        for name in syscall.names() {
            let said = self.by_name.entry(name).or_default();
            if verdict == self.default {
                continue;
            }
            if conditions.is_empty() {
                said.always.get_or_insert(verdict);
            }
            said.rules.extend(conditions.iter().map(|conditions| Rule { conditions: conditions.clone(), verdict }));
        }
        Ok(())
    }

    /// x86_64 and x32 share an architecture value; x32 is the numbers from [`X32_BIT`] on.
    fn x86_64(&self, with_x32: bool) -> Architecture {
        let default = Decision::always(self.default);
        let mut architecture = Architecture::new(Abi::X86_64.audit_arch(), Abi::X86_64.wide(), default);
        let unknown = self.lay_out(Abi::X86_64, &mut architecture);
        if with_x32 {
            self.lay_out(Abi::X32, &mut architecture);
        } else {
            let kill = architecture.decision(Decision::always(RET_KILL_PROCESS));
            architecture.push(X32_BIT, kill);
        }
        architecture.push(u32::MAX, unknown); // -1 is no x32 call: it has the bit because it has every bit
        architecture
    }

    /// Adds what is decided in one table; returns the decision about numbers beyond it.
    fn lay_out(&self, abi: Abi, architecture: &mut Architecture) -> usize {
        let carriers = self.carriers(abi);
        let said = |name: &str| {
            let alias = || self.by_name.get(abi.alias(name)?);
            carriers.get(name).or_else(|| self.by_name.get(name)).or_else(alias)
        };
        let mut decide = |name: &str| {
            let said = said(name)?;
            let rules = if said.always.is_some() { Vec::new() } else { said.rules.clone() };
            Some(architecture.decision(Decision { rules, otherwise: said.always.unwrap_or(self.default) }))
        };
        let sequence: Vec<_> = (0..SEQUENCE_END).map(|number| decide(abi.name(number)?)).collect();
        let (first, names) = abi.island();
        let island: Vec<_> = names.iter().map(|name| decide(name)).collect();

        let named = |name: &str| {
            self.by_name.contains_key(name) || abi.alias(name).is_some_and(|alias| self.by_name.contains_key(alias))
        };
        let newest = (0..SEQUENCE_END).rev().find(|number| abi.name(*number).is_some_and(named));
        let (newest, unknown) = match newest {
            Some(newest) if !lets_through(self.default) => {
                (newest, architecture.decision(Decision::always(RET_ERRNO | ENOSYS)))
            }
            _ => (SEQUENCE_END - 1, 0),
        };
        push_table(architecture, abi, newest, unknown, |number| {
            let (slots, index) = if number < SEQUENCE_END { (&sequence, number) } else { (&island, number - first) };
            slots.get(index as usize).copied().flatten().unwrap_or(0)
        });
        unknown
    }

    /// What is said about the calls that carry others: first what the profile says itself, then what follows for them from what
    /// it says about the calls they carry.
    fn carriers(&self, abi: Abi) -> HashMap<&'static str, Said> {
        let mut carriers = HashMap::new();
        for carrier in abi.carriers() {
            let mut all = self.by_name.get(carrier.name).cloned().unwrap_or_default();
            let mut named = self.by_name.contains_key(carrier.name);
            for (selector, name) in carrier.carried {
                let Some(said) = self.by_name.get(name) else { continue };
                // The arguments are behind a pointer: where they decide, the call is not let through on this road.
                let strict = || said.rules.iter().map(|rule| rule.verdict).find(|verdict| !lets_through(*verdict));
                let Some(verdict) = said.always.or_else(strict) else { continue };
                let comparison = Comparison::Masked { mask: u64::from(carrier.mask), value: u64::from(*selector) };
                all.rules.push(Rule { conditions: vec![Condition { argument: 0, comparison }], verdict });
                named = true;
            }
            if named {
                carriers.insert(carrier.name, all);
            }
        }
        carriers
    }
}

/// Adds one table to its architecture: `decide` up to the newest number and in the island, `unknown` around them.
pub(super) fn push_table(
    architecture: &mut Architecture,
    abi: Abi,
    newest: u32,
    unknown: usize,
    decide: impl Fn(u32) -> usize,
) {
    for number in 0..=newest {
        architecture.push(abi.base() + number, decide(number));
    }
    architecture.push(abi.base() + newest + 1, unknown);
    let (first, names) = abi.island();
    let mut end = first;
    for (number, _) in (first..).zip(names) {
        architecture.push(abi.base() + number, decide(number));
        end = number + 1;
    }
    if end > first {
        architecture.push(abi.base() + end, unknown);
    }
}

/// The alternatives a rule has: one, unless two comparisons are of the same argument; none for a rule without arguments.
fn conditions(at: &str, args: &[LinuxSeccompArg]) -> Result<Vec<Vec<Condition>>> {
    let mut seen = [false; MAX_ARGUMENTS];
    let (mut all, mut twice) = (Vec::with_capacity(args.len()), false);
    for (i, arg) in args.iter().enumerate() {
        let out_of_range = || {
            Error::invalid(format!(
                "{at}.args[{i}].index: {} is above 5, the last argument of a system call",
                arg.index()
            ))
        };
        let slot = seen.get_mut(arg.index()).ok_or_else(out_of_range)?;
        twice |= std::mem::replace(slot, true);
        let argument = u8::try_from(arg.index()).map_err(|_| out_of_range())?;
        let (value, second) = (arg.value(), arg.value_two().unwrap_or(0));
        let comparison = match arg.op() {
            Operator::ScmpCmpNe => Comparison::NotEqual(value),
            Operator::ScmpCmpLt => Comparison::Less(value),
            Operator::ScmpCmpLe => Comparison::LessOrEqual(value),
            Operator::ScmpCmpEq => Comparison::Equal(value),
            Operator::ScmpCmpGe => Comparison::GreaterOrEqual(value),
            Operator::ScmpCmpGt => Comparison::Greater(value),
            Operator::ScmpCmpMaskedEq => Comparison::Masked { mask: value, value: second },
        };
        all.push(Condition { argument, comparison });
    }
    Ok(match (all.is_empty(), twice) {
        (true, _) => Vec::new(),
        (false, true) => all.into_iter().map(|condition| vec![condition]).collect(),
        (false, false) => vec![all],
    })
}

#[cfg(test)]
mod tests {
    use super::super::seccomp_program::machine::run;
    use super::*;
    use proptest::prelude::*;

    fn profile(json: serde_json::Value) -> LinuxSeccomp {
        serde_json::from_value(json).expect("the test writes valid profiles")
    }

    fn compiled(json: serde_json::Value) -> Vec<SockFilter> {
        compile(&profile(json), Machine::X86_64).expect("it compiles").code
    }

    fn refused(json: serde_json::Value) -> String {
        compile(&profile(json), Machine::X86_64).expect_err("it is wrong").to_string()
    }

    const X86_64: u32 = 0xc000_003e;
    const I386: u32 = 0x4000_0003;

    #[test]
    fn every_action_has_its_verdict() {
        for (action, errno, expected) in [
            ("SCMP_ACT_ALLOW", None, 0x7fff_0000),
            ("SCMP_ACT_ERRNO", None, 0x0005_0001),
            ("SCMP_ACT_ERRNO", Some(110), 0x0005_006e),
            ("SCMP_ACT_KILL", None, 0),
            ("SCMP_ACT_KILL_THREAD", None, 0),
            ("SCMP_ACT_KILL_PROCESS", None, 0x8000_0000),
            ("SCMP_ACT_TRAP", None, 0x0003_0000),
            ("SCMP_ACT_TRACE", Some(7), 0x7ff0_0007),
            ("SCMP_ACT_LOG", None, 0x7ffc_0000),
        ] {
            let mut rule = serde_json::json!({ "names": ["mkdir", "no_such_call"], "action": action });
            if let Some(errno) = errno {
                rule["errnoRet"] = errno.into();
            }
            let code = compiled(
                serde_json::json!({ "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 99, "syscalls": [rule] }),
            );
            assert_eq!(run(&code, X86_64, 83, [0; 6]), expected, "{action}");
            assert_eq!(run(&code, X86_64, 82, [0; 6]), 0x0005_0063);
        }
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_field() {
        let rule = |key: &str, value: serde_json::Value| {
            let mut rule = serde_json::json!({ "names": ["read"], "action": "SCMP_ACT_ERRNO" });
            rule[key] = value;
            serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] })
        };
        let arg = serde_json::json!([{ "index": 6, "value": 1, "op": "SCMP_CMP_EQ" }]);
        for (json, field) in [
            (serde_json::json!({ "defaultAction": "SCMP_ACT_NOTIFY" }), "linux.seccomp.defaultAction: SCMP_ACT_NOTIFY"),
            (
                serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1 }),
                "linux.seccomp.defaultErrnoRet: ",
            ),
            (
                serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x" }),
                "linux.seccomp.listenerPath",
            ),
            (
                serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"] }),
                "linux.seccomp.flags: SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
            ),
            (rule("action", "SCMP_ACT_NOTIFY".into()), "linux.seccomp.syscalls[0].action: SCMP_ACT_NOTIFY"),
            (rule("errnoRet", 4096.into()), "linux.seccomp.syscalls[0].errnoRet: 4096"),
            (rule("args", arg), "linux.seccomp.syscalls[0].args[0].index: 6"),
        ] {
            let message = refused(json);
            assert!(message.starts_with(field), "{message}");
        }
    }

    #[test]
    fn flags_are_those_of_the_kernel() {
        let profile = profile(serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW", "flags":
            ["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"] }));
        assert_eq!(compile(&profile, Machine::X86_64).expect("it compiles").flags, 7);
    }

    #[test]
    fn architectures_not_listed_kill_but_the_machines_own_is_always_there() {
        let code =
            compiled(serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"] }));
        assert_eq!(run(&code, X86_64, 1, [0; 6]), RET_ALLOW);
        assert_eq!(run(&code, I386, 1, [0; 6]), RET_ALLOW);
        assert_eq!(run(&code, X86_64, X32_BIT | 1, [0; 6]), RET_KILL_PROCESS, "x32 is not listed");
        assert_eq!(run(&code, X86_64, u32::MAX, [0; 6]), RET_ALLOW, "-1 is not x32");
        assert_eq!(run(&code, 0xc000_00b7, 1, [0; 6]), RET_KILL_PROCESS);
    }

    #[test]
    fn a_denied_socket_is_denied_inside_socketcall_too() {
        let code = compiled(serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"],
            "syscalls": [
                { "names": ["socket"], "action": "SCMP_ACT_ERRNO", "args": [{ "index": 0, "value": 38, "op": "SCMP_CMP_EQ" }] },
                { "names": ["shmat"], "action": "SCMP_ACT_ERRNO" },
            ] }));
        assert_eq!(run(&code, I386, 102, [1, 0, 0, 0, 0, 0]), RET_ERRNO | 1, "the family cannot be seen");
        assert_eq!(run(&code, I386, 102, [2, 0, 0, 0, 0, 0]), RET_ALLOW);
        assert_eq!(run(&code, I386, 117, [21 | 1 << 16, 0, 0, 0, 0, 0]), RET_ERRNO | 1, "a version hides nothing");
        assert_eq!(run(&code, I386, 359, [2, 0, 0, 0, 0, 0]), RET_ALLOW);
    }

    #[test]
    fn new_calls_are_unknown_unless_the_default_lets_them_through() {
        let verdict = |default: &str| {
            let code = compiled(serde_json::json!({ "defaultAction": default,
                "syscalls": [{ "names": ["openat2"], "action": "SCMP_ACT_ALLOW" }] }));
            run(&code, X86_64, 438, [0; 6])
        };
        assert_eq!(verdict("SCMP_ACT_ERRNO"), RET_ERRNO | ENOSYS);
        assert_eq!(verdict("SCMP_ACT_KILL_PROCESS"), RET_ERRNO | ENOSYS);
        assert_eq!(verdict("SCMP_ACT_LOG"), RET_LOG);
        assert_eq!(verdict("SCMP_ACT_ALLOW"), RET_ALLOW);
    }

    /// Names that differ between the tables, in the sequence and in the islands, and with carriers.
    const NAMES: &[&str] = &[
        "read",
        "write",
        "execve",
        "ioctl",
        "ptrace",
        "socket",
        "bind",
        "accept",
        "socketcall",
        "ipc",
        "semop",
        "shmat",
        "clone",
        "clone3",
        "set_tls",
        "cacheflush",
        "pwritev2",
        "mseal",
        "newfstatat",
        "futex_waitv",
        "keyctl",
        "nothing",
    ];

    fn action() -> impl Strategy<Value = (Action, Option<u32>)> {
        prop_oneof![
            Just((Action::ScmpActAllow, None)),
            Just((Action::ScmpActErrno, None)),
            (0u32..4096).prop_map(|errno| (Action::ScmpActErrno, Some(errno))),
            Just((Action::ScmpActKillThread, None)),
            Just((Action::ScmpActTrap, None)),
            Just((Action::ScmpActLog, None)),
        ]
    }

    fn value() -> impl Strategy<Value = u64> {
        prop_oneof![Just(0u64), Just(1), Just(2), Just(0xffff_ffff), Just(1 << 32), Just(1 << 32 | 1), Just(u64::MAX)]
    }

    fn arg() -> impl Strategy<Value = LinuxSeccompArg> {
        const OPERATORS: [Operator; 7] = [
            Operator::ScmpCmpNe,
            Operator::ScmpCmpLt,
            Operator::ScmpCmpLe,
            Operator::ScmpCmpEq,
            Operator::ScmpCmpGe,
            Operator::ScmpCmpGt,
            Operator::ScmpCmpMaskedEq,
        ];
        (0usize..3, prop::sample::select(&OPERATORS[..]), value(), prop::option::of(value())).prop_map(
            |(index, op, value, second)| {
                let mut json = serde_json::json!({ "index": index, "op": op, "value": value });
                if let Some(second) = second {
                    json["valueTwo"] = second.into();
                }
                serde_json::from_value(json).expect("valid")
            },
        )
    }

    fn any_profile() -> impl Strategy<Value = LinuxSeccomp> {
        let rule =
            (prop::collection::vec(prop::sample::select(NAMES), 1..4), action(), prop::collection::vec(arg(), 0..4));
        (
            action(),
            prop::collection::vec(rule, 0..12),
            prop::collection::vec(
                prop::sample::select(&[Arch::ScmpArchX86, Arch::ScmpArchX32, Arch::ScmpArchArm, Arch::ScmpArchRiscv64]),
                0..4,
            ),
        )
            .prop_map(|((default, errno), rules, arches)| {
                let mut profile = LinuxSeccomp::default();
                profile.set_default_action(default).set_default_errno_ret(errno).set_architectures(Some(arches));
                profile.set_syscalls(Some(
                    rules
                        .into_iter()
                        .map(|(names, (action, errno), args)| {
                            let mut syscall = LinuxSyscall::default();
                            syscall.set_names(names.into_iter().map(str::to_string).collect());
                            syscall.set_action(action).set_errno_ret(errno).set_args(Some(args));
                            syscall
                        })
                        .collect(),
                ));
                profile
            })
    }

    /// The profile's meaning, straight from the module doc: one call, no tables of decisions, no instructions.
    fn naive(profile: &LinuxSeccomp, machine: Machine, abi: Abi, number: u32, arguments: [u64; 6]) -> u32 {
        let act = |action: Action, errno: Option<u32>| action.as_u32(errno);
        let default = act(profile.default_action(), profile.default_errno_ret());
        if abi != machine.abis()[0] && !listed(profile, abi) {
            return RET_KILL_PROCESS;
        }
        let rules = profile.syscalls().as_deref().unwrap_or_default();
        let live = || rules.iter().filter(|rule| act(rule.action(), rule.errno_ret()) != default);
        let numbers = abi.numbers();
        let newest = rules.iter().flat_map(LinuxSyscall::names).filter_map(|n| numbers.get(n.as_str())?[0]).max();
        let islands = abi.island().0..abi.island().0 + u32::try_from(abi.island().1.len()).expect("short");
        let through = [RET_ALLOW, RET_LOG].contains(&default);
        if !through && newest.is_some_and(|newest| number > newest) && !islands.contains(&number) {
            return RET_ERRNO | ENOSYS;
        }
        let Some((name, _)) = numbers.iter().find(|(_, all)| all.contains(&Some(number))) else { return default };
        let cut = |v: u64| if abi.wide() { v } else { v & 0xffff_ffff };
        let holds = |arg: &LinuxSeccompArg| {
            let (a, v) = (cut(arguments[arg.index()]), cut(arg.value()));
            match arg.op() {
                Operator::ScmpCmpNe => a != v,
                Operator::ScmpCmpLt => a < v,
                Operator::ScmpCmpLe => a <= v,
                Operator::ScmpCmpEq => a == v,
                Operator::ScmpCmpGe => a >= v,
                Operator::ScmpCmpGt => a > v,
                Operator::ScmpCmpMaskedEq => a & v == cut(arg.value_two().unwrap_or(0)),
            }
        };
        let args = |rule: &LinuxSyscall| rule.args().clone().unwrap_or_default();
        let of = |name: &str| live().filter(move |rule| rule.names().iter().any(|n| n == name)).collect::<Vec<_>>();
        let always = |rules: &[&LinuxSyscall]| {
            rules.iter().find(|rule| args(rule).is_empty()).map(|rule| act(rule.action(), rule.errno_ret()))
        };
        let own = of(name);
        if let Some(verdict) = always(&own) {
            return verdict;
        }
        for rule in own {
            let args = args(rule);
            let twice = (0..6).any(|i| args.iter().filter(|arg| arg.index() == i).count() > 1);
            if if twice { args.iter().any(holds) } else { args.iter().all(holds) } {
                return act(rule.action(), rule.errno_ret());
            }
        }
        let carrier = abi.carriers().iter().find(|carrier| carrier.name == *name);
        let carried = carrier.into_iter().flat_map(|carrier| carrier.carried.iter().map(|c| (carrier.mask, c)));
        for (mask, (selector, carried)) in carried {
            if arguments[0] & u64::from(mask) & 0xffff_ffff != u64::from(*selector) {
                continue;
            }
            let said = of(carried);
            let strict = said
                .iter()
                .map(|rule| act(rule.action(), rule.errno_ret()))
                .find(|v| ![RET_ALLOW, RET_LOG].contains(v));
            if let Some(verdict) = always(&said).or(strict) {
                return verdict;
            }
        }
        default
    }

    proptest! {
        #[test]
        fn a_program_means_what_the_profile_says(
            profile in any_profile(),
            arm: bool,
            calls in prop::collection::vec((0usize..3, prop::sample::select(NAMES), 0u32..560, any::<bool>(), prop::array::uniform6(value())), 30),
            selector in prop::sample::select(&[1u64, 2, 5, 21, 0x1_0015]),
        ) {
            let machine = if arm { Machine::Aarch64 } else { Machine::X86_64 };
            let code = compile(&profile, machine).expect("it is small").code;
            for (abi, name, number, by_name, mut arguments) in calls {
                let abi = machine.abis()[abi % machine.abis().len()];
                let named = abi.numbers().get(name).copied().unwrap_or_default().into_iter().flatten().next_back();
                let number = named.filter(|_| by_name).unwrap_or(number);
                if ["socketcall", "ipc"].contains(&name) {
                    arguments[0] = selector;
                }
                let expected = naive(&profile, machine, abi, number, arguments);
                let verdict = run(&code, abi.audit_arch(), abi.base() | number, arguments);
                prop_assert_eq!(verdict, expected, "{} ({}) of {:?} with {:x?}", number, name, abi, arguments);
            }
        }
    }
}
