//! What became of each limit: asked, written, as the kernel shows it, and in effect. Limits that are not enforced: why, and whether
//! that is an error.
//!
//! Nothing is written to a cgroup here.

use super::hierarchy::Hierarchy;
use super::limits::Setting;
use super::path::CgroupPath;
use super::tree::{Cgroup, is_gone};
use crate::error::{Context, Error, Result};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::collections::BTreeMap;

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
    /// As the kernel shows it; `None`: the file is missing, and the limit is not enforced.
    pub kernel: Option<String>,
    /// Why a file that nobody asked for was left out: the host has none.
    pub not_available: Option<String>,
    /// What really holds: the minimum over this cgroup and those above it.
    pub effective: Option<String>,
    /// Whether the kernel shows what was written, as it rounds it.
    pub holds: bool,
}

/// A report that is being made.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    host: &'a Hierarchy,
    cgroup: &'a Cgroup,
    allow_unenforced: bool,
    report: Report,
    /// Why a controller is missing, once for all its files.
    reasons: BTreeMap<String, Option<String>>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(host: &'a Hierarchy, cgroup: &'a Cgroup, allow_unenforced: bool) -> Self {
        let report = Report { cgroup: cgroup.path().clone(), rows: Vec::new(), warnings: Vec::new() };
        Draft { host, cgroup, allow_unenforced, report, reasons: BTreeMap::new() }
    }

    /// What the kernel shows for a setting; `None`: its file is missing.
    pub(super) fn add(&mut self, setting: &Setting, kernel: Option<String>) -> Result<()> {
        let not_available = match kernel {
            Some(_) => None,
            None if setting.default => Some(self.why_missing(setting)?),
            None => {
                let warning = self.not_enforced(setting)?;
                self.report.warnings.push(warning);
                None
            }
        };
        self.report.rows.push(Row {
            file: setting.file.clone(),
            asked: setting.asked.clone(),
            written: setting.value.replace('\n', "; "),
            holds: kernel.as_ref().is_some_and(|text| setting.compare.holds(&setting.value, text)),
            kernel: kernel.map(|text| text.trim().replace('\n', "; ")),
            not_available,
            effective: None,
        });
        Ok(())
    }

    /// The report, with what is in effect.
    pub(super) fn finish(mut self) -> Result<Report> {
        let mut above = None;
        for row in &mut self.report.rows {
            let Some(kernel) = &row.kernel else { continue };
            row.effective = Some(match (row.file.as_str(), order_of(&row.file)) {
                ("cpuset.cpus" | "cpuset.mems", _) => effective_set(self.cgroup, row)?,
                (_, None) => kernel.clone(),
                (file, Some(order)) => {
                    let above = match &above {
                        Some(above) => above,
                        None => above.insert(ancestors(self.host, self.cgroup)?),
                    };
                    least(above, file, kernel, order)?
                }
            });
        }
        Ok(self.report)
    }

    /// Why the limit is not enforced: as a warning where that is allowed.
    fn not_enforced(&mut self, setting: &Setting) -> Result<String> {
        let reason = self.why_missing(setting)?;
        let path = self.cgroup.path();
        if self.reasons.get(setting.controller()).is_some_and(Option::is_none) && swap_is_moot(setting) {
            return Ok(format!(
                "memory.swap.max of {path}: this kernel does not count swap; there is none now, and none may be added"
            ));
        }
        let text = format!("{} {} of {path} cannot be enforced: {reason}", setting.file, setting.asked);
        if self.allow_unenforced {
            return Ok(text);
        }
        Err(Error::unsupported(format!("{text} (or allow it with --allow-unenforced-limits)")))
    }

    /// Why the cgroup has no such file, and the remedy.
    fn why_missing(&mut self, setting: &Setting) -> Result<String> {
        if self.cgroup.is_gone() {
            return Err(gone(self.cgroup));
        }
        let controller = setting.controller();
        if !self.reasons.contains_key(controller) {
            let missing = self.host.why_missing(self.cgroup.path(), controller)?;
            self.reasons.insert(controller.to_owned(), missing.map(|m| format!("{}; {}", m.why, m.remedy)));
        }
        Ok(match (&self.reasons[controller], setting.default) {
            (Some(reason), _) => reason.clone(),
            (None, true) => format!("this kernel has no file {}", setting.file),
            (None, false) => format!("this kernel has no file {}; leave the limit out", setting.file),
        })
    }
}

/// The cgroups above, without the root, which has no limits.
fn ancestors(host: &Hierarchy, cgroup: &Cgroup) -> Result<Vec<Cgroup>> {
    let mut chain = host.chain(cgroup.path())?;
    chain.pop();
    Ok(chain.split_off(chain.len().min(1)))
}

/// The least of a file's values in `above` and `own`.
fn least(above: &[Cgroup], file: &str, own: &str, order: fn(&str, &str) -> Ordering) -> Result<String> {
    let mut least = own.to_owned();
    for cgroup in above {
        let value = match cgroup.read(file) {
            Err(e) if is_gone(&e) => continue, // it does not have the controller
            value => value.context(|| format!("read {file} of {}", cgroup.path()))?,
        };
        if order(value.trim(), &least) == Ordering::Less {
            value.trim().clone_into(&mut least);
        }
    }
    Ok(least)
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

/// The error for a cgroup that was removed.
pub(super) fn gone(cgroup: &Cgroup) -> Error {
    Error::not_found(format!("cgroup {} is gone", cgroup.path()))
}

/// No swap, or as much as one likes, on a kernel that does not count swap and has none.
fn swap_is_moot(setting: &Setting) -> bool {
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default(); // absent: a kernel without swap
    setting.file == "memory.swap.max" && matches!(setting.value.as_str(), "0" | "max") && swaps.lines().count() <= 1
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
}
