//! Mounts of a container of another OCI runtime: the root and what else is attached in its bundle, in a mount namespace that ends with the
//! runtime; and what such a runtime cannot do to volumes, or has not done.

use super::foreign_oci::{SHM, image_place};
use super::plan::Plan;
use super::plan_mounts::{Bind, What, relative};
use super::report::{At, Failed};
use super::{StartError, Step, exec, image_volume, libc_errno, plan, trees};
use crate::sys::mount::{self, Depth, MountAttr, PropagationType};
use crate::sys::ns::{self, NsFlags};
use crate::sys::openat2::{self, Links, Open};
use crate::wire::Launch;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString, OsStr};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What is read of a container's mounts, in bytes: 100 000 of them, sysctl fs.mount-max, are longer, and nothing is known of the rest.
const MAX_MOUNTINFO_BYTES: u64 = 16 << 20;

/// What the runtime sees and the host does not: trees attached in its bundle.
pub(super) struct View<'a> {
    pub bundle: CString,
    /// The pod's pause, whose /dev/shm is wanted.
    pub shm: Option<BorrowedFd<'a>>,
    /// Names in the bundle, and what is attached there.
    pub trees: Vec<(String, OwnedFd)>,
}

impl View<'_> {
    /// In the child.
    pub fn attach(&self) -> Result<(), Failed> {
        let shm = self.shm.map(pods_shm).transpose()?;
        ns::unshare(NsFlags::MOUNT).at(Step::Unshare)?;
        // What is attached below a shared mount shows up in its peers, the host's among them; below a slave it does not, and what the host
        // mounts there later is still seen. Other volumes stay what they are, for their propagation.
        let slave = Some(PropagationType::Slave);
        let below = mount_point_of(&self.bundle).at(Step::AttachRoot)?;
        let below = openat2::open_host_path(&below).at(Step::AttachRoot)?;
        mount::mount_setattr(below.as_fd(), Depth::One, MountAttr::NONE, MountAttr::NONE, slave)
            .at(Step::AttachRoot)?;
        let bundle = openat2::open_host_path(&self.bundle).at(Step::AttachRoot)?;
        let trees = self.trees.iter().map(|(name, tree)| (name.as_str(), tree));
        for (name, tree) in trees.chain(shm.iter().map(|shm| (SHM, shm))) {
            let name = CString::new(name).map_err(io::Error::from).at(Step::AttachRoot)?;
            let place = openat2::open_beneath(bundle.as_fd(), &name, Links::Refused, Open::Directory);
            place.and_then(|place| mount::move_mount(tree.as_fd(), place.as_fd())).at(Step::AttachRoot)?;
        }
        Ok(())
    }
}

/// A copy of the pod's /dev/shm, which is in pause's mount namespace only.
fn pods_shm(pause: BorrowedFd<'_>) -> Result<OwnedFd, Failed> {
    let own = std::fs::File::open("/proc/self/ns/mnt").at(Step::Setns)?;
    ns::setns(pause, NsFlags::MOUNT).at(Step::Setns)?;
    let shm = mount::open_tree_clone_path(c"/shm", Depth::One).at(Step::Shm)?;
    ns::setns(own.as_fd(), NsFlags::MOUNT).at(Step::Setns)?;
    Ok(shm)
}

fn mount_point_of(path: &CString) -> io::Result<CString> {
    let path = Path::new(OsStr::from_bytes(path.as_bytes())).canonicalize()?;
    let point = trees::mount_point(&path).ok_or_else(|| io::Error::from_raw_os_error(libc_errno::ENOENT))?;
    Ok(CString::new(point.into_os_string().into_encoded_bytes())?)
}

/// The image volumes: their places in the bundle, and what is attached there.
pub(super) fn image_volumes(launch: &Launch, plan: &Plan) -> Result<Vec<(String, OwnedFd)>, StartError> {
    let spec = launch.spec.value();
    let mut all = Vec::new();
    for (number, mount) in spec["mounts"].as_array().into_iter().flatten().enumerate() {
        let Some(destination) = mount["destination"].as_str().filter(|_| mount["type"] == "overlay") else { continue };
        let target = relative("mounts", Path::new(destination))?;
        for mount in plan.mounts.iter().filter(|mount| mount.target == target) {
            if let What::Image(image) = &mount.what {
                all.push((image_place(number), image_volume::tree(image, &target, None)?));
            }
        }
    }
    Ok(all)
}

/// Refuses volumes whose mounts are to be the host's as well, where that cannot be: [`View::attach`] makes the mount that the bundle is on a
/// slave, and what is mounted below that is not seen anywhere else.
///
/// # Errors
/// [`Step::Plan`], naming the volume.
pub(super) fn refuse_shared(plan: &Plan, bundle: &Path) -> Result<(), StartError> {
    let on = |path: &Path| path.canonicalize().ok().and_then(|path| trees::mount_point(&path));
    let volumes = plan.mounts.iter().filter_map(|mount| match &mount.what {
        What::Bind(Bind { propagation: PropagationType::Shared, source, .. }) => Some(source),
        _ => None,
    });
    for source in volumes {
        let source = Path::new(OsStr::from_bytes(source.to_bytes()));
        let point = on(source);
        if point.is_some() && point == on(bundle) {
            return Err(plan::refused(format!(
                "volume {}: it is on the mount of podwright's state directory, and there Bidirectional propagation needs the built-in \
                 runtime; mount the state directory by itself, as /run is",
                source.display()
            )));
        }
    }
    Ok(())
}

/// Looks whether the volumes that are to be read-only with all below them are, in a container that was made and does not run yet: a runtime
/// that does not know the option leaves it out without a word, and not every one that knows it says so.
///
/// # Errors
/// [`Step::Plan`], naming the volume and what is writable below it.
pub(super) fn check_read_only(plan: &Plan, pidfd: BorrowedFd<'_>, pid: u32) -> Result<(), StartError> {
    let asked = |mount: &super::plan_mounts::Mount| matches!(&mount.what, What::Bind(bind) if is_recursive(bind));
    if !plan.mounts.iter().any(asked) {
        return Ok(()); // the table of a busy host is long
    }
    let root = exec::root_of(pidfd)?;
    let (mut volumes, mut others) = (BTreeMap::new(), BTreeSet::new());
    for mount in &plan.mounts {
        let shown = || format!("/{}", mount.target.to_string_lossy());
        match mount_id(root.as_fd(), &mount.target) {
            Ok(id) if asked(mount) => drop(volumes.insert(id, shown())),
            Ok(id) => drop(others.insert(id)),
            Err(e) if asked(mount) => {
                return Err(StartError::os(Step::Runtime, &shown(), e.raw_os_error().unwrap_or(0)));
            }
            Err(_) => {} // a mount of the container's own that another one hides
        }
    }
    let (path, mut table) = (format!("/proc/{pid}/mountinfo"), Vec::new());
    let read = std::fs::File::open(&path).and_then(|file| file.take(MAX_MOUNTINFO_BYTES).read_to_end(&mut table));
    let read = read.map_err(|e| StartError::os(Step::Runtime, &path, e.raw_os_error().unwrap_or(0)))?;
    if read as u64 == MAX_MOUNTINFO_BYTES {
        return Err(plan::refused(format!("{path} is longer than {MAX_MOUNTINFO_BYTES} bytes")));
    }
    // Names of mount points are bytes; what is looked for is text.
    match writable(&String::from_utf8_lossy(&table), &volumes, &others) {
        None => Ok(()),
        Some((volume, point)) => Err(plan::refused(format!(
            "volume {volume}: {point} is writable, for this runtime does not make volumes read-only with all below them; leave out \
             recursiveReadOnly, or the runtime handler"
        ))),
    }
}

fn is_recursive(bind: &Bind) -> bool {
    bind.set.contains(MountAttr::RDONLY) && bind.set_depth == Depth::Recursive
}

/// The number of the mount that a path of a container leads to, as its mountinfo has it (proc_pid_fdinfo(5)).
fn mount_id(root: BorrowedFd<'_>, target: &CStr) -> io::Result<u32> {
    let place = openat2::open_beneath(root, target, Links::InRoot, Open::Path)?;
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", place.as_raw_fd()))?;
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    id.ok_or_else(|| io::Error::from_raw_os_error(libc_errno::EINVAL))
}

/// Of a mount table, the first volume with a mount that is not read-only: itself, or one that is below it and of none of `others`; where that is.
fn writable<'a>(
    table: &'a str,
    volumes: &'a BTreeMap<u32, String>,
    others: &BTreeSet<u32>,
) -> Option<(&'a str, &'a str)> {
    let lines = table.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (id, parent): (u32, u32) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let (point, options) = (fields.nth(2)?, fields.next()?);
        Some((id, (parent, point, options.split(',').any(|option| option == "ro"))))
    });
    let all: BTreeMap<u32, (u32, &str, bool)> = lines.collect();
    all.iter().filter(|(_, (_, _, read_only))| !read_only).find_map(|(id, (_, point, _))| {
        let mut at = *id;
        // As many steps as there are mounts: a table that is read while it changes may have a circle.
        for _ in 0..all.len() {
            if let Some(volume) = volumes.get(&at) {
                return Some((volume.as_str(), *point));
            }
            if others.contains(&at) {
                return None;
            }
            at = all.get(&at)?.0;
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writable_mount_is_that_of_the_volume_which_it_is_below() {
        let table = "10 1 0:1 / / rw - overlay overlay rw\n\
            11 10 0:2 / /vol ro,nosuid - ext4 /dev/vda rw\n\
            12 11 0:3 / /vol/a ro - tmpfs tmpfs rw\n\
            13 12 0:4 / /vol/a/b rw,nodev - tmpfs tmpfs ro\n\
            14 11 0:5 / /vol/own rw - tmpfs tmpfs rw\n\
            15 14 0:6 / /vol/own/x rw - tmpfs tmpfs rw\ngarbage\n";
        let volumes = BTreeMap::from([(11, "/vol".to_owned())]);
        let own = BTreeSet::from([10, 14]);
        assert_eq!(writable(table, &volumes, &own), Some(("/vol", "/vol/a/b")));
        let without: Vec<&str> = table.lines().filter(|line| !line.starts_with("13 ")).collect();
        assert_eq!(writable(&without.join("\n"), &volumes, &own), None);
        let itself = table.replace("/vol ro,", "/vol rw,");
        assert_eq!(writable(&itself, &volumes, &own), Some(("/vol", "/vol")));
        assert_eq!(writable(table, &BTreeMap::new(), &own), None);
    }
}
