//! Whether an image has a directory, told from its layers before anything is mounted.

use crate::error::{Context, Result};
use crate::sys::at::{self, Node, OFlags, ResolveFlags, openat2};
use crate::sys::fgetxattr;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// See [`super::unpack`].
const OPAQUE: &str = "trusted.overlay.opaque";

/// Whether `part`, a relative path without `..`, is certainly no directory of the image. What lies behind a symbolic link is for who mounts
/// it to find. `layers`: the lowest first.
///
/// # Errors
/// `Internal`, naming the layer or the part.
pub fn lacks(layers: &[PathBuf], part: &str) -> Result<bool> {
    let open = |layer: &PathBuf| File::open(layer).map(OwnedFd::from).context(|| format!("open {}", layer.display()));
    // What is merged at the place that was reached, the uppermost first.
    let mut merged: Vec<OwnedFd> = layers.iter().rev().map(open).collect::<Result<_>>()?;
    for name in part.split('/').filter(|name| !name.is_empty() && *name != ".").map(OsStr::new) {
        let mut inner = Vec::new();
        for directory in &merged {
            match at::statat(directory.as_fd(), name).context(|| format!("look for {part:?}"))? {
                None => {}
                Some(Node::Directory) => {
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
                    let opened = openat2(directory.as_fd(), Path::new(name), flags, 0, ResolveFlags::BENEATH);
                    let opened = opened.context(|| format!("open {name:?} of {part:?}"))?;
                    let opaque =
                        fgetxattr(opened.as_fd(), OsStr::new(OPAQUE)).context(|| format!("look into {part:?}"))?;
                    inner.push(opened);
                    if opaque.as_deref() == Some(b"y") {
                        break;
                    }
                }
                Some(Node::Symlink) if inner.is_empty() => return Ok(false),
                // A whiteout or a file: nothing of the layers below is seen through it.
                Some(_) => break,
            }
        }
        if inner.is_empty() {
            return Ok(true);
        }
        merged = inner;
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::fs::{create_dir_all, write};

    #[test]
    fn a_directory_is_looked_for_through_all_layers() {
        let temp = tempfile::tempdir().expect("tempdir");
        let [lower, upper] = ["lower", "upper"].map(|name| temp.path().join(name));
        for path in ["lower/both/deep", "lower/file", "upper/both/new", "upper/own"] {
            create_dir_all(temp.path().join(path)).expect("mkdir");
        }
        write(upper.join("file"), "").expect("write");
        std::os::unix::fs::symlink("own", upper.join("link")).expect("symlink");
        let lacks = |part: &str| super::lacks(&[lower.clone(), upper.clone()], part).expect("it can be read");
        for there in ["", ".", "both", "both/deep", "both//new/", "own", "link", "link/whatever"] {
            assert!(!lacks(there), "{there}");
        }
        for absent in ["none", "both/none", "own/deep", "file", "file/deep"] {
            assert!(lacks(absent), "{absent}");
        }
    }
}
