//! Whether pods can be attached, and what is told of it: NetworkReady, `crictl info`, and the node's range of addresses.

use super::conf::{self, Found, Network};
use super::plugins::{self, Job, Verb};
use super::version::Version;
use super::{Cni, Facts, PodCidr, args, blocking, make_directory};
use crate::config::network::Subnet;
use crate::error::{Error, Result};
use crate::network::Status;
use crate::state::record::{self, Durability};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// How long an answer to STATUS is good for. The kubelet asks every 5 s, and each answer is a process a plugin.
const STATUS_GOOD_FOR: Duration = Duration::from_secs(15);
/// Files that are told as skipped.
const MAX_SKIPPED: usize = 8;

impl Cni {
    /// Whether pods can be attached: there is a network, its programs are there, and its plugins say so if they can be asked (STATUS).
    /// Never waits for a plugin but the first time.
    pub async fn status(&self) -> Status {
        let found = conf::load(&self.0.places.conf_dir);
        let Some((file, network)) = found.network else { return Status::NotReady(self.without(&found.skipped)) };
        for plugin in &network.plugins {
            if let Err(e) = plugins::find(&plugin.program, &self.0.places.bin_dirs) {
                return Status::NotReady(format!("network {} of {}: {e}", network.name, file.display()));
            }
        }
        if !network.versions.iter().any(|version| version.has_gc()) {
            return Status::Ready;
        }
        let known = |facts: &Facts| facts.status.clone().filter(|(of, _, _)| *of == network);
        let (answer, ask) = {
            let mut facts = self.facts();
            let answer = known(&facts);
            let old = answer.as_ref().is_none_or(|(_, when, _)| when.elapsed() > STATUS_GOOD_FOR);
            let ask = old && !facts.asking;
            facts.asking |= ask;
            (answer, ask)
        };
        let (cni, of) = (self.clone(), network.clone());
        let asked = ask.then(|| tokio::spawn(async move { cni.ask_status(of).await }));
        let why_not = match (answer, asked) {
            (Some((_, _, why_not)), _) => why_not,
            (None, Some(asked)) => {
                let _ = asked.await; // it does not panic, and then there is no answer
                known(&self.facts()).and_then(|(_, _, why_not)| why_not)
            }
            (None, None) => Some(format!("network {}: its plugins are being asked", network.name)),
        };
        why_not.map_or(Status::Ready, Status::NotReady)
    }

    async fn ask_status(&self, network: Network) {
        let until = Instant::now() + self.0.limits.status;
        let version = self.0.plugins.negotiate(&network, &self.0.places.bin_dirs, until).await;
        let mut why_not = None;
        for plugin in network.plugins.iter().filter(|_| version.is_some_and(Version::has_gc)) {
            let stdin = args::stdin(plugin, &network.name, version.unwrap_or(Version::V1_1_0), None, &Map::new(), &[]);
            let job = Job { verb: Verb::Status, plugin, network: &network.name, subject: None, stdin, until };
            if let Err(e) = self.0.plugins.run(job, &self.0.places.bin_dirs).await {
                why_not = Some(e.to_string());
                break;
            }
        }
        let mut facts = self.facts();
        facts.status = Some((network, Instant::now(), why_not));
        facts.asking = false;
    }

    /// The network that is configured, with its file, and why files before it are not; and the programs of it that are not there.
    pub fn look(&self) -> (Found, Vec<String>) {
        let found = conf::load(&self.0.places.conf_dir);
        let programs = found.network.iter().flat_map(|(_, network)| network.programs());
        let lacking = programs.filter_map(|program| plugins::find(program, &self.0.places.bin_dirs).err());
        let lacking = lacking.map(|e| e.to_string()).collect();
        (found, lacking)
    }

    /// For `crictl info`: what is configured, what was skipped and why, what is owed.
    pub fn info(&self) -> Value {
        let found = conf::load(&self.0.places.conf_dir);
        let network = found.network.as_ref().map(|(file, network)| {
            json!({
                "file": file,
                "name": network.name,
                "cniVersions": network.versions,
                "plugins": network.plugins.iter().map(|plugin| &plugin.program).collect::<Vec<_>>(),
            })
        });
        let owed: BTreeMap<String, String> =
            self.facts().owed.iter().map(|(pod, why)| (pod.to_string(), why.clone())).collect();
        json!({
            "confDir": self.0.places.conf_dir, "binDirs": self.0.places.bin_dirs, "network": network, "skipped": found.skipped, "owed": owed,
            "podCIDR": self.pod_cidr().iter().map(Subnet::to_string).collect::<Vec<_>>(),
        })
    }

    /// Why there is no network, in the words that people search for, with the remedy.
    pub(super) fn without(&self, skipped: &[String]) -> String {
        let why = "cni config uninitialized";
        let remedy = "install a network add-on, or set network.mode = \"bridge\"";
        let mut text =
            format!("{why}: there is no network configuration in {}; {remedy}", self.0.places.conf_dir.display());
        if !skipped.is_empty() {
            text = format!("{why}: no file in {} is valid; {remedy}", self.0.places.conf_dir.display());
            for one in skipped.iter().take(MAX_SKIPPED) {
                text.push_str("; ");
                text.push_str(one);
            }
        }
        text
    }

    /// The kubelet says which addresses the node's pods have: given to plugins with the capability `ipRanges`. It is kept on the disk.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no list of subnets.
    pub async fn set_pod_cidr(&self, text: &str) -> Result<()> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let subnets = parts
            .map(|part| part.parse::<Subnet>().map_err(|why| Error::invalid(format!("pod CIDR {part:?}: {why}"))))
            .collect::<Result<Vec<_>>>()?;
        if subnets.is_empty() || subnets == self.pod_cidr() {
            return Ok(());
        }
        let kept = PodCidr { subnets: subnets.iter().map(Subnet::to_string).collect() };
        let (directory, path) = (self.0.paths.cni(), self.0.paths.cni_pod_cidr());
        blocking(move || {
            make_directory(&directory)?;
            record::write(&path, &kept, Durability::Disk)
        })
        .await
    }

    pub(super) fn pod_cidr(&self) -> Vec<Subnet> {
        let kept = record::read::<PodCidr>(&self.0.paths.cni_pod_cidr()).ok().flatten().unwrap_or_default();
        kept.subnets.iter().filter_map(|subnet| subnet.parse().ok()).collect()
    }
}
