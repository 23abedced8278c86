//! What a container was asked to be held to, as files of its cgroup, values and how each is compared. No I/O.
//!
//! One formula for each conversion, for all containers: shares only mean something among siblings. What cannot be right is refused
//! here, with field, value and remedy, before anything was made. Writing is `apply`'s.

use super::Controllers;
use super::compare::{Compare, set};
use crate::error::{Error, Result};
use crate::state::model::Resources;

/// The period that Kubernetes and cgroup v2 have by default, microseconds.
pub const DEFAULT_PERIOD_US: u64 = 100_000;
/// What periods the kernel takes, microseconds (kernel/sched/core.c, `tg_set_cfs_bandwidth`).
const PERIOD_US: std::ops::RangeInclusive<u64> = 1_000..=1_000_000;
/// The shortest quota the kernel takes, microseconds (the same).
const MIN_QUOTA_US: u64 = 1_000;
/// The longest quota the kernel takes, microseconds: `MAX_BW`, 44 bits.
const MAX_QUOTA_US: u64 = (1 << 44) - 1;
/// Shares as Kubernetes has them (cpu.shares of cgroup v1).
const SHARES: (u64, u64) = (2, 262_144);
/// Below this no process starts; the floor, 512 KiB.
const MIN_MEMORY_BYTES: u64 = 512 << 10;
/// `PID_MAX_LIMIT` of 64-bit kernels, include/linux/threads.h: pids.max takes no more.
const MAX_PIDS: i64 = 4_194_304;
/// The longest value of a file: what kernfs takes in one write(2) is a page.
const MAX_VALUE_BYTES: usize = 4095;
/// The most files that `unified` may name.
const MAX_UNIFIED: usize = 256;

/// One file of a cgroup to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    pub file: String,
    /// As people write it: `500m`, `128Mi`.
    pub asked: String,
    pub value: String,
    pub compare: Compare,
    /// Nobody asked for it ([`Resources::defaults`]).
    pub default: bool,
}

impl Setting {
    fn new(file: impl Into<String>, asked: impl Into<String>, value: impl Into<String>, compare: Compare) -> Self {
        Setting { file: file.into(), asked: asked.into(), value: value.into(), compare, default: false }
    }

    /// The controller whose file it is: what stands before the first dot.
    pub fn controller(&self) -> &str {
        self.file.split('.').next().unwrap_or_default()
    }

    /// What each write(2) has: files of several lines take one at a time.
    pub fn writes(&self) -> Vec<&str> {
        match self.compare {
            Compare::Map => self.value.lines().filter(|line| !line.trim().is_empty()).collect(),
            // A write of nothing does not reach the file.
            _ if self.value.is_empty() => vec!["\n"],
            _ => vec![&self.value],
        }
    }
}

/// The controllers that some settings need.
pub fn controllers(settings: &[Setting]) -> Controllers {
    settings.iter().map(|s| s.controller().to_owned()).collect()
}

/// The quota of so many thousandths of a cpu: `milli * period / 1000`, at least 1 ms; 0 for 0, which is no limit.
/// Kubernetes, pkg/kubelet/cm/helpers_linux.go `MilliCPUToQuota`.
pub fn quota_us(millicores: u64, period_us: u64) -> i64 {
    if millicores == 0 {
        return 0;
    }
    let quota = u128::from(millicores) * u128::from(period_us) / 1000;
    i64::try_from(quota).unwrap_or(i64::MAX).max(MIN_QUOTA_US.cast_signed())
}

/// The shares of so many thousandths of a cpu: `milli * 1024 / 1000`, 2 to 262144.
/// Kubernetes, pkg/kubelet/cm/helpers_linux.go `MilliCPUToShares`.
pub fn shares(millicores: u64) -> u64 {
    (millicores.saturating_mul(1024) / 1000).clamp(SHARES.0, SHARES.1)
}

/// cpu.weight for shares, so that 2, 1024 and 262144 become 1, 100 and 10000:
/// `ceil(10^((l^2 + 125 l) / 612 - 7/34))` with `l = log2(shares)`.
/// opencontainers/cgroups `ConvertCPUSharesToCgroupV2Value`, runc from 1.3.3 and crun from 1.23 on.
pub fn weight(shares: u64) -> u64 {
    if shares <= SHARES.0 {
        return 1;
    }
    if shares >= SHARES.1 {
        return 10_000;
    }
    // Exact: it is below 2^18.
    let l = f64::from(u32::try_from(shares).unwrap_or(u32::MAX)).log2();
    let weight = 10f64.powf((l * l + 125.0 * l) / 612.0 - 7.0 / 34.0).ceil();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 1 and 10000, for shares are between their bounds"
    )]
    let weight = weight as u64;
    weight
}

/// The files for what was asked. `page_bytes` is the size of a page of memory.
///
/// # Errors
/// `InvalidArgument`, naming field, value and remedy.
pub fn settings(asked: &Resources, page_bytes: u64) -> Result<Vec<Setting>> {
    let mut list = Vec::new();
    cpuset(asked, &mut list)?;
    cpu(asked, &mut list)?;
    memory(asked, page_bytes, &mut list)?;
    pids(asked, &mut list)?;
    hugetlb(asked, &mut list)?;
    unified(asked, page_bytes, &mut list)?;
    for setting in &mut list {
        setting.default = asked.defaults.contains(&setting.file);
    }
    Ok(list)
}

fn cpuset(asked: &Resources, list: &mut Vec<Setting>) -> Result<()> {
    for (file, value) in [("cpuset.cpus", &asked.cpuset_cpus), ("cpuset.mems", &asked.cpuset_mems)] {
        if value.is_empty() {
            continue;
        }
        if set(value).is_none_or(|members| members.is_empty()) {
            return Err(Error::invalid(format!(
                "{file} {value:?} is no list of numbers up to 8191; write it as 0-3,5"
            )));
        }
        list.push(Setting::new(file, value, value, Compare::Set));
    }
    Ok(())
}

fn cpu(asked: &Resources, list: &mut Vec<Setting>) -> Result<()> {
    if asked.cpu_shares != 0 {
        let weight = weight(asked.cpu_shares).to_string();
        list.push(Setting::new("cpu.weight", format!("{} shares", asked.cpu_shares), weight, Compare::Number));
    }
    let period = if asked.cpu_period_us == 0 { DEFAULT_PERIOD_US } else { asked.cpu_period_us };
    if !PERIOD_US.contains(&period) {
        return Err(Error::invalid(format!(
            "cpu period {period} us is outside 1000 to 1000000 us; leave it out for 100000"
        )));
    }
    if asked.cpu_quota_us == 0 {
        return Ok(()); // a period alone limits nothing
    }
    let Ok(quota) = u64::try_from(asked.cpu_quota_us) else {
        list.push(Setting::new("cpu.max", "no limit", format!("max {period}"), Compare::CpuMax));
        return Ok(());
    };
    if quota > MAX_QUOTA_US {
        return Err(Error::invalid(format!(
            "cpu quota {quota} us is more than the kernel takes ({MAX_QUOTA_US} us); leave it out for no limit"
        )));
    }
    let value = format!("{} {period}", quota.max(MIN_QUOTA_US));
    list.push(Setting::new("cpu.max", cpus(quota, period), value, Compare::CpuMax));
    Ok(())
}

fn memory(asked: &Resources, page_bytes: u64, list: &mut Vec<Setting>) -> Result<()> {
    let bytes = Compare::Bytes { unit: page_bytes };
    let (limit, both) = (asked.memory_limit_bytes, asked.memory_swap_limit_bytes);
    if limit > 0 {
        check_memory("memory limit", limit.unsigned_abs())?;
        list.push(Setting::new("memory.max", quantity(limit.unsigned_abs()), limit.to_string(), bytes));
    } else if limit < 0 {
        list.push(Setting::new("memory.max", "no limit", "max", bytes));
    }
    let swap = match (limit, both) {
        (0, 0) => return Ok(()),
        (1.., 0) => Setting::new("memory.swap.max", "no swap", "0", bytes),
        (_, ..=0) => Setting::new("memory.swap.max", "no limit", "max", bytes),
        (..=0, 1..) => {
            return Err(Error::invalid(format!(
                "memory and swap limit {both} needs a memory limit; set one, or leave it out"
            )));
        }
        (1.., 1..) if both < limit => {
            return Err(Error::invalid(format!(
                "memory and swap limit {both} is below the memory limit {limit}, which is part of it; raise it to that at least"
            )));
        }
        (1.., 1..) => {
            let asked = format!("{} with memory", quantity(both.unsigned_abs()));
            Setting::new("memory.swap.max", asked, (both - limit).to_string(), bytes)
        }
    };
    list.push(swap);
    Ok(())
}

fn check_memory(field: &str, bytes: u64) -> Result<()> {
    if bytes < MIN_MEMORY_BYTES {
        return Err(Error::invalid(format!(
            "{field} {bytes} is below 512 KiB, in which no process starts; bytes are meant (\"128Mi\" in a manifest)"
        )));
    }
    Ok(())
}

fn pids(asked: &Resources, list: &mut Vec<Setting>) -> Result<()> {
    match asked.pids_limit {
        0 => {}
        ..0 => list.push(Setting::new("pids.max", "no limit", "max", Compare::Number)),
        n if n > MAX_PIDS => {
            return Err(Error::invalid(format!(
                "pids limit {n} is more than the kernel has pids ({MAX_PIDS}); leave it out for no limit"
            )));
        }
        n => list.push(Setting::new("pids.max", n.to_string(), n.to_string(), Compare::Number)),
    }
    Ok(())
}

/// Both the pages and their reservation, as runc does: without the second, mmap(2) promises what a page fault then refuses (SIGBUS).
fn hugetlb(asked: &Resources, list: &mut Vec<Setting>) -> Result<()> {
    for (size, &limit) in &asked.hugepage_limits {
        let Some(unit) = page_size(size) else {
            return Err(Error::invalid(format!(
                "huge page size {size:?} is none the kernel could have; write 2MB or 1GB"
            )));
        };
        check_i64(&format!("limit of {size} huge pages"), limit)?;
        for file in [format!("hugetlb.{size}.max"), format!("hugetlb.{size}.rsvd.max")] {
            list.push(Setting::new(file, quantity(limit), limit.to_string(), Compare::Bytes { unit }));
        }
    }
    Ok(())
}

/// `2MB` in bytes; the names are those of the kernel, mm/hugetlb_cgroup.c `mem_fmt`.
fn page_size(name: &str) -> Option<u64> {
    let (digits, shift) = [("KB", 10), ("MB", 20), ("GB", 30)]
        .into_iter()
        .find_map(|(suffix, shift)| name.strip_suffix(suffix).map(|digits| (digits, shift)))?;
    let plain = digits.len() <= 4 && digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
    let size = digits.parse::<u64>().ok().filter(|_| plain)? << shift;
    size.is_power_of_two().then_some(size)
}

fn check_i64(field: &str, number: u64) -> Result<()> {
    if i64::try_from(number).is_err() {
        return Err(Error::invalid(format!(
            "{field} {number} is more than {}, where the kernel would wrap; write max for no limit",
            i64::MAX
        )));
    }
    Ok(())
}

fn unified(asked: &Resources, page_bytes: u64, list: &mut Vec<Setting>) -> Result<()> {
    if asked.unified.len() > MAX_UNIFIED {
        return Err(Error::invalid(format!("unified names {} files; {MAX_UNIFIED} are taken", asked.unified.len())));
    }
    for (file, raw) in &asked.unified {
        check_file(file)?;
        let compare = compare_of(file, page_bytes);
        let value = normalised(file, raw, compare)?;
        let setting = Setting::new(file, raw.trim(), value, compare);
        match list.iter_mut().find(|s| s.file == *file) {
            Some(lesser) => *lesser = setting,
            None => list.push(setting),
        }
    }
    // The kernel refuses a weight for a cgroup that it is told to run only when idle.
    if asked.unified.get("cpu.idle").is_some_and(|v| v.trim() == "1") && !asked.unified.contains_key("cpu.weight") {
        list.retain(|s| s.file != "cpu.weight");
    }
    Ok(())
}

/// `[a-z0-9_]+(\.[a-zA-Z0-9_]+)+`, of a controller.
fn check_file(file: &str) -> Result<()> {
    let (controller, rest) = file.split_once('.').unwrap_or((file, ""));
    let first =
        !controller.is_empty() && controller.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    let others =
        rest.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'));
    if !first || !others || file.len() > 255 {
        return Err(Error::invalid(format!(
            "unified: {file:?} is no cgroup file; write CONTROLLER.FILE, as memory.high"
        )));
    }
    if controller == "cgroup" || file == "memory.reclaim" {
        return Err(Error::invalid(format!("unified: {file} is no limit but an act on the cgroup; leave it out")));
    }
    Ok(())
}

fn compare_of(file: &str, page_bytes: u64) -> Compare {
    let parts: Vec<&str> = file.split('.').collect();
    match parts.as_slice() {
        ["memory", "max" | "high" | "low" | "min"] | ["memory", "swap" | "zswap", "max" | "high"] => {
            Compare::Bytes { unit: page_bytes }
        }
        ["memory", "oom", "group"]
        | ["memory", "zswap", "writeback"]
        | ["pids", "max"]
        | ["cpu", "weight" | "idle"]
        | ["cpu", "weight", "nice"]
        | ["cpu", "max", "burst"] => Compare::Number,
        ["hugetlb", size, "max"] | ["hugetlb", size, "rsvd", "max"] => match page_size(size) {
            Some(unit) => Compare::Bytes { unit },
            None => Compare::Number,
        },
        ["cpu", "max"] => Compare::CpuMax,
        ["cpu", "uclamp", "min" | "max"] => Compare::Decimal,
        ["cpuset", "cpus" | "mems"] | ["cpuset", "cpus", "exclusive"] => Compare::Set,
        ["io", "max" | "latency" | "weight"] | ["io", "bfq", "weight"] | ["rdma" | "misc" | "dmem", ..] => Compare::Map,
        _ => Compare::Text,
    }
}

/// The value to write: without the units that the kernel would expand, so that it can be compared.
fn normalised(file: &str, raw: &str, compare: Compare) -> Result<String> {
    let value = raw.trim();
    let wrong = |what: &str| Err(Error::invalid(format!("unified: {file} {raw:?} {what}")));
    let printable = |c: char| c.is_ascii_graphic() || c == ' ' || (c == '\n' && compare == Compare::Map);
    if value.len() > MAX_VALUE_BYTES {
        return Err(Error::invalid(format!(
            "unified: {file} has {} bytes; the kernel takes {MAX_VALUE_BYTES}",
            value.len()
        )));
    }
    if !value.chars().all(printable) {
        return wrong("has a line break or a character that is not ASCII; one value is taken");
    }
    if value.is_empty() && compare != Compare::Set {
        return wrong("is empty; leave it out to change nothing");
    }
    match compare {
        Compare::Bytes { .. } => {
            let Some(bytes) = memparse(value) else {
                return wrong("is neither max nor a number of bytes below 2^63 (K, M, G, T may follow)");
            };
            if let (Some(bytes), "memory.max") = (bytes, file) {
                check_memory("memory.max", bytes)?;
            }
            if let (Some(bytes), Compare::Bytes { unit }) = (bytes, compare)
                && bytes != 0
                && bytes < unit
            {
                return wrong(&format!("is below one page of {unit} bytes, and would become 0"));
            }
            return Ok(bytes.map_or("max".to_owned(), |bytes| bytes.to_string()));
        }
        Compare::Number if value != "max" && value.parse::<i64>().is_err() => {
            return wrong("is neither max nor a number below 2^63");
        }
        Compare::CpuMax => {
            let numbers: Vec<&str> = value.split_whitespace().collect();
            let known = numbers.iter().enumerate().all(|(i, n)| (i == 0 && *n == "max") || n.parse::<i64>().is_ok());
            if !known || numbers.len() > 2 {
                return wrong("is not QUOTA PERIOD in microseconds, as 50000 100000");
            }
        }
        Compare::Set if set(value).is_none() => return wrong("is no list of numbers; write it as 0-3,5"),
        _ => {}
    }
    Ok(value.to_owned())
}

/// A number of bytes as the kernel reads it (lib/cmdline.c `memparse`), decimal only: `Some(None)` is max, `None` is no number or
/// one that would wrap.
fn memparse(text: &str) -> Option<Option<u64>> {
    if text == "max" {
        return Some(None);
    }
    let (digits, shift) = match text.bytes().last()?.to_ascii_lowercase() {
        b'k' => (&text[..text.len() - 1], 10),
        b'm' => (&text[..text.len() - 1], 20),
        b'g' => (&text[..text.len() - 1], 30),
        b't' => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    // A leading zero means octal to the kernel.
    let plain = digits.bytes().all(|b| b.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    let bytes = digits.parse::<u64>().ok().filter(|_| plain)?.checked_mul(1 << shift)?;
    i64::try_from(bytes).ok().map(|_| Some(bytes))
}

/// Thousandths of a cpu where that is exact: `500m`, `2`.
fn cpus(quota_us: u64, period_us: u64) -> String {
    let milli = u128::from(quota_us) * 1000;
    if !milli.is_multiple_of(u128::from(period_us)) {
        return format!("{quota_us} us of {period_us} us");
    }
    let milli = milli / u128::from(period_us);
    if milli.is_multiple_of(1000) { (milli / 1000).to_string() } else { format!("{milli}m") }
}

/// Bytes as a quantity of Kubernetes that means exactly as many, the shortest: `128Mi`, `100M`.
pub fn quantity(bytes: u64) -> String {
    const UNITS: [(&str, u64); 9] = [
        ("Ti", 1 << 40),
        ("Gi", 1 << 30),
        ("Mi", 1 << 20),
        ("Ki", 1 << 10),
        ("T", 1_000_000_000_000),
        ("G", 1_000_000_000),
        ("M", 1_000_000),
        ("k", 1_000),
        ("", 1),
    ];
    let exact = UNITS.iter().filter(|(_, unit)| bytes != 0 && bytes.is_multiple_of(*unit));
    exact.map(|(suffix, unit)| format!("{}{suffix}", bytes / unit)).min_by_key(String::len).unwrap_or("0".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// (file, asked, value) of each setting.
    fn rows(asked: &Resources) -> Vec<(String, String, String)> {
        let list = settings(asked, 4096).expect("valid");
        list.into_iter().map(|s| (s.file, s.asked, s.value)).collect()
    }

    fn row(file: &str, asked: &str, value: &str) -> (String, String, String) {
        (file.to_owned(), asked.to_owned(), value.to_owned())
    }

    fn with_unified(pairs: &[(&str, &str)]) -> Resources {
        let unified = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Resources { unified, ..Resources::default() }
    }

    #[test]
    fn nothing_asked_writes_nothing() {
        assert_eq!(rows(&Resources::default()), vec![]);
    }

    #[test]
    fn kubernetes_documentation_example_becomes_these_files() {
        let asked = Resources {
            cpu_quota_us: quota_us(500, DEFAULT_PERIOD_US),
            cpu_shares: shares(250),
            memory_limit_bytes: 128 << 20,
            ..Resources::default()
        };
        assert_eq!(
            rows(&asked),
            vec![
                row("cpu.weight", "256 shares", "35"),
                row("cpu.max", "500m", "50000 100000"),
                row("memory.max", "128Mi", "134217728"),
                row("memory.swap.max", "no swap", "0"),
            ]
        );
    }

    #[test]
    fn millicores_become_quota_and_shares_as_the_kubelet_has_them() {
        for (milli, period, quota) in
            [(0, 100_000, 0), (1, 100_000, 1000), (10, 100_000, 1000), (250, 100_000, 25_000), (1500, 50_000, 75_000)]
        {
            assert_eq!(quota_us(milli, period), quota, "{milli}");
        }
        for (milli, expected) in [(0, 2), (1, 2), (2, 2), (3, 3), (1000, 1024), (256_000, 262_144), (u64::MAX, 262_144)]
        {
            assert_eq!(shares(milli), expected, "{milli}");
        }
    }

    #[test]
    fn shares_become_the_weights_of_runc() {
        for (shares, expected) in [
            (0, 1),
            (2, 1),
            (3, 2),
            (102, 17),
            (256, 35),
            (1024, 100),
            (262_143, 10_000),
            (262_144, 10_000),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(weight(shares), expected, "{shares}");
        }
    }

    #[test]
    fn a_quota_below_a_millisecond_becomes_one_and_the_question_is_still_shown() {
        let asked = Resources { cpu_quota_us: 100, ..Resources::default() };
        assert_eq!(rows(&asked), vec![row("cpu.max", "1m", "1000 100000")]);
        let asked = Resources { cpu_quota_us: -1, cpu_period_us: 50_000, ..Resources::default() };
        assert_eq!(rows(&asked), vec![row("cpu.max", "no limit", "max 50000")]);
    }

    #[test]
    fn swap_is_what_is_left_of_both_limits() {
        let limits = |memory, both| {
            let asked = Resources { memory_limit_bytes: memory, memory_swap_limit_bytes: both, ..Resources::default() };
            settings(&asked, 4096).map(|list| list.into_iter().map(|s| s.value).collect::<Vec<_>>())
        };
        let mib = 1 << 20;
        assert_eq!(limits(mib, 0).expect("none"), ["1048576", "0"]);
        assert_eq!(limits(mib, mib).expect("none"), ["1048576", "0"]);
        assert_eq!(limits(mib, 3 * mib).expect("two"), ["1048576", "2097152"]);
        assert_eq!(limits(mib, -1).expect("no limit"), ["1048576", "max"]);
        assert_eq!(limits(-1, 0).expect("no limit"), ["max", "max"]);
        assert_eq!(limits(0, -1).expect("no limit"), ["max"]);
        assert!(limits(2 * mib, mib).is_err());
        assert!(limits(0, mib).is_err());
    }

    #[test]
    fn huge_pages_limit_pages_and_reservations() {
        let mut asked = Resources::default();
        asked.hugepage_limits.insert("2MB".to_owned(), 3_000_000);
        let list = settings(&asked, 4096).expect("valid");
        assert_eq!(list[0].file, "hugetlb.2MB.max");
        assert_eq!(list[1].file, "hugetlb.2MB.rsvd.max");
        assert!(list[0].compare.holds(&list[0].value, "2097152"));
        assert_eq!(controllers(&list), Controllers::from(["hugetlb".to_owned()]));
    }

    #[test]
    fn unified_wins_over_the_rest_and_its_units_are_expanded() {
        let asked = Resources {
            memory_limit_bytes: 1 << 30,
            ..with_unified(&[("memory.max", "64M"), ("memory.oom.group", "1"), ("memory.swap.max", "max")])
        };
        assert_eq!(
            rows(&asked),
            vec![
                row("memory.max", "64M", "67108864"),
                row("memory.swap.max", "max", "max"),
                row("memory.oom.group", "1", "1"),
            ]
        );
        let asked = Resources { cpu_shares: 1024, ..with_unified(&[("cpu.idle", "1")]) };
        assert_eq!(rows(&asked), vec![row("cpu.idle", "1", "1")]);
    }

    #[test]
    fn files_of_several_lines_are_written_line_by_line() {
        let asked = with_unified(&[("io.max", "8:0 rbps=1048576\n8:16 wiops=10\n"), ("cpuset.cpus", "")]);
        let list = settings(&asked, 4096).expect("valid");
        assert_eq!(list[0].writes(), ["\n"]);
        assert_eq!(list[1].writes(), ["8:0 rbps=1048576", "8:16 wiops=10"]);
    }

    #[test]
    fn what_cannot_be_right_is_refused_with_field_value_and_remedy() {
        let d = Resources::default;
        let cases = [
            (Resources { cpu_period_us: 999, ..d() }, "cpu period 999"),
            (Resources { cpu_period_us: 1_000_001, ..d() }, "cpu period 1000001"),
            (Resources { cpu_quota_us: i64::MAX, ..d() }, "cpu quota 9223372036854775807"),
            (Resources { memory_limit_bytes: 524_287, ..d() }, "memory limit 524287 is below 512 KiB"),
            (Resources { memory_limit_bytes: 128, ..d() }, "\"128Mi\""),
            (Resources { pids_limit: 4_194_305, ..d() }, "pids limit 4194305"),
            (Resources { cpuset_cpus: "0-".to_owned(), ..d() }, "cpuset.cpus \"0-\""),
            (Resources { cpuset_mems: "1\n2".to_owned(), ..d() }, "cpuset.mems"),
            (Resources { hugepage_limits: [("3MB".to_owned(), 0)].into(), ..d() }, "huge page size \"3MB\""),
            (Resources { hugepage_limits: [("2MB".to_owned(), u64::MAX)].into(), ..d() }, "wrap"),
            (with_unified(&[("memory.max", "99999999999999999999")]), "memory.max \"99999999999999999999\""),
            (with_unified(&[("memory.max", "9223372036854775808")]), "below 2^63"),
            (with_unified(&[("memory.max", "16777216T")]), "below 2^63"),
            (with_unified(&[("memory.max", "1M\n2M")]), "line break"),
            (with_unified(&[("memory.max", "0")]), "512 KiB"),
            (with_unified(&[("memory.high", "010")]), "memory.high"),
            (with_unified(&[("memory.min", "1")]), "would become 0"),
            (with_unified(&[("pids.max", "many")]), "pids.max"),
            (with_unified(&[("cpu.max", "1 2 3")]), "QUOTA PERIOD"),
            (with_unified(&[("cpu.weight", "")]), "empty"),
            (with_unified(&[("cgroup.procs", "1")]), "no limit"),
            (with_unified(&[("memory.reclaim", "1M")]), "no limit"),
        ];
        for (asked, expected) in cases {
            let e = settings(&asked, 4096).expect_err(expected);
            assert_eq!(e.kind(), crate::error::Kind::InvalidArgument);
            assert!(e.to_string().contains(expected), "{e}");
        }
        for bad in
            ["", "memory", "../memory.max", "memory/max", "Memory.max", "memory..max", "memory.max\n", ".max", "a b.c"]
        {
            assert!(settings(&with_unified(&[(bad, "1")]), 4096).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_file_that_nobody_asked_for_is_known_from_those_that_were_asked_for() {
        let asked = Resources {
            memory_limit_bytes: 64 << 20,
            defaults: ["memory.oom.group".to_owned(), "memory.swap.max".to_owned(), "io.max".to_owned()].into(),
            ..with_unified(&[("memory.oom.group", "1")])
        };
        let list = settings(&asked, 4096).expect("valid");
        let defaults: Vec<_> = list.iter().map(|s| (s.file.as_str(), s.default)).collect();
        assert_eq!(defaults, [("memory.max", false), ("memory.swap.max", true), ("memory.oom.group", true)]);
    }

    #[test]
    fn quantities_are_exact_and_short() {
        for (bytes, text) in [
            (0, "0"),
            (1, "1"),
            (100_000_000, "100M"),
            (1_000_000_000, "1G"),
            (134_217_728, "128Mi"),
            (512_000_000, "512M"),
            (1_000_001, "1000001"),
        ] {
            assert_eq!(quantity(bytes), text);
        }
    }

    proptest! {
        #[test]
        fn weights_rise_with_shares_within_their_bounds(a in 0u64..300_000, b in 0u64..300_000) {
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!(weight(low) <= weight(high));
            prop_assert!((1..=10_000).contains(&weight(low)));
        }

        #[test]
        fn a_quota_is_never_below_a_millisecond(milli in 1u64..10_000_000, period in 1_000u64..1_000_000) {
            prop_assert!(quota_us(milli, period) >= 1000);
            prop_assert!(quota_us(milli + 1, period) >= quota_us(milli, period));
        }

        #[test]
        fn whatever_is_asked_is_refused_or_written_in_clean_lines(file in "\\PC{0,20}", value in "\\PC{0,20}", limit: i64) {
            let mut asked = with_unified(&[(&file, &value)]);
            asked.memory_limit_bytes = limit;
            for setting in settings(&asked, 4096).unwrap_or_default() {
                prop_assert!(!setting.file.contains('/'));
                for write in setting.writes() {
                    prop_assert!(write == "\n" || !write.contains('\n'));
                }
            }
        }
    }
}
