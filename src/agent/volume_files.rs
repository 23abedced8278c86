//! Makes on the host what a [`VolumePlan`] decided: directories, files, checks of host paths.

use super::pod::HostPathType;
use super::volume::{Content, VolumePlan};
use crate::engine::mkdir_all;
use crate::error::{Context, Error, Result};
use crate::state::record::{Durability, write_bytes};
use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Mode of a directory that gets a group: rwx for it, and new files get the group too.
const GROUP_DIR_BITS: u32 = 0o2770;

/// Prepares a volume.
///
/// # Errors
/// `FailedPrecondition` for a host path that is not what its type says, naming both; `Internal` when something cannot be made.
pub fn prepare(volume: &VolumePlan) -> Result<()> {
    let named = || format!("volume {:?}", volume.name);
    match &volume.content {
        Content::EmptyDir => empty_dir(volume).context(named),
        Content::HostPath(kind) => host_path(&volume.path, *kind).context(named),
        Content::Files(files) => {
            mkdir_all(&volume.path, 0o755).context(named)?;
            for (name, file) in files {
                let path = volume.path.join(name);
                if let Some(parent) = path.parent() {
                    mkdir_all(parent, 0o755).context(named)?;
                }
                let group = if volume.fs_group.is_some() { (file.mode & 0o400) >> 3 } else { 0 };
                write_bytes(&path, &file.bytes, file.mode | group, Durability::Boot).context(named)?;
                set(&path, volume.fs_group, file.mode | group).context(named)?;
            }
            Ok(())
        }
    }
}

fn empty_dir(volume: &VolumePlan) -> Result<()> {
    mkdir_all(&volume.path, 0o755)?;
    let mode = if volume.fs_group.is_some() { 0o777 | GROUP_DIR_BITS } else { 0o777 };
    set(&volume.path, volume.fs_group, mode)
}

/// Owner before mode: chown(2) takes the setgid bit away.
fn set(path: &Path, group: Option<u32>, mode: u32) -> Result<()> {
    if let Some(group) = group {
        std::os::unix::fs::chown(path, None, Some(group))
            .context(|| format!("give {} to group {group}", path.display()))?;
    }
    std::fs::set_permissions(path, Permissions::from_mode(mode)).context(|| format!("chmod {}", path.display()))
}

/// As the kubelet checks and makes it (pkg/volume/hostpath/host_path.go).
fn host_path(path: &Path, kind: HostPathType) -> Result<()> {
    let found = std::fs::metadata(path);
    let is = |fits: fn(&std::fs::FileType) -> bool| found.as_ref().is_ok_and(|m| fits(&m.file_type()));
    let wanted = match kind {
        HostPathType::Unchecked => return require(found.is_ok(), path, "to exist (or give type: DirectoryOrCreate)"),
        HostPathType::DirectoryOrCreate if found.is_err() => return mkdir_all(path, 0o755),
        HostPathType::FileOrCreate if found.is_err() => {
            let made = OpenOptions::new().create_new(true).write(true).mode(0o644).open(path);
            return made.map(|_| ()).context(|| format!("make {}", path.display()));
        }
        HostPathType::Directory | HostPathType::DirectoryOrCreate => {
            (is(std::fs::FileType::is_dir), "to be a directory")
        }
        HostPathType::File | HostPathType::FileOrCreate => (is(std::fs::FileType::is_file), "to be a file"),
        HostPathType::Socket => (is(std::fs::FileType::is_socket), "to be a socket"),
        HostPathType::CharDevice => (is(std::fs::FileType::is_char_device), "to be a character device"),
        HostPathType::BlockDevice => (is(std::fs::FileType::is_block_device), "to be a block device"),
    };
    require(wanted.0, path, wanted.1)
}

fn require(fits: bool, path: &Path, wanted: &str) -> Result<()> {
    if fits {
        return Ok(());
    }
    let found = match std::fs::metadata(path) {
        Ok(meta) => format!("it has mode {:o}", meta.mode()),
        Err(e) => crate::error::describe_io(&e),
    };
    Err(Error::precondition(format!("hostPath {} was expected {wanted}: {found}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_path_must_be_what_its_type_says() {
        let dir = tempfile::tempdir().expect("tempdir");
        assert!(host_path(dir.path(), HostPathType::Directory).is_ok());
        let e = host_path(dir.path(), HostPathType::File).expect_err("a directory");
        assert!(e.to_string().contains("to be a file"), "{e}");
        let made = dir.path().join("a/b");
        host_path(&made, HostPathType::DirectoryOrCreate).expect("made");
        assert!(made.is_dir());
        assert!(host_path(&dir.path().join("x/y"), HostPathType::FileOrCreate).is_err(), "its parent must exist");
        assert!(host_path(Path::new("/dev/null"), HostPathType::CharDevice).is_ok());
    }
}
