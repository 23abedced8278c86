//! What pods are connected to: the seam between the engine and whatever makes a network.
//!
//! A pod's network namespace is made and owned by its pause process. Here it is given an interface, addresses and routes ([`Network::attach`]),
//! by the built-in bridge ([`bridge`]) or by CNI plugins ([`cni`]), and everything that is outside of the namespace is taken away again
//! ([`Network::detach`]). The engine knows of either no more than this file says.
//!
//! ```text
//!   network.json      NetworkRecord   before anything is made: what detach needs to find all of it, whatever was made of it
//!   attachment.json   Attachment      when all is made: what the pod has
//! ```
//! Both are in the pod's directory and written once. So a kill -9 at any instruction is the next detach's to clean up, and that is the
//! sweep's, or the next daemon's, as ever. No configuration is needed for it: a pod is detached from what it was attached to.
//!
//! What is not here: `lo`, hostname and sysctls (`launch/pause`), the texts of /etc (`engine/etc`).

pub mod bridge;
pub mod cni;
pub mod netlink;
pub mod tables;

use crate::config::network::{NetworkMode, NetworkSettings};
use crate::error::{Error, Result};
use crate::fault;
use crate::id::PodId;
use crate::state::model::{Dns, NamespaceMode, PodConfig, PortMapping};
use crate::state::paths::Paths;
use crate::state::record::{self, Durability, Record};
use bridge::Bridge;
use cni::Cni;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// The interface of a pod, as every Kubernetes network names it.
pub const INTERFACE: &str = "eth0";

/// Where pods of one engine are connected. Knows the settings, and nothing of any pod that is not on the disk.
#[derive(Debug)]
pub struct Network {
    settings: NetworkSettings,
    paths: Paths,
    bridge: Bridge,
    cni: Cni,
}

/// Which of the networks a pod is on. A pod never moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Bridge,
    Cni,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Bridge => "bridge",
            Kind::Cni => "cni",
        })
    }
}

/// A pod that is to be attached. Everything that either network may want to know.
#[derive(Debug)]
pub struct Request {
    pub pod: PodId,
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub netns: Netns,
    pub hostname: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub ports: Vec<HostPort>,
    /// What the pod asked for, not what it gets when it asked for nothing.
    pub dns: Option<Dns>,
    pub bandwidth: Bandwidth,
    /// The pod's cgroup, absolute in the v2 hierarchy.
    pub cgroup: String,
}

/// A pod's network namespace, held open: it cannot become another one's.
#[derive(Debug)]
pub struct Netns {
    pub fd: OwnedFd,
    /// `/proc/<pause>/ns/net`: the same for a plugin that wants a path, valid as long as pause lives.
    pub path: PathBuf,
}

/// Bits per second, from the annotations that Kubernetes has for it; `None`: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Bandwidth {
    /// To the pod.
    pub ingress: Option<u64>,
    /// From the pod.
    pub egress: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// A port of the host that leads to one of the pod. Neither is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPort {
    pub protocol: Protocol,
    pub container_port: u16,
    pub host_port: u16,
    /// The address of the host that it is on; `None`: all of them.
    pub host_ip: Option<IpAddr>,
}

/// `network.json`: what was begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    pub plan: Plan,
}

/// All that detach needs, by kind. A pod on CNI has no record here, but one that survives a reboot ([`cni`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Plan {
    Bridge(bridge::Plan),
}

impl Record for NetworkRecord {
    const KIND: &'static str = "network";
}

/// `attachment.json`: what a pod has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// A record has a `kind` of its own.
    #[serde(rename = "network_kind")]
    pub kind: Kind,
    /// The name of the CNI network, or of the bridge.
    pub network: String,
    /// In the pod.
    pub interface: String,
    /// In the order of the status; the first is the pod's own, the others its additional ones.
    pub ips: Vec<IpAddr>,
    /// The host's end of the pod's interface, where there is one and it is known.
    pub host_link: Option<String>,
    pub ports: Vec<HostPort>,
    /// What the plugins answered, for CHECK, DEL and people.
    pub result: Option<serde_json::Value>,
}

impl Record for Attachment {
    const KIND: &'static str = "attachment";
}

impl Attachment {
    /// The name servers that its network has for pods which ask for none, as its plugins answered.
    pub fn dns(&self) -> Option<Dns> {
        self.result.as_ref().and_then(cni::result::dns)
    }
}

/// Whether pods can be attached (CRI's condition NetworkReady).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    Ready,
    /// Why not, with the remedy, for people.
    NotReady(String),
}

impl Network {
    pub fn new(settings: NetworkSettings, paths: Paths, boot_id: &str) -> Network {
        let bridge = Bridge::new(settings.clone(), paths.clone(), boot_id.to_owned());
        let cni = Cni::new(cni::Places::of(&settings), paths.clone());
        Network { bridge, cni, settings, paths }
    }

    /// Gives the pod its network. `None`: it has only its loopback.
    ///
    /// On an error the caller detaches, as it does after a success.
    ///
    /// # Errors
    /// `ResourceExhausted` when there is no address left, `AlreadyExists` for a host port that another pod has, `FailedPrecondition` when the
    /// host is in the way; each with the remedy.
    pub async fn attach(&self, request: Request) -> Result<Option<Attachment>> {
        let pod = request.pod.clone();
        let attachment = match self.kind() {
            None => return Ok(None),
            Some(Kind::Bridge) => self.bridge.attach(request).await?,
            Some(Kind::Cni) => self.cni.attach(&request).await?,
        };
        record::write(&self.paths.attachment_record(&pod), &attachment, Durability::Boot)?;
        fault::point("network.attach.recorded");
        Ok(Some(attachment))
    }

    /// Takes away whatever an attach has made or begun; of a pod that was never attached there is nothing. May be repeated, and after a
    /// reboot. `netns` is `None` when the namespace is gone.
    ///
    /// # Errors
    /// Everything that is left, together: call it again.
    pub async fn detach(&self, pod: &PodId, netns: Option<Netns>) -> Result<()> {
        let begun = record::read::<NetworkRecord>(&self.paths.network_record(pod))?;
        match begun.map(|begun| begun.plan) {
            None => self.cni.detach(pod).await,
            Some(Plan::Bridge(plan)) => self.bridge.detach(pod, plan, netns).await,
        }
    }

    /// Whether pods can be attached now.
    pub async fn status(&self) -> Status {
        match self.kind() {
            None => Status::NotReady(
                "network.mode is none: a pod has its own loopback, or the host's network; set network.mode = \"auto\""
                    .to_owned(),
            ),
            Some(Kind::Bridge) => self.bridge.status().await,
            Some(Kind::Cni) => self.cni.status().await,
        }
    }

    /// Takes away what pods have left that are gone without a detach. To be called when recovery knows its pods.
    ///
    /// # Errors
    /// Everything that is left, together.
    pub async fn collect(&self) -> Result<()> {
        self.bridge.collect().await
    }

    /// The same for what may take long, again and again until nothing is left: of CNI, whose plugins may hang. Ends with the engine.
    pub async fn tend(&self) {
        // Elsewhere it is another runtime's, whose pods GC would take for gone.
        let ours = matches!(self.settings.mode, NetworkMode::Auto | NetworkMode::Cni);
        self.cni.tend(ours).await;
    }

    /// Lets go of what is kept for pods to come. To be called when no more are made.
    ///
    /// # Errors
    /// Everything that is left, together.
    pub async fn release(&self) -> Result<()> {
        self.bridge.release().await
    }

    /// Pods on CNI: what plugins are configured, and what is owed to them.
    pub fn cni(&self) -> &Cni {
        &self.cni
    }

    /// What the next pod is attached to; `None`: nothing.
    pub fn kind(&self) -> Option<Kind> {
        match self.settings.mode {
            NetworkMode::None => None,
            NetworkMode::Auto if self.cni.is_configured() => Some(Kind::Cni),
            NetworkMode::Auto | NetworkMode::Bridge => Some(Kind::Bridge),
            NetworkMode::Cni => Some(Kind::Cni),
        }
    }
}

/// What of a pod's config can be judged before anything is made: its host ports, in the mode that it will be attached in.
///
/// # Errors
/// `InvalidArgument` for what is no port or address, `Unsupported` for ports of a pod that gets no network; with the remedy.
pub fn check(config: &PodConfig, mode: NetworkMode) -> Result<()> {
    let ports = host_ports(config)?;
    Bandwidth::of(&config.annotations)?;
    if let (NetworkMode::None, Some(port)) = (mode, ports.first()) {
        return Err(Error::unsupported(format!(
            "host port {port}: network.mode is none, so that pods have no address to map it to; use hostNetwork, or network.mode bridge"
        )));
    }
    Ok(())
}

/// The ports of the host that a pod asks for, each once; none on the host's network.
///
/// # Errors
/// `InvalidArgument` for what is no port or address, and for two that would be the same.
pub fn host_ports(config: &PodConfig) -> Result<Vec<HostPort>> {
    if config.namespaces.network == NamespaceMode::Node {
        return Ok(Vec::new());
    }
    let mut ports: Vec<HostPort> = Vec::new();
    for mapping in config.port_mappings.iter().filter(|mapping| mapping.host_port != 0) {
        let port = HostPort::of(mapping)?;
        if let Some(other) = ports.iter().find(|other| other.conflicts(&port)) {
            return Err(Error::invalid(format!("host port {port} is asked for twice, the other time as {other}")));
        }
        ports.push(port);
    }
    Ok(ports)
}

impl HostPort {
    fn of(mapping: &PortMapping) -> Result<HostPort> {
        let invalid = |what: String| Error::invalid(format!("host port {}: {what}", mapping.host_port));
        let protocol = match mapping.protocol.to_ascii_uppercase().as_str() {
            "TCP" | "" => Protocol::Tcp,
            "UDP" => Protocol::Udp,
            "SCTP" => Protocol::Sctp,
            other => return Err(invalid(format!("protocol {other:?} is none of TCP, UDP and SCTP"))),
        };
        if mapping.container_port == 0 {
            return Err(invalid("the container port is 0".to_owned()));
        }
        let host_ip = match mapping.host_ip.as_str() {
            "" => None,
            text => {
                let ip: IpAddr = text.parse().map_err(|_| invalid(format!("hostIP {text:?} is no IP address")))?;
                Some(ip.to_canonical()).filter(|ip| !ip.is_unspecified())
            }
        };
        Ok(HostPort { protocol, container_port: mapping.container_port, host_port: mapping.host_port, host_ip })
    }

    /// Whether there is an address of the host on which both would be.
    pub fn conflicts(&self, other: &HostPort) -> bool {
        let meet = match (self.host_ip, other.host_ip) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        };
        meet && (self.protocol, self.host_port) == (other.protocol, other.host_port)
    }
}

impl Protocol {
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

/// As people write it: `tcp 8080`, `udp 127.0.0.1:53`, `tcp [::1]:80`.
impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (protocol, port) = (self.protocol.name(), self.host_port);
        match self.host_ip {
            None => write!(f, "{protocol} {port}"),
            Some(IpAddr::V4(ip)) => write!(f, "{protocol} {ip}:{port}"),
            Some(IpAddr::V6(ip)) => write!(f, "{protocol} [{ip}]:{port}"),
        }
    }
}

impl Bandwidth {
    /// The most and the least that Kubernetes accepts (pkg/util/bandwidth/utils.go), in bits per second.
    const MOST: u64 = 1_000_000_000_000_000;
    const LEAST: u64 = 1000;

    /// From `kubernetes.io/ingress-bandwidth` and `kubernetes.io/egress-bandwidth`: a quantity, `10M`.
    ///
    /// # Errors
    /// `InvalidArgument` for one that is no quantity within the bounds.
    pub fn of(annotations: &BTreeMap<String, String>) -> Result<Bandwidth> {
        let read = |way: &str| {
            let name = format!("kubernetes.io/{way}-bandwidth");
            let Some(text) = annotations.get(&name) else { return Ok(None) };
            match bits(text).filter(|bits| (Self::LEAST..=Self::MOST).contains(bits)) {
                Some(bits) => Ok(Some(bits)),
                None => Err(Error::invalid(format!(
                    "annotation {name} = {text:?} must be bits per second from 1k to 1P, like 10M"
                ))),
            }
        };
        Ok(Bandwidth { ingress: read("ingress")?, egress: read("egress")? })
    }
}

/// A whole number with a suffix of a Kubernetes quantity.
fn bits(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "P" => 1_000_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(protocol: &str, host_port: u16, host_ip: &str) -> PortMapping {
        PortMapping { protocol: protocol.into(), container_port: 80, host_port, host_ip: host_ip.into() }
    }

    fn pod(ports: &[PortMapping]) -> PodConfig {
        PodConfig { port_mappings: ports.to_vec(), ..PodConfig::default() }
    }

    #[test]
    fn a_port_conflicts_where_both_are_on_one_address() {
        let both = |a: &str, b: &str| host_ports(&pod(&[mapping("TCP", 80, a), mapping("TCP", 80, b)])).is_err();
        assert!(both("", "") && both("", "127.0.0.1") && both("0.0.0.0", "::1") && both("10.0.0.1", "::ffff:10.0.0.1"));
        assert!(!both("127.0.0.1", "::1") && !both("10.0.0.1", "10.0.0.2"));
        assert!(host_ports(&pod(&[mapping("TCP", 80, ""), mapping("UDP", 80, "")])).is_ok());
    }

    #[test]
    fn what_is_no_port_is_refused_and_zero_is_none() {
        assert_eq!(host_ports(&pod(&[mapping("TCP", 0, "")])).expect("none").len(), 0);
        for bad in [mapping("ICMP", 80, ""), mapping("TCP", 80, "localhost")] {
            assert!(host_ports(&pod(std::slice::from_ref(&bad))).is_err(), "{bad:?}");
        }
        let none = PortMapping { container_port: 0, ..mapping("TCP", 80, "") };
        assert!(host_ports(&pod(&[none])).is_err());
        assert!(check(&pod(&[mapping("", 80, "")]), NetworkMode::None).is_err());
        assert!(check(&pod(&[mapping("", 80, "")]), NetworkMode::Auto).is_ok());
    }

    #[test]
    fn an_attachment_is_read_back_as_written() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("attachment.json");
        let attachment = Attachment {
            kind: Kind::Bridge,
            network: "podwright0".into(),
            interface: INTERFACE.into(),
            ips: vec!["10.118.0.2".parse().expect("ip")],
            host_link: None,
            ports: host_ports(&pod(&[mapping("TCP", 80, "")])).expect("valid"),
            result: None,
        };
        record::write(&path, &attachment, Durability::Boot).expect("written");
        assert_eq!(record::read(&path).expect("read"), Some(attachment));
    }

    #[test]
    fn bandwidth_is_a_quantity_of_bits() {
        let with =
            |text: &str| Bandwidth::of(&[("kubernetes.io/ingress-bandwidth".to_owned(), text.to_owned())].into());
        assert_eq!(with("10M").expect("valid"), Bandwidth { ingress: Some(10_000_000), egress: None });
        assert_eq!(with("1Mi").expect("valid").ingress, Some(1 << 20));
        for bad in ["", "M", "10", "-1", "1.5M", "10MB", "2000P"] {
            assert!(with(bad).is_err(), "{bad:?}");
        }
    }
}
