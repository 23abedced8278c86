//! Where podwright mounts something in every container: an overlay lower directory below the layers of any image. To make a file in a
//! container's own layer means to copy the directory up first, and takes a tenth of a start on ext4.

use crate::error::{Context, Result};
use std::fs::{File, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const DIRECTORIES: [&str; 5] = ["", "dev", "proc", "sys", "etc"];
const FILES: [&str; 3] = ["etc/hosts", "etc/hostname", "etc/resolv.conf"];

/// Makes what is missing below `root`; the last file tells that all is there.
///
/// # Errors
/// `Internal` naming the path.
pub(super) fn make(root: &Path) -> Result<()> {
    if FILES.last().is_some_and(|last| root.join(last).exists()) {
        return Ok(());
    }
    for name in DIRECTORIES {
        let path = root.join(name);
        let made = match std::fs::create_dir(&path) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()), // somebody else has begun
            made => made,
        };
        let made = made.and_then(|()| std::fs::set_permissions(&path, Permissions::from_mode(0o755)));
        made.context(|| format!("mkdir {}", path.display()))?;
    }
    for name in FILES {
        let path = root.join(name);
        let made = File::options().append(true).create(true).open(&path);
        let made = made.and_then(|file| file.set_permissions(Permissions::from_mode(0o644)));
        made.context(|| format!("make {}", path.display()))?;
    }
    Ok(())
}
