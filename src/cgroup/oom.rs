//! Whose memory ran out: memory.events of the container and memory.events.local of the pod, read when a process has ended.
//!
//! The kernel counts `oom_kill` before it sends the SIGKILL, so at the moment the pidfd fires the count is there (60 of 60 on 6.1 and
//! 6.12). Read before the cgroup is removed. The exit status is not looked at: a killed child under a parent that exits 0 counts.
//!
//! | container `oom_kill` | container `oom` | pod's own `oom` | it was        |
//! |----------------------|-----------------|-----------------|---------------|
//! | not risen            |                 |                 | no OOM        |
//! | risen                | risen           |                 | the container's limit |
//! | risen                | not risen       | risen           | the pod's limit |
//! | risen                | not risen       | not risen       | the node, or a cgroup above the pod |
//!
//! "Risen" is against a reading made before the process started: the pod's count is that of all its containers, past ones too. Two
//! limits that ran out in one container's life cannot be told apart; the container's own is then named. "Above the pod" is not
//! asked further: those cgroups are the kubelet's, and what they are short of is the node's.

use super::tree::{MAX_FILE_BYTES, is_gone, read_text};
use crate::state::record::Oom;
use std::io;
use std::os::fd::BorrowedFd;

/// Counts of one moment. Without the memory controller there are none, and no OOM is ever seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OomCounts {
    pub container: Option<Counts>,
    /// Of the pod's cgroup itself, without what is below it.
    pub pod: Option<Counts>,
}

/// Of memory.events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// How often the limit of this cgroup (or, in memory.events, of one below) kept an allocation from being made.
    pub oom: u64,
    /// Processes of this cgroup or one below that were killed, whosever limit it was.
    pub oom_kill: u64,
    /// How often all of it was killed (memory.oom.group).
    pub oom_group_kill: u64,
}

/// Reads the counts now. Both are directory descriptors of cgroups; `pod` is `None` where the pod has no cgroup of its own.
///
/// # Errors
/// Those of open(2) and read(2): `ENOENT` or `ENODEV` when a cgroup is gone.
pub fn read(container: BorrowedFd<'_>, pod: Option<BorrowedFd<'_>>) -> io::Result<OomCounts> {
    Ok(OomCounts {
        container: counts(container, "memory.events")?,
        pod: match pod {
            Some(pod) => counts(pod, "memory.events.local")?,
            None => None,
        },
    })
}

fn counts(dir: BorrowedFd<'_>, file: &str) -> io::Result<Option<Counts>> {
    match read_text(dir, file, MAX_FILE_BYTES) {
        // Nothing is found in a directory that was removed, either: that must not pass for a controller that is missing.
        Err(e) if e.kind() == io::ErrorKind::NotFound => match read_text(dir, "cgroup.events", MAX_FILE_BYTES) {
            Err(gone) if is_gone(&gone) => Err(gone),
            _ => Ok(None),
        },
        text => Ok(Some(parse(&text?))),
    }
}

fn parse(text: &str) -> Counts {
    let count = |key| super::stats::field(text, key).unwrap_or(0); // oom_group_kill is absent before Linux 5.17
    Counts { oom: count("oom"), oom_kill: count("oom_kill"), oom_group_kill: count("oom_group_kill") }
}

/// Whose limit killed something between two readings; `None` when nothing was killed. `OomCounts::default()` is right for
/// `before` where the container's cgroup is new and the pod's had no OOM yet.
pub fn judge(before: OomCounts, now: OomCounts) -> Option<Oom> {
    let rise = |before: Option<Counts>, now: Option<Counts>| {
        let (before, now) = (before.unwrap_or_default(), now.unwrap_or_default());
        (now.oom > before.oom, now.oom_kill > before.oom_kill)
    };
    let (container_oom, killed) = rise(before.container, now.container);
    let (pod_oom, _) = rise(before.pod, now.pod);
    if !killed {
        None
    } else if container_oom {
        Some(Oom::Container)
    } else if pod_oom {
        Some(Oom::Pod)
    } else {
        Some(Oom::Node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(container: (u64, u64), pod_oom: u64) -> OomCounts {
        let container = Counts { oom: container.0, oom_kill: container.1, oom_group_kill: 0 };
        OomCounts { container: Some(container), pod: Some(Counts { oom: pod_oom, ..Counts::default() }) }
    }

    #[test]
    fn the_table_of_limits_is_told_apart() {
        let zero = OomCounts::default();
        assert_eq!(judge(zero, at((0, 0), 0)), None);
        assert_eq!(judge(zero, at((3, 0), 0)), None, "an allocation that failed killed nobody");
        assert_eq!(judge(zero, at((1, 1), 0)), Some(Oom::Container));
        assert_eq!(judge(zero, at((1, 2), 5)), Some(Oom::Container));
        assert_eq!(judge(zero, at((0, 1), 1)), Some(Oom::Pod));
        assert_eq!(judge(zero, at((0, 1), 0)), Some(Oom::Node));
        assert_eq!(judge(zero, OomCounts::default()), None, "without the controller nothing is claimed");
    }

    #[test]
    fn what_another_container_did_before_is_not_counted() {
        assert_eq!(judge(at((0, 0), 4), at((0, 1), 4)), Some(Oom::Node));
        assert_eq!(judge(at((0, 0), 4), at((0, 1), 5)), Some(Oom::Pod));
        assert_eq!(judge(at((2, 2), 0), at((2, 2), 0)), None);
    }

    #[test]
    fn the_file_is_read_by_its_keys() {
        let text = "low 0\nhigh 0\nmax 31\noom 2\noom_kill 1\noom_group_kill 1\n";
        assert_eq!(parse(text), Counts { oom: 2, oom_kill: 1, oom_group_kill: 1 });
    }
}
