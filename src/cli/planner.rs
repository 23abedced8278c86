//! What a manifest's pods would be on this host: every cgroup file, mount, capability and variable, from the very functions that
//! `run` makes them with. Nothing is made. How it is printed is `plan_text`'s.
//!
//! Ids that are drawn when the pod is made stand as `<instance>`, `<pod>`, `<container>`, and a uid that the manifest does not give as
//! `<uid>`.

use super::{Session, run};
use crate::agent::convert::{self, ContainerPlan, PodPlan, Role};
use crate::agent::manifest::Manifest;
use crate::agent::pod::Pod;
use crate::agent::problem::ManifestErrors;
use crate::agent::volume::{Content, VolumePlan};
use crate::cgroup::{CgroupPath, Hierarchy, limits};
use crate::config::network::NetworkMode;
use crate::engine::{self, Options, oci, signal};
use crate::error::Result;
use crate::id::{ContainerId, InstanceId, PodId};
use crate::image::oci::Config as ImageConfig;
use crate::image::store::{Image, Store};
use crate::state::model::{NamespaceMode, PodCgroup, Resources, SeccompProfile};
use crate::state::paths::Paths;
use crate::sys;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// Stands for the command of an image that is not there.
const UNKNOWN_COMMAND: &str = "<the image's command>";

/// A pod's plan (`check -o json`: `{"pods": [...]}`).
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodView {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub qos: String,
    pub restart_policy: String,
    pub termination_grace_seconds: u32,
    pub active_deadline_seconds: Option<u32>,
    /// Empty: the node's.
    pub hostname: String,
    /// Which namespaces are the pod's own and which the host's: `network`, `pid`, `ipc`, `uts`.
    pub namespaces: BTreeMap<&'static str, &'static str>,
    pub sysctls: BTreeMap<String, String>,
    /// Lines of resolv.conf; `null`: a copy of the host's.
    pub resolv_conf: Option<String>,
    pub host_aliases: Vec<String>,
    pub ports: Vec<String>,
    pub cgroup: String,
    pub limits: Vec<Limit>,
    pub volumes: Vec<VolumeView>,
    /// In the order of their start; apps start together.
    pub containers: Vec<ContainerView>,
    /// What holds less than asked on this host, and was allowed to.
    pub warnings: Vec<String>,
    /// Why `run` would refuse the pod on this host now.
    pub refusals: Vec<String>,
}

/// One file of a cgroup.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Limit {
    pub file: String,
    pub asked: String,
    pub written: String,
    /// Why this host cannot enforce it, and the remedy.
    pub not_enforced: Option<String>,
    /// Why this host has no such file, of one that nobody asked for: it is left out.
    pub not_available: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct VolumeView {
    pub name: String,
    pub kind: String,
    pub path: String,
    /// Path, mode and size of files that are made from ConfigMaps, Secrets and fields. Never what is in them.
    pub files: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ContainerView {
    pub name: String,
    /// `init`, `sidecar` or `app`.
    pub role: &'static str,
    pub image: String,
    /// `null`: it is missing here.
    pub image_id: Option<String>,
    /// `user[:group]` as it will be looked up in the image.
    pub user: String,
    pub supplemental_groups: Vec<u32>,
    pub run_as_non_root: bool,
    pub privileged: bool,
    pub seccomp: String,
    pub stop_signal: i32,
    pub cgroup: String,
    pub limits: Vec<Limit>,
    pub log: Option<String>,
    /// The OCI runtime spec; `null` when the container would be refused.
    pub spec: Option<Value>,
}

/// Looks at this host once for all pods.
pub(super) struct Planner {
    options: Options,
    paths: Paths,
    /// `None`: it may not be read, or there is none yet.
    images: Option<Store>,
    /// `None`: there is no cgroup v2 here.
    hierarchy: Option<Hierarchy>,
    missing: BTreeMap<String, Option<String>>,
}

impl Planner {
    pub(super) fn new(session: &Session) -> Result<Planner> {
        let options = run::options(session, None)?;
        let instance: InstanceId = "0".repeat(8).parse()?;
        let paths = options.paths.of_instance(instance);
        // Opening makes the directories, and a check makes nothing.
        let images = if sys::is_root() && paths.images().exists() { Some(Store::open(&paths)?) } else { None };
        Ok(Planner { options, paths, images, hierarchy: Hierarchy::discover().ok(), missing: BTreeMap::new() })
    }

    /// The plans of all pods of a manifest.
    pub(super) fn pods(&mut self, manifest: &Manifest) -> Result<Result<Vec<PodView>, ManifestErrors>> {
        let id: PodId = "0".repeat(64).parse()?;
        let mut views = Vec::new();
        for (index, pod) in manifest.pods.iter().enumerate() {
            let network = self.options.network.mode != NetworkMode::None;
            let mut facts = crate::agent::node::facts(&self.paths, &id, "", pod.spec.host_network, network)?;
            facts.runtimes = self.options.runtimes.keys().cloned().collect();
            match convert::plan(manifest, index, &facts) {
                Ok(plan) => views.push(self.pod(pod, &id, &plan)?),
                Err(errors) => return Ok(Err(errors)),
            }
        }
        Ok(Ok(views))
    }

    fn pod(&mut self, pod: &Pod, id: &PodId, plan: &PodPlan) -> Result<PodView> {
        let config = &plan.config;
        let cgroup = self.options.pod_cgroup(id, &config.cgroup)?;
        let resources = match &config.cgroup {
            PodCgroup::Own { resources, .. } => resources.clone(),
            PodCgroup::Default | PodCgroup::Given(_) => Resources::default(),
        };
        let (mut warnings, mut refusals) = (Vec::new(), Vec::new());
        refusals.extend(
            engine::check_pod(config, self.options.network.mode, &self.options.runtimes).err().map(|e| e.to_string()),
        );
        let limits = self.limits(&resources, &cgroup, &mut warnings, &mut refusals)?;
        let mut containers = Vec::new();
        for container in &plan.containers {
            containers.push(self.container(plan, container, id, &cgroup, &mut warnings, &mut refusals)?);
        }
        let view = PodView {
            name: config.name.clone(),
            namespace: config.namespace.clone(),
            uid: config.uid.clone(),
            qos: plan.qos.to_string(),
            restart_policy: format!("{:?}", plan.restart_policy),
            termination_grace_seconds: plan.termination_grace_seconds,
            active_deadline_seconds: plan.active_deadline_seconds,
            hostname: config.hostname.clone(),
            namespaces: namespaces(&config.namespaces),
            sysctls: config.sysctls.clone(),
            resolv_conf: config.dns.as_ref().map(engine::etc::resolv_conf).transpose()?,
            host_aliases: config.host_aliases.iter().map(|a| format!("{} {}", a.ip, a.hostnames.join(" "))).collect(),
            ports: config
                .port_mappings
                .iter()
                .map(|p| format!("{} {} to {}", p.protocol, p.host_port, p.container_port))
                .collect(),
            cgroup,
            limits,
            volumes: plan.volumes.iter().map(volume).collect(),
            containers,
            warnings: once(warnings),
            refusals: once(refusals),
        };
        Ok(anonymous(view, pod.metadata.uid.is_none()))
    }

    fn container(
        &mut self,
        plan: &PodPlan,
        container: &ContainerPlan,
        pod: &PodId,
        pod_cgroup: &str,
        warnings: &mut Vec<String>,
        refusals: &mut Vec<String>,
    ) -> Result<ContainerView> {
        let id: ContainerId = "1".repeat(64).parse()?;
        let config = container.attempt(0);
        let cgroup = format!("{pod_cgroup}/{id}");
        let image = self.image(&config.image, refusals);
        let image_config = image.as_ref().map_or_else(|| unknown_image(&config), |image| image.config.clone());
        let host = engine::host_facts(&self.paths, pod, cgroup.clone(), &self.options.node_name, &config);
        let spec = host.and_then(|host| oci::spec(&plan.config, &config, &id, &image_config, &host));
        let stop_signal = oci::stop_signal(&config, &image_config);
        refusals.extend(spec.as_ref().err().map(ToString::to_string));
        refusals.extend(stop_signal.as_ref().err().map(ToString::to_string));
        let user = engine::user_choice(&config, &image_config.user);
        Ok(ContainerView {
            name: config.name.clone(),
            role: match container.role {
                Role::Init => "init",
                Role::Sidecar => "sidecar",
                Role::App => "app",
            },
            image_id: image.map(|image| image.id.to_string()),
            user: match (user.user.as_str(), user.group) {
                ("", None) => "0".to_owned(),
                ("", Some(group)) => format!("0:{group}"),
                (user, Some(group)) => format!("{}:{group}", user.split(':').next().unwrap_or(user)),
                (user, None) => user.to_owned(),
            },
            supplemental_groups: user.supplemental_groups,
            run_as_non_root: user.non_root,
            privileged: config.security.privileged,
            seccomp: match &config.security.seccomp {
                _ if config.security.privileged => "Unconfined".to_owned(),
                SeccompProfile::Unconfined => "Unconfined".to_owned(),
                SeccompProfile::RuntimeDefault => "RuntimeDefault".to_owned(),
                SeccompProfile::Localhost(path) => path.display().to_string(),
            },
            stop_signal: stop_signal.unwrap_or(signal::SIGTERM),
            limits: self.limits(&config.resources, &cgroup, warnings, refusals)?,
            cgroup,
            log: plan
                .config
                .log_directory
                .as_ref()
                .zip(config.log_path.as_ref())
                .map(|(dir, path)| dir.join(path).display().to_string()),
            image: config.image,
            spec: spec.ok(),
        })
    }

    fn image(&self, name: &str, refusals: &mut Vec<String>) -> Option<Image> {
        match &self.images {
            Some(store) => match store.lookup(name) {
                Ok(image) => return Some(image),
                Err(e) => refusals.push(e.to_string()),
            },
            None if sys::is_root() => refusals.push(format!(
                "image {name:?} is not in the store; `podwright pull` or `podwright import FILE` brings it"
            )),
            None => {} // whoever is not root cannot know, and is told so once
        }
        None
    }

    fn limits(
        &mut self,
        resources: &Resources,
        cgroup: &str,
        warnings: &mut Vec<String>,
        refusals: &mut Vec<String>,
    ) -> Result<Vec<Limit>> {
        let settings = match limits::settings(resources, sys::page_bytes()) {
            Ok(settings) => settings,
            Err(e) => {
                refusals.push(e.context(format!("limits of {cgroup}")).to_string());
                return Ok(Vec::new());
            }
        };
        let list = if self.options.allow_unenforced { warnings } else { refusals };
        let mut rows = Vec::new();
        for setting in settings {
            let missing = self.why_missing(setting.controller())?;
            let (not_available, not_enforced) = if setting.default { (missing, None) } else { (None, missing) };
            if let Some(why) = &not_enforced {
                list.push(format!("limits of the {} controller cannot be enforced: {why}", setting.controller()));
            }
            rows.push(Limit {
                written: setting.value.replace('\n', "; "),
                file: setting.file,
                asked: setting.asked,
                not_enforced,
                not_available,
            });
        }
        Ok(rows)
    }

    /// Why this host has no such controller in cgroup v2, and the remedy.
    fn why_missing(&mut self, controller: &str) -> Result<Option<String>> {
        if let Some(known) = self.missing.get(controller) {
            return Ok(known.clone());
        }
        let why = match &self.hierarchy {
            None => Some("there is no cgroup v2; `podwright doctor` has the remedy".to_owned()),
            Some(h) => h.why_missing(&CgroupPath::root(), controller)?.map(|m| format!("{}; {}", m.why, m.remedy)),
        };
        self.missing.insert(controller.to_owned(), why.clone());
        Ok(why)
    }
}

/// What of an image that is not there has to be made up.
fn unknown_image(config: &crate::state::model::ContainerConfig) -> ImageConfig {
    let command = if config.command.is_empty() { vec![UNKNOWN_COMMAND.to_owned()] } else { Vec::new() };
    ImageConfig { entrypoint: command, ..ImageConfig::default() }
}

pub(super) fn namespaces(namespaces: &crate::state::model::Namespaces) -> BTreeMap<&'static str, &'static str> {
    let word = |mode: &NamespaceMode| match mode {
        NamespaceMode::Pod => "pod",
        NamespaceMode::Container => "container",
        NamespaceMode::Node => "host",
        NamespaceMode::Target(_) => "another container",
    };
    BTreeMap::from([
        ("network", word(&namespaces.network)),
        ("uts", word(&namespaces.network)),
        ("ipc", word(&namespaces.ipc)),
        ("pid", word(&namespaces.pid)),
        ("mount", "container"),
        ("cgroup", "container"),
        ("user", if namespaces.user.is_host() { "host" } else { "pod" }),
    ])
}

fn volume(volume: &VolumePlan) -> VolumeView {
    let (kind, files) = match &volume.content {
        Content::EmptyDir => ("emptyDir".to_owned(), Vec::new()),
        Content::Image(name) => (format!("image {name}"), Vec::new()),
        Content::HostPath(check) => (format!("hostPath {check:?}"), Vec::new()),
        Content::Files(files) => {
            let line = |(path, file): (&String, &crate::agent::volume::File)| format!("{path} {file:?}");
            ("files".to_owned(), files.iter().map(line).collect())
        }
    };
    VolumeView { name: volume.name.clone(), kind, path: volume.path.display().to_string(), files }
}

/// Each sentence once, in the order they came.
fn once(sentences: Vec<String>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for sentence in sentences {
        if !kept.contains(&sentence) {
            kept.push(sentence);
        }
    }
    kept
}

/// Ids that are not drawn yet, as words.
fn anonymous(mut view: PodView, derived_uid: bool) -> PodView {
    let uid = std::mem::take(&mut view.uid);
    let name = |text: &str| {
        let text = text.replace(&"0".repeat(64), "<pod>").replace(&"1".repeat(64), "<container>");
        let text = text.replace("/run/00000000/", "/run/<instance>/");
        if derived_uid { text.replace(&uid, "<uid>") } else { text }
    };
    view.cgroup = name(&view.cgroup);
    for volume in &mut view.volumes {
        volume.path = name(&volume.path);
    }
    for container in &mut view.containers {
        container.cgroup = name(&container.cgroup);
        container.log = container.log.as_deref().map(name);
        if let Some(spec) = &mut container.spec {
            rename(spec, &name);
        }
    }
    for sentence in view.warnings.iter_mut().chain(&mut view.refusals) {
        *sentence = name(sentence);
    }
    view.uid = name(&uid);
    view
}

fn rename(value: &mut Value, name: &dyn Fn(&str) -> String) {
    match value {
        Value::String(text) => *text = name(text),
        Value::Array(list) => list.iter_mut().for_each(|v| rename(v, name)),
        Value::Object(map) => map.values_mut().for_each(|v| rename(v, name)),
        _ => {}
    }
}
