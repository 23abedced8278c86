//! Settings: the defaults, the file `/etc/podwright/config.toml`, the environment and the flags, and which of them won.
//!
//! A flag wins over the environment (`PODWRIGHT_CGROUP_ROOT` for `cgroup.root`), which wins over the file, which wins over the
//! default. Nothing is ignored: an unknown key is an error with its line, and so is a key of the documented configuration
//! that this version does not honour yet, unless it has its default value (a file may then be written ahead of time).
//! A wrong value is an error even where another layer overrides it: it would surface on the day the override goes.
//!
//! Bounds of loops, queues and inputs are not settings; each is a constant beside what it bounds.

pub mod cgroup;
mod file;
pub mod network;
pub mod nri;
pub mod runtimes;

use crate::error::{Error, Result, did_you_mean};
pub use cgroup::CgroupDriver;
use network::{NetworkMode, NetworkSettings};
use runtimes::RuntimeSetting;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;
use toml::de::{DeTable, DeValue};

/// The file that is read when no other is named. It may be absent; a file that was named may not.
pub const DEFAULT_FILE: &str = "/etc/podwright/config.toml";
/// Every variable of the environment that sets a key starts so.
pub const ENV_PREFIX: &str = "PODWRIGHT_";
/// Names the file, as `--config` does.
pub const ENV_FILE: &str = "PODWRIGHT_CONFIG";
/// The longest `cgroup.root`, in bytes: it stands in front of every cgroup path, and those end at PATH_MAX (4096).
const MAX_CGROUP_ROOT_BYTES: usize = 512;

/// More layers at once would be more processes that unpack than a machine has use for.
const MAX_PARALLEL_LAYERS: usize = 32;
/// Longer than this nobody waits for a byte.
const MAX_NO_PROGRESS: Duration = Duration::from_secs(3600);

/// What a key's value must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// An absolute path without `..`.
    Directory,
    /// A cgroup below the mount point of cgroup v2, written with a leading slash.
    Cgroup,
    /// One of these words, or one of those that a later version will know.
    Word {
        now: &'static [&'static str],
        later: &'static [&'static str],
    },
    Bool,
    /// A whole number from 1.
    Count {
        most: usize,
    },
    /// A number and a unit: `500ms`, `90s`, `5m`.
    Time {
        most: Duration,
    },
    /// Nothing, an IP address and port, or a unix socket's absolute path.
    Listen,
    /// A host with an optional port, as image names start with one; what reads those checks the rest.
    Registry,
    /// A name of an interface.
    Interface,
    /// Nothing, or a range of addresses.
    Subnet {
        v6: bool,
    },
    /// Nothing, or bytes.
    Mtu,
    /// Absolute paths: in the file a list, elsewhere with commas between them.
    Directories,
    /// An IP address and port.
    Address,
    /// Nothing, or an absolute path without `..`.
    File,
    /// Not honoured by this version, so only its default (if it is decided) is accepted.
    Later,
}

/// One key of the configuration.
#[derive(Debug, PartialEq, Eq)]
pub struct Key {
    /// As it is written in the file, `table.key`.
    pub name: &'static str,
    /// As text; empty where a later version decides it.
    pub default: &'static str,
    /// What it is for, one line.
    pub about: &'static str,
    shape: Shape,
}

impl Key {
    const fn new(name: &'static str, default: &'static str, shape: Shape, about: &'static str) -> Key {
        Key { name, default, about, shape }
    }

    const fn later(name: &'static str, default: &'static str) -> Key {
        Key { name, default, about: "of a later version", shape: Shape::Later }
    }

    /// The variable of the environment that sets it.
    pub fn env(&self) -> String {
        format!("{ENV_PREFIX}{}", self.name.to_uppercase().replace('.', "_"))
    }

    /// Whether this version does what the key says.
    pub fn honoured(&self) -> bool {
        self.shape != Shape::Later
    }
}

const LEVELS: &[&str] = &["off", "error", "warn", "info", "debug", "trace"];

/// Every key, in the order in which `podwright config` shows them.
pub const KEYS: &[Key] = &[
    Key::new(
        "root",
        "/var/lib/podwright",
        Shape::Directory,
        "what survives a reboot: images, writable layers, volumes",
    ),
    Key::new("state", "/run/podwright", Shape::Directory, "what does not: records and sockets of running pods"),
    Key::new(
        "log.level",
        "warn",
        Shape::Word { now: LEVELS, later: &[] },
        "the least important message that is logged",
    ),
    Key::new("log.format", "text", Shape::Word { now: &["text", "json"], later: &[] }, "of the log on stderr"),
    Key::new(
        "cgroup.driver",
        "cgroupfs",
        Shape::Word { now: CgroupDriver::WORDS, later: &[] },
        "who makes the cgroups: podwright itself, or systemd when it is asked; a kubelet takes over what is said here",
    ),
    Key::new("cgroup.root", "/podwright", Shape::Cgroup, "the cgroup that podwright's pods are below"),
    Key::new(
        "cgroup.allow_unenforced",
        "false",
        Shape::Bool,
        "warn of a limit that cannot be enforced instead of refusing",
    ),
    Key::new("cri.socket", "/run/podwright/podwright.sock", Shape::Directory, "where the daemon serves CRI"),
    Key::new(
        "metrics.address",
        "",
        Shape::Listen,
        "where the daemon serves /metrics: 127.0.0.1:9338, or a unix socket's path",
    ),
    Key::new(
        "cri.stream_address",
        "127.0.0.1:0",
        Shape::Address,
        "where the daemon serves exec, attach and port-forward; port 0 is any that is free",
    ),
    Key::new("cri.stream_tls_cert", "", Shape::File, "certificates for that, in PEM: then it is https"),
    Key::new("cri.stream_tls_key", "", Shape::File, "their key, in PEM"),
    Key::new(
        "image.default_registry",
        "docker.io",
        Shape::Registry,
        "what `nginx` is of; a mirror of docker.io belongs into hosts.toml instead",
    ),
    Key::new(
        "image.hosts_dir",
        "/etc/podwright/certs.d",
        Shape::Directory,
        "mirrors and certificates of registries, REGISTRY/hosts.toml",
    ),
    Key::new(
        "image.auth_file",
        "/etc/podwright/auth.json",
        Shape::Directory,
        "credentials of registries, as docker's config.json; `podwright login` writes it",
    ),
    Key::new(
        "image.parallel_layers",
        "4",
        Shape::Count { most: MAX_PARALLEL_LAYERS },
        "layers of one image that are fetched at once",
    ),
    Key::new(
        "image.no_progress_timeout",
        "1m",
        Shape::Time { most: MAX_NO_PROGRESS },
        "how long a registry may send nothing before it is asked again",
    ),
    Key::new(
        "network.mode",
        "auto",
        Shape::Word { now: NetworkMode::WORDS, later: &[] },
        "what pods are connected to; auto: CNI when a conflist is there, else the bridge",
    ),
    Key::new("network.bridge", "podwright0", Shape::Interface, "the built-in bridge, and its nftables table"),
    Key::new("network.subnet4", "10.118.0.0/16", Shape::Subnet { v6: false }, "IPv4 addresses of pods on the bridge"),
    Key::new("network.subnet6", "fd70:6f64:7772::/64", Shape::Subnet { v6: true }, "their IPv6 addresses"),
    Key::new("network.mtu", "", Shape::Mtu, "of pods on the bridge; empty: that of the host's default route"),
    Key::new("network.cni_conf_dir", "/etc/cni/net.d", Shape::Directory, "where conflists of CNI are"),
    Key::new("network.netns_dir", "/run/netns", Shape::Directory, "where network namespaces of pods on CNI are bound"),
    Key::new(
        "network.cni_bin_dirs",
        "/opt/cni/bin,/usr/lib/cni",
        Shape::Directories,
        "where plugins of CNI are looked for",
    ),
    Key::new("checkpoint.criu", "", Shape::File, "the program that checkpoints containers; empty: criu of PATH"),
    Key::new("cdi.spec_dirs", "/etc/cdi,/var/run/cdi", Shape::Directories, "specifications of devices; later ones win"),
    Key::new(
        "selinux.enable",
        "true",
        Shape::Bool,
        "give pods labels where the kernel has SELinux and its policy knows containers",
    ),
    Key::new("nri.enable", "true", Shape::Bool, "let plugins of the Node Resource Interface connect"),
    Key::new("nri.socket", "/var/run/nri/nri.sock", Shape::Directory, "where they do"),
    Key::new("nri.request_timeout", "2s", Shape::Time { most: nri::MAX_TIMEOUT }, "how long one may take to answer"),
    Key::new("nri.registration_timeout", "5s", Shape::Time { most: nri::MAX_TIMEOUT }, "and to register"),
    Key::later("agent.manifests", ""),
    Key::later("agent.manifest_url", ""),
    Key::later("agent.kubelet_config", ""),
    Key::later("agent.node_name", ""),
    Key::later("agent.node_labels", ""),
    Key::later("agent.node_taints", ""),
];

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// [`Key::default`].
    Default,
    /// A line, from 1, of a file.
    File { path: PathBuf, line: usize },
    /// A variable of the environment.
    Env(String),
    /// A flag of the command line, with its dashes.
    Flag(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Default => f.write_str("default"),
            Source::File { path, line } => write!(f, "{}:{line}", path.display()),
            Source::Env(name) => write!(f, "environment {name}"),
            Source::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// What the command line says about settings; everything else of it is no concern of this module.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// `--config`.
    pub file: Option<PathBuf>,
    /// Key, flag and value, for each that was given.
    pub values: Vec<(&'static str, &'static str, String)>,
}

/// The settings of the engine, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Survives reboots; absolute.
    pub root: PathBuf,
    /// Gone after a reboot; absolute.
    pub state: PathBuf,
    /// The cgroup that pods are below, relative to the mount point of cgroup v2, with a leading slash and none at the end.
    pub cgroup_root: PathBuf,
    pub cgroup_driver: CgroupDriver,
    /// Limits that cannot be enforced are warnings in a pod's status instead of refusals.
    pub allow_unenforced: bool,
    pub image: ImageSettings,
    pub network: NetworkSettings,
    /// Paths of other OCI runtimes by the names of their handlers.
    pub runtimes: BTreeMap<String, PathBuf>,
}

/// The settings of pulling, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSettings {
    pub hosts_dir: PathBuf,
    pub auth_file: PathBuf,
    pub parallel_layers: usize,
    pub no_progress_timeout: Duration,
}

/// The effective configuration: for each key that was set or is honoured, its value and where that came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The file that was read, `None` when there was none.
    pub file: Option<PathBuf>,
    entries: Vec<Entry>,
    runtimes: Vec<RuntimeSetting>,
}

/// One key's effective value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: &'static Key,
    pub value: String,
    pub source: Source,
}

impl Config {
    /// Reads every layer. `env` is the whole environment.
    ///
    /// # Errors
    /// `InvalidArgument` for anything unknown, not honoured yet or wrong, naming flag, variable or line;
    /// `NotFound` for a file that was named and is not there.
    pub fn load(flags: &Flags, env: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Config> {
        let env = variables(env)?;
        let named = flags.file.clone().or_else(|| env.iter().find(|(name, _)| name == ENV_FILE).map(|(_, v)| v.into()));
        let path = named.clone().unwrap_or_else(|| DEFAULT_FILE.into());
        let text = file::read(&path, named.is_some())?;

        let mut config = Config { file: text.is_some().then(|| path.clone()), entries: vec![], runtimes: vec![] };
        for key in KEYS.iter().filter(|key| key.honoured()) {
            config.entries.push(Entry { key, value: key.default.to_owned(), source: Source::Default });
        }
        for entry in parse_file(&path, text.as_deref().unwrap_or_default(), &mut config.runtimes)? {
            config.set(entry)?;
        }
        for (name, value) in env.iter().filter(|(name, _)| name != ENV_FILE) {
            if let Some(key) = KEYS.iter().find(|key| key.env() == *name) {
                config.set(Entry { key, value: value.clone(), source: Source::Env(name.clone()) })?;
            }
        }
        for (name, flag, value) in &flags.values {
            let key = KEYS.iter().find(|key| key.name == *name);
            let key = key.ok_or_else(|| Error::internal(format!("flag {flag} sets the unknown key {name}")))?;
            config.set(Entry { key, value: value.clone(), source: Source::Flag(flag) })?;
        }
        let (root, state) = (config.value("root"), config.value("state"));
        if Path::new(root) == Path::new(state) {
            return Err(Error::invalid(format!(
                "root and state are both {root}: what ends with a reboot needs its own directory"
            )));
        }
        if config.value("network.subnet4").is_empty() && config.value("network.subnet6").is_empty() {
            return Err(Error::invalid("network.subnet4 and network.subnet6 are both empty: a pod needs an address"));
        }
        Ok(config)
    }

    /// Puts a checked value over that of the layers below.
    fn set(&mut self, entry: Entry) -> Result<()> {
        check(entry.key, &entry.value).map_err(|why| {
            Error::invalid(format!("{}: {} = {:?}: {why}", entry.source, entry.key.name, entry.value))
        })?;
        match self.entries.iter_mut().find(|known| known.key == entry.key) {
            Some(known) => *known = entry,
            None => self.entries.push(entry),
        }
        Ok(())
    }

    /// The effective values: every honoured key, then those of later versions that were set (to their default).
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Other OCI runtimes, `[runtimes.NAME]` of the file.
    pub fn runtimes(&self) -> &[RuntimeSetting] {
        &self.runtimes
    }

    /// The effective value of an honoured key, as text.
    pub fn value(&self, name: &str) -> &str {
        self.entries.iter().find(|entry| entry.key.name == name).map_or("", |entry| &entry.value)
    }

    /// Whether pods get labels where the host has SELinux.
    pub fn labels_with_selinux(&self) -> bool {
        is_true(self.value("selinux.enable"))
    }

    /// What the engine takes.
    pub fn settings(&self) -> Settings {
        Settings {
            root: self.value("root").into(),
            state: self.value("state").into(),
            cgroup_root: self.value("cgroup.root").into(),
            cgroup_driver: CgroupDriver::of(self.value("cgroup.driver")),
            allow_unenforced: is_true(self.value("cgroup.allow_unenforced")),
            image: ImageSettings {
                hosts_dir: self.value("image.hosts_dir").into(),
                auth_file: self.value("image.auth_file").into(),
                // Both were checked; the least is what they would be without a check.
                parallel_layers: self.value("image.parallel_layers").parse().unwrap_or(1),
                no_progress_timeout: time(self.value("image.no_progress_timeout")).unwrap_or(MAX_NO_PROGRESS),
            },
            network: NetworkSettings {
                mode: NetworkMode::of(self.value("network.mode")),
                bridge: self.value("network.bridge").to_owned(),
                // All were checked; what does not parse is empty.
                subnet4: self.value("network.subnet4").parse().ok(),
                subnet6: self.value("network.subnet6").parse().ok(),
                mtu: self.value("network.mtu").parse().ok(),
                cni_conf_dir: self.value("network.cni_conf_dir").into(),
                netns_dir: self.value("network.netns_dir").into(),
                cni_bin_dirs: self.value("network.cni_bin_dirs").split(',').map(PathBuf::from).collect(),
            },
            runtimes: self.runtimes.iter().map(|runtime| (runtime.name.clone(), runtime.path.clone())).collect(),
        }
    }
}

/// The variables that are ours. One that is nearly ours is refused; one that is not at all belongs to somebody else
/// (`PODWRIGHT_FAULT`, or `PODWRIGHT_SERVICE_HOST`, which Kubernetes sets in every pod beside a Service of that name).
fn variables(env: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Vec<(String, String)>> {
    let mut ours = vec![];
    let known: Vec<String> = KEYS.iter().map(Key::env).chain([ENV_FILE.to_owned()]).collect();
    for (name, value) in env {
        let Some(name) = name.to_str().filter(|name| name.starts_with(ENV_PREFIX)) else { continue };
        if known.iter().any(|k| k == name) {
            let value = value.into_string();
            ours.push((
                name.to_owned(),
                value.map_err(|_| Error::invalid(format!("environment {name} is not UTF-8")))?,
            ));
            continue;
        }
        let rest = known.iter().map(|k| &k[ENV_PREFIX.len()..]);
        if let Some(meant) = did_you_mean(&name[ENV_PREFIX.len()..], rest) {
            let message = format!("environment {name} sets nothing; did you mean {ENV_PREFIX}{meant}?");
            return Err(Error::invalid(message));
        }
    }
    Ok(ours)
}

/// Every value that the file sets, with its line; those of `runtimes` by themselves, for the administrator chooses their names.
fn parse_file(path: &Path, text: &str, others: &mut Vec<RuntimeSetting>) -> Result<Vec<Entry>> {
    let document = DeTable::parse(text).map_err(|e| {
        let line = line_of(text, e.span().map_or(0, |span| span.start));
        Error::invalid(format!("{}:{line}: {}", path.display(), e.message()))
    })?;
    let mut entries = vec![];
    let mut tables = vec![(String::new(), document.get_ref())];
    // Not deeper than the known keys: a table is entered only when a known key is below it.
    while let Some((prefix, table)) = tables.pop() {
        for (key, value) in table {
            let name = format!("{prefix}{}", key.get_ref());
            let source = Source::File { path: path.to_owned(), line: line_of(text, key.span().start) };
            let below = format!("{name}.");
            if name == "runtimes" {
                let at = |offset| Source::File { path: path.to_owned(), line: line_of(text, offset) };
                others.extend(runtimes::parse(value.get_ref(), key.span().start, at)?);
                continue;
            }
            if let Some(key) = KEYS.iter().find(|key| key.name == name) {
                let value =
                    text_of(key, value.get_ref()).map_err(|why| Error::invalid(format!("{source}: {name}: {why}")))?;
                entries.push(Entry { key, value, source });
                continue;
            }
            match value.get_ref() {
                DeValue::Table(inner) if KEYS.iter().any(|key| key.name.starts_with(&below)) => {
                    tables.push((below, inner))
                }
                DeValue::Table(_) => return Err(unknown(&source, "table", &name, tables_known())),
                _ => return Err(unknown(&source, "key", &name, KEYS.iter().map(|key| key.name))),
            }
        }
    }
    Ok(entries)
}

fn tables_known() -> impl Iterator<Item = &'static str> {
    KEYS.iter().filter_map(|key| key.name.split_once('.')).map(|(table, _)| table)
}

fn unknown<'a>(source: &Source, what: &str, name: &str, known: impl IntoIterator<Item = &'a str>) -> Error {
    // A key in the wrong table is as near as one with a slip in it.
    let same_last = |key: &&Key| key.name.rsplit('.').next() == name.rsplit('.').next();
    let meant = did_you_mean(name, known).or_else(|| KEYS.iter().find(same_last).map(|key| key.name));
    let remedy = match meant {
        Some(meant) => format!("did you mean {meant}?"),
        None => "`podwright config` lists the keys".to_owned(),
    };
    Error::invalid(format!("{source}: unknown {what} {name}; {remedy}"))
}

/// The line, from 1, that the byte at `offset` is on.
fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|b| *b == b'\n').count()
}

/// A value of the file as text, if it has the type that the key wants.
fn text_of(key: &Key, value: &DeValue<'_>) -> Result<String, String> {
    let wrong = |wanted: &str| Err(format!("is {}, must be {wanted}", with_article(value.type_str())));
    match (key.shape, value) {
        (Shape::Bool, DeValue::Boolean(on)) => Ok(on.to_string()),
        (Shape::Bool, _) => wrong("true or false"),
        (Shape::Count { .. }, DeValue::Integer(number)) => Ok(number.as_str().to_owned()),
        (Shape::Count { .. }, _) => wrong("a number"),
        (Shape::Mtu, DeValue::Integer(number)) => Ok(number.as_str().to_owned()),
        (Shape::Directories, DeValue::Array(_)) | (Shape::Later, _) => Ok(flat(value)),
        (_, DeValue::String(text)) => Ok(text.to_string()),
        (_, _) => wrong("a string"),
    }
}

fn with_article(noun: &str) -> String {
    let article = if noun.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {noun}")
}

/// Any value as the text that a default is written in: lists with commas, an empty one as nothing.
fn flat(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Boolean(on) => on.to_string(),
        DeValue::Integer(number) => number.as_str().to_owned(),
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(items) => items.iter().map(|item| flat(item.get_ref())).collect::<Vec<_>>().join(","),
        DeValue::Table(table) => {
            table.iter().map(|(k, v)| format!("{}={}", k.get_ref(), flat(v.get_ref()))).collect::<Vec<_>>().join(",")
        }
    }
}

/// A number and a unit.
fn time(text: &str) -> Option<Duration> {
    let units = [("ms", 1), ("s", 1000), ("m", 60_000)];
    units.iter().find_map(|(unit, ms)| {
        let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
        number.checked_mul(*ms).map(Duration::from_millis)
    })
}

fn is_true(text: &str) -> bool {
    matches!(text, "true" | "1")
}

/// Whether `value` may be the key's.
fn check(key: &Key, value: &str) -> Result<(), String> {
    match key.shape {
        Shape::Directory => check_directory(value),
        Shape::Cgroup => check_cgroup(value),
        Shape::Registry if !value.is_empty() && !value.contains(['/', '@', ' ']) => Ok(()),
        Shape::Registry => Err("must be a registry like docker.io or registry.example:5000".into()),
        Shape::Listen if value.is_empty() || value.parse::<SocketAddr>().is_ok() => Ok(()),
        Shape::Listen if value.starts_with('/') => check_directory(value),
        Shape::Listen => Err("must be an IP address and port, or a unix socket's absolute path".into()),
        Shape::Address if value.parse::<SocketAddr>().is_ok() => Ok(()),
        Shape::Address => Err("must be an IP address and port".into()),
        Shape::File if value.is_empty() => Ok(()),
        Shape::File => check_directory(value),
        Shape::Bool if is_true(value) || matches!(value, "false" | "0") => Ok(()),
        Shape::Bool => Err("must be true or false".into()),
        Shape::Count { most } if value.parse().is_ok_and(|n| (1..=most).contains(&n)) => Ok(()),
        Shape::Count { most } => Err(format!("must be a whole number from 1 to {most}")),
        Shape::Time { most } if time(value).is_some_and(|t| !t.is_zero() && t <= most) => Ok(()),
        Shape::Time { most } => Err(format!("must be like 500ms, 90s or 5m, and at most {} s", most.as_secs())),
        Shape::Interface => network::check_interface(value),
        Shape::Subnet { v6 } => network::check_subnet(value, v6),
        Shape::Mtu => network::check_mtu(value),
        Shape::Directories => network::check_directories(value, check_directory),
        Shape::Word { now, .. } if now.contains(&value) => Ok(()),
        Shape::Word { now, later } if later.contains(&value) => {
            Err(format!("not honoured by this version, which has {}", now.join(", ")))
        }
        Shape::Word { now, .. } => {
            let meant = did_you_mean(value, now.iter().copied()).map(|word| format!("; did you mean {word}?"));
            Err(format!("must be one of {}{}", now.join(", "), meant.unwrap_or_default()))
        }
        Shape::Later if value == key.default => Ok(()),
        Shape::Later if key.default.is_empty() => Err("not honoured by this version; remove it".into()),
        Shape::Later => Err(format!("not honoured by this version, which behaves as with {:?}", key.default)),
    }
}

fn check_directory(value: &str) -> Result<(), String> {
    let path = Path::new(value);
    if !path.is_absolute() {
        return Err("must be an absolute path".into());
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err("must not contain ..".into());
    }
    if path.parent().is_none() {
        return Err("must be a directory of podwright's own, not /".into());
    }
    if value.chars().any(char::is_control) {
        return Err("must not contain control characters".into());
    }
    Ok(())
}

/// A cgroup's path goes into files and messages of others, so its grammar is small.
fn check_cgroup(value: &str) -> Result<(), String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'@' | b':');
    let part = |part: &str| !part.is_empty() && part != "." && part != ".." && part.bytes().all(plain);
    if value.len() > MAX_CGROUP_ROOT_BYTES {
        return Err(format!("is longer than {MAX_CGROUP_ROOT_BYTES} bytes"));
    }
    match value.strip_prefix('/') {
        Some(rest) if rest.split('/').all(part) => Ok(()),
        Some(_) => {
            Err("must be a path like /podwright of letters, digits and . - _ @ : without empty parts or ..".into())
        }
        None => Err("must start with /, the mount point of cgroup v2".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_file(text: &str) -> Result<Vec<Entry>> {
        let mut runtimes = vec![];
        parse_file(Path::new("c.toml"), text, &mut runtimes).and_then(|entries| {
            let mut config = Config { file: None, entries: vec![], runtimes };
            entries.into_iter().try_for_each(|entry| config.set(entry))?;
            Ok(config.entries)
        })
    }

    fn refusal(text: &str) -> String {
        with_file(text).expect_err("it must be refused").to_string()
    }

    #[test]
    fn every_default_of_this_version_passes_its_own_check() {
        for key in KEYS {
            assert_eq!(check(key, key.default), Ok(()), "{}", key.name);
        }
    }

    #[test]
    fn a_value_of_the_file_knows_its_line() {
        let entries = with_file("# ours\nroot = \"/a\"\n\n[cgroup]\nallow_unenforced = true\n").expect("valid");
        let lines: Vec<_> = entries.iter().map(|e| (e.key.name, e.value.as_str(), e.source.to_string())).collect();
        assert_eq!(
            lines,
            [("root", "/a", "c.toml:2".to_owned()), ("cgroup.allow_unenforced", "true", "c.toml:5".to_owned())]
        );
    }

    #[test]
    fn what_is_unknown_is_refused_with_its_line_and_the_likely_word() {
        assert_eq!(refusal("\nrot = \"/a\""), "c.toml:2: unknown key rot; did you mean root?");
        assert_eq!(
            refusal("[cgroup]\nrooot = \"/a\""),
            "c.toml:2: unknown key cgroup.rooot; did you mean cgroup.root?"
        );
        assert_eq!(refusal("[cgruop]\nroot = \"/a\""), "c.toml:1: unknown table cgruop; did you mean cgroup?");
        assert_eq!(refusal("level = \"info\""), "c.toml:1: unknown key level; did you mean log.level?");
        assert!(refusal("root = 1").contains("c.toml:1: root: is an integer, must be a string"));
        assert!(refusal("root = \"/a\"\nroot = \"/b\"").starts_with("c.toml:2: duplicate key"));
        assert!(refusal("root = ").starts_with("c.toml:1: "));
        assert!(refusal("[root]\nx = 1").contains("c.toml:1: root: is a table, must be a string"));
        assert!(refusal("cgroup = 1").starts_with("c.toml:1: unknown key cgroup"));
    }

    #[test]
    fn a_key_of_a_later_version_is_refused_by_name_unless_it_has_its_default() {
        assert!(with_file("[network]\nmode = \"auto\"\ncni_bin_dirs = [\"/opt/cni/bin\"]").is_ok());
        assert!(
            refusal("[agent]\nmanifests = \"/m\"")
                .contains("c.toml:2: agent.manifests = \"/m\": not honoured by this version")
        );
        assert!(with_file("[agent]\nnode_labels = {}").is_ok());
        assert!(refusal("[agent]\nnode_labels = { a = \"b\" }").contains("remove it"));
    }

    #[test]
    fn a_number_and_a_time_have_their_bounds() {
        let text = "[image]\nparallel_layers = 2\nno_progress_timeout = \"1500ms\"";
        let entries = with_file(text).expect("valid");
        let values: Vec<_> = entries.iter().map(|e| (e.key.name, e.value.as_str())).collect();
        assert!(values.contains(&("image.parallel_layers", "2")), "{values:?}");
        assert!(values.contains(&("image.no_progress_timeout", "1500ms")), "{values:?}");
        assert_eq!(time("1500ms"), Some(Duration::from_millis(1500)));
        for bad in
            ["parallel_layers = 0", "parallel_layers = 33", "parallel_layers = \"2\"", "no_progress_timeout = \"0s\""]
        {
            assert!(refusal(&format!("[image]\n{bad}")).contains("must be"), "{bad}");
        }
        assert!(refusal("[image]\nno_progress_timeout = \"1 minute\"").contains("like 500ms"));
    }

    #[test]
    fn a_path_that_could_lead_elsewhere_is_refused() {
        for bad in ["", "relative", "/a/../b", "/", "/a\nb"] {
            assert!(check_directory(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "podwright", "/", "/a//b", "/a/", "/../a", "/a b", "/a\n"] {
            assert!(check_cgroup(bad).is_err(), "{bad:?}");
        }
        assert_eq!(check_cgroup("/system.slice/podwright@1.service"), Ok(()));
    }

    #[test]
    fn a_flag_wins_over_the_environment_which_wins_over_the_default() {
        let env =
            [("PODWRIGHT_ROOT", "/env"), ("PODWRIGHT_STATE", "/env-state"), ("PODWRIGHT_FAULT", "x"), ("HOME", "/")];
        let env = env.map(|(k, v)| (OsString::from(k), OsString::from(v)));
        let flags = Flags { file: None, values: vec![("root", "--root", "/flag".into())] };
        let config = Config::load(&flags, env).expect("valid");
        assert_eq!((config.value("root"), config.value("state")), ("/flag", "/env-state"));
        let entry = config.entries().iter().find(|e| e.key.name == "root").expect("always there");
        assert_eq!(entry.source, Source::Flag("--root"));
    }

    #[test]
    fn a_variable_with_a_slip_in_its_name_is_refused() {
        let env = [(OsString::from("PODWRIGHT_CGROUP_ROTO"), OsString::from("/x"))];
        let e = Config::load(&Flags::default(), env).expect_err("nearly ours").to_string();
        assert_eq!(e, "environment PODWRIGHT_CGROUP_ROTO sets nothing; did you mean PODWRIGHT_CGROUP_ROOT?");
        let env = [(OsString::from("PODWRIGHT_SERVICE_HOST"), OsString::from("10.0.0.1"))];
        assert!(Config::load(&Flags::default(), env).is_ok());
    }
}
