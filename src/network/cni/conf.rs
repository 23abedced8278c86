//! Network configuration as administrators and add-ons write it: which files, what of them is believed, what is passed on.
//!
//! The first valid file in the order of names is the network, as in containerd and CRI-O; what is not valid is skipped, and the reason
//! is kept for people. The directory is read each time it is asked for: some small files, beside plugins that take a hundred times as long.
//! So there is nothing that could be out of date, and no watcher that could miss a directory made after it. Nothing is executed here.

use super::version::Version;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Files of the directory that are looked at, in the order of their names.
const MAX_FILES: usize = 256;
/// Bytes of one file: those of add-ons have some hundred.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Plugins of one network, each an execution for every pod.
const MAX_PLUGINS: usize = 32;
/// Letters of a network's or plugin's name: they become names of files.
const MAX_NAME: usize = 128;

/// A network: what its file says, checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Network {
    pub name: String,
    /// Those it may be run with and that are spoken here; at least one, oldest first.
    pub versions: Vec<Version>,
    #[serde(default)]
    pub disable_check: bool,
    #[serde(default)]
    pub disable_gc: bool,
    /// In the order of ADD; at least one.
    pub plugins: Vec<Plugin>,
}

/// One plugin of a network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plugin {
    /// The name of its program (`type`).
    pub program: String,
    /// The capability arguments that it wants.
    pub capabilities: BTreeSet<String>,
    /// What it is configured with, but for what the runtime itself sets.
    pub body: Map<String, Value>,
}

impl Network {
    /// The programs that it takes to attach a pod, those of IPAM among them.
    pub fn programs(&self) -> impl Iterator<Item = &str> {
        self.plugins.iter().flat_map(|plugin| {
            let ipam = plugin.body.get("ipam").and_then(|ipam| ipam.get("type")).and_then(Value::as_str);
            std::iter::once(plugin.program.as_str()).chain(ipam.filter(|ipam| !ipam.is_empty()))
        })
    }

    /// The bridges that pods are on, by Debian's plugin of that name.
    pub fn bridges(&self) -> impl Iterator<Item = &str> {
        let plugins = self.plugins.iter().filter(|plugin| plugin.program == "bridge");
        plugins.map(|plugin| plugin.body.get("bridge").and_then(Value::as_str).unwrap_or("cni0"))
    }
}

/// What a directory has.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Found {
    /// The network, and the file that it is from.
    pub network: Option<(PathBuf, Network)>,
    /// Files before that one which are not valid, each with its reason.
    pub skipped: Vec<String>,
}

/// Reads the directory. One that is not there has no network.
pub fn load(directory: &Path) -> Found {
    let mut found = Found::default();
    let files = match files(directory, &["conflist", "conf", "json"]) {
        Ok(files) => files,
        Err(why) => {
            found.skipped.push(why);
            return found;
        }
    };
    for file in files {
        match read(&file) {
            Ok(network) => {
                found.network = Some((file, network));
                return found;
            }
            Err(why) => found.skipped.push(format!("{}: {why}", file.display())),
        }
    }
    found
}

/// The files with one of these extensions, in the order of their names.
fn files(directory: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>, String> {
    let entries = match std::fs::read_dir(directory) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|e| format!("{}: cannot be listed: {}", directory.display(), describe(&e)))?,
    };
    let wanted = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        extension.is_some_and(|extension| extensions.contains(&extension)) && path.is_file()
    };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(wanted).collect();
    files.sort();
    files.truncate(MAX_FILES);
    Ok(files)
}

fn describe(e: &std::io::Error) -> String {
    crate::error::describe_io(e)
}

fn read_json(path: &Path) -> Result<Map<String, Value>, String> {
    let file = std::fs::File::open(path).map_err(|e| describe(&e))?;
    let mut bytes = Vec::new();
    let n = file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|e| describe(&e))?;
    if n as u64 > MAX_FILE_BYTES {
        return Err(format!("is larger than {MAX_FILE_BYTES} bytes"));
    }
    serde_json::from_slice(&bytes).map_err(|e| format!("is no JSON object: {e}"))
}

fn read(path: &Path) -> Result<Network, String> {
    let json = read_json(path)?;
    if path.extension().is_some_and(|extension| extension == "conflist") {
        let beside = |name: &str| plugins_beside(path, name);
        return network(&json, &beside);
    }
    if json.contains_key("plugins") {
        return Err("has plugins, so it is a list: name it .conflist".into());
    }
    let (name, versions) = (name_of(&json)?, versions_of(&json)?);
    Ok(Network { name, versions, disable_check: false, disable_gc: false, plugins: vec![plugin(json)?] })
}

/// Plugins of a network that have files of their own: those of the directory of its name, `DIRECTORY/NAME/*.conf` (SPEC 1.1).
fn plugins_beside(list: &Path, name: &str) -> Result<Vec<Plugin>, String> {
    let directory = list.parent().unwrap_or(Path::new("/")).join(name);
    let mut plugins = Vec::new();
    for file in files(&directory, &["conf"])? {
        let read = read_json(&file).and_then(plugin);
        plugins.push(read.map_err(|why| format!("{}: {why}", file.display()))?);
    }
    Ok(plugins)
}

/// A list of plugins; `beside` gives those of the network's own directory.
pub(super) fn network(
    json: &Map<String, Value>,
    beside: &dyn Fn(&str) -> Result<Vec<Plugin>, String>,
) -> Result<Network, String> {
    let (name, versions) = (name_of(json)?, versions_of(json)?);
    let only_inlined = flag(json, "loadOnlyInlinedPlugins")?;
    let mut plugins = Vec::new();
    match json.get("plugins") {
        Some(Value::Array(list)) => {
            for (at, one) in list.iter().enumerate() {
                let Value::Object(one) = one else { return Err(format!("plugins[{at}] is no object")) };
                plugins.push(plugin(one.clone()).map_err(|why| format!("plugins[{at}]: {why}"))?);
            }
        }
        None if only_inlined => return Err("loadOnlyInlinedPlugins is true, and there are no plugins".into()),
        None => {}
        Some(_) => return Err("plugins is no list".into()),
    }
    if !only_inlined {
        plugins.extend(beside(&name)?);
    }
    match plugins.len() {
        0 => Err("has no plugins".into()),
        1..=MAX_PLUGINS => {
            let (disable_check, disable_gc) = (flag(json, "disableCheck")?, flag(json, "disableGC")?);
            Ok(Network { name, versions, disable_check, disable_gc, plugins })
        }
        n => Err(format!("has {n} plugins, and {MAX_PLUGINS} are the most")),
    }
}

/// A name that becomes one of a file: it starts with a letter or digit, and no path can be made of it (SPEC, section 1).
fn check_name(what: &str, name: &str) -> Result<(), String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let starts = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if starts && name.len() <= MAX_NAME && name.bytes().all(plain) {
        return Ok(());
    }
    Err(format!(
        "{what} {name:?} must be 1 to {MAX_NAME} letters, digits, '_', '.' and '-', starting with a letter or digit"
    ))
}

fn name_of(json: &Map<String, Value>) -> Result<String, String> {
    match json.get("name") {
        Some(Value::String(name)) => check_name("name", name).map(|()| name.clone()),
        Some(_) => Err("name is no string".into()),
        None => Err("has no name".into()),
    }
}

/// `cniVersion` and `cniVersions`, as far as they are spoken here.
fn versions_of(json: &Map<String, Value>) -> Result<Vec<Version>, String> {
    let mut texts: Vec<&Value> = json.get("cniVersion").into_iter().collect();
    match json.get("cniVersions") {
        None => {}
        Some(Value::Array(more)) => texts.extend(more),
        Some(_) => return Err("cniVersions is no list".into()),
    }
    let mut versions = BTreeSet::new();
    for text in &texts {
        let text = text.as_str().ok_or("cniVersion is no string")?;
        versions.extend(Version::parse(text));
    }
    match texts.first() {
        None => Err("has no cniVersion; 0.3.0 to 1.1.0 are known".into()),
        Some(first) if versions.is_empty() => {
            Err(format!("cniVersion {first} is not known; 0.3.0, 0.3.1, 0.4.0, 1.0.0 and 1.1.0 are"))
        }
        Some(_) => Ok(versions.into_iter().collect()),
    }
}

/// A boolean, or as libcni has it a string of one.
fn flag(json: &Map<String, Value>, key: &str) -> Result<bool, String> {
    match json.get(key) {
        None => Ok(false),
        Some(Value::Bool(on)) => Ok(*on),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => Err(format!("{key} is {other}, must be true or false")),
    }
}

/// What a plugin is configured with; what is the runtime's to say is left out (SPEC, sections 1 and 3).
fn plugin(mut body: Map<String, Value>) -> Result<Plugin, String> {
    let program = match body.get("type") {
        Some(Value::String(program)) => program.clone(),
        Some(_) => return Err("type is no string".into()),
        None => return Err("has no type".into()),
    };
    check_name("type", &program)?;
    // Looked for by the plugin itself, in the directories that we name.
    if let Some(ipam) = body.get("ipam").and_then(|ipam| ipam.get("type")).and_then(Value::as_str)
        && !ipam.is_empty()
    {
        check_name("ipam.type", ipam)?;
    }
    let capabilities = match body.remove("capabilities") {
        None | Some(Value::Null) => BTreeSet::new(),
        Some(Value::Object(all)) => {
            all.into_iter().filter(|(_, on)| *on == Value::Bool(true)).map(|(k, _)| k).collect()
        }
        Some(_) => return Err("capabilities is no object".into()),
    };
    body.retain(|key, _| !key.starts_with("cni.dev/") && !matches!(key.as_str(), "runtimeConfig" | "prevResult"));
    Ok(Plugin { program, capabilities, body })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Result<Network, String> {
        let json: Map<String, Value> = serde_json::from_str(text).expect("an object");
        network(&json, &|_| Ok(Vec::new()))
    }

    #[test]
    fn a_list_keeps_what_it_does_not_know_and_loses_what_is_the_runtimes() {
        let network = list(
            r#"{"cniVersion": "1.0.0", "cniVersions": ["0.4.0", "1.1.0", "9.9.9"], "name": "dbnet", "disableGC": "True",
                "plugins": [{"type": "bridge", "keyA": ["more"], "cni.dev/x": 1, "runtimeConfig": {}, "args": {"a": 1},
                             "capabilities": {"mac": true, "ips": false}}]}"#,
        )
        .expect("valid");
        assert_eq!(network.versions, [Version::V0_4_0, Version::V1_0_0, Version::V1_1_0]);
        assert!(network.disable_gc && !network.disable_check);
        let plugin = &network.plugins[0];
        assert_eq!(plugin.capabilities, BTreeSet::from(["mac".to_owned()]));
        assert_eq!(
            Value::from(plugin.body.clone()),
            serde_json::json!({"type": "bridge", "keyA": ["more"], "args": {"a": 1}})
        );
    }

    #[test]
    fn a_type_that_is_a_path_is_refused_and_so_is_one_of_an_ipam_plugin() {
        for bad in ["../../bin/sh", "/bin/sh", "a/b", "..", "", "a\\b", "a b", "-a"] {
            let text = format!(r#"{{"cniVersion": "1.0.0", "name": "n", "plugins": [{{"type": {bad:?}}}]}}"#);
            let why = list(&text).expect_err(bad);
            assert!(why.starts_with("plugins[0]: type "), "{why}");
            let text = format!(
                r#"{{"cniVersion": "1.0.0", "name": "n", "plugins": [{{"type": "a", "ipam": {{"type": {bad:?}}}}}]}}"#
            );
            assert_eq!(list(&text).is_err(), !bad.is_empty(), "{bad:?}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_list_is_said() {
        let with = |rest: &str| list(&format!(r#"{{"cniVersion": "1.0.0", "name": "n"{rest}}}"#));
        assert!(with(r#", "plugins": [{"type": "a"}]"#).is_ok());
        for (rest, why) in [
            (r#", "plugins": []"#, "has no plugins"),
            ("", "has no plugins"),
            (r#", "loadOnlyInlinedPlugins": true"#, "loadOnlyInlinedPlugins is true, and there are no plugins"),
            (r#", "plugins": 1"#, "plugins is no list"),
            (r#", "plugins": [1]"#, "plugins[0] is no object"),
            (r#", "plugins": [{}]"#, "plugins[0]: has no type"),
            (r#", "plugins": [{"type": "a", "capabilities": 1}]"#, "plugins[0]: capabilities is no object"),
            (r#", "disableCheck": 3, "plugins": [{"type": "a"}]"#, "disableCheck is 3, must be true or false"),
        ] {
            assert_eq!(with(rest).expect_err(rest), why);
        }
        let many = vec![r#"{"type": "a"}"#; MAX_PLUGINS + 1].join(",");
        assert!(with(&format!(r#", "plugins": [{many}]"#)).expect_err("many").contains("33 plugins"));
        assert!(list(r#"{"name": "n"}"#).expect_err("none").contains("has no cniVersion"));
        let old = list(r#"{"name": "n", "cniVersion": "0.2.0"}"#).expect_err("old");
        assert!(old.contains("\"0.2.0\" is not known"), "{old}");
        assert_eq!(list(r#"{"cniVersion": "1.0.0"}"#).expect_err("no name"), "has no name");
        assert!(list(r#"{"cniVersion": "1.0.0", "name": "../x"}"#).is_err());
    }

    #[test]
    fn the_first_valid_file_is_the_network_and_what_was_skipped_has_its_reason() {
        let dir = tempfile::tempdir().expect("tempdir");
        let put = |name: &str, text: &str| {
            crate::state::record::write_bytes(
                &dir.path().join(name),
                text.as_bytes(),
                0o600,
                crate::state::record::Durability::Boot,
            )
            .expect("write")
        };
        assert_eq!(load(&dir.path().join("absent")), Found::default());
        put("10-broken.conflist", "{");
        put("15-list.conf", r#"{"cniVersion": "1.0.0", "name": "a", "plugins": []}"#);
        put("20-one.conf", r#"{"cniVersion": "0.3.1", "name": "one", "type": "bridge"}"#);
        put("05-notes.txt", "not looked at");
        std::fs::create_dir(dir.path().join("00-directory.conf")).expect("mkdir");
        let found = load(dir.path());
        let (file, network) = found.network.expect("one");
        assert_eq!((file.file_name(), network.name.as_str()), (Some("20-one.conf".as_ref()), "one"));
        assert_eq!(found.skipped.len(), 2, "{:?}", found.skipped);
        assert!(found.skipped[0].contains("10-broken.conflist: is no JSON object"), "{:?}", found.skipped);
        assert!(found.skipped[1].contains("name it .conflist"), "{:?}", found.skipped);

        // Plugins of a file of their own (SPEC 1.1), unless the list has none of it.
        std::fs::create_dir(dir.path().join("net")).expect("mkdir");
        put("net/20.conf", r#"{"type": "tuning"}"#);
        put("net/10.conf", r#"{"type": "portmap"}"#);
        put("00.conflist", r#"{"cniVersion": "1.1.0", "name": "net", "plugins": [{"type": "bridge"}]}"#);
        let programs =
            |found: Found| found.network.expect("one").1.plugins.into_iter().map(|p| p.program).collect::<Vec<_>>();
        assert_eq!(programs(load(dir.path())), ["bridge", "portmap", "tuning"]);
        put(
            "00.conflist",
            r#"{"cniVersion": "1.1.0", "name": "net", "loadOnlyInlinedPlugins": true, "plugins": [{"type": "bridge"}]}"#,
        );
        assert_eq!(programs(load(dir.path())), ["bridge"]);
        put("00.conflist", r#"{"cniVersion": "1.1.0", "name": "net"}"#);
        assert_eq!(programs(load(dir.path())), ["portmap", "tuning"]);
        put("00.conflist", &" ".repeat(1 << 21));
        assert!(load(dir.path()).skipped[0].contains("larger than"));
    }
}
