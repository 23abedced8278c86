//! Image volumes: the files of an image below a path of the container, read-only. The image's layers are an overlay without an upper one, or a
//! bind mount where there is but one layer; a part of it is looked up in there, so that no link of the image leads out.
//!
//! All of it happens in a helper's mount namespace: a part of what is attached nowhere can be copied from Linux 6.15 on only.

use super::plan_mounts::Image;
use super::trees::{context_option, idmapped};
use super::{StartError, Step};
use crate::sys::clone::helper_newns;
use crate::sys::mount::{self, Depth, MountAttr, PropagationType};
use crate::sys::openat2::{self, Links, Open};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The volume, attached nowhere.
/// `namespace`: whose ids its owners are, in a pod with a user namespace.
pub(super) fn tree(image: &Image, target: &CStr, namespace: Option<BorrowedFd<'_>>) -> Result<OwnedFd, StartError> {
    let part = image.part.to_string_lossy();
    let shown = match part.is_empty() {
        true => format!("image for /{}", target.to_string_lossy()),
        false => format!("{part:?} of the image for /{}", target.to_string_lossy()),
    };
    let told = |e: io::Error| StartError::os(Step::Volume, &shown, e.raw_os_error().unwrap_or(0));
    let mut made = Err(told(io::ErrorKind::Interrupted.into()));
    helper_newns(&mut || made = here(image, namespace, &told)).map_err(told)?;
    let tree = made?;
    let private = Some(PropagationType::Private);
    mount::mount_setattr(tree.as_fd(), Depth::One, image.set, MountAttr::NONE, private).map_err(told)?;
    Ok(tree)
}

/// In the helper. Its descriptors are the shim's as well, so what is opened here is closed here.
fn here(
    image: &Image,
    namespace: Option<BorrowedFd<'_>>,
    told: &impl Fn(io::Error) -> StartError,
) -> Result<OwnedFd, StartError> {
    mount::make_all_private().map_err(told)?;
    let lower = match namespace {
        Some(namespace) => Some(idmapped(&image.layers, namespace)?),
        None => None,
    };
    let root = match (image.layers.as_slice(), lower) {
        ([only], None) if image.label.is_none() => openat2::open_host_path(only),
        // Its place in the table of mapped layers.
        ([_], Some(lower)) if image.label.is_none() => {
            CString::new(lower).map_err(io::Error::from).and_then(|p| openat2::open_host_path(&p))
        }
        (layers, lower) => overlay(layers, lower, image.label.as_deref()),
    };
    root.and_then(|root| {
        let part = openat2::open_beneath(root.as_fd(), &image.part, Links::InRoot, Open::Directory)?;
        mount::open_tree_clone(part.as_fd(), c"", Depth::One)
    })
    .map_err(told)
}

/// `label`: SELinux's, which a bind mount cannot have: of one layer too it is an overlay then, with an empty directory for the second that it
/// wants.
fn overlay(layers: &[CString], mapped: Option<Vec<u8>>, label: Option<&CStr>) -> io::Result<OwnedFd> {
    let opened = layers.iter().map(|layer| openat2::open_host_path(layer)).collect::<io::Result<Vec<_>>>()?;
    let paths: Vec<CString> = opened.iter().rev().map(|layer| mount::proc_path(layer.as_fd())).collect();
    let mut lower =
        mapped.clone().unwrap_or_else(|| paths.iter().map(|path| path.to_bytes()).collect::<Vec<_>>().join(&b':'));
    let mut held = None;
    if layers.len() == 1 {
        if let Some(place) = mapped {
            // Its place is hidden by the empty directory in a moment.
            let layer = held.insert(openat2::open_host_path(&CString::new(place)?)?);
            lower = mount::proc_path(layer.as_fd()).into_bytes();
        }
        let empty = mount::new_fs(c"tmpfs", &[(c"size", Some(c"4k"))], MountAttr::NONE)?;
        mount::move_mount_path(empty.as_fd(), c"/proc/fs")?;
        lower.extend_from_slice(b":/proc/fs");
    }
    let options = CString::new([b"lowerdir=".as_slice(), &lower, &context_option(label)].concat())?;
    mount::mount_overlay(c"/proc/fs", &options)?;
    openat2::open_host_path(c"/proc/fs")
}
