//! Processes that came to this one because a shim died: the kernel gives them to the nearest subreaper above it, which reaps them.
//!
//! A container's first process is reaped when its end is known ([`reaped`]): until then its zombie is where the new shim reads how it
//! ended. Others (execs, and what they left behind) are reaped as they end. Nothing else is: children of other code in this process
//! are its own to wait for.

use super::pod::{Pod, State};
use super::{Engine, Inner};
use crate::sys::wait::{waitid_pid, waitid_pidfd};
use crate::sys::{ended_children, orphan, poll};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

use crate::state::record::ExitStatus;
use crate::sys::wait::Wait;

/// How long what was killed may take to end until nobody waits to learn how.
const END_WAIT: Duration = Duration::from_secs(2);

/// Takes away the zombie of a process whose end is known, if it is ours.
pub(super) fn reaped(pidfd: BorrowedFd<'_>) {
    let _ = waitid_pidfd(pidfd); // ECHILD: it is its shim's, or init's
}

/// How a process that was killed has ended; `None` when nobody can tell.
pub(super) fn end_of_killed(pidfd: &OwnedFd) -> Option<ExitStatus> {
    let _ = poll::poll_until(pidfd.as_fd(), poll::Interest::Read, END_WAIT); // one that hangs has no end to tell
    Some(match orphan::how_it_ended(pidfd.as_fd())? {
        Wait::Exited(code) => ExitStatus::Exited(code),
        Wait::Signaled(signal) => ExitStatus::Signaled(signal),
    })
}

impl Engine {
    /// From now on what ends in the pod's cgroups and is a child of this process is reaped here.
    pub(super) fn reap_orphans_of(&self, pod: &Pod) {
        let mut of = self.0.orphans.lock().unwrap_or_else(PoisonError::into_inner);
        let watched = of.is_some();
        of.get_or_insert_default().insert(pod.id().clone(), pod.record.cgroup.clone());
        drop(of);
        if !watched {
            let engine = Arc::downgrade(&self.0);
            tokio::spawn(watch(engine));
        }
    }

    /// The pod is gone with all its processes.
    pub(super) fn forget_orphans_of(&self, pod: &Pod) {
        self.reap_orphans();
        if let Some(of) = &mut *self.0.orphans.lock().unwrap_or_else(PoisonError::into_inner) {
            of.remove(pod.id());
        }
    }

    fn reap_orphans(&self) {
        let of = self.0.orphans.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(of) = of.as_ref().filter(|of| !of.is_empty()) else { return };
        let awaited: Vec<u32> = of.keys().filter_map(|id| self.pod(id).ok()).flat_map(|pod| awaited(&pod)).collect();
        for pid in ended_children().into_iter().filter(|pid| !awaited.contains(pid)) {
            let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            let path = cgroup.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
            if of.values().any(|pod| path.strip_prefix(pod.as_str()).is_some_and(|rest| rest.starts_with('/'))) {
                let _ = waitid_pid(pid); // it is ours, and nobody else waits for it
            }
        }
    }
}

/// First processes whose end was not told yet: theirs is the zombie that tells it.
fn awaited(pod: &Pod) -> Vec<u32> {
    let facts = pod.facts();
    let pause = facts.sandbox.iter().filter(|s| s.exit.is_none()).map(|s| s.pause.pid);
    let running = facts.containers.values().filter(|c| c.state() == State::Running);
    pause.chain(running.filter_map(|c| Some(c.process.as_ref()?.process.pid))).collect()
}

/// Reaps whenever a child has ended, for as long as there is an engine.
async fn watch(engine: Weak<Inner>) {
    let Ok(mut child) = signal(SignalKind::child()) else { return };
    loop {
        match engine.upgrade() {
            Some(inner) => Engine(inner).reap_orphans(),
            None => return,
        }
        if child.recv().await.is_none() {
            return;
        }
    }
}
