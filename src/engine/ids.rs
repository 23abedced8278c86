//! Which ids of the host a pod with a user namespace of its own gets, when nobody has chosen them for it; and with the same care its labels
//! of SELinux.
//!
//! What is in use is what the pods' records say, those of the daemon and of every instance of `run`: they share one host. So nothing is to
//! be given back, and nothing is lost by a kill -9. From the choice to the record that says so a lock is held.

use super::Engine;
use super::selinux::{self, State};
use crate::error::{Context, Error, Result};
use crate::state::model::{IdMap, IdRange, NamespaceMode, PodConfig, SelinuxLabels, UserNamespace};
use crate::sys;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

/// Ids of a pod: those of 16 bits, which is what images and Kubernetes expect.
const LENGTH: u32 = 1 << 16;
/// From here on nobody else gives ids: systemd's containers end before it, and what is foreign begins after (uids-gids of systemd).
const FIRST: u32 = 0x7000_0000;
const LAST: u32 = 0x7ffd_0000;
/// The largest pod record that is read.
const MAX_RECORD_BYTES: u64 = 4 << 20;

impl Engine {
    /// Chooses what no other pod may have: ids, if the pod wants some, and labels of SELinux, if the host has it. The lock is held until the
    /// pod's record is written.
    pub(super) fn choose(&self, config: &mut PodConfig) -> Result<(Option<SelinuxLabels>, Option<File>)> {
        let policy = match selinux::state(self.options().selinux) {
            State::On(policy) => Some(policy),
            State::Off | State::TurnedOff | State::NoTypes(_) => None,
            unknown @ State::Unknown(_) => return Err(Error::internal(format!("SELinux is {unknown}"))),
        };
        let any = config.namespaces.user == UserNamespace::Any;
        if !any && policy.is_none() {
            return Ok((None, None));
        }
        // The directory itself, which nothing else locks.
        let path = &self.paths().state;
        let doing = || format!("lock {}", path.display());
        let lock = File::open(path).context(doing)?;
        sys::flock(lock.as_fd(), true).context(doing)?;
        if any {
            let range = free(&self.used_ids()?)?;
            config.namespaces.user = UserNamespace::Mapped(IdMap { uids: range, gids: range });
        }
        let labels = match policy {
            Some(policy) => {
                let records = self.records()?.iter().map(|path| record(path)).collect::<Result<Vec<_>>>()?;
                let used = |level: &str| records.iter().any(|text| selinux::has_level(text, level));
                Some(selinux::of_pod(&policy, config, used)?)
            }
            None => None,
        };
        Ok((labels, Some(lock)))
    }

    /// The ranges in the records of all engines of this host that share the state directory.
    fn used_ids(&self) -> Result<Vec<IdRange>> {
        let mut used = Vec::new();
        for record in self.records()? {
            used.extend(ids_of(&record)?);
        }
        Ok(used)
    }

    /// The pods' records of all these engines.
    fn records(&self) -> Result<Vec<PathBuf>> {
        let mut records = Vec::new();
        let mut engines = vec![self.paths().state.clone()];
        engines.extend(directories(&self.paths().instances())?);
        for engine in engines {
            records.extend(directories(&engine.join("pods"))?.into_iter().map(|pod| pod.join("pod.json")));
        }
        Ok(records)
    }
}

/// The directories in one; none where it is not there.
fn directories(path: &Path) -> Result<Vec<PathBuf>> {
    let doing = || format!("read {}", path.display());
    match std::fs::read_dir(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => {
            let entries = entries.context(doing)?.collect::<std::io::Result<Vec<_>>>().context(doing)?;
            Ok(entries.into_iter().map(|entry| entry.path()).collect())
        }
    }
}

/// A record's text; empty when it is gone by now.
fn record(path: &Path) -> Result<Vec<u8>> {
    use std::io::{ErrorKind, Read};
    let mut text = Vec::new();
    match File::open(path).and_then(|file| file.take(MAX_RECORD_BYTES).read_to_end(&mut text)) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Vec::new()),
        read => read.context(|| needed(path))?,
    };
    Ok(text)
}

fn needed(record: &Path) -> String {
    format!("read {}, which says what ids its pod has; remove that pod", record.display())
}

/// Of a record, whatever else it says: one of another version counts as well, and one that is gone by now does not. One that cannot be
/// read may be of a pod whose containers run: nobody can tell which ids are free then.
fn ids_of(path: &Path) -> Result<Vec<IdRange>> {
    let text = record(path)?;
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let doing = || needed(path);
    let value = serde_json::from_slice(&text).map_err(|e| Error::precondition(e.to_string())).context(doing)?;
    Ok(mapped(&value).unwrap_or_default())
}

/// `{"Mapped": ...}`, wherever it stands in the record.
fn mapped(value: &serde_json::Value) -> Option<Vec<IdRange>> {
    let children: Vec<_> = match value {
        serde_json::Value::Object(fields) => {
            if let Some(map) = fields.get("Mapped") {
                let map: IdMap = serde_json::from_value(map.clone()).ok()?;
                return Some(vec![map.uids, map.gids]);
            }
            fields.values().collect()
        }
        _ => return None,
    };
    children.into_iter().find_map(mapped)
}

/// The first range that no pod has.
fn free(used: &[IdRange]) -> Result<IdRange> {
    let all = (FIRST..LAST).step_by(LENGTH as usize).filter_map(|host| IdRange::new(host, LENGTH));
    let mut free = all.filter(|range| !used.iter().any(|other| other.overlaps(*range)));
    free.next().ok_or_else(|| {
        Error::exhausted(format!(
            "every range of ids is some pod's user namespace's: there are {}",
            (LAST - FIRST) / LENGTH
        ))
    })
}

/// Gives a directory of a container's to the root of its pod.
pub(super) fn give_to_pods_root(directory: &Path, map: Option<IdMap>) -> Result<()> {
    let Some(map) = map else { return Ok(()) };
    chown(directory, Some(map.uids.host), Some(map.gids.host)).context(|| format!("chown {}", directory.display()))
}

/// What a pod with a user namespace cannot have beside it.
pub(super) fn check(config: &PodConfig) -> Result<()> {
    let namespaces = &config.namespaces;
    if namespaces.user.is_host() {
        return Ok(());
    }
    for (name, mode) in [("network", &namespaces.network), ("ipc", &namespaces.ipc), ("pid", &namespaces.pid)] {
        if *mode == NamespaceMode::Node {
            return Err(Error::invalid(format!(
                "a pod with a user namespace (hostUsers: false) cannot have the host's {name} namespace"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::model::Namespaces;

    #[test]
    fn ranges_are_chosen_from_the_first_free_one_and_never_twice() {
        let mut used = Vec::new();
        for n in 0..100u32 {
            let range = free(&used).expect("free");
            assert_eq!((range.host, range.length), (FIRST + n * LENGTH, LENGTH));
            used.push(range);
        }
        let gap = used.remove(17);
        assert_eq!(free(&used).expect("the gap"), gap);
        // One of somebody else's choosing that lies across two.
        let across = IdRange::new(gap.host - 5, 10).expect("a range");
        used.push(across);
        assert_eq!(free(&used).expect("free").host, FIRST + 100 * LENGTH);
        let all = IdRange::new(FIRST, LAST - FIRST).expect("a range");
        assert_eq!(free(&[all]).expect_err("none").kind(), crate::error::Kind::ResourceExhausted);
    }

    #[test]
    fn a_record_tells_its_ids_wherever_they_stand() {
        let range = IdRange::new(FIRST, LENGTH).expect("a range");
        let user = UserNamespace::Mapped(IdMap { uids: range, gids: range });
        let config = PodConfig { namespaces: Namespaces { user, ..Namespaces::default() }, ..PodConfig::default() };
        let record = serde_json::json!({"schema": 9, "data": {"config": config, "news": [1]}});
        assert_eq!(mapped(&record), Some(vec![range, range]));
        assert_eq!(mapped(&serde_json::json!({"config": PodConfig::default()})), None);
    }

    #[test]
    fn a_record_that_cannot_be_read_keeps_its_ids_from_others() {
        let dir = tempfile::tempdir().expect("tempdir");
        let record = dir.path().join("pod.json");
        assert_eq!(ids_of(&record).expect("gone"), []);
        std::fs::write(&record, "{").expect("write");
        let e = ids_of(&record).expect_err("damaged").to_string();
        assert!(e.contains("pod.json") && e.contains("remove that pod"), "{e}");
    }
}
