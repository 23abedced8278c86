//! Makes what a [`VolumePlan`] says. What is to be there is decided in `volume`.
//!
//! Runs before any container of the pod, in directories of podwright's own that only root can enter, so that nobody can put a
//! link in its way. Removing them with the pod is the caller's: they are all below the two directories of the plan's facts.

use super::pod::HostPathType;
use super::volume::{Content, File, VolumePlan};
use crate::error::{Context, Error, Result};
use std::collections::BTreeMap;
use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;

/// fsGroup's bits (pkg/volume/volume_linux.go): group may write (or read only), enter directories, and files made there are its.
const GROUP_WRITE: u32 = 0o660;
const GROUP_READ: u32 = 0o440;
const GROUP_DIR: u32 = 0o2110;

/// Makes the volume ready to be mounted. Made again it is left as it is: volumes outlive their containers.
///
/// # Errors
/// `FailedPrecondition` when the host has something else than a hostPath asks for, what the system calls say otherwise.
pub fn prepare(plan: &VolumePlan) -> Result<()> {
    let made = match &plan.content {
        Content::EmptyDir => empty_dir(&plan.path, plan.fs_group),
        Content::Files(files) => write_files(&plan.path, files, plan.fs_group),
        Content::Image(_) => Ok(()),
        Content::HostPath(check) => host_path(&plan.path, *check),
    };
    made.context(|| format!("prepare volume {}", plan.name))
}

/// Sets exactly this mode, whatever the umask.
fn chmod(path: &Path, mode: u32) -> Result<()> {
    std::fs::set_permissions(path, Permissions::from_mode(mode))
        .context(|| format!("chmod {} to {mode:o}", path.display()))
}

fn give(path: &Path, group: u32) -> Result<()> {
    chown(path, None, Some(group)).context(|| format!("chgrp {} to {group}", path.display()))
}

/// `true` if it was made now.
fn make_dir(path: &Path) -> Result<bool> {
    let parent = path.parent().unwrap_or(path);
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700).create(parent).context(|| format!("mkdir {}", parent.display()))?;
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(e).context(|| format!("mkdir {}", path.display())),
    }
}

fn empty_dir(path: &Path, group: Option<u32>) -> Result<()> {
    if make_dir(path)? {
        // The group first: chown clears set-id bits.
        group.map_or(Ok(()), |g| give(path, g))?;
        chmod(path, if group.is_some() { 0o777 | GROUP_DIR | GROUP_WRITE } else { 0o777 })?;
    }
    Ok(())
}

fn write_files(root: &Path, files: &BTreeMap<String, File>, group: Option<u32>) -> Result<()> {
    if !make_dir(root)? {
        return Ok(());
    }
    for (relative, file) in files {
        let path = root.join(relative);
        let mut dir = root.to_path_buf();
        for part in Path::new(relative).parent().unwrap_or(Path::new("")).components() {
            dir.push(part);
            if make_dir(&dir)? {
                finish_dir(&dir, group)?;
            }
        }
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        opened.and_then(|mut f| f.write_all(&file.bytes)).context(|| format!("write {}", path.display()))?;
        group.map_or(Ok(()), |g| give(&path, g))?;
        chmod(&path, if group.is_some() { file.mode | GROUP_READ } else { file.mode })?;
    }
    finish_dir(root, group)
}

fn finish_dir(dir: &Path, group: Option<u32>) -> Result<()> {
    group.map_or(Ok(()), |g| give(dir, g))?;
    chmod(dir, if group.is_some() { 0o755 | GROUP_DIR | GROUP_READ } else { 0o755 })
}

/// Checks, and makes where the type says so; links are followed (pkg/volume/hostpath/host_path.go).
fn host_path(path: &Path, check: HostPathType) -> Result<()> {
    let shown = path.display();
    let found = match std::fs::metadata(path) {
        Ok(metadata) => Some(metadata.file_type()),
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        Err(e) => return Err(e).context(|| format!("stat {shown}")),
    };
    let Some(found) = found else {
        let made = match check {
            // The kubelet does nothing for no type; containerd and CRI-O then make a directory, and pods rely on it.
            HostPathType::Unchecked | HostPathType::DirectoryOrCreate => {
                DirBuilder::new().recursive(true).mode(0o755).create(path)
            }
            HostPathType::FileOrCreate => {
                OpenOptions::new().write(true).create_new(true).mode(0o644).open(path).map(drop)
            }
            other => {
                let message = format!("hostPath {shown} does not exist, and its type is {other:?}");
                return Err(Error::precondition(message));
            }
        };
        return made.context(|| format!("make {shown}"));
    };
    let right = match check {
        HostPathType::Unchecked => true,
        HostPathType::DirectoryOrCreate | HostPathType::Directory => found.is_dir(),
        HostPathType::FileOrCreate | HostPathType::File => found.is_file(),
        HostPathType::Socket => found.is_socket(),
        HostPathType::CharDevice => found.is_char_device(),
        HostPathType::BlockDevice => found.is_block_device(),
    };
    if right { Ok(()) } else { Err(Error::precondition(format!("hostPath {shown} is not of type {check:?}"))) }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test plants whole files")]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::path::PathBuf;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).expect("it is there").mode() & 0o7777
    }

    fn volume(path: PathBuf, content: Content, fs_group: Option<u32>) -> VolumePlan {
        VolumePlan { name: "v".into(), path, content, fs_group }
    }

    /// The caller's own group: to give files away takes root, which these tests do not need.
    fn own_group(dir: &Path) -> u32 {
        std::fs::metadata(dir).expect("it is there").gid()
    }

    #[test]
    fn an_empty_dir_is_everybodys_and_survives_being_prepared_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let plan = volume(dir.path().join("volumes/v"), Content::EmptyDir, None);
        prepare(&plan).expect("made");
        assert_eq!(mode(&plan.path), 0o777);
        std::fs::write(plan.path.join("kept"), "").expect("a file");
        prepare(&plan).expect("left alone");
        assert!(plan.path.join("kept").exists());
        let group = Some(own_group(dir.path()));
        let grouped = volume(dir.path().join("volumes/g"), Content::EmptyDir, group);
        prepare(&grouped).expect("made");
        assert_eq!(mode(&grouped.path), 0o2777, "files made there are the group's");
    }

    #[test]
    fn files_have_their_bytes_and_modes_and_the_group_may_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = |mode, text: &str| File { mode, bytes: text.as_bytes().to_vec() };
        let files: BTreeMap<_, _> =
            [("a".to_owned(), file(0o400, "A")), ("sub/deep/b".to_owned(), file(0o644, "B"))].into();
        let plan = volume(dir.path().join("v"), Content::Files(files.clone()), None);
        prepare(&plan).expect("made");
        assert_eq!(std::fs::read_to_string(plan.path.join("sub/deep/b")).expect("readable"), "B");
        assert_eq!((mode(&plan.path.join("a")), mode(&plan.path.join("sub")), mode(&plan.path)), (0o400, 0o755, 0o755));
        let plan = volume(dir.path().join("g"), Content::Files(files), Some(own_group(dir.path())));
        prepare(&plan).expect("made");
        assert_eq!((mode(&plan.path.join("a")), mode(&plan.path)), (0o440, 0o2755));
    }

    #[test]
    fn host_paths_are_checked_and_made_as_their_type_says() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        let host = |name: &str, check| prepare(&volume(at(name), Content::HostPath(check), None));
        host("d/e", HostPathType::DirectoryOrCreate).expect("made");
        host("d/e", HostPathType::Directory).expect("there");
        host("f", HostPathType::FileOrCreate).expect("made");
        host("f", HostPathType::File).expect("there");
        host("f", HostPathType::Unchecked).expect("there");
        std::os::unix::net::UnixListener::bind(at("s")).expect("a socket");
        host("s", HostPathType::Socket).expect("there");
        std::os::unix::fs::symlink(at("d"), at("link")).expect("a link");
        host("link", HostPathType::Directory).expect("links are followed");
        host("made", HostPathType::Unchecked).expect("made");
        assert!(at("made").is_dir());
        for (name, check) in [
            ("f", HostPathType::Directory),
            ("d", HostPathType::File),
            ("f", HostPathType::Socket),
            ("none", HostPathType::Directory),
        ] {
            let error = host(name, check).expect_err(name);
            assert_eq!(error.kind(), crate::error::Kind::FailedPrecondition, "{error}");
            assert!(error.to_string().contains(&at(name).display().to_string()), "{error}");
        }
        assert!(host("no/parent", HostPathType::FileOrCreate).is_err());
    }
}
