//! Which pods there are, and which of them the user means. There is no daemon: pods belong to instances of `podwright run`, and a
//! command asks each of those that live, through its records and its pods' shims.
//!
//! What is left of an instance whose `run` was killed is taken away first: a command never shows the dead as living.

use crate::engine::sweep;
use crate::error::{Context, Result};
use crate::id::{ContainerId, PodId};
use crate::image::gc::InUse;
use crate::state::paths::Paths;
use crate::state::record::{self, ContainerRecord};
use std::path::Path;

/// The images and layers that containers were made from, of all instances, living or not.
///
/// # Errors
/// `Internal` for a record that cannot be read: what it uses is not known, so nothing may be taken away.
pub(super) fn in_use(paths: &Paths) -> Result<InUse> {
    let mut in_use = InUse::default();
    let instances = sweep::instances(paths)?.into_iter().map(|(id, _)| paths.of_instance(id));
    for paths in instances.chain([paths.clone()]) {
        for pod in names::<PodId>(&paths.pods())? {
            for container in names::<ContainerId>(&paths.containers(&pod))? {
                // Without a record it has no process, and will not get one: its making was interrupted.
                let record = record::read::<ContainerRecord>(&paths.container_record(&pod, &container))?;
                in_use.images.extend(record.iter().filter_map(|r| r.config.image_id.clone()));
                in_use.layers.extend(record.into_iter().flat_map(|r| r.layers));
            }
        }
    }
    Ok(in_use)
}

/// The ids that a directory has as names; none when it is not there.
fn names<T: std::str::FromStr>(dir: &Path) -> Result<Vec<T>> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context(|| format!("list {}", dir.display()))?,
    };
    Ok(entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect())
}
