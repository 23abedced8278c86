//! imagePullSecrets: Secrets of the file as credentials of registries. Pure.
//!
//! As in a kubelet a name that no Secret has does not stop a pod whose images are there, or are anybody's; when a registry refuses, it is told.
//! Told by their keys, `.dockerconfigjson` and `.dockercfg`, which is what the types of such Secrets stand for.

use super::objects::{Objects, Source};
use super::pod::Pod;
use crate::error::{Error, Kind, Result};
use crate::image::registry::credentials::AuthFile;

/// Keys of a Secret, and whether it is the older form (pkg/apis/core/types.go: DockerConfigJsonKey, DockerConfigKey).
const KEYS: [(&str, bool); 2] = [(".dockerconfigjson", false), (".dockercfg", true)];

/// What a pod's images are pulled with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PullSecrets {
    pub files: Vec<AuthFile>,
    /// Names that no Secret of the file has.
    missing: Vec<String>,
}

impl PullSecrets {
    /// Those of one pod.
    ///
    /// # Errors
    /// `InvalidArgument` for a Secret that has no credentials in it.
    pub fn of(pod: &Pod, objects: &Objects) -> Result<PullSecrets> {
        let mut all = PullSecrets::default();
        for name in &pod.spec.image_pull_secrets {
            match objects.find(true, &pod.metadata.namespace, &name.value) {
                Some(source) => all.files.push(auth_file(source)?),
                None => all.missing.push(name.value.clone()),
            }
        }
        Ok(all)
    }

    /// A pull's error, with what the pod says of credentials and the file does not have.
    pub fn explain(&self, e: Error) -> Error {
        if e.kind() != Kind::FailedPrecondition || self.missing.is_empty() {
            return e;
        }
        let names = self.missing.join(", ");
        let remedy = format!(
            "imagePullSecrets names {names}, which no Secret of the file is: add it as a document (kubectl create secret docker-registry {} --dry-run=client -o yaml)",
            self.missing[0]
        );
        Error::new(e.kind(), format!("{e}; {remedy}"))
    }
}

/// The credentials in a Secret.
///
/// # Errors
/// `InvalidArgument`, without what is secret.
pub(super) fn auth_file(source: &Source) -> Result<AuthFile> {
    let found = KEYS.iter().find_map(|(key, legacy)| Some((key, source.text.get(*key)?, *legacy)));
    let Some((key, bytes, legacy)) = found else {
        return Err(Error::invalid(format!("it has neither {} nor {}", KEYS[0].0, KEYS[1].0)));
    };
    AuthFile::of_secret(bytes, legacy).map_err(|e| e.context(*key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::manifest::load;

    fn manifest(secret: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n  imagePullSecrets: [{{name: regcred}}]\n  containers: [{{name: c, image: a}}]\n---\n\
             apiVersion: v1\nkind: Secret\nmetadata: {{name: regcred}}\ntype: kubernetes.io/dockerconfigjson\n{secret}\n"
        )
    }

    #[test]
    fn a_secret_of_either_form_is_read_and_one_of_neither_is_refused_in_its_line() {
        for secret in [
            r#"stringData: {.dockerconfigjson: '{"auths": {"r.example": {"auth": "dXNlcjpwYXNz"}}}'}"#,
            r#"stringData: {.dockercfg: '{"r.example": {"auth": "dXNlcjpwYXNz"}}'}"#,
        ] {
            let manifest = load(manifest(secret).as_bytes(), "f").expect("valid");
            let found = PullSecrets::of(&manifest.pods[0], &manifest.objects).expect("credentials");
            assert_eq!(found.files[0].candidates("r.example", "a").len(), 1, "{secret}");
        }
        for (secret, words) in [
            ("stringData: {a: b}", "neither .dockerconfigjson nor .dockercfg"),
            (r#"stringData: {.dockerconfigjson: "hunter2"}"#, "not docker's config.json"),
        ] {
            let e = load(manifest(secret).as_bytes(), "f").expect_err(secret).to_string();
            assert!(e.contains(words) && e.contains("f:5:") && !e.contains("hunter2"), "{e}");
        }
    }

    #[test]
    fn a_secret_that_is_not_there_is_told_when_a_registry_refuses() {
        let text = manifest("stringData: {a: b}").replace("{name: regcred}\ntype", "{name: other}\ntype");
        let manifest = load(text.as_bytes(), "f").expect("valid");
        let found = PullSecrets::of(&manifest.pods[0], &manifest.objects).expect("none");
        let told = found.explain(Error::precondition("pull access denied")).to_string();
        assert!(told.starts_with("pull access denied; imagePullSecrets names regcred"), "{told}");
        assert_eq!(found.explain(Error::not_found("x")).to_string(), "x");
    }
}
