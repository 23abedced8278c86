//! RunPodSandbox: shim, record, cgroups, pause, in this order, each with its way back.
//!
//! The shim comes first, before any file or cgroup of the pod exists, and the record (an intent) before the cgroups that it
//! names: so whoever finds the pieces after a kill -9, the shim itself or the next `podwright`, finds all of them.

use super::events::{Event, EventKind};
use super::network::host_resolv_conf;
use super::pod::{Pod, listen};
use super::runtimes::{Runtimes, runtime_of};
use super::scopes::Holder;
use super::shim::{Birth, Shim, listen_at, spawn, unexpected};
use super::undo::Undo;
use super::{Engine, blocking, etc, ids, mkdir_all, relabel, sweep};
use crate::cgroup::Cgroup;
use crate::config::network::NetworkMode;
use crate::error::{Context, Error, Result};
use crate::fault;
use crate::id::PodId;
use crate::network;
use crate::state::flight::{Flight, Source};
use crate::state::model::{NamespaceMode, PodCgroup, PodConfig, UserNamespace};
use crate::state::record::{self, Durability, PodRecord, Process};
use crate::sys;
use crate::sys::fs::Access;
use crate::sys::spawn::Child;
use crate::wire::{Reply, Request, Sandbox};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;

/// Size of a pod's /dev/shm, in bytes, as in containerd and CRI-O.
const SHM_BYTES: u64 = 64 << 20;
/// oom_score_adj of pause, as in containerd and CRI-O: the pod's namespaces go last.
const PAUSE_OOM_SCORE_ADJ: i32 = -998;
/// Longest hostname, HOST_NAME_MAX of sethostname(2).
const MAX_HOSTNAME: usize = 64;

/// The pod's own files, which its containers see below /etc.
const ETC: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// The namespace that a sysctl belongs to, or why it cannot be set for a pod.
fn check_sysctl(config: &PodConfig, name: &str, value: &str) -> Result<()> {
    let refuse = |why: &str| Err(Error::invalid(format!("sysctl {name:?}: {why}")));
    let grammar = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-' | '.' | '/');
    if name.len() > 253 || name.is_empty() || !name.chars().all(grammar) || name.split(['.', '/']).any(str::is_empty) {
        return refuse("a name has lower-case words joined by dots");
    }
    if value.chars().any(|c| c.is_control() && c != '\t') || value.is_empty() || value.len() > 4096 {
        return refuse("the value is one line of 1 to 4096 bytes without control characters");
    }
    let dotted = name.replace('/', ".");
    let ipc = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."].iter().any(|p| dotted.starts_with(p));
    if dotted.starts_with("net.") {
        return match config.namespaces.network {
            NamespaceMode::Node => refuse("it would change the host's network, which this pod uses"),
            _ => Ok(()),
        };
    }
    if ipc {
        return match config.namespaces.ipc {
            NamespaceMode::Node => refuse("it would change the host's IPC, which this pod uses"),
            _ => Ok(()),
        };
    }
    refuse(
        "it belongs to no namespace of a pod (net.*, kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.* do): it would change the host",
    )
}

/// What of a pod's config can be judged before anything is made: what [`Engine::run_pod`] would refuse at once.
///
/// # Errors
/// `InvalidArgument` and `Unsupported`, naming field, value and remedy.
pub fn check(config: &PodConfig, mode: NetworkMode, runtimes: &Runtimes) -> Result<()> {
    for (field, text) in [("name", &config.name), ("namespace", &config.namespace), ("uid", &config.uid)] {
        let grammar = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        if text.is_empty() || text.len() > 253 || !text.chars().all(grammar) || text.starts_with('.') {
            return Err(Error::invalid(format!(
                "pod {field} {text:?} must be 1 to 253 of a-z A-Z 0-9 '-' '.' '_', not starting with '.'"
            )));
        }
    }
    if config.hostname.len() > MAX_HOSTNAME
        || !config.hostname.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'))
    {
        return Err(Error::invalid(format!(
            "hostname {:?} must have at most {MAX_HOSTNAME} letters, digits, '-' and '.'",
            config.hostname
        )));
    }
    if runtime_of(&config.runtime_handler, runtimes)?.is_some() && config.namespaces.user != UserNamespace::Host {
        return Err(Error::unsupported(format!(
            "runtime handler {:?}: a pod with a user namespace needs the built-in runtime; leave out one of the two",
            config.runtime_handler
        )));
    }
    network::check(config, mode)?;
    ids::check(config)?;
    if matches!(config.namespaces.network, NamespaceMode::Container | NamespaceMode::Target(_))
        || matches!(config.namespaces.ipc, NamespaceMode::Container | NamespaceMode::Target(_))
    {
        return Err(Error::invalid("network and ipc namespaces are the pod's or the node's"));
    }
    config.sysctls.iter().try_for_each(|(name, value)| check_sysctl(config, name, value))
}

impl Engine {
    /// Makes a pod sandbox: its shim, its cgroups and its namespaces, held by a pause process.
    ///
    /// # Errors
    /// `InvalidArgument` and `Unsupported` before anything was made; otherwise what failed, with everything taken back.
    pub async fn run_pod(&self, config: PodConfig) -> Result<PodId> {
        let id = PodId::random();
        self.run_pod_as(id.clone(), config).await.map(|()| id)
    }

    /// The same with an id that the caller chose, because its paths are named in volumes and logs already.
    ///
    /// # Errors
    /// As [`Engine::run_pod`].
    pub async fn run_pod_as(&self, id: PodId, config: PodConfig) -> Result<()> {
        check(&config, self.0.options.network.mode, &self.0.options.runtimes)?;
        self.check_root()?;
        let mut undo = Undo::default();
        match self.make_pod(id.clone(), config, &mut undo).await {
            Ok(_) => {
                self.keep_spare_soon();
                Ok(())
            }
            Err(e) => Err(undo.unwind(e).await.context("run pod")),
        }
    }

    /// Inside a container the usual place is on overlayfs, and the mount would fail with no more than EINVAL.
    fn check_root(&self) -> Result<()> {
        let root = &self.paths().root;
        if sys::fs::is_overlay(root).context(|| format!("statfs {}", root.display()))? {
            return Err(Error::unsupported(format!(
                "{} is on overlayfs, which cannot hold a container's writable layer; give --root a directory on a volume",
                root.display()
            )));
        }
        Ok(())
    }

    async fn make_pod(&self, id: PodId, mut config: PodConfig, undo: &mut Undo) -> Result<Arc<Pod>> {
        let cgroup = self.0.options.pod_cgroup(&id, &config.cgroup)?;
        fault::point("engine.run_pod.asked");
        let (child, socket, joined) = self.bear(&id)?;
        let shim_process = Process {
            pid: child.id(),
            start_time: sys::start_time(child.id()).context(|| "read the shim's start time")?,
        };
        let child = Arc::new(Mutex::new(Some(child)));
        let (engine, unborn) = (self.clone(), child.clone());
        undo.push(move || async move {
            bury_shim(unborn).await?;
            engine.prune_cgroups();
            Ok(())
        });
        fault::point("engine.run_pod.shim");
        let (sender, heard) = mpsc::unbounded_channel();
        let shim = Shim::new(socket, sender)?;
        // It answers while the files and cgroups are made. Whose it is, it finds on its socket even when we are gone by then.
        let greeting = shim.greet(self.0.options.owner).await?;
        fault::point("engine.run_pod.hello");
        self.claim()?;
        fault::point("engine.run_pod.claimed");
        let flight = self.make_directory(&id, &config, undo)?;
        let networked = self.has_network(&config);
        let (selinux, choosing) = self.choose(&mut config)?;
        let record = PodRecord {
            id: id.clone(),
            config,
            created_at_ns: self.now_ns(),
            boot_id: self.0.boot_id.clone(),
            cgroup,
            networked,
            selinux,
            shim: shim_process,
        };
        record::write(&self.paths().pod_record(&id), &record, Durability::Boot)?;
        drop(choosing);
        self.label_etc(&record)?;
        fault::point("engine.run_pod.record");
        let pod = Arc::new(Pod::new(record, child, Some(flight)));
        pod.note("engine: shim, directory and record made");
        let (leaf, holder) = self.make_cgroups(&pod, undo).await?;
        greeting.answered().await?;
        if !joined {
            self.join_shims(&shim, shim_process.pid).await?;
        }
        pod.note("engine: cgroups made and verified");
        self.start_pause(&pod, &shim, &leaf, undo).await?;
        if let Some(holder) = holder {
            holder.end().await?;
        }
        self.attach_network(&pod, undo).await?;
        let entered = self.tell_run_pod(&pod, undo).await?;
        pod.set_shim(Some(shim.clone()));
        {
            let mut pods = self.pods_mut();
            pods.insert(id.clone(), pod.clone());
            for kind in [EventKind::Created, EventKind::Started] {
                self.announce(Event::of(&id, None, kind));
            }
        }
        drop(entered);
        // After that: the sandbox may end at once.
        tokio::spawn(listen(self.clone(), Arc::downgrade(&pod), shim, heard));
        pod.note("engine: pod ready");
        Ok(pod)
    }

    /// Starts a pod's shim; `heir`: not its first. Tells whether it is in the shims' cgroup.
    pub(super) fn give_birth(&self, id: &PodId, heir: bool) -> Result<(Child, OwnedFd, bool)> {
        let program = self.program()?;
        // The shim is born there if it can be, for to join later waits for all processors of the machine (RCU). `run` does not make it
        // before it has a shim: who else would remove it after a kill -9? After a daemon the next one does.
        let path = self.shims_cgroup()?;
        let mut shims = self.open_cgroup(&path).ok();
        // systemd makes none without a process.
        if shims.is_none() && self.is_daemon() && !self.asks_systemd() {
            shims = self.make_plain_cgroup(&path).ok(); // what is wrong is told by the join
            fault::point("engine.run_pod.shims_cgroup");
        }
        spawn(&Birth {
            pod: id,
            paths: self.paths(),
            cgroup_root: &self.0.options.cgroup_root,
            cgroup_driver: self.0.options.cgroup_driver,
            program: program.as_fd(),
            cgroup: shims.as_ref().map(AsFd::as_fd),
            heir,
        })
    }

    /// Takes the instance's lock with its first pod: not earlier, for only a shim cleans up after a kill -9.
    fn claim(&self) -> Result<()> {
        let mut claim = self.0.claim.lock().unwrap_or_else(PoisonError::into_inner);
        if self.0.options.owner && claim.is_none() {
            *claim = Some(sweep::claim(self.paths())?);
        }
        Ok(())
    }

    /// The pod's directory with its own files of /etc and the flight recorder.
    fn make_directory(&self, id: &PodId, config: &PodConfig, undo: &mut Undo) -> Result<Flight> {
        let dir = self.paths().pod(id);
        mkdir_all(&self.paths().pods(), 0o700)?;
        let gone = dir.clone();
        undo.push(move || blocking(move || remove_tree(&gone)));
        for dir in [&dir, &dir.join("etc"), &self.paths().containers(id)] {
            mkdir_all(dir, 0o700)?;
        }
        fault::point("engine.run_pod.directory");
        let host = config.namespaces.network == NamespaceMode::Node;
        let node = if host { std::fs::read_to_string("/etc/hosts").ok() } else { None };
        let hosts = etc::hosts(config, &[], node.as_deref())?;
        let hostname = if config.hostname.is_empty() { &self.0.options.node_name } else { &config.hostname };
        let resolv = match &config.dns {
            Some(dns) => etc::resolv_conf(dns)?,
            None => host_resolv_conf(host),
        };
        for (name, text) in [("hosts", hosts), ("hostname", format!("{hostname}\n")), ("resolv.conf", resolv)] {
            // In place: nobody reads them before the pod is there.
            let path = self.paths().etc(id, name);
            let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path);
            let written = file.and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()));
            written.context(|| format!("write {}", path.display()))?;
        }
        Flight::create(&self.paths().flight(id), Source::Engine)
    }

    /// What is mounted into the pod's containers gets their label.
    fn label_etc(&self, record: &PodRecord) -> Result<()> {
        let Some(labels) = &record.selinux else { return Ok(()) };
        ETC.into_iter().try_for_each(|name| relabel::label_file(&self.paths().etc(&record.id, name), &labels.file))
    }

    /// The pod's cgroup (with its limits, if it is ours) and pause's leaf in it.
    async fn make_cgroups(&self, pod: &Pod, undo: &mut Undo) -> Result<(Cgroup, Option<Holder>)> {
        let (path, leaf_path) = (pod.record.cgroup.clone(), pod.sandbox_cgroup());
        let settings = match &pod.record.config.cgroup {
            PodCgroup::Own { resources, .. } => self.settings(resources)?,
            PodCgroup::Default | PodCgroup::Given(_) => Vec::new(),
        };
        let holder = self.start_scope(pod, &settings, undo).await?;
        if holder.is_none() {
            let (engine, gone) = (self.clone(), pod.own_cgroup());
            undo.push(move || async move { engine.remove_cgroup(&gone) });
        }
        if let PodCgroup::Own { .. } = &pod.record.config.cgroup {
            let own = self.make_cgroup(pod, &path, &settings)?;
            fault::point("engine.run_pod.pod_cgroup");
            let name = || format!("pod {}/{}", pod.record.config.namespace, pod.record.config.name);
            let report = self.limit(&own, &settings).context(name)?;
            pod.change(|facts| {
                facts.limits = report.rows.into();
                facts.warnings = report.warnings.into();
            });
        }
        fault::point("engine.run_pod.limits");
        let leaf = self.make_cgroup(pod, &leaf_path, &[])?;
        fault::point("engine.run_pod.sandbox_cgroup");
        Ok((leaf, holder))
    }

    /// Makes the shims' own cgroup, outside of every pod, and moves the first shim into it.
    pub(super) async fn join_shims(&self, shim: &Shim, pid: u32) -> Result<()> {
        if self.asks_systemd() {
            return self.join_shims_scope(shim, pid).await;
        }
        let shims = self.make_plain_cgroup(&self.shims_cgroup()?)?;
        fault::point("engine.run_pod.shims_cgroup");
        let procs =
            sys::fs::open_file_at(shims.as_fd(), "cgroup.procs", Access::Write).context(|| "open cgroup.procs")?;
        shim.done(Request::Join, &[procs.as_fd()]).await?;
        fault::point("engine.run_pod.joined");
        Ok(())
    }

    async fn start_pause(&self, pod: &Pod, shim: &Shim, leaf: &Cgroup, undo: &mut Undo) -> Result<()> {
        let config = &pod.record.config;
        let socket = listen_at(&self.paths().shim_socket(pod.id()))?;
        let request = Sandbox {
            pod: pod.id().clone(),
            dir: self.paths().pod(pod.id()),
            namespaces: config.namespaces.clone(),
            hostname: config.hostname.clone(),
            sysctls: config.sysctls.iter().map(|(n, v)| (n.clone(), v.clone())).collect(),
            shm_bytes: SHM_BYTES,
            oom_score_adj: PAUSE_OOM_SCORE_ADJ,
            file_label: pod.record.selinux.as_ref().map(|labels| labels.file.clone()),
        };
        let asked = shim.send(Request::CreateSandbox(Box::new(request)), &[leaf.as_fd(), socket.as_fd()]).await?;
        // Meanwhile what the first container would have to wait for.
        if let Some(logs) = &config.log_directory {
            let (engine, id) = (self.clone(), pod.id().clone());
            undo.push(move || blocking(move || engine.remove_data(&id)));
            let _ = mkdir_all(logs, 0o755); // tried again, and told, by the start of a container that logs there
        }
        fault::point("engine.run_pod.logs");
        let (reply, fds) = asked.answer().await?;
        fault::point("engine.run_pod.pause");
        let state = match reply {
            Reply::Sandbox(state) => state,
            Reply::Failed(failure) => return Err(failure.into()),
            other => return Err(unexpected(&other)),
        };
        pod.change(|facts| {
            facts.sandbox = Some(state);
            facts.pause = fds.into_iter().next();
        });
        Ok(())
    }
}

/// Kills a shim that never got to hold anything, and reaps it.
pub(super) async fn bury_shim(child: Arc<Mutex<Option<Child>>>) -> Result<()> {
    let child = child.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(child) = child else { return Ok(()) };
    blocking(move || {
        let _ = child.kill(); // it may have ended by itself
        child.wait().context(|| "wait for the shim")
    })
    .await
}

/// Removes a directory and everything in it; one that is not there is no error.
pub(crate) fn remove_tree(dir: &std::path::Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.context(|| format!("remove {}", dir.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::model::Namespaces;

    fn pod() -> PodConfig {
        PodConfig { name: "web".into(), namespace: "default".into(), uid: "u1".into(), ..PodConfig::default() }
    }

    #[test]
    fn a_sysctl_that_would_change_the_host_is_refused() {
        let with = |name: &str, network: NamespaceMode| {
            let namespaces = Namespaces { network, ..Namespaces::default() };
            check(
                &PodConfig { sysctls: [(name.to_owned(), "1".to_owned())].into(), namespaces, ..pod() },
                NetworkMode::None,
                &Runtimes::new(),
            )
        };
        assert!(with("net.ipv4.ip_forward", NamespaceMode::Pod).is_ok());
        assert!(with("kernel.shmmax", NamespaceMode::Pod).is_ok());
        for bad in
            ["net.ipv4.ip_forward", "kernel.core_pattern", "vm.overcommit_memory", "net..x", "NET.x", "kernel.sem\n"]
        {
            assert!(with(bad, NamespaceMode::Node).is_err(), "{bad}");
        }
        assert!(with("kernel/core_pattern", NamespaceMode::Pod).is_err());
        assert!(with("../../etc", NamespaceMode::Pod).is_err());
    }

    #[test]
    fn a_name_that_means_something_to_a_path_is_refused() {
        assert!(check(&pod(), NetworkMode::None, &Runtimes::new()).is_ok());
        for bad in ["", "..", "a/b", "a\n"] {
            assert!(
                check(&PodConfig { uid: bad.into(), ..pod() }, NetworkMode::None, &Runtimes::new()).is_err(),
                "{bad:?}"
            );
        }
        assert!(check(&PodConfig { hostname: "a b".into(), ..pod() }, NetworkMode::None, &Runtimes::new()).is_err());
    }
}
