//! What pods have left that are gone: DEL for their records, at the start and again for as long as it fails; and GC.

use super::conf;
use super::plugins::{Job, Verb};
use super::{Begun, Cni, args};
use crate::error::{Error, Result};
use crate::fault;
use crate::id::PodId;
use crate::network::INTERFACE;
use crate::state::record;
use serde_json::{Map, Value, json};
use std::time::Duration;
use tokio::time::Instant;

/// How long what is owed waits until it is tried again.
const RETRY: Duration = Duration::from_secs(30);

impl Cni {
    /// Takes away what pods have left that are gone, of whichever engine; then, if the network is for this engine's pods, lets its plugins do
    /// the same (GC), telling them which are there.
    ///
    /// # Errors
    /// Everything that is left, together. It is owed, and tried again by [`Cni::tend`].
    pub async fn collect(&self, ours: bool) -> Result<()> {
        let mut left = self.delete_gone().await;
        if ours {
            left.extend(self.gc().await.err());
        }
        Error::collect(left).map_or(Ok(()), Err)
    }

    pub(super) async fn delete_gone(&self) -> Vec<Error> {
        self.facts().looked = true;
        let (records, mut left) = self.records();
        let gone = records.into_iter().filter(|begun| !self.is_there(begun));
        for pod in gone.map(|begun| begun.pod).collect::<Vec<_>>() {
            if let Err(e) = self.try_detach(&pod).await {
                self.owe(&pod, &e);
                left.push(e.context(format!("pod {}, which is gone", pod.short())));
            }
        }
        left
    }

    /// Whether the pod of an attachment is there, and was not stopped.
    fn is_there(&self, begun: &Begun) -> bool {
        begun.boot_id == self.0.boot_id && begun.pod_record.exists() && !begun.stopped_record.exists()
    }

    /// All attachments, of whichever engine; and what cannot be read of them, which stays.
    fn records(&self) -> (Vec<Begun>, Vec<Error>) {
        let (mut records, mut wrong) = (Vec::new(), Vec::new());
        let names = std::fs::read_dir(self.0.paths.cni()).into_iter().flatten().flatten();
        let names = names.filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".json")?.to_owned()));
        for pod in names.filter_map(|name| name.parse::<PodId>().ok()) {
            match record::read::<Begun>(&self.0.paths.cni_record(&pod)) {
                Ok(begun) => records.extend(begun),
                Err(e) => wrong.push(e),
            }
        }
        (records, wrong)
    }

    /// GC of the network that is configured, if it has it. All its plugins are asked, whatever one says.
    async fn gc(&self) -> Result<()> {
        let Some((_, network)) = conf::load(&self.0.places.conf_dir).network.filter(|(_, network)| !network.disable_gc)
        else {
            return Ok(());
        };
        let until = Instant::now() + self.0.limits.gc;
        let version = self.0.plugins.negotiate(&network, &self.0.places.bin_dirs, until).await;
        let Some(version) = version.filter(|version| version.has_gc()) else { return Ok(()) };
        // No ADD and no DEL meanwhile, of whichever engine (SPEC, "Lifecycle & Ordering").
        let _alone = self.lock(true).await?;
        let (records, wrong) = self.records();
        if let Some(e) = Error::collect(wrong) {
            // Its pod may be there, and would lose its address.
            return Err(e.context(format!("network {}: no GC", network.name)));
        }
        let of_network = records.iter().filter(|begun| begun.network.name == network.name);
        // What is owed is not there any more and still has its DEL to come, which GC is no substitute for.
        let valid: Value =
            of_network.map(|begun| json!({"containerID": begun.pod.as_str(), "ifname": INTERFACE})).collect();
        // The second is how libcni has misspelt it.
        let more = [("cni.dev/valid-attachments", valid.clone()), ("cni.dev/attachments", valid)];
        let mut left = Vec::new();
        for plugin in &network.plugins {
            let stdin = args::stdin(plugin, &network.name, version, None, &Map::new(), &more);
            let job = Job { verb: Verb::Gc, plugin, network: &network.name, subject: None, stdin, until };
            left.extend(self.0.plugins.run(job, &self.0.places.bin_dirs).await.err());
            fault::point("network.cni.collected");
        }
        Error::collect(left).map_or(Ok(()), Err)
    }

    /// Collects, and then tries what is owed again, for as long as the engine is there.
    pub async fn tend(&self, ours: bool) {
        if let Err(e) = self.collect(ours).await {
            tracing::warn!("{e}");
        }
        loop {
            if self.facts().owed.is_empty() {
                self.0.owing.notified().await;
            }
            tokio::time::sleep(RETRY).await;
            self.pay().await;
        }
    }

    /// Tries what is owed once.
    pub async fn pay(&self) {
        let owed: Vec<PodId> = self.facts().owed.keys().cloned().collect();
        for pod in owed {
            match self.try_detach(&pod).await {
                Ok(()) => {
                    self.facts().owed.remove(&pod);
                    tracing::info!("pod {}: the DEL that was owed is done", pod.short());
                }
                Err(e) => self.owe(&pod, &e),
            }
        }
    }
}
