//! A specification of CDI: its fields, its rules, and which device of which specification a name means (pure). Rules are those of SPEC.md
//! and of the vendors' own library (tags.cncf.io/container-device-interface); a field that neither has is refused.

use crate::engine::edits::EditMount;
use crate::error::{Error, Result};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Those there were.
const VERSIONS: [&str; 9] = ["0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0"];
/// The most devices of one specification.
const MAX_DEVICES: usize = 4096;
/// The longest vendor, class or name, in bytes.
const MAX_PART: usize = 253;
/// The longest variable, in bytes: MAX_ARG_STRLEN of execve(2), less its NUL.
const MAX_VARIABLE: usize = 32 * 4096 - 1;
/// How many problems of files are told with a device that is in none.
const TOLD: usize = 3;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File {
    cdi_version: String,
    kind: String,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    devices: Option<Vec<NamedDevice>>,
    #[serde(default)]
    container_edits: Option<ContainerEdits>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct NamedDevice {
    name: String,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    container_edits: ContainerEdits,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
struct ContainerEdits {
    env: Option<Vec<String>>,
    device_nodes: Option<Vec<Node>>,
    net_devices: Option<Value>,
    mounts: Option<Vec<Mount>>,
    hooks: Option<Vec<Hook>>,
    intel_rdt: Option<Value>,
    additional_gids: Option<Vec<u32>>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
struct Node {
    path: String,
    host_path: Option<String>,
    r#type: Option<String>,
    major: Option<i64>,
    minor: Option<i64>,
    file_mode: Option<u32>,
    permissions: Option<String>,
    uid: Option<u32>,
    gid: Option<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
struct Mount {
    host_path: String,
    container_path: String,
    r#type: Option<String>,
    options: Option<Vec<String>>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Hook {
    hook_name: String,
    path: String,
    #[serde(default)]
    args: Option<Vec<String>>,
    #[serde(default)]
    env: Option<Vec<String>>,
    #[serde(default)]
    timeout: Option<i64>,
}

/// A device node; what it does not say is the host's node's to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Device {
    pub path: String,
    pub host_path: String,
    pub kind: Option<char>,
    pub numbers: Option<(u32, u32)>,
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub access: String,
}

/// What devices add to a container.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Resolved {
    pub env: Vec<String>,
    pub devices: Vec<Device>,
    pub mounts: Vec<EditMount>,
    pub groups: BTreeSet<u32>,
}

/// The specifications that there are.
#[derive(Debug, Default)]
pub(super) struct Specs {
    files: Vec<(String, usize, File)>,
    wrong: Vec<String>,
}

/// Whether a text is a device's whole name, `vendor.com/class=name`.
pub fn is_name(text: &str) -> bool {
    parts(text).is_ok()
}

/// Vendor and class together, and the device's name.
fn parts(text: &str) -> Result<(&str, &str), String> {
    let (kind, name) = text.split_once('=').ok_or("it is not VENDOR/CLASS=NAME")?;
    check_kind(kind)?;
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':');
    check_part("name", name, |c| c.is_ascii_alphanumeric(), known)?;
    Ok((kind, name))
}

fn check_kind(kind: &str) -> Result<(), String> {
    let (vendor, class) = kind.split_once('/').ok_or("a kind is VENDOR/CLASS")?;
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    check_part("vendor", vendor, |c| c.is_ascii_alphabetic(), known)?;
    check_part("class", class, |c| c.is_ascii_alphabetic(), known)
}

fn check_part(
    what: &str,
    text: &str,
    first: impl Fn(char) -> bool,
    known: impl Fn(char) -> bool,
) -> Result<(), String> {
    let good = text.len() <= MAX_PART
        && text.starts_with(first)
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(known);
    if good { Ok(()) } else { Err(format!("{text:?} is no {what}")) }
}

impl Specs {
    /// Adds a specification. A later directory has the higher priority.
    pub fn add(&mut self, path: &str, priority: usize, value: Value) {
        match File::deserialize(value).map_err(|e| e.to_string()).and_then(File::checked) {
            Ok(file) => self.files.push((path.to_owned(), priority, file)),
            Err(e) => self.wrong(path, &e),
        }
    }

    /// A file that is none.
    pub fn wrong(&mut self, path: &str, why: &str) {
        self.wrong.push(format!("{path}: {why}"));
    }

    pub fn count(&self) -> usize {
        self.files.iter().map(|(_, _, file)| file.devices().len()).sum()
    }

    pub fn problems(self) -> Vec<String> {
        self.wrong
    }

    /// What the devices of these names add, in their order; what a specification adds for all of its devices comes before the first of them.
    pub fn resolve(&self, names: &[String]) -> Result<Resolved> {
        let (mut resolved, mut met, mut given) = (Resolved::default(), BTreeSet::new(), BTreeSet::new());
        for name in names {
            let (kind, device) = parts(name).map_err(|e| Error::invalid(format!("device {name:?}: {e}")))?;
            if !given.insert(name) {
                continue;
            }
            let at = self.find(name, kind, device)?;
            let (path, _, file) = &self.files[at];
            let from = |e: Error| e.context(format!("device {name} of {path}"));
            if met.insert(at)
                && let Some(edits) = &file.container_edits
            {
                resolved.take(edits).map_err(from)?;
            }
            let device = file.devices().iter().find(|known| known.name == device);
            resolved.take(&device.expect("it was found").container_edits).map_err(from)?;
        }
        Ok(resolved)
    }

    fn find(&self, name: &str, kind: &str, device: &str) -> Result<usize> {
        let has = |file: &File| file.kind == kind && file.devices().iter().any(|known| known.name == device);
        let mut all: Vec<usize> = (0..self.files.len()).filter(|at| has(&self.files[*at].2)).collect();
        let highest = all.iter().map(|at| self.files[*at].1).max();
        all.retain(|at| Some(self.files[*at].1) == highest);
        match all[..] {
            [at] => Ok(at),
            [] => {
                let told: Vec<_> = self.wrong.iter().take(TOLD).map(String::as_str).collect();
                let told = if told.is_empty() { String::new() } else { format!("; not read: {}", told.join("; ")) };
                let remedy = "install its vendor's specification, or ask for another device";
                Err(Error::precondition(format!("device {name} is in no specification: {remedy}{told}")))
            }
            _ => {
                let paths: Vec<_> = all.iter().map(|at| self.files[*at].0.as_str()).collect();
                Err(Error::precondition(format!(
                    "device {name} is in several: {}; remove all but one",
                    paths.join(", ")
                )))
            }
        }
    }
}

impl File {
    fn devices(&self) -> &[NamedDevice] {
        self.devices.as_deref().unwrap_or_default()
    }

    fn edits(&self) -> impl Iterator<Item = &ContainerEdits> {
        self.container_edits.iter().chain(self.devices().iter().map(|device| &device.container_edits))
    }

    fn checked(self) -> Result<File, String> {
        let bare = self.cdi_version.strip_prefix('v').unwrap_or(&self.cdi_version);
        let version = VERSIONS.iter().position(|known| *known == bare);
        let version =
            version.ok_or_else(|| format!("cdiVersion {:?} is none of {}", self.cdi_version, VERSIONS.join(", ")))?;
        check_kind(&self.kind)?;
        let devices = self.devices();
        if devices.is_empty() || devices.len() > MAX_DEVICES {
            return Err(format!("it has {} devices, and not 1 to {MAX_DEVICES}", devices.len()));
        }
        let mut seen = BTreeSet::new();
        for device in devices {
            parts(&format!("{}={}", self.kind, device.name)).map(|_| ())?;
            if !seen.insert(&device.name) {
                return Err(format!("device {:?} stands twice", device.name));
            }
            if device.container_edits == ContainerEdits::default() {
                return Err(format!("device {:?} adds nothing", device.name));
            }
        }
        for edits in self.edits() {
            edits.check()?;
        }
        let (least, what) = self.needs();
        let at = VERSIONS.iter().position(|known| *known == least).unwrap_or_default();
        if version < at {
            return Err(format!("{what}: it takes cdiVersion {least}, and this is {bare}"));
        }
        Ok(self)
    }

    /// The least version that has all that it says, and what needs it.
    fn needs(&self) -> (&'static str, &'static str) {
        let annotated = self.annotations.is_some() || self.devices().iter().any(|device| device.annotations.is_some());
        let any = |has: fn(&ContainerEdits) -> bool| self.edits().any(has);
        let nodes = |edits: &ContainerEdits| edits.device_nodes.iter().flatten().any(|node| node.host_path.is_some());
        let types = |edits: &ContainerEdits| edits.mounts.iter().flatten().any(|mount| mount.r#type.is_some());
        let digit = self.devices().iter().any(|device| device.name.starts_with(|c: char| c.is_ascii_digit()));
        if any(|edits| edits.intel_rdt.is_some() || edits.additional_gids.is_some()) {
            ("0.7.0", "additionalGids, intelRdt")
        } else if annotated || self.kind.split_once('/').is_some_and(|(_, class)| class.contains('.')) {
            ("0.6.0", "annotations, a class with a dot")
        } else if digit || any(nodes) {
            ("0.5.0", "hostPath of a device node, a name that begins with a digit")
        } else if any(types) {
            ("0.4.0", "type of a mount")
        } else {
            ("0.1.0", "")
        }
    }
}

impl ContainerEdits {
    fn check(&self) -> Result<(), String> {
        for entry in self.env.iter().flatten() {
            let named = entry.split_once('=').is_some_and(|(name, _)| !name.is_empty());
            if !named || entry.contains('\0') || entry.len() > MAX_VARIABLE {
                let start: String = entry.chars().take(64).collect();
                return Err(format!("env: {start:?} is not NAME=VALUE"));
            }
        }
        for node in self.device_nodes.iter().flatten() {
            node.device().map(|_| ())?;
        }
        for mount in self.mounts.iter().flatten() {
            if mount.host_path.is_empty() || mount.container_path.is_empty() {
                return Err("mounts: one lacks hostPath or containerPath".to_owned());
            }
        }
        for hook in self.hooks.iter().flatten() {
            let known = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
            if !known.contains(&hook.hook_name.as_str()) || !hook.path.starts_with('/') {
                return Err(format!("hooks: {:?} is none, or has no absolute path", hook.hook_name));
            }
        }
        Ok(())
    }
}

impl Node {
    fn device(&self) -> Result<Device, String> {
        let wrong = |what: String| format!("deviceNodes: {:?}: {what}", self.path);
        if self.path.is_empty() {
            return Err(wrong("a node has a path".to_owned()));
        }
        let kind = match self.r#type.as_deref() {
            None | Some("") => None,
            Some("c" | "u") => Some('c'),
            Some("b") => Some('b'),
            Some("p") => Some('p'),
            Some(other) => return Err(wrong(format!("type {other:?} is none of b, c, u and p"))),
        };
        let access = self.permissions.clone().filter(|text| !text.is_empty()).unwrap_or_else(|| "rwm".to_owned());
        if !access.chars().all(|c| "rwm".contains(c)) {
            return Err(wrong(format!("permissions {access:?} are not of r, w and m")));
        }
        let number = |n: Option<i64>| u32::try_from(n.unwrap_or(0)).map_err(|_| wrong("no device number".to_owned()));
        let numbers = (number(self.major)?, number(self.minor)?);
        Ok(Device {
            path: self.path.clone(),
            host_path: self.host_path.clone().filter(|p| !p.is_empty()).unwrap_or_else(|| self.path.clone()),
            kind,
            numbers: Some(numbers).filter(|numbers| *numbers != (0, 0)),
            mode: self.file_mode.map(|mode| mode & 0o7777),
            uid: self.uid,
            gid: self.gid,
            access,
        })
    }
}

impl Resolved {
    fn take(&mut self, edits: &ContainerEdits) -> Result<()> {
        let hooks: Vec<&Hook> = edits.hooks.iter().flatten().collect();
        if let Some(Hook { hook_name, path, .. }) = hooks.first() {
            return Err(Error::unsupported(format!("it needs the {hook_name} hook {path}, and hooks are not run")));
        }
        for (asked, name) in [(&edits.net_devices, "netDevices"), (&edits.intel_rdt, "intelRdt")] {
            if asked.is_some() {
                return Err(Error::unsupported(format!("it needs {name}, which are not supported")));
            }
        }
        self.env.extend(edits.env.iter().flatten().cloned());
        for node in edits.device_nodes.iter().flatten() {
            self.devices.push(node.device().map_err(Error::invalid)?);
        }
        for mount in edits.mounts.iter().flatten().cloned() {
            self.mounts.push(EditMount {
                destination: mount.container_path,
                kind: mount.r#type.unwrap_or_default(),
                source: mount.host_path,
                options: mount.options.unwrap_or_default(),
            });
        }
        // 0 is ignored, as by the vendors' library: it would be root's.
        self.groups.extend(edits.additional_gids.iter().flatten().filter(|gid| ![0, u32::MAX].contains(*gid)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn file(version: &str, edits: Value) -> Value {
        json!({"cdiVersion": version, "kind": "vendor.com/class", "devices": [{"name": "a", "containerEdits": edits}]})
    }

    fn one(version: &str, edits: Value) -> Result<Resolved, String> {
        let mut specs = Specs::default();
        specs.add("/etc/cdi/v.json", 0, file(version, edits));
        specs.resolve(&["vendor.com/class=a".to_owned()]).map_err(|e| e.to_string())
    }

    #[test]
    fn what_a_device_adds_comes_after_what_its_specification_adds_for_all_once() {
        let edits = |name: &str| json!({"env": [format!("{name}=1")]});
        let mut specs = Specs::default();
        let devices = json!([{"name": "a", "containerEdits": edits("A")}, {"name": "1", "containerEdits": edits("B")}]);
        let value = json!({"cdiVersion": "0.5.0", "kind": "vendor.com/class", "devices": devices, "containerEdits": edits("ALL")});
        specs.add("/etc/cdi/v.json", 0, value);
        let names = ["vendor.com/class=1", "vendor.com/class=a", "vendor.com/class=1"].map(str::to_owned);
        assert_eq!(specs.resolve(&names).expect("known").env, ["ALL=1", "B=1", "A=1"]);
        assert_eq!(specs.count(), 2);
    }

    #[test]
    fn a_later_directory_wins_and_two_of_one_conflict() {
        let mut specs = Specs::default();
        let name = ["vendor.com/class=a".to_owned()];
        specs.add("/etc/cdi/1.json", 0, file("0.3.0", json!({"env": ["X=etc"]})));
        specs.add("/etc/cdi/2.json", 0, file("0.3.0", json!({"env": ["X=etc2"]})));
        let e = specs.resolve(&name).expect_err("two").to_string();
        assert!(e.contains("/etc/cdi/1.json, /etc/cdi/2.json"), "{e}");
        specs.add("/var/run/cdi/1.json", 1, file("0.3.0", json!({"env": ["X=run"]})));
        assert_eq!(specs.resolve(&name).expect("one").env, ["X=run"]);
    }

    #[test]
    fn a_device_that_is_in_no_specification_is_told_with_files_that_are_none() {
        let mut specs = Specs::default();
        specs.add("/etc/cdi/bad.json", 0, json!({"cdiVersion": "9.9.9", "kind": "vendor.com/class"}));
        let e = specs.resolve(&["vendor.com/class=a".to_owned()]).expect_err("none").to_string();
        assert!(e.contains("vendor.com/class=a") && e.contains("bad.json") && e.contains("9.9.9"), "{e}");
        let e = specs.resolve(&["a".to_owned()]).expect_err("no name").to_string();
        assert!(e.contains("VENDOR/CLASS=NAME"), "{e}");
    }

    #[test]
    fn everything_a_specification_can_ask_for_is_taken() {
        let resolved = one(
            "0.7.0",
            json!({
                "env": ["A=b=c"],
                "deviceNodes": [
                    {"path": "/dev/x", "hostPath": "/dev/null"},
                    {"path": "/dev/y", "type": "b", "major": 7, "minor": 1, "fileMode": 432, "permissions": "r", "uid": 1, "gid": 2}
                ],
                "mounts": [{"hostPath": "/lib", "containerPath": "/vendor", "options": ["ro"], "type": "bind"}],
                "additionalGids": [44, 0]
            }),
        )
        .expect("valid");
        assert_eq!((resolved.env, resolved.groups), (vec!["A=b=c".to_owned()], BTreeSet::from([44])));
        let [x, y] = &resolved.devices[..] else { panic!("two devices") };
        assert_eq!((x.host_path.as_str(), x.kind, x.numbers, x.access.as_str()), ("/dev/null", None, None, "rwm"));
        assert_eq!((y.kind, y.numbers, y.mode, y.uid, y.gid), (Some('b'), Some((7, 1)), Some(0o660), Some(1), Some(2)));
        assert_eq!(resolved.mounts[0].destination, "/vendor");
    }

    #[test]
    fn what_is_not_done_is_refused_by_its_name() {
        let hook = json!({"hooks": [{"hookName": "createContainer", "path": "/usr/bin/nvidia-ctk", "args": ["a"]}]});
        let e = one("0.8.0", hook).expect_err("no hooks");
        assert!(e.contains("createContainer hook /usr/bin/nvidia-ctk"), "{e}");
        assert!(one("0.7.0", json!({"intelRdt": {"closID": "x"}})).expect_err("no RDT").contains("intelRdt"));
        assert!(one("1.0.0", json!({"netDevices": [{}]})).expect_err("no").contains("netDevices"));
    }

    #[test]
    fn what_breaks_the_rules_is_no_specification() {
        for (version, edits) in [
            ("0.6.0", json!({"additionalGids": [1]})),
            ("0.4.0", json!({"deviceNodes": [{"path": "/dev/x", "hostPath": "/dev/y"}]})),
            ("0.3.0", json!({"mounts": [{"hostPath": "/a", "containerPath": "/b", "type": "bind"}]})),
            ("1.0.0", json!({})),
            ("1.0.0", json!({"env": ["A"]})),
            ("1.0.0", json!({"env": ["=A"]})),
            ("1.0.0", json!({"deviceNodes": [{"path": "/dev/x", "type": "z"}]})),
            ("1.0.0", json!({"deviceNodes": [{"path": "/dev/x", "permissions": "rx"}]})),
            ("1.0.0", json!({"deviceNodes": [{"path": "/dev/x", "major": -1}]})),
            ("1.0.0", json!({"mounts": [{"hostPath": "/a"}]})),
            ("1.0.0", json!({"hooks": [{"hookName": "never", "path": "/a"}]})),
            ("1.0.0", json!({"unknown": 1})),
        ] {
            let mut specs = Specs::default();
            specs.add("f", 0, file(version, edits.clone()));
            assert_eq!((specs.count(), specs.problems().len()), (0, 1), "{version} {edits}");
        }
        let name = |kind: &str, device: &str| {
            let mut specs = Specs::default();
            let edits = json!({"env": ["A=b"]});
            specs.add(
                "f",
                0,
                json!({"cdiVersion": "1.0.0", "kind": kind, "devices": [{"name": device, "containerEdits": edits}]}),
            );
            specs.count()
        };
        assert_eq!((name("a.b/c", "x"), name("a.b/c.d", "0:1.2_3-4")), (1, 1));
        for (kind, device) in
            [("a", "x"), ("a/b/c", "x"), ("1/b", "x"), ("a/b", ""), ("a/b", "-x"), ("a/b", "x="), ("a-/b", "x")]
        {
            assert_eq!(name(kind, device), 0, "{kind} {device}");
        }
    }
}
