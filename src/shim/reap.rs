//! Ends: children are reaped, what is left of a container is killed, its output drained, its record written; then it is told.

use super::event_loop::{Container, Process, Shim, Source, Watched};
use super::log::Stream;
use super::machine::{Action, End};
use super::requests::now_ns;
use crate::cgroup::{limits_of_pod, oom};
use crate::error::{Context, Result};
use crate::fault;
use crate::id::ContainerId;
use crate::state::record::{self, Durability, ExitRecord, ExitStatus};
use crate::sys::epoll::Interest;
use crate::sys::sched::{self, Policy};
use crate::sys::session::{parent_dir, pidfd_send_signal};
use crate::sys::wait::{self, Wait};
use crate::sys::{fs, orphan, pidfd};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// The longest cgroup.events or memory.events that is read, in bytes.
const MAX_EVENTS_BYTES: usize = 4096;
/// The longest cgroup.threads that is read, in bytes: a hundred thousand threads. More of them die in their own time.
const MAX_THREADS_BYTES: usize = 1 << 20;
/// How many children are reaped before others have their turn; more than any pod may have (pids.max of a node).
const REAPS_A_TURN: usize = 1 << 16;
/// How long the shim waits for what it killed before it becomes a sweep, which waits on.
const SWEEP_WAIT: Duration = Duration::from_secs(3);
const SIGKILL: i32 = 9;
/// Why an end is Unknown.
const UNSEEN: &str = "its exit code was seen by nobody: the shim that was its parent had died";

impl From<Wait> for ExitStatus {
    fn from(wait: Wait) -> ExitStatus {
        match wait {
            Wait::Exited(code) => ExitStatus::Exited(code),
            Wait::Signaled(signal) => ExitStatus::Signaled(signal),
        }
    }
}

/// How a process ended; `None` while it runs. A child of ours is reaped by that.
pub(super) fn reap(process: &Process) -> Option<ExitStatus> {
    let pidfd = process.pidfd.fd.as_fd();
    if !process.child {
        let unknown = || orphan::has_ended(pidfd).unwrap_or(true).then_some(ExitStatus::Unknown);
        return orphan::how_it_ended(pidfd).map(ExitStatus::from).or_else(unknown);
    }
    match wait::waitid_pidfd(pidfd) {
        Ok(ended) => ended.map(ExitStatus::from),
        Err(_) => Some(ExitStatus::Unknown), // ECHILD: it was a child, so somebody took its status
    }
}

/// Kills a child whose start is being undone.
pub(super) fn now(pidfd: BorrowedFd<'_>) {
    let _ = pidfd::kill_and_reap(pidfd); // ECHILD: it is gone, which is what is wanted
}

/// `cgroup.kill`. What dies need not wait for its quota on the way out.
pub(super) fn kill_cgroup(cgroup: BorrowedFd<'_>) -> Result<()> {
    match fs::write_file_at(cgroup, "cgroup.kill", b"1") {
        Err(e) if is_gone(&e) => return Ok(()),
        done => done.context(|| "write cgroup.kill")?,
    }
    unthrottle(cgroup);
    Ok(())
}

/// Lifts `cpu.max` from what has been killed, for which it would be many seconds at 1m.
fn unthrottle(cgroup: BorrowedFd<'_>) {
    let _ = fs::write_file_at(cgroup, "cpu.max", b"max"); // without the controller, or the cgroup, there is no quota either
}

/// Takes what has been killed from under the quotas above it, which are the pod's and stay: before Linux 6.18 a process that is out of
/// its quota waits for its next slice also on its way out, and with it whoever waits for the container. It returns to no program any more.
fn hurry<'a>(container: BorrowedFd<'a>, execs: impl Iterator<Item = BorrowedFd<'a>>) {
    let quota = limits_of_pod(container).and_then(|pod| fs::read_file_at(pod.as_fd(), "cpu.max", MAX_EVENTS_BYTES));
    if quota.is_ok_and(|text| !text.starts_with(b"max")) {
        std::iter::once(container).chain(execs).for_each(unthrottle_threads);
    }
}

fn unthrottle_threads(cgroup: BorrowedFd<'_>) {
    let Ok(threads) = fs::read_file_at(cgroup, "cgroup.threads", MAX_THREADS_BYTES) else { return };
    for thread in threads.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok()?.parse().ok()) {
        let _ = sched::set_policy_of(thread, Policy::Unthrottled); // gone; or without CAP_SYS_NICE, and then it takes its time
    }
}

/// `ENOENT` and `ENODEV`: the cgroup was removed.
fn is_gone(e: &std::io::Error) -> bool {
    e.kind() == std::io::ErrorKind::NotFound || e.raw_os_error() == Some(19)
}

/// Whether a living process is in the cgroup or below; one that cannot be read has none.
pub(super) fn is_populated(cgroup: BorrowedFd<'_>) -> bool {
    fs::open_file_at(cgroup, "cgroup.events", fs::Access::Read).is_ok_and(|file| still_populated(file.as_fd()))
}

/// The same through an open cgroup.events, which is thereby armed for the next change.
pub(super) fn still_populated(events: BorrowedFd<'_>) -> bool {
    let mut text = Vec::new();
    let read = fs::read_from_start(events, &mut text, MAX_EVENTS_BYTES);
    read.is_ok() && text.split(|byte| *byte == b'\n').any(|line| line == b"populated 1")
}

impl Shim {
    /// Some child has ended. Known ones have their own way; others are orphans that came to this subreaper.
    pub(super) fn reap_children(&mut self) {
        self.busy = true;
        let cleared = self.signals.clear().context(|| "read signalfd");
        self.noted(cleared);
        for _ in 0..REAPS_A_TURN {
            let Ok(Some(pid)) = wait::ended_child() else { return };
            let before = self.process_count();
            self.reap_known(pid);
            // Either it was known and is reaped now, or it is nobody's. The kernel shows the same one until it is taken.
            if self.process_count() == before && wait::waitid_pid(pid).is_err() {
                return;
            }
        }
    }

    fn process_count(&self) -> usize {
        let containers = self.containers.values().filter(|c| c.process.is_some()).count();
        usize::from(self.pause.is_some()) + containers + self.execs.values().filter(|e| e.process.is_some()).count()
    }

    fn reap_known(&mut self, pid: u32) {
        if self.pause.as_ref().is_some_and(|pause| pause.pid == pid) {
            self.reap_pause();
            return;
        }
        let is = |c: &Container| c.process.as_ref().is_some_and(|process| process.pid == pid);
        if let Some(id) = self.containers.iter().find(|(_, c)| is(c)).map(|(id, _)| id.clone()) {
            self.reap_container(&id);
            return;
        }
        let exec = self.execs.iter().find(|(_, e)| e.process.as_ref().is_some_and(|process| process.pid == pid));
        if let Some(key) = exec.map(|(key, _)| key.clone()) {
            self.reap_exec(&key);
        }
    }

    pub(super) fn reap_pause(&mut self) {
        let Some(pause) = &self.pause else { return };
        let Some(status) = reap(pause) else { return };
        // No namespace of the pod is held here but by this: with it they are gone.
        if let Some(pause) = self.pause.take() {
            self.poll.remove(pause.pidfd.fd.as_fd(), pause.pidfd.token);
        }
        self.note(&format!("pause has ended: {status:?}"));
        fault::point("shim.pause.reaped");
        let actions = self.machine.pause_ended(status);
        self.apply(actions);
    }

    pub(super) fn kill_pause(&mut self) -> Vec<Action> {
        if let Some(pause) = &self.pause {
            let _ = pidfd_send_signal(pause.pidfd.fd.as_fd(), SIGKILL); // ESRCH: it has ended and will be reaped
            fault::point("shim.stop_sandbox.killed");
        }
        Vec::new()
    }

    // Containers.

    /// SIGKILL to all in the container's cgroup; to its first process even where cgroup.kill cannot be written.
    pub(super) fn kill_container(&mut self, id: &ContainerId) -> Vec<Action> {
        let Some(container) = self.containers.get(id) else { return Vec::new() };
        let killed = kill_cgroup(container.cgroup.as_fd());
        let execs = self.execs.iter().filter(|((of, _), _)| of == id).map(|(_, exec)| exec.cgroup.as_fd());
        hurry(container.cgroup.as_fd(), execs);
        // By itself too, for another runtime may have put it elsewhere.
        if let Some(process) = &container.process {
            let _ = pidfd_send_signal(process.pidfd.fd.as_fd(), SIGKILL); // ESRCH: it has ended
        }
        self.noted(killed);
        Vec::new()
    }

    pub(super) fn reap_container(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(status) = container.process.as_ref().and_then(reap) else {
            return;
        };
        let finished_at_ns = now_ns();
        if let Some(process) = container.process.take() {
            self.poll.remove(process.pidfd.fd.as_fd(), process.pidfd.token);
        }
        // Now: the kernel has counted, and the cgroup is there.
        let oom = memory_counts(container).and_then(|counts| oom::judge(container.oom, counts));
        let cgroup = container.cgroup.as_fd();
        let populated = is_populated(cgroup);
        fault::point("shim.container.reaped");
        let mut actions =
            self.machine.container_ended(id, End { status, finished_at_ns, oom, populated }, Instant::now());
        if populated {
            self.watch_container_empty(id);
            self.apply(actions);
            // It may have become empty before it was watched.
            self.container_may_be_empty(id);
            actions = Vec::new();
        }
        self.apply(actions);
    }

    fn watch_container_empty(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let source = Source::ContainerEmpty(id.clone());
        container.empty = watch_changes(&mut self.poll, container.cgroup.as_fd(), "cgroup.events", source);
    }

    pub(super) fn container_may_be_empty(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get(id) else { return };
        let populated = match &container.empty {
            Some(events) => still_populated(events.fd.as_fd()),
            None => is_populated(container.cgroup.as_fd()),
        };
        if !populated {
            let actions = self.machine.container_empty(id);
            self.apply(actions);
        }
    }

    /// memory.events of a running container, if the host has the controller.
    pub(super) fn watch_memory(&mut self, id: &ContainerId, cgroup: &OwnedFd) -> Option<Watched> {
        watch_changes(&mut self.poll, cgroup.as_fd(), "memory.events", Source::Memory(id.clone()))
    }

    pub(super) fn memory_changed(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if let Some(memory) = &container.memory {
            let _ = fs::read_from_start(memory.fd.as_fd(), &mut Vec::new(), MAX_EVENTS_BYTES); // arms it again
        }
        let Some(counts) = memory_counts(container) else { return };
        if oom::judge(std::mem::replace(&mut container.oom_seen, counts), counts).is_some() {
            self.machine.memory_killed(id, Instant::now());
        }
    }

    /// The way out of a container: output, execs, record, in this order.
    pub(super) fn record(&mut self, id: &ContainerId, mut record: ExitRecord) -> Vec<Action> {
        self.busy = true;
        let mut actions = self.end_execs(id);
        let Some(mut container) = self.containers.remove(id) else { return actions };
        for stream in [Stream::Stdout, Stream::Stderr] {
            if let Some((_, fd)) = container.streams.fds().find(|(s, _)| *s == stream) {
                self.poll.remove_source(fd, &Source::Output(id.clone(), stream));
            }
            let drained = container.streams.drain(stream, &mut self.buffers);
            self.noted(drained);
        }
        for watched in [&container.memory, &container.empty].into_iter().flatten() {
            self.poll.remove(watched.fd.as_fd(), watched.token);
        }
        for tap in container.streams.taps.all() {
            self.poll.remove(tap.fd(), tap.token);
        }
        fault::point("shim.container.drained");
        // Whoever reads the log cannot see that, and this is where they look next.
        let lost = container.streams.lost_bytes();
        let lost = (lost > 0).then(|| format!("{lost} bytes of its log could not be written and are lost"));
        let unseen = (record.status == ExitStatus::Unknown).then(|| UNSEEN.to_owned());
        let told = (!record.message.is_empty()).then_some(record.message);
        record.message = [told, unseen, lost].into_iter().flatten().collect::<Vec<_>>().join("; ");
        let written = record::write(&container.dir.join("exit.json"), &record, Durability::Boot);
        self.noted(written);
        fault::point("shim.container.recorded");
        let oom = record.oom.map_or(String::new(), |oom| format!(", out of memory: {oom:?}"));
        self.note(&format!("{} has ended: {:?}{oom}", id.short(), record.status));
        actions.extend(self.machine.recorded(id, record));
        // Last: nobody's news waits for it, and what it keeps goes with the container's directory anyway.
        actions.extend(container.runtime.map(|runtime| Action::Forget(id.clone(), runtime, container.dir)));
        actions
    }

    // Everything.

    /// The owner is gone: all that this shim is responsible for is killed, and waited for, for a while.
    pub(super) fn kill_everything(&mut self) {
        for container in self.containers.values() {
            let killed = kill_cgroup(container.cgroup.as_fd());
            if let Some(process) = &container.process {
                let _ = pidfd_send_signal(process.pidfd.fd.as_fd(), SIGKILL); // ESRCH: it has ended
            }
            self.noted(killed);
        }
        for exec in self.execs.values() {
            if let Some(process) = &exec.process {
                let _ = pidfd_send_signal(process.pidfd.fd.as_fd(), SIGKILL); // ESRCH: it has ended
            }
        }
        let _ = self.kill_pause(); // it may have ended; the sweep finds one that has not
        // All of a pod of `run`, whose cgroup is podwright's own, has been killed.
        if let Some(Ok(pod)) = self.containers.values().next().map(|container| parent_dir(container.cgroup.as_fd())) {
            unthrottle(pod.as_fd());
        }
        let end = Instant::now() + SWEEP_WAIT;
        loop {
            while let Ok(Some(pid)) = wait::ended_child() {
                if wait::waitid_pid(pid).is_err() {
                    break;
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || !wait::has_children() {
                return;
            }
            // Only a child's end is of interest now, and it comes as a signal.
            if super::event_loop::wait_for(&self.signals, left).is_err() || self.signals.clear().is_err() {
                return;
            }
        }
    }
}

/// Opens a file of a cgroup and watches it for changes from now on; `None` when it is not there, or cannot be watched: then the
/// deadline is what is left.
pub(super) fn watch_changes(
    poll: &mut super::event_loop::Poll,
    cgroup: BorrowedFd<'_>,
    file: &str,
    source: Source,
) -> Option<Watched> {
    let fd = fs::open_file_at(cgroup, file, fs::Access::Read).ok()?;
    let token = poll.add(fd.as_fd(), source, Interest::Changed).ok()?;
    let _ = fs::read_from_start(fd.as_fd(), &mut Vec::new(), MAX_EVENTS_BYTES); // arms it; the caller looks anyway
    Some(Watched { fd, token })
}

/// The counts now; `None` when the cgroup is gone.
fn memory_counts(container: &Container) -> Option<oom::OomCounts> {
    let pod = limits_of_pod(container.cgroup.as_fd()).ok();
    oom::read(container.cgroup.as_fd(), pod.as_ref().map(AsFd::as_fd)).ok()
}
