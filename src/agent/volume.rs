//! What a volume is on the host: a directory to make, files to write in it, or a path to check. Decides; the writing is in
//! `volume_files`.
//!
//! Files of configMap, secret, downwardAPI and projected volumes are plain files: nothing changes them while the pod lives, so the
//! kubelet's swap of a `..data` link has nothing to do here.

use super::convert::NodeFacts;
use super::expand::Scope;
use super::names::Wrong;
use super::pod::{DownwardValue, FileSource, FilesFrom, HostPathType, KeyToPath, Volume, VolumeSource};
use super::problem::ManifestError;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A volume of a pod on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumePlan {
    pub name: String,
    /// Its root, which is what is mounted.
    pub path: PathBuf,
    pub content: Content,
    /// Of everything in it, if the pod has one; not of a hostPath.
    pub fs_group: Option<u32>,
}

/// What must be at [`VolumePlan::path`] before a container mounts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// An empty directory, mode 0777.
    EmptyDir,
    /// What the host has there.
    HostPath(HostPathType),
    /// Nothing: it is the files of this image.
    Image(String),
    /// A directory, mode 0755, with these files by their relative paths. Mounted read-only.
    Files(BTreeMap<String, File>),
}

/// A file of a volume.
#[derive(Clone, PartialEq, Eq)]
pub struct File {
    pub mode: u32,
    pub bytes: Vec<u8>,
}

impl std::fmt::Debug for File {
    /// Without the bytes: they may be secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04o}, {} bytes", self.mode, self.bytes.len())
    }
}

impl VolumePlan {
    /// Whether mounts are read-only whatever the manifest says.
    pub fn is_readonly(&self) -> bool {
        matches!(self.content, Content::Files(_) | Content::Image(_))
    }

    /// Whether nobody else has what is in it: not what the host, or an image, has there.
    pub fn is_pods_own(&self) -> bool {
        matches!(self.content, Content::EmptyDir | Content::Files(_))
    }

    /// What a mount of the volume, or of `sub_path` in it, takes from the host.
    ///
    /// # Errors
    /// A sub-path where a container may write: it could put a link there that leads out of the volume (CVE-2017-1002101), and
    /// mounts are made by path. One that is not in the volume.
    pub(super) fn source(&self, sub_path: Option<&str>) -> Result<PathBuf, Wrong> {
        let Some(sub) = sub_path.map(|s| s.trim_matches('/')) else { return Ok(self.path.clone()) };
        let Content::Files(files) = &self.content else {
            return Err((
                "subPath of a volume that containers write is not honoured by this podwright".into(),
                "mount the whole volume".into(),
            ));
        };
        let inside =
            |path: &String| path.strip_prefix(sub).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        if !files.keys().any(inside) {
            return Err(("not in the volume".into(), format!("it has {}", join(files.keys()))));
        }
        Ok(self.path.join(sub))
    }
}

fn join<'a>(names: impl Iterator<Item = &'a String>) -> String {
    names.map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// The plan of one volume.
pub(super) fn plan(scope: &Scope<'_>, volume: &Volume, facts: &NodeFacts) -> Result<VolumePlan, ManifestError> {
    let below = |dir: &PathBuf| dir.join("volumes").join(&volume.name);
    let (path, content) = match &volume.source {
        VolumeSource::EmptyDir => (below(&facts.pod_dir), Content::EmptyDir),
        VolumeSource::HostPath { path, check } => (PathBuf::from(path), Content::HostPath(*check)),
        VolumeSource::Image { reference, .. } => (PathBuf::new(), Content::Image(reference.value.clone())),
        VolumeSource::Files { sources, default_mode, secret } => {
            let mut files = BTreeMap::new();
            for source in sources {
                add_files(scope, source, *default_mode, &mut files)?;
            }
            for path in files.keys() {
                let above = path.match_indices('/').map(|(end, _)| &path[..end]);
                if let Some(file) = above.into_iter().find(|a| files.contains_key(*a)) {
                    let message = format!("{path} is below {file}, which is a file");
                    return Err(scope.wrong(&volume.spot, message, "give one of the two another path"));
                }
            }
            let dir = if *secret { &facts.secret_dir } else { &facts.pod_dir };
            (below(dir), Content::Files(files))
        }
    };
    let fs_group =
        scope.pod.spec.security.fs_group.filter(|_| !matches!(content, Content::HostPath(_) | Content::Image(_)));
    Ok(VolumePlan { name: volume.name.clone(), path, content, fs_group })
}

fn add_files(
    scope: &Scope<'_>,
    source: &FileSource,
    default_mode: u32,
    files: &mut BTreeMap<String, File>,
) -> Result<(), ManifestError> {
    match &source.from {
        FilesFrom::Keys { secret, name, items, .. } => {
            // Absent means optional here: anything else was refused when the file was read.
            let Some(found) = scope.objects.find(*secret, &scope.pod.metadata.namespace, name) else { return Ok(()) };
            if items.is_empty() {
                for (key, bytes) in found.text.iter().chain(&found.binary) {
                    files.insert(key.clone(), File { mode: default_mode, bytes: bytes.clone() });
                }
            }
            for KeyToPath { key, path, mode } in items {
                if let Some(bytes) = found.get(key) {
                    let file = File { mode: mode.unwrap_or(default_mode), bytes: bytes.to_vec() };
                    files.insert(path.clone(), file);
                }
            }
        }
        FilesFrom::Downward(items) => {
            for item in items {
                let text = match &item.value {
                    DownwardValue::Field(reference) => scope.field(reference, &source.spot)?,
                    DownwardValue::Resource(reference) => {
                        // In a volume the container is always named.
                        scope.resource(reference, &super::pod::Container::default())
                    }
                };
                let file = File { mode: item.mode.unwrap_or(default_mode), bytes: text.into_bytes() };
                files.insert(item.path.clone(), file);
            }
        }
    }
    Ok(())
}
