//! Taking away what a dead `run` left: by its own shim within seconds, or by the next `podwright` on the machine.
//!
//! An instance is dead when nobody holds its lock. Whatever an engine made is named by a path that its ids give or by a record
//! that was written before it, so everything is found.

use super::recover::list;
use super::run_pod::remove_tree;
use super::{Engine, Options, Runtimes, mkdir_all};
use crate::config::CgroupDriver;
use crate::config::network::NetworkSettings;
use crate::error::{Context, Error, Kind, Result};
use crate::fault;
use crate::id::{InstanceId, PodId};
use crate::state::paths::Paths;
use crate::state::record::Process;
use crate::sys;
use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The role `podwright sweep INSTANCE --state DIR --root DIR`, which a shim of a dead `run` turns into.
///
/// # Errors
/// As [`sweep`], and `InvalidArgument` for another command line.
pub fn main(args: &[OsString]) -> Result<u8> {
    let words: Vec<&str> = args.iter().map(|a| a.to_str().unwrap_or_default()).collect();
    let [_, _, instance, "--state", state, "--root", root] = words[..] else {
        return Err(Error::invalid(
            "usage: podwright sweep INSTANCE --state DIR --root DIR (podwright runs this itself)",
        ));
    };
    let paths = Paths { root: root.into(), state: state.into(), instance: Some(instance.parse()?) };
    let cgroup_root = std::env::var("PODWRIGHT_CGROUP_ROOT").unwrap_or_else(|_| DEFAULT_CGROUP_ROOT.to_owned());
    let cgroup_driver = CgroupDriver::of(&std::env::var("PODWRIGHT_CGROUP_DRIVER").unwrap_or_default());
    let options = Options {
        paths,
        cgroup_root,
        cgroup_driver,
        allow_unenforced: true,
        node_name: String::new(),
        network: NetworkSettings::default(), // what a pod was attached to is in its record
        owner: false,
        runtimes: Runtimes::new(),
        cdi_dirs: Vec::new(),
        selinux: false,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context(|| "start a runtime")?;
    runtime.block_on(sweep(options)).map(|()| 0)
}

/// How long another sweeper may take: a pod under the smallest CPU limit takes it 16 s.
const LOCK_WAIT: Duration = Duration::from_secs(120);
/// How often it is looked whether it has ended.
const LOCK_LOOK: Duration = Duration::from_millis(10);

/// podwright's own cgroup unless it is configured otherwise.
const DEFAULT_CGROUP_ROOT: &str = "/podwright";

/// An instance's lock: held for as long as its owner lives.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Makes an instance's directory and takes its lock.
///
/// # Errors
/// `Internal` when it cannot be made.
pub fn claim(paths: &Paths) -> Result<Lock> {
    mkdir_all(&paths.engine(), 0o700)?;
    let path = paths.lock();
    let file = open(&path).context(|| format!("open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {
            let pid = std::process::id();
            let start_time = sys::start_time(pid).context(|| "read our own start time")?;
            let text = format!("{pid} {start_time}\n");
            file.set_len(0)
                .and_then(|()| (&file).write_all(text.as_bytes()))
                .context(|| format!("write {}", path.display()))?;
            Ok(Lock { _file: file })
        }
        Err(TryLockError::WouldBlock) => {
            Err(Error::precondition(format!("{} is locked by another podwright", path.display())))
        }
        Err(TryLockError::Error(e)) => Err(e).context(|| format!("lock {}", path.display())),
    }
}

/// The process that owns an instance, as it wrote into the lock; `None` when there is none, or it is about to write.
///
/// # Errors
/// `Internal` when the lock cannot be read.
pub fn owner(paths: &Paths) -> Result<Option<Process>> {
    let path = paths.lock();
    let text = match std::fs::read_to_string(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.context(|| format!("read {}", path.display()))?,
    };
    let process = text.trim().split_once(' ');
    Ok(process.and_then(|(pid, start)| Some(Process { pid: pid.parse().ok()?, start_time: start.parse().ok()? })))
}

fn open(lock: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(lock)
}

/// Whether nobody holds a lock; one that was never made is free.
fn is_free(lock: &Path) -> io::Result<bool> {
    let file = match OpenOptions::new().write(true).open(lock) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
        opened => opened?,
    };
    match file.try_lock() {
        Ok(()) => Ok(true), // and let go again with the file
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(e)) => Err(e),
    }
}

/// Ends an instance whose pods are all removed: its directory, what is shared when nobody else uses it, its shims.
///
/// # Errors
/// `Internal` when the directory cannot be removed.
pub async fn release(engine: &Engine) -> Result<()> {
    let lock = engine.0.claim.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    // With a pod that could not be removed the shims sweep when this process has ended.
    let removed = engine.pods_mut().is_empty();
    if removed {
        remove_tree(&engine.paths().engine())?;
        fault::point("engine.release.directory");
        prune_directories(engine.paths());
        fault::point("engine.release.directories");
        engine.end_parked().await?;
    }
    drop(lock);
    fault::point("engine.release.released");
    Ok(())
}

/// The instances that are there, and whether their owner lives.
///
/// # Errors
/// `Internal` when the directory cannot be listed.
pub fn instances(paths: &Paths) -> Result<Vec<(InstanceId, bool)>> {
    let mut all = Vec::new();
    for name in list(&paths.instances())? {
        let Ok(id) = name.parse::<InstanceId>() else { continue };
        let lock = paths.of_instance(id.clone()).lock();
        let free = is_free(&lock).context(|| format!("look at {}", lock.display()))?;
        all.push((id, !free));
    }
    Ok(all)
}

/// Sweeps every instance whose owner is dead; returns how many there were.
///
/// # Errors
/// What is left, together.
pub async fn sweep_dead(options: &Options) -> Result<usize> {
    let dead: Vec<InstanceId> =
        instances(&options.paths)?.into_iter().filter(|(_, alive)| !alive).map(|(id, _)| id).collect();
    let mut left = Vec::new();
    for id in &dead {
        let options = Options { paths: options.paths.of_instance(id.clone()), ..options.clone() };
        left.extend(sweep(options).await.err());
    }
    match Error::collect(left) {
        Some(e) => Err(e),
        None => Ok(dead.len()),
    }
}

/// Removes an instance with everything of its pods. Its owner must be dead.
///
/// # Errors
/// What is left, together; `FailedPrecondition` when the owner lives.
pub async fn sweep(options: Options) -> Result<()> {
    let paths = options.paths.clone();
    let engine = Engine::open(options)?;
    // The process that sweeps may be a shim itself, in a cgroup that is to go. Of several the last one finds it empty.
    engine.leave_shims()?;
    if let Some(lock) = wait_for_lock(&paths).await? {
        engine.sweep_pods().await.context(|| format!("sweep {}", paths.engine().display()))?;
        remove_tree(&paths.engine())?;
        drop(lock);
    }
    engine.prune_cgroups();
    prune_directories(&paths);
    Ok(())
}

/// The dead owner's lock, when the kernel or another sweeper lets it go; `None` when that one has removed everything.
async fn wait_for_lock(paths: &Paths) -> Result<Option<Lock>> {
    let path = paths.lock();
    let file = match open(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.context(|| format!("open {}", path.display()))?,
    };
    let end = Instant::now() + LOCK_WAIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(path.exists().then_some(Lock { _file: file })),
            Err(TryLockError::Error(e)) => return Err(e).context(|| format!("lock {}", path.display())),
            // flock(2) has no timeout, and a thread that is blocked in it cannot be called back.
            Err(TryLockError::WouldBlock) if Instant::now() < end => tokio::time::sleep(LOCK_LOOK).await,
            Err(TryLockError::WouldBlock) => {
                return Err(Error::new(
                    Kind::Unavailable,
                    format!("{} is held by another process for {} s; it is stuck", path.display(), LOCK_WAIT.as_secs()),
                ));
            }
        }
    }
}

/// Directories that exist only while something is in them.
pub fn prune_directories(paths: &Paths) {
    for dir in [paths.instances(), paths.pods(), paths.root.join("containers"), paths.root.join("pods")] {
        let _ = std::fs::remove_dir(dir); // others may be using it
    }
}

impl Engine {
    async fn sweep_pods(&self) -> Result<()> {
        self.0.sweeper.store(true, Ordering::Relaxed);
        let mut left = self.recover_within(super::recover::SHIM_WAIT * 2).await?;
        for name in list(&self.paths().pods())? {
            let Ok(id) = name.parse::<PodId>() else { continue };
            let known = self.pods_mut().contains_key(&id);
            if known {
                left.extend(self.remove_pod(&id).await.err());
            } else if !self.paths().pod_record(&id).exists() {
                left.extend(self.remove_unrecorded(&id).err());
            }
        }
        left.extend(self.unreadable().into_iter().map(|unreadable| Error::internal(unreadable.why)));
        Error::collect(left).map_or(Ok(()), Err)
    }

    /// A pod without a record: its owner was killed before it wrote one, and so before there was any cgroup.
    pub(super) fn remove_unrecorded(&self, id: &PodId) -> Result<()> {
        self.remove_data(id)?;
        fault::point("engine.sweep.data");
        remove_tree(&self.paths().pod(id))?;
        fault::point("engine.sweep.directory");
        Ok(())
    }
}
