//! What holds whatever a client of the CRI asks for; driven by [`crate::fuzz`].

use super::convert;
use crate::config::CgroupDriver;
use crate::config::network::NetworkMode;
use crate::criapi::{
    ContainerConfig as AskedContainer, CreateContainerRequest, PodSandboxConfig, RunPodSandboxRequest,
    UpdateContainerResourcesRequest,
};
use crate::engine::oci::HostFacts;
use crate::engine::{self, Runtimes};
use crate::id::ContainerId;
use crate::image::oci::Config as ImageConfig;
use crate::state::model::{ContainerConfig, PodConfig, Resources};
use prost::Message;

/// The first byte chooses the request and the host. A message is the same when it was sent again; what is accepted is the same when it was
/// kept, and gives a spec that the launcher reads.
pub fn cri(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else { return };
    let driver = if which & 8 != 0 { CgroupDriver::Systemd } else { CgroupDriver::Cgroupfs };
    match which % 4 {
        0 => {
            if let Some(RunPodSandboxRequest { config: Some(config), runtime_handler }) = decoded(bytes) {
                pod(config, runtime_handler, driver);
            }
        }
        1 => {
            if let Some(CreateContainerRequest { config: Some(config), sandbox_config, .. }) = decoded(bytes) {
                let asked = sandbox_config.clone().and_then(|config| convert::pod(config, String::new(), driver).ok());
                container(config, &asked.unwrap_or_default(), sandbox_config.as_ref());
            }
        }
        2 => {
            if let Some(UpdateContainerResourcesRequest { linux: Some(linux), .. }) = decoded(bytes)
                && let Ok(resources) = convert::resources(linux)
            {
                let kept = serde_json::to_vec(&resources).expect("JSON");
                assert_eq!(serde_json::from_slice::<Resources>(&kept).expect("what was kept"), resources);
            }
        }
        _ => {
            let text = String::from_utf8_lossy(bytes);
            assert!(engine::runtime_of(&text, &Runtimes::new()).is_ok() == text.is_empty());
            if let Ok(id) = convert::target(&text) {
                assert_eq!(id.to_string(), text);
            }
        }
    }
}

fn decoded<T: Message + Default + PartialEq + std::fmt::Debug>(bytes: &[u8]) -> Option<T> {
    let message = T::decode(bytes).ok()?;
    let sent = message.encode_to_vec();
    assert_eq!(sent.len(), message.encoded_len());
    assert!(T::decode(&sent[..]).as_ref() == Ok(&message), "{message:?} is another when it is sent");
    Some(message)
}

fn pod(config: PodSandboxConfig, handler: String, driver: CgroupDriver) {
    let Ok(pod) = convert::pod(config, handler, driver) else { return };
    let kept = serde_json::to_vec(&pod).expect("JSON");
    assert_eq!(serde_json::from_slice::<PodConfig>(&kept).expect("what was kept"), pod);
    if engine::check_pod(&pod, NetworkMode::Auto, &Runtimes::new()).is_ok() {
        // They become names of directories, and a host's name.
        for name in [&pod.name, &pod.namespace, &pod.uid] {
            assert!(!name.contains(['/', '\0', '\n']) && !name.starts_with('.'), "{name:?}");
        }
        assert!(!pod.hostname.contains(['\0', '\n', '/', ' ']), "{:?}", pod.hostname);
    }
}

fn container(asked: AskedContainer, pod: &PodConfig, sandbox: Option<&PodSandboxConfig>) {
    let Ok((config, image)) = convert::container(asked, pod) else { return };
    assert!(!image.is_empty() && !config.name.is_empty());
    let kept = serde_json::to_vec(&config).expect("JSON");
    assert_eq!(serde_json::from_slice::<ContainerConfig>(&kept).expect("what was kept"), config);
    assert!(config.mounts.iter().all(|mount| mount.container_path.starts_with('/')));
    if config.security.privileged && convert::check_privilege(&config, sandbox).is_ok() {
        let security = sandbox.and_then(|config| config.linux.as_ref()?.security_context.as_ref());
        assert!(sandbox.is_none() || security.is_some_and(|context| context.privileged));
    }
    let id: ContainerId = "0".repeat(64).parse().expect("an id");
    let image = ImageConfig { entrypoint: vec!["/program".into()], ..ImageConfig::default() };
    if let Ok(spec) = engine::oci::spec(pod, &config, &id, &image, &HostFacts::default()) {
        let text = serde_json::to_string(&spec).expect("JSON");
        serde_json::from_str::<oci_spec::runtime::Spec>(&text).expect("a spec");
    }
}
