//! What takes more than one field to judge (pkg/apis/core/validation/validation.go): names that must differ or exist, limits
//! below requests, fields that exclude each other. Single fields were judged when they were read.

use super::objects::Objects;
use super::pod::{
    Container, EnvValue, FileSource, FilesFrom, KeyRef, KeyToPath, Pod, PodSpec, RecursiveReadOnly, ResourceRef,
    RestartPolicy, Seccomp, VolumeSource,
};
use super::problem::{At, Problems, Spot, did_you_mean};
use super::pull_secrets;
use super::quantity::Quantity;
use super::read::Field;
use super::yaml::Value;
use crate::state::model::{AppArmorProfile, Propagation};
use std::collections::HashMap;

/// The least memory a container starts in; runc's and containerd's clients meet the same bound from the kernel as a failed start.
const MIN_MEMORY_BYTES: i64 = 512 << 10;
/// cpu.max takes at least 1 ms of its period of 100 ms: 10 millicores. Kubernetes raises smaller quotas to it, and so does this.
const MAX_CPU: i64 = 1 << 20;

struct Check<'a> {
    problems: &'a Problems,
    /// The pod in the tree: where the fields stand that have no place in [`Pod`].
    tree: &'a Field<'a>,
    pod: &'a Pod,
    objects: &'a Objects,
}

/// Tells everything that is wrong across the fields of a pod.
pub(super) fn pod(tree: &Field<'_>, pod: &Pod, objects: &Objects) {
    let check = Check { problems: tree.problems(), tree, pod, objects };
    check.names();
    check.namespaces();
    check.ports();
    check.volumes();
    check.pull_secrets();
    for container in &pod.spec.init_containers {
        check.init(container);
        check.container(container);
    }
    for container in &pod.spec.containers {
        if let Some(policy) = container.restart_policy.filter(|p| *p != pod.spec.restart_policy) {
            let message = format!("{policy:?}, but the pod's is {:?}", pod.spec.restart_policy);
            let remedy =
                "leave it out: a policy of its own is honoured as Always on an init container only (a sidecar)";
            check.add(&container.spot.below("restartPolicy"), message, remedy);
        }
        check.container(container);
    }
}

impl Check<'_> {
    fn spec(&self) -> &PodSpec {
        &self.pod.spec
    }

    fn place(&self, spot: &Spot) -> Spot {
        Spot { at: self.tree.locate(&spot.path).map_or(spot.at, |(at, _)| at), path: spot.path.clone() }
    }

    fn wrong(&self, spot: &Spot, value: &str, message: impl Into<String>, remedy: impl Into<String>) {
        self.problems.wrong(&self.place(spot), value, message, remedy);
    }

    /// The value as the file has it.
    fn written(&self, spot: &Spot, message: impl Into<String>, remedy: impl Into<String>) {
        match self.tree.locate(&spot.path).map(|(_, node)| &node.value) {
            Some(Value::Scalar { text, .. }) => self.wrong(spot, text, message, remedy),
            _ => self.add(spot, message, remedy),
        }
    }

    fn add(&self, spot: &Spot, message: impl Into<String>, remedy: impl Into<String>) {
        self.problems.add(&self.place(spot), message, remedy);
    }

    fn everyone(&self) -> impl Iterator<Item = &Container> {
        self.spec().init_containers.iter().chain(&self.spec().containers)
    }

    fn twice<'b>(&self, what: &str, named: impl Iterator<Item = (&'b Spot, &'b str)>) {
        let mut seen: HashMap<&str, usize> = HashMap::new();
        for (spot, name) in named {
            if let Some(line) = seen.insert(name, spot.at.line) {
                let message = format!("a second {what} of this name, the first is in line {line}");
                self.wrong(&spot.below("name"), name, message, "rename one");
            }
        }
    }

    fn names(&self) {
        self.twice("container", self.everyone().map(|c| (&c.spot, c.name.as_str())));
        self.twice("volume", self.spec().volumes.iter().map(|v| (&v.spot, v.name.as_str())));
    }

    fn namespaces(&self) {
        let spec = self.spec();
        if spec.host_pid && spec.share_process_namespace {
            let spot = self.pod.spot.below("spec.shareProcessNamespace");
            self.wrong(&spot, "true", "hostPID is true as well", "write only one of the two");
        }
        for (name, host) in [("hostNetwork", spec.host_network), ("hostIPC", spec.host_ipc), ("hostPID", spec.host_pid)]
        {
            if spec.own_users && host {
                let spot = self.pod.spot.below("spec").below(name);
                self.wrong(&spot, "true", "hostUsers is false", "write only one of the two");
            }
        }
        let mut seen: HashMap<&str, usize> = HashMap::new();
        for (name, _) in &spec.security.sysctls {
            let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|p| name.value.starts_with(p))
                || name.value == "kernel.sem";
            let net = name.value.starts_with("net.");
            if let Some(line) = seen.insert(&name.value, name.spot.at.line) {
                self.refuse(name, &format!("it stands in line {line} as well"), "remove one of the two");
            } else if net && spec.host_network {
                self.refuse(name, "hostNetwork: it would change the host", "leave out one of the two");
            } else if ipc && spec.host_ipc {
                self.refuse(name, "hostIPC: it would change the host", "leave out one of the two");
            } else if !ipc && !net {
                self.refuse(name, "no namespace of a pod has it", "set it on the host with sysctl");
            }
        }
    }

    fn refuse(&self, value: &At<String>, message: &str, remedy: &str) {
        self.wrong(&value.spot, &value.value, message, remedy);
    }

    fn ports(&self) {
        let mut taken: HashMap<(u16, &str, &str), usize> = HashMap::new();
        for port in self.everyone().flat_map(|c| &c.ports).filter(|p| p.host_port != 0) {
            if let Some(line) = taken.insert((port.host_port, port.protocol, &port.host_ip), port.spot.at.line) {
                let message = format!("{} {} is in line {line} as well", port.protocol, port.host_port);
                self.add(&port.spot.below("hostPort"), message, "give each its own port");
            }
        }
        for container in self.everyone() {
            let named = container.ports.iter().filter_map(|p| Some((&p.spot, p.name.as_deref()?)));
            self.twice("port", named);
        }
    }

    fn volumes(&self) {
        for volume in &self.spec().volumes {
            let VolumeSource::Files { sources, .. } = &volume.source else { continue };
            sources.iter().for_each(|s| self.files(s));
            let paths = sources.iter().flat_map(|s| match &s.from {
                FilesFrom::Keys { items, .. } => items.iter().map(|i| (&s.spot, i.path.as_str())).collect::<Vec<_>>(),
                FilesFrom::Downward(files) => files.iter().map(|f| (&s.spot, f.path.as_str())).collect(),
            });
            let mut seen: HashMap<&str, usize> = HashMap::new();
            for (spot, path) in paths {
                if let Some(line) = seen.insert(path, spot.at.line) {
                    let message = format!("this path is made in line {line} as well");
                    self.wrong(&spot.below("items"), path, message, "give each file its own path");
                }
            }
        }
    }

    /// A Secret for pulls has credentials in it, if it is there.
    fn pull_secrets(&self) {
        for name in &self.spec().image_pull_secrets {
            let found = self.objects.find(true, &self.pod.metadata.namespace, &name.value);
            if let Some(Err(e)) = found.map(pull_secrets::auth_file) {
                self.refuse(
                    name,
                    &format!("the Secret of this name: {e}"),
                    "make it with kubectl create secret docker-registry",
                );
            }
        }
    }

    /// The ConfigMap or Secret of a volume is there, with the keys asked for.
    fn files(&self, source: &FileSource) {
        match &source.from {
            FilesFrom::Downward(files) => {
                for file in files {
                    if let super::pod::DownwardValue::Resource(reference) = &file.value {
                        self.resource_ref(reference, &source.spot);
                    }
                }
            }
            FilesFrom::Keys { secret, name, optional, items } => {
                for KeyToPath { key, .. } in items {
                    self.key(*secret, name, Some(key), *optional, &source.spot);
                }
                self.key(*secret, name, None, *optional, &source.spot);
            }
        }
    }

    fn key(&self, secret: bool, name: &str, key: Option<&str>, optional: bool, spot: &Spot) {
        let namespace = &self.pod.metadata.namespace;
        let kind = if secret { "Secret" } else { "ConfigMap" };
        match (self.objects.find(secret, namespace, name), key) {
            _ if optional => {}
            (Some(source), Some(key)) if source.get(key).is_none() => {
                let known = source.text.keys().chain(source.binary.keys()).map(String::as_str);
                let remedy = match did_you_mean(key, known) {
                    Some(meant) => format!("did you mean {meant}?"),
                    None => format!("add it to the {kind} in line {}, or write optional: true", source.at.line),
                };
                self.wrong(&spot.below("key"), key, format!("{kind} {name} has no such key"), remedy);
            }
            (Some(_), _) => {}
            // Told once, for the object and not for each of its keys.
            (None, Some(_)) if spot.path.contains("olumes[") => {}
            (None, _) => {
                let remedy = match did_you_mean(name, self.objects.names(secret, namespace)) {
                    Some(meant) => format!("did you mean {meant}?"),
                    None => format!("put the {kind} into this file as a document of its own, or write optional: true"),
                };
                let message = format!("no such {kind} in namespace {namespace} of this file");
                self.wrong(&spot.below("name"), name, message, remedy);
            }
        }
    }

    /// An init container that is no sidecar ends by itself, once.
    fn init(&self, container: &Container) {
        if let Some(policy @ (RestartPolicy::OnFailure | RestartPolicy::Never)) = container.restart_policy {
            let spot = container.spot.below("restartPolicy");
            let remedy = "write Always (a sidecar), or leave it out: it follows the pod's";
            self.add(&spot, format!("{policy:?} of its own is not honoured by this podwright"), remedy);
        }
    }

    fn container(&self, container: &Container) {
        self.resources(container);
        self.security(container);
        self.mounts(container);
        if container.stdin_once && !container.stdin {
            let spot = container.spot.below("stdinOnce");
            self.wrong(&spot, "true", "stdin is not true", "write stdin: true as well");
        }
        for from in &container.env_from {
            self.key(from.secret, &from.name, None, from.optional, &from.spot);
        }
        for env in &container.env {
            match &env.value {
                EnvValue::ConfigMap(KeyRef { name, key, optional }) => {
                    self.key(false, name, Some(key), *optional, &env.spot);
                }
                EnvValue::Secret(KeyRef { name, key, optional }) => {
                    self.key(true, name, Some(key), *optional, &env.spot);
                }
                EnvValue::Resource(reference) => self.resource_ref(reference, &env.spot),
                EnvValue::Literal(_) | EnvValue::Field(_) => {}
            }
        }
    }

    fn resource_ref(&self, reference: &ResourceRef, spot: &Spot) {
        let Some(name) = &reference.container else { return };
        if !self.everyone().any(|c| c.name == *name) {
            let remedy = match did_you_mean(name, self.everyone().map(|c| c.name.as_str())) {
                Some(meant) => format!("did you mean {meant}?"),
                None => "name a container of this pod".to_owned(),
            };
            self.wrong(&spot.below("containerName"), name, "no such container", remedy);
        }
    }

    fn resources(&self, container: &Container) {
        for (name, request) in &container.requests {
            if let Some(limit) = container.limits.get(name).filter(|l| l.value < request.value) {
                let message = format!("a request of {} above the limit of {}", request.value, limit.value);
                let remedy = format!("raise the limit in line {} or lower the request", limit.spot.at.line);
                self.written(&request.spot, message, remedy);
            }
        }
        let zero = |limit: &At<Quantity>| limit.value == Quantity::ZERO;
        if let Some(limit) = container.limits.get("memory").filter(|l| !zero(l) && l.value.units() < MIN_MEMORY_BYTES) {
            let message = format!("less than any process starts in: bytes rounded up are {}", limit.value.units());
            let remedy = if limit.value.is_whole() {
                "write at least 512Ki".to_owned()
            } else {
                "write at least 512Ki; m means thousandths of a byte, Mi means mebibytes".to_owned()
            };
            self.written(&limit.spot, message, remedy);
        }
        for limit in [container.limits.get("cpu"), container.requests.get("cpu")].into_iter().flatten() {
            if limit.value > Quantity::from_units(MAX_CPU) {
                let message = format!("more than {MAX_CPU} cores");
                self.written(&limit.spot, message, "500m is half a core");
            }
        }
        self.hugepages(container);
    }

    fn hugepages(&self, container: &Container) {
        let huge = |(name, _): &(&String, &At<Quantity>)| name.starts_with("hugepages-");
        let counted = |name: &str| container.requests.contains_key(name);
        for (name, request) in container.requests.iter().filter(huge) {
            match container.limits.get(name) {
                Some(limit) if limit.value == request.value => {}
                _ => self.add(&request.spot, "request and limit of huge pages differ", "write the same for both"),
            }
            if !counted("cpu") && !counted("memory") {
                self.add(&request.spot, "huge pages without cpu or memory", "ask for cpu or memory as well");
            }
            let size = name.trim_start_matches("hugepages-").parse::<Quantity>().map_or(0, Quantity::units);
            if size <= 0 || request.value.units() % size != 0 {
                self.add(&request.spot, "not a number of whole pages", format!("write a multiple of {size}"));
            }
        }
    }

    fn security(&self, container: &Container) {
        let (own, pod) = (&container.security, &self.spec().security);
        if own.allow_privilege_escalation == Some(false) {
            let spot = own.spot.below("allowPrivilegeEscalation");
            if own.privileged {
                self.wrong(&spot, "false", "privileged is true", "write only one of the two");
            } else if own.add.iter().any(|c| c == "SYS_ADMIN") {
                self.wrong(&spot, "false", "SYS_ADMIN is added", "leave out one of the two");
            }
        }
        let user = own.run_as.user.as_ref().or(pod.run_as.user.as_ref());
        let non_root = own.run_as.non_root.or(pod.run_as.non_root).unwrap_or(false);
        if let Some(user) = user.filter(|u| non_root && u.value == 0) {
            self.wrong(&user.spot, "0", "runAsNonRoot is true", "write another user, or leave out runAsNonRoot");
        }
        let group = own.run_as.group.as_ref().or(pod.run_as.group.as_ref());
        if let (Some(group), None) = (group, user) {
            let value = group.value.to_string();
            self.wrong(&group.spot, &value, "a group without a user", "write runAsUser as well");
        }
        if own.privileged && own.seccomp.as_ref().is_some_and(|s| *s != Seccomp::Unconfined) {
            let spot = own.spot.below("seccompProfile");
            self.add(&spot, "privileged is true: it has no filter", "leave out one of the two");
        }
        if own.proc_unmasked && !self.spec().own_users {
            let spot = own.spot.below("procMount");
            self.wrong(&spot, "Unmasked", "the pod has the host's users", "write hostUsers: false, or Default");
        }
        if own.privileged && own.apparmor == Some(AppArmorProfile::RuntimeDefault) {
            let spot = own.spot.below("appArmorProfile");
            self.add(&spot, "privileged is true: it has no default profile", "leave out one of the two, or name one");
        }
    }

    fn mounts(&self, container: &Container) {
        let mut seen: HashMap<&str, usize> = HashMap::new();
        for mount in &container.mounts {
            let path = mount.mount_path.trim_end_matches('/');
            if let Some(line) = seen.insert(path, mount.spot.at.line) {
                let message = format!("line {line} mounts there as well");
                self.wrong(&mount.spot.below("mountPath"), &mount.mount_path, message, "mount each elsewhere");
            }
            if self.spec().own_users && mount.propagation == Propagation::Bidirectional {
                let spot = mount.spot.below("mountPropagation");
                self.wrong(
                    &spot,
                    "Bidirectional",
                    "hostUsers is false: nothing of it reaches the host",
                    "write another",
                );
            }
            let Some(volume) = self.spec().volumes.iter().find(|v| v.name == mount.name.value) else {
                let remedy = match did_you_mean(&mount.name.value, self.spec().volumes.iter().map(|v| v.name.as_str()))
                {
                    Some(meant) => format!("did you mean {meant}?"),
                    None => "add it to spec.volumes".to_owned(),
                };
                self.refuse(&mount.name, "no such volume", &remedy);
                continue;
            };
            if mount.propagation == Propagation::Bidirectional && !container.security.privileged {
                let spot = mount.spot.below("mountPropagation");
                self.wrong(&spot, "Bidirectional", "the container is not privileged", "write HostToContainer");
            }
            if mount.propagation != Propagation::Private && matches!(volume.source, VolumeSource::Image { .. }) {
                let spot = mount.spot.below("mountPropagation");
                self.wrong(
                    &spot,
                    &format!("{:?}", mount.propagation),
                    "nothing is mounted in an image",
                    "leave it out",
                );
            }
            let read_only =
                mount.read_only || matches!(volume.source, VolumeSource::Files { .. } | VolumeSource::Image { .. });
            let recursive = mount.recursive_read_only != RecursiveReadOnly::Disabled;
            if recursive && (!read_only || mount.propagation != Propagation::Private) {
                let spot = mount.spot.below("recursiveReadOnly");
                self.add(&spot, "not readOnly, or propagated", "write readOnly: true and no mountPropagation");
            }
        }
    }
}
