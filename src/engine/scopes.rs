//! Where pods' cgroups are by either driver, and what systemd's needs beside: a delegated scope for each pod, and one for all shims.
//!
//! ```text
//!   kubepods-burstable-pod<uid>.slice      the kubelet's, with its limits
//!     podwright-<pod>.scope                systemd's for podwright; its inside is podwright's
//!       <pod>                              pause
//!       <container>                        with its limits
//!   podwright.slice                        podwright's own; it goes with the last scope in it
//!     podwright-<pod>.scope
//!       pod                                of a manifest: the limits of the pod itself
//!         <pod>, <container>
//!     podwright-shims.scope
//! ```
//! The limits of a manifest's pod are not the scope's, which systemd would write again as it has rounded them (CPUQuota= by whole
//! percents) with each daemon-reload, but those of a cgroup in it. But for the weight: beside other pods the scope's counts, and
//! systemd keeps that exactly.
//!
//! Which driver made a pod's cgroup is in its path, and what takes it away asks that: the setting may have changed since.

use super::pod::Pod;
use super::run_pod::bury_shim;
use super::shim::Shim;
use super::undo::Undo;
use super::{Engine, Options, blocking};
use crate::cgroup::limits::Setting;
use crate::cgroup::{CgroupPath, slice, systemd};
use crate::config::CgroupDriver;
use crate::error::{Context, Error, Kind, Result};
use crate::fault;
use crate::id::PodId;
use crate::state::model::PodCgroup;
use crate::sys::fs::{Access, open_file_at};
use crate::sys::spawn::Child;
use crate::wire::Request;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

/// A manifest's pod in its scope.
const INNER: &str = "pod";
/// How often the scope of the shims is looked for again because the last shim in it has ended in this moment.
const MAX_RACES: usize = 16;

impl Options {
    /// The cgroup of a pod, in which its containers' are.
    ///
    /// # Errors
    /// `InvalidArgument` for a parent or a root that the driver cannot have.
    pub fn pod_cgroup(&self, id: &PodId, asked: &PodCgroup) -> Result<String> {
        if self.cgroup_driver == CgroupDriver::Cgroupfs {
            return Ok(match asked {
                PodCgroup::Default => format!("{}/pods/{id}", self.cgroup_root),
                PodCgroup::Given(parent) => parent.clone(),
                PodCgroup::Own { path, .. } => format!("{}/{path}", self.cgroup_root),
            });
        }
        let slice = match asked {
            PodCgroup::Given(parent) => slice::name_of(parent).to_owned(),
            PodCgroup::Default | PodCgroup::Own { .. } => slice::of_root(&self.cgroup_root)?,
        };
        let scope = slice::path_of(&slice)?.child(&slice::scope_of(id.as_str()))?;
        Ok(match asked {
            PodCgroup::Own { .. } => scope.child(INNER)?,
            PodCgroup::Default | PodCgroup::Given(_) => scope,
        }
        .to_string())
    }
}

/// A process that is in a scope until pause is: systemd makes none without one, and ends one that is empty. It ends with its socket.
#[derive(Debug)]
pub(super) struct Holder {
    child: Arc<Mutex<Option<Child>>>,
    _socket: OwnedFd,
}

impl Holder {
    /// Pause is there.
    pub async fn end(self) -> Result<()> {
        bury_shim(self.child).await
    }
}

impl Engine {
    /// Whether cgroups are made by systemd.
    pub(super) fn asks_systemd(&self) -> bool {
        self.options().cgroup_driver == CgroupDriver::Systemd
    }

    /// Makes the scope that the pod's cgroup is in, if it is in one. For that a spare shim is used: it is a process that does nothing, and
    /// the pod's own would have to come back out.
    pub(super) async fn start_scope(&self, pod: &Pod, settings: &[Setting], undo: &mut Undo) -> Result<Option<Holder>> {
        let Some(path) = pod.scope() else { return Ok(None) };
        let path: CgroupPath = path.parse()?;
        let (child, socket, _) = self.give_birth(&PodId::none(), false)?;
        let pid = child.id();
        let child = Arc::new(Mutex::new(Some(child)));
        let unborn = child.clone();
        undo.push(move || bury_shim(unborn));
        let (slice, name) = scope_and_slice(&path)?;
        let config = &pod.record.config;
        let scope = systemd::Scope {
            name,
            slice,
            own_slice: !matches!(config.cgroup, PodCgroup::Given(_)),
            description: format!("pod {}/{}", config.namespace, config.name),
            pid,
            cpu_weight: settings.iter().find(|s| s.file == "cpu.weight").and_then(|s| s.value.parse().ok()),
        };
        let made = blocking(move || systemd::start_scope(&scope)).await;
        // Where there is no systemd there is none to take it back.
        if !made.as_ref().is_err_and(|e| e.kind() == Kind::Unsupported) {
            let (engine, gone) = (self.clone(), path.to_string());
            undo.push(move || async move { engine.end_scope(&gone).await });
        }
        if !made? {
            return Err(Error::new(Kind::AlreadyExists, format!("systemd has a scope for cgroup {path} already")));
        }
        fault::point("engine.run_pod.scope");
        // Out of the way to where pause will be: a cgroup with processes of its own passes no controllers on.
        self.open_cgroup(path.as_str()).context(|| "systemd has made the scope elsewhere")?;
        let leaf = self.make_plain_cgroup(&pod.sandbox_cgroup())?;
        leaf.write("cgroup.procs", &pid.to_string()).context(|| format!("move process {pid} to {}", leaf.path()))?;
        Ok(Some(Holder { child, _socket: socket }))
    }

    /// Removes the pod's cgroups, and the scope that they are in.
    pub(super) async fn remove_pod_cgroup(&self, pod: &Pod) -> Result<()> {
        match pod.scope() {
            Some(scope) => self.end_scope(scope).await,
            None => self.remove_cgroup(&pod.own_cgroup()),
        }
    }

    /// Kills what is in a scope, removes its cgroups, and has systemd forget it: that is told of an empty cgroup only some time later,
    /// and not at all of one that is gone by then.
    async fn end_scope(&self, path: &str) -> Result<()> {
        let removed = self.remove_cgroup(path);
        let (_, name) = scope_and_slice(&path.parse()?)?;
        let stopped = blocking(move || systemd::stop_unit(&name)).await;
        Error::collect(removed.err().into_iter().chain(stopped.err()).collect()).map_or(Ok(()), Err)
    }

    /// Puts a shim into the scope of shims, making that if it is the first.
    pub(super) async fn join_shims_scope(&self, shim: &Shim, pid: u32) -> Result<()> {
        let path: CgroupPath = self.shims_cgroup()?.parse()?;
        let (slice, name) = scope_and_slice(&path)?;
        let description = "podwright's shims, one for each pod".to_owned();
        let scope = systemd::Scope { name, slice, own_slice: true, description, pid, cpu_weight: None };
        for _ in 0..MAX_RACES {
            let scope = scope.clone();
            if blocking(move || systemd::start_scope(&scope)).await? {
                return Ok(());
            }
            let procs = match self.open_cgroup(path.as_str()) {
                Err(e) if e.kind() == Kind::NotFound => continue,
                shims => open_file_at(shims?.as_fd(), "cgroup.procs", Access::Write),
            };
            let Ok(procs) = procs else { continue }; // it has gone in this moment
            match shim.done(Request::Join, &[procs.as_fd()]).await {
                Err(_) if self.open_cgroup(path.as_str()).is_err() => {}
                joined => return joined,
            }
        }
        Err(Error::internal(format!("join {path}: it went {MAX_RACES} times meanwhile")))
    }
}

/// The slice that a scope is in, and its own name.
fn scope_and_slice(path: &CgroupPath) -> Result<(String, String)> {
    let (above, name) = path.split().ok_or_else(|| Error::internal("the root cgroup is no scope"))?;
    let slice = above.components().next_back().unwrap_or("-.slice");
    Ok((slice.to_owned(), name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::network::NetworkSettings;
    use crate::engine::Runtimes;
    use crate::state::model::Resources;
    use crate::state::paths::Paths;

    fn options(cgroup_driver: CgroupDriver) -> Options {
        Options {
            paths: Paths { root: "/r".into(), state: "/s".into(), instance: None },
            cgroup_root: "/podwright".to_owned(),
            cgroup_driver,
            allow_unenforced: false,
            node_name: String::new(),
            network: NetworkSettings::default(),
            owner: false,
            runtimes: Runtimes::new(),
            cdi_dirs: Vec::new(),
            selinux: false,
        }
    }

    #[test]
    fn a_pods_cgroup_is_where_its_driver_puts_it() {
        let id = PodId::random();
        let own = PodCgroup::Own { path: "burstable/podu".to_owned(), resources: Resources::default() };
        let given = |parent: &str| PodCgroup::Given(parent.to_owned());
        let fs = options(CgroupDriver::Cgroupfs);
        let place = |options: &Options, asked: &PodCgroup| options.pod_cgroup(&id, asked).expect("valid");
        assert_eq!(place(&fs, &PodCgroup::Default), format!("/podwright/pods/{id}"));
        assert_eq!(place(&fs, &own), "/podwright/burstable/podu");
        assert_eq!(place(&fs, &given("/kubepods/podu")), "/kubepods/podu");

        let systemd = options(CgroupDriver::Systemd);
        let scope = format!("podwright-{id}.scope");
        assert_eq!(place(&systemd, &PodCgroup::Default), format!("/podwright.slice/{scope}"));
        assert_eq!(place(&systemd, &own), format!("/podwright.slice/{scope}/pod"));
        assert_eq!(place(&systemd, &given("a-b.slice")), format!("/a.slice/a-b.slice/{scope}"));
        assert_eq!(place(&systemd, &given("/a.slice/a-b.slice")), format!("/a.slice/a-b.slice/{scope}"));
        assert!(systemd.pod_cgroup(&id, &given("/kubepods/podu")).is_err());
    }
}
