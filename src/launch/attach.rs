//! The child's mounts: every target resolved (or made) beneath the root's descriptor, every tree attached onto a descriptor, so
//! that no path is looked up twice (CVE-2021-30465: a volume shared with a running container may be renamed under us).

use super::plan::Plan;
use super::plan_mounts::{Fs, Mount, Node, What};
use super::report::{At, Failed};
use super::trees::{Trees, new_fs};
use super::{Step, libc_errno};
use crate::sys;
use crate::sys::mount::{self, Depth, MountAttr};
use crate::sys::openat2::{self, Links, Open};
use std::collections::VecDeque;
use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Links followed and races lost while a target is made, as the kernel bounds links (path_resolution(7)).
const MAX_HOPS: u32 = 40;

/// What a mount target is made as when it is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
}

/// A place beneath the root, made with its parents when missing.
pub(super) fn place(root: BorrowedFd<'_>, path: &CStr, links: Links, kind: Kind) -> io::Result<OwnedFd> {
    match openat2::open_beneath(root, path, links, Open::Path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => make(root, path, links, kind),
        found => found,
    }
}

/// The same, component by component: a link that leads to nothing (an image's /etc/resolv.conf often does) is gone after, as a
/// chroot would, and its target made.
fn make(root: BorrowedFd<'_>, path: &CStr, links: Links, kind: Kind) -> io::Result<OwnedFd> {
    let mut rest: VecDeque<Vec<u8>> = components(path.to_bytes()).collect();
    let mut done: Vec<u8> = Vec::new();
    let mut hops = 0;
    while let Some(name) = rest.pop_front() {
        let here = if done.is_empty() { name.clone() } else { [done.as_slice(), b"/", &name].concat() };
        let (here_c, done_c, name_c) = (c_string(&here)?, c_string(&done)?, c_string(&name)?);
        match openat2::open_beneath(root, &here_c, links, Open::Path) {
            Ok(found) if rest.is_empty() => return Ok(found),
            Ok(_) => {
                done = here;
                continue;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        hops += 1;
        if hops > MAX_HOPS + u32::try_from(path.count_bytes()).unwrap_or(u32::MAX) {
            return Err(io::Error::from_raw_os_error(libc_errno::ELOOP));
        }
        let parent = openat2::open_beneath(root, &done_c, links, Open::Directory)?;
        let made = match kind {
            Kind::File if rest.is_empty() => openat2::make_file(parent.as_fd(), &name_c, 0o644),
            _ => openat2::mkdirat(parent.as_fd(), &name_c, 0o755),
        };
        match made {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            Err(_) => match openat2::readlinkat(parent.as_fd(), &name_c) {
                Ok(_) if links == Links::Refused => return Err(io::Error::from_raw_os_error(libc_errno::ELOOP)),
                Ok(link) => {
                    if link.to_bytes().starts_with(b"/") {
                        done.clear();
                    }
                    for name in components(link.to_bytes()).collect::<Vec<_>>().into_iter().rev() {
                        rest.push_front(name);
                    }
                }
                Err(_) => rest.push_front(name), // no link: somebody else was faster, so it is there now
            },
            Ok(()) => rest.push_front(name), // opened on the next turn
        }
    }
    openat2::open_beneath(root, &c_string(&done)?, links, Open::Path)
}

fn components(path: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    path.split(|b| *b == b'/').filter(|name| !name.is_empty() && *name != b".").map(<[u8]>::to_vec)
}

fn c_string(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| io::Error::from_raw_os_error(libc_errno::EINVAL))
}

/// Attaches everything below the root, in the plan's order. In a pod with a user namespace its /proc is pause's for now: see [`proc`].
pub(super) fn mounts(plan: &Plan, trees: &Trees) -> Result<(), Failed> {
    let root = trees.root.as_fd();
    for (index, (mount, tree)) in plan.mounts.iter().zip(&trees.mounts).enumerate() {
        if plan.ids.is_some() && is_proc(mount) {
            let tree = mount::open_tree_clone_path(c"/proc", Depth::One).on(Step::Mount, index)?;
            attach(root, mount, tree.as_fd()).on(Step::Mount, index)?;
            continue;
        }
        if let What::Dev(fs) = &mount.what {
            let tree = new_fs(fs).on(Step::Mount, index)?;
            // Before it is attached: nobody else can see it yet, so names in it need no care.
            nodes(&plan.devices, tree.as_fd(), trees.terminal.is_some())?;
            attach(root, mount, tree.as_fd()).on(Step::Mount, index)?;
            continue;
        }
        let made = match (&mount.what, tree) {
            (What::Fs(fs), _) => {
                let tree = new_fs(fs).on(Step::Mount, index)?;
                label(fs, tree.as_fd()).on(Step::Mount, index)?;
                Some(tree)
            }
            // Pause's, in whose mount namespace's copy this is.
            (What::Shm, _) => Some(mount::open_tree_clone_path(c"/shm", Depth::One).on(Step::Mount, index)?),
            _ => None,
        };
        if let Some(tree) = made.as_ref().or(tree.as_ref()) {
            attach(root, mount, tree.as_fd()).on(Step::Mount, index)?;
        }
    }
    if let Some(terminal) = &trees.terminal {
        let place = place(root, c"dev/console", Links::Refused, Kind::File).at(Step::Console)?;
        // From the descriptor that was opened by ioctl, not by any name in /dev (CVE-2025-52565).
        let tree = mount::open_tree_clone(terminal.slave.as_fd(), c"", Depth::One).at(Step::Console)?;
        mount::move_mount(tree.as_fd(), place.as_fd()).at(Step::Console)?;
    }
    Ok(())
}

/// Gives the root of a new file system its label, if it is to have one.
fn label(fs: &Fs, tree: BorrowedFd<'_>) -> io::Result<()> {
    let Some(label) = &fs.label else { return Ok(()) };
    let root = openat2::open_beneath(tree, c".", Links::Refused, Open::Read)?;
    sys::fsetxattr(root.as_fd(), OsStr::new("security.selinux"), label.to_bytes())
}

fn is_proc(mount: &Mount) -> bool {
    mount.target.to_bytes() == b"proc" && matches!(mount.what, What::Fs(_))
}

/// Mounts the container's own /proc over pause's, which shows the kernel that this user namespace may see one: to be called in the pid
/// namespace that it is to show, with the container's root as `root`.
pub(super) fn proc(plan: &Plan, root: BorrowedFd<'_>) -> Result<(), Failed> {
    for (index, mount) in plan.mounts.iter().enumerate().filter(|(_, mount)| is_proc(mount)) {
        let What::Fs(fs) = &mount.what else { continue };
        let tree = new_fs(fs).on(Step::Mount, index)?;
        attach(root, mount, tree.as_fd()).on(Step::Mount, index)?;
    }
    Ok(())
}

/// Which of the paths that are masked or read-only are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Where {
    Everywhere,
    InProc,
    Elsewhere,
}

impl Where {
    fn has(self, path: &CStr) -> bool {
        let in_proc = path.to_bytes() == b"proc" || path.to_bytes().starts_with(b"proc/");
        match self {
            Where::Everywhere => true,
            Where::InProc => in_proc,
            Where::Elsewhere => !in_proc,
        }
    }
}

fn attach(root: BorrowedFd<'_>, mount: &Mount, tree: BorrowedFd<'_>) -> io::Result<()> {
    let kind = if openat2::fstat(tree)?.is_dir { Kind::Directory } else { Kind::File };
    let place = place(root, &mount.target, mount.links, kind)?;
    if openat2::fstat(place.as_fd())?.is_dir != (kind == Kind::Directory) {
        return Err(io::Error::from_raw_os_error(libc_errno::ENOTDIR)); // the kernel's answer is EINVAL, which says less
    }
    let named_proc = mount.target.to_bytes() == b"proc" || mount.target.to_bytes().starts_with(b"proc/");
    if !named_proc && openat2::is_procfs(place.as_fd())? {
        // A link led into /proc, where the plan allows a few names only.
        return Err(io::Error::from_raw_os_error(libc_errno::EPERM));
    }
    mount::move_mount(tree, place.as_fd())
}

/// The links of /dev that every container has (OCI config-linux.md, "dev symbolic links").
const LINKS: [(&CStr, &CStr); 5] = [
    (c"fd", c"/proc/self/fd"),
    (c"stdin", c"/proc/self/fd/0"),
    (c"stdout", c"/proc/self/fd/1"),
    (c"stderr", c"/proc/self/fd/2"),
    (c"ptmx", c"pts/ptmx"),
];

/// Fills a new /dev that nobody else can see.
fn nodes(devices: &[Node], dev: BorrowedFd<'_>, console: bool) -> Result<(), Failed> {
    for (index, node) in devices.iter().enumerate() {
        let (parent, name) = match node.path.to_bytes().iter().rposition(|b| *b == b'/') {
            Some(slash) => {
                let bytes = node.path.to_bytes();
                let dir = c_string(&bytes[..slash]).on(Step::DeviceNode, index)?;
                let parent = place(dev, &dir, Links::Refused, Kind::Directory).on(Step::DeviceNode, index)?;
                (Some(parent), c_string(&bytes[slash + 1..]).on(Step::DeviceNode, index)?)
            }
            None => (None, node.path.clone()),
        };
        let parent = parent.as_ref().map_or(dev, AsFd::as_fd);
        openat2::make_node(parent, &name, node.kind, node.numbers, node.mode, node.owner)
            .on(Step::DeviceNode, index)?;
    }
    for (name, target) in LINKS {
        openat2::symlinkat(target, dev, name).at(Step::DeviceNode)?;
    }
    if console {
        openat2::make_file(dev, c"console", 0o600).at(Step::DeviceNode)?;
    }
    Ok(())
}

/// Hides the plan's masked paths: files below /dev/null, directories below an empty read-only tmpfs. What is not there needs none.
///
/// `null` is /dev/null, attached nowhere or where this process can copy it from.
pub(super) fn masks(plan: &Plan, root: BorrowedFd<'_>, null: BorrowedFd<'_>, which: Where) -> Result<(), Failed> {
    let mut empty: Option<OwnedFd> = None;
    let mut null_used = which == Where::InProc;
    for (index, path) in plan.masked.iter().enumerate().filter(|(_, path)| which.has(path)) {
        let Some(place) = existing(root, path).on(Step::Mask, index)? else { continue };
        let is_dir = openat2::fstat(place.as_fd()).on(Step::Mask, index)?.is_dir;
        // A tree that is attached nowhere cannot be copied before Linux 6.15, so the first use attaches it and the others copy it.
        let copy = |tree: BorrowedFd<'_>| mount::open_tree_clone(tree, c"", Depth::One).on(Step::Mask, index);
        if !is_dir {
            let copied = if null_used { Some(copy(null)?) } else { None };
            let tree = copied.as_ref().map_or(null, AsFd::as_fd);
            mount::move_mount(tree, place.as_fd()).on(Step::Mask, index)?;
            null_used = true;
            continue;
        }
        let tree = match &empty {
            Some(tree) => copy(tree.as_fd())?,
            None => {
                let attr = MountAttr::RDONLY.with(MountAttr::NOSUID).with(MountAttr::NODEV).with(MountAttr::NOEXEC);
                let mut parameters = vec![(c"nr_blocks", Some(c"1")), (c"nr_inodes", Some(c"1"))];
                parameters.extend(plan.root.label.as_ref().map(|label| (c"context", Some(label.as_c_str()))));
                mount::new_fs(c"tmpfs", &parameters, attr).on(Step::Mask, index)?
            }
        };
        mount::move_mount(tree.as_fd(), place.as_fd()).on(Step::Mask, index)?;
        empty.get_or_insert(tree);
    }
    Ok(())
}

/// Makes the plan's read-only paths so, with what is mounted below them.
pub(super) fn readonly_paths(plan: &Plan, root: BorrowedFd<'_>, which: Where) -> Result<(), Failed> {
    for (index, path) in plan.readonly.iter().enumerate().filter(|(_, path)| which.has(path)) {
        let Some(place) = existing(root, path).on(Step::ReadonlyPath, index)? else { continue };
        let tree = mount::open_tree_clone(place.as_fd(), c"", Depth::Recursive).on(Step::ReadonlyPath, index)?;
        mount::mount_setattr(tree.as_fd(), Depth::Recursive, MountAttr::RDONLY, MountAttr::NONE, None)
            .on(Step::ReadonlyPath, index)?;
        mount::move_mount(tree.as_fd(), place.as_fd()).on(Step::ReadonlyPath, index)?;
    }
    Ok(())
}

/// The container's own /dev/null, verified to be the device.
pub(super) fn null(root: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let null = openat2::open_beneath(root, c"dev/null", Links::Refused, Open::Path)?;
    match openat2::fstat(null.as_fd())?.char_device {
        Some((1, 3)) => Ok(null), // Documentation/admin-guide/devices.txt
        _ => Err(io::Error::from_raw_os_error(libc_errno::ENODEV)),
    }
}

/// A place that may be missing.
fn existing(root: BorrowedFd<'_>, path: &CStr) -> io::Result<Option<OwnedFd>> {
    match openat2::open_beneath(root, path, Links::InRoot, Open::Path) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        found => found.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_root(test: impl FnOnce(&std::path::Path, BorrowedFd<'_>)) {
        let temp = tempfile::tempdir().expect("tempdir");
        let root = std::fs::File::open(temp.path()).expect("open");
        test(temp.path(), root.as_fd());
    }

    #[test]
    fn a_missing_target_is_made_with_its_parents() {
        with_root(|dir, root| {
            place(root, c"a/b/c", Links::InRoot, Kind::Directory).expect("made");
            place(root, c"a/b/f", Links::Refused, Kind::File).expect("made");
            assert!(dir.join("a/b/c").is_dir() && dir.join("a/b/f").is_file());
        });
    }

    #[test]
    fn a_dangling_link_is_gone_after_inside_the_root_only() {
        with_root(|dir, root| {
            std::fs::create_dir(dir.join("etc")).expect("etc");
            let link = |target: &str, at: &str| std::os::unix::fs::symlink(target, dir.join(at)).expect("link");
            link("../run/stub/resolv.conf", "etc/resolv.conf");
            link("/../../../up", "abs");
            place(root, c"etc/resolv.conf", Links::InRoot, Kind::File).expect("made");
            place(root, c"abs/down", Links::InRoot, Kind::Directory).expect("made");
            assert!(dir.join("run/stub/resolv.conf").is_file() && dir.join("up/down").is_dir());
            link("nowhere", "proc");
            let e = place(root, c"proc", Links::Refused, Kind::Directory).expect_err("a link");
            assert_eq!(e.raw_os_error(), Some(libc_errno::ELOOP));
        });
    }

    #[test]
    fn links_in_a_circle_end() {
        with_root(|dir, root| {
            std::os::unix::fs::symlink("b", dir.join("a")).expect("link");
            std::os::unix::fs::symlink("a", dir.join("b")).expect("link");
            assert!(place(root, c"a/x", Links::InRoot, Kind::Directory).is_err());
        });
    }
}
