//! CheckpointContainer: memory, processes and changed files of a running container as one archive, which goes on running. The work on processes
//! is criu's, a program of the host that nothing here needs until it is asked for.
//!
//! ```text
//!   freeze the cgroup -> criu dump -> changed files -> thaw -> archive, without a name -> give it its name
//! ```
//! The container stands still so that its files are those of its memory. What was begun is in `checkpoint/` beside its writable layer: as long as
//! that is there the cgroup may be frozen and its network shut, and whoever finds it there at a start, or at the next checkpoint, puts both
//! back and removes it. What could not be put back is tried again until it is: meanwhile there are no execs.

mod archive;
mod criu;
mod locks;
mod task;

use super::pod::{Pod, State};
use super::run_pod::remove_tree;
use super::{Engine, blocking};
use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Kind, Result};
use crate::fault;
use crate::id::{ContainerId, PodId};
use crate::state::model::NamespaceMode;
use crate::state::record::{ContainerRecord, Process, ProcessRecord};
use archive::{Changes, Target};
pub use criu::find as find_criu;
use locks::Locks;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long a checkpoint may take when nobody says: what a kubelet waits for one.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(120);
/// Longer than this nobody waits.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// How long a cgroup may take to stand still: a process in an uninterruptible call does not.
const FREEZE_WAIT: Duration = Duration::from_secs(10);
/// How long after it could not be put back that is tried again; twice as long each time, up to the second.
const PUT_BACK_AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

/// What is told of how checkpoints are made.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The program; `None`: `criu` of PATH and the directories for programs of root.
    pub criu: Option<PathBuf>,
}

/// What is known of a container that is to be written.
#[derive(Clone)]
struct Subject {
    pod: Arc<Pod>,
    record: Arc<ContainerRecord>,
    process: ProcessRecord,
    /// Whose network is the container's.
    pause: Option<Process>,
    /// `checkpoint/` beside the writable layer.
    work: PathBuf,
}

/// One at a time in a network, which criu shuts: until the last that works on it has ended.
struct Turn(Engine, PodId);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.0.checkpointing.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

/// Until when, and whose turn it is.
type Task = task::Task<Turn>;

/// A cgroup whose processes stand still, until this is dropped.
struct Frozen(Option<Cgroup>);

impl Frozen {
    fn new(cgroup: Cgroup, wait: Duration) -> Result<Frozen> {
        let frozen = Frozen(Some(cgroup)); // also thaws when it takes too long
        match frozen.0.as_ref().map_or(Ok(()), |cgroup| cgroup.freeze(wait)) {
            Ok(()) => Ok(frozen),
            Err(e) => Err(Error::collect([Some(e), frozen.thaw().err()].into_iter().flatten().collect())
                .unwrap_or_else(|| Error::internal("no error"))),
        }
    }

    /// Lets them go on, and says when they do not.
    fn thaw(mut self) -> Result<()> {
        self.0.take().map_or(Ok(()), |cgroup| cgroup.thaw())
    }
}

impl Drop for Frozen {
    /// Of who has not waited for it.
    fn drop(&mut self) {
        if let Some(Err(e)) = self.0.take().map(|cgroup| cgroup.thaw()) {
            tracing::warn!("{e}");
        }
    }
}

impl Engine {
    /// How checkpoints are made from now on. Once; without it the defaults count.
    pub fn set_checkpoints(&self, settings: Settings) {
        let _ = self.0.checkpoints.set(settings); // the first one stays
    }

    /// Writes a running container to the archive `location`, which must not be there yet; the container goes on. When this fails, or `timeout`
    /// is over, there is no archive, and nothing is left but what the error says. Putting the container back is not given up when time is over.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` unless it runs, or while another call is at it; `InvalidArgument`, `AlreadyExists` for the location;
    /// `Unsupported` without criu; `DeadlineExceeded`; `Internal` with what criu says of a process that it cannot write.
    pub async fn checkpoint_container(&self, id: &ContainerId, location: &Path, timeout: Duration) -> Result<()> {
        let until = Instant::now() + timeout;
        let pod = self.reachable_of(id).await?;
        let doing = || format!("checkpoint container {}", id.short());
        let handler = &pod.record.config.runtime_handler;
        if !handler.is_empty() {
            let why = format!(
                "its pod is of runtime handler {handler:?}; containers of the built-in runtime are checkpointed"
            );
            return Err(Error::unsupported(why).context(doing()));
        }
        let (subject, cgroup) = self.subject(pod, id).context(doing)?;
        let criu = criu::find(self.0.checkpoints.get().and_then(|settings| settings.criu.as_deref())).context(doing)?;
        let task = Task::new(until, self.turn(&subject.pod).context(doing)?);
        let location = location.to_owned();
        let target = task.blocking(move || Target::open(&location)).await.context(doing)?;
        subject.pod.note(&format!("engine: checkpoint of {} begun", subject.record.config.name));
        let written = self.write_checkpoint(&subject, cgroup, &criu, target, &task).await;
        subject.pod.note(&format!("engine: checkpoint {}", if written.is_ok() { "written" } else { "failed" }));
        written.context(doing)
    }

    fn turn(&self, pod: &Pod) -> Result<Turn> {
        // The host's network is all its pods'.
        let own = pod.record.config.namespaces.network != NamespaceMode::Node;
        let network = if own { pod.id().clone() } else { PodId::none() };
        let mut all = self.0.checkpointing.lock().unwrap_or_else(PoisonError::into_inner);
        if all.insert(network.clone()) {
            return Ok(Turn(self.clone(), network));
        }
        Err(Error::precondition("another checkpoint is being written, of it or of a container in the same network"))
    }

    fn subject(&self, pod: Arc<Pod>, id: &ContainerId) -> Result<(Subject, Cgroup)> {
        let (record, process, pause) = {
            let facts = pod.facts();
            facts.whole()?;
            let container = facts.containers.get(id).filter(|c| c.state() == State::Running);
            let container = container.ok_or_else(|| Error::precondition("it does not run"))?;
            let process = container.process.clone().ok_or_else(|| Error::precondition("it does not run"))?;
            (container.record.clone(), process, facts.sandbox.as_ref().map(|sandbox| sandbox.pause))
        };
        let cgroup = self.open_cgroup(&pod.container_cgroup(id))?;
        let work = self.work_of(id);
        Ok((Subject { pod, record, process, pause, work }, cgroup))
    }

    /// By the mark, for another process may be at it, or was.
    pub(super) fn is_being_checkpointed(&self, id: &ContainerId) -> bool {
        self.work_of(id).exists()
    }

    fn work_of(&self, id: &ContainerId) -> PathBuf {
        self.paths().writable(id).join("checkpoint")
    }

    async fn write_checkpoint(
        &self,
        subject: &Subject,
        cgroup: Cgroup,
        criu: &Path,
        target: Target,
        task: &Task,
    ) -> Result<()> {
        // Of a checkpoint that could not be taken back, or a daemon that was killed and whose container could not be found at the next one's start.
        let (engine, old) = (self.clone(), subject.clone());
        if let Err(e) = task.blocking(move || engine.put_back(&old.pod, old.pause, &old.record.id)).await {
            self.put_back_later(subject, task.late());
            return Err(e);
        }
        let (work, pause) = (subject.work.clone(), subject.pause);
        let locks = task.blocking(move || begin(&work, pause)).await;
        let mut left = Vec::new();
        let written = match locks {
            Ok(locks) => self.take(subject, cgroup, criu, locks, task, &mut left).await,
            Err(e) => Err(e),
        };
        let written = match written {
            Ok(()) => Self::name_archive(subject, target, task).await,
            failed => failed,
        };
        let late = task.late();
        if left.is_empty() && late.is_none() {
            let work = subject.work.clone();
            left.extend(blocking(move || remove_tree(&work)).await.err());
        }
        if late.is_some() || !left.is_empty() {
            self.put_back_later(subject, late);
        }
        let errors: Vec<Error> = written.err().into_iter().chain(left).collect();
        Error::collect(errors).map_or(Ok(()), Err)
    }

    /// Writes what is gone when the container goes on, which it does when this returns; if not, why is added to `left`.
    async fn take(
        &self,
        subject: &Subject,
        cgroup: Cgroup,
        criu: &Path,
        locks: Locks,
        task: &Task,
        left: &mut Vec<Error>,
    ) -> Result<()> {
        let files = self.hierarchy().file(cgroup.path(), "");
        let Subject { record, process, work, .. } = subject.clone();
        let (call, log) = criu::dump(criu, process.process, &record, &work, &files, task.until)?;
        let wait = FREEZE_WAIT.min(task.until.saturating_duration_since(Instant::now()));
        let frozen = task.blocking(move || Frozen::new(cgroup, wait)).await?;
        fault::point("engine.checkpoint.frozen");
        let upper = self.paths().writable(&record.id).join("upper");
        let dumped = criu::run(call, &log).await;
        fault::point("engine.checkpoint.dumped");
        let taken = match dumped {
            // A pid that was given to another in the meantime is no container of ours.
            Ok(()) if !criu::is_same(process.process) => {
                Err(Error::precondition("it ended while it was being written"))
            }
            Ok(()) => {
                let (ids, deadline) = (subject.pod.record.config.namespaces.user.map(), task.until.into_std());
                task.blocking(move || Changes::write(&upper, &record.layers, ids, &work, deadline)).await
            }
            failed => failed,
        };
        left.extend(frozen.thaw().err());
        left.extend(blocking(move || locks.remove()).await.err());
        taken
    }

    /// Writes the archive of what is in the directory.
    async fn name_archive(subject: &Subject, target: Target, task: &Task) -> Result<()> {
        let (Subject { record, process, work, .. }, deadline) = (subject.clone(), task.until.into_std());
        let whole = task.blocking(move || {
            archive::describe(&record, &process, &work)?;
            target.write(&work, deadline)
        });
        let whole = whole.await?;
        // From here on it is there in time, however long its directory takes to be synced.
        blocking(move || whole.name()).await?;
        fault::point("engine.checkpoint.written");
        Ok(())
    }

    /// Takes away what a daemon that was killed had begun: whatever it froze goes on. Within the runtime.
    pub(super) fn forget_checkpoint(&self, pod: &Arc<Pod>, pause: Option<Process>, id: &ContainerId) {
        if let Err(e) = self.put_back(pod, pause, id) {
            tracing::warn!("container {}: {e}", id.short());
            let (engine, pod, id) = (self.clone(), pod.clone(), id.clone());
            tokio::spawn(async move { engine.put_back_again(&pod, pause, &id).await });
        }
    }

    /// Puts a container back after its call was answered; when all that is still at work for it has ended, which may make the mark anew.
    fn put_back_later(&self, subject: &Subject, late: Option<task::Late<Turn>>) {
        let (engine, Subject { pod, record, pause, .. }) = (self.clone(), subject.clone());
        tokio::spawn(async move {
            if let Some(late) = late {
                let _turn = late.ended().await;
                if engine.try_to_put_back(&pod, pause, &record.id).await {
                    return;
                }
            }
            engine.put_back_again(&pod, pause, &record.id).await;
        });
    }

    /// Tries it until it is done: as long as it is not, there are no execs. Not while a checkpoint is made, which does it first of all.
    async fn put_back_again(&self, pod: &Arc<Pod>, pause: Option<Process>, id: &ContainerId) {
        let [mut wait, longest] = PUT_BACK_AGAIN;
        loop {
            tokio::time::sleep(wait).await;
            wait = longest.min(wait * 2);
            let Ok(_turn) = self.turn(pod) else { continue };
            if self.try_to_put_back(pod, pause, id).await {
                return;
            }
        }
    }

    /// Whether it is, or is gone.
    async fn try_to_put_back(&self, pod: &Arc<Pod>, pause: Option<Process>, id: &ContainerId) -> bool {
        let (engine, of, container) = (self.clone(), pod.clone(), id.clone());
        match blocking(move || engine.put_back(&of, pause, &container)).await {
            Ok(()) => {
                pod.note("engine: put back after a checkpoint");
                true
            }
            Err(e) => {
                tracing::warn!(
                    "container {} is not as it was before its checkpoint, and has no execs: {e}",
                    id.short()
                );
                false
            }
        }
    }

    fn put_back(&self, pod: &Pod, pause: Option<Process>, id: &ContainerId) -> Result<()> {
        let work = self.work_of(id);
        if !work.exists() {
            return Ok(());
        }
        // The criu of that daemon would put back what it found, when it ends: frozen.
        criu::end_strays(id);
        let thawed = self.open_cgroup(&pod.container_cgroup(id)).and_then(|cgroup| cgroup.thaw());
        // One that is gone has nobody in it to be thawed.
        let thawed = thawed.or_else(|e| if e.kind() == Kind::NotFound { Ok(()) } else { Err(e) });
        let opened = Locks::read(&work, pause).and_then(|locks| locks.map_or(Ok(()), Locks::remove));
        Error::collect([thawed.err(), opened.err()].into_iter().flatten().collect()).map_or(Ok(()), Err)?;
        remove_tree(&work)
    }
}

/// Makes the mark, and notes how the network is. Only below a writable layer that is there: a container that is removed meanwhile stays so.
fn begin(work: &Path, pause: Option<Process>) -> Result<Locks> {
    for directory in [work.to_owned(), work.join(archive::IMAGES)] {
        let made = std::fs::DirBuilder::new().mode(0o700).create(&directory);
        made.context(|| format!("make directory {}", directory.display()))?;
    }
    Locks::note(work, pause)
}
