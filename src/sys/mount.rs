//! Mounts as descriptors: fsopen(2), fsconfig(2), fsmount(2), open_tree(2), move_mount(2), mount_setattr(2); and of the old calls
//! mount(2) for overlayfs and to bind a namespace, pivot_root(2) and umount2(2).

use rustix::fs::CWD;
use rustix::mount as rx;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// MOUNT_ATTR_*, mount_setattr(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MountAttr(u32);

impl MountAttr {
    pub const NONE: MountAttr = MountAttr(0);
    pub const RDONLY: MountAttr = MountAttr(0x1);
    pub const NOSUID: MountAttr = MountAttr(0x2);
    pub const NODEV: MountAttr = MountAttr(0x4);
    pub const NOEXEC: MountAttr = MountAttr(0x8);
    pub const NOATIME: MountAttr = MountAttr(0x10);
    pub const STRICTATIME: MountAttr = MountAttr(0x20);
    pub const NODIRATIME: MountAttr = MountAttr(0x80);
    pub const NOSYMFOLLOW: MountAttr = MountAttr(0x20_0000);
    /// All three kinds of access time: to be cleared when one of them is set.
    const ATIME: MountAttr = MountAttr(0x70);

    /// Both.
    #[must_use]
    pub const fn with(self, other: MountAttr) -> MountAttr {
        MountAttr(self.0 | other.0)
    }

    /// Without those of `other`.
    #[must_use]
    pub const fn without(self, other: MountAttr) -> MountAttr {
        MountAttr(self.0 & !other.0)
    }

    /// Whether all of `other` are in it.
    pub const fn contains(self, other: MountAttr) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether none is.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// Where mount events go, mount_namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PropagationType {
    Private,
    Slave,
    Shared,
}

/// A new file system, not attached anywhere: fsopen, fsconfig for each parameter, fsmount. A parameter without value is a flag.
///
/// proc, mqueue and cgroup2 are those of the caller's namespaces.
///
/// # Errors
/// Those of the three calls; `EINVAL` for a value beyond 255 bytes.
pub fn new_fs(fs: &CStr, parameters: &[(&CStr, Option<&CStr>)], attr: MountAttr) -> io::Result<OwnedFd> {
    let context = rx::fsopen(fs, rx::FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in parameters {
        match value {
            Some(value) => rx::fsconfig_set_string(&context, *key, *value)?,
            None => rx::fsconfig_set_flag(&context, *key)?,
        }
    }
    rx::fsconfig_create(&context)?;
    let attr = rx::MountAttrFlags::from_bits_retain(attr.0);
    Ok(rx::fsmount(&context, rx::FsMountFlags::FSMOUNT_CLOEXEC, attr)?)
}

/// Whether a copy of a tree has the mounts below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    One,
    Recursive,
}

/// A copy of the mounts at `path`, not attached anywhere: `open_tree(OPEN_TREE_CLONE)`. `path` is relative to `dir`, or empty for
/// `dir` itself. What is attached nowhere cannot be copied before Linux 6.15 (`EINVAL`).
///
/// # Errors
/// Those of open_tree(2).
pub fn open_tree_clone(dir: BorrowedFd<'_>, path: &CStr, depth: Depth) -> io::Result<OwnedFd> {
    let mut flags = rx::OpenTreeFlags::OPEN_TREE_CLONE | rx::OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if path.is_empty() {
        flags |= rx::OpenTreeFlags::AT_EMPTY_PATH;
    }
    if depth == Depth::Recursive {
        flags |= rx::OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(rx::open_tree(dir, path, flags)?)
}

/// The same for an absolute path, as this process's root has it.
///
/// # Errors
/// Those of open_tree(2).
pub fn open_tree_clone_path(path: &CStr, depth: Depth) -> io::Result<OwnedFd> {
    open_tree_clone(CWD, path, depth)
}

/// Attaches `tree` exactly where `target` (O_PATH) is: no path is looked up again.
///
/// # Errors
/// Those of move_mount(2); `ENOTDIR` for a file on a directory or the reverse.
pub fn move_mount(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = rx::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | rx::MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rx::move_mount(tree, c"", target, c"", flags)?)
}

/// Attaches `tree` at a path of one's own making.
///
/// # Errors
/// Those of move_mount(2).
pub fn move_mount_path(tree: BorrowedFd<'_>, target: &CStr) -> io::Result<()> {
    Ok(rx::move_mount(tree, c"", CWD, target, rx::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// `mount_setattr(fd, "", AT_EMPTY_PATH [| AT_RECURSIVE])`.
///
/// # Errors
/// Those of mount_setattr(2).
pub fn mount_setattr(
    mount: BorrowedFd<'_>,
    depth: Depth,
    set: MountAttr,
    clear: MountAttr,
    propagation: Option<PropagationType>,
) -> io::Result<()> {
    set_attributes(mount, depth, set, clear, propagation, None)
}

/// Shows the files of a tree that is attached nowhere with other ids: MOUNT_ATTR_IDMAP. An id on the disk is one of `namespace` (a user
/// namespace), and is seen as the id that this is to the host. The one mount, not what is mounted below it.
///
/// # Errors
/// `EINVAL` for a file system that cannot, and for a mount that is mapped already; `EPERM` for one that is attached.
pub fn idmap(mount: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> io::Result<()> {
    set_attributes(mount, Depth::One, MountAttr(0x10_0000), MountAttr::NONE, None, Some(namespace))
}

fn set_attributes(
    mount: BorrowedFd<'_>,
    depth: Depth,
    set: MountAttr,
    clear: MountAttr,
    propagation: Option<PropagationType>,
    namespace: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    /// `struct mount_attr`, linux/mount.h.
    #[repr(C)]
    struct Attr {
        set: u64,
        clear: u64,
        propagation: u64,
        userns_fd: u64,
    }
    let any_atime = !MountAttr(set.0 & MountAttr::ATIME.0).is_empty();
    let clear = if any_atime { clear.with(MountAttr::ATIME) } else { clear };
    let attr = Attr {
        set: u64::from(set.0),
        clear: u64::from(clear.0),
        propagation: match propagation {
            None => 0,
            Some(PropagationType::Private) => libc::MS_PRIVATE,
            Some(PropagationType::Slave) => libc::MS_SLAVE,
            Some(PropagationType::Shared) => libc::MS_SHARED,
        },
        userns_fd: namespace.map_or(0, |fd| u64::from(fd.as_raw_fd().unsigned_abs())),
    };
    /// linux/fcntl.h; libc has it for some targets only.
    const AT_RECURSIVE: libc::c_int = 0x8000;
    let flags = libc::AT_EMPTY_PATH | if depth == Depth::Recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a C string and `attr` is the struct whose size is told; both outlive the call, which only reads them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<Attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes every mount of this namespace private, so that nothing done to them is seen elsewhere: `mount(MS_REC | MS_PRIVATE)`.
///
/// # Errors
/// Those of mount(2).
pub fn make_all_private() -> io::Result<()> {
    let flags = rx::MountPropagationFlags::REC | rx::MountPropagationFlags::PRIVATE;
    Ok(rx::mount_change(c"/", flags)?)
}

/// `mount("overlay", target, "overlay", 0, options)`: mount(2), for fsconfig's strings end at 255 bytes and these at a page.
///
/// # Errors
/// Those of mount(2).
pub fn mount_overlay(target: &CStr, options: &CStr) -> io::Result<()> {
    Ok(rx::mount(c"overlay", target, c"overlay", rx::MountFlags::empty(), options)?)
}

/// `pivot_root(".", ".")` and `umount2(".", MNT_DETACH)`, pivot_root(2): the working directory becomes the root, and the old
/// root, stacked on it for a moment, goes.
///
/// # Errors
/// Those of the two calls.
pub fn pivot_root_here() -> io::Result<()> {
    Ok(rustix::process::pivot_root(c".", c".")?)
}

/// `umount2(".", MNT_DETACH)`.
///
/// # Errors
/// Those of umount2(2).
pub fn detach_here() -> io::Result<()> {
    Ok(rx::unmount(c".", rx::UnmountFlags::DETACH)?)
}

/// `mount(from, target, NULL, MS_BIND, NULL)`: an open namespace (or file) at a path as well.
///
/// # Errors
/// Those of mount(2).
pub fn bind(from: BorrowedFd<'_>, target: &Path) -> io::Result<()> {
    Ok(rx::mount_bind(proc_path(from), target)?)
}

/// `umount2(target, MNT_DETACH | UMOUNT_NOFOLLOW)`.
///
/// # Errors
/// `EINVAL` when nothing is mounted there; those of umount(2).
pub fn unmount(target: &Path) -> io::Result<()> {
    Ok(rx::unmount(target, rx::UnmountFlags::DETACH | rx::UnmountFlags::NOFOLLOW)?)
}

/// `/proc/self/fd/N`, for the calls that take no descriptor.
pub fn proc_path(fd: BorrowedFd<'_>) -> CString {
    CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap_or_default() // a number has no NUL
}
