//! Image volumes: the files of an image below a path of the container, read-only. The image's layers are an overlay without an upper one, or a
//! bind mount where there is but one layer; a part of it is looked up in there, so that no link of the image leads out.
//!
//! All of it happens in a helper's mount namespace: a part of what is attached nowhere can be copied from Linux 6.15 on only.

use super::plan_mounts::Image;
use super::{StartError, Step};
use crate::sys::clone::helper_newns;
use crate::sys::mount::{self, Depth, MountAttr, PropagationType};
use crate::sys::openat2::{self, Links, Open};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// The volume, attached nowhere.
pub(super) fn tree(image: &Image, target: &CStr) -> Result<OwnedFd, StartError> {
    let part = image.part.to_string_lossy();
    let shown = match part.is_empty() {
        true => format!("image for /{}", target.to_string_lossy()),
        false => format!("{part:?} of the image for /{}", target.to_string_lossy()),
    };
    let told = |e: io::Error| StartError::os(Step::Volume, &shown, e.raw_os_error().unwrap_or(0));
    let mut made = Err(io::ErrorKind::Interrupted.into());
    helper_newns(&mut || made = here(image)).map_err(told)?;
    let tree = made.map_err(told)?;
    let private = Some(PropagationType::Private);
    mount::mount_setattr(tree.as_fd(), Depth::One, image.set, MountAttr::NONE, private).map_err(told)?;
    Ok(tree)
}

/// In the helper. Its descriptors are the shim's as well, so what is opened here is closed here.
fn here(image: &Image) -> io::Result<OwnedFd> {
    mount::make_all_private()?;
    let root = match image.layers.as_slice() {
        [only] => openat2::open_host_path(only)?,
        several => overlay(several)?,
    };
    let part = openat2::open_beneath(root.as_fd(), &image.part, Links::InRoot, Open::Directory)?;
    mount::open_tree_clone(part.as_fd(), c"", Depth::One)
}

fn overlay(layers: &[CString]) -> io::Result<OwnedFd> {
    let opened = layers.iter().map(|layer| openat2::open_host_path(layer)).collect::<io::Result<Vec<_>>>()?;
    let paths: Vec<CString> = opened.iter().rev().map(|layer| mount::proc_path(layer.as_fd())).collect();
    let lower = paths.iter().map(|path| path.to_bytes()).collect::<Vec<_>>().join(&b':');
    let options = CString::new([b"lowerdir=".as_slice(), &lower].concat())?;
    mount::mount_overlay(c"/proc/fs", &options)?;
    openat2::open_host_path(c"/proc/fs")
}
