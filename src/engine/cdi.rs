//! The Container Device Interface (cncf-tags/container-device-interface, SPEC.md): devices by the names that their vendors give them, and
//! what a container needs to use them.
//!
//! * `spec`  a specification: read, checked, and what of it becomes of a container; pure
//! * `yaml`  YAML as JSON; pure
//!
//! Here is what touches the disk: the directories, in the order of their priority, and nodes of the host that a specification leaves to be
//! looked at. They are read for each container that asks: there are few, and whatever watches them could be late.
//!
//! Hooks, network devices and Intel RDT are refused by their names, with the device that wants them.

mod spec;
mod yaml;

use super::Engine;
use super::edits::Edits;
use super::hooks::Draft;
use super::host_devices;
use crate::error::{Context, Error, Result};
use crate::state::spec::SpecText;
use serde_json::Value;
use spec::{Device, Resolved, Specs};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// Where specifications are by the specification.
pub const DEFAULT_DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];
/// The most specifications that are read of one directory.
const MAX_FILES: usize = 512;
/// The longest specification, in bytes: NVIDIA's of a host with 16 cards, split into 7 each, has 200 KiB.
const MAX_BYTES: u64 = 4 << 20;
/// The most devices that one container may name.
pub const MAX_NAMES: usize = 256;

pub use spec::is_name;

impl Engine {
    /// Gives a container that is to be made the devices of these names.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no name, `FailedPrecondition` for a device that is in no specification, or in two of the same
    /// priority; `Unsupported` for one that needs what nothing here does.
    pub fn add_cdi_devices(&self, names: &[String], draft: &mut Draft) -> Result<()> {
        let mut spec = draft.record.spec.value();
        let groups = self.cdi_edits(names, draft.record.config.security.run_as_user, &mut spec)?;
        draft.record.groups.extend(groups);
        draft.record.spec = SpecText::of(&spec)?;
        Ok(())
    }

    /// The same for a spec; the groups that its processes are to have.
    pub(super) fn cdi_edits(&self, names: &[String], user: Option<u32>, spec: &mut Value) -> Result<Vec<u32>> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let edits = edits(&self.options().cdi_dirs, names, user)?;
        edits.apply(spec).context(|| format!("CDI device {}", names.join(", ")))?;
        Ok(edits.groups.into_iter().collect())
    }
}

/// What the devices of these names add to a container of this user.
fn edits(directories: &[PathBuf], names: &[String], user: Option<u32>) -> Result<Edits> {
    let mut specs = Specs::default();
    for (priority, directory) in directories.iter().enumerate() {
        read_directory(directory, priority, &mut specs)?;
    }
    let Resolved { env, mounts, groups, devices } = specs.resolve(names).map_err(|e| {
        let shown: Vec<_> = directories.iter().map(|dir| dir.display().to_string()).collect();
        e.context(format!("CDI (cdi.spec_dirs: {})", shown.join(", ")))
    })?;
    // As the vendors' own library has it: whoever is not root owns the devices that nobody else was said to.
    let owner = user.filter(|uid| *uid != 0);
    let devices = devices.into_iter().map(|device| node(device, owner)).collect::<Result<_>>()?;
    Ok(Edits { env, mounts, groups, devices })
}

fn node(device: Device, owner: Option<u32>) -> Result<super::edits::DeviceNode> {
    let at = |e: Error| e.context(format!("CDI device node {}", device.path));
    if let Some(kind) = device.kind.filter(|kind| *kind == 'p' || device.numbers.is_some()) {
        return Ok(super::edits::DeviceNode {
            path: device.path,
            kind,
            major: device.numbers.map_or(0, |n| n.0),
            minor: device.numbers.map_or(0, |n| n.1),
            mode: device.mode,
            uid: device.uid.or(owner),
            gid: device.gid,
            access: device.access,
        });
    }
    let found = host_devices::node_at(Path::new(&device.host_path)).map_err(at)?;
    if device.kind.is_some_and(|kind| kind != found.kind) {
        return Err(at(Error::precondition(format!("{} is a device of another type", device.host_path))));
    }
    Ok(super::edits::DeviceNode {
        path: device.path,
        mode: device.mode.or(found.mode),
        uid: device.uid.or(owner),
        gid: device.gid,
        access: device.access,
        ..found
    })
}

/// What is no specification is remembered: it may be why a device is in none.
fn read_directory(directory: &Path, priority: usize, specs: &mut Specs) -> Result<()> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e).context(|| format!("read directory {}", directory.display())),
    };
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in entries.take(MAX_FILES * 8) {
        let path = entry.context(|| format!("read directory {}", directory.display()))?.path();
        if path.extension().is_some_and(|ext| ext == "json" || ext == "yaml") {
            files.push(path);
        }
    }
    if files.len() > MAX_FILES {
        return Err(Error::exhausted(format!("{} has more than {MAX_FILES} specifications", directory.display())));
    }
    files.sort();
    for path in files {
        let name = path.display().to_string();
        match read(&path).and_then(|bytes| parsed(&path, &bytes)) {
            Ok(value) => specs.add(&name, priority, value),
            Err(e) => specs.wrong(&name, &e.to_string()),
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let meta = std::fs::metadata(path).context(|| "look")?;
    if !meta.is_file() {
        return Err(Error::invalid("it is no file"));
    }
    let file = std::fs::File::open(path).context(|| "open")?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).context(|| "read")?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Error::exhausted(format!("it is larger than {MAX_BYTES} bytes")));
    }
    Ok(bytes)
}

fn parsed(path: &Path, bytes: &[u8]) -> Result<Value> {
    if path.extension().is_some_and(|ext| ext == "json") {
        return serde_json::from_slice(bytes).map_err(|e| Error::invalid(format!("not JSON: {e}")));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| Error::invalid("not UTF-8"))?;
    yaml::value(text).map_err(Error::invalid)
}

/// How many devices the directories have, and what is wrong with files in them.
///
/// # Errors
/// Those of reading a directory.
pub fn survey(directories: &[PathBuf]) -> Result<(usize, Vec<String>)> {
    let mut specs = Specs::default();
    for (priority, directory) in directories.iter().enumerate() {
        read_directory(directory, priority, &mut specs)?;
    }
    Ok((specs.count(), specs.problems()))
}
