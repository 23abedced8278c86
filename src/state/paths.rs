//! Every path below podwright's two directories, as functions of ids. Nothing else joins paths there.
//!
//! ```text
//! /run/podwright/                    state: tmpfs, gone after a reboot like the processes it describes; 0700; flock(2)ed while a user
//!                                    namespace's ids are chosen
//!   podwright.sock                   the daemon's CRI socket
//!   network/<bridge>/                see network/bridge/lease.rs
//!   sysctls                          name, old and new value of what of the host was changed for pods' networks
//!   pods/<pod>/                      the daemon's pods; an instance of `run` has the same tree below run/<instance>/
//!   run/<instance>/
//!     lock                           flock(2)ed by the `run` that owns it, for as long as it lives
//!     pods/<pod>/
//!       pod.json                     PodRecord         engine, once
//!       sandbox.json                 SandboxRecord     shim, once: the pause process
//!       shim.json                    ShimRecord        engine: the shim that took over from a dead one
//!       stopped.json                 StoppedRecord     engine, once: StopPodSandbox has ended
//!       shim.sock                    made by the engine, listened on by the shim
//!       network.json                 NetworkRecord     network, once: what was begun to attach the pod
//!       attachment.json              Attachment        network, once: what the pod has
//!       flight                       the flight recorder, written by both
//!       etc/{hosts,hostname,resolv.conf}
//!       containers/<container>/
//!         config.json                ContainerRecord   engine, once
//!         process.json               ProcessRecord     shim, once: the container's first process
//!         exit.json                  ExitRecord        shim (engine when there is none any more), once
//!         resources.json             ResourcesRecord   engine: the last in-place resize
//! /var/lib/podwright/                root: survives reboots
//!   images/                          see image/store.rs
//!   containers/<container>/{upper,work}   writable layers
//!   cni/<pod>.json                   what is attached to a CNI network, until its DEL is done: network/cni
//!   cni/<pod>.answer.json            what its plugins have answered; of no use after a reboot
//!   cni/{lock,pod-cidr.json}         held by whoever has plugins at work; what the kubelet has said
//!   pods/<pod>/{volumes,logs}/       emptyDir volumes, and logs of pods that gave no log directory
//! ```
//!
//! No mutable record but `resources.json` and `shim.json`: a status is which of the records exist ([`super::record`]).

use crate::id::{ContainerId, InstanceId, PodId};
use std::path::{Path, PathBuf};

/// The two directories, and the instance when the engine is hosted by `run`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// Survives reboots: `/var/lib/podwright`.
    pub root: PathBuf,
    /// Gone after a reboot: `/run/podwright`.
    pub state: PathBuf,
    /// The instance of `run` that these paths belong to; `None` for the daemon.
    pub instance: Option<InstanceId>,
}

impl Paths {
    /// Where the pods of this engine are.
    pub fn engine(&self) -> PathBuf {
        match &self.instance {
            Some(instance) => self.instances().join(instance.as_str()),
            None => self.state.clone(),
        }
    }

    /// Where instances of `run` are.
    pub fn instances(&self) -> PathBuf {
        self.state.join("run")
    }

    /// The lock an instance's owner holds.
    pub fn lock(&self) -> PathBuf {
        self.engine().join("lock")
    }

    /// The same directories, seen from one instance.
    #[must_use]
    pub fn of_instance(&self, instance: InstanceId) -> Paths {
        Paths { instance: Some(instance), ..self.clone() }
    }

    pub fn pods(&self) -> PathBuf {
        self.engine().join("pods")
    }

    pub fn pod(&self, pod: &PodId) -> PathBuf {
        self.pods().join(pod.as_str())
    }

    pub fn pod_record(&self, pod: &PodId) -> PathBuf {
        self.pod(pod).join("pod.json")
    }

    pub fn sandbox_record(&self, pod: &PodId) -> PathBuf {
        self.pod(pod).join("sandbox.json")
    }

    pub fn stopped_record(&self, pod: &PodId) -> PathBuf {
        self.pod(pod).join("stopped.json")
    }

    pub fn shim_record(&self, pod: &PodId) -> PathBuf {
        self.pod(pod).join("shim.json")
    }

    pub fn network_record(&self, pod: &PodId) -> PathBuf {
        self.pod(pod).join("network.json")
    }

    pub fn attachment_record(&self, pod: &PodId) -> PathBuf {
        self.pod(pod).join("attachment.json")
    }

    /// Who has which address on a bridge: of all instances, for they share it.
    pub fn network(&self, bridge: &str) -> PathBuf {
        self.state.join("network").join(bridge)
    }

    /// What of the host's settings was changed for pods' networks, a line each.
    pub fn sysctls(&self) -> PathBuf {
        self.state.join("sysctls")
    }

    pub fn shim_socket(&self, pod: &PodId) -> PathBuf {
        self.pod(pod).join("shim.sock")
    }

    pub fn flight(&self, pod: &PodId) -> PathBuf {
        self.pod(pod).join("flight")
    }

    /// The pod's own files of /etc: `hosts`, `hostname`, `resolv.conf`.
    pub fn etc(&self, pod: &PodId, file: &str) -> PathBuf {
        self.pod(pod).join("etc").join(file)
    }

    pub fn containers(&self, pod: &PodId) -> PathBuf {
        self.pod(pod).join("containers")
    }

    pub fn container(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        self.containers(pod).join(container.as_str())
    }

    pub fn container_record(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        self.container(pod, container).join("config.json")
    }

    pub fn process_record(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        self.container(pod, container).join("process.json")
    }

    pub fn exit_record(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        self.container(pod, container).join("exit.json")
    }

    pub fn resources_record(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        self.container(pod, container).join("resources.json")
    }

    /// Attachments to CNI networks, of all engines: what their plugins keep survives a reboot too.
    pub fn cni(&self) -> PathBuf {
        self.root.join("cni")
    }

    pub fn cni_record(&self, pod: &PodId) -> PathBuf {
        self.cni().join(format!("{pod}.json"))
    }

    /// What the plugins have answered.
    pub fn cni_answer(&self, pod: &PodId) -> PathBuf {
        self.cni().join(format!("{pod}.answer.json"))
    }

    pub fn cni_lock(&self) -> PathBuf {
        self.cni().join("lock")
    }

    /// What the kubelet has said.
    pub fn cni_pod_cidr(&self) -> PathBuf {
        self.cni().join("pod-cidr.json")
    }

    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// The writable layer of a container, and overlay's work directory beside it.
    pub fn writable(&self, container: &ContainerId) -> PathBuf {
        self.root.join("containers").join(container.as_str())
    }

    /// What of a pod survives in `root` until the pod is removed: volumes and logs.
    pub fn pod_data(&self, pod: &PodId) -> PathBuf {
        self.root.join("pods").join(pod.as_str())
    }

    pub fn volume(&self, pod: &PodId, volume: &str) -> PathBuf {
        self.pod_data(pod).join("volumes").join(volume)
    }

    pub fn logs(&self, pod: &PodId) -> PathBuf {
        self.pod_data(pod).join("logs")
    }
}

/// Where a record is written before it is renamed into place: beside it, so that the rename is atomic.
pub fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}
