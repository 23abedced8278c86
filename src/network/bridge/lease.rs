//! Who has which address and which host port: a file each, of all podwrights that share the state directory.
//!
//! ```text
//! /run/podwright/network/<bridge>/
//!   lock                          flock(2)ed by whoever looks for one that is free, or is about to remove the bridge
//!   kept                          flock(2)ed, shared, by a daemon: the bridge stays for the next pod
//!   last                          the number that was leased last
//!   leases/<number>               Claim: the pod with the addresses that are so far above the first
//!   ports/<protocol>-<port>[@<address>]   Claim: the pod that the host port leads to
//! ```
//! One number is leased for both families. The next one is looked for behind the last: an address that was just released is not given to
//! another pod while anybody may still speak to the old one.
//!
//! A claim is a living pod's or nobody's: it names the pod's directory and the boot, so whoever finds it can tell whether the pod is gone,
//! however it went. Claims of those are taken over where one is needed, and removed when a podwright starts.

use crate::error::{Context, Error, Result};
use crate::id::PodId;
use crate::network::HostPort;
use crate::state::record::{self, Durability, Record};
use crate::sys::{flock, try_flock};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The bridge's own number: the first address behind the network's.
pub(super) const GATEWAY: u32 = 1;

/// Who has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claim {
    pub pod: PodId,
    /// NAMESPACE/NAME, for people.
    pub name: String,
    /// It is gone with the pod.
    pub directory: PathBuf,
    pub boot_id: String,
    pub ips: Vec<IpAddr>,
    /// The ports of the host that lead to it.
    pub ports: Vec<HostPort>,
}

impl Record for Claim {
    const KIND: &'static str = "network-claim";
}

/// The claims of one bridge.
#[derive(Debug, Clone)]
pub(super) struct Leases {
    directory: PathBuf,
    boot_id: String,
}

/// The claims, and nobody else changes them.
#[derive(Debug)]
pub(super) struct Locked<'a> {
    leases: &'a Leases,
    _lock: File,
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context(|| format!("list {}", directory.display()))?,
    };
    Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

fn port_name(port: &HostPort) -> String {
    let at = port.host_ip.map(|ip| format!("@{ip}")).unwrap_or_default();
    format!("{}-{}{at}", port.protocol.name(), port.host_port)
}

impl Leases {
    pub(super) fn new(directory: PathBuf, boot_id: String) -> Leases {
        Leases { directory, boot_id }
    }

    pub(super) fn lease(&self, number: u32) -> PathBuf {
        self.directory.join("leases").join(number.to_string())
    }

    fn port(&self, port: &HostPort) -> PathBuf {
        self.directory.join("ports").join(port_name(port))
    }

    /// Waits for the lock, and makes what is missing. Nobody holds it for longer than it takes to make a bridge.
    ///
    /// # Errors
    /// `Internal` when the directory cannot be made.
    pub(super) fn lock(&self) -> Result<Locked<'_>> {
        let path = self.directory.join("lock");
        loop {
            for directory in [&self.directory, &self.directory.join("leases"), &self.directory.join("ports")] {
                let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
                made.context(|| format!("make directory {}", directory.display()))?;
            }
            let file = match open(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue, // it has just been removed
                file => file.context(|| format!("open {}", path.display()))?,
            };
            flock(file.as_fd(), true).context(|| format!("lock {}", path.display()))?;
            let same = |meta: fs::Metadata| Some(meta.ino()) == file.metadata().ok().map(|meta| meta.ino());
            if fs::metadata(&path).is_ok_and(same) {
                return Ok(Locked { leases: self, _lock: file });
            }
        }
    }

    /// The same if there is anything to lock.
    pub(super) fn lock_if_there(&self) -> Result<Option<Locked<'_>>> {
        if self.directory.exists() { self.lock().map(Some) } else { Ok(None) }
    }

    /// Keeps the bridge for as long as the file is open.
    ///
    /// # Errors
    /// `Internal` when it cannot be locked.
    pub(super) fn keep(&self) -> Result<File> {
        let path = self.directory.join("kept");
        let file = open(&path).context(|| format!("open {}", path.display()))?;
        flock(file.as_fd(), false).context(|| format!("lock {}", path.display()))?;
        Ok(file)
    }

    /// Whether the pod of a claim is there, as far as anybody can tell.
    fn is_alive(&self, claim: &Claim) -> bool {
        claim.boot_id == self.boot_id && claim.directory.exists()
    }

    /// The claim in a file; `None` when there is none or it is a dead pod's. One that cannot be read is somebody's.
    fn owner(&self, path: &Path) -> Result<Option<Claim>> {
        Ok(record::read::<Claim>(path)?.filter(|claim| self.is_alive(claim)))
    }

    /// Every lease whose pod is there.
    pub(super) fn alive(&self) -> Result<Vec<(u32, Claim)>> {
        let mut all = Vec::new();
        for name in names(&self.directory.join("leases"))? {
            let Ok(number) = name.parse::<u32>() else { continue };
            if let Some(claim) = self.owner(&self.lease(number))? {
                all.push((number, claim));
            }
        }
        Ok(all)
    }
}

impl Locked<'_> {
    /// A number that nobody has, below `end`.
    ///
    /// # Errors
    /// `ResourceExhausted` when every pod that has one is there.
    pub(super) fn next(&self, end: u32) -> Result<u32> {
        let path = self.leases.directory.join("last");
        let last: u32 = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(GATEWAY);
        let first = GATEWAY + 1;
        let after = if last < GATEWAY || last >= end { first } else { last + 1 };
        let mut order = (after..end).chain(first..after.min(end));
        let number = match order.next() {
            Some(number) if !self.leases.lease(number).exists() => Some(number),
            _ => {
                let taken: BTreeSet<u32> =
                    names(&self.leases.directory.join("leases"))?.iter().filter_map(|name| name.parse().ok()).collect();
                let free = (after..end).chain(first..after.min(end)).find(|number| !taken.contains(number));
                match free {
                    Some(number) => Some(number),
                    None => self.reclaim()?.into_iter().find(|number| (first..end).contains(number)),
                }
            }
        };
        let number = number.ok_or_else(|| Error::exhausted("every address has a pod"))?;
        record::write_bytes(&path, number.to_string().as_bytes(), 0o600, Durability::Boot)?;
        Ok(number)
    }

    /// Removes every claim whose pod is gone; the numbers that were leased.
    pub(super) fn reclaim(&self) -> Result<Vec<u32>> {
        let mut free = Vec::new();
        for directory in ["leases", "ports"] {
            let directory = self.leases.directory.join(directory);
            for name in names(&directory)? {
                let path = directory.join(&name);
                // One that cannot be read is somebody's. What has no place yet has no writer any more: that one would hold the lock.
                if !name.ends_with(".new") && !matches!(self.leases.owner(&path), Ok(None)) {
                    continue;
                }
                remove(&path)?;
                free.extend(name.parse::<u32>().ok());
            }
        }
        Ok(free)
    }

    /// Refuses ports that another living pod has.
    ///
    /// # Errors
    /// `AlreadyExists`, naming the pod.
    pub(super) fn check_ports(&self, ports: &[HostPort]) -> Result<()> {
        if ports.is_empty() {
            return Ok(());
        }
        for name in names(&self.leases.directory.join("ports"))? {
            // By its name first: there may be many, and most are of other numbers.
            let stem = name.split('@').next().unwrap_or_default();
            let Some(port) = ports.iter().find(|port| format!("{}-{}", port.protocol.name(), port.host_port) == stem)
            else {
                continue;
            };
            let Some(claim) = self.leases.owner(&self.leases.directory.join("ports").join(&name))? else { continue };
            if let Some(other) = claim.ports.iter().find(|other| other.conflicts(port)) {
                return Err(Error::new(
                    crate::error::Kind::AlreadyExists,
                    format!("host port {port} is pod {}'s ({other}); give one of the two another hostPort", claim.name),
                ));
            }
        }
        Ok(())
    }

    /// Leases a number and claims ports: both are free.
    pub(super) fn take(&self, number: u32, claim: &Claim) -> Result<()> {
        record::write(&self.leases.lease(number), claim, Durability::Boot)?;
        for port in &claim.ports {
            record::write(&self.leases.port(port), claim, Durability::Boot)?;
        }
        Ok(())
    }

    /// Whether a port is claimed by this pod.
    pub(super) fn has_port(&self, pod: &PodId, port: &HostPort) -> Result<bool> {
        Ok(record::read::<Claim>(&self.leases.port(port))?.is_some_and(|claim| claim.pod == *pod))
    }

    /// Whether a number is leased to this pod.
    pub(super) fn has_number(&self, pod: &PodId, number: u32) -> Result<bool> {
        Ok(record::read::<Claim>(&self.leases.lease(number))?.is_some_and(|claim| claim.pod == *pod))
    }

    /// Gives back what a pod has of these; what another has by now stays.
    pub(super) fn give_back(&self, pod: &PodId, number: u32, ports: &[HostPort]) -> Result<()> {
        let paths = ports.iter().map(|port| self.leases.port(port)).chain([self.leases.lease(number)]);
        for path in paths {
            if record::read::<Claim>(&path)?.is_some_and(|claim| claim.pod == *pod) {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// Whether nobody has or keeps anything.
    pub(super) fn is_unused(&self) -> Result<bool> {
        let directory = &self.leases.directory;
        for claims in ["leases", "ports"] {
            if names(&directory.join(claims))?.iter().any(|name| !name.ends_with(".new")) {
                return Ok(false);
            }
        }
        let path = directory.join("kept");
        match OpenOptions::new().write(true).open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
            file => try_flock(file.context(|| format!("open {}", path.display()))?.as_fd())
                .context(|| format!("lock {}", path.display())),
        }
    }

    /// Removes the directory, lock and all: whoever waits for it makes another.
    pub(super) fn remove(self) -> Result<()> {
        let directory = &self.leases.directory;
        fs::remove_dir_all(directory).context(|| format!("remove {}", directory.display()))?;
        if let Some(parent) = directory.parent() {
            let _ = fs::remove_dir(parent); // another bridge may have one there
        }
        Ok(())
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.context(|| format!("remove {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Protocol;

    fn leases() -> (tempfile::TempDir, Leases) {
        let temp = tempfile::tempdir().expect("tempdir");
        let leases = Leases::new(temp.path().join("network/b0"), "this boot".to_owned());
        (temp, leases)
    }

    fn claim(directory: &Path, ports: &[HostPort]) -> Claim {
        Claim {
            pod: PodId::random(),
            name: "ns/web".into(),
            directory: directory.into(),
            boot_id: "this boot".into(),
            ips: vec![],
            ports: ports.to_vec(),
        }
    }

    #[test]
    fn a_number_that_was_just_given_back_is_the_last_to_be_leased_again() {
        let (temp, leases) = leases();
        let locked = leases.lock().expect("lock");
        let pod = claim(temp.path(), &[]);
        let lease = || {
            let number = locked.next(5).expect("free");
            locked.take(number, &pod).expect("take");
            number
        };
        assert_eq!((lease(), lease()), (2, 3));
        locked.give_back(&pod.pod, 2, &[]).expect("give back");
        assert_eq!((lease(), lease()), (4, 2), "behind the last, then from the start");
        assert_eq!(locked.next(5).expect_err("full").kind(), crate::error::Kind::ResourceExhausted);
    }

    #[test]
    fn a_lease_of_a_pod_that_is_gone_or_of_another_boot_is_leased_again() {
        let (temp, leases) = leases();
        let locked = leases.lock().expect("lock");
        let gone = claim(&temp.path().join("gone"), &[]);
        let rebooted = Claim { boot_id: "another".into(), ..claim(temp.path(), &[]) };
        locked.take(2, &gone).expect("take");
        locked.take(3, &rebooted).expect("take");
        locked.take(4, &claim(temp.path(), &[])).expect("take");
        let first = locked.next(5).expect("reclaimed");
        locked.take(first, &claim(temp.path(), &[])).expect("take");
        let second = locked.next(5).expect("reclaimed");
        assert_eq!([first, second].into_iter().collect::<BTreeSet<_>>(), [2, 3].into());
        assert_eq!(leases.alive().expect("read").len(), 2);
    }

    #[test]
    fn what_another_pod_has_by_now_is_not_given_back_and_its_ports_are_refused_by_its_name() {
        let (temp, leases) = leases();
        let locked = leases.lock().expect("lock");
        let port = HostPort { protocol: Protocol::Tcp, container_port: 80, host_port: 8080, host_ip: None };
        let (mine, other) = (claim(temp.path(), &[]), claim(temp.path(), &[port]));
        locked.take(2, &other).expect("take");
        locked.give_back(&mine.pod, 2, &[port]).expect("give back");
        assert!(locked.has_port(&other.pod, &port).expect("read") && leases.lease(2).exists());
        let at = HostPort { host_ip: Some("127.0.0.1".parse().expect("ip")), ..port };
        let refused = locked.check_ports(&[at]).expect_err("taken").to_string();
        assert!(refused.contains("tcp 127.0.0.1:8080") && refused.contains("ns/web"), "{refused}");
        assert!(locked.check_ports(&[HostPort { host_port: 8081, ..port }]).is_ok());
        assert!(!locked.is_unused().expect("look"));
        locked.give_back(&other.pod, 2, &[port]).expect("give back");
        assert!(locked.is_unused().expect("look"));
    }

    #[test]
    fn a_bridge_that_is_kept_is_used_and_a_removed_lock_is_made_anew() {
        let (_temp, leases) = leases();
        let locked = leases.lock().expect("lock");
        let kept = leases.keep().expect("keep");
        assert!(!locked.is_unused().expect("look"));
        drop(kept);
        assert!(locked.is_unused().expect("look"));
        locked.remove().expect("remove");
        assert!(leases.lock_if_there().expect("look").is_none());
        assert!(leases.lock().is_ok());
    }
}
