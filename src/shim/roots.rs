//! Roots of containers that were made in advance, while their client was on its way from CreateContainer to StartContainer.

use crate::id::ContainerId;
use crate::launch::{StartError, spawn};
use crate::wire::{MAX_CONTAINERS, Root};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

/// At most [`MAX_CONTAINERS`]. Each belongs to the connection that asked for it: an engine that dies before it has recorded the container
/// leaves nobody who would have it forgotten.
#[derive(Debug, Default)]
pub(super) struct Roots {
    made: BTreeMap<ContainerId, Made>,
}

#[derive(Debug)]
struct Made {
    connection: u64,
    root: Root,
    tree: OwnedFd,
}

impl Roots {
    /// Makes one; a container's second replaces its first.
    ///
    /// # Errors
    /// As the container's start, which makes its own then and says it to whoever waits for it.
    pub(super) fn make(&mut self, connection: u64, container: ContainerId, root: Root) -> Result<(), StartError> {
        self.made.remove(&container);
        if self.made.len() < MAX_CONTAINERS {
            let tree = spawn::prepare(&root)?;
            self.made.insert(container, Made { connection, root, tree });
        }
        Ok(())
    }

    /// The one made for `container`, if it is of this.
    pub(super) fn take(&mut self, container: &ContainerId, root: &Root) -> Option<OwnedFd> {
        self.made.remove(container).filter(|made| made.root == *root).map(|made| made.tree)
    }

    pub(super) fn forget(&mut self, container: &ContainerId) {
        self.made.remove(container);
    }

    pub(super) fn forget_connection(&mut self, connection: u64) {
        self.made.retain(|_, made| made.connection != connection);
    }
}
