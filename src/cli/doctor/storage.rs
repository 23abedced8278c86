//! The two directories: their file systems, and the room that is left.

use super::{Finding, Verdict};
use crate::config::Settings;
use crate::error::describe_io;
use crate::sys::probe::{self, FileSystem};
use std::path::Path;

const AREA: &str = "storage";

/// Below this, an import fails halfway: one ordinary image is larger.
const LEAST_FREE_BYTES: u64 = 512 << 20;
/// Below this share of the disk, in percent: where the kubelet begins to evict pods (imagefs.available<15%, nodefs 10%).
const LOW_PERCENT: u64 = 10;

/// What a file system is as the home of layers and writable roots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fitness {
    Good,
    /// Works, but does not keep anything.
    Volatile,
    /// overlay cannot have its upper directory there.
    NoUpper,
    /// Not tried.
    Unknown,
}

/// linux/magic.h: what podwright knows of each.
const KNOWN: &[(u64, &str, Fitness)] = &[
    (0xEF53, "ext4", Fitness::Good),
    (0x5846_5342, "xfs", Fitness::Good),
    (0x9123_683E, "btrfs", Fitness::Good),
    (0xF2F5_2010, "f2fs", Fitness::Good),
    (0x2FC1_2FC1, "zfs", Fitness::Unknown),
    (0x0102_1994, "tmpfs", Fitness::Volatile),
    (0x8584_58F6, "ramfs", Fitness::Volatile),
    (0x794C_7630, "overlay", Fitness::NoUpper),
    (0x6969, "nfs", Fitness::NoUpper),
    (0x6573_5546, "fuse", Fitness::NoUpper),
    (0x0102_1997, "9p", Fitness::NoUpper),
    (0xFF53_4D42, "cifs", Fitness::NoUpper),
    (0x7371_7368, "squashfs", Fitness::NoUpper),
    (0xE0F5_E1E2, "erofs", Fitness::NoUpper),
];

pub(super) fn check(settings: &Settings) -> Vec<Finding> {
    let mut findings = vec![];
    let why = "layers and writable roots are there; overlay needs an upper directory with xattrs and whiteouts";
    match measure(&settings.root) {
        Ok(fs) => findings.extend([root(&settings.root, fs, why), room(&settings.root, fs)]),
        Err(found) => {
            findings.push(Finding::ok(AREA, "root", found, why).but(Verdict::Fail, "set --root to a local disk"))
        }
    }
    let why = "records and sockets of running pods are there; they mean nothing after a reboot, which a tmpfs knows by itself";
    match measure(&settings.state) {
        Ok(fs) => findings.push(state(&settings.state, fs, why)),
        Err(found) => {
            findings.push(Finding::ok(AREA, "state", found, why).but(Verdict::Fail, "set --state to a tmpfs"))
        }
    }
    findings
}

/// The file system at `path`, or where it will be made.
fn measure(path: &Path) -> Result<FileSystem, String> {
    let there = path.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    if !there.is_dir() {
        return Err(format!("{}: not a directory", there.display()));
    }
    probe::file_system(there).map_err(|e| format!("{}: {}", there.display(), describe_io(&e)))
}

fn known(magic: u64) -> (String, Fitness) {
    let known = KNOWN.iter().find(|(number, _, _)| *number == magic);
    known.map_or((format!("file system {magic:#x}"), Fitness::Unknown), |(_, name, fitness)| {
        ((*name).to_owned(), *fitness)
    })
}

fn root(path: &Path, fs: FileSystem, why: &str) -> Finding {
    let (name, fitness) = known(fs.magic);
    let finding = Finding::ok(AREA, "root", format!("{} on {name}", path.display()), why);
    match fitness {
        _ if fs.read_only => finding.but(Verdict::Fail, "it is mounted read-only: set --root to a writable local disk"),
        Fitness::Good => finding,
        Fitness::Volatile => {
            finding.but(Verdict::Warn, "images are gone after a reboot and take memory: set --root to a local disk")
        }
        Fitness::NoUpper => finding.but(Verdict::Fail, "set --root to a local disk; in a container, to a volume"),
        Fitness::Unknown => finding.but(Verdict::Warn, "not tried with podwright: ext4, xfs and btrfs are"),
    }
}

fn state(path: &Path, fs: FileSystem, why: &str) -> Finding {
    let (name, fitness) = known(fs.magic);
    let finding = Finding::ok(AREA, "state", format!("{} on {name}", path.display()), why);
    match fitness {
        _ if fs.read_only => finding.but(Verdict::Fail, "it is mounted read-only: set --state to a tmpfs"),
        Fitness::Volatile => finding,
        _ => finding.but(
            Verdict::Warn,
            "set --state to a tmpfs (/run on most hosts); elsewhere records stay until the next sweep",
        ),
    }
}

fn room(path: &Path, fs: FileSystem) -> Finding {
    let why = "a full disk stops imports and every container that writes";
    let percent = |part: u64, whole: u64| u128::from(part) * 100 / u128::from(whole.max(1));
    let bytes = percent(fs.free_bytes, fs.total_bytes);
    let inodes = if fs.total_inodes == 0 { 100 } else { percent(fs.free_inodes, fs.total_inodes) };
    let found = format!("{} free ({bytes} %), {inodes} % of inodes", human(fs.free_bytes));
    let finding = Finding::ok(AREA, "room", found, why);
    let remedy = format!("podwright prune, or a larger file system at {}", path.display());
    if fs.free_bytes < LEAST_FREE_BYTES || inodes == 0 {
        return finding.but(Verdict::Fail, remedy);
    }
    if bytes < u128::from(LOW_PERCENT) || inodes < u128::from(LOW_PERCENT) {
        return finding.but(Verdict::Warn, remedy);
    }
    finding
}

/// Bytes for people: `1.5 GiB`.
fn human(bytes: u64) -> String {
    const UNITS: &[&str] = &["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut tenths = u128::from(bytes) * 10;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: FileSystem = FileSystem {
        magic: 0xEF53,
        read_only: false,
        total_bytes: 100 << 30,
        free_bytes: 50 << 30,
        total_inodes: 100,
        free_inodes: 50,
    };

    #[test]
    fn the_root_is_refused_on_overlay_with_the_remedy_and_taken_on_ext4() {
        let path = Path::new("/var/lib/podwright");
        let finding = root(path, FileSystem { magic: 0x794C_7630, ..DISK }, "why");
        assert_eq!((finding.verdict, finding.found.as_str()), (Verdict::Fail, "/var/lib/podwright on overlay"));
        assert!(finding.remedy.expect("a fault has a remedy").contains("--root"));
        assert_eq!(root(path, DISK, "why").verdict, Verdict::Ok);
        assert_eq!(root(path, FileSystem { read_only: true, ..DISK }, "why").verdict, Verdict::Fail);
    }

    #[test]
    fn room_is_judged_by_bytes_and_by_inodes() {
        let path = Path::new("/x");
        let verdict = |fs| room(path, fs).verdict;
        assert_eq!(verdict(DISK), Verdict::Ok);
        assert_eq!(verdict(FileSystem { free_bytes: 5 << 30, ..DISK }), Verdict::Warn);
        assert_eq!(verdict(FileSystem { free_bytes: 1 << 20, ..DISK }), Verdict::Fail);
        assert_eq!(verdict(FileSystem { free_inodes: 0, ..DISK }), Verdict::Fail);
        assert_eq!(verdict(FileSystem { total_inodes: 0, free_inodes: 0, ..DISK }), Verdict::Ok);
    }

    #[test]
    fn bytes_are_read_by_people() {
        assert_eq!([human(0), human(1536), human(65 << 30)], ["0.0 B", "1.5 KiB", "65.0 GiB"]);
    }
}
