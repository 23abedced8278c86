//! Giving files SELinux's label of a container: the pod's own files, and volumes for which that is asked (CRI `Mount.selinux_relabel`).
//!
//! A volume is somebody else's to write to: it is walked by descriptors of its directories and nothing is followed on the way. Places that
//! the host itself lives in are refused, as by go-selinux: their labels would be lost for good.

use crate::error::{Context, Error, Kind, Result};
use crate::sys::at::{self, Node, OFlags, ResolveFlags};
use crate::sys::{getxattr_of, setxattr_of};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// The attribute that is a file's label.
const ATTRIBUTE: &str = "security.selinux";
/// How deep a volume may be: a descriptor is held for each directory on the way.
const MAX_DEPTH: usize = 128;
/// How many files one may have.
const MAX_ENTRIES: usize = 20_000_000;
/// How many names are in memory at a time, of a directory and those above it: 73 MB of the longest.
const MAX_NAMES: usize = 256 << 10;
/// How long it may take: what a kubelet waits for a container to be made.
const MAX_TIME: Duration = Duration::from_secs(120);

/// What is never relabelled, though what is below some of them may be.
const REFUSED: [&str; 31] = [
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/etc/passwd",
    "/etc/pki",
    "/etc/shadow",
    "/home",
    "/lib",
    "/lib64",
    "/media",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/var",
    "/var/lib",
    "/var/log",
    "/usr/bin",
    "/usr/lib",
    "/usr/lib64",
    "/usr/libexec",
    "/usr/local",
    "/usr/sbin",
    "/usr/share",
];
/// Nor anything that is below these.
const REFUSED_BELOW: [&str; 4] = ["/boot", "/dev", "/proc", "/sys"];

/// Whether a path, without links, is the host's own place.
fn is_refused(path: &Path) -> bool {
    let home = path.parent() == Some(Path::new("/home"));
    home || REFUSED.iter().any(|refused| path == Path::new(refused))
        || REFUSED_BELOW.iter().any(|refused| path.starts_with(refused))
}

/// Gives one file or directory a label.
///
/// # Errors
/// Naming file and label.
pub(super) fn label_file(path: &Path, label: &str) -> Result<()> {
    let doing = || format!("give {} the label {label}", path.display());
    let file = File::open(path).context(doing)?;
    label_one(file.as_fd(), label).context(doing).map(|_| ())
}

/// Whether its file system has labels of files.
fn label_one(file: BorrowedFd<'_>, label: &str) -> std::io::Result<bool> {
    let name = OsStr::new(ATTRIBUTE);
    let now = match getxattr_of(file, name) {
        Err(e) if e.kind() == ErrorKind::Unsupported => return Ok(false),
        now => now?,
    };
    // Without a write where nothing changes: of a large volume, all of it, each time but the first.
    if now.is_some_and(|now| now.strip_suffix(b"\0").unwrap_or(&now) == label.as_bytes()) {
        return Ok(true);
    }
    match setxattr_of(file, name, label.as_bytes()) {
        Err(e) if e.kind() == ErrorKind::Unsupported => Ok(false),
        set => set.map(|()| true),
    }
}

/// Gives a volume and everything in it a label. One whose file system has no labels is left as it is, as by other runtimes. `wanted` is asked
/// before each file; its error ends it, and those before have their label.
///
/// # Errors
/// `InvalidArgument` for a place of the host's own, `ResourceExhausted` for what is too large; what the kernel refused, naming the file.
pub(super) fn relabel(path: &Path, label: &str, wanted: &dyn Fn() -> Result<()>) -> Result<()> {
    let real = path.canonicalize().context(|| format!("find {}", path.display()))?;
    // Also as it was given: /lib64 is one of /usr's on many hosts.
    if is_refused(path) || is_refused(&real) {
        return Err(Error::invalid(format!(
            "selinux_relabel of {}: the host itself needs the labels there; mount a directory below it",
            path.display()
        )));
    }
    let doing = || format!("give {} the label {label}", path.display());
    wanted().map_err(|e| e.context(doing()))?;
    // Without links once more: who may rename there cannot lead this elsewhere.
    let host = File::open("/").context(doing)?;
    let below = real.strip_prefix("/").unwrap_or(&real);
    let top = at::openat2(host.as_fd(), below, OFlags::PATH, 0, ResolveFlags::NO_SYMLINKS).context(doing)?;
    if !label_one(top.as_fd(), label).context(doing)? {
        return Ok(());
    }
    match directory(top.as_fd()).context(doing)? {
        Some(top) => walk(top, label, wanted).map_err(|e| e.context(doing())),
        None => Ok(()),
    }
}

/// An open directory's own way to be read; `None` for what is none.
fn directory(file: BorrowedFd<'_>) -> std::io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    match at::openat2(file, Path::new("."), flags, 0, ResolveFlags::BENEATH) {
        Err(e) if e.kind() == ErrorKind::NotADirectory => Ok(None),
        opened => opened.map(Some),
    }
}

/// A directory and those of its names that are still to be gone through.
struct Level {
    directory: OwnedFd,
    names: std::vec::IntoIter<OsString>,
}

impl Level {
    /// `held`: how many names are in memory already.
    fn new(directory: OwnedFd, held: usize) -> std::io::Result<Level> {
        let names = at::names(directory.as_fd(), MAX_NAMES.saturating_sub(held))?.into_iter();
        Ok(Level { directory, names })
    }
}

fn walk(top: OwnedFd, label: &str, wanted: &dyn Fn() -> Result<()>) -> Result<()> {
    let mut levels = vec![Level::new(top, 0).context(|| "read it")?];
    let (mut entries, until) = (0, Instant::now() + MAX_TIME);
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.next() else {
            levels.pop();
            continue;
        };
        wanted().map_err(|e| e.context(format!("after {entries} files of it")))?;
        entries += 1;
        if entries > MAX_ENTRIES {
            return Err(Error::exhausted(format!("it has more than {MAX_ENTRIES} files")));
        }
        if Instant::now() > until {
            let seconds = MAX_TIME.as_secs();
            return Err(Error::new(
                Kind::DeadlineExceeded,
                format!("{entries} files of it took {seconds} s, and there are more"),
            ));
        }
        match one(level.directory.as_fd(), &name, label) {
            // Who has the volume as well may remove from it meanwhile.
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e).context(|| format!("{name:?} in it")),
            Ok(None) => {}
            Ok(Some(_)) if levels.len() == MAX_DEPTH => {
                return Err(Error::exhausted(format!("it is deeper than {MAX_DEPTH} directories")));
            }
            Ok(Some(below)) => {
                let held = levels.iter().map(|level| level.names.len()).sum();
                match Level::new(below, held) {
                    Err(e) if e.kind() == ErrorKind::NotFound => {}
                    level => levels.push(level.context(|| format!("read {name:?} in it"))?),
                }
            }
        }
    }
    Ok(())
}

/// Labels what has that name; a directory is returned to be gone into.
fn one(parent: BorrowedFd<'_>, name: &OsStr, label: &str) -> std::io::Result<Option<OwnedFd>> {
    // A name of one component: nothing to be followed but the last, which is not.
    debug_assert!(!name.as_bytes().contains(&b'/'));
    let flags = OFlags::PATH | OFlags::NOFOLLOW;
    let file = at::openat2(parent, Path::new(name), flags, 0, ResolveFlags::empty())?;
    let labelled = label_one(file.as_fd(), label)?;
    let is_directory = at::statat(parent, name)? == Some(Node::Directory);
    if labelled && is_directory { directory(file.as_fd()) } else { Ok(None) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_own_places_are_refused_and_what_is_below_most_of_them_is_not() {
        for path in ["/", "/etc", "/usr", "/home", "/home/u", "/var/lib", "/proc/1", "/sys/fs/cgroup", "/dev/shm"] {
            assert!(is_refused(Path::new(path)), "{path}");
        }
        for path in ["/srv/data", "/home/u/data", "/var/lib/kubelet/pods/x", "/run/x", "/tmp/x", "/opt/x", "/bootx"] {
            assert!(!is_refused(Path::new(path)), "{path}");
        }
        let e = relabel(Path::new("/usr/../etc"), "l", &|| Ok(())).expect_err("refused");
        assert_eq!(e.kind(), crate::error::Kind::InvalidArgument);
    }

    #[test]
    fn a_link_is_labelled_and_not_followed() {
        let temp = tempfile::tempdir().expect("tempdir");
        let outside = temp.path().join("outside");
        std::fs::create_dir_all(temp.path().join("volume/a/b")).expect("mkdir");
        std::fs::write(&outside, "x").expect("write");
        std::os::unix::fs::symlink(&outside, temp.path().join("volume/a/link")).expect("link");
        std::os::unix::fs::symlink("..", temp.path().join("volume/a/b/up")).expect("link");
        let label = "system_u:object_r:container_file_t:s0:c1,c2";
        let of = |path: &Path| {
            let file = at::openat2(
                File::open("/").expect("root").as_fd(),
                path.strip_prefix("/").expect("absolute"),
                OFlags::PATH | OFlags::NOFOLLOW,
                0,
                ResolveFlags::empty(),
            );
            getxattr_of(file.expect("open").as_fd(), OsStr::new(ATTRIBUTE)).ok().flatten()
        };
        let before = of(&outside);
        relabel(&temp.path().join("volume"), label, &|| Ok(())).expect("relabelled, or nothing to label here");
        assert_eq!(of(&outside), before);
        let there = of(&temp.path().join("volume"));
        for path in ["volume/a", "volume/a/b", "volume/a/link", "volume/a/b/up"] {
            assert_eq!(of(&temp.path().join(path)), there, "{path}");
        }
    }

    #[test]
    fn what_is_not_wanted_any_more_ends_between_two_files() {
        let temp = tempfile::tempdir().expect("tempdir");
        for name in 0..10 {
            std::fs::write(temp.path().join(name.to_string()), "x").expect("write");
        }
        let label = "system_u:object_r:container_file_t:s0:c1,c2";
        let asked = std::cell::Cell::new(0);
        // As often as this it is wanted.
        let wanted = |most: u32| {
            asked.set(asked.get() + 1);
            if asked.get() > most { Err(Error::precondition("the pod is being stopped")) } else { Ok(()) }
        };
        let walked = |most: u32| {
            asked.set(0);
            let top = OwnedFd::from(File::open(temp.path()).expect("open"));
            walk(top, label, &|| wanted(most)).map(|()| asked.get())
        };
        let e = walked(3).expect_err("given up");
        assert!(e.to_string().contains("after 3 files of it") && e.to_string().contains("being stopped"), "{e}");
        assert_eq!((e.kind(), asked.get()), (Kind::FailedPrecondition, 4));
        // As far as it may go and no further.
        assert_eq!(walked(10).expect("all of it"), 10);
        asked.set(0);
        let e = relabel(temp.path(), label, &|| wanted(0)).expect_err("not begun");
        assert!(e.kind() == Kind::FailedPrecondition && asked.get() == 1, "{e}");
    }
}
