//! The verbs, one file each, called by `cri`, `agent` and `run` alike: there is no second way to make a pod.
//!
//! An engine is the owner of the pods below one directory ([`crate::state::paths`]): the daemon's, or those of one instance of
//! `run`. It keeps no fact that a dead process takes along: records and shims are the truth, [`Engine::recover`] rebuilds
//! memory from them, and what is in memory is a cache that every list and status is served from.
//!
//! Verbs on one pod are serialised by its lock; waiting (for a grace period, for an exec) is done without it. Every verb says
//! where it may be killed ([`crate::fault::point`]), and what was made by then is found again by [`sweep`] or the next verb.
//!
//! A shim that dies is replaced, and its pod lives on ([`adopt`]).
//!
//! What the engine never does: clone, mount, or know how a shim works. They meet in [`crate::wire`].

pub mod adopt;
pub mod apparmor;
pub mod attach;
pub mod cdi;
mod cgroups;
pub mod checkpoint;
mod create_container;
pub mod damaged;
pub mod edits;
pub mod etc;
pub mod events;
pub mod exec;
mod forward;
pub mod hooks;
mod host_devices;
mod ids;
pub mod in_use;
pub mod kept;
mod network;
pub mod oci;
mod orphans;
pub mod pod;
pub mod query;
pub mod quarantine;
mod recover;
mod relabel;
mod remove;
mod reopen_log;
mod run_pod;
pub mod runtimes;
mod scopes;
pub mod selinux;
pub mod shim;
pub mod signal;
mod spare;
mod start_container;
pub mod stats;
mod stop;
pub mod sweep;
pub mod terminal;
mod undo;
mod update;
pub mod verify;

pub use create_container::host_facts;
pub use network::host_resolv_conf;
pub use run_pod::check as check_pod;
pub use runtimes::{Runtimes, runtime_of};
pub use start_container::user_choice;

use crate::cgroup::Hierarchy;
use crate::config::CgroupDriver;
use crate::config::network::NetworkSettings;
use crate::error::{Context, Error, Result};
use crate::id::{ContainerId, PodId};
use crate::image::store::Store;
use crate::network::Network;
use crate::state::paths::Paths;
use crate::sys;
use events::Event;
use pod::Pod;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::Permissions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;
use tokio::sync::broadcast;

/// How many events a slow listener may lag behind before it misses some (and is told so).
const EVENT_BACKLOG: usize = 1024;

/// What an engine is given by the command that hosts it.
#[derive(Debug, Clone)]
pub struct Options {
    pub paths: Paths,
    /// podwright's own subtree of cgroup v2, `/podwright`; of systemd its slice, by the same name.
    pub cgroup_root: String,
    /// Who makes cgroups.
    pub cgroup_driver: CgroupDriver,
    /// Limits that the host cannot enforce are warnings, not errors.
    pub allow_unenforced: bool,
    /// The host's name, shown by pods on its network.
    pub node_name: String,
    /// What pods are connected to.
    pub network: NetworkSettings,
    /// Pods shall not outlive this engine (`run`).
    pub owner: bool,
    /// Other OCI runtimes, by the names of their handlers.
    pub runtimes: Runtimes,
    /// Where specifications of the Container Device Interface are; a later directory has the higher priority.
    pub cdi_dirs: Vec<PathBuf>,
    /// Give pods labels where the host has SELinux.
    pub selinux: bool,
}

/// The engine. Cheap to clone; all clones are the same one. To be used within a tokio runtime.
#[derive(Debug, Clone)]
pub struct Engine(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    options: Options,
    images: Store,
    hierarchy: Hierarchy,
    network: Network,
    /// The sealed program that all shims run from; made when the first one is.
    program: Mutex<Option<Arc<OwnedFd>>>,
    spare: spare::Spare,
    pods: Mutex<HashMap<PodId, Arc<Pod>>>,
    events: broadcast::Sender<Event>,
    /// Held from an event's time to its sending: they are sent in the order of their times.
    telling: Mutex<()>,
    last_ns: AtomicI64,
    boot_id: String,
    /// Held from the first pod of an instance of `run` on.
    claim: Mutex<Option<sweep::Lock>>,
    /// Pods of `run` that are removed but for their shims, which watch over what is left until the very end.
    parked: Mutex<Vec<Arc<Pod>>>,
    /// Records that cannot be read, and why.
    quarantine: Mutex<BTreeMap<PathBuf, String>>,
    /// Another engine has these pods: a shim that dies or does not answer is that one's concern ([`Engine::observe`]).
    observer: AtomicBool,
    /// Everything is to go: a shim that has died is not replaced.
    sweeper: AtomicBool,
    /// The cgroups of pods whose shim has died under this engine: what ends there may be this process's to reap. `None` until one has.
    orphans: Mutex<Option<BTreeMap<PodId, String>>>,
    /// Held while podwright's own AppArmor profile is loaded; why that failed.
    apparmor: tokio::sync::Mutex<Option<String>>,
    features: runtimes::Remembered,
    hooks: OnceLock<Arc<dyn hooks::Hooks>>,
    checkpoints: OnceLock<checkpoint::Settings>,
    /// Containers that are being written to an archive.
    checkpointing: Mutex<BTreeSet<PodId>>,
}

impl Engine {
    /// An engine that knows no pods yet. Touches nothing on the disk but what reading needs.
    ///
    /// # Errors
    /// `Unsupported` without cgroup v2, `Internal` when an image store is there and unreadable.
    pub fn open(options: Options) -> Result<Engine> {
        let hierarchy = Hierarchy::discover()?;
        let images = Store::open(&options.paths)?;
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .context(|| "read /proc/sys/kernel/random/boot_id")?;
        let (events, _) = broadcast::channel(EVENT_BACKLOG);
        let network = Network::new(options.network.clone(), options.paths.clone(), boot_id.trim());
        Ok(Engine(Arc::new(Inner {
            options,
            images,
            hierarchy,
            network,
            program: Mutex::new(None),
            spare: spare::Spare::default(),
            pods: Mutex::new(HashMap::new()),
            events,
            telling: Mutex::default(),
            last_ns: AtomicI64::new(0),
            boot_id: boot_id.trim().to_owned(),
            claim: Mutex::new(None),
            parked: Mutex::default(),
            quarantine: Mutex::default(),
            observer: AtomicBool::new(false),
            sweeper: AtomicBool::new(false),
            orphans: Mutex::default(),
            apparmor: tokio::sync::Mutex::default(),
            features: runtimes::Remembered::default(),
            hooks: OnceLock::new(),
            checkpoints: OnceLock::new(),
            checkpointing: Mutex::default(),
        })))
    }

    /// The image store that containers are made from.
    pub fn images(&self) -> &Store {
        &self.0.images
    }

    /// Where everything is.
    pub fn paths(&self) -> &Paths {
        &self.0.options.paths
    }

    /// What this engine was opened with.
    pub fn options(&self) -> &Options {
        &self.0.options
    }

    /// The cgroup hierarchy that limits are written to.
    pub fn hierarchy(&self) -> &Hierarchy {
        &self.0.hierarchy
    }

    /// What pods are connected to.
    pub fn network(&self) -> &Network {
        &self.0.network
    }

    /// What happens from now on. A listener that lags by [`EVENT_BACKLOG`] is told that it missed some.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.0.events.subscribe()
    }

    /// The time in nanoseconds since the epoch, strictly increasing: kubelet sorts by it.
    pub(crate) fn now_ns(&self) -> i64 {
        let now = realtime_ns();
        let next = |last: i64| Some(now.max(last + 1));
        match self.0.last_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) {
            Ok(last) | Err(last) => now.max(last + 1),
        }
    }

    /// Whether another engine has these pods.
    pub(crate) fn is_observer(&self) -> bool {
        self.0.observer.load(Ordering::Relaxed)
    }

    /// Whether this is the daemon's and not one of `run`'s.
    pub(crate) fn is_daemon(&self) -> bool {
        !self.0.options.owner && self.paths().instance.is_none()
    }

    /// Whether everything is to go.
    pub(crate) fn is_sweeper(&self) -> bool {
        self.0.sweeper.load(Ordering::Relaxed)
    }

    fn pods_mut(&self) -> MutexGuard<'_, HashMap<PodId, Arc<Pod>>> {
        self.0.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pod of that id.
    ///
    /// # Errors
    /// `NotFound`; `Internal` for one whose record cannot be read.
    pub(crate) fn pod(&self, id: &PodId) -> Result<Arc<Pod>> {
        let found = self.pods_mut().get(id).cloned();
        found.ok_or_else(|| self.unknown("pod", id.as_str()))
    }

    /// The pod that holds a container of that id.
    ///
    /// # Errors
    /// `NotFound`; `Internal` for one whose record cannot be read.
    pub(crate) fn pod_of(&self, id: &ContainerId) -> Result<Arc<Pod>> {
        let found = self.pods_mut().values().find(|p| p.facts().containers.contains_key(id)).cloned();
        found.ok_or_else(|| self.unknown("container", id.as_str()))
    }

    /// The same for a verb that changes it: its shim was heard.
    ///
    /// # Errors
    /// As [`Engine::pod`]; `Unavailable` when the shim does not answer yet, `FailedPrecondition` when it speaks another version of the
    /// protocol than this engine.
    pub(crate) async fn reachable(&self, id: &PodId) -> Result<Arc<Pod>> {
        let pod = self.pod(id)?;
        pod.heard().await?;
        Ok(pod)
    }

    /// The same for a verb that changes a container.
    ///
    /// # Errors
    /// As [`Engine::pod_of`] and [`Engine::reachable`].
    pub(crate) async fn reachable_of(&self, id: &ContainerId) -> Result<Arc<Pod>> {
        let pod = self.pod_of(id)?;
        pod.heard().await?;
        Ok(pod)
    }

    /// Tells whoever listens. To be called with the lock under which the state has changed: whoever is told takes that lock to look, so that
    /// the state is visible with its event, and what comes after this change is told after it.
    pub(crate) fn announce(&self, event: Event) {
        let _one_at_a_time = self.0.telling.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = self.0.events.send(Event { at_ns: self.now_ns(), ..event }); // there may be no listener
    }

    /// The program of new shims, sealed once for all of them.
    fn program(&self) -> Result<Arc<OwnedFd>> {
        let mut program = self.0.program.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fd) = &*program {
            return Ok(fd.clone());
        }
        let fd =
            Arc::new(sys::memfd::sealed_self("podwright-shim").context(|| "copy this program into a sealed memfd")?);
        // From the first shim on: what one that dies leaves comes here.
        sys::session::set_child_subreaper().context(|| "become subreaper")?;
        *program = Some(fd.clone());
        Ok(fd)
    }
}

/// CLOCK_REALTIME in nanoseconds.
fn realtime_ns() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Makes a directory with exactly these permission bits, whatever the umask; one that is there is left as it is.
pub(crate) fn mkdir_all(path: &Path, mode: u32) -> Result<()> {
    let doing = || format!("make directory {}", path.display());
    let make = || std::fs::DirBuilder::new().mode(mode).create(path);
    let made = match (make(), path.parent()) {
        (Err(e), Some(parent)) if e.kind() == std::io::ErrorKind::NotFound => {
            mkdir_all(parent, mode)?;
            make()
        }
        (made, _) => made,
    };
    match made {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        made => made.and_then(|()| std::fs::set_permissions(path, Permissions::from_mode(mode))).context(doing),
    }
}

/// Runs what may block for long (removing trees, unpacking) beside the runtime's own threads.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::internal(format!("a worker thread ended: {e}")))?
}
