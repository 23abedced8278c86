//! What holds whatever stands in hosts.toml and docker's config.json, and whatever a registry answers; driven by [`crate::fuzz`].

use super::challenge::{self, Challenge};
use super::credentials::{AuthFile, Candidate, registry_name};
use super::hosts;
use super::url::Url;
use std::path::Path;
use std::time::Duration;

/// The first byte chooses what the rest is.
pub fn registry(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else { return };
    let text = String::from_utf8_lossy(bytes);
    match which % 4 {
        0 => hosts_toml(&text),
        1 => credentials(bytes, &text),
        2 => answered(&text),
        _ => url(&text),
    }
}

/// Endpoints are on http or https, and certificates are files.
fn hosts_toml(text: &str) {
    let Ok(endpoints) = hosts::parse(text, Path::new("/hosts"), "registry.example") else { return };
    assert!(!endpoints.is_empty() && endpoints.len() <= 66);
    for endpoint in endpoints {
        assert!(endpoint.dial_timeout <= Duration::from_secs(3600) && !endpoint.dial_timeout.is_zero());
        assert!(endpoint.base.path.starts_with('/'), "{endpoint:?}");
        assert!(endpoint.tls.ca.iter().all(|file| file.is_absolute()));
        url(&endpoint.base.to_string());
    }
}

/// What is secret stands in no message, and is for its own registry only.
fn credentials(bytes: &[u8], text: &str) {
    if let Ok(file) = AuthFile::parse(bytes) {
        for host in ["registry.example", "docker.io"] {
            for candidate in file.candidates(host, "team/image") {
                if let Candidate::Known(secret) = candidate {
                    assert!(!format!("{secret:?}").contains(':'));
                }
            }
        }
    }
    for legacy in [false, true] {
        if let Ok(file) = AuthFile::of_secret(bytes, legacy) {
            let all = file.candidates("registry.example", "team/image");
            assert!(all.iter().all(|candidate| matches!(candidate, Candidate::Known(_))), "a program of a manifest's");
        }
    }
    let name = registry_name(text);
    assert!(name.is_none_or(|(host, path)| !host.is_empty() && !path.starts_with('/') && !path.ends_with('/')));
    // Long enough to be no word of a message.
    let secret = format!("secret-{text}-secret");
    for key in ["auth", "password", "identitytoken", "registrytoken"] {
        for value in [serde_json::json!({key: secret}), serde_json::json!({key: [secret]}), serde_json::json!(secret)] {
            let file = serde_json::json!({"auths": {"registry.example": value}}).to_string();
            match AuthFile::parse(file.as_bytes()) {
                Ok(file) => assert!(file.candidates("other.example", "team/image").is_empty()),
                Err(e) => assert!(!e.to_string().contains("secret-"), "{e}"),
            }
        }
    }
}

/// A challenge's values are pieces of what was answered.
fn answered(text: &str) {
    if let Some(Challenge::Bearer { realm, service, scope }) = challenge::choose([text]) {
        let len = realm.len() + service.map_or(0, |text| text.len()) + scope.map_or(0, |text| text.len());
        assert!(len <= text.len());
        url(&realm);
    }
}

/// A URL is the same when it is read again, and no step from https leads to http.
fn url(text: &str) {
    let Ok(read) = Url::parse(text) else { return };
    let whole = format!("{}{}", read.origin, read.path);
    assert_eq!(Url::parse(&whole).expect("a URL that was read before"), read, "{whole}");
    assert!(!read.origin.host.contains(['@', '/', '?', '#']), "{read:?}");
    let from = Url::parse("https://registry.example/v2/a").expect("a URL");
    if let Ok(to) = from.join(text) {
        assert!(to.origin.https);
    }
}
