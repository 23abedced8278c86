//! Whether what the kernel shows is what was written, each file as the kernel rounds and orders it. No I/O.
//!
//! Measured on 6.1 and 6.12: memory and hugetlb are rounded down to their page, and turn into `max` at the counter's end; cpu.max
//! always shows its period; cpuset is normalised; io.max is reordered and completed, and absent when all is `max`. Anything else is
//! a difference: a number too long for the kernel wraps silently, and only this tells.

use std::collections::{BTreeMap, BTreeSet};

/// The highest number of a cpu or memory node that is understood: `NR_CPUS` is at most 8192.
const MAX_SET_MEMBER: u32 = 8191;

/// How a file is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// A number or `max`.
    Number,
    /// Bytes or `max`, rounded down to this unit (a page, or a huge page).
    Bytes { unit: u64 },
    /// `quota [period]`, microseconds; the quota may be `max`.
    CpuMax,
    /// A number with decimals (`cpu.uclamp.*`).
    Decimal,
    /// The list format of cpuset(7).
    Set,
    /// Lines of a name and values: io.max, io.weight, rdma.max, misc.max.
    Map,
    /// A word.
    Text,
}

impl Compare {
    /// Whether a kernel that shows `kernel` has taken `written` for what it was.
    pub fn holds(self, written: &str, kernel: &str) -> bool {
        let (written, kernel) = (written.trim(), kernel.trim());
        match self {
            Compare::Number => number(written).is_some() && number(written) == number(kernel),
            Compare::Bytes { unit } => rounded(written, unit).is_some_and(|expected| expected == kernel),
            Compare::CpuMax => cpu_max_holds(written, kernel),
            Compare::Decimal => decimal(written).is_some() && decimal(written) == decimal(kernel),
            Compare::Set => set(written).is_some() && set(written) == set(kernel),
            Compare::Map => {
                let kernel = map(kernel);
                map(written).iter().all(|(key, value)| match kernel.get(key) {
                    Some(shown) => shown == value,
                    None => value == "max" || value == "default",
                })
            }
            Compare::Text => written == kernel,
        }
    }
}

/// `None` stands for no number, `Some(None)` for `max`.
fn number(text: &str) -> Option<Option<i128>> {
    if text == "max" { Some(None) } else { text.parse().ok().map(Some) }
}

/// What the kernel shows for so many bytes: page_counter_set_max counts pages up to `LONG_MAX / PAGE_SIZE`, which is `max`.
/// A limit other than 0 that becomes 0 is none that was asked for.
fn rounded(written: &str, unit: u64) -> Option<String> {
    if written == "max" {
        return Some(written.to_owned());
    }
    let bytes: u64 = written.parse().ok()?;
    let down = bytes / unit * unit;
    if down == 0 && bytes != 0 {
        return None;
    }
    let end = i64::MAX.unsigned_abs() / unit * unit;
    Some(if down >= end { "max".to_owned() } else { down.to_string() })
}

fn cpu_max_holds(written: &str, kernel: &str) -> bool {
    let written: Vec<_> = written.split_whitespace().map(number).collect();
    let kernel: Vec<_> = kernel.split_whitespace().map(number).collect();
    let known = written.iter().chain(&kernel).all(Option::is_some);
    known && kernel.len() == 2 && matches!(written.len(), 1 | 2) && kernel.starts_with(&written)
}

/// Hundredths; `max` is 100 percent.
fn decimal(text: &str) -> Option<u64> {
    let text = if text == "max" { "100" } else { text };
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let part = format!("{part:0<2}");
    if part.len() != 2 {
        return None;
    }
    whole.parse::<u64>().ok()?.checked_mul(100)?.checked_add(part.parse().ok()?)
}

/// The members of a list as cpuset(7) has it (`0-3,5`); empty text is the empty set. `None` for anything else.
pub fn set(text: &str) -> Option<BTreeSet<u32>> {
    let mut members = BTreeSet::new();
    for range in text.trim().split(',').filter(|_| !text.trim().is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let digits =
            |text: &str| if text.bytes().all(|b| b.is_ascii_digit()) { text.parse::<u32>().ok() } else { None };
        let (first, last) = (digits(first)?, digits(last)?);
        if first > last || last > MAX_SET_MEMBER {
            return None;
        }
        members.extend(first..=last);
    }
    Some(members)
}

/// Lines of a name and values as (name, key) to value; the key of a value without one is empty, and a line that is a value alone
/// is the `default` (io.weight).
pub(super) fn map(text: &str) -> BTreeMap<(String, String), String> {
    let mut values = BTreeMap::new();
    for line in text.lines() {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        if words.len() == 1 {
            words.insert(0, "default");
        }
        let Some((name, rest)) = words.split_first() else { continue };
        for word in rest {
            let (key, value) = word.split_once('=').unwrap_or(("", word));
            values.insert(((*name).to_owned(), key.to_owned()), value.to_owned());
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: Compare = Compare::Bytes { unit: 4096 };
    const HUGE: Compare = Compare::Bytes { unit: 2 << 20 };

    #[test]
    fn what_the_kernel_rounds_is_accepted_and_nothing_else() {
        let cases = [
            (PAGE, "1000000", "999424\n", true),
            (PAGE, "100000000", "99999744", true),
            (PAGE, "134217728", "134217728", true),
            (PAGE, "1000000", "1000000", false),
            (PAGE, "1000000", "995328", false),
            (PAGE, "4095", "0", false),
            (PAGE, "0", "0", true),
            (PAGE, "max", "max", true),
            (PAGE, "4096", "max", false),
            (PAGE, "9223372036854775807", "max", true),
            (PAGE, "99999999999999999999", "7766279631452237824", false),
            (HUGE, "3000000", "2097152", true),
            (HUGE, "3000000", "2998272", false),
            (Compare::CpuMax, "50000", "50000 100000", true),
            (Compare::CpuMax, "50000 100000", "50000 100000", true),
            (Compare::CpuMax, "max 100000", "max 100000", true),
            (Compare::CpuMax, "50000 100000", "50000 50000", false),
            (Compare::CpuMax, "50000", "max 100000", false),
            (Compare::CpuMax, "x", "x 100000", false),
            (Compare::Number, "100", "100", true),
            (Compare::Number, "0100", "100", true),
            (Compare::Number, "max", "max", true),
            (Compare::Number, "100", "99", false),
            (Compare::Number, "x", "x", false),
            (Compare::Decimal, "50", "50.00", true),
            (Compare::Decimal, "50.5", "50.50", true),
            (Compare::Decimal, "max", "max", true),
            (Compare::Decimal, "50", "5.00", false),
            (Compare::Set, "0-1,1", "0-1", true),
            (Compare::Set, "0,1", "0-1", true),
            (Compare::Set, "", "\n", true),
            (Compare::Set, "0-1", "0", false),
            (Compare::Map, "8:0 wiops=120 rbps=2097152", "8:0 rbps=2097152 wbps=max riops=max wiops=120", true),
            (Compare::Map, "8:0 rbps=max", "", true),
            (Compare::Map, "8:0 rbps=1", "", false),
            (Compare::Map, "8:0 rbps=1", "8:16 rbps=1", false),
            (Compare::Map, "200", "default 200\n8:0 100", true),
            (Compare::Map, "default 200\n8:0 100", "default 200\n8:0 100", true),
            (Compare::Map, "200", "default 100", false),
            (Compare::Text, "root", "root", true),
            (Compare::Text, "root", "root invalid (Parent is not a partition root)", false),
        ];
        for (compare, written, kernel, expected) in cases {
            assert_eq!(compare.holds(written, kernel), expected, "{compare:?} {written:?} {kernel:?}");
        }
    }

    #[test]
    fn a_list_that_is_none_is_refused() {
        for bad in ["a", "1-", "-1", "2-1", "0-8192", "1,,2", ",", "+1", "0-10:2/4", "0 1"] {
            assert_eq!(set(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn bytes_hold_for_the_page_below_and_for_no_other(bytes in 4096u64..1 << 62, other in 0u64..1 << 50) {
            let down = bytes / 4096 * 4096;
            let holds = PAGE.holds(&bytes.to_string(), &down.to_string());
            prop_assert!(holds);
            let other = other * 4096;
            prop_assert_eq!(PAGE.holds(&bytes.to_string(), &other.to_string()), other == down);
        }

        #[test]
        fn a_set_holds_however_it_is_written(members in proptest::collection::btree_set(0u32..64, 0..20)) {
            let list: Vec<String> = members.iter().map(u32::to_string).collect();
            let ranges: Vec<String> = members.iter().map(|m| format!("{m}-{m}")).collect();
            let holds = Compare::Set.holds(&list.join(","), &ranges.join(","));
            prop_assert!(holds);
        }
    }
}
