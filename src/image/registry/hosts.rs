//! Where a registry's images are fetched: itself, or what `hosts.toml` says, in the layout of containerd's `certs.d`.
//!
//! ```text
//! <image.hosts_dir>/docker.io/hosts.toml                     of one registry; a port as host:5000 or host_5000_
//! <image.hosts_dir>/_default/hosts.toml                      of every other one
//!
//! server = "https://registry-1.docker.io"                    the registry itself, tried last; absent: by its name
//! [host."http://127.0.0.1:5000"]                             mirrors, tried in the order of the file
//!   capabilities = ["pull", "resolve"]                       pull: by digest; resolve: what a tag is at this moment
//!   ca = "ca.crt"                                            a file or a list, relative to the directory of hosts.toml
//!   client = [["client.crt", "client.key"]]                  or one file with both, or a list of such
//!   skip_verify = false                                      believe any certificate
//!   override_path = false                                    the URL's path is the API's root: no /v2 is appended
//!   dial_timeout = "1s"
//!   [host."http://127.0.0.1:5000".header]
//!     x-key = "value"                                        or a list
//! ```
//! The keys of a host apply to the server when they stand at the top. Unlike containerd's, an unknown key is an error.

use super::tls::TlsOptions;
use super::url::{Url, is_loopback};
use crate::error::{Context, Error, Result};
use http::{HeaderName, HeaderValue};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::Spanned;

/// Bytes of a hosts.toml, at most.
const MAX_FILE: u64 = 256 << 10;
/// Mirrors of a registry, at most.
const MAX_MIRRORS: usize = 64;
/// Where Docker Hub's API is.
const HUB: (&str, &str) = ("docker.io", "https://registry-1.docker.io");
/// How long a connection may take, unless `dial_timeout` says so: per address, as in containerd.
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);

/// A place to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The root of the API, `https://host/v2`.
    pub base: Url,
    /// May say what a tag is.
    pub resolve: bool,
    /// May give what has a digest.
    pub pull: bool,
    /// Not the registry itself: its credentials are not for it.
    pub mirror: bool,
    /// Only to be asked when the endpoint before turned out not to speak TLS.
    pub plain: bool,
    pub tls: TlsOptions,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub dial_timeout: Duration,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    server: Option<String>,
    #[serde(default)]
    host: BTreeMap<Spanned<String>, RawHost>,
    // serde cannot flatten and deny unknown fields.
    #[serde(default)]
    capabilities: Option<Vec<String>>,
    #[serde(default)]
    ca: OneOrMany,
    #[serde(default)]
    client: Option<RawClient>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    override_path: bool,
    #[serde(default)]
    header: BTreeMap<String, OneOrMany>,
    #[serde(default)]
    dial_timeout: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawHost {
    capabilities: Option<Vec<String>>,
    ca: OneOrMany,
    client: Option<RawClient>,
    skip_verify: bool,
    override_path: bool,
    header: BTreeMap<String, OneOrMany>,
    dial_timeout: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(PathBuf),
    Many(Vec<PathBuf>),
}

impl Default for OneOrMany {
    fn default() -> Self {
        OneOrMany::Many(Vec::new())
    }
}

impl OneOrMany {
    fn all(self) -> Vec<PathBuf> {
        match self {
            OneOrMany::One(one) => vec![one],
            OneOrMany::Many(many) => many,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawClient {
    File(PathBuf),
    Files(Vec<RawPair>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawPair {
    File(PathBuf),
    Pair(PathBuf, PathBuf),
}

/// The endpoints of a registry, in the order in which they are asked.
///
/// # Errors
/// `InvalidArgument` for what is wrong in its hosts.toml, with the file.
pub fn endpoints(hosts_dir: &Path, host: &str) -> Result<Vec<Endpoint>> {
    let with_port = host.rsplit_once(':').map(|(name, port)| format!("{name}_{port}_"));
    for name in with_port.iter().map(String::as_str).chain([host, "_default"]) {
        let dir = hosts_dir.join(name);
        if !dir.is_dir() {
            continue;
        }
        let path = dir.join("hosts.toml");
        let file = match std::fs::File::open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            file => file.context(|| format!("open {}", path.display()))?,
        };
        let mut text = String::new();
        file.take(MAX_FILE).read_to_string(&mut text).context(|| format!("read {}", path.display()))?;
        return parse(&text, &dir, host).context(|| path.display().to_string());
    }
    own(host, RawHost::default(), Path::new(""))
}

/// What helps where a registry cannot be reached from here: a mirror, and where it is said. Nothing for this machine's own.
pub fn remedy(hosts_dir: &Path, host: &str) -> String {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    if is_loopback(name.trim_start_matches('[').trim_end_matches(']')) {
        return String::new();
    }
    let path = hosts_dir.join(host).join("hosts.toml");
    format!("if a mirror of {host} can be reached, write [host.\"https://MIRROR\"] into {}", path.display())
}

/// The endpoints that a hosts.toml in `dir` gives a registry.
pub(super) fn parse(text: &str, dir: &Path, host: &str) -> Result<Vec<Endpoint>> {
    let raw: RawFile = toml::from_str(text).map_err(|e| {
        let line = 1 + text[..e.span().map_or(0, |span| span.start)].matches('\n').count();
        Error::invalid(format!("line {line}: {}", e.message()))
    })?;
    if raw.host.len() > MAX_MIRRORS {
        return Err(Error::invalid(format!("{} mirrors, at most {MAX_MIRRORS}", raw.host.len())));
    }
    let mut hosts: Vec<(Spanned<String>, RawHost)> = raw.host.into_iter().collect();
    hosts.sort_by_key(|(url, _)| url.span().start);
    let mut all = Vec::new();
    for (url, host) in hosts {
        let url = url.into_inner();
        all.push(endpoint(&url, host, dir, true).context(|| format!("host {url:?}"))?);
    }
    let top = RawHost {
        capabilities: raw.capabilities,
        ca: raw.ca,
        client: raw.client,
        skip_verify: raw.skip_verify,
        override_path: raw.override_path,
        header: raw.header,
        dial_timeout: raw.dial_timeout,
    };
    match raw.server.filter(|server| !server.is_empty()) {
        Some(server) => all.push(endpoint(&server, top, dir, false).context(|| format!("server {server:?}"))?),
        None => all.extend(own(host, top, dir)?),
    }
    Ok(all)
}

/// The registry itself, found by its name: over https, and on this machine over http if that is what it speaks.
fn own(host: &str, raw: RawHost, dir: &Path) -> Result<Vec<Endpoint>> {
    let url = if host == HUB.0 { HUB.1.to_owned() } else { format!("https://{host}") };
    let https = endpoint(&url, raw, dir, false)?;
    let mut all = vec![https.clone()];
    if is_loopback(https.base.origin.name()) {
        let base = Url::parse(&format!("http://{host}/v2"))?;
        all.push(Endpoint { base, plain: true, tls: TlsOptions::default(), ..https });
    }
    Ok(all)
}

fn endpoint(url: &str, raw: RawHost, dir: &Path, mirror: bool) -> Result<Endpoint> {
    let base = Url::parse(&if url.contains("://") { url.to_owned() } else { format!("https://{url}") })?;
    let bare = base.path.trim_end_matches('/');
    let path = if raw.override_path || bare.ends_with("/v2") { bare.to_owned() } else { format!("{bare}/v2") };
    let capabilities = raw.capabilities.unwrap_or_else(|| ["pull", "resolve"].map(str::to_owned).to_vec());
    if let Some(unknown) = capabilities.iter().find(|c| !["pull", "resolve", "push"].contains(&c.as_str())) {
        return Err(Error::invalid(format!("capability {unknown:?} is not pull, resolve or push")));
    }
    let has = |name: &str| capabilities.iter().any(|c| c == name);
    let (resolve, pull) = (has("resolve"), has("pull"));
    let mut headers = Vec::new();
    for (name, values) in raw.header {
        let bad = || Error::invalid(format!("header {name:?} is not one of HTTP"));
        let name = HeaderName::try_from(&name).map_err(|_| bad())?;
        for value in values.all() {
            let value = HeaderValue::try_from(value.to_string_lossy().as_ref()).map_err(|_| bad())?;
            headers.push((name.clone(), value));
        }
    }
    let client = match raw.client {
        None => Vec::new(),
        Some(RawClient::File(file)) => vec![RawPair::File(file)],
        Some(RawClient::Files(files)) => files,
    };
    let tls = TlsOptions {
        ca: raw.ca.all().into_iter().map(|file| dir.join(file)).collect(),
        client: client
            .into_iter()
            .map(|pair| match pair {
                RawPair::File(both) => (dir.join(&both), dir.join(both)),
                RawPair::Pair(certificate, key) => (dir.join(certificate), dir.join(key)),
            })
            .collect(),
        skip_verify: raw.skip_verify,
    };
    let dial_timeout = match raw.dial_timeout {
        None => DIAL_TIMEOUT,
        Some(text) => dial_timeout(&text)?,
    };
    let base = Url { path, ..base };
    Ok(Endpoint { base, resolve, pull, mirror, plain: false, tls, headers, dial_timeout })
}

/// One number and a unit, of those that Go writes.
fn dial_timeout(text: &str) -> Result<Duration> {
    let units = [("ms", 1), ("s", 1000), ("m", 60_000)];
    let parsed = units.iter().find_map(|(unit, ms)| {
        let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
        number.checked_mul(*ms).map(Duration::from_millis)
    });
    let wrong = || Error::invalid(format!("dial_timeout {text:?} is not like 500ms, 3s or 1m"));
    parsed.filter(|t| !t.is_zero() && *t <= Duration::from_secs(3600)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bases(all: &[Endpoint]) -> Vec<String> {
        all.iter().map(|e| e.base.to_string()).collect()
    }

    #[test]
    fn without_a_file_a_registry_is_where_its_name_says() {
        let own = |host| bases(&endpoints(Path::new("/nonexistent"), host).expect(host));
        assert_eq!(own("docker.io"), ["https://registry-1.docker.io/v2"]);
        assert_eq!(own("r.example:5000"), ["https://r.example:5000/v2"]);
        assert_eq!(own("localhost:5000"), ["https://localhost:5000/v2", "http://localhost:5000/v2"]);
        assert_eq!(own("[::1]:5000"), ["https://[::1]:5000/v2", "http://[::1]:5000/v2"]);
    }

    #[test]
    fn mirrors_come_in_the_order_of_the_file_and_the_server_last() {
        let text = r#"
            server = "registry.example"
            skip_verify = true
            [host."https://z.example/proxy"]
              capabilities = ["pull"]
              ca = "ca.crt"
              client = [["c.crt", "c.key"], "both.pem"]
              dial_timeout = "200ms"
              [host."https://z.example/proxy".header]
                x-key = ["a", "b"]
            [host."http://a.example/v2/team"]
              override_path = true
        "#;
        let all = parse(text, Path::new("/d"), "docker.io").expect("valid");
        assert_eq!(
            bases(&all),
            ["https://z.example/proxy/v2", "http://a.example/v2/team", "https://registry.example/v2"]
        );
        let z = &all[0];
        assert_eq!((z.mirror, z.resolve, z.pull, z.headers.len()), (true, false, true, 2));
        assert_eq!(z.dial_timeout, Duration::from_millis(200));
        assert_eq!(z.tls.ca, [PathBuf::from("/d/ca.crt")]);
        let both = PathBuf::from("/d/both.pem");
        assert_eq!(z.tls.client, [("/d/c.crt".into(), "/d/c.key".into()), (both.clone(), both)]);
        assert!(!z.tls.skip_verify && all[2].tls.skip_verify && !all[2].mirror);
    }

    #[test]
    fn the_most_specific_directory_is_read() {
        let dir = tempfile::tempdir().expect("tempdir");
        for (name, server) in [("r.example_5000_", "port"), ("r.example", "bare"), ("_default", "default")] {
            std::fs::create_dir(dir.path().join(name)).expect("mkdir");
            std::fs::write(dir.path().join(name).join("hosts.toml"), format!("server = \"https://{server}\""))
                .expect("write");
        }
        for (host, server) in [("r.example:5000", "port"), ("r.example", "bare"), ("other", "default")] {
            assert_eq!(bases(&endpoints(dir.path(), host).expect(host)), [format!("https://{server}/v2")]);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, words) in [
            ("\nserver = 1", "line 2"),
            ("\n[host.\"https://a\"]\nskip_verfy = true", "skip_verfy"),
            ("[host.\"ftp://a\"]", "https:// or http://"),
            ("capabilities = [\"fetch\"]", "\"fetch\""),
            ("dial_timeout = \"soon\"", "soon"),
            ("[header]\n\"x y\" = \"1\"", "x y"),
        ] {
            let e = parse(text, Path::new("/d"), "docker.io").expect_err(text).to_string();
            assert!(e.contains(words), "{words}: {e}");
        }
    }
}
