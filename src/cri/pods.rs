//! What the methods of pod sandboxes do.

use super::{Cri, answer, convert, gone_is_done};
use crate::criapi::{
    PodSandbox, PodSandboxFilter, PodSandboxStatusRequest, PodSandboxStatusResponse, RunPodSandboxRequest,
    UpdatePodSandboxResourcesRequest,
};
use crate::engine::query::PodStatus;
use crate::error::{Error, Kind, Result};
use crate::id::PodId;
use crate::state::model::PodConfig;
use std::collections::BTreeMap;

impl Cri {
    pub(super) async fn run_pod(&self, request: RunPodSandboxRequest) -> Result<String> {
        let config = request.config.ok_or_else(|| Error::invalid("config is missing"))?;
        let config = convert::pod(config, request.runtime_handler, self.engine.options().cgroup_driver)?;
        let cri = self.clone();
        self.to_the_end(async move { cri.run_pod_once(config).await }).await
    }

    /// Makes the pod, unless there is one of its identity.
    async fn run_pod_once(&self, config: PodConfig) -> Result<String> {
        let identity = format!("{}_{}_{}_{}", config.name, config.namespace, config.uid, config.attempt);
        let _turn = self.making.turn(identity).await;
        match self.engine.pod_like(&config) {
            None => self.engine.run_pod(config).await.map(|id| id.to_string()),
            Some(pod) if pod.record.config != config => Err(Error::new(
                Kind::AlreadyExists,
                format!(
                    "run pod: {}/{} of that uid and attempt is there with another config, as {}",
                    config.namespace,
                    config.name,
                    pod.record.id.short()
                ),
            )),
            Some(pod) if !pod.ready => Err(Error::precondition(format!(
                "run pod: {}/{} of that uid and attempt has stopped, as {}; remove it, or count the attempt up",
                config.namespace,
                config.name,
                pod.record.id.short()
            ))),
            Some(pod) => Ok(pod.record.id.to_string()),
        }
    }

    pub(super) async fn stop_pod(&self, id: &str) -> Result<()> {
        gone_is_done(self.stop_known_pod(id).await)
    }

    async fn stop_known_pod(&self, id: &str) -> Result<()> {
        let (engine, id) = (self.engine.clone(), self.pod_id(id)?);
        self.to_the_end(async move { engine.stop_pod(&id).await }).await
    }

    pub(super) async fn remove_pod(&self, id: &str) -> Result<()> {
        gone_is_done(self.remove_known_pod(id).await)
    }

    async fn remove_known_pod(&self, id: &str) -> Result<()> {
        let (engine, id) = (self.engine.clone(), self.pod_id(id)?);
        self.to_the_end(async move { engine.remove_pod(&id).await }).await
    }

    pub(super) fn pod_status(&self, request: &PodSandboxStatusRequest) -> Result<PodSandboxStatusResponse> {
        let id = self.pod_id(&request.pod_sandbox_id)?;
        let status = self.engine.pod_status(&id)?;
        let info = if request.verbose { self.pod_info(&id, &status)? } else { BTreeMap::new() };
        // Without a timestamp the kubelet asks for each container itself, and believes that.
        Ok(PodSandboxStatusResponse {
            status: Some(answer::pod_status(&status)),
            info,
            containers_statuses: Vec::new(),
            timestamp: 0,
        })
    }

    /// For `crictl inspectp`: the record, pause's pid, the limits as the kernel has them, the flight recorder.
    fn pod_info(&self, id: &PodId, status: &PodStatus) -> Result<BTreeMap<String, String>> {
        let pid = status.sandbox.as_ref().filter(|s| s.exit.is_none()).map_or(0, |s| s.pause.pid);
        let info = serde_json::json!({
            "pid": pid,
            "cgroup": status.record.cgroup,
            "config": status.record.config,
            "selinux": status.record.selinux,
            "shim": status.shim,
            "shimLost": status.shim_lost,
            "unreadable": status.damaged,
            "limits": status.limits,
            "warnings": status.warnings,
            "flight": self.engine.flight(id).unwrap_or_default(),
        });
        Ok([("info".to_owned(), info.to_string())].into())
    }

    /// For whoever asks for messages; ListPodSandbox itself is `lists`'s.
    pub(super) fn list_pods(&self, filter: Option<PodSandboxFilter>) -> Vec<PodSandbox> {
        self.pod_lines(filter).map(|line| answer::pod(&line.record, Some(line.ready))).collect()
    }

    /// The kubelet has changed the pod's cgroup, which is its own; whoever wants to know is told.
    pub(super) async fn update_pod(&self, request: UpdatePodSandboxResourcesRequest) -> Result<()> {
        let id = self.pod_id(&request.pod_sandbox_id)?;
        let overhead = convert::resources(request.overhead.unwrap_or_default())?;
        let resources = convert::resources(request.resources.unwrap_or_default())?;
        let engine = self.engine.clone();
        self.to_the_end(async move { engine.update_pod(&id, &overhead, &resources).await }).await
    }
}
