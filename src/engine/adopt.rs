//! When a shim dies: a new one is made, and gets everything that is left of the pod. What cannot be handed over is killed, so that
//! nothing is ever unmanaged.
//!
//! An engine that was there holds duplicates of what the dead shim held ([`Held`]). One that comes later finds processes by pid and
//! start time, and pipes among the descriptors of those who write to them; a terminal is lost with its last holder.
//!
//! How a container ends that was handed over: its new shim is not its parent, but the kernel tells (`sys::orphan`), from Linux 6.15 on
//! in any case, before that from the zombie. An engine that is an ancestor of the dead shim inherits its children, and leaves
//! the zombie until that was read. Children of a shim whose own engine had died before it go to init: on kernels before 6.15 their exit code
//! is lost (Unknown, 255) unless the shim is faster than init.
//!
//! What execs of the dead shim have left is killed: nobody waits for it any more. Of the log, each stream can lack what the shim had read
//! and not yet written: the start of a line that had no end, and what it was writing in that moment (64 KiB at most).

pub mod plan;

use super::pod::{Container, Pod, State, bury, exited, listen, sandbox_exited};
use super::recover::SHIM_WAIT;
use super::runtimes::runtime_of;
use super::shim::{Shim, listen_at, unexpected};
use super::{Engine, blocking, orphans};
use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Kind, Result};
use crate::fault;
use crate::id::{ContainerId, ExecId};
use crate::state::paths::beside;
use crate::state::record::{self, Durability, ExitRecord, ExitStatus, Process, ProcessRecord, ShimRecord, StdStream};
use crate::sys::pidfd::pidfd_open;
use crate::sys::poll::{Interest, poll_until};
use crate::sys::session::pidfd_send_signal;
use crate::sys::spawn::Child;
use crate::sys::{fs, orphan, pipe, start_time};
use crate::wire::{self, Adopt, AdoptContainer, Reply, Request, Runtime};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How long a shim that has hung up may take to be gone until it is asked whether it lives.
const DEATH_WAIT: Duration = Duration::from_secs(1);
/// How long processes of a dead shim's exec may take to die of SIGKILL.
const EXEC_WAIT: Duration = Duration::from_secs(5);
/// The most names in a container's cgroup that are looked at.
const MAX_ENTRIES: usize = 1 << 16;
const SIGKILL: i32 = 9;

/// What a shim needs to go on with a process, as the engine holds it: duplicates, which survive the shim's death.
#[derive(Debug)]
pub struct Held {
    pub pidfd: OwnedFd,
    /// Not to be read here.
    pub streams: Vec<(StdStream, OwnedFd)>,
}

impl Held {
    /// What came with an answer: a pidfd, then streams.
    pub fn of(fds: Vec<OwnedFd>, streams: impl IntoIterator<Item = StdStream>) -> Option<Held> {
        let mut fds = fds.into_iter();
        Some(Held { pidfd: fds.next()?, streams: streams.into_iter().zip(fds).collect() })
    }

    /// A process that was started by a shim of which nothing is held, with those of its pipes that it still has; `None` when it is gone.
    fn find(process: Process, pipes: &[(StdStream, u64)]) -> Option<Held> {
        let pidfd = find_process(process)?;
        let reopen = |(stream, number): &(StdStream, u64)| {
            let end = pipe::reopen(process.pid, *number, *stream == StdStream::Stdin);
            Some((*stream, end.ok()??)) // an error is that it has ended just now
        };
        Some(Held { pidfd, streams: pipes.iter().filter_map(reopen).collect() })
    }
}

/// A pidfd of the process with that pid and start time; `None` when it is gone.
pub(super) fn find_process(process: Process) -> Option<OwnedFd> {
    let pidfd = pidfd_open(process.pid).ok()?;
    (start_time(process.pid).ok()? == process.start_time).then_some(pidfd)
}

impl Engine {
    /// The connection to the shim is gone. Ends when there is another shim, or none is needed, or everything was killed. Boxed: it starts
    /// a listener to the next shim, by which it would be a part of itself.
    pub(super) fn shim_hung_up(self, pod: Arc<Pod>, shim: Shim) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        pod.lose_shim(&shim);
        Box::pin(async move {
            if self.is_observer() || pod.facts().stopped {
                return pod.change(|facts| facts.hung_up = true);
            }
            let _one_at_a_time = pod.verb.lock().await;
            self.ensure_shim(&pod).await;
        })
    }

    /// Sees to it that the pod has a shim, or is known to have none. By a caller that holds the pod's lock.
    pub(super) async fn ensure_shim(&self, pod: &Arc<Pod>) {
        if pod.shim().is_ok() || pod.facts().hung_up || self.is_observer() {
            return;
        }
        if self.is_sweeper() {
            self.bury_pod(pod, "it is to be removed").await;
        } else {
            self.replace_shim(pod, true).await;
        }
    }

    /// Gives the pod a new shim. `ask`: the old one may live and have hung up for another reason.
    pub(super) async fn replace_shim(&self, pod: &Arc<Pod>, ask: bool) {
        let replaced = match self.shim_is_dead(pod, ask).await {
            Ok(false) => return,
            Ok(true) => loop {
                match self.take_over(pod).await {
                    // The new one has died, too. How often that may be, `plan` says.
                    Err(e) if e.kind() == Kind::Unavailable => {}
                    done => break done,
                }
            },
            Err(e) => Err(e),
        };
        if let Err(e) = replaced {
            tracing::error!("pod {}: its shim has died: {e}; all of it is killed", pod.id().short());
            self.bury_pod(pod, &e.to_string()).await;
        }
    }

    /// Waits for the shim's end, and reaps it; `false` when it lives and answers. One that lives and does not is killed.
    async fn shim_is_dead(&self, pod: &Arc<Pod>, ask: bool) -> Result<bool> {
        let child = pod.take_child();
        let pidfd = match &child {
            Some(child) => Some(child.pidfd().try_clone_to_owned().context(|| "dup a pidfd")?),
            None => self.stranger(pod),
        };
        let Some(pidfd) = pidfd else { return Ok(true) };
        if !ended_within(&pidfd, DEATH_WAIT).await? {
            if ask && self.connect(pod).await.is_ok() {
                pod.set_child(child);
                return Ok(false);
            }
            tracing::warn!("pod {}: its shim does not answer and is killed", pod.id().short());
            let _ = pidfd_send_signal(pidfd.as_fd(), SIGKILL); // ESRCH: it has ended in this moment
            if !ended_within(&pidfd, SHIM_WAIT).await? {
                return Err(Error::internal("its shim hangs in the kernel and does not die of SIGKILL"));
            }
        }
        if let Some(child) = child {
            let _ = blocking(move || child.wait().context(|| "wait")).await; // ECHILD: somebody has reaped it
        }
        Ok(true)
    }

    /// Decides what the pod gets, and does it.
    async fn take_over(&self, pod: &Arc<Pod>) -> Result<()> {
        self.read_again(pod);
        let deaths = pod.shim_died();
        match plan::pod(self.left(pod), &deaths, Instant::now()) {
            plan::Pod::Nothing => {
                pod.change(|facts| facts.hung_up = true);
                return Ok(());
            }
            plan::Pod::Death(why) => return Err(Error::precondition(why)),
            plan::Pod::Shim => {}
        }
        pod.note("engine: the shim has died");
        self.reap_orphans_of(pod);
        let (child, socket, joined) = self.give_birth(pod.id(), true)?;
        let process =
            Process { pid: child.id(), start_time: start_time(child.id()).context(|| "read the shim's start time")? };
        let given = tokio::time::timeout(SHIM_WAIT, self.settle(pod, process, socket, joined)).await;
        match given.unwrap_or_else(|_| Err(Error::new(Kind::DeadlineExceeded, "the new shim does not answer"))) {
            Ok(number) => {
                pod.set_child(Some(child));
                tracing::warn!(
                    "pod {}: its shim has died; another one has taken over {number} containers",
                    pod.id().short()
                );
                Ok(())
            }
            Err(e) => {
                pod.set_shim(None);
                kill(child).await;
                Err(e.context("start another shim"))
            }
        }
    }

    /// Hands everything to a shim that was just born; how many containers.
    async fn settle(&self, pod: &Arc<Pod>, process: Process, socket: OwnedFd, joined: bool) -> Result<usize> {
        let (sender, heard) = mpsc::unbounded_channel();
        let shim = Shim::new(socket, sender)?;
        let greeting = shim.greet(self.options().owner).await?;
        fault::point("engine.adopt.hello");
        // Before it has anything: whoever comes after us finds it, or that it is gone.
        record::write(&self.paths().shim_record(pod.id()), &ShimRecord { shim: process }, Durability::Boot)?;
        pod.change(|facts| facts.shim = Some(process));
        fault::point("engine.adopt.record");
        greeting.answered().await?;
        if !joined {
            self.join_shims(&shim, process.pid).await?;
        }
        let sandbox = pod.facts().sandbox.clone().ok_or_else(|| Error::internal("the pod has no sandbox"))?;
        let pause = pod.facts().pause.as_ref().map(OwnedFd::try_clone).transpose().context(|| "dup a pidfd")?;
        let pause = pause.ok_or_else(|| Error::internal("the pause process is not held"))?;
        let adopt = Adopt { pod: pod.id().clone(), dir: self.paths().pod(pod.id()), sandbox };
        // The dead shim's socket stays until the new one is there: a name that is always connected to somebody, or to nobody.
        let path = self.paths().shim_socket(pod.id());
        let _ = std::fs::remove_file(beside(&path)); // of an engine that was killed before its rename
        let socket = listen_at(&beside(&path))?;
        std::fs::rename(beside(&path), &path).context(|| format!("rename into {}", path.display()))?;
        shim.done(Request::Adopt(Box::new(adopt)), &[socket.as_fd(), pause.as_fd()]).await?;
        fault::point("engine.adopt.sandbox");
        let number = self.hand_over_all(pod, &shim).await?;
        fault::point("engine.adopt.containers");
        pod.set_shim(Some(shim.clone()));
        tokio::spawn(listen(self.clone(), Arc::downgrade(pod), shim, heard));
        pod.note("engine: another shim has taken over");
        Ok(number)
    }

    /// Every container that runs by what is known and has none yet; how many there were. One that cannot be handed over is killed.
    pub(super) async fn hand_over_all(&self, pod: &Arc<Pod>, shim: &Shim) -> Result<usize> {
        let running: Vec<ContainerId> = pod.running();
        let mut number = 0;
        for id in running {
            let handed = match plan::container(self.remains(pod, &id)) {
                plan::Container::Nothing | plan::Container::Ended => continue,
                plan::Container::Shim => self.hand_over(pod, shim, &id).await,
                plan::Container::Death => Err(Error::precondition("it has ended, and nobody saw how")),
            };
            match handed {
                Ok(()) => number += 1,
                Err(e) if e.kind() == Kind::Unavailable => return Err(e), // the shim; not the container
                Err(e) => {
                    tracing::warn!("container {}: {e}", id.short());
                    let exit = bury(self, pod, &id, &e.to_string()).await;
                    exited(self, pod, &id, exit);
                }
            }
        }
        Ok(number)
    }

    async fn hand_over(&self, pod: &Arc<Pod>, shim: &Shim, id: &ContainerId) -> Result<()> {
        let cgroup = self.open_cgroup(&pod.container_cgroup(id))?;
        kill_execs(self.open_cgroup(&pod.container_cgroup(id))?).await?;
        let dup = |fd: &OwnedFd| fd.try_clone().context(|| "dup a descriptor of a container");
        let (record, process, warnings, streams, fds) = {
            let facts = pod.facts();
            let missing = || Error::internal(format!("container {} is not held", id.short()));
            let container = facts.containers.get(id).ok_or_else(missing)?;
            let held = container.held.as_ref().ok_or_else(missing)?;
            let streams: Vec<StdStream> = held.streams.iter().map(|(stream, _)| *stream).collect();
            let fds = std::iter::once(&held.pidfd).chain(held.streams.iter().map(|(_, fd)| fd)).map(dup);
            let fds = fds.collect::<Result<Vec<OwnedFd>>>()?;
            let process = container.process.clone().ok_or_else(missing)?;
            (container.record.clone(), process, container.warnings.clone(), streams, fds)
        };
        // Whose handler is not configured any more runs on; what its runtime would be called for is refused by the shim.
        let handler = &pod.record.config.runtime_handler;
        let unknown = |_| Some(Runtime { name: handler.clone(), path: PathBuf::new() });
        let runtime = runtime_of(handler, &self.0.options.runtimes).unwrap_or_else(unknown);
        let launch = self.launch(pod, &record, runtime);
        let adopt = AdoptContainer { launch, process, warnings: warnings.to_vec(), streams };
        let riding: Vec<BorrowedFd<'_>> = std::iter::once(cgroup.as_fd()).chain(fds.iter().map(AsFd::as_fd)).collect();
        shim.done(Request::AdoptContainer(Box::new(adopt)), &riding).await?;
        fault::point("engine.adopt.container");
        Ok(())
    }

    /// What the dead shim has recorded and told nobody.
    fn read_again(&self, pod: &Arc<Pod>) {
        let unfinished = |c: &&Container| c.state() != State::Exited;
        let ids: Vec<ContainerId> =
            pod.facts().containers.values().filter(unfinished).map(|c| c.record.id.clone()).collect();
        for id in ids {
            let (paths, of) = (self.paths(), pod.id());
            if let Ok(Some(process)) = record::read::<ProcessRecord>(&paths.process_record(of, &id)) {
                pod.change(|facts| facts.containers.get_mut(&id).map(|c| c.process.get_or_insert(process).clone()));
            }
            if let Ok(Some(exit)) = record::read::<ExitRecord>(&paths.exit_record(of, &id)) {
                exited(self, pod, &id, exit);
            }
        }
    }

    fn left(&self, pod: &Pod) -> plan::Left {
        let mut facts = pod.facts();
        let this_boot = pod.record.boot_id == self.0.boot_id;
        let pause = match &facts.sandbox {
            None => plan::Pause::None,
            Some(sandbox) if sandbox.exit.is_some() => plan::Pause::Ended,
            Some(sandbox) => {
                let process = sandbox.pause;
                if facts.pause.is_none() && this_boot {
                    facts.pause = find_process(process);
                }
                let runs = |pidfd: &OwnedFd| !orphan::has_ended(pidfd.as_fd()).unwrap_or(true);
                if facts.pause.as_ref().is_some_and(runs) { plan::Pause::Runs } else { plan::Pause::Ended }
            }
        };
        plan::Left { stopped: facts.stopped, this_boot, pause }
    }

    fn remains(&self, pod: &Pod, id: &ContainerId) -> plan::Remains {
        let mut facts = pod.facts();
        let Some(container) = facts.containers.get_mut(id) else {
            return plan::Remains { exit: false, process: false, pidfd: false };
        };
        if let (None, Some(process)) = (&container.held, &container.process) {
            container.held = Held::find(process.process, &process.pipes);
        }
        plan::Remains {
            exit: container.exit.is_some(),
            process: container.process.is_some(),
            pidfd: container.held.is_some(),
        }
    }

    /// Asks a shim that was there before this engine for duplicates of what it holds. A container that it does not know and that
    /// runs all the same, because an engine was killed while it handed things over, is handed over now.
    pub(super) async fn share(&self, pod: &Arc<Pod>, shim: &Shim, known: &[ContainerId]) -> Result<()> {
        if shim.version() < wire::ADOPTION {
            return Ok(());
        }
        if pod.facts().sandbox.as_ref().is_some_and(|s| s.exit.is_none()) {
            let held = duplicates(shim, None).await?;
            pod.change(|facts| facts.pause = held.map(|held| held.pidfd));
        }
        for id in known.iter().filter(|id| pod.running().contains(id)) {
            let held = duplicates(shim, Some(id.clone())).await?;
            pod.change(|facts| facts.containers.get_mut(id).map(|c| c.held = held));
        }
        for id in pod.running().into_iter().filter(|id| !known.contains(id)) {
            if plan::container(self.remains(pod, &id)) == plan::Container::Shim
                && let Err(e) = self.hand_over(pod, shim, &id).await
            {
                tracing::warn!("container {}: {e}", id.short());
                let exit = bury(self, pod, &id, &e.to_string()).await;
                exited(self, pod, &id, exit);
            }
        }
        Ok(())
    }

    /// The shim is dead and gets no successor: nothing that it held may run on unmanaged.
    pub(super) async fn bury_pod(&self, pod: &Arc<Pod>, why: &str) {
        for id in pod.running() {
            let exit = bury(self, pod, &id, why).await;
            exited(self, pod, &id, exit);
        }
        let paused = pod.facts().sandbox.as_ref().is_some_and(|s| s.exit.is_none());
        if paused {
            self.kill_cgroup(&pod.sandbox_cgroup());
            let pidfd = pod.facts().pause.as_ref().and_then(|fd| fd.try_clone().ok());
            let status = match pidfd {
                Some(pidfd) => blocking(move || Ok(orphans::end_of_killed(&pidfd))).await.ok().flatten(),
                None => None,
            };
            sandbox_exited(self, pod, status.unwrap_or(ExitStatus::Unknown));
        }
        pod.change(|facts| facts.hung_up = true);
    }
}

/// What a shim holds of a running container, or of pause; `None` when that has ended.
pub(super) async fn duplicates(shim: &Shim, container: Option<ContainerId>) -> Result<Option<Held>> {
    match shim.call(Request::Duplicate { container }, &[]).await {
        Ok((Reply::Duplicates { streams }, fds)) => Ok(Held::of(fds, streams)),
        Ok((other, _)) => Err(unexpected(&other)),
        Err(e) if e.kind() == Kind::Unavailable => Err(e),
        Err(_) => Ok(None), // it has ended meanwhile, which is told as an event
    }
}

async fn ended_within(pidfd: &OwnedFd, wait: Duration) -> Result<bool> {
    let pidfd = pidfd.try_clone().context(|| "dup a pidfd")?;
    blocking(move || poll_until(pidfd.as_fd(), Interest::Read, wait).context(|| "wait for a shim")).await
}

/// Ends a shim that could not take over.
async fn kill(child: Child) {
    let _ = blocking(move || {
        let _ = child.kill(); // it may have ended by itself
        child.wait().context(|| "wait for a shim")
    })
    .await; // ECHILD: somebody has reaped it
}

/// Kills the execs in a container's cgroup: nobody knows them any more.
async fn kill_execs(container: Cgroup) -> Result<()> {
    let doing = || format!("kill the execs in {}", container.path());
    let entries = fs::list_dir(container.as_fd(), MAX_ENTRIES).context(doing)?;
    let names = entries.into_iter().filter(|entry| entry.is_dir).filter_map(|entry| entry.name.into_string().ok());
    let names: Vec<String> = names.filter(|name| ExecId::parse(name).is_some()).collect();
    if names.is_empty() {
        return Ok(());
    }
    blocking(move || names.iter().try_for_each(|name| container.remove_child(name, EXEC_WAIT))).await
}
