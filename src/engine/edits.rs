//! What is added to a container's spec for devices: nodes with the rules that let them be used, and what comes with them (pure).
//!
//! Where they come from is not here: `host_devices` has those of the CRI, `cdi` those of the Container Device Interface.

use crate::error::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// The most devices and mounts that are added to one container.
const MAX_EDITS: usize = 4096;

/// A device node in the container, and what may be done with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceNode {
    /// In the container, below /dev.
    pub path: String,
    /// `c`, `b` or, of a FIFO, `p`.
    pub kind: char,
    pub major: u32,
    pub minor: u32,
    /// `None`: as the launcher makes them.
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// Of r, w and m.
    pub access: String,
}

/// A mount as the OCI spec has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EditMount {
    pub destination: String,
    /// Empty: a bind mount.
    pub kind: String,
    pub source: String,
    pub options: Vec<String>,
}

/// All that is added.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edits {
    /// `NAME=value`; a later one of a name wins, and all win over the container's.
    pub env: Vec<String>,
    pub devices: Vec<DeviceNode>,
    pub mounts: Vec<EditMount>,
    /// Further groups of the container's processes.
    pub groups: BTreeSet<u32>,
}

impl Edits {
    /// Adds them to a spec. A device or mount replaces what was at its path.
    ///
    /// # Errors
    /// `InvalidArgument` naming the path that cannot be, `ResourceExhausted`.
    pub fn apply(&self, spec: &mut Value) -> Result<()> {
        if *self == Edits::default() {
            return Ok(());
        }
        let listed = |spec: &Value, pointer: &str| spec.pointer(pointer).and_then(Value::as_array).map_or(0, Vec::len);
        let count = listed(spec, "/linux/devices") + listed(spec, "/mounts") + self.devices.len() + self.mounts.len();
        if count > MAX_EDITS {
            return Err(Error::exhausted(format!("{count} devices and mounts; a container has at most {MAX_EDITS}")));
        }
        for entry in &self.env {
            let name = entry.split_once('=').map_or(entry.as_str(), |(name, _)| name);
            let env = list(spec, &["process", "env"]);
            env.retain(|old| old.as_str().and_then(|old| old.split_once('=')).is_none_or(|(old, _)| old != name));
            env.push(json!(entry));
        }
        for device in &self.devices {
            device.check()?;
            let nodes = list(spec, &["linux", "devices"]);
            nodes.retain(|node| node["path"] != json!(device.path));
            nodes.push(device.node());
            let rules = list(spec, &["linux", "resources", "devices"]);
            // A privileged container's last rule allows everything.
            let everything = rules.last().is_some_and(|rule| *rule == json!({"allow": true, "access": "rwm"}));
            if device.kind != 'p' && !everything {
                rules.push(device.rule());
            }
        }
        for mount in &self.mounts {
            let made = mount.made()?;
            let mounts = list(spec, &["mounts"]);
            mounts.retain(|old| old["destination"] != made["destination"]);
            mounts.push(made);
        }
        // Parents before children, as ever.
        let depth =
            |m: &Value| m["destination"].as_str().unwrap_or_default().split('/').filter(|c| !c.is_empty()).count();
        list(spec, &["mounts"]).sort_by_key(depth);
        Ok(())
    }
}

/// The list at a place of a spec, made when there is none.
fn list<'a>(spec: &'a mut Value, at: &[&str]) -> &'a mut Vec<Value> {
    let mut value = spec;
    for key in at {
        value = &mut value[*key];
    }
    if !value.is_array() {
        *value = Value::Array(Vec::new());
    }
    value.as_array_mut().expect("it was made one")
}

/// Whether a path in the container is one that something can be put at.
fn is_place(path: &str) -> bool {
    path.starts_with('/') && !path.contains('\0') && path.split('/').all(|name| name != "..") && path.len() < 4096
}

impl DeviceNode {
    fn check(&self) -> Result<()> {
        let below = self.path.strip_prefix("/dev/").is_some_and(|rest| !rest.trim_matches('/').is_empty());
        if !below || !is_place(&self.path) {
            return Err(Error::invalid(format!("device {:?}: devices are made below /dev, without '..'", self.path)));
        }
        if self.access.is_empty() || !self.access.chars().all(|c| "rwm".contains(c)) {
            return Err(Error::invalid(format!(
                "device {:?}: permissions {:?} are not of r, w and m",
                self.path, self.access
            )));
        }
        Ok(())
    }

    fn node(&self) -> Value {
        let mut node =
            json!({"path": self.path, "type": self.kind.to_string(), "major": self.major, "minor": self.minor});
        for (name, value) in [("fileMode", self.mode), ("uid", self.uid), ("gid", self.gid)] {
            if let Some(value) = value {
                node[name] = value.into();
            }
        }
        node
    }

    fn rule(&self) -> Value {
        json!({"allow": true, "type": self.kind.to_string(), "major": self.major, "minor": self.minor, "access": self.access})
    }
}

impl EditMount {
    fn made(&self) -> Result<Value> {
        let at = |problem: &str| Error::invalid(format!("mount {:?}: {problem}", self.destination));
        if !is_place(&self.destination) {
            return Err(at("the path in the container must be absolute and without '..'"));
        }
        let names: Vec<&str> = self.destination.split('/').filter(|c| !c.is_empty() && *c != ".").collect();
        if names.is_empty() {
            return Err(at("the root cannot be replaced"));
        }
        let destination = format!("/{}", names.join("/"));
        match self.kind.as_str() {
            "" | "none" | "bind" => {
                if !is_place(&self.source) {
                    return Err(at("the path on the host must be absolute and without '..'"));
                }
                let mut options = self.options.clone();
                if !options.iter().any(|option| option == "bind" || option == "rbind") {
                    options.push("rbind".to_owned());
                }
                Ok(json!({"destination": destination, "type": "bind", "source": self.source, "options": options}))
            }
            "tmpfs" => {
                Ok(json!({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": self.options}))
            }
            kind => Err(at(&format!("type {kind:?} is not supported: bind and tmpfs are"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(path: &str) -> DeviceNode {
        DeviceNode {
            path: path.into(),
            kind: 'c',
            major: 1,
            minor: 3,
            mode: Some(0o660),
            uid: None,
            gid: Some(5),
            access: "rw".into(),
        }
    }

    fn mount(destination: &str, kind: &str, source: &str) -> EditMount {
        EditMount {
            destination: destination.into(),
            kind: kind.into(),
            source: source.into(),
            options: vec!["ro".into()],
        }
    }

    fn applied(edits: &Edits) -> Result<Value> {
        let mut spec = json!({
            "process": {"env": ["A=1", "B=2"]},
            "mounts": [{"destination": "/proc"}, {"destination": "/data", "source": "/old"}],
            "linux": {"resources": {"devices": [{"allow": false, "access": "rwm"}]}},
        });
        edits.apply(&mut spec).map(|()| spec)
    }

    #[test]
    fn what_is_added_replaces_what_was_there_and_may_be_used() {
        let edits = Edits {
            env: vec!["A=x".into(), "C=y=z".into()],
            devices: vec![node("/dev/a"), node("/dev/a"), DeviceNode { kind: 'p', ..node("/dev/fifo") }],
            mounts: vec![mount("/data/deep/er", "tmpfs", ""), mount("/data/", "", "/new")],
            groups: BTreeSet::new(),
        };
        let spec = applied(&edits).expect("valid");
        assert_eq!(spec["process"]["env"], json!(["B=2", "A=x", "C=y=z"]));
        assert_eq!(spec["linux"]["devices"].as_array().expect("a list").len(), 2);
        assert_eq!(
            spec["linux"]["devices"][0],
            json!({"path": "/dev/a", "type": "c", "major": 1, "minor": 3, "fileMode": 0o660, "gid": 5})
        );
        let rules = spec["linux"]["resources"]["devices"].as_array().expect("rules");
        assert_eq!(rules[1], json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"}));
        assert_eq!(rules.len(), 3, "none for a FIFO");
        let places: Vec<_> =
            spec["mounts"].as_array().expect("a list").iter().map(|m| m["destination"].clone()).collect();
        assert_eq!(places, ["/proc", "/data", "/data/deep/er"]);
        assert_eq!(spec["mounts"][1]["options"], json!(["ro", "rbind"]));
    }

    #[test]
    fn what_would_leave_its_place_is_refused() {
        for path in ["/etc/x", "/dev/../etc/x", "/dev/", "dev/x", "/dev/a\0"] {
            assert!(applied(&Edits { devices: vec![node(path)], ..Edits::default() }).is_err(), "{path}");
        }
        let access = DeviceNode { access: "rx".into(), ..node("/dev/a") };
        assert!(applied(&Edits { devices: vec![access], ..Edits::default() }).is_err());
        for (at, kind, source) in
            [("/", "", "/a"), ("/a/../b", "", "/a"), ("/a", "", "a"), ("/a", "ext4", "/a"), ("/a", "", "/a/../b")]
        {
            assert!(applied(&Edits { mounts: vec![mount(at, kind, source)], ..Edits::default() }).is_err(), "{at}");
        }
    }
}
