//! One cgroup as a directory descriptor: read, write, kill, wait until it is empty, remove. cgroups(7), cgroup-v2.rst.
//!
//! All access is relative to the descriptor, so a cgroup that was removed and made again under the same name is never
//! mistaken for the old one, and a descriptor that came over a socket is as good as a path. What is written where, and
//! whether it held, is `apply`'s.

use super::path::CgroupPath;
use crate::error::{Context, Error, Kind, Result};
use crate::sys::session::parent_dir;
use crate::sys::{errno_name, fs, poll};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// The longest interface file that is read, in bytes. io.stat has about 100 bytes a device, memory.stat 2 KiB in all.
pub(super) const MAX_FILE_BYTES: usize = 256 << 10;
/// The longest cgroup.procs that is read, in bytes: half a million processes.
const MAX_PROCS_BYTES: usize = 4 << 20;
/// The most names in one cgroup: 100 files of the kernel, and the children.
pub(super) const MAX_ENTRIES: usize = 1 << 16;
/// How deep below a cgroup its descendants may be: each level holds one descriptor while it is removed.
pub(super) const MAX_DEPTH: usize = 512;
/// How often a cgroup that fills again while it is being removed is killed again.
const MAX_KILLS: usize = 16;

/// The longest wait; a longer timeout is this one.
const MAX_WAIT: Duration = Duration::from_secs(3600);

/// A cgroup.
#[derive(Debug)]
pub struct Cgroup {
    path: CgroupPath,
    dir: OwnedFd,
}

/// The cgroup with the limits of a container's pod: the one above it. That of a kubelet's pod under systemd's driver is a scope, which
/// has none; its slice has them.
///
/// # Errors
/// Those of openat(2) and readlink(2).
pub fn limits_of_pod(container: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let above = parent_dir(container)?;
    let path = std::fs::read_link(format!("/proc/self/fd/{}", above.as_raw_fd()))?;
    if path.extension().is_some_and(|kind| kind == "scope") { parent_dir(above.as_fd()) } else { Ok(above) }
}

impl Cgroup {
    /// The cgroup behind `dir`, which came from [`Cgroup::dup`] (perhaps in another process). `path` is for messages.
    pub fn from_fd(path: CgroupPath, dir: OwnedFd) -> Self {
        Cgroup { path, dir }
    }

    /// Its path in the v2 hierarchy, as it was when this was opened.
    pub fn path(&self) -> &CgroupPath {
        &self.path
    }

    /// A duplicate of the directory's descriptor, for clone3(CLONE_INTO_CGROUP) or another process (`O_PATH`, close-on-exec).
    ///
    /// # Errors
    /// Those of fcntl(2) (`EMFILE`).
    pub fn dup(&self) -> io::Result<OwnedFd> {
        self.dir.try_clone()
    }

    /// The text of one of its files.
    ///
    /// # Errors
    /// Those of open(2) and read(2): `ENOENT` also, and `ENODEV`, when the cgroup is gone; `EFBIG` above 256 KiB.
    pub fn read(&self, file: &str) -> io::Result<String> {
        read_text(self.dir.as_fd(), file, MAX_FILE_BYTES)
    }

    /// Writes one of its files with one write(2).
    ///
    /// # Errors
    /// Those of open(2) and write(2); what each file refuses is in cgroup-v2.rst.
    pub fn write(&self, file: &str, value: &str) -> io::Result<()> {
        fs::write_file_at(self.dir.as_fd(), file, value.as_bytes())
    }

    /// The pids in it (not in its children), in no order.
    ///
    /// # Errors
    /// `Internal`, naming the cgroup; `EOPNOTSUPP` in a threaded one.
    pub fn procs(&self) -> Result<Vec<u32>> {
        let text = read_text(self.dir.as_fd(), "cgroup.procs", MAX_PROCS_BYTES)
            .context(|| format!("read cgroup.procs of {}", self.path))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// A child for one exec: no controllers are enabled for it, so limits and counts stay where they are. It may exist.
    ///
    /// # Errors
    /// `InvalidArgument` for a name that is no component, else `Internal`.
    pub fn child(&self, name: &str) -> Result<Cgroup> {
        let path = self.path.child(name)?;
        match fs::mkdir_at(self.dir.as_fd(), name, super::hierarchy::DIR_MODE) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
            _ => fs::open_dir_at(self.dir.as_fd(), name),
        }
        .map(|dir| Cgroup { path: path.clone(), dir })
        .context(|| format!("make cgroup {path}"))
    }

    /// A child that is there.
    ///
    /// # Errors
    /// Those of open(2): `ENOENT` when it is gone.
    pub(super) fn open_child(&self, name: &str) -> io::Result<Cgroup> {
        let path = self.path.child(name).map_err(io::Error::other)?;
        fs::open_dir_at(self.dir.as_fd(), name).map(|dir| Cgroup { path, dir })
    }

    /// Kills everything in the child, waits for it and removes it with all below it. One that does not exist is no error.
    ///
    /// # Errors
    /// `DeadlineExceeded` when it still has processes after `timeout`; `InvalidArgument` as [`Cgroup::child`]; `Internal`.
    pub fn remove_child(&self, name: &str, timeout: Duration) -> Result<()> {
        let path = self.path.child(name)?;
        let dir = match fs::open_dir_at(self.dir.as_fd(), name) {
            Err(e) if is_gone(&e) => return Ok(()),
            dir => dir.context(|| format!("open cgroup {path}"))?,
        };
        Cgroup { path: path.clone(), dir }.clear(timeout)?;
        match fs::remove_dir_at(self.dir.as_fd(), name) {
            Err(e) if is_gone(&e) => Ok(()),
            done => done.context(|| format!("remove cgroup {path}")),
        }
    }

    /// Removes the child if it has neither processes nor children: whether it is gone. An exec that left something running in the
    /// background keeps its cgroup.
    ///
    /// # Errors
    /// `InvalidArgument` as [`Cgroup::child`]; `Internal`.
    pub fn remove_child_if_empty(&self, name: &str) -> Result<bool> {
        let path = self.path.child(name)?;
        match fs::remove_dir_at(self.dir.as_fd(), name) {
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy => Ok(false),
            Err(e) if is_gone(&e) => Ok(true),
            done => done.map(|()| true).context(|| format!("remove cgroup {path}")),
        }
    }

    /// SIGKILL to every process in it and below, also to those being forked: `cgroup.kill`. One that is gone is no error.
    ///
    /// # Errors
    /// `InvalidArgument` for the root, else `Internal`.
    pub fn kill(&self) -> Result<()> {
        if self.path.is_root() {
            return Err(Error::invalid("the root cgroup cannot be killed"));
        }
        match self.write("cgroup.kill", "1") {
            Err(e) if is_gone(&e) && self.is_gone() => return Ok(()),
            done => done.context(|| format!("write cgroup.kill of {}", self.path))?,
        }
        self.unthrottle();
        Ok(())
    }

    /// Lifts `cpu.max` from what has been killed: the kernel makes it wait for its quota on the way out, for many seconds at 1m.
    pub fn unthrottle(&self) {
        let _ = self.write("cpu.max", "max"); // without the controller, or the cgroup, there is no quota either
    }

    /// Whether a live process is in it or below; a zombie is none.
    ///
    /// # Errors
    /// `Internal`, naming the cgroup. One that is gone has none.
    pub fn is_populated(&self) -> Result<bool> {
        match self.read("cgroup.events") {
            Err(e) if is_gone(&e) => Ok(false),
            text => Ok(says_populated(&text.context(|| format!("read cgroup.events of {}", self.path))?)),
        }
    }

    /// Waits until no live process is in it or below; it blocks, at most an hour.
    ///
    /// # Errors
    /// `DeadlineExceeded` after `timeout`, naming some of the processes that are left; `Internal`.
    pub fn wait_empty(&self, timeout: Duration) -> Result<()> {
        if self.wait_event(timeout, |events| !says_populated(events))? {
            Ok(())
        } else {
            Err(self.still_populated(timeout))
        }
    }

    /// Has every process in it and below stand still, and waits until they do: `cgroup.freeze`.
    ///
    /// # Errors
    /// `DeadlineExceeded` when some do not within `timeout`, `Internal`; it is to be thawed then as well.
    pub fn freeze(&self, timeout: Duration) -> Result<()> {
        self.write("cgroup.freeze", "1").context(|| format!("write cgroup.freeze of {}", self.path))?;
        if self.wait_event(timeout, |events| events.lines().any(|line| line == "frozen 1"))? {
            return Ok(());
        }
        let text = format!("processes of cgroup {} do not stand still after {timeout:?}", self.path);
        Err(Error::new(Kind::DeadlineExceeded, text))
    }

    /// Lets them go on. One that is gone is no error.
    ///
    /// # Errors
    /// `Internal`, naming the cgroup.
    pub fn thaw(&self) -> Result<()> {
        match self.write("cgroup.freeze", "0") {
            Err(e) if is_gone(&e) => Ok(()),
            done => done.context(|| format!("write cgroup.freeze of {}", self.path)),
        }
    }

    /// Waits until `cgroup.events` says so, at most an hour; whether it does. One that is gone says everything.
    fn wait_event(&self, timeout: Duration, says: impl Fn(&str) -> bool) -> Result<bool> {
        let doing = || format!("wait for cgroup {}", self.path);
        let events = match fs::open_file_at(self.dir.as_fd(), "cgroup.events", fs::Access::Read) {
            Err(e) if is_gone(&e) => return Ok(true),
            opened => opened.context(doing)?,
        };
        let end = Instant::now() + timeout.min(MAX_WAIT);
        let mut bytes = Vec::new();
        loop {
            // The file is read before it is polled: a change counts from the last read through the same descriptor.
            match fs::read_from_start(events.as_fd(), &mut bytes, MAX_FILE_BYTES) {
                Err(e) if is_gone(&e) => return Ok(true),
                read => read.context(doing)?,
            }
            if says(&String::from_utf8_lossy(&bytes)) {
                return Ok(true);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            poll::poll_until(events.as_fd(), poll::Interest::Priority, left).context(doing)?;
        }
    }

    fn still_populated(&self, timeout: Duration) -> Error {
        /// How many pids an error names.
        const SHOWN: usize = 8;
        let pids: Vec<String> = self.procs().unwrap_or_default().iter().take(SHOWN).map(u32::to_string).collect();
        let whom = if pids.is_empty() { "in its children".to_owned() } else { format!("pid {}", pids.join(", ")) };
        let text = format!("cgroup {} still has processes after {timeout:?}: {whom}", self.path);
        Error::new(Kind::DeadlineExceeded, text)
    }

    /// Kills everything in it, waits until it is empty, removes what is below it. What is left is an empty directory.
    ///
    /// # Errors
    /// `DeadlineExceeded` when it is not empty after `timeout`; `Internal`.
    pub fn clear(&self, timeout: Duration) -> Result<()> {
        let end = Instant::now() + timeout.min(MAX_WAIT);
        for _ in 0..MAX_KILLS {
            self.kill()?;
            self.wait_empty(end.saturating_duration_since(Instant::now()))?;
            match remove_children(self.dir.as_fd(), 0) {
                // Somebody put a process into a child since: kill that as well.
                Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {}
                done => return done.context(|| format!("remove what is below cgroup {}", self.path)),
            }
        }
        Err(Error::new(Kind::DeadlineExceeded, format!("cgroup {} filled again {MAX_KILLS} times", self.path)))
    }

    /// Whether the directory was removed.
    pub(super) fn is_gone(&self) -> bool {
        self.read("cgroup.events").is_err_and(|e| is_gone(&e))
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// Whether an error says that the cgroup (or the file) is not there: by name, or behind a descriptor that is still open.
pub(super) fn is_gone(e: &io::Error) -> bool {
    e.raw_os_error().is_some_and(|number| matches!(errno_name(number), "ENOENT" | "ENODEV"))
}

/// A file below a directory's descriptor as text. The kernel's files are ASCII.
pub(super) fn read_text(dir: BorrowedFd<'_>, file: &str, max_bytes: usize) -> io::Result<String> {
    let bytes = fs::read_file_at(dir, file, max_bytes)?;
    String::from_utf8(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

fn says_populated(events: &str) -> bool {
    !events.lines().any(|line| line == "populated 0")
}

/// Removes every cgroup below `dir`, the deepest first.
fn remove_children(dir: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
    if depth == MAX_DEPTH {
        return Err(io::Error::other(format!("cgroups nested more than {MAX_DEPTH} deep")));
    }
    for entry in fs::list_dir(dir, MAX_ENTRIES)?.into_iter().filter(|entry| entry.is_dir) {
        let name = entry.name.to_str().ok_or_else(|| io::Error::other(format!("cgroup name {:?}", entry.name)))?;
        remove_with_children(dir, name, depth)?;
    }
    Ok(())
}

fn remove_with_children(dir: BorrowedFd<'_>, name: &str, depth: usize) -> io::Result<()> {
    match fs::remove_dir_at(dir, name) {
        Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {}
        Err(e) if is_gone(&e) => return Ok(()),
        done => return done,
    }
    match fs::open_dir_at(dir, name) {
        Err(e) if is_gone(&e) => return Ok(()),
        child => remove_children(child?.as_fd(), depth + 1)?,
    }
    match fs::remove_dir_at(dir, name) {
        Err(e) if is_gone(&e) => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn populated_is_told_from_its_line() {
        assert!(super::says_populated("populated 1\nfrozen 0\n"));
        assert!(!super::says_populated("populated 0\nfrozen 0\n"));
    }
}
