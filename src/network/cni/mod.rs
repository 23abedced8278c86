//! CNI 1.1: pods on the network of an add-on, by its plugins (github.com/containernetworking/cni, SPEC.md).
//!
//! ```text
//!   attach   VERSION*   record   ADD, ADD ...   answer        * only where a network may be run with several versions
//!   detach   DEL ... DEL in reverse order   record gone
//!   start    DEL for every record whose pod is gone, or of another boot; then GC, where the network has it
//! ```
//! The record is below /var/lib and synced before the first plugin runs, for what plugins keep (leases of addresses) survives a reboot
//! as well: whatever is killed or loses its power, there is a file that says what is to be deleted, with which configuration, even if
//! that has changed since. Each answer is kept beside it for the DEL, which is given the pod's namespace too, bound at a path ([`netns`]).
//!
//! A DEL that fails is told to the caller, who calls again. After [`MAX_TRIES`] the pod may go, and the DEL is owed: it is tried again
//! behind, and at each start, until it succeeds; so a plugin that was uninstalled holds up no pod for ever and no address is forgotten.
//!
//! The first pods of a network are attached one after another until one is: plugins make then what all share, and Debian's portmap fails where
//! two of it make the same chain at once, as after a reboot.
//!
//! Where this differs from libcni, on purpose: an ADD that failed is taken back from the plugin that failed on, with the result so far, so
//! that plugins that delete by result (firewall) find theirs; `capabilities` are not passed on, as the specification has it; and nothing
//! is asked of a plugin without a time limit.

mod args;
mod collect;
mod conf;
pub(crate) mod exec;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod netns;
mod plugins;
pub(super) mod result;
mod status;
pub mod strays;
mod version;

use super::{Attachment, INTERFACE, Kind as NetworkKind, Request};
use crate::config::network::NetworkSettings;
use crate::error::{Context, Error, Kind, Result};
use crate::fault;
use crate::id::PodId;
use crate::state::paths::Paths;
use crate::state::record::{self, Durability, Record};
use crate::sys;
use conf::{Network, Plugin};
use plugins::{Job, Plugins, Subject, Verb};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use version::Version;

/// After so many failed calls for one pod its DEL is owed, and the pod may go. The kubelet calls again within seconds.
const MAX_TRIES: u32 = 3;

/// How long a pod waits for another one to be the first of a network; plugins that hang hold up no more.
const FIRST: Duration = Duration::from_secs(10);

/// How long the plugins of a network may take together. The kubelet gives up after 2 minutes (4 for a sandbox), and what was begun
/// must be taken back within that.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub add: Duration,
    pub del: Duration,
    pub check: Duration,
    pub gc: Duration,
    /// VERSION too.
    pub status: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Limits { add: seconds(60), del: seconds(45), check: seconds(30), gc: seconds(60), status: seconds(5) }
    }
}

/// Directories that are not podwright's own.
#[derive(Debug, Clone)]
pub struct Places {
    pub conf_dir: PathBuf,
    /// In the order in which plugins are looked for.
    pub bin_dirs: Vec<PathBuf>,
    pub netns_dir: PathBuf,
}

impl Places {
    pub fn of(settings: &NetworkSettings) -> Places {
        Places {
            conf_dir: settings.cni_conf_dir.clone(),
            bin_dirs: settings.cni_bin_dirs.clone(),
            netns_dir: settings.netns_dir.clone(),
        }
    }
}

/// CNI as this engine uses it. Cheap to clone; all clones are the same one.
#[derive(Debug, Clone)]
pub struct Cni(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    places: Places,
    paths: Paths,
    boot_id: String,
    limits: Limits,
    plugins: Plugins,
    facts: Mutex<Facts>,
    /// Something is owed.
    owing: Notify,
    /// Held by the attachment that may be the first of its network.
    first: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Facts {
    /// Attachments that this process has made itself: no plugin of a dead engine works on them.
    own: HashSet<PodId>,
    /// How often a DEL has failed.
    failed: HashMap<PodId, u32>,
    /// Pods that are gone, and why their DEL is still to be done.
    owed: BTreeMap<PodId, String>,
    /// The last answer to STATUS: of which network, when, and why not.
    status: Option<(Network, Instant, Option<String>)>,
    /// Somebody asks for it.
    asking: bool,
    /// What others have left was looked for.
    looked: bool,
    /// Networks that a pod was attached to, without host ports and with: what plugins make once is made.
    made: HashSet<(String, bool)>,
}

/// `cni/<pod>.json` below /var/lib: what was begun, with all that a DEL needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Begun {
    pod: PodId,
    boot_id: String,
    /// The pod's records of its engine: it is there as long as the first is, and the second is not.
    pod_record: PathBuf,
    stopped_record: PathBuf,
    network: Network,
    /// The version that the plugins were run with; the record has one of its own.
    cni_version: Version,
    bin_dirs: Vec<PathBuf>,
    /// Where the namespace is bound.
    netns: PathBuf,
    /// `CNI_ARGS`.
    args: String,
    capabilities: Map<String, Value>,
}

impl Record for Begun {
    const KIND: &'static str = "cni";
}

/// `cni/<pod>.answer.json`: what the last plugin has answered that was asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Answer {
    result: Value,
}

impl Record for Answer {
    const KIND: &'static str = "cni-answer";
}

/// `cni/pod-cidr.json`: the kubelet says it once, not to each daemon.
#[derive(Debug, Default, Serialize, Deserialize)]
struct PodCidr {
    subnets: Vec<String>,
}

impl Record for PodCidr {
    const KIND: &'static str = "pod-cidr";
}

/// An ADD that failed: how far it had come.
struct Stuck {
    /// How many plugins were asked, the one that failed included.
    asked: usize,
    error: Error,
}

impl Cni {
    pub fn new(places: Places, paths: Paths) -> Cni {
        Cni::with(places, paths, Limits::default())
    }

    /// With other limits than the usual ones.
    pub fn with(places: Places, paths: Paths, limits: Limits) -> Cni {
        // Without one every record is of this boot: then its pod's records decide.
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        let plugins = Plugins::default();
        let (facts, owing, first) = (Mutex::default(), Notify::new(), tokio::sync::Mutex::default());
        Cni(Arc::new(Inner { places, paths, boot_id, limits, plugins, facts, owing, first }))
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.0.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is a network to attach pods to.
    pub fn is_configured(&self) -> bool {
        conf::load(&self.0.places.conf_dir).network.is_some()
    }

    /// Attaches a pod to the network that is configured now.
    ///
    /// # Errors
    /// `FailedPrecondition` without a network or a plugin's program, with the remedy; otherwise what a plugin says, with everything taken
    /// back, or what could not be: then a detach is due.
    pub async fn attach(&self, request: &Request) -> Result<Attachment> {
        let found = conf::load(&self.0.places.conf_dir);
        let Some((_, network)) = found.network else { return Err(Error::precondition(self.without(&found.skipped))) };
        let until = Instant::now() + self.0.limits.add;
        let asking = Instant::now() + self.0.limits.status;
        let version = self.0.plugins.negotiate(&network, &self.0.places.bin_dirs, asking).await;
        let version = version.ok_or_else(|| Error::internal("a network without a version was let through"))?;
        let begun = Begun {
            pod: request.pod.clone(),
            boot_id: self.0.boot_id.clone(),
            pod_record: self.0.paths.pod_record(&request.pod),
            stopped_record: self.0.paths.stopped_record(&request.pod),
            cni_version: version,
            bin_dirs: self.0.places.bin_dirs.clone(),
            netns: netns::path(&self.0.places.netns_dir, &request.pod),
            args: args::cni_args(request),
            capabilities: args::capabilities(request, &self.pod_cidr())?,
            network,
        };
        if !self.facts().looked {
            // Without a daemon there is nobody else who would: a `run` after a reboot.
            let cni = self.clone();
            tokio::spawn(async move { cni.delete_gone().await.iter().for_each(|e| tracing::warn!("{e}")) });
        }
        let kind = (begun.network.name.clone(), !request.ports.is_empty());
        let _first = self.first(&kind).await;
        let _shared = self.lock(false).await?;
        self.facts().own.insert(request.pod.clone());
        let path = self.0.paths.cni_record(&begun.pod);
        let begun = blocking(move || record::write(&path, &begun, Durability::Disk).map(|()| begun)).await?;
        fault::point("network.cni.recorded");
        let pinned = netns::pin(request.netns.fd.as_fd(), &begun.netns);
        fault::point("network.cni.pinned");
        let added = match pinned {
            Ok(()) => self.add(&begun, until).await,
            Err(error) => Err(Stuck { asked: 0, error }),
        };
        match added {
            Ok(attachment) => {
                self.facts().made.insert(kind);
                Ok(Attachment { ports: request.ports.clone(), ..attachment })
            }
            Err(stuck) => Err(self.take_back(&begun, stuck).await),
        }
    }

    /// The turn to attach a pod where none of its kind was attached before; `None`: with others at once.
    async fn first(&self, kind: &(String, bool)) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        let made = || self.facts().made.contains(kind);
        if made() {
            return None;
        }
        tokio::time::timeout(FIRST, self.0.first.lock()).await.ok().filter(|_| !made())
    }

    /// ADD, one plugin after the other, each with what the one before it has answered.
    async fn add(&self, begun: &Begun, until: Instant) -> Result<Attachment, Stuck> {
        let mut result = None;
        for (at, plugin) in begun.network.plugins.iter().enumerate() {
            match self.add_one(begun, plugin, result.take(), until).await {
                Ok(answer) => result = Some(answer),
                Err(error) => return Err(Stuck { asked: at + 1, error }),
            }
        }
        let asked = begun.network.plugins.len();
        let ips = result::addresses(result.as_ref().unwrap_or(&Value::Null), INTERFACE);
        let wrong = |why| Stuck { asked, error: Error::internal(format!("network {}: {why}", begun.network.name)) };
        Ok(Attachment {
            kind: NetworkKind::Cni,
            network: begun.network.name.clone(),
            interface: INTERFACE.to_owned(),
            ips: ips.map_err(wrong)?,
            host_link: None,
            ports: Vec::new(),
            result,
        })
    }

    /// ADD of one plugin. What it answers is on the disk before the next one is asked, which a DEL finds what it has made by.
    async fn add_one(&self, begun: &Begun, plugin: &Plugin, before: Option<Value>, until: Instant) -> Result<Value> {
        let stdin = begun.stdin(plugin, before.as_ref());
        let said = self.run(begun, Verb::Add, plugin, stdin, until).await?;
        fault::point("network.cni.added");
        let doing = || format!("network {}: ADD of plugin {}", begun.network.name, plugin.program);
        let result = result::parse(&said, begun.cni_version).map_err(|why| Error::internal(why).context(doing()))?;
        let answer = Answer { result };
        record::write(&self.0.paths.cni_answer(&begun.pod), &answer, Durability::Boot)?;
        fault::point("network.cni.answered");
        Ok(answer.result)
    }

    /// DEL for what an ADD that failed has begun. The error, with what could not be taken back.
    async fn take_back(&self, begun: &Begun, stuck: Stuck) -> Error {
        let until = Instant::now() + self.0.limits.del;
        let asked = &begun.network.plugins[..stuck.asked];
        match self.del(begun, asked, until).await.and_then(|()| self.forget(begun)) {
            Ok(()) => stuck.error,
            Err(left) => Error::new(stuck.error.kind(), format!("{} (and then, taking it back: {left})", stuck.error)),
        }
    }

    /// DEL, and once more if that fails: plugins stumble over what an ADD that was killed has left half done, and are past it then.
    async fn del(&self, begun: &Begun, plugins: &[Plugin], until: Instant) -> Result<()> {
        match self.del_once(begun, plugins, until).await {
            Err(e) if matches!(e.kind(), Kind::Internal | Kind::Unavailable) => {
                self.del_once(begun, plugins, until).await
            }
            deleted => deleted,
        }
    }

    /// DEL, the last plugin first. It ends at the first failure: an address must not go back while a rule still leads to it.
    async fn del_once(&self, begun: &Begun, plugins: &[Plugin], until: Instant) -> Result<()> {
        let result = self.answer(begun).filter(|_| begun.cni_version.has_check());
        for plugin in plugins.iter().rev() {
            let stdin = begun.stdin(plugin, result.as_ref());
            match self.run(begun, Verb::Del, plugin, stdin, until).await {
                // "The runtime does not need to clean up" (SPEC, code 3).
                Err(e) if e.kind() == Kind::NotFound => {}
                deleted => drop(deleted?),
            }
            fault::point("network.cni.deleted");
        }
        Ok(())
    }

    /// What the plugins have answered in this boot, as far as they were asked.
    fn answer(&self, begun: &Begun) -> Option<Value> {
        let path = self.0.paths.cni_answer(&begun.pod);
        // It is not synced. One that cannot be read is none: plugins delete without as well as they can.
        let answer = record::read::<Answer>(&path).ok().flatten().filter(|_| begun.boot_id == self.0.boot_id);
        answer.map(|answer| answer.result)
    }

    /// Detaches a pod; one that was never attached, or is detached already, is no error.
    ///
    /// # Errors
    /// What a plugin says. After [`MAX_TRIES`] of them it is owed, and no error any more.
    pub async fn detach(&self, pod: &PodId) -> Result<()> {
        let Err(e) = self.try_detach(pod).await else { return Ok(()) };
        let tries = {
            let mut facts = self.facts();
            let tries = facts.failed.entry(pod.clone()).or_default();
            *tries += 1;
            *tries
        };
        if tries < MAX_TRIES {
            return Err(e);
        }
        tracing::warn!("pod {}: its DEL is owed, and will be tried again: {e}", pod.short());
        self.owe(pod, &e);
        Ok(())
    }

    fn owe(&self, pod: &PodId, why: &Error) {
        self.facts().owed.insert(pod.clone(), why.to_string());
        self.0.owing.notify_one();
    }

    async fn try_detach(&self, pod: &PodId) -> Result<()> {
        let Some(begun) = record::read::<Begun>(&self.0.paths.cni_record(pod))? else {
            return Ok(());
        };
        let _shared = self.lock(false).await?;
        if begun.boot_id == self.0.boot_id && !self.facts().own.contains(pod) {
            let stray = pod.clone();
            let ended = blocking(move || Ok(strays::end(&stray))).await?;
            if ended > 0 {
                tracing::warn!(
                    "pod {}: {ended} plugins of an engine that was killed were at work, and have ended",
                    pod.short()
                );
            }
        }
        let until = Instant::now() + self.0.limits.del;
        self.del(&begun, &begun.network.plugins, until).await?;
        self.forget(&begun)
    }

    /// The pod is attached to nothing any more.
    fn forget(&self, begun: &Begun) -> Result<()> {
        netns::unpin(&begun.netns)?;
        fault::point("network.cni.unpinned");
        let pod = &begun.pod;
        // The record goes last: it is what is found of all this.
        for path in [self.0.paths.cni_answer(pod), self.0.paths.cni_record(pod)] {
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                removed => removed.context(|| format!("remove {}", path.display()))?,
            }
        }
        fault::point("network.cni.forgotten");
        let mut facts = self.facts();
        facts.own.remove(pod);
        facts.failed.remove(pod);
        facts.owed.remove(pod);
        Ok(())
    }

    /// CHECK: whether the pod's network is still as the plugins made it. One that was not attached, or a network that has no CHECK, is.
    ///
    /// # Errors
    /// What a plugin says.
    pub async fn check(&self, pod: &PodId) -> Result<()> {
        let Some(begun) = record::read::<Begun>(&self.0.paths.cni_record(pod))? else { return Ok(()) };
        if begun.network.disable_check || !begun.cni_version.has_check() {
            return Ok(());
        }
        let _shared = self.lock(false).await?;
        let result = self.answer(&begun);
        let until = Instant::now() + self.0.limits.check;
        for plugin in &begun.network.plugins {
            let stdin = begun.stdin(plugin, result.as_ref());
            self.run(&begun, Verb::Check, plugin, stdin, until).await?;
        }
        Ok(())
    }

    /// The lock of all engines on this host: shared for what concerns one attachment, alone for GC.
    async fn lock(&self, alone: bool) -> Result<File> {
        let (directory, path) = (self.0.paths.cni(), self.0.paths.cni_lock());
        blocking(move || {
            make_directory(&directory)?;
            let doing = || format!("lock {}", path.display());
            let file =
                std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path).context(doing)?;
            sys::flock(file.as_fd(), alone).context(doing)?;
            Ok(file)
        })
        .await
    }

    async fn run(&self, begun: &Begun, verb: Verb, plugin: &Plugin, stdin: Vec<u8>, until: Instant) -> Result<Vec<u8>> {
        // After a reboot there is none.
        let bound = netns::is_pinned(&begun.netns);
        let netns = if bound { begun.netns.display().to_string() } else { String::new() };
        let subject = Some(Subject { pod: &begun.pod, netns: &netns, args: &begun.args });
        let job = Job { verb, plugin, network: &begun.network.name, subject, stdin, until };
        self.0.plugins.run(job, &begun.bin_dirs).await
    }
}

impl Begun {
    fn stdin(&self, plugin: &Plugin, previous: Option<&Value>) -> Vec<u8> {
        args::stdin(plugin, &self.network.name, self.cni_version, previous, &self.capabilities, &[])
    }
}

fn make_directory(path: &Path) -> Result<()> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.context(|| format!("make directory {}", path.display()))
}

/// Runs what may block (fsync, flock, a look at all processes) beside the runtime's own threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::internal(format!("a worker thread ended: {e}")))?
}
