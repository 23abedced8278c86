//! Device nodes of the host that a container is given: all of them, or those that it names (CRI `Device`).

use super::edits::DeviceNode;
use crate::error::{Context, Error, Result};
use crate::state::model::Device;
use crate::sys;
use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The most devices of the host that a container is given.
const MAX_DEVICES: usize = 4096;
/// The most directories below one that a container names.
const MAX_DEPTH: usize = 8;

/// The nodes that a container names, links of the host followed; of a directory all that are in there, as in containerd.
///
/// # Errors
/// `InvalidArgument` for what is no device, naming it, `ResourceExhausted`.
pub(super) fn asked(devices: &[Device]) -> Result<Vec<DeviceNode>> {
    let mut nodes = Vec::new();
    for device in devices {
        let at = |e: Error| e.context(format!("device {}", device.host_path.display()));
        let meta = look(&device.host_path)?;
        if meta.is_dir() {
            below(&device.host_path, &device.container_path, device, MAX_DEPTH, &mut nodes).map_err(at)?;
            continue;
        }
        let node =
            node_of(&meta).ok_or_else(|| at(Error::invalid("it is neither a device nor a directory of them")))?;
        nodes.push(DeviceNode { path: device.container_path.clone(), access: device.permissions.clone(), ..node });
    }
    Ok(nodes)
}

fn below(directory: &Path, path: &str, asked: &Device, depth: usize, nodes: &mut Vec<DeviceNode>) -> Result<()> {
    let entries = std::fs::read_dir(directory).context(|| format!("read directory {}", directory.display()))?;
    for entry in entries {
        let entry = entry.context(|| format!("read directory {}", directory.display()))?;
        let Ok(meta) = entry.metadata() else { continue };
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
        let inside = format!("{}/{name}", path.trim_end_matches('/'));
        // Not the ends of pseudoterminals, nor what is the container's own anyway.
        if meta.is_dir() && depth > 0 && !["pts", "shm", "fd", "mqueue"].contains(&name.as_str()) {
            below(&entry.path(), &inside, asked, depth - 1, nodes)?;
        } else if let Some(node) = node_of(&meta).filter(|_| name != "console") {
            nodes.push(DeviceNode { path: inside, access: asked.permissions.clone(), ..node });
        }
        if nodes.len() > MAX_DEVICES {
            return Err(Error::exhausted(format!("more than {MAX_DEVICES} devices")));
        }
    }
    Ok(())
}

/// A node of the host; its path and access are the caller's to say.
///
/// # Errors
/// `InvalidArgument` when it is none, `FailedPrecondition` when nothing is there; those of stat(2).
pub(super) fn node_at(path: &Path) -> Result<DeviceNode> {
    let meta = look(path)?;
    node_of(&meta).ok_or_else(|| Error::invalid(format!("{} is no device", path.display())))
}

/// Links followed. A device that is not there may come: it is the host's to have, and not podwright's own failure.
fn look(path: &Path) -> Result<Metadata> {
    match std::fs::metadata(path) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::InvalidInput) => {
            let remedy = "load its driver, or leave it out";
            Err(Error::precondition(format!("device {:?} is not there: {remedy}", path.display().to_string())))
        }
        meta => meta.context(|| format!("look at {}", path.display())),
    }
}

fn node_of(meta: &Metadata) -> Option<DeviceNode> {
    let kind = match meta.file_type() {
        t if t.is_char_device() => 'c',
        t if t.is_block_device() => 'b',
        _ => return None,
    };
    let (major, minor) = sys::device_numbers(meta.rdev());
    Some(DeviceNode {
        path: String::new(),
        kind,
        major,
        minor,
        mode: Some(meta.mode() & 0o7777),
        uid: Some(meta.uid()),
        gid: Some(meta.gid()),
        access: String::new(),
    })
}

/// The host's device nodes below /dev, for a privileged container; what the container mounts there itself is left out.
pub(super) fn all() -> Vec<(String, char, u32, u32, u32)> {
    let mut found = Vec::new();
    let mut directories = vec![PathBuf::from("/dev")];
    while let Some(directory) = directories.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            let skip = ["/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/console"];
            if skip.iter().any(|s| path == Path::new(s)) || found.len() >= MAX_DEVICES {
                continue;
            }
            match sys::device(&path) {
                Ok(Some(node)) => {
                    found.push((path.to_string_lossy().into_owned(), node.kind, node.major, node.minor, node.mode))
                }
                Ok(None) if entry.file_type().is_ok_and(|t| t.is_dir()) => directories.push(path),
                _ => {}
            }
        }
    }
    found.sort();
    found
}
