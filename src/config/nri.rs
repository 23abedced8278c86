//! The settings of the Node Resource Interface: `nri.*`.

use super::{Config, is_true, time};
use std::path::PathBuf;
use std::time::Duration;

/// Pods wait for plugins, and the kubelet waits two minutes for a pod.
pub(super) const MAX_TIMEOUT: Duration = Duration::from_secs(60);

/// Where plugins connect, and how long they may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NriSettings {
    pub socket: PathBuf,
    /// To register, once connected.
    pub registration: Duration,
    /// To answer.
    pub request: Duration,
}

impl Config {
    /// Where plugins connect; `None`: nowhere.
    pub fn nri(&self) -> Option<NriSettings> {
        let timeout = |key| time(self.value(key)).unwrap_or(MAX_TIMEOUT); // both were checked
        is_true(self.value("nri.enable")).then(|| NriSettings {
            socket: self.value("nri.socket").into(),
            registration: timeout("nri.registration_timeout"),
            request: timeout("nri.request_timeout"),
        })
    }
}
