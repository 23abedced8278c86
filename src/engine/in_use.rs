//! Which images containers and pods still need, told from the records of every engine on this machine: what the image store asks before it
//! takes anything away.

use super::recover::list;
use super::sweep;
use crate::error::Result;
use crate::id::{ContainerId, PodId};
use crate::image::gc::InUse;
use crate::image::reference::Reference;
use crate::state::paths::Paths;
use crate::state::record::{self, ContainerRecord, PodRecord, Record};
use std::path::Path;

/// An annotation of a pod's record: the images that its containers name, separated by blanks. A container that waits to be started
/// again has no record, and its image is to be there when it is.
pub const IMAGES: &str = "podwright.dev/images";

/// The images and layers that containers were made from, of all instances, living or not. What a record that cannot be read names is not
/// known; that is told too ([`InUse::unknown`]).
///
/// # Errors
/// `Internal` when a directory cannot be listed.
pub fn in_use(paths: &Paths) -> Result<InUse> {
    let mut in_use = InUse::default();
    let instances = sweep::instances(paths)?.into_iter().map(|(id, _)| paths.of_instance(id));
    for paths in instances.chain([paths.clone()]) {
        for pod in names::<PodId>(&paths.pods())? {
            let record = readable::<PodRecord>(&paths.pod_record(&pod), &mut in_use);
            let named = record.as_ref().and_then(|r| r.config.annotations.get(IMAGES)).map_or("", String::as_str);
            in_use.names.extend(named.split(' ').filter_map(|name| Some(name.parse::<Reference>().ok()?.key())));
            for container in names::<ContainerId>(&paths.containers(&pod))? {
                // Without a record it has no process, and will not get one: its making was interrupted.
                let record = readable::<ContainerRecord>(&paths.container_record(&pod, &container), &mut in_use);
                in_use.images.extend(record.iter().filter_map(|r| r.config.image_id.clone()));
                let mounts = record.iter().flat_map(|r| &r.config.mounts);
                in_use.images.extend(mounts.filter_map(|mount| mount.image.as_ref()?.id.clone()));
                in_use.layers.extend(record.into_iter().flat_map(|r| r.layers));
            }
        }
    }
    Ok(in_use)
}

fn readable<T: Record>(path: &Path, in_use: &mut InUse) -> Option<T> {
    let read = record::read::<T>(path);
    read.unwrap_or_else(|e| {
        in_use.unknown.push(e.to_string());
        None
    })
}

/// The ids that a directory has as names; none when it is not there.
fn names<T: std::str::FromStr>(dir: &Path) -> Result<Vec<T>> {
    Ok(list(dir)?.iter().filter_map(|name| name.parse().ok()).collect())
}
