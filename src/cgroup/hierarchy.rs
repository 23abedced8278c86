//! Where cgroup v2 is, which controllers it has, how a cgroup is made so that it has the ones it needs, and why one is missing.
//!
//! Controllers are enabled from the top down and only where they are used: an empty cgroup with eight costs seven times one
//! without. Limits are not written here, and processes are not started.

use super::path::CgroupPath;
use super::tree::{Cgroup, is_gone};
use crate::error::{Context, Error, Kind, Result};
use crate::sys::fs;
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Controllers by the kernel's names: `memory`, `cpu`.
pub type Controllers = BTreeSet<String>;

/// Permission bits of a cgroup's directory: its limits may be read by all.
pub(super) const DIR_MODE: u32 = 0o755;
/// The longest mountinfo that is read, in bytes: 100 000 mounts.
const MAX_MOUNTINFO_BYTES: usize = 32 << 20;
/// How often making a cgroup starts again because somebody removed a parent of it meanwhile.
const MAX_RACES: usize = 64;

/// The v2 hierarchy.
#[derive(Debug)]
pub struct Hierarchy {
    mount_point: PathBuf,
    root: OwnedFd,
    v1: Vec<V1Mount>,
}

/// A mounted v1 hierarchy: its controllers are not to be had in v2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct V1Mount {
    pub mount_point: PathBuf,
    /// Its controllers by the names of v1 (`blkio`), among options as `rw`.
    pub options: Vec<String>,
}

/// Why a cgroup lacks a controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    pub controller: String,
    /// The uppermost cgroup that does not pass it on, and so the one to look at.
    pub cgroup: CgroupPath,
    pub why: String,
    pub remedy: String,
}

impl Hierarchy {
    /// Finds it in /proc/self/mountinfo.
    ///
    /// # Errors
    /// `Unsupported` when cgroup v2 is not mounted, or only a part of it; `Internal`.
    pub fn discover() -> Result<Hierarchy> {
        let proc = fs::open_dir(Path::new("/proc/self")).context(|| "open /proc/self")?;
        let text =
            fs::read_file_at(proc.as_fd(), "mountinfo", MAX_MOUNTINFO_BYTES).context(|| "read /proc/self/mountinfo")?;
        let mount_point = find_v2(&String::from_utf8_lossy(&text))?;
        let root = fs::open_dir(&mount_point).context(|| format!("open {}", mount_point.display()))?;
        if !fs::is_cgroup2(root.as_fd()).context(|| format!("statfs {}", mount_point.display()))? {
            let text = format!("{} is hidden by another mount; unmount that", mount_point.display());
            return Err(Error::unsupported(text));
        }
        let v1 = cgroups_rs::fs::hierarchies::mountinfo_self();
        let v1 = v1.into_iter().map(|m| V1Mount { mount_point: m.mount_point, options: m.super_opts });
        Ok(Hierarchy { mount_point, root, v1: v1.collect() })
    }

    /// Where it is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` on a hybrid host.
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// The v1 hierarchies beside it; empty on a unified host.
    pub fn v1(&self) -> &[V1Mount] {
        &self.v1
    }

    /// The controllers that v2 has on this host.
    ///
    /// # Errors
    /// `Internal`.
    pub fn controllers(&self) -> Result<Controllers> {
        controllers_of(&self.root()?, "cgroup.controllers")
    }

    /// The root cgroup.
    ///
    /// # Errors
    /// `Internal` (`EMFILE`).
    pub fn root(&self) -> Result<Cgroup> {
        let dir = self.root.try_clone().context(|| "duplicate the descriptor of the root cgroup")?;
        Ok(Cgroup::from_fd(CgroupPath::root(), dir))
    }

    /// Opens a cgroup.
    ///
    /// # Errors
    /// `NotFound` when there is none; `Internal`.
    pub fn open(&self, path: &CgroupPath) -> Result<Cgroup> {
        match fs::open_dir_below(self.root.as_fd(), path.as_str().trim_start_matches('/')) {
            Err(e) if is_gone(&e) => Err(Error::not_found(format!("cgroup {path} does not exist"))),
            dir => Ok(Cgroup::from_fd(path.clone(), dir.context(|| format!("open cgroup {path}"))?)),
        }
    }

    /// The cgroup and all above it, from the root down.
    ///
    /// # Errors
    /// As [`Hierarchy::open`].
    pub fn chain(&self, path: &CgroupPath) -> Result<Vec<Cgroup>> {
        let mut chain = vec![self.root()?];
        let mut at = CgroupPath::root();
        for name in path.components() {
            at = at.child(name)?;
            let above = chain.last().map_or(self.root.as_fd(), Cgroup::as_fd);
            match fs::open_dir_at(above, name) {
                Err(e) if is_gone(&e) => return Err(Error::not_found(format!("cgroup {at} does not exist"))),
                dir => chain.push(Cgroup::from_fd(at.clone(), dir.context(|| format!("open cgroup {at}"))?)),
            }
        }
        Ok(chain)
    }

    /// Makes the cgroup and what is missing above it, and enables `controllers` for it, from the top down. What exists is kept,
    /// so this may be done by several processes at once, and be repeated to enable another controller for a cgroup that is in use
    /// (a resize that is the first to ask for a cpuset).
    ///
    /// Only `owned` and cgroups in it, those made here, and the one that the first of these is in, are told to pass
    /// controllers on: cgroups above belong to somebody else (a kubelet's tree, systemd's). That a controller could not be
    /// enabled is no error here: it is one for the limit that needs it ([`Hierarchy::why_missing`]).
    ///
    /// # Errors
    /// `ResourceExhausted` when a parent admits no more descendants (`cgroup.max.descendants`, `cgroup.max.depth`); `Internal`.
    pub fn create(&self, path: &CgroupPath, controllers: &Controllers, owned: &CgroupPath) -> Result<Cgroup> {
        if let Some(made) = self.try_create_last(path, controllers)? {
            return Ok(made);
        }
        for _ in 0..MAX_RACES {
            if let Some(cgroup) = self.try_create(path, controllers, owned)? {
                return Ok(cgroup);
            }
        }
        Err(Error::internal(format!("make cgroup {path}: its parents were removed {MAX_RACES} times meanwhile")))
    }

    /// The usual case: all above it is there and passes on what is wanted. `None` when it is not so.
    fn try_create_last(&self, path: &CgroupPath, controllers: &Controllers) -> Result<Option<Cgroup>> {
        let Some((parent, name)) = path.split() else { return Ok(None) };
        let Ok(above) = self.open(&parent) else { return Ok(None) };
        let Ok(passed_on) = above.read("cgroup.subtree_control") else { return Ok(None) };
        let (passed_on, host) = (words(&passed_on), self.controllers()?);
        // What the host does not have is not there to be passed on.
        if controllers.difference(&passed_on).any(|controller| host.contains(controller)) {
            return Ok(None);
        }
        // Whatever keeps it from being made, the long way says so.
        Ok(make(above.as_fd(), name).ok().map(|dir| Cgroup::from_fd(path.clone(), dir)))
    }

    /// `None`: a cgroup above it was removed meanwhile.
    fn try_create(&self, path: &CgroupPath, controllers: &Controllers, owned: &CgroupPath) -> Result<Option<Cgroup>> {
        let mut here = self.root()?;
        for name in path.components() {
            let at = here.path().child(name)?;
            let existing = fs::open_dir_at(here.as_fd(), name);
            if existing.is_err() || here.path().is_within(owned) {
                match enable(&here, controllers) {
                    Err(e) if is_gone(&e) => return Ok(None),
                    done => done.context(|| format!("read the controllers of cgroup {}", here.path()))?,
                }
            }
            let opened = match existing {
                Err(e) if is_gone(&e) => make(here.as_fd(), name),
                opened => opened,
            };
            here = match opened {
                Err(e) if is_gone(&e) => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let text =
                        format!("make cgroup {at}: cgroup.max.descendants or cgroup.max.depth is reached above it");
                    return Err(Error::exhausted(text));
                }
                dir => Cgroup::from_fd(at.clone(), dir.context(|| format!("make cgroup {at}"))?),
            };
        }
        Ok(Some(here))
    }

    /// Kills everything in the cgroup, waits for it, and removes it with all below it. One that does not exist is no error.
    ///
    /// # Errors
    /// `InvalidArgument` for the root; `DeadlineExceeded` when it still has processes after `timeout`; `Internal`.
    pub fn remove(&self, path: &CgroupPath, timeout: Duration) -> Result<()> {
        let Some((parent, name)) = path.split() else {
            return Err(Error::invalid("the root cgroup cannot be removed"));
        };
        let parent = match self.open(&parent) {
            Err(e) if e.kind() == Kind::NotFound => return Ok(()),
            opened => opened?,
        };
        parent.remove_child(name, timeout)
    }

    /// Removes the cgroup, and then each one above it up to and with `top`, for as long as they are empty: neither processes nor
    /// children. Whether `path` itself went; whoever still uses one of them keeps it.
    ///
    /// # Errors
    /// `Internal`.
    pub fn remove_if_empty(&self, path: &CgroupPath, top: &CgroupPath) -> Result<bool> {
        let mut at = path.clone();
        let mut first = true;
        while let Some((parent, name)) = at.split().filter(|_| at.is_within(top)) {
            let removed = match self.open(&parent) {
                Err(e) if e.kind() == Kind::NotFound => true,
                above => above?.remove_child_if_empty(name)?,
            };
            if !removed {
                return Ok(!first);
            }
            first = false;
            at = parent;
        }
        Ok(!first)
    }

    /// Why the cgroup lacks `controller`; `None` when it has it.
    ///
    /// # Errors
    /// `NotFound` when the cgroup does not exist; `Internal`.
    pub fn why_missing(&self, path: &CgroupPath, controller: &str) -> Result<Option<Missing>> {
        // First what the host lacks altogether: all cgroups lack it, and on a hybrid host each start asks.
        if !self.controllers()?.contains(controller) {
            return Ok(Some(self.missing_on_host(controller)));
        }
        let chain = self.chain(path)?;
        if controllers_of(&chain[chain.len() - 1], "cgroup.controllers")?.contains(controller) {
            return Ok(None);
        }
        for above in &chain[..chain.len() - 1] {
            if !controllers_of(above, "cgroup.subtree_control")?.contains(controller) {
                return Ok(Some(self.not_passed_on(above, controller)?));
            }
        }
        Ok(None) // it was enabled meanwhile
    }

    fn not_passed_on(&self, cgroup: &Cgroup, controller: &str) -> Result<Missing> {
        let path = cgroup.path().clone();
        let mut why = format!("{controller} is not in cgroup.subtree_control of {path}");
        let file = self.file(&path, "cgroup.subtree_control");
        let mut remedy = format!("echo +{controller} > {}", file.display());
        if !path.is_root() && !cgroup.procs()?.is_empty() {
            why.push_str(", which has processes of its own and so cannot pass controllers on");
            remedy = format!("move them into a child of {path}, then {remedy}");
        }
        Ok(Missing { controller: controller.to_owned(), cgroup: path, why, remedy })
    }

    fn missing_on_host(&self, controller: &str) -> Missing {
        let v1 = self.v1.iter().find(|m| m.options.iter().any(|c| c == v1_name(controller)));
        let cmdline = std::fs::read_to_string("/proc/cmdline").unwrap_or_default(); // only to say more about a failure
        let (why, remedy) = if let Some(m) = v1 {
            (
                format!("{controller} is held by cgroup v1 at {}", m.mount_point.display()),
                "boot with cgroup_no_v1=all (systemd: systemd.unified_cgroup_hierarchy=1)".to_owned(),
            )
        } else if is_disabled(&cmdline, controller) {
            (
                format!("{controller} is disabled by cgroup_disable= on the kernel's command line"),
                "boot without it".to_owned(),
            )
        } else if self.mount_point.join("cgroup.events").exists() {
            // The kernel's own root does not have that file (Documentation/admin-guide/cgroup-v2.rst): this is a container's.
            (
                format!(
                    "{controller} is not in cgroup.controllers of the root that this container sees: it was not given it"
                ),
                format!("outside of it, echo +{controller} > cgroup.subtree_control of the cgroup above it"),
            )
        } else {
            (
                format!("{controller} is not in cgroup.controllers of the root: this kernel does not have it"),
                format!("boot a kernel that is built with the {controller} controller"),
            )
        };
        Missing { controller: controller.to_owned(), cgroup: CgroupPath::root(), why, remedy }
    }

    /// A cgroup's file as a path, for messages.
    pub fn file(&self, cgroup: &CgroupPath, file: &str) -> PathBuf {
        self.mount_point.join(cgroup.as_str().trim_start_matches('/')).join(file)
    }
}

/// The controllers that one of `cgroup.controllers` and `cgroup.subtree_control` lists.
///
/// # Errors
/// `Internal`, naming file and cgroup.
pub fn controllers_of(cgroup: &Cgroup, file: &str) -> Result<Controllers> {
    Ok(words(&cgroup.read(file).context(|| format!("read {file} of {}", cgroup.path()))?))
}

fn words(text: &str) -> Controllers {
    text.split_whitespace().map(str::to_owned).collect()
}

fn make(above: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    match fs::mkdir_at(above, name, DIR_MODE) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => fs::open_dir_at(above, name),
    }
}

/// Makes `cgroup` pass on those of `wanted` that it has. A controller that it refuses to pass on is left out.
fn enable(cgroup: &Cgroup, wanted: &Controllers) -> io::Result<()> {
    let enabled = words(&cgroup.read("cgroup.subtree_control")?);
    if wanted.is_subset(&enabled) {
        return Ok(());
    }
    let available = words(&cgroup.read("cgroup.controllers")?);
    let add: Vec<String> =
        wanted.difference(&enabled).filter(|c| available.contains(*c)).map(|c| format!("+{c}")).collect();
    if add.is_empty() || cgroup.write("cgroup.subtree_control", &add.join(" ")).is_ok() {
        return Ok(());
    }
    // The kernel takes all or none: find those it takes.
    for one in add {
        match cgroup.write("cgroup.subtree_control", &one) {
            Err(e) if is_gone(&e) => return Err(e),
            _ => {} // the limit that needs it finds its file missing, and why_missing tells the reason
        }
    }
    Ok(())
}

/// What v1 calls a controller of v2.
fn v1_name(controller: &str) -> &str {
    if controller == "io" { "blkio" } else { controller }
}

fn is_disabled(cmdline: &str, controller: &str) -> bool {
    let lists = cmdline.split_whitespace().filter_map(|word| word.strip_prefix("cgroup_disable="));
    lists.flat_map(|list| list.split(',')).any(|name| name == v1_name(controller) || name == controller)
}

/// Where v2 is mounted, given mountinfo, proc_pid_mountinfo(5).
fn find_v2(mountinfo: &str) -> Result<PathBuf> {
    let mut part = None;
    let mut found: Option<PathBuf> = None;
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let fields: Vec<&str> = left.split(' ').collect();
        if right.split(' ').next() != Some("cgroup2") || fields.len() < 6 {
            continue;
        }
        let mount_point = PathBuf::from(unescape(fields[4]));
        if fields[3] != "/" {
            part = Some(format!("{} shows only {} of it", mount_point.display(), fields[3]));
        } else if found.is_none() || mount_point == Path::new("/sys/fs/cgroup") {
            found = Some(mount_point);
        }
    }
    found.ok_or_else(|| {
        let what = part.unwrap_or_else(|| "it is not mounted".to_owned());
        Error::unsupported(format!("cgroup v2 is needed: {what}; mount -t cgroup2 none /sys/fs/cgroup"))
    })
}

/// Undoes mountinfo's `\040`: three octal digits for space, tab, newline and backslash.
pub fn unescape(field: &str) -> String {
    let mut parts = field.split('\\');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                text.push(char::from(byte));
                text.push_str(&part[3..]);
            }
            None => {
                text.push('\\');
                text.push_str(part);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIFIED: &str = "24 1 0:22 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
    const HYBRID: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn v2_is_found_on_unified_and_hybrid_hosts() {
        assert_eq!(find_v2(UNIFIED).expect("unified"), Path::new("/sys/fs/cgroup"));
        assert_eq!(find_v2(HYBRID).expect("hybrid"), Path::new("/sys/fs/cgroup/unified"));
        let second = format!("9 1 0:22 / /a\\040b rw - cgroup2 c rw\n{UNIFIED}");
        assert_eq!(find_v2(&second).expect("the usual place wins"), Path::new("/sys/fs/cgroup"));
        assert_eq!(find_v2(second.lines().next().expect("line")).expect("space"), Path::new("/a b"));
    }

    #[test]
    fn a_host_without_v2_and_one_that_shows_a_part_are_refused_with_a_remedy() {
        let e = find_v2("31 23 0:28 / / rw - ext4 /dev/a rw\n").expect_err("none");
        assert_eq!(e.kind(), Kind::Unsupported);
        assert!(e.to_string().contains("mount -t cgroup2"), "{e}");
        let e = find_v2("24 1 0:22 /a /sys/fs/cgroup rw - cgroup2 c rw\n").expect_err("part");
        assert!(e.to_string().contains("shows only /a"), "{e}");
    }

    #[test]
    fn a_controller_disabled_at_boot_is_recognised() {
        assert!(is_disabled("quiet cgroup_disable=cpuset,memory ro", "memory"));
        assert!(is_disabled("cgroup_disable=blkio", "io"));
        assert!(!is_disabled("cgroup_disable=memory", "cpu"));
    }
}
