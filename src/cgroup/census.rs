//! Who is in a cgroup and below it, counted from outside: processes, threads, and the descriptors that they have open. It needs no
//! controller. What comes and goes meanwhile counts or does not.

use super::stats::field;
use super::tree::{Cgroup, MAX_DEPTH, MAX_ENTRIES};
use crate::sys::fs;
use std::os::fd::AsFd;

/// Descriptors that are looked at in one cgroup, at most: of a program with more the number is too small, and a reading still ends.
const MAX_DESCRIPTORS: u64 = 1 << 16;

/// Counts of one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Census {
    pub processes: u64,
    pub threads: u64,
    /// Open file descriptors, sockets among them.
    pub descriptors: u64,
    pub sockets: u64,
    /// Of memory.events: processes that were killed for memory, and how often the limit was reached. `None` without the controller.
    pub oom_kills: Option<u64>,
    pub limit_hits: Option<u64>,
}

/// Counts what is there. What is gone counts as nothing.
pub fn take(cgroup: &Cgroup) -> Census {
    let mut census = Census::default();
    if let Ok(events) = cgroup.read("memory.events") {
        census.oom_kills = field(&events, "oom_kill");
        census.limit_hits = field(&events, "max");
    }
    add(cgroup, &mut census, 0);
    census
}

fn add(cgroup: &Cgroup, census: &mut Census, depth: usize) {
    let lines = |file: &str| cgroup.read(file).map_or(0, |text| text.lines().count() as u64);
    census.threads += lines("cgroup.threads");
    for pid in cgroup.procs().unwrap_or_default() {
        census.processes += 1;
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            if census.descriptors == MAX_DESCRIPTORS {
                break;
            }
            census.descriptors += 1;
            let socket = std::fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"));
            census.sockets += u64::from(socket);
        }
    }
    if depth == MAX_DEPTH {
        return;
    }
    let children = fs::list_dir(cgroup.as_fd(), MAX_ENTRIES).unwrap_or_default();
    for name in children.iter().filter(|entry| entry.is_dir).filter_map(|entry| entry.name.to_str()) {
        if let Ok(child) = cgroup.open_child(name) {
            add(&child, census, depth + 1);
        }
    }
}
