//! Who one is to a registry: docker's `config.json` and what CRI gives along, each for one registry.
//!
//! Not here: to whom they are shown ([`super::authorize`] answers challenges of one origin), and how programs are asked that keep passwords
//! elsewhere ([`super::credential_program`]).

use super::credential_program::Helper;
use super::url::Url;
use crate::error::{Context, Error, Result};
use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::Path;

/// Bytes of a file of credentials, at most.
pub const MAX_FILE: u64 = 1 << 20;
/// What docker calls Docker Hub where it asks helpers, and in its files.
pub const HUB_SERVER: &str = "https://index.docker.io/v1/";
/// Where Docker Hub is known by several names; the first is that of references.
const HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// Writers disagree about padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What is shown. Its `Debug` shows nothing.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Secret {
    Password {
        user: String,
        password: String,
    },
    /// An OAuth2 refresh token, which a token server takes.
    Identity(String),
    /// A bearer token, ready for the registry.
    Bearer(String),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Secret::Password { .. } => "Password",
            Secret::Identity(_) => "Identity",
            Secret::Bearer(_) => "Bearer",
        })
    }
}

impl Secret {
    /// What the fields that docker and CRI have come to; `None` when all are empty.
    ///
    /// # Errors
    /// `InvalidArgument` for an `auth` that is not base64 of `user:password`. It is not shown.
    pub fn of(user: &str, password: &str, auth: &str, identity: &str, bearer: &str) -> Result<Option<Secret>> {
        let wrong = || Error::invalid("auth is not base64 of user:password");
        if !identity.is_empty() {
            return Ok(Some(Secret::Identity(identity.to_owned())));
        }
        if !bearer.is_empty() {
            return Ok(Some(Secret::Bearer(bearer.to_owned())));
        }
        if !user.is_empty() {
            return Ok(Some(Secret::Password { user: user.to_owned(), password: password.to_owned() }));
        }
        if auth.is_empty() {
            return Ok(None);
        }
        let text = BASE64.decode(auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(wrong)?;
        let (user, password) = text.split_once(':').ok_or_else(wrong)?;
        // Docker pads with NULs.
        Ok(Some(Secret::Password { user: user.to_owned(), password: password.trim_end_matches('\0').to_owned() }))
    }

    /// Who it says one is, for messages.
    pub fn describe(&self) -> String {
        match self {
            Secret::Password { user, .. } => format!("the password of {user:?}"),
            Secret::Identity(_) => "the identity token".to_owned(),
            Secret::Bearer(_) => "the registry token".to_owned(),
        }
    }
}

/// `user:password` as HTTP and docker's files have it.
pub fn encode(user: &str, password: &str) -> String {
    BASE64.encode(format!("{user}:{password}"))
}

/// The name of a registry as references have it: of `https://index.docker.io/v1/` docker.io. `None` for what names none.
pub fn registry_name(text: &str) -> Option<(String, String)> {
    let text = text.trim();
    let (host, path) = match text.contains("://") {
        true => {
            let url = Url::parse(text).ok()?;
            (url.origin.authority(), url.path)
        }
        false => match text.split_once('/') {
            Some((host, path)) => (host.to_lowercase(), format!("/{path}")),
            None => (text.to_lowercase(), String::new()),
        },
    };
    let host = if HUB.contains(&host.as_str()) { HUB[0].to_owned() } else { host };
    // The API's version, which docker writes behind the name of its own.
    let path = path.trim_matches('/');
    let path = if matches!(path, "v1" | "v2") { "" } else { path };
    (!host.is_empty()).then(|| (host, path.to_owned()))
}

/// Where something to show may come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Candidate {
    Known(Secret),
    Helper(Helper),
}

/// Docker's `config.json`, of which `auths`, `credHelpers` and `credsStore` count.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct AuthFile {
    /// Host, path, and what is shown there.
    entries: Vec<(String, String, Secret)>,
    /// Host, and the helper that has what is shown there.
    helpers: Vec<(String, String)>,
    /// The helper of all other hosts.
    store: Option<String>,
    /// Where it was read, for messages.
    file: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawFile {
    #[serde(default)]
    auths: Option<BTreeMap<String, RawAuth>>,
    #[serde(default)]
    cred_helpers: Option<BTreeMap<String, String>>,
    #[serde(default)]
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawAuth {
    username: String,
    password: String,
    auth: String,
    identitytoken: String,
    registrytoken: String,
}

impl AuthFile {
    /// Reads the text of one. Entries that docker left empty, for a helper keeps the password, are none.
    ///
    /// # Errors
    /// `InvalidArgument` with the line or the registry, and never with what is secret.
    pub fn parse(bytes: &[u8]) -> Result<AuthFile> {
        let raw: RawFile = serde_json::from_slice(bytes).map_err(|e| wrong(&e))?;
        let named = raw.cred_helpers.unwrap_or_default().into_iter();
        Ok(AuthFile {
            helpers: named.filter_map(|(host, name)| Some((registry_name(&host)?.0, name))).collect(),
            store: raw.creds_store.filter(|name| !name.is_empty()),
            ..AuthFile::of(raw.auths.unwrap_or_default())?
        })
    }

    /// Reads what a Secret for pulls has: `.dockerconfigjson`, or with `legacy` `.dockercfg`, which is its `auths` alone. Whoever wrote a manifest
    /// has no say in which programs are started here: helpers are left out.
    ///
    /// # Errors
    /// As [`AuthFile::parse`].
    pub fn of_secret(bytes: &[u8], legacy: bool) -> Result<AuthFile> {
        match legacy {
            true => AuthFile::of(serde_json::from_slice(bytes).map_err(|e| wrong(&e))?),
            false => AuthFile::parse(bytes).map(|all| AuthFile { helpers: Vec::new(), store: None, ..all }),
        }
    }

    fn of(auths: BTreeMap<String, RawAuth>) -> Result<AuthFile> {
        let mut entries = Vec::new();
        for (name, raw) in auths {
            let secret = Secret::of(&raw.username, &raw.password, &raw.auth, &raw.identitytoken, &raw.registrytoken);
            if let (Some((host, path)), Some(secret)) = (registry_name(&name), secret.context(|| format!("{name:?}"))?)
            {
                entries.push((host, path, secret));
            }
        }
        Ok(AuthFile { entries, ..AuthFile::default() })
    }

    /// Reads a file; one that is not there has nothing in it.
    ///
    /// # Errors
    /// `InvalidArgument` for what is wrong in it, `Internal` for one that cannot be read.
    pub fn read(path: &Path) -> Result<AuthFile> {
        let Some(bytes) = text(path)? else { return Ok(AuthFile::default()) };
        let parsed = AuthFile::parse(&bytes).context(|| format!("credentials in {}", path.display()))?;
        Ok(AuthFile { file: path.display().to_string(), ..parsed })
    }

    /// What may be shown to a registry for a repository: what the helper of this registry has, the entry with the longest path that it is below,
    /// what the helper of all registries has.
    pub fn candidates(&self, host: &str, repository: &str) -> Vec<Candidate> {
        let Some((host, _)) = registry_name(host) else { return Vec::new() };
        let server = if host == HUB[0] { HUB_SERVER } else { &host };
        let helper = |name: &String| {
            Candidate::Helper(Helper { name: name.clone(), server: server.to_owned(), file: self.file.clone() })
        };
        let own = self.helpers.iter().filter(|(of, _)| *of == host).map(|(_, name)| helper(name));
        let entry = self.lookup(&host, repository).cloned().map(Candidate::Known);
        own.chain(entry).chain(self.store.iter().map(helper)).collect()
    }

    fn lookup(&self, host: &str, repository: &str) -> Option<&Secret> {
        let below = |path: &str| {
            path.is_empty()
                || repository.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let ours = self.entries.iter().filter(|(name, path, _)| *name == host && below(path));
        ours.max_by_key(|(_, path, _)| path.len()).map(|(_, _, secret)| secret)
    }
}

/// serde's own message quotes values.
fn wrong(e: &serde_json::Error) -> Error {
    Error::invalid(format!("line {}: it is not docker's config.json", e.line()))
}

/// The bytes of a file of credentials; `None` when it is not there.
///
/// # Errors
/// `Internal`, naming it; `InvalidArgument` for one that is too long.
pub fn text(path: &Path) -> Result<Option<Vec<u8>>> {
    let file = match std::fs::File::open(path) {
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        file => file.context(|| format!("open {}", path.display()))?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).context(|| format!("read {}", path.display()))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Error::invalid(format!("{} is longer than {MAX_FILE} bytes", path.display())));
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(user: &str, password: &str) -> Secret {
        Secret::Password { user: user.into(), password: password.into() }
    }

    #[test]
    fn each_way_of_writing_docker_hub_is_docker_hub() {
        for name in
            ["https://index.docker.io/v1/", "docker.io", "index.docker.io", "registry-1.docker.io", "https://docker.io"]
        {
            assert_eq!(registry_name(name), Some(("docker.io".into(), String::new())), "{name}");
        }
        assert_eq!(registry_name("r.example:5000/team/a"), Some(("r.example:5000".into(), "team/a".into())));
        assert_eq!(registry_name(""), None);
    }

    #[test]
    fn the_longest_path_wins_and_another_host_gets_nothing() {
        // "user:pass", "a:b"
        let text = br#"{"auths": {"r.example": {"auth": "dXNlcjpwYXNz"}, "r.example/team": {"auth": "YTpi"},
            "https://index.docker.io/v1/": {"username": "hub", "password": "p"}, "kept.example": {},
            "i.example": {"identitytoken": "t", "auth": "YTpi"}}}"#;
        let file = AuthFile::parse(text).expect("valid");
        assert_eq!(file.lookup("r.example", "other/x"), Some(&password("user", "pass")));
        assert_eq!(file.lookup("r.example", "team/x"), Some(&password("a", "b")));
        assert_eq!(file.lookup("r.example", "teams/x"), Some(&password("user", "pass")));
        assert_eq!(file.lookup("docker.io", "library/nginx"), Some(&password("hub", "p")));
        assert_eq!(file.lookup("i.example", "x"), Some(&Secret::Identity("t".into())));
        for none in ["r.example:5000", "kept.example", "evil-r.example", "example"] {
            assert_eq!(file.lookup(none, "team/x"), None, "{none}");
        }
    }

    #[test]
    fn the_helper_of_a_registry_comes_before_its_entry_and_that_of_all_behind_it() {
        let text = br#"{"auths": {"r.example": {"auth": "dXNlcjpwYXNz"}, "https://index.docker.io/v1/": {}},
            "credHelpers": {"r.example": "own"}, "credsStore": "all"}"#;
        let file = AuthFile::parse(text).expect("valid");
        let helper = |name: &str, server: &str| {
            Candidate::Helper(Helper { name: name.into(), server: server.into(), file: String::new() })
        };
        let known = Candidate::Known(password("user", "pass"));
        assert_eq!(
            file.candidates("r.example", "a"),
            [helper("own", "r.example"), known.clone(), helper("all", "r.example")]
        );
        assert_eq!(file.candidates("docker.io", "library/a"), [helper("all", HUB_SERVER)]);
        let secret = AuthFile::of_secret(text, false).expect("valid");
        assert_eq!(secret.candidates("r.example", "a"), std::slice::from_ref(&known), "a manifest starts no program");
        let legacy = AuthFile::of_secret(br#"{"r.example": {"auth": "dXNlcjpwYXNz"}}"#, true).expect("valid");
        assert_eq!(legacy.candidates("r.example", "a"), [known]);
    }

    #[test]
    fn nothing_secret_is_shown_when_it_is_wrong_or_printed() {
        for text in
            [&br#"{"auths": {"r.example": {"auth": "c2VjcmV0"}}}"#[..], br#"{"auths": {"r.example": {"auth": 4711}}}"#]
        {
            let e = AuthFile::parse(text).expect_err("wrong").to_string();
            assert!(!e.contains("secret") && !e.contains("c2Vj") && !e.contains("4711"), "{e}");
        }
        assert!(!format!("{:?}", password("user", "hunter2")).contains("hunter2"));
        assert_eq!(encode("user", "pass"), "dXNlcjpwYXNz");
    }
}
