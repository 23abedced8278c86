//! CreateContainer: touches the disk only. There is no process to kill when it fails.

use super::apparmor;
use super::edits::Edits;
use super::events::{Event, EventKind};
use super::hooks::{Change, Draft};
use super::host_devices;
use super::ids;
use super::oci::{self, HostFacts};
use super::pod::{Container, Pod};
use super::run_pod::remove_tree;
use super::selinux::{self, State};
use super::undo::Undo;
use super::{Engine, blocking, mkdir_all, relabel};
use crate::error::{Context, Error, Kind, Result};
use crate::fault;
use crate::id::{ContainerId, PodId};
use crate::image::part;
use crate::image::store::Image;
use crate::state::model::{ContainerConfig, Mount, NamespaceMode, SeccompProfile, Security, SelinuxLabels};
use crate::state::paths::Paths;
use crate::state::record::{self, ContainerRecord, Durability, ResourcesRecord};
use crate::state::spec::SpecText;
use crate::sys;
use crate::sys::rlimit::{self, Resource};
use crate::wire::{PREPARATION, Request, Root};
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The largest Localhost seccomp profile, in bytes.
const MAX_PROFILE_BYTES: u64 = 1 << 20;
/// How long a shim may take to read that a root is wanted.
const PREPARE: Duration = Duration::from_secs(1);
/// PATH_MAX and NAME_MAX of linux/limits.h, without the NUL.
const MAX_PATH_BYTES: usize = 4095;
const MAX_NAME_BYTES: usize = 255;

impl Engine {
    /// Makes a container in a pod that is ready: its spec, its record, its writable layer.
    ///
    /// # Errors
    /// `NotFound` for the pod or image, `FailedPrecondition` for a pod that is not ready, `AlreadyExists` for a second
    /// container of that name and attempt, `InvalidArgument` naming field, value and remedy. Nothing is left.
    pub async fn create_container(&self, pod: &PodId, config: ContainerConfig) -> Result<ContainerId> {
        let pod = self.reachable(pod).await?;
        let one_at_a_time = pod.verb.lock().await;
        self.prepare_apparmor(&config.security).await;
        let name = config.name.clone();
        let mut undo = Undo::default();
        let (id, changes) = match self.make_container(&pod, config, &mut undo).await {
            Ok(made) => made,
            Err(e) => return Err(undo.unwind(e).await.context(format!("create container {name:?}"))),
        };
        self.tell_created(&pod, &id).await;
        // Of others, perhaps of this pod.
        drop(one_at_a_time);
        if let Err(e) = self.apply_changes(changes).await {
            let removed = self.remove_container(&id).await.err();
            let e = Error::collect(std::iter::once(e).chain(removed).collect());
            return Err(e.unwrap_or_else(|| Error::internal("no error")).context(format!("create container {name:?}")));
        }
        Ok(id)
    }

    async fn make_container(
        &self,
        pod: &Arc<Pod>,
        config: ContainerConfig,
        undo: &mut Undo,
    ) -> Result<(ContainerId, Vec<Change>)> {
        check(pod, &config)?;
        let labels = self.labels_of(pod, &config)?;
        self.relabel_volumes(pod, &labels, &config.mounts).await?;
        // Until the record names the layers, nothing else keeps `prune` from taking them.
        let _kept = self.0.images.hold()?;
        let image = match &config.image_id {
            Some(id) => self.0.images.lookup(&id.to_string())?,
            None => self.0.images.lookup(&config.image)?,
        };
        let id = ContainerId::random();
        // The directory comes first: whoever sweeps up after a kill -9 finds the writable layer by its name.
        let dir = self.paths().container(pod.id(), &id);
        let gone = dir.clone();
        undo.push(move || blocking(move || remove_tree(&gone)));
        mkdir_all(&dir, 0o700)?;
        fault::point("engine.create_container.directory");
        let writable = self.paths().writable(&id);
        let gone = writable.clone();
        undo.push(move || blocking(move || remove_tree(&gone)));
        mkdir_all(&writable, 0o700)?;
        // The upper directory becomes the root directory of the container: world-searchable, as an image's root is.
        for (dir, mode) in [("upper", 0o755), ("work", 0o700)] {
            mkdir_all(&writable.join(dir), mode)?;
        }
        ids::give_to_pods_root(&writable.join("upper"), pod.record.config.namespaces.user.map())?;
        fault::point("engine.create_container.writable");
        // As early as can be, for it takes longer than all that is done here.
        self.prepare_root(pod, self.root(&id, &image.layers, config.security.readonly_rootfs), &id, undo).await;
        let record = self.container_record(pod, config, &id, image, labels)?;
        let (Draft { record, resources }, changes, _entered) = self.tell_create(pod, record, undo).await?;
        if resources != record.config.resources {
            let changed = ResourcesRecord { resources: resources.clone() };
            record::write(&self.paths().resources_record(pod.id(), &id), &changed, Durability::Boot)?;
        }
        record::write(&self.paths().container_record(pod.id(), &id), &record, Durability::Boot)?;
        fault::point("engine.create_container.record");
        pod.note(&format!("engine: container {} created", record.config.name));
        pod.change(|facts| {
            let container = Container { resources: Arc::new(resources), ..Container::new(Arc::new(record)) };
            facts.containers.insert(id.clone(), container);
            self.announce(Event::of(pod.id(), Some(&id), EventKind::Created));
        });
        Ok((id, changes))
    }

    /// Has the shim make the container's root meanwhile: it takes a third of a start. A start makes its own if this fails, and tells why.
    async fn prepare_root(&self, pod: &Pod, root: Root, container: &ContainerId, undo: &mut Undo) {
        let config = &pod.record.config;
        let Ok(shim) = pod.shim() else { return };
        let plain = config.namespaces.user.map().is_none() && config.runtime_handler.is_empty();
        if shim.version() < PREPARATION || !plain || pod.record.selinux.is_some() {
            return;
        }
        let prepare = Request::Prepare { container: container.clone(), root };
        // A shim that does not read is no reason to wait here; it is told by the next one who has to.
        if let Ok(Ok(_)) = tokio::time::timeout(PREPARE, shim.send(prepare, &[])).await {
            let forget = Request::Forget { container: container.clone() };
            undo.push(move || async move {
                match shim.done(forget, &[]).await {
                    Err(e) if e.kind() == Kind::Unavailable => Ok(()), // gone, and the root with it
                    done => done,
                }
            });
        }
    }

    /// The layers of the images that are mounted, and which images those are; the caller holds the store.
    fn image_layers(&self, mounts: &mut [Mount]) -> Result<Vec<(String, Vec<PathBuf>)>> {
        let mut all = Vec::new();
        for (path, volume) in mounts.iter_mut().filter_map(|mount| Some((&mount.container_path, mount.image.as_mut()?)))
        {
            let image = volume.id.as_ref().map_or_else(|| volume.image.clone(), ToString::to_string);
            let found = self.0.images.lookup(&image).context(|| format!("mount {path:?}"))?;
            if found.layers.is_empty() {
                return Err(Error::invalid(format!("mount {path:?}: image {image} has no files")));
            }
            volume.id = Some(found.id);
            all.push((path.clone(), found.layers));
        }
        Ok(all)
    }

    /// SELinux's labels of a container; none in a pod that was made without.
    fn labels_of(&self, pod: &Pod, config: &ContainerConfig) -> Result<Option<SelinuxLabels>> {
        match (&pod.record.selinux, selinux::state(self.options().selinux)) {
            (Some(labels), State::On(policy)) => {
                let (asked, privileged) = (&config.security.selinux, config.security.privileged);
                selinux::of_container(&policy, labels, &pod.record.config, asked, privileged).map(Some)
            }
            // Its other containers have labels: without one it would be let out of where they are kept.
            (Some(_), other) => {
                Err(Error::precondition(format!("the pod was made with SELinux's labels, and now: {other}")))
            }
            (None, _) => Ok(None),
        }
    }

    /// Not for what is not confined, which sees them as they are; others may as well. Given up between two files when the pod is to end, or nobody
    /// waits for it: what is done of it is done the next time.
    async fn relabel_volumes(&self, pod: &Pod, labels: &Option<SelinuxLabels>, mounts: &[Mount]) -> Result<()> {
        let Some(labels) = labels.as_ref().filter(|labels| selinux::is_confined(labels)) else { return Ok(()) };
        let waits = Arc::new(()); // goes with this future
        for mount in mounts.iter().filter(|mount| mount.selinux_relabel && mount.image.is_none()) {
            let (path, label) = (mount.host_path.clone(), labels.file.clone());
            let (waiting, is_to_be_ended) = (Arc::downgrade(&waits), pod.is_to_be_ended());
            let wanted = move || match (waiting.strong_count(), is_to_be_ended()) {
                (0, _) => Err(Error::new(Kind::Unavailable, "nobody waits for it any more")),
                (_, true) => Err(Error::precondition("the pod is being stopped")),
                _ => Ok(()),
            };
            let relabelled = blocking(move || relabel::relabel(&path, &label, &wanted)).await;
            relabelled.context(|| format!("mount {:?}", mount.container_path))?;
        }
        Ok(())
    }

    fn container_record(
        &self,
        pod: &Pod,
        mut config: ContainerConfig,
        id: &ContainerId,
        image: Image,
        selinux: Option<SelinuxLabels>,
    ) -> Result<ContainerRecord> {
        let image_config = image.config;
        let image_ref = image.digests.into_iter().next().unwrap_or_else(|| image.id.to_string());
        config.image_id = Some(image.id);
        let node_name = &self.0.options.node_name;
        let host = host_facts(self.paths(), pod.id(), pod.container_cgroup(id), node_name, &config)?;
        let apparmor = apparmor_of(pod, &config.security)?;
        let host = HostFacts { image_layers: self.image_layers(&mut config.mounts)?, apparmor, selinux, ..host };
        let mut spec = oci::spec(&pod.record.config, &config, id, &image_config, &host)?;
        Edits { devices: host_devices::asked(&config.devices)?, ..Edits::default() }.apply(&mut spec)?;
        let groups = self.cdi_edits(&config.cdi_devices, config.security.run_as_user, &mut spec)?;
        check_parts(&config.mounts, &host)?;
        let log = match (&pod.record.config.log_directory, &config.log_path) {
            (Some(directory), Some(path)) => Some(log_file(directory, path)?),
            _ => None,
        };
        Ok(ContainerRecord {
            id: id.clone(),
            pod: pod.id().clone(),
            stop_signal: oci::stop_signal(&config, &image_config)?,
            config,
            created_at_ns: self.now_ns(),
            spec: SpecText::of(&spec)?,
            layers: image.layers,
            log,
            image_user: image_config.user,
            image_ref,
            groups,
        })
    }
}

/// The profile that it gets. A shim that was born before there were any refuses them all, so nobody gets one there who did not ask.
fn apparmor_of(pod: &Pod, security: &Security) -> Result<Option<String>> {
    let too_old = pod.shim().is_ok_and(|shim| shim.version() < crate::wire::SECURITY);
    if security.apparmor.is_unset() && too_old { Ok(None) } else { apparmor::given(security) }
}

/// Of images whose parts are mounted: the parts are there. Their names were checked with the spec.
fn check_parts(mounts: &[Mount], host: &HostFacts) -> Result<()> {
    for (path, layers) in &host.image_layers {
        let volume = mounts.iter().find(|mount| mount.container_path == *path).and_then(|mount| mount.image.as_ref());
        let Some(volume) = volume else { continue };
        if part::lacks(layers, &volume.sub_path)? {
            let (image, part) = (&volume.image, &volume.sub_path);
            return Err(Error::invalid(format!("mount {path:?}: image {image} has no directory {part:?}")));
        }
    }
    Ok(())
}

/// What the host adds to a container of `pod`. Reads devices and seccomp profile where the container has any.
///
/// # Errors
/// `InvalidArgument` for a Localhost profile that is none.
pub fn host_facts(
    paths: &Paths,
    pod: &PodId,
    cgroup: String,
    node_name: &str,
    config: &ContainerConfig,
) -> Result<HostFacts> {
    let etc = [("/etc/hosts", "hosts"), ("/etc/hostname", "hostname"), ("/etc/resolv.conf", "resolv.conf")];
    Ok(HostFacts {
        etc: etc.map(|(path, name)| (path, paths.etc(pod, name))).to_vec(),
        cgroup,
        node_name: node_name.to_owned(),
        devices: if config.security.privileged { host_devices::all() } else { Vec::new() },
        seccomp: match &config.security.seccomp {
            SeccompProfile::Localhost(path) if !config.security.privileged => Some(read_profile(path)?),
            _ => None,
        },
        rlimits: rlimits()?,
        apparmor: apparmor::wanted(&config.security).map(str::to_owned),
        selinux: None,
        lacking: !sys::capability::permitted().context(|| "read podwright's own capabilities")?,
        image_layers: Vec::new(),
    })
}

/// A default of ours is no reason to refuse a container: it gets what there is.
fn rlimits() -> Result<Vec<(&'static str, u64)>> {
    let highest = |(name, wanted): (&'static str, u64)| {
        let resource = Resource::from_name(&format!("RLIMIT_{name}"));
        let resource = resource.ok_or_else(|| Error::internal(format!("{name} is no resource")))?;
        let given = rlimit::highest(resource, wanted).context(|| format!("read podwright's own limit {name}"))?;
        Ok((name, given))
    };
    oci::RLIMITS.into_iter().map(highest).collect()
}

fn check(pod: &Pod, config: &ContainerConfig) -> Result<()> {
    let facts = pod.facts();
    facts.whole()?;
    let ready = facts.sandbox.as_ref().is_some_and(|s| s.exit.is_none()) && !facts.stopped && !facts.hung_up;
    if !ready {
        return Err(Error::precondition(format!("pod {} is not ready", pod.id().short())));
    }
    let same = |c: &&Container| c.record.config.name == config.name && c.record.config.attempt == config.attempt;
    if let Some(other) = facts.containers.values().find(same) {
        return Err(Error::new(
            crate::error::Kind::AlreadyExists,
            format!(
                "container {} of that name and attempt exists in pod {}",
                other.record.id.short(),
                pod.id().short()
            ),
        ));
    }
    if facts.containers.len() >= crate::wire::MAX_CONTAINERS {
        return Err(Error::exhausted(format!("the pod has {} containers already", facts.containers.len())));
    }
    if config.security.run_as_group.is_some()
        && config.security.run_as_user.is_none()
        && config.security.run_as_username.is_empty()
    {
        return Err(Error::invalid("runAsGroup needs runAsUser"));
    }
    if let Some(target) = &config.security.pid_target {
        let running = facts.containers.get(target).is_some_and(|c| c.state() == super::pod::State::Running);
        if !running {
            return Err(Error::precondition(format!(
                "the target container {} does not run in this pod",
                target.short()
            )));
        }
    }
    if matches!(pod.record.config.namespaces.pid, NamespaceMode::Target(_)) {
        return Err(Error::invalid("a pod's pid namespace cannot be another container's; only a container's can"));
    }
    Ok(())
}

/// Joins a container's log path to the pod's log directory; it may not leave it.
fn log_file(directory: &Path, path: &Path) -> Result<PathBuf> {
    if path.components().all(|c| matches!(c, Component::Normal(_))) && directory.is_absolute() {
        let file = directory.join(path);
        let bytes = file.as_os_str().as_encoded_bytes();
        let too_long =
            bytes.len() > MAX_PATH_BYTES || bytes.split(|b| *b == b'/').any(|name| name.len() > MAX_NAME_BYTES);
        if too_long || bytes.contains(&0) {
            return Err(Error::invalid(format!("log path {path:?} has a NUL or is longer than the kernel takes")));
        }
        return Ok(file);
    }
    Err(Error::invalid(format!(
        "log path {path:?} below {directory:?} must be relative, without '..', below an absolute directory"
    )))
}

fn read_profile(path: &Path) -> Result<serde_json::Value> {
    let file = std::fs::File::open(path).context(|| format!("open seccomp profile {}", path.display()))?;
    let mut text = Vec::new();
    file.take(MAX_PROFILE_BYTES + 1)
        .read_to_end(&mut text)
        .context(|| format!("read seccomp profile {}", path.display()))?;
    if text.len() as u64 > MAX_PROFILE_BYTES {
        return Err(Error::invalid(format!(
            "seccomp profile {} is larger than {MAX_PROFILE_BYTES} bytes",
            path.display()
        )));
    }
    serde_json::from_slice(&text).map_err(|e| Error::invalid(format!("seccomp profile {}: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_path_never_leaves_the_pods_directory() {
        let dir = Path::new("/var/log/pods/p");
        assert_eq!(log_file(dir, Path::new("c/0.log")).expect("valid"), Path::new("/var/log/pods/p/c/0.log"));
        for bad in ["../x", "/etc/passwd", "a/../../x", "a\0b", &"a".repeat(256), &"a/".repeat(2048)] {
            assert!(log_file(dir, Path::new(bad)).is_err(), "{bad}");
        }
        assert!(log_file(Path::new("relative"), Path::new("a")).is_err());
    }
}
