//! Writes limits, reads each back and compares; refuses what the kernel did not take. In-place resize.
//!
//! A pod whose limit the kernel does not enforce is refused, naming the file and the cgroup that lacks the controller; where the
//! user allowed it, the report says so instead. What to write is `limits`', how it is compared `compare`'s.

use super::compare::{Compare, map};
use super::hierarchy::Hierarchy;
use super::limits::{Setting, quantity};
use super::report::{Draft, Report, gone};
use super::tree::{Cgroup, is_gone};
use crate::error::{Context, Error, Kind, Result, describe_io};
use std::io;

/// Writes `settings` to a new cgroup and verifies each.
///
/// # Errors
/// * `Unsupported`: a file is missing and `allow_unenforced` is not set; names file, the cgroup to look at, and the remedy
/// * `InvalidArgument`: the kernel refused a value, or took it for another
/// * `NotFound`: the cgroup is gone
/// * `Internal`
pub fn apply(host: &Hierarchy, cgroup: &Cgroup, settings: &[Setting], allow_unenforced: bool) -> Result<Report> {
    let mut draft = Draft::new(host, cgroup, allow_unenforced);
    for setting in settings {
        draft.add(setting, write_and_read(cgroup, setting)?)?;
    }
    draft.finish()
}

/// Compares a live cgroup with `settings`, writing nothing. A difference is no error but a row that does not hold.
///
/// # Errors
/// `NotFound`: the cgroup is gone; `InvalidArgument`: nothing of a cpuset is in effect; `Internal`.
pub fn verify(host: &Hierarchy, cgroup: &Cgroup, settings: &[Setting]) -> Result<Report> {
    let mut draft = Draft::new(host, cgroup, true);
    for setting in settings {
        draft.add(setting, read(cgroup, setting)?)?;
    }
    draft.finish()
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
    let mut draft = Draft::new(host, cgroup, allow_unenforced);
    let mut undo: Vec<(&Setting, String)> = Vec::new();
    let done = settings.iter().try_for_each(|setting| {
        let Some(before) = read(cgroup, setting)? else { return draft.add(setting, None) };
        if setting.compare.holds(&setting.value, &before) {
            return draft.add(setting, Some(before));
        }
        undo.push((setting, before));
        draft.add(setting, write_and_read(cgroup, setting)?)
    });
    match done.and_then(|()| draft.finish()) {
        Ok(report) => Ok(report),
        Err(first) => {
            let kind = first.kind();
            let failed = undo.iter().rev().filter_map(|(setting, before)| restore(cgroup, setting, before).err());
            let errors: Vec<Error> = std::iter::once(first).chain(failed).collect();
            Err(Error::collect(errors).unwrap_or_else(|| Error::internal("resize")).with_kind(kind))
        }
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
    match read(cgroup, setting)? {
        Some(kernel) if !setting.compare.holds(&setting.value, &kernel) => Err(Error::invalid(format!(
            "{} of {}: asked for {}, wrote {:?}, but the kernel shows {:?}",
            setting.file,
            cgroup.path(),
            setting.asked,
            setting.value,
            kernel.trim()
        ))),
        shown => Ok(shown),
    }
}

/// What the kernel shows; `None` when the file is missing.
fn read(cgroup: &Cgroup, setting: &Setting) -> Result<Option<String>> {
    match cgroup.read(&setting.file) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(refused(cgroup, setting, &e)),
        Ok(text) => Ok(Some(text)),
    }
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
    fn a_file_of_lines_is_undone_line_by_line() {
        let before = "8:0 rbps=1 wbps=max riops=max wiops=max\n";
        assert_eq!(
            undo_lines("io.max", "8:0 rbps=2\n8:16 wiops=5", before),
            ["8:16 wiops=max", "8:0 rbps=1 wbps=max riops=max wiops=max"]
        );
        assert_eq!(undo_lines("io.weight", "8:0 5\n200", "default 100"), ["8:0 default", "default 100"]);
    }
}
