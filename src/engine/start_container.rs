//! StartContainer: the container's cgroup with verified limits, then its process, made by the shim.

use super::adopt::Held;
use super::events::Event;
use super::oci;
use super::pod::{Container, Pod, State};
use super::runtimes::runtime_of;
use super::shim::unexpected;
use super::{Engine, mkdir_all};
use crate::cgroup::Cgroup;
use crate::cgroup::limits::Setting;
use crate::error::{Context, Error, Result};
use crate::fault;
use crate::id::ContainerId;
use crate::state::model::ContainerConfig;
use crate::state::record::{self, ContainerRecord, Durability, ExitRecord, ExitStatus, StdStream};
use crate::wire::{Launch, RUNTIMES, Reply, Request, Root, Runtime, Stdio, UserChoice};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

impl Engine {
    /// Starts a created container; when this returns its program runs. One that runs already is as asked: a caller that lost the
    /// answer, with its connection or its daemon, asks again.
    ///
    /// # Errors
    /// `FailedPrecondition` for one that has ended (a container is started once), and unless its pod is ready. When the start itself
    /// fails the container is EXITED with 128 and `StartError`, and stays listed.
    pub async fn start_container(&self, id: &ContainerId) -> Result<()> {
        let pod = self.reachable_of(id).await?;
        let _one_at_a_time = pod.verb.lock().await;
        self.ensure_shim(&pod).await;
        let Some(record) = startable(&pod, id)? else { return Ok(()) };
        pod.change(|facts| facts.containers.get_mut(id).map(|container| container.starting = true));
        let started = match self.tell_start(&pod, id).await {
            Ok(()) => self.start(&pod, &record).await,
            Err(refused) => Err((refused, 0)),
        };
        if let Err(e) = &started {
            self.record_failed_start(&pod, &record, e);
        } else {
            self.tell_started(&pod, id).await;
            self.keep_spare_then();
        }
        pod.change(|facts| {
            let news = facts.start_answered(id, started.is_ok());
            news.for_each(|kind| self.announce(Event::of(pod.id(), Some(id), kind)));
        });
        started.map_err(|(e, _)| e).context(|| format!("start container {:?}", record.config.name))
    }

    async fn start(&self, pod: &Pod, record: &Arc<ContainerRecord>) -> Result<(), (Error, i32)> {
        let plain = |e: Error| (e, 0);
        let path = pod.container_cgroup(&record.id);
        let resources = pod.facts().containers.get(&record.id).map(|c| c.resources.clone()).unwrap_or_default();
        let settings = self.settings(&resources).map_err(plain)?;
        let cgroup = self.make_cgroup(pod, &path, &settings).map_err(plain)?;
        fault::point("engine.start_container.cgroup");
        let started = self.limit_and_launch(pod, record, &cgroup, &settings).await;
        if started.is_err()
            && let Err(e) = self.remove_cgroup(&path)
        {
            tracing::warn!("container {}: {e}", record.id.short());
        }
        started
    }

    async fn limit_and_launch(
        &self,
        pod: &Pod,
        record: &Arc<ContainerRecord>,
        cgroup: &Cgroup,
        settings: &[Setting],
    ) -> Result<(), (Error, i32)> {
        let plain = |e: Error| (e, 0);
        let id = &record.id;
        // Of a start whose shim and daemon both died before it was recorded: one container must not run twice.
        if cgroup.is_populated().map_err(plain)? {
            return Err(plain(Error::precondition("an earlier start of it was cut short and has left processes")));
        }
        let report = self.limit(cgroup, settings).map_err(plain)?;
        fault::point("engine.start_container.limits");
        pod.note(&format!("engine: limits of {} written and read back", record.config.name));
        if let Some(directory) = record.log.as_deref().and_then(std::path::Path::parent) {
            mkdir_all(directory, 0o755).map_err(plain)?;
        }
        let runtime = runtime_of(&pod.record.config.runtime_handler, &self.0.options.runtimes).map_err(plain)?;
        let launch = self.launch(pod, record, runtime);
        let shim = pod.shim().map_err(plain)?;
        if launch.runtime.is_some() && shim.version() < RUNTIMES {
            let old = "its shim is of an older podwright and knows no runtime handlers; make the pod anew";
            return Err(plain(Error::precondition(old)));
        }
        let (reply, fds) = shim.ask(Request::Start(Box::new(launch)), &[cgroup.as_fd()]).await.map_err(plain)?;
        fault::point("engine.start_container.started");
        let state = match reply {
            Reply::Started(state) => state,
            Reply::Failed(failure) => {
                let errno = failure.errno;
                return Err((failure.into(), errno));
            }
            other => return Err(plain(unexpected(&other))),
        };
        pod.change(|facts| {
            let Some(container) = facts.containers.get_mut(id) else { return };
            container.process = Some(state.process);
            // The exit may have been heard before this answer was; it stays.
            container.exit = container.exit.take().or(state.exit);
            container.limits = report.rows.into();
            container.warnings = [report.warnings, state.warnings].concat().into();
            let outputs: &[StdStream] =
                if record.config.tty { &[StdStream::Stdout] } else { &[StdStream::Stdout, StdStream::Stderr] };
            let held = Held::of(fds, outputs.iter().copied().chain([StdStream::Stdin]));
            container.held = held.filter(|_| container.exit.is_none());
        });
        Ok(())
    }

    /// What a container's root is made of. `layers`: its image's.
    pub(super) fn root(&self, container: &ContainerId, layers: &[PathBuf], readonly: bool) -> Root {
        let writable = self.paths().writable(container);
        // Below the image, which may have others there: what is missing is found, and not made in each container's own layer.
        let places = self.0.images.places();
        Root {
            layers: std::iter::once(&places).chain(layers).cloned().collect(),
            upper: writable.join("upper"),
            work: writable.join("work"),
            readonly,
        }
    }

    /// What the shim is told to start a container, and another one to go on with it.
    pub(super) fn launch(&self, pod: &Pod, record: &ContainerRecord, runtime: Option<Runtime>) -> Launch {
        let mut namespaces = pod.record.config.namespaces.clone();
        if let Some(target) = &record.config.security.pid_target {
            namespaces.pid = crate::state::model::NamespaceMode::Target(target.clone());
        }
        Launch {
            container: record.id.clone(),
            dir: self.paths().container(pod.id(), &record.id),
            spec: record.spec.clone(),
            root: self.root(&record.id, &record.layers, record.config.security.readonly_rootfs),
            user: UserChoice {
                supplemental_groups: [&record.config.security.supplemental_groups[..], &record.groups].concat(),
                ..user_choice(&record.config, &record.image_user)
            },
            namespaces,
            seccomp: oci::seccomp(&record.config),
            stdio: Stdio {
                tty: record.config.tty,
                stdin: record.config.stdin,
                stdin_once: record.config.stdin_once,
                log: record.log.clone(),
            },
            init: record.config.init,
            allow_unenforced: self.0.options.allow_unenforced,
            runtime,
        }
    }

    /// A container whose start failed is EXITED and says why. The shim writes the record when it got that far.
    fn record_failed_start(&self, pod: &Pod, record: &ContainerRecord, (error, errno): &(Error, i32)) {
        let path = self.paths().exit_record(pod.id(), &record.id);
        let exit = match record::read::<ExitRecord>(&path) {
            Ok(Some(exit)) => exit,
            _ => {
                let exit = ExitRecord {
                    status: ExitStatus::StartFailed { errno: *errno },
                    finished_at_ns: self.now_ns(),
                    oom: None,
                    message: error.to_string(),
                };
                if let Err(e) = record::write(&path, &exit, Durability::Boot) {
                    tracing::warn!("container {}: {e}", record.id.short());
                }
                exit
            }
        };
        pod.note(&format!("engine: start of {} failed", record.config.name));
        pod.change(|facts| {
            if let Some(Container { exit: slot, .. }) = facts.containers.get_mut(&record.id) {
                *slot = Some(exit);
            }
        });
    }
}

/// What is to be started; `None` when it runs already.
fn startable(pod: &Pod, id: &ContainerId) -> Result<Option<Arc<ContainerRecord>>> {
    let facts = pod.facts();
    facts.whole()?;
    let container = facts.containers.get(id).ok_or_else(|| Error::not_found(format!("no container {}", id.short())))?;
    match (container.state(), &container.exit) {
        (State::Created, _) => {}
        (State::Running, _) => return Ok(None),
        (State::Exited, Some(ExitRecord { status: ExitStatus::StartFailed { .. }, message, .. })) => {
            return Err(Error::precondition(format!("container {} could not be started: {message}", id.short())));
        }
        (State::Exited, exit) => {
            let code = exit.as_ref().map_or(0, |exit| exit.status.code());
            return Err(Error::precondition(format!(
                "container {} has run and ended with {code}; one is started once, make another",
                id.short()
            )));
        }
    }
    if facts.stopped || facts.sandbox.as_ref().is_none_or(|s| s.exit.is_some()) {
        return Err(Error::precondition(format!("pod {} is not ready", pod.id().short())));
    }
    Ok(Some(container.record.clone()))
}

/// Whom a container is to run as: run_as_user (and group) before run_as_username before the image's user (CRI,
/// LinuxContainerSecurityContext).
pub fn user_choice(config: &ContainerConfig, image_user: &str) -> UserChoice {
    let security = &config.security;
    let user = match security.run_as_user {
        Some(uid) => uid.to_string(),
        None if !security.run_as_username.is_empty() => security.run_as_username.clone(),
        None => image_user.to_owned(),
    };
    UserChoice {
        user,
        group: security.run_as_group,
        supplemental_groups: security.supplemental_groups.clone(),
        strict_groups: security.strict_groups,
        non_root: security.run_as_non_root,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::model::Security;

    #[test]
    fn a_number_wins_over_a_name_and_a_name_over_the_image() {
        let config = |run_as_user, name: &str| ContainerConfig {
            security: Security { run_as_user, run_as_username: name.into(), ..Security::default() },
            ..ContainerConfig::default()
        };
        assert_eq!(user_choice(&config(Some(7), "www"), "img").user, "7");
        assert_eq!(user_choice(&config(None, "www"), "img").user, "www");
        assert_eq!(user_choice(&config(None, ""), "img:grp").user, "img:grp");
    }
}
