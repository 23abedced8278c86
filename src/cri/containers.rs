//! What the methods of containers do.

use super::{Cri, answer, convert, gone_is_done};
use crate::criapi::{
    CheckpointContainerRequest, Container, ContainerFilter, ContainerStatusRequest, ContainerStatusResponse,
    CreateContainerRequest, ExecSyncRequest, ExecSyncResponse, StopContainerRequest, UpdateContainerResourcesRequest,
};
use crate::engine::checkpoint;
use crate::engine::exec::ExecConfig;
use crate::engine::query::ContainerStatus;
use crate::engine::{blocking, mkdir_all};
use crate::error::{Context, Error, Result};
use crate::id::PodId;
use crate::state::model::{ContainerConfig, Mount};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::oneshot;

/// Of a directory that is made because a mount names it, as in other runtimes.
const SOURCE_MODE: u32 = 0o755;

impl Cri {
    pub(super) async fn create_container(&self, request: CreateContainerRequest) -> Result<String> {
        let pod_id = self.pod_id(&request.pod_sandbox_id)?;
        let pod = self.engine.pod_status(&pod_id)?;
        let config = request.config.ok_or_else(|| Error::invalid("config is missing"))?;
        let (mut config, image) = convert::container(config, &pod.record.config)?;
        convert::check_privilege(&config, request.sandbox_config.as_ref())?;
        // The name of an image has no slash in front: other runtimes take the path of a checkpoint's archive here.
        if image.starts_with('/') {
            let why =
                format!("image {image:?} is a path: containers are made of images, and not restored from checkpoints");
            return Err(Error::unsupported(why));
        }
        // Two small files, which the engine reads again: a thread of their own would cost more than they do.
        let image = self.engine.images().lookup(&image)?;
        // The kubelet's own requests name the image by its id: people get a name that they know.
        if config.image.parse::<crate::id::Digest>().is_ok() {
            config.image = image.names.first().cloned().unwrap_or(config.image);
        }
        config.image_id = Some(image.id);
        for volume in config.mounts.iter_mut().filter_map(|mount| mount.image.as_mut()) {
            // The words by which a kubelet knows what failed (k8s.io/cri-api, pkg/errors: ErrImageVolumeMountFailed).
            let found = self.engine.images().lookup(&volume.image).context(|| "ImageVolumeMountFailed")?;
            volume.id = Some(found.id);
        }
        let cri = self.clone();
        self.to_the_end(async move { cri.create_once(pod_id, config).await }).await
    }

    /// Makes the container, unless there is one of its identity.
    async fn create_once(&self, pod: PodId, config: ContainerConfig) -> Result<String> {
        let _turn = self.making.turn(format!("{pod}_{}_{}", config.name, config.attempt)).await;
        let same =
            |c: &ContainerStatus| c.record.config.name == config.name && c.record.config.attempt == config.attempt;
        match self.engine.containers_of(&pod).into_iter().find(same) {
            Some(container) if container.record.config == config => Ok(container.record.id.to_string()),
            // Another config: the engine says what it thinks of it.
            _ => {
                let mounts = config.mounts.clone();
                if !mounts.is_empty() {
                    blocking(move || make_sources(&mounts)).await?;
                }
                self.engine.create_container(&pod, config).await.map(|id| id.to_string())
            }
        }
    }

    pub(super) async fn start_container(&self, id: &str) -> Result<()> {
        let (engine, id) = (self.engine.clone(), self.container_id(id)?);
        self.to_the_end(async move { engine.start_container(&id).await }).await
    }

    pub(super) async fn stop_container(&self, request: &StopContainerRequest) -> Result<()> {
        gone_is_done(self.stop_known(request).await)
    }

    async fn stop_known(&self, request: &StopContainerRequest) -> Result<()> {
        let (engine, id) = (self.engine.clone(), self.container_id(&request.container_id)?);
        let grace = seconds("timeout", request.timeout)?;
        self.to_the_end(async move { engine.stop_container(&id, grace).await }).await
    }

    pub(super) async fn remove_container(&self, id: &str) -> Result<()> {
        gone_is_done(self.remove_known(id).await)
    }

    async fn remove_known(&self, id: &str) -> Result<()> {
        let (engine, id) = (self.engine.clone(), self.container_id(id)?);
        self.to_the_end(async move { engine.remove_container(&id).await }).await
    }

    pub(super) async fn checkpoint_container(&self, request: CheckpointContainerRequest) -> Result<()> {
        let (engine, id) = (self.engine.clone(), self.container_id(&request.container_id)?);
        let timeout = match seconds("timeout", request.timeout)? {
            Duration::ZERO => checkpoint::DEFAULT_TIMEOUT,
            timeout => timeout.min(checkpoint::MAX_TIMEOUT),
        };
        let location = PathBuf::from(request.location);
        self.to_the_end(async move { engine.checkpoint_container(&id, &location, timeout).await }).await
    }

    pub(super) fn container_status(&self, request: &ContainerStatusRequest) -> Result<ContainerStatusResponse> {
        let status = self.engine.container_status(&self.container_id(&request.container_id)?)?;
        let info = if request.verbose { container_info(&status) } else { BTreeMap::new() };
        Ok(ContainerStatusResponse { status: Some(answer::container_status(&status)), info })
    }

    /// For whoever asks for messages; ListContainers itself is `lists`'s.
    pub(super) fn list_containers(&self, filter: Option<ContainerFilter>) -> Vec<Container> {
        self.container_lines(filter).map(|line| answer::container(&line.record, Some(line.state))).collect()
    }

    pub(super) async fn update_container(&self, request: UpdateContainerResourcesRequest) -> Result<()> {
        let id = self.container_id(&request.container_id)?;
        if request.windows.is_some() {
            return Err(Error::invalid("windows: this is Linux"));
        }
        let resources = convert::resources(request.linux.unwrap_or_default())?;
        let engine = self.engine.clone();
        self.to_the_end(async move { engine.update_container(&id, resources).await }).await
    }

    pub(super) async fn reopen_log(&self, id: &str) -> Result<()> {
        let (engine, id) = (self.engine.clone(), self.container_id(id)?);
        self.to_the_end(async move { engine.reopen_log(&id).await }).await
    }

    pub(super) async fn exec_sync(&self, request: ExecSyncRequest) -> Result<ExecSyncResponse> {
        let id = self.container_id(&request.container_id)?;
        let timeout = seconds("timeout", request.timeout)?;
        let config = ExecConfig { args: request.cmd, timeout, ..ExecConfig::default() };
        let engine = self.engine.clone();
        // Dropped with this future, when the client goes away or its deadline passes.
        let (_waits, gone) = oneshot::channel::<()>();
        let gone = async move {
            let _ = gone.await; // nothing is ever sent
        };
        let output = self.to_the_end(async move { engine.exec_sync(&id, config, gone).await }).await?;
        Ok(ExecSyncResponse { stdout: output.stdout, stderr: output.stderr, exit_code: output.status.code() })
    }
}

/// For `crictl inspect`: the first process's pid, the OCI runtime spec, the limits as the kernel has them.
fn container_info(status: &ContainerStatus) -> BTreeMap<String, String> {
    let running = status.process.as_ref().filter(|_| status.exit.is_none());
    let info = serde_json::json!({
        "sandboxID": status.record.pod,
        "pid": running.map_or(0, |p| p.process.pid),
        "cgroup": status.cgroup,
        "config": status.record.config,
        "runtimeSpec": status.record.spec,
        "limits": status.limits,
        "warnings": status.warnings,
        "childOom": status.child_oom,
    });
    [("info".to_owned(), info.to_string())].into()
}

fn seconds(field: &str, value: i64) -> Result<Duration> {
    let seconds = u64::try_from(value).map_err(|_| Error::invalid(format!("{field}: {value} is negative")))?;
    Ok(Duration::from_secs(seconds))
}

/// A hostPath without a type may name what is not there, and manifests count on it becoming a directory.
fn make_sources(mounts: &[Mount]) -> Result<()> {
    let mut missing = mounts.iter().filter(|mount| mount.image.is_none() && !mount.host_path.exists());
    missing.try_for_each(|mount| mkdir_all(&mount.host_path, SOURCE_MODE))
}
