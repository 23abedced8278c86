//! Writes limits, reads each back and compares; refuses what the kernel did not take. In-place resize.
//!
//! A pod whose limit the kernel does not enforce is refused, naming the file and the cgroup that lacks the controller; where the
//! user allowed it, the report says so instead. What to write is `limits`', how it is compared `compare`'s.

use super::compare::{Compare, map};
use super::hierarchy::Hierarchy;
use super::limits::{Setting, quantity};
use super::path::CgroupPath;
use super::tree::{Cgroup, is_gone};
use crate::error::{Context, Error, Kind, Result, describe_io};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::io;

/// What became of each setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub cgroup: CgroupPath,
    pub rows: Vec<Row>,
    /// Limits that are not enforced, a sentence each; empty unless that was allowed.
    pub warnings: Vec<String>,
}

/// One file of the cgroup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    pub file: String,
    /// As people write it.
    pub asked: String,
    pub written: String,
    /// As the kernel shows it; `None`: the file is missing, the limit is not enforced.
    pub kernel: Option<String>,
    /// What really holds: the minimum over this cgroup and those above it.
    pub effective: Option<String>,
}

/// Writes `settings` to a new cgroup and verifies each.
///
/// # Errors
/// * `Unsupported`: a file is missing and `allow_unenforced` is not set; names file, the cgroup to look at, and the remedy
/// * `InvalidArgument`: the kernel refused a value, or took it for another
/// * `NotFound`: the cgroup is gone
/// * `Internal`
pub fn apply(host: &Hierarchy, cgroup: &Cgroup, settings: &[Setting], allow_unenforced: bool) -> Result<Report> {
    let mut report = Report::new(cgroup);
    for setting in settings {
        match write_and_read(cgroup, setting)? {
            Some(kernel) => report.push(setting, kernel),
            None => report.not_enforced(host, cgroup, setting, allow_unenforced)?,
        }
    }
    report.fill_effective(host, cgroup)?;
    Ok(report)
}

/// Compares a live cgroup with `settings`, writing nothing.
///
/// # Errors
/// As [`apply`]; a value that somebody changed since is `InvalidArgument`.
pub fn verify(host: &Hierarchy, cgroup: &Cgroup, settings: &[Setting], allow_unenforced: bool) -> Result<Report> {
    let mut report = Report::new(cgroup);
    for setting in settings {
        match read_and_compare(cgroup, setting)? {
            Some(kernel) => report.push(setting, kernel),
            None => report.not_enforced(host, cgroup, setting, allow_unenforced)?,
        }
    }
    report.fill_effective(host, cgroup)?;
    Ok(report)
}

/// Resizes a live cgroup: all of `settings`, or none. What already holds is not written again. When one fails, those written
/// before it get their earlier values back.
///
/// # Errors
/// As [`apply`]; `FailedPrecondition` when memory.max would be below the working set, which the kernel would answer by killing.
pub fn update(host: &Hierarchy, cgroup: &Cgroup, settings: &[Setting], allow_unenforced: bool) -> Result<Report> {
    for setting in settings.iter().filter(|s| s.file == "memory.max") {
        check_working_set(cgroup, setting)?;
    }
    let mut report = Report::new(cgroup);
    let mut undo: Vec<(&Setting, String)> = Vec::new();
    let done = settings.iter().try_for_each(|setting| {
        let before = match cgroup.read(&setting.file) {
            Err(e) if is_gone(&e) => return report.not_enforced(host, cgroup, setting, allow_unenforced),
            text => text.context(|| format!("read {} of {}", setting.file, cgroup.path()))?,
        };
        if setting.compare.holds(&setting.value, &before) {
            report.push(setting, before);
            return Ok(());
        }
        undo.push((setting, before));
        match write_and_read(cgroup, setting)? {
            Some(kernel) => report.push(setting, kernel),
            None => report.not_enforced(host, cgroup, setting, allow_unenforced)?,
        }
        Ok(())
    });
    match done.and_then(|()| report.fill_effective(host, cgroup)) {
        Ok(()) => Ok(report),
        Err(first) => {
            let kind = first.kind();
            let failed = undo.iter().rev().filter_map(|(setting, before)| restore(cgroup, setting, before).err());
            let errors: Vec<Error> = std::iter::once(first).chain(failed).collect();
            Err(Error::collect(errors).unwrap_or_else(|| Error::internal("resize")).with_kind(kind))
        }
    }
}

impl Report {
    fn new(cgroup: &Cgroup) -> Self {
        Report { cgroup: cgroup.path().clone(), rows: Vec::new(), warnings: Vec::new() }
    }

    fn push(&mut self, setting: &Setting, kernel: String) {
        self.add(setting, Some(kernel.trim().replace('\n', "; ")));
    }

    fn add(&mut self, setting: &Setting, kernel: Option<String>) {
        self.rows.push(Row {
            file: setting.file.clone(),
            asked: setting.asked.clone(),
            written: setting.value.replace('\n', "; "),
            kernel,
            effective: None,
        });
    }

    /// The file is missing: refused, or a warning.
    fn not_enforced(
        &mut self,
        host: &Hierarchy,
        cgroup: &Cgroup,
        setting: &Setting,
        allow_unenforced: bool,
    ) -> Result<()> {
        if cgroup.is_gone() {
            return Err(gone(cgroup));
        }
        let reason = match host.why_missing(cgroup.path(), setting.controller())? {
            Some(missing) => format!("{}; {}", missing.why, missing.remedy),
            None if swap_is_moot(setting) => {
                self.add(setting, None);
                self.warnings.push(format!(
                    "memory.swap.max of {}: this kernel does not count swap; there is none now, and none may be added",
                    cgroup.path()
                ));
                return Ok(());
            }
            None => format!("this kernel has no file {}; leave the limit out", setting.file),
        };
        let text = format!("{} {} of {} cannot be enforced: {reason}", setting.file, setting.asked, cgroup.path());
        if !allow_unenforced {
            return Err(Error::unsupported(format!("{text} (or allow it with --allow-unenforced-limits)")));
        }
        self.add(setting, None);
        self.warnings.push(text);
        Ok(())
    }

    fn fill_effective(&mut self, host: &Hierarchy, cgroup: &Cgroup) -> Result<()> {
        let mut above = None;
        for row in &mut self.rows {
            let Some(kernel) = &row.kernel else { continue };
            if let "cpuset.cpus" | "cpuset.mems" = row.file.as_str() {
                row.effective = Some(effective_set(cgroup, row)?);
                continue;
            }
            let Some(order) = order_of(&row.file) else {
                row.effective = row.kernel.clone();
                continue;
            };
            let chain = match &above {
                Some(chain) => chain,
                None => above.insert(host.chain(cgroup.path())?),
            };
            let mut least = kernel.clone();
            for value in chain.iter().filter_map(|c| c.read(&row.file).ok()) {
                if order(value.trim(), &least) == Ordering::Less {
                    value.trim().clone_into(&mut least);
                }
            }
            row.effective = Some(least);
        }
        Ok(())
    }
}

/// A cpuset holds if what is in effect lies within it: when nothing of it is left the kernel silently takes the parent's.
fn effective_set(cgroup: &Cgroup, row: &Row) -> Result<String> {
    let file = format!("{}.effective", row.file);
    let text = cgroup.read(&file).context(|| format!("read {file} of {}", cgroup.path()))?;
    let text = text.trim().to_owned();
    let (asked, effective) = (super::compare::set(&row.written), super::compare::set(&text));
    match (asked, effective) {
        (Some(asked), Some(effective)) if asked.is_empty() || effective.is_subset(&asked) => Ok(text),
        _ => Err(Error::invalid(format!(
            "{} {} of {}: the cgroups above it leave none of these, and {text} is in effect; ask for some of {text}",
            row.file,
            row.asked,
            cgroup.path()
        ))),
    }
}

/// How values of a file are ordered where the least above a cgroup holds for it as well.
fn order_of(file: &str) -> Option<fn(&str, &str) -> Ordering> {
    match file {
        "cpu.max" => Some(order_of_cpu_max),
        "memory.max" | "memory.high" | "memory.swap.max" | "memory.zswap.max" | "pids.max" => Some(order_of_number),
        huge if huge.starts_with("hugetlb.") => Some(order_of_number),
        _ => None,
    }
}

/// `max` is above every number.
fn order_of_number(a: &str, b: &str) -> Ordering {
    let number = |text: &str| text.parse::<u64>().unwrap_or(u64::MAX);
    number(a).cmp(&number(b))
}

/// By the share of a cpu, quota over period.
fn order_of_cpu_max(a: &str, b: &str) -> Ordering {
    let ratio = |text: &str| {
        let (quota, period) = text.split_once(' ')?;
        Some((quota.parse::<u128>().ok()?, period.parse::<u128>().ok()?))
    };
    match (ratio(a), ratio(b)) {
        (Some((qa, pa)), Some((qb, pb))) => (qa * pb).cmp(&(qb * pa)),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => Ordering::Equal,
    }
}

/// What the kernel shows after the write; `None` when the file is missing.
fn write_and_read(cgroup: &Cgroup, setting: &Setting) -> Result<Option<String>> {
    for value in setting.writes() {
        match cgroup.write(&setting.file, value) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(refused(cgroup, setting, &e)),
            Ok(()) => {}
        }
    }
    read_and_compare(cgroup, setting)
}

fn read_and_compare(cgroup: &Cgroup, setting: &Setting) -> Result<Option<String>> {
    let kernel = match cgroup.read(&setting.file) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(refused(cgroup, setting, &e)),
        Ok(text) => text,
    };
    if setting.compare.holds(&setting.value, &kernel) {
        return Ok(Some(kernel));
    }
    Err(Error::invalid(format!(
        "{} of {}: asked for {}, wrote {:?}, but the kernel shows {:?}",
        setting.file,
        cgroup.path(),
        setting.asked,
        setting.value,
        kernel.trim()
    )))
}

fn refused(cgroup: &Cgroup, setting: &Setting, e: &io::Error) -> Error {
    // io.max answers ENODEV for a device that does not exist, as any file of a cgroup that is gone does.
    if is_gone(e) && cgroup.is_gone() {
        return gone(cgroup);
    }
    let text = format!(
        "{} of {}: asked for {}, wrote {:?}: {}",
        setting.file,
        cgroup.path(),
        setting.asked,
        setting.value,
        describe_io(e)
    );
    match crate::sys::errno_name(e.raw_os_error().unwrap_or(0)) {
        "EINVAL" | "ERANGE" | "ENODEV" => Error::invalid(text),
        "EBUSY" | "ENOSPC" => Error::precondition(text),
        _ => Error::internal(text),
    }
}

fn gone(cgroup: &Cgroup) -> Error {
    Error::not_found(format!("cgroup {} is gone", cgroup.path()))
}

/// No swap, or as much as one likes, on a kernel that does not count swap and has none.
fn swap_is_moot(setting: &Setting) -> bool {
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default(); // absent: a kernel without swap
    setting.file == "memory.swap.max" && matches!(setting.value.as_str(), "0" | "max") && swaps.lines().count() <= 1
}

/// Refuses a memory.max that the kernel could only reach by killing: what is in use and is not a cache that nobody touched.
fn check_working_set(cgroup: &Cgroup, setting: &Setting) -> Result<()> {
    let Ok(limit) = setting.value.parse::<u64>() else { return Ok(()) };
    let (Ok(current), Ok(stat)) = (cgroup.read("memory.current"), cgroup.read("memory.stat")) else {
        return Ok(()); // without the controller; that is told when memory.max is written
    };
    let usage = current.trim().parse::<u64>().unwrap_or(0);
    let inactive = super::stats::field(&stat, "inactive_file").unwrap_or(0);
    let working_set = usage.saturating_sub(inactive);
    if limit >= working_set {
        return Ok(());
    }
    Err(Error::precondition(format!(
        "memory.max {} ({limit} bytes) of {} is below its working set of {working_set} bytes (usage {usage} less inactive file {inactive}); \
         ask for more than {}, or stop what uses it",
        setting.asked,
        cgroup.path(),
        quantity(working_set.next_multiple_of(1 << 20)),
    )))
}

/// Gives a file the value back that it showed before.
fn restore(cgroup: &Cgroup, setting: &Setting, before: &str) -> Result<()> {
    let doing = || format!("give {} of {} back its earlier {:?}", setting.file, cgroup.path(), before.trim());
    if setting.compare != Compare::Map {
        let value = if before.trim().is_empty() { "\n" } else { before.trim() };
        return match cgroup.write(&setting.file, value) {
            Err(e) if is_gone(&e) => Err(gone(cgroup).with_kind(Kind::NotFound)),
            done => done.context(doing),
        };
    }
    for line in undo_lines(&setting.file, &setting.value, before) {
        cgroup.write(&setting.file, &line).context(doing)?;
    }
    Ok(())
}

/// The lines that undo `written` in a file that showed `before`: what was new is unset, what was there is written again.
fn undo_lines(file: &str, written: &str, before: &str) -> Vec<String> {
    let unset = if file.ends_with("weight") { "default" } else { "max" };
    let earlier = map(before);
    let new = map(written).into_keys().filter(|key| !earlier.contains_key(key) && key.0 != "default");
    let new =
        new.map(|(name, key)| if key.is_empty() { format!("{name} {unset}") } else { format!("{name} {key}={unset}") });
    new.chain(before.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_limits_are_ordered_by_quota_over_period() {
        for (a, b, expected) in [
            ("50000 100000", "100000 100000", Ordering::Less),
            ("50000 100000", "25000 50000", Ordering::Equal),
            ("max 100000", "1000 1000000", Ordering::Greater),
            ("1000 1000000", "max 100000", Ordering::Less),
            ("max 100000", "max 50000", Ordering::Equal),
        ] {
            assert_eq!(order_of_cpu_max(a, b), expected, "{a} {b}");
        }
    }

    #[test]
    fn the_least_number_holds_and_max_is_no_limit() {
        let order = order_of("memory.max").expect("ordered");
        assert_eq!(order("4096", "max"), Ordering::Less);
        assert_eq!(order("max", "max"), Ordering::Equal);
        assert_eq!(order("9", "10"), Ordering::Less);
        assert!(order_of("cpu.weight").is_none(), "weights mean something among siblings only");
    }

    #[test]
    fn a_file_of_lines_is_undone_line_by_line() {
        let before = "8:0 rbps=1 wbps=max riops=max wiops=max\n";
        assert_eq!(
            undo_lines("io.max", "8:0 rbps=2\n8:16 wiops=5", before),
            ["8:16 wiops=max", "8:0 rbps=1 wbps=max riops=max wiops=max"]
        );
        assert_eq!(undo_lines("io.weight", "8:0 5\n200", "default 100"), ["8:0 default", "default 100"]);
    }
}
