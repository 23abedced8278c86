//! What holds whatever a manifest is; driven by [`crate::fuzz`].

use super::convert::{NodeFacts, plan};
use super::manifest::{Manifest, load, load_templates};
use super::problem::{MAX_PROBLEMS, ManifestErrors};
use crate::engine;
use crate::engine::oci::HostFacts;
use crate::id::ContainerId;
use crate::image::oci::Config as ImageConfig;
use crate::state::model::{ContainerConfig, PodConfig};

/// A file is read the same each time; what is wrong has a place in it and a bounded number of words; what is right becomes configs that are the
/// same when they were kept, and specs that the launcher reads.
pub fn manifest(bytes: &[u8]) {
    for read in [load, load_templates] {
        let first = read(bytes, "pod.yaml");
        assert_eq!(first, read(bytes, "pod.yaml"));
        match first {
            Ok(manifest) => manifest.pods.iter().enumerate().for_each(|(index, _)| planned(&manifest, index, bytes)),
            Err(errors) => told(&errors, bytes),
        }
    }
}

fn told(errors: &ManifestErrors, bytes: &[u8]) {
    assert!((1..=MAX_PROBLEMS).contains(&errors.errors.len()));
    let lines = String::from_utf8_lossy(bytes).split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']).count();
    for error in &errors.errors {
        assert!(error.at.line >= 1 && error.at.line <= lines + 1 && error.at.column >= 1, "{error}");
        assert!(!error.message.is_empty() && !error.remedy.is_empty(), "{error}");
        assert!(error.to_string().len() <= 8 * bytes.len() + 1024, "{} bytes: {error}", error.to_string().len());
    }
}

fn planned(manifest: &Manifest, index: usize, bytes: &[u8]) {
    let facts = NodeFacts {
        node_name: "node".into(),
        host_ips: vec!["192.0.2.1".into()],
        pod_ips: Some(vec!["198.51.100.7".into()]),
        log_root: Some("/var/log/pods".into()),
        pod_dir: "/var/lib/podwright/pods/p".into(),
        secret_dir: "/run/podwright/secrets/p".into(),
        seccomp_dir: "/etc/seccomp".into(),
        ..NodeFacts::default()
    };
    let plan = match plan(manifest, index, &facts) {
        Ok(plan) => plan,
        Err(errors) => return told(&errors, bytes),
    };
    let kept = serde_json::to_vec(&plan.config).expect("JSON");
    assert_eq!(serde_json::from_slice::<PodConfig>(&kept).expect("what was kept"), plan.config);
    for container in &plan.containers {
        let config = container.attempt(1);
        let kept = serde_json::to_vec(&config).expect("JSON");
        assert_eq!(serde_json::from_slice::<ContainerConfig>(&kept).expect("what was kept"), config);
        specified(&plan.config, &config);
    }
}

/// Of what the engine takes, the launcher understands all.
fn specified(pod: &PodConfig, container: &ContainerConfig) {
    let id: ContainerId = "0".repeat(64).parse().expect("an id");
    let image = ImageConfig { entrypoint: vec!["/program".into()], ..ImageConfig::default() };
    if let Ok(spec) = engine::oci::spec(pod, container, &id, &image, &HostFacts::default()) {
        let text = serde_json::to_string(&spec).expect("JSON");
        assert!(!text.contains("\\u0000"), "a NUL in {text}");
        serde_json::from_str::<oci_spec::runtime::Spec>(&text).expect("a spec");
    }
}
