//! A pod and its network: when it is attached and detached, with which facts. What that means is [`crate::network`]'s.

use super::pod::Pod;
use super::undo::Undo;
use super::{Engine, etc, relabel};
use crate::error::{Context, Error, Result};
use crate::fault;
use crate::network::{Attachment, Bandwidth, Netns, Request, host_ports};
use crate::state::model::{NamespaceMode, PodConfig};
use crate::state::record::{Durability, Process, write_bytes};
use crate::sys::start_time;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

impl Engine {
    /// Whether a pod is to be connected to something.
    pub(super) fn has_network(&self, config: &PodConfig) -> bool {
        config.namespaces.network != NamespaceMode::Node && self.network().kind().is_some()
    }

    /// Connects a pod whose pause is there.
    pub(super) async fn attach_network(&self, pod: &Arc<Pod>, undo: &mut Undo) -> Result<()> {
        let config = &pod.record.config;
        if !pod.record.networked {
            return Ok(());
        }
        let pause = pod.facts().sandbox.as_ref().map(|sandbox| sandbox.pause);
        let netns = pause.map(open_netns).transpose()?.flatten();
        let netns = netns.ok_or_else(|| Error::precondition("the pod's pause process has ended"))?;
        let request = Request {
            pod: pod.id().clone(),
            name: config.name.clone(),
            namespace: config.namespace.clone(),
            uid: config.uid.clone(),
            netns,
            hostname: config.hostname.clone(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            ports: host_ports(config)?,
            dns: config.dns.clone(),
            bandwidth: Bandwidth::of(&config.annotations)?,
            cgroup: pod.record.cgroup.clone(),
        };
        let (engine, attached) = (self.clone(), pod.clone());
        undo.push(move || async move { engine.detach_network(&attached).await });
        let Some(attachment) = self.network().attach(request).await? else { return Ok(()) };
        fault::point("engine.run_pod.network");
        self.name_addresses(pod, &attachment)?;
        pod.note("engine: network attached");
        pod.change(|facts| facts.network = Some(Arc::new(attachment)));
        Ok(())
    }

    /// Writes the pod's addresses into its /etc/hosts, in place of the file that was there before it had any; and its network's name servers
    /// into its resolv.conf, if it has not asked for others.
    fn name_addresses(&self, pod: &Pod, attachment: &Attachment) -> Result<()> {
        let write = |name, text: String| {
            let path = self.paths().etc(pod.id(), name);
            write_bytes(&path, text.as_bytes(), 0o644, Durability::Boot)?;
            // It is another file now, and no container has it yet.
            pod.record.selinux.as_ref().map_or(Ok(()), |labels| relabel::label_file(&path, &labels.file))
        };
        write("hosts", etc::hosts(&pod.record.config, &attachment.ips, None)?)?;
        let dns = attachment.dns().filter(|_| pod.record.config.dns.is_none());
        match dns.as_ref().map(etc::resolv_conf) {
            None => Ok(()),
            Some(Ok(text)) => write("resolv.conf", text),
            // The host's stays: nobody asked for these.
            Some(Err(e)) => {
                tracing::warn!("pod {}: dns of network {}: {e}", pod.id().short(), attachment.network);
                Ok(())
            }
        }
    }

    /// Whether a pod that was found has what it was to be connected to. One that has not was told to nobody: it is as good as not there.
    pub(super) fn is_connected(&self, pod: &Pod) -> bool {
        let (stopped, empty, network) = {
            let facts = pod.facts();
            (facts.stopped, facts.containers.is_empty(), facts.network.clone())
        };
        if stopped || !pod.record.networked {
            return true;
        }
        // Its engine may have been killed before it had named them; a container may have changed the file since.
        if let (true, Some(attachment)) = (empty, network)
            && let Err(e) = self.name_addresses(pod, &attachment)
        {
            tracing::warn!("pod {}: {e}", pod.id().short());
        }
        // A record that cannot be read is one.
        self.paths().attachment_record(pod.id()).exists()
    }

    /// Disconnects a pod, however far it was connected. Its containers have ended.
    pub(super) async fn detach_network(&self, pod: &Pod) -> Result<()> {
        if pod.record.config.namespaces.network == NamespaceMode::Node {
            return Ok(());
        }
        let same_boot = pod.record.boot_id == self.0.boot_id;
        let pause = pod.facts().sandbox.as_ref().filter(|sandbox| same_boot && sandbox.exit.is_none()).map(|s| s.pause);
        // One that cannot be opened is as good as gone: what is outside of it must go all the same.
        let netns = pause.and_then(|pause| open_netns(pause).ok().flatten());
        self.network().detach(pod.id(), netns).await
    }
}

/// The resolv.conf of this host, for a pod on the host's network or with one of its own. A host without one has no servers.
pub fn host_resolv_conf(on_host: bool) -> String {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let host = read("/etc/resolv.conf").unwrap_or_default();
    if on_host { host } else { etc::host_resolv_conf(&host, read("/run/systemd/resolve/resolv.conf").as_deref()) }
}

/// The network namespace of a pause process; `None` when it has ended.
fn open_netns(pause: Process) -> Result<Option<Netns>> {
    let path = PathBuf::from(format!("/proc/{}/ns/net", pause.pid));
    let opened = File::open(&path);
    // Judged after it was opened: then it is that process's, and not another one's with its number.
    if !start_time(pause.pid).is_ok_and(|start| start == pause.start_time) {
        return Ok(None);
    }
    let fd = opened.context(|| format!("open {}", path.display()))?;
    Ok(Some(Netns { fd: fd.into(), path }))
}
