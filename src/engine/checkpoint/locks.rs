//! How criu shuts a network while it writes connections: by a table of nftables, which one that is killed leaves behind, and with it a pod that
//! nothing reaches any more. Which tables of that kind were there before is noted: a container may have a criu of its own.

use super::criu;
use crate::error::{Context, Result};
use crate::network::tables;
use crate::state::record::Process;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The tables that were there, JSON, in its working directory.
const NOTE: &str = "tables";
/// Bytes of it: of as many as are looked at, of the longest names.
const MAX_NOTE: u64 = 4 << 20;
/// `CRIU-` and the number of a run.
const PREFIX: &str = "CRIU-";

/// The tables of a network namespace that are not criu's leftovers, and the namespace.
pub(super) struct Locks {
    before: BTreeSet<String>,
    netns: Option<Network>,
}

struct Network {
    file: File,
    /// Where others checkpoint as well: what has come since may be anybody's.
    is_hosts: bool,
}

impl Locks {
    /// Notes what is there, in `work`.
    pub(super) fn note(work: &Path, pause: Option<Process>) -> Result<Locks> {
        let netns = netns(pause)?;
        let before = netns.as_ref().map_or_else(|| Ok(BTreeSet::new()), |n| tables::named(n.file.as_fd(), PREFIX))?;
        let locks = Locks { before, netns };
        super::archive::write_json(&work.join(NOTE), &serde_json::json!(locks.before))?;
        Ok(locks)
    }

    /// What was noted; `None`: nothing was, and so nothing begun.
    pub(super) fn read(work: &Path, pause: Option<Process>) -> Result<Option<Locks>> {
        let path = work.join(NOTE);
        let file = match File::open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            file => file.context(|| format!("open {}", path.display()))?,
        };
        let mut text = Vec::new();
        file.take(MAX_NOTE).read_to_end(&mut text).context(|| format!("read {}", path.display()))?;
        // One that was cut off by a kill: criu had not begun.
        let Ok(before) = serde_json::from_slice(&text) else { return Ok(None) };
        Ok(Some(Locks { before, netns: netns(pause)? }))
    }

    /// Removes what has come; of the host's network it is told only.
    pub(super) fn remove(self) -> Result<()> {
        let Some(netns) = &self.netns else { return Ok(()) };
        let now = tables::named(netns.file.as_fd(), PREFIX)?;
        if netns.is_hosts {
            for table in now.difference(&self.before) {
                tracing::warn!(
                    "the host's network has table {table} since a checkpoint began: if no criu runs, nft delete table inet {table}"
                );
            }
            return Ok(());
        }
        tables::delete(netns.file.as_fd(), now.difference(&self.before)).context(
            || "open the network that criu has shut (nft delete table in the pod's network namespace does it too)",
        )
    }
}

/// The network of a pod, by its pause process; `None` when that is gone, and the network with it.
fn netns(pause: Option<Process>) -> Result<Option<Network>> {
    let Some(pause) = pause else { return Ok(None) };
    let path = PathBuf::from(format!("/proc/{}/ns/net", pause.pid));
    let opened = File::open(&path);
    // A pid that was given to another has another's.
    if !criu::is_same(pause) {
        return Ok(None);
    }
    let file = opened.context(|| format!("open {}", path.display()))?;
    let inode = |about: std::io::Result<std::fs::Metadata>| about.map(|about| about.ino());
    let own = inode(std::fs::metadata("/proc/self/ns/net")).context(|| "stat /proc/self/ns/net")?;
    let is_hosts = inode(file.metadata()).context(|| format!("stat {}", path.display()))? == own;
    Ok(Some(Network { file, is_hosts }))
}
