//! Decisions to classic BPF: verdicts by system call number and arguments in, instructions out.
//!
//! The number space of an architecture is cut into segments that share a decision, so a run of allowed calls costs one comparison,
//! and a balanced tree of `>=` finds the segment. Jumps of classic BPF reach 255 instructions; longer ones go by way of a `ja`.
//! Only load, compare and return are used on the way to a plain verdict, which is what the kernel's cache of always allowed calls
//! understands (kernel/seccomp.c, seccomp_is_const_allow). Nothing here knows names of system calls or the OCI spec.

use crate::error::{Error, Result};
use crate::sys::SockFilter;

/// `BPF_MAXINSNS`, linux/bpf_common.h: the kernel takes no longer program.
pub const MAX_INSTRUCTIONS: usize = 4096;

/// `SECCOMP_RET_*`, linux/seccomp.h; errno and trace carry 16 bits of data.
pub const RET_KILL_PROCESS: u32 = 0x8000_0000;
pub const RET_KILL_THREAD: u32 = 0;
pub const RET_TRAP: u32 = 0x0003_0000;
pub const RET_ERRNO: u32 = 0x0005_0000;
pub const RET_TRACE: u32 = 0x7ff0_0000;
pub const RET_LOG: u32 = 0x7ffc_0000;
pub const RET_ALLOW: u32 = 0x7fff_0000;

// linux/bpf_common.h: class, size, mode and operation.
const LD_W_ABS: u16 = 0x20;
const ALU_AND_K: u16 = 0x54;
const JMP_JA: u16 = 0x05;
const JMP_JEQ_K: u16 = 0x15;
const JMP_JGT_K: u16 = 0x25;
const JMP_JGE_K: u16 = 0x35;
const RET_K: u16 = 0x06;

// struct seccomp_data, linux/seccomp.h; both machines are little endian.
const OFFSET_NR: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGS: u32 = 16;

/// Values compared by one run of `jeq`, so that its first jump still reaches its end.
const MAX_RUN: usize = 240;

/// How an argument is compared, OCI runtime spec, seccomp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    Equal(u64),
    NotEqual(u64),
    Less(u64),
    LessOrEqual(u64),
    Greater(u64),
    GreaterOrEqual(u64),
    /// Argument & mask == value.
    Masked {
        mask: u64,
        value: u64,
    },
}

/// How far back a verdict is looked for before another one is emitted; less than a jump reaches, for its tests are still to come.
const NEAR: usize = 200;

/// One comparison of one argument, 0 to 5.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    pub argument: u8,
    pub comparison: Comparison,
}

/// A verdict if every condition holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// At most six, one an argument.
    pub conditions: Vec<Condition>,
    pub verdict: u32,
}

/// What is decided about one or many system calls: the first rule that holds, or `otherwise`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub rules: Vec<Rule>,
    pub otherwise: u32,
}

impl Decision {
    /// The same verdict whatever the arguments.
    pub fn always(verdict: u32) -> Self {
        Decision { rules: Vec::new(), otherwise: verdict }
    }
}

/// From this number up to the next segment's, decision number `decision`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    start: u32,
    decision: usize,
}

/// What one `AUDIT_ARCH_*` value is given.
#[derive(Debug)]
pub struct Architecture {
    audit_arch: u32,
    /// Compare 64 bits of an argument, or the low 32.
    wide: bool,
    decisions: Vec<Decision>,
    segments: Vec<Segment>,
}

impl Architecture {
    /// One that decides `default` about every number, as decision number 0.
    pub fn new(audit_arch: u32, wide: bool, default: Decision) -> Self {
        let segments = vec![Segment { start: 0, decision: 0 }];
        Architecture { audit_arch, wide, decisions: vec![default], segments }
    }

    /// The number of a decision, for [`Architecture::push`].
    pub fn decision(&mut self, decision: Decision) -> usize {
        self.decisions.iter().position(|known| *known == decision).unwrap_or_else(|| {
            self.decisions.push(decision);
            self.decisions.len() - 1
        })
    }

    /// From `start` on, decision number `decision`. Calls come in rising order of `start`.
    pub fn push(&mut self, start: u32, decision: usize) {
        debug_assert!(decision < self.decisions.len());
        match self.segments.last_mut() {
            Some(last) if last.decision == decision => {}
            Some(last) if last.start == start => {
                last.decision = decision;
                self.merge_last();
            }
            _ => self.segments.push(Segment { start, decision }),
        }
    }

    fn merge_last(&mut self) {
        if let [.., before, last] = self.segments[..]
            && before.decision == last.decision
        {
            self.segments.pop();
        }
    }
}

/// The whole program: the architecture first, since numbers mean nothing without it, and `stranger` for any other one.
///
/// # Errors
/// ResourceExhausted above [`MAX_INSTRUCTIONS`].
pub fn assemble(architectures: &[Architecture], stranger: u32) -> Result<Vec<SockFilter>> {
    let mut code = Backwards { reversed: Vec::with_capacity(1024) };
    code.ret(stranger);
    for architecture in architectures.iter().rev() {
        let end = code.reversed.len();
        let tree = code.tree(architecture, &architecture.segments);
        code.go_to(tree);
        code.load(OFFSET_NR);
        code.jump(code.reversed.len() - end);
        code.test(JMP_JEQ_K, architecture.audit_arch, 1, 0);
    }
    code.load(OFFSET_ARCH);
    if code.reversed.len() > MAX_INSTRUCTIONS {
        let length = code.reversed.len();
        return Err(Error::exhausted(format!(
            "linux.seccomp: the filter has {length} instructions and the kernel takes {MAX_INSTRUCTIONS}: use fewer rules on arguments"
        )));
    }
    code.reversed.reverse();
    Ok(code.reversed)
}

/// Instructions, the last one first: what a jump must skip is then already there to be counted.
struct Backwards {
    reversed: Vec<SockFilter>,
}

impl Backwards {
    fn push(&mut self, code: u16, jt: u8, jf: u8, k: u32) {
        self.reversed.push(SockFilter { code, jt, jf, k });
    }

    fn ret(&mut self, verdict: u32) {
        self.push(RET_K, 0, 0, verdict);
    }

    fn load(&mut self, offset: u32) {
        self.push(LD_W_ABS, 0, 0, offset);
    }

    fn jump(&mut self, skip: usize) {
        // A skip beyond 32 bits is beyond MAX_INSTRUCTIONS, which assemble() refuses.
        self.push(JMP_JA, 0, 0, u32::try_from(skip).unwrap_or(u32::MAX));
    }

    fn test(&mut self, code: u16, k: u32, jt: u8, jf: u8) {
        self.push(code, jt, jf, k);
    }

    /// The search for the segment of a number. Gives what [`Backwards::skip_to`] takes: where the search begins.
    fn tree(&mut self, architecture: &Architecture, segments: &[Segment]) -> usize {
        if let [one] = segments {
            return self.decision(&architecture.decisions[one.decision], architecture.wide);
        }
        let (left, right) = segments.split_at(segments.len() / 2);
        let right_at = self.tree(architecture, right);
        let left_at = self.tree(architecture, left);
        // The farther one may need a jump of its own, which goes in between.
        let right_at = self.within_reach(right_at, 1);
        let left_at = self.within_reach(left_at, 0);
        let right_at = self.within_reach(right_at, 0);
        let near = |at: usize| u8::try_from(self.skip_to(at)).unwrap_or(u8::MAX); // within_reach
        let (on_true, on_false) = (near(right_at), near(left_at));
        self.test(JMP_JGE_K, right[0].start, on_true, on_false);
        self.reversed.len()
    }

    /// How many instructions lie between the next one that is emitted and `at`, a length of the code behind which it stood.
    fn skip_to(&self, at: usize) -> usize {
        self.reversed.len() - at
    }

    /// Goes on at `at`.
    fn go_to(&mut self, at: usize) {
        match self.skip_to(at) {
            0 => {}
            skip => self.jump(skip),
        }
    }

    /// `at`, or a jump to it when a test that comes after `more` instructions could not reach it.
    fn within_reach(&mut self, at: usize, more: usize) -> usize {
        if self.skip_to(at) + more <= usize::from(u8::MAX) {
            return at;
        }
        self.go_to(at);
        self.reversed.len()
    }

    /// What is done about a call whose number is found. A plain verdict is shared with whoever has the same one near.
    fn decision(&mut self, decision: &Decision, wide: bool) -> usize {
        if decision.rules.is_empty() {
            let nearest = self.reversed.len().saturating_sub(NEAR);
            let known = self.reversed[nearest..].iter().rposition(|i| (i.code, i.k) == (RET_K, decision.otherwise));
            if let Some(index) = known {
                return nearest + index + 1;
            }
        }
        self.ret(decision.otherwise);
        let mut rest = &decision.rules[..];
        while !rest.is_empty() {
            let run = equal_run(rest, wide);
            let (before, taken) = rest.split_at(rest.len() - run.max(1));
            let block = if run > 1 { values(taken, wide) } else { conditions(&taken[0], wide) };
            self.reversed.extend(block.into_iter().rev());
            rest = before;
        }
        self.reversed.len()
    }
}

fn halves(value: u64) -> (u32, u32) {
    let low = u32::try_from(value & 0xffff_ffff).unwrap_or_default(); // masked above: it fits
    let high = u32::try_from(value >> 32).unwrap_or_default(); // shifted: it fits
    (low, high)
}

/// How many rules at the end of `rules` compare one argument with one value each, all of one upper half and verdict.
fn equal_run(rules: &[Rule], wide: bool) -> usize {
    let key = |rule: &Rule| match rule.conditions[..] {
        [Condition { argument, comparison: Comparison::Equal(value) }] => {
            Some((argument, if wide { value >> 32 } else { 0 }, rule.verdict))
        }
        _ => None,
    };
    let Some(last) = rules.last().and_then(key) else { return 0 };
    rules.iter().rev().take(MAX_RUN).take_while(|rule| key(rule) == Some(last)).count()
}

/// One argument against many values, as [`equal_run`] found them.
fn values(rules: &[Rule], wide: bool) -> Vec<SockFilter> {
    let mut block = Vec::with_capacity(rules.len() + 4);
    let Some(first) = rules.first() else { return block };
    let (argument, low_values) =
        (first.conditions[0].argument, rules.iter().map(|rule| operand(&rule.conditions[0]).0));
    // MAX_RUN and the three instructions around it are below 256.
    let reach = |n: usize| u8::try_from(n).unwrap_or(u8::MAX);
    if wide {
        block.push(load_high(argument));
        let high = operand(&first.conditions[0]).1;
        block.push(SockFilter { code: JMP_JEQ_K, jt: 0, jf: reach(rules.len() + 2), k: high });
    }
    block.push(load_low(argument));
    for (i, low) in low_values.enumerate() {
        let to_verdict = rules.len() - 1 - i;
        let jf = u8::from(to_verdict == 0); // the last one skips the verdict when it differs too
        block.push(SockFilter { code: JMP_JEQ_K, jt: reach(to_verdict), jf, k: low });
    }
    block.push(SockFilter { code: RET_K, jt: 0, jf: 0, k: first.verdict });
    block
}

fn operand(condition: &Condition) -> (u32, u32) {
    match condition.comparison {
        Comparison::Equal(v)
        | Comparison::NotEqual(v)
        | Comparison::Less(v)
        | Comparison::LessOrEqual(v)
        | Comparison::Greater(v)
        | Comparison::GreaterOrEqual(v)
        | Comparison::Masked { value: v, .. } => halves(v),
    }
}

fn load_low(argument: u8) -> SockFilter {
    SockFilter { code: LD_W_ABS, jt: 0, jf: 0, k: OFFSET_ARGS + 8 * u32::from(argument) }
}

fn load_high(argument: u8) -> SockFilter {
    SockFilter { code: LD_W_ABS, jt: 0, jf: 0, k: OFFSET_ARGS + 8 * u32::from(argument) + 4 }
}

/// Where a comparison goes, before it is known how far that is.
#[derive(Clone, Copy)]
enum To {
    /// The next instruction.
    Next,
    /// Behind this condition: it holds.
    Holds,
    /// Behind the whole rule: it does not apply.
    Fails,
}

/// One rule: every condition in turn, then the verdict.
fn conditions(rule: &Rule, wide: bool) -> Vec<SockFilter> {
    let mut steps: Vec<(SockFilter, To, To)> = Vec::with_capacity(rule.conditions.len() * 6);
    let mut ends = Vec::with_capacity(steps.capacity());
    for condition in &rule.conditions {
        compare(condition, wide, &mut steps);
        ends.resize(steps.len(), steps.len()); // the end of the condition that each step belongs to
    }
    let behind = steps.len() + 1; // the verdict is at steps.len()
    let mut block = Vec::with_capacity(behind);
    for (i, (mut step, on_true, on_false)) in steps.into_iter().enumerate() {
        let skip = |to: To| {
            let target = match to {
                To::Next => i + 1,
                To::Holds => ends[i],
                To::Fails => behind,
            };
            u8::try_from(target - i - 1).unwrap_or(u8::MAX) // six conditions of six steps
        };
        (step.jt, step.jf) = (skip(on_true), skip(on_false));
        block.push(step);
    }
    block.push(SockFilter { code: RET_K, jt: 0, jf: 0, k: rule.verdict });
    block
}

/// The upper halves decide unless they are equal, then the lower ones; each line is one instruction.
fn compare(condition: &Condition, wide: bool, steps: &mut Vec<(SockFilter, To, To)>) {
    let (low, high) = operand(condition);
    let test = |code: u16, k: u32| SockFilter { code, jt: 0, jf: 0, k };
    let mut step = |instruction: SockFilter, on_true: To, on_false: To| steps.push((instruction, on_true, on_false));
    let mask = match condition.comparison {
        Comparison::Masked { mask, .. } => Some(halves(mask)),
        _ => None,
    };
    if wide {
        step(load_high(condition.argument), To::Next, To::Next);
        match condition.comparison {
            Comparison::Equal(_) => step(test(JMP_JEQ_K, high), To::Next, To::Fails),
            Comparison::NotEqual(_) => step(test(JMP_JEQ_K, high), To::Next, To::Holds),
            Comparison::Less(_) | Comparison::LessOrEqual(_) => {
                step(test(JMP_JGT_K, high), To::Fails, To::Next);
                step(test(JMP_JEQ_K, high), To::Next, To::Holds);
            }
            Comparison::Greater(_) | Comparison::GreaterOrEqual(_) => {
                step(test(JMP_JGT_K, high), To::Holds, To::Next);
                step(test(JMP_JEQ_K, high), To::Next, To::Fails);
            }
            Comparison::Masked { .. } => {
                step(test(ALU_AND_K, mask.unwrap_or_default().1), To::Next, To::Next);
                step(test(JMP_JEQ_K, high), To::Next, To::Fails);
            }
        }
    }
    step(load_low(condition.argument), To::Next, To::Next);
    match condition.comparison {
        Comparison::Equal(_) => step(test(JMP_JEQ_K, low), To::Next, To::Fails),
        Comparison::NotEqual(_) => step(test(JMP_JEQ_K, low), To::Fails, To::Next),
        Comparison::Less(_) => step(test(JMP_JGE_K, low), To::Fails, To::Next),
        Comparison::LessOrEqual(_) => step(test(JMP_JGT_K, low), To::Fails, To::Next),
        Comparison::Greater(_) => step(test(JMP_JGT_K, low), To::Next, To::Fails),
        Comparison::GreaterOrEqual(_) => step(test(JMP_JGE_K, low), To::Next, To::Fails),
        Comparison::Masked { .. } => {
            step(test(ALU_AND_K, mask.unwrap_or_default().0), To::Next, To::Next);
            step(test(JMP_JEQ_K, low), To::Next, To::Fails);
        }
    }
}

#[cfg(test)]
pub(super) mod machine {
    //! An interpreter of the subset that is emitted, as strict as the kernel's verifier: for the tests of the modules beside.
    use super::*;

    /// The verdict of `program` on a call. Panics where the kernel would refuse the program.
    pub fn run(program: &[SockFilter], arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let mut data = [0u8; 64];
        data[0..4].copy_from_slice(&number.to_le_bytes());
        data[4..8].copy_from_slice(&arch.to_le_bytes());
        for (slot, argument) in data[16..].chunks_mut(8).zip(arguments) {
            slot.copy_from_slice(&argument.to_le_bytes());
        }
        let (mut pc, mut a) = (0, 0u32);
        loop {
            let SockFilter { code, jt, jf, k } = program[pc];
            pc += 1;
            let mut branch = |holds: bool| pc += usize::from(if holds { jt } else { jf });
            match code {
                LD_W_ABS => {
                    let at = k as usize;
                    assert!(at.is_multiple_of(4), "the kernel refuses unaligned loads");
                    a = u32::from_le_bytes(data[at..at + 4].try_into().expect("four bytes"));
                }
                ALU_AND_K => a &= k,
                JMP_JA => pc += k as usize,
                JMP_JEQ_K => branch(a == k),
                JMP_JGT_K => branch(a > k),
                JMP_JGE_K => branch(a >= k),
                RET_K => return k,
                other => panic!("instruction {other:#x} is not emitted"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn holds(comparison: Comparison, argument: u64, wide: bool) -> bool {
        let cut = |v: u64| if wide { v } else { v & 0xffff_ffff };
        let a = cut(argument);
        match comparison {
            Comparison::Equal(v) => a == cut(v),
            Comparison::NotEqual(v) => a != cut(v),
            Comparison::Less(v) => a < cut(v),
            Comparison::LessOrEqual(v) => a <= cut(v),
            Comparison::Greater(v) => a > cut(v),
            Comparison::GreaterOrEqual(v) => a >= cut(v),
            Comparison::Masked { mask, value } => a & cut(mask) == cut(value),
        }
    }

    /// Values that are close in either half, so that comparisons meet their edges.
    fn value() -> impl Strategy<Value = u64> {
        let half = prop_oneof![Just(0u64), Just(1), Just(2), Just(0x7fff_ffff), Just(0xffff_fffe), Just(0xffff_ffff)];
        (half.clone(), half).prop_map(|(high, low)| high << 32 | low)
    }

    fn comparison() -> impl Strategy<Value = Comparison> {
        prop_oneof![
            value().prop_map(Comparison::Equal),
            value().prop_map(Comparison::NotEqual),
            value().prop_map(Comparison::Less),
            value().prop_map(Comparison::LessOrEqual),
            value().prop_map(Comparison::Greater),
            value().prop_map(Comparison::GreaterOrEqual),
            (value(), value()).prop_map(|(mask, value)| Comparison::Masked { mask, value }),
        ]
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let condition = (0u8..6, comparison()).prop_map(|(argument, comparison)| Condition { argument, comparison });
        (prop::collection::vec(condition, 1..=6), prop_oneof![Just(RET_ALLOW), Just(RET_ERRNO | 7), Just(RET_LOG)])
            .prop_map(|(conditions, verdict)| Rule { conditions, verdict })
    }

    proptest! {
        #[test]
        fn a_decision_is_the_first_rule_that_holds(
            rules in prop::collection::vec(rule(), 0..12),
            arguments in prop::array::uniform6(value()),
            wide: bool,
        ) {
            let expected = rules
                .iter()
                .find(|r| r.conditions.iter().all(|c| holds(c.comparison, arguments[usize::from(c.argument)], wide)))
                .map_or(RET_TRAP, |r| r.verdict);
            let architecture = Architecture::new(5, wide, Decision { rules, otherwise: RET_TRAP });
            let program = assemble(&[architecture], RET_KILL_PROCESS).expect("it is short");
            prop_assert_eq!(machine::run(&program, 5, 0, arguments), expected);
        }

        #[test]
        fn the_tree_finds_every_segment(
            cuts in prop::collection::btree_map(1u32..2000, 0usize..700, 0..900),
            numbers in prop::collection::vec(0u32..2100, 40),
        ) {
            let mut architecture = Architecture::new(5, true, Decision::always(RET_ERRNO));
            for verdict in 1..700 {
                architecture.decision(Decision::always(RET_ERRNO | verdict));
            }
            for (&start, &decision) in &cuts {
                architecture.push(start, decision);
            }
            let program = assemble(&[architecture], RET_KILL_PROCESS).expect("at most 900 segments");
            for number in numbers {
                let decision = cuts.range(..=number).next_back().map_or(0, |(_, d)| *d);
                let expected = RET_ERRNO | u32::try_from(decision).expect("small");
                prop_assert_eq!(machine::run(&program, 5, number, [0; 6]), expected);
            }
            prop_assert_eq!(machine::run(&program, 6, 0, [0; 6]), RET_KILL_PROCESS);
        }
    }

    #[test]
    fn a_long_run_of_values_is_one_comparison_each() {
        let rules: Vec<Rule> = (0..600)
            .map(|value| Rule {
                conditions: vec![Condition { argument: 2, comparison: Comparison::Equal(3 * value) }],
                verdict: RET_ALLOW,
            })
            .collect();
        let architecture = Architecture::new(5, true, Decision { rules, otherwise: RET_TRAP });
        let program = assemble(&[architecture], RET_KILL_PROCESS).expect("it is short");
        assert!(program.len() < 630, "{} instructions", program.len());
        for value in 0..1800 {
            let expected = if value % 3 == 0 { RET_ALLOW } else { RET_TRAP };
            assert_eq!(machine::run(&program, 5, 9, [9, 9, value, 9, 9, 9]), expected);
            assert_eq!(machine::run(&program, 5, 9, [9, 9, value | 1 << 32, 9, 9, 9]), RET_TRAP);
        }
    }

    #[test]
    fn a_filter_too_long_for_the_kernel_is_an_error() {
        let rule = Rule {
            conditions: vec![Condition { argument: 0, comparison: Comparison::NotEqual(1) }],
            verdict: RET_ALLOW,
        };
        let decision = Decision { rules: vec![rule; 1500], otherwise: RET_TRAP };
        let e = assemble(&[Architecture::new(5, true, decision)], 0).expect_err("five instructions a rule");
        assert_eq!(e.kind(), crate::error::Kind::ResourceExhausted);
    }
}
