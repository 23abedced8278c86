//! Device nodes: `st_rdev` of stat(2), taken apart as makedev(3) puts it together.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// A character (`c`) or block (`b`) device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    pub kind: char,
    pub major: u32,
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
}

/// The device that `path` is; `None` for a file of another type. Links are not followed.
///
/// # Errors
/// Those of lstat(2).
pub fn device(path: &Path) -> io::Result<Option<Device>> {
    let meta = std::fs::symlink_metadata(path)?;
    let kind = match meta.file_type() {
        t if t.is_char_device() => 'c',
        t if t.is_block_device() => 'b',
        _ => return Ok(None),
    };
    let number = meta.rdev();
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    Ok(Some(Device { kind, major, minor, mode: meta.mode() & 0o7777 }))
}

/// Major and minor number of an `st_rdev`, makedev(3).
pub fn device_numbers(rdev: u64) -> (u32, u32) {
    (rustix::fs::major(rdev), rustix::fs::minor(rdev))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dev_null_is_character_device_1_3() {
        let null = device(Path::new("/dev/null")).expect("there").expect("a device");
        assert_eq!((null.kind, null.major, null.minor), ('c', 1, 3));
        assert_eq!(device(Path::new("/")).expect("there"), None);
    }
}
