//! The engine's use of cgroups: where they are, which controllers they get, and that podwright's own go when they are empty.

use super::Engine;
use super::pod::Pod;
use crate::cgroup::apply;
use crate::cgroup::limits::{self, Setting};
use crate::cgroup::{self, Cgroup, CgroupPath, Controllers, Report, slice};
use crate::error::{Context, Result};
use crate::state::model::{PodCgroup, Resources};
use crate::sys;
use std::time::Duration;

/// How long processes of a cgroup may take to die of SIGKILL before its removal is given up.
const EMPTY_WAIT: Duration = Duration::from_secs(10);

/// The environment variable by which a shim knows the cgroup of its owner, for when it sweeps.
pub(super) const OWNER_CGROUP: &str = "PODWRIGHT_OWNER_CGROUP";

/// The cgroup of this process; `None` when it is not below the root that we see.
pub(super) fn here() -> Result<Option<CgroupPath>> {
    let text = std::fs::read_to_string("/proc/self/cgroup").context(|| "read /proc/self/cgroup")?;
    Ok(text.lines().find_map(|line| line.strip_prefix("0::")).and_then(|path| path.parse().ok()))
}

impl Engine {
    /// podwright's own cgroup for shims, outside of every pod: the kubelet kills whatever is inside one.
    pub(super) fn shims_cgroup(&self) -> Result<String> {
        let root = &self.options().cgroup_root;
        if !self.asks_systemd() {
            return Ok(format!("{root}/shims"));
        }
        let slice = slice::of_root(root)?;
        Ok(slice::path_of(&slice)?.child(&slice::shims_of(&slice))?.to_string())
    }

    /// Makes a cgroup of the pod with the controllers that `settings` and statistics need.
    pub(super) fn make_cgroup(&self, pod: &Pod, path: &str, settings: &[Setting]) -> Result<Cgroup> {
        let owned = match &pod.record.config.cgroup {
            PodCgroup::Given(parent) => parent.parse()?,
            // Our own tree starts at the hierarchy's root: what is above it passes our controllers on, or nobody would.
            _ => CgroupPath::root(),
        };
        self.hierarchy().create(&path.parse()?, &cgroup::controllers_for(settings), &owned)
    }

    /// Makes a cgroup that only holds processes: no controllers.
    pub(super) fn make_plain_cgroup(&self, path: &str) -> Result<Cgroup> {
        let owned = self.options().cgroup_root.parse::<CgroupPath>()?;
        self.hierarchy().create(&path.parse()?, &Controllers::new(), &owned)
    }

    /// What of `resources` is to be written, checked.
    pub(super) fn settings(&self, resources: &Resources) -> Result<Vec<Setting>> {
        limits::settings(resources, sys::page_bytes())
    }

    /// Writes and verifies.
    pub(super) fn limit(&self, cgroup: &Cgroup, settings: &[Setting]) -> Result<Report> {
        apply::apply(self.hierarchy(), cgroup, settings, self.options().allow_unenforced)
    }

    /// Opens a cgroup that is there.
    pub(super) fn open_cgroup(&self, path: &str) -> Result<Cgroup> {
        self.hierarchy().open(&path.parse()?)
    }

    /// Kills everything in a cgroup and removes it with all below it; one that is not there is no error.
    pub(super) fn remove_cgroup(&self, path: &str) -> Result<()> {
        self.hierarchy().remove(&path.parse()?, EMPTY_WAIT)
    }

    /// Moves this process out of podwright's cgroups, so that they can go.
    pub(super) fn leave_shims(&self) -> Result<()> {
        if self.asks_systemd() {
            return Ok(()); // its scope goes with the last process
        }
        let own = self.options().cgroup_root.parse::<CgroupPath>()?;
        let inside = here()?.is_some_and(|path| path.is_within(&own));
        if inside { self.outside()?.write("cgroup.procs", "0").context(|| "leave podwright's cgroup") } else { Ok(()) }
    }

    /// A cgroup outside of podwright's own where a process may be moved: that of `run`, as its shims know it; else the root. The
    /// root takes processes only while it is the kernel's: a container's has controllers enabled below it.
    pub(super) fn outside(&self) -> Result<Cgroup> {
        let own = self.options().cgroup_root.parse::<CgroupPath>()?;
        let told = std::env::var(OWNER_CGROUP).ok().and_then(|path| path.parse().ok());
        let known = told.or(here()?).filter(|path: &CgroupPath| !path.is_within(&own));
        match known.map(|path| self.hierarchy().open(&path)) {
            Some(Ok(cgroup)) => Ok(cgroup),
            _ => self.hierarchy().root(),
        }
    }

    /// Removes podwright's own cgroups that hold nothing any more; others may be using them.
    pub fn prune_cgroups(&self) {
        if self.asks_systemd() {
            return; // they go with the last process in them
        }
        let root = &self.options().cgroup_root;
        let Ok(top) = root.parse::<CgroupPath>() else { return };
        for below in ["pods", "burstable", "besteffort", "shims"] {
            let pruned = top.child(below).and_then(|path| self.hierarchy().remove_if_empty(&path, &top));
            if let Err(e) = pruned {
                tracing::warn!("{e}");
            }
        }
    }
}
