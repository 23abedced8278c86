//! What the methods that ask for the runtime itself answer.

use super::Cri;
use crate::config;
use crate::criapi::{
    CgroupDriver, LinuxRuntimeConfiguration, RuntimeCondition, RuntimeConfigResponse, RuntimeFeatures, RuntimeHandler,
    RuntimeHandlerFeatures, RuntimeStatus, StatusResponse, VersionResponse,
};
use crate::engine::{apparmor, selinux};
use crate::network;
use std::collections::BTreeMap;

/// Of the kubelet's runtime API: another one makes the kubelet end (pkg/kubelet/kuberuntime/kuberuntime_manager.go).
const KUBELET_API_VERSION: &str = "0.1.0";
const RUNTIME_NAME: &str = "podwright";
const RUNTIME_API_VERSION: &str = "v1";

pub(super) fn version() -> VersionResponse {
    VersionResponse {
        version: KUBELET_API_VERSION.to_owned(),
        runtime_name: RUNTIME_NAME.to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: RUNTIME_API_VERSION.to_owned(),
    }
}

/// A kubelet does as this says, whatever its own configuration (KubeletCgroupDriverFromCRI).
pub(super) fn runtime_config(driver: config::CgroupDriver) -> RuntimeConfigResponse {
    let cgroup_driver = match driver {
        config::CgroupDriver::Cgroupfs => CgroupDriver::Cgroupfs,
        config::CgroupDriver::Systemd => CgroupDriver::Systemd,
    };
    let linux = LinuxRuntimeConfiguration { cgroup_driver: cgroup_driver as i32 };
    RuntimeConfigResponse { linux: Some(linux) }
}

impl Cri {
    /// Asked every few seconds: it costs next to nothing.
    pub(super) async fn status(&self, verbose: bool) -> StatusResponse {
        let condition = |kind: &str, status, reason: &str, message: &str| RuntimeCondition {
            r#type: kind.to_owned(),
            status,
            reason: reason.to_owned(),
            message: message.to_owned(),
        };
        let network = match self.engine.network().status().await {
            network::Status::Ready => condition("NetworkReady", true, "", ""),
            // The reason and the first words are those that clients know.
            network::Status::NotReady(why) => condition(
                "NetworkReady",
                false,
                "NetworkPluginNotReady",
                &format!("Network plugin returns error: {why}"),
            ),
        };
        let mut conditions = vec![condition("RuntimeReady", true, "", ""), network];
        if let apparmor::State::NotLoaded(why) = self.engine.apparmor_state() {
            let message = format!("containers that ask for no profile run unconfined by AppArmor: {why}");
            conditions.push(condition("AppArmorDefaultProfileLoaded", false, "ProfileNotLoaded", &message));
        }
        let features =
            RuntimeHandlerFeatures { recursive_read_only_mounts: true, user_namespaces: self.user_namespaces };
        let built_in = RuntimeHandler { name: String::new(), features: Some(features) };
        let others = self.engine.runtime_features().await.into_iter().map(|(name, told)| {
            let recursive_read_only_mounts = told.recursive_read_only_mounts;
            // A user namespace needs the built-in one: see engine::check_pod.
            let features = RuntimeHandlerFeatures { recursive_read_only_mounts, user_namespaces: false };
            RuntimeHandler { name, features: Some(features) }
        });
        StatusResponse {
            status: Some(RuntimeStatus { conditions }),
            info: if verbose { self.node_info() } else { BTreeMap::new() },
            runtime_handlers: std::iter::once(built_in).chain(others).collect(),
            features: Some(RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: false,
                mount_options: false,
            }),
        }
    }

    /// For `crictl info`.
    fn node_info(&self) -> BTreeMap<String, String> {
        let paths = self.engine.paths();
        let state = serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "root": paths.root,
            "state": paths.state,
            "cgroupDriver": self.engine.options().cgroup_driver.word(),
            "cgroupRoot": self.engine.options().cgroup_root,
            "allowUnenforcedLimits": self.engine.options().allow_unenforced,
            "pods": self.engine.list_pods().len(),
            "containers": self.engine.list_containers().len(),
            "unreadable": self.engine.unreadable(),
            "apparmor": self.engine.apparmor_state().to_string(),
            "selinux": selinux::state(self.engine.options().selinux).to_string(),
        });
        let cni = self.engine.network().cni().info();
        let all = [("config", self.config.to_string()), ("podwright", state.to_string()), ("cni", cni.to_string())];
        all.map(|(name, json)| (name.to_owned(), json)).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubelet_finds_the_version_it_asks_for() {
        let version = version();
        assert_eq!((version.version.as_str(), version.runtime_api_version.as_str()), ("0.1.0", "v1"));
        assert!(!version.runtime_name.is_empty() && !version.runtime_version.is_empty());
    }
}
