//! CheckpointContainer: memory, processes and changed files of a running container as one archive, which goes on running. The work on processes
//! is criu's, a program of the host that nothing here needs until it is asked for.
//!
//! ```text
//!   freeze the cgroup -> criu dump -> changed files -> thaw -> archive, without a name -> give it its name
//! ```
//! The container stands still so that its files are those of its memory. What was begun is in `checkpoint/` beside its writable layer: as long as
//! that is there the cgroup may be frozen, and whoever finds it there at a start thaws and removes it.

mod archive;
mod criu;

use super::pod::{Pod, State};
use super::run_pod::remove_tree;
use super::{Engine, blocking, mkdir_all};
use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Kind, Result};
use crate::fault;
use crate::id::ContainerId;
use crate::state::record::{ContainerRecord, ProcessRecord};
use archive::{Changes, Target};
pub use criu::find as find_criu;
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

/// What is told of how checkpoints are made.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The program; `None`: `criu` of PATH and the directories for programs of root.
    pub criu: Option<PathBuf>,
}

/// What is known of a container that is to be written.
struct Subject {
    pod: Arc<Pod>,
    record: Arc<ContainerRecord>,
    process: ProcessRecord,
    cgroup: Cgroup,
    /// `checkpoint/` beside the writable layer.
    work: PathBuf,
}

/// One at a time for a container.
struct Turn<'a>(&'a Engine, ContainerId);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.0.checkpointing.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

/// A cgroup whose processes stand still, until this is dropped.
struct Frozen(Cgroup);

impl Frozen {
    fn new(cgroup: Cgroup) -> Result<Frozen> {
        let path = cgroup.path().clone();
        let frozen = Frozen(cgroup); // also thaws when it takes too long
        frozen.0.freeze(FREEZE_WAIT).context(|| format!("freeze cgroup {path}"))?;
        Ok(frozen)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(e) = self.0.thaw() {
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
    /// is over, nothing is left.
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
        let subject = self.subject(pod, id).context(doing)?;
        let criu = criu::find(self.0.checkpoints.get().and_then(|settings| settings.criu.as_deref())).context(doing)?;
        let target = Target::open(location).context(doing)?;
        let _turn = self.turn(id).context(doing)?;
        let (work, note) = (subject.work.clone(), subject.pod.clone());
        note.note(&format!("engine: checkpoint of {} begun", subject.record.config.name));
        let written = self.write_checkpoint(subject, &criu, target, until).await;
        let removed = blocking(move || remove_tree(&work)).await;
        note.note(&format!("engine: checkpoint {}", if written.is_ok() { "written" } else { "failed" }));
        let errors = written.err().into_iter().chain(removed.err()).collect();
        Error::collect(errors).map_or(Ok(()), |e| Err(e.context(doing())))
    }

    fn turn(&self, id: &ContainerId) -> Result<Turn<'_>> {
        let mut all = self.0.checkpointing.lock().unwrap_or_else(PoisonError::into_inner);
        if all.insert(id.clone()) {
            return Ok(Turn(self, id.clone()));
        }
        Err(Error::precondition("another checkpoint of it is being written"))
    }

    fn subject(&self, pod: Arc<Pod>, id: &ContainerId) -> Result<Subject> {
        let (record, process) = {
            let facts = pod.facts();
            facts.whole()?;
            let container = facts.containers.get(id).filter(|c| c.state() == State::Running);
            let container = container.ok_or_else(|| Error::precondition("it does not run"))?;
            let process = container.process.clone().ok_or_else(|| Error::precondition("it does not run"))?;
            (container.record.clone(), process)
        };
        let cgroup = self.open_cgroup(&pod.container_cgroup(id))?;
        let work = self.work_of(id);
        Ok(Subject { pod, record, process, cgroup, work })
    }

    /// By the mark, for another process may be at it, or was.
    pub(super) fn is_being_checkpointed(&self, id: &ContainerId) -> bool {
        self.work_of(id).exists()
    }

    fn work_of(&self, id: &ContainerId) -> PathBuf {
        self.paths().writable(id).join("checkpoint")
    }

    async fn write_checkpoint(&self, subject: Subject, criu: &Path, target: Target, until: Instant) -> Result<()> {
        let Subject { record, process, cgroup, work, .. } = subject;
        let images = work.join(archive::IMAGES);
        remove_tree(&work)?; // of a daemon that was killed and whose container could not be found at the next one's start
        mkdir_all(&images, 0o700)?;
        let files = self.hierarchy().file(cgroup.path(), "");
        let (call, log) = criu::dump(criu, process.process, &record, &work, &files, until)?;
        let frozen = blocking(move || Frozen::new(cgroup)).await?;
        fault::point("engine.checkpoint.frozen");
        criu::run(call, &log).await?;
        fault::point("engine.checkpoint.dumped");
        // A pid that was given to another in the meantime is no container of ours.
        if !criu::is_same(process.process) {
            return Err(Error::precondition("it ended while it was being written"));
        }
        let upper = self.paths().writable(&record.id).join("upper");
        let (layers, directory) = (record.layers.clone(), work.clone());
        let deadline = until.into_std();
        blocking(move || Changes::write(&upper, &layers, &directory, deadline)).await?;
        drop(frozen);
        blocking(move || {
            archive::describe(&record, &process, &work)?;
            target.write(&work, deadline)
        })
        .await?;
        fault::point("engine.checkpoint.written");
        Ok(())
    }

    /// Takes away what a daemon that was killed had begun: whatever it froze goes on.
    pub(super) fn forget_checkpoint(&self, pod: &Pod, id: &ContainerId) {
        let work = self.work_of(id);
        if !work.exists() {
            return;
        }
        // The criu of that daemon would put back what it found, when it ends: frozen.
        criu::end_strays(id);
        let thawed = self.open_cgroup(&pod.container_cgroup(id)).and_then(|cgroup| cgroup.thaw());
        // One that is gone has nobody in it to be thawed.
        let thawed = thawed.or_else(|e| if e.kind() == Kind::NotFound { Ok(()) } else { Err(e) });
        if let Err(e) = thawed.and_then(|()| remove_tree(&work)) {
            tracing::warn!("container {}: {e}", id.short());
        }
    }
}
