//! The built-in bridge: what is made for a pod, in which order, and how all of it is found again.
//!
//! ```text
//!   once      the bridge with its addresses, the sysctls, the nftables table           link, sysctl, table
//!   a pod     network.json (all that follows, decided)  ->  lease and port claims      lease
//!             -> a pair of interfaces, one in the pod  ->  its addresses and routes    link
//!             -> an element of the table for each host port                            table
//! ```
//! No program is run: everything is netlink, a few microseconds each, over sockets that are kept. A pod without host ports changes nothing
//! of the firewall. Detach goes the other way, and gives the lease back last.
//!
//! The bridge goes with its last lease, so a host that runs no pod has nothing of podwright's; only a daemon keeps it while it runs.

mod conntrack;
mod lease;
mod link;
mod look;
mod nft;
mod sysctl;
mod table;

pub use look::{Blocker, attempt, blockers, check_ranges};

use super::netlink::{ENOENT, Socket};
use super::{
    Attachment, Bandwidth, HostPort, INTERFACE, Kind, Netns, NetworkRecord, Plan as Begun, Protocol, Request, Status,
};
use crate::config::network::{NetworkSettings, Subnet};
use crate::error::{Context, Error, Kind as ErrorKind, Result};
use crate::fault;
use crate::id::PodId;
use crate::state::paths::Paths;
use crate::state::record::{self, Durability};
use crate::sys::netlink::Family;
use crate::sys::ns::{NsFlags, setns};
use lease::{Claim, GATEWAY, Leases, Locked};
use link::{Address, Link, Pair};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// What the names of the host's ends start with. The number of the lease follows in hex: so there cannot be two with one address, and what
/// is left of an earlier pod is in the way of the next one with its address, which removes it.
const HOST_LINK: &str = "podwr";
/// How often the bridge is made again for one pod, when somebody removes it under its feet.
const ATTEMPTS: usize = 3;

/// What is made for one pod: all of it is decided before any of it is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The bridge, and its nftables table.
    pub bridge: String,
    /// The lease: how far the pod's addresses are above the first of their subnets.
    pub number: u32,
    /// The host's end of the pod's interface.
    pub host_link: String,
    pub ips: Vec<IpAddr>,
    pub ports: Vec<HostPort>,
}

/// The bridge of one engine. Cheap to clone; all clones are the same one.
#[derive(Debug, Clone)]
pub struct Bridge(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: NetworkSettings,
    paths: Paths,
    boot_id: String,
    /// To the kernel, in the host's network namespace.
    sockets: OnceLock<Mutex<Sockets>>,
    /// What a daemon keeps the bridge by.
    kept: Mutex<Option<File>>,
}

#[derive(Debug)]
struct Sockets {
    route: Socket,
    netfilter: Socket,
    /// As this process has last made it or found it right.
    bridge: Option<Link>,
    /// This kernel has IPv6.
    v6: bool,
}

impl Sockets {
    fn open() -> Result<Sockets> {
        let (route, netfilter) = (Socket::open(Family::Route)?, Socket::open(Family::Netfilter)?);
        Ok(Sockets { route, netfilter, bridge: None, v6: has_ipv6() })
    }
}

impl Bridge {
    pub(super) fn new(settings: NetworkSettings, paths: Paths, boot_id: String) -> Bridge {
        Bridge(Arc::new(Inner { settings, paths, boot_id, sockets: OnceLock::new(), kept: Mutex::default() }))
    }

    /// Runs what waits for the kernel beside the runtime's own threads.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Inner) -> Result<T> + Send + 'static) -> Result<T> {
        let inner = self.0.clone();
        let worker = tokio::task::spawn_blocking(move || work(&inner));
        worker.await.map_err(|e| Error::internal(format!("a worker thread ended: {e}")))?
    }

    pub(super) async fn attach(&self, request: Request) -> Result<Attachment> {
        self.blocking(move |inner| inner.attach(&request)).await
    }

    /// From the bridge that it was attached to, which need not be the one of these settings.
    pub(super) async fn detach(&self, pod: &PodId, plan: Plan, netns: Option<Netns>) -> Result<()> {
        let pod = pod.clone();
        self.blocking(move |inner| inner.detach(&pod, &plan, netns.is_some())).await
    }

    /// Removes what pods have left that are gone: claims, interfaces, elements. Then the bridge, if nobody needs it.
    pub(super) async fn collect(&self) -> Result<()> {
        self.blocking(Inner::collect).await
    }

    /// Lets the bridge go: it is removed if no pod is on it, and nobody else keeps it.
    pub(super) async fn release(&self) -> Result<()> {
        self.blocking(|inner| {
            drop(lock(&inner.kept).take());
            let leases = inner.leases(&inner.settings.bridge);
            match leases.lock_if_there()? {
                Some(locked) => inner.prune(&inner.settings.bridge, locked),
                None => Ok(()),
            }
        })
        .await
    }

    /// Asked every few seconds: a bridge that is there is right, and one that is not can be made.
    pub(super) async fn status(&self) -> Status {
        let looked = self.blocking(|inner| {
            let mut sockets = inner.sockets()?;
            match link::get(&mut sockets.route, &inner.settings.bridge)? {
                Some(link) => inner.check_owner(&link),
                None => look::check_routes(&mut sockets.route, &inner.settings.bridge, &inner.subnets(has_ipv6())),
            }
        });
        match looked.await {
            Ok(()) => Status::Ready,
            Err(e) => Status::NotReady(e.to_string()),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether this kernel has IPv6, and gives it to interfaces that are to be made.
fn has_ipv6() -> bool {
    let on =
        |which: &str| std::fs::read(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6")).is_ok_and(|b| b == b"0\n");
    on("all") && on("default")
}

/// Those of the families that this kernel has.
fn subnets(settings: &NetworkSettings, v6: bool) -> Vec<Subnet> {
    let all = [settings.subnet4, settings.subnet6].into_iter().flatten();
    all.filter(|subnet| v6 || subnet.address.is_ipv4()).collect()
}

impl Inner {
    /// Locked: where the claims are locked too, those first.
    fn sockets(&self) -> Result<MutexGuard<'_, Sockets>> {
        if self.sockets.get().is_none() {
            let _ = self.sockets.set(Mutex::new(Sockets::open()?)); // another thread's are as good
        }
        Ok(lock(self.sockets.get().ok_or_else(|| Error::internal("the sockets to the kernel are gone"))?))
    }

    fn leases(&self, bridge: &str) -> Leases {
        Leases::new(self.paths.network(bridge), self.boot_id.clone())
    }

    fn subnets(&self, v6: bool) -> Vec<Subnet> {
        subnets(&self.settings, v6)
    }

    fn attach(&self, request: &Request) -> Result<Attachment> {
        if request.bandwidth != Bandwidth::default() {
            return Err(Error::unsupported(
                "the annotations kubernetes.io/ingress-bandwidth and egress-bandwidth need the bandwidth plugin of CNI: the built-in bridge has no such limit",
            ));
        }
        let leases = self.leases(&self.settings.bridge);
        let (plan, mut bridge) = self.begin(request, &leases)?;
        let mut inside = enter(&request.netns)?;
        let mut attempt = 1;
        loop {
            match self.connect(&bridge, &plan, request) {
                // Somebody has removed it by hand.
                Err(_) if attempt < ATTEMPTS && self.is_gone(&bridge)? => attempt += 1,
                connected => break connected?,
            }
            let _one_at_a_time = leases.lock()?;
            bridge = self.ensure(&mut *self.sockets()?, &leases)?;
        }
        fault::point("network.attach.connected");
        link::configure(&mut inside, INTERFACE, &self.addresses(&plan.ips))?;
        fault::point("network.attach.configured");
        add_ports(&mut *self.sockets()?, &plan)?;
        fault::point("network.attach.ports");
        Ok(Attachment {
            kind: Kind::Bridge,
            network: plan.bridge,
            interface: INTERFACE.to_owned(),
            ips: plan.ips,
            host_link: Some(plan.host_link),
            ports: plan.ports,
            result: None,
        })
    }

    /// A bridge, and a lease by which it stays.
    fn begin(&self, request: &Request, leases: &Leases) -> Result<(Plan, Link)> {
        let locked = leases.lock()?;
        match self.try_begin(request, leases, &locked) {
            Ok(begun) => Ok(begun),
            Err(e) => match self.prune(&self.settings.bridge, locked) {
                Ok(()) => Err(e),
                Err(left) => Err(Error::new(e.kind(), format!("{e} (and then, taking it back: {left})"))),
            },
        }
    }

    fn try_begin(&self, request: &Request, leases: &Leases, locked: &Locked<'_>) -> Result<(Plan, Link)> {
        let mut sockets = self.sockets()?;
        let bridge = self.ensure(&mut sockets, leases)?;
        self.keep(leases)?;
        let (plan, claim) = self.decide(request, locked, sockets.v6)?;
        let begun = NetworkRecord { plan: Begun::Bridge(plan.clone()) };
        record::write(&self.paths.network_record(&request.pod), &begun, Durability::Boot)?;
        fault::point("network.attach.begun");
        locked.take(plan.number, &claim)?;
        fault::point("network.attach.leased");
        Ok((plan, bridge))
    }

    /// A daemon keeps the bridge from its first pod on.
    fn keep(&self, leases: &Leases) -> Result<()> {
        let mut kept = lock(&self.kept);
        if self.paths.instance.is_none() && kept.is_none() {
            *kept = Some(leases.keep()?);
        }
        Ok(())
    }

    /// What this pod will have.
    fn decide(&self, request: &Request, locked: &Locked<'_>, v6: bool) -> Result<(Plan, Claim)> {
        locked.check_ports(&request.ports)?;
        let subnets = self.subnets(v6);
        // The last address of an IPv4 network is its broadcast address.
        let ends = subnets.iter().map(Subnet::hosts);
        let number = locked.next(ends.min().unwrap_or_default()).map_err(|e| {
            let names: Vec<String> = subnets.iter().map(ToString::to_string).collect();
            let message = format!(
                "{} has no address left for a pod; remove pods, or give network.subnet4 a shorter prefix",
                names.join(" and ")
            );
            Error::new(e.kind(), message)
        })?;
        let ips: Vec<IpAddr> = subnets.iter().filter_map(|subnet| subnet.host(number)).collect();
        let host_link = format!("{HOST_LINK}{number:x}");
        let claim = Claim {
            pod: request.pod.clone(),
            name: format!("{}/{}", request.namespace, request.name),
            directory: self.paths.pod(&request.pod),
            boot_id: self.boot_id.clone(),
            ips: ips.clone(),
            ports: request.ports.clone(),
        };
        let bridge = self.settings.bridge.clone();
        Ok((Plan { bridge, number, host_link, ips, ports: request.ports.clone() }, claim))
    }

    fn addresses(&self, ips: &[IpAddr]) -> Vec<Address> {
        let subnets = [self.settings.subnet4, self.settings.subnet6];
        let of = |ip: &IpAddr| {
            let subnet = subnets.iter().flatten().find(|subnet| subnet.contains(*ip))?;
            Some(Address { ip: *ip, prefix: subnet.prefix, gateway: subnet.host(GATEWAY)? })
        };
        ips.iter().filter_map(of).collect()
    }

    /// Whether the bridge is not what it was.
    fn is_gone(&self, bridge: &Link) -> Result<bool> {
        let now = link::get(&mut self.sockets()?.route, &bridge.name)?;
        Ok(now.is_none_or(|now| now.index != bridge.index))
    }

    fn connect(&self, bridge: &Link, plan: &Plan, request: &Request) -> Result<()> {
        let address =
            *plan.ips.first().ok_or_else(|| Error::unsupported("this kernel has no IPv6, and no subnet4 is set"))?;
        let mut sockets = self.sockets()?;
        let pair = Pair {
            host: &plan.host_link,
            bridge,
            interface: INTERFACE,
            netns: request.netns.fd.as_fd(),
            address,
            mtu: bridge.mtu,
            alias: &format!("pod {}/{}", request.namespace, request.name),
            v6: sockets.v6,
        };
        match link::add_pair(&mut sockets.route, &pair) {
            // Of a pod that had this address before: somebody holds its namespace.
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                link::delete(&mut sockets.route, &plan.host_link)?;
                link::add_pair(&mut sockets.route, &pair)
            }
            added => added,
        }
    }

    /// The bridge as it must be; made if it is not there. By a caller that holds the lock.
    fn ensure(&self, sockets: &mut Sockets, leases: &Leases) -> Result<Link> {
        let name = &self.settings.bridge;
        if let Some(bridge) = &sockets.bridge {
            // Another podwright may have removed it with its last pod, and somebody with `nft flush ruleset` the table.
            if link::get(&mut sockets.route, name)?.is_some_and(|link| link.index == bridge.index) {
                let bridge = bridge.clone();
                if !nft::has_table(&mut sockets.netfilter, name)? {
                    self.write_table(sockets, leases)?;
                }
                return Ok(bridge);
            }
        }
        sockets.bridge = None;
        match link::get(&mut sockets.route, name)? {
            Some(link) => self.check_owner(&link)?,
            None => {
                look::check_routes(&mut sockets.route, name, &self.subnets(sockets.v6))?;
                let mtu = match self.settings.mtu {
                    Some(mtu) => mtu,
                    None => look::default_mtu(&mut sockets.route)?,
                };
                let subnets = self.subnets(sockets.v6);
                let address = subnets.first().and_then(|subnet| subnet.host(GATEWAY));
                let address =
                    address.ok_or_else(|| Error::unsupported("this kernel has no IPv6, and no subnet4 is set"))?;
                link::add_bridge(&mut sockets.route, name, mtu, address)?;
                fault::point("network.bridge.added");
            }
        }
        let bridge = link::get(&mut sockets.route, name)?;
        let bridge = bridge.ok_or_else(|| Error::not_found(format!("bridge {name} is gone again")))?;
        let subnets = self.subnets(sockets.v6);
        sysctl::prepare(&self.paths, name, &subnets)?;
        let gateways: Vec<(IpAddr, u8)> =
            subnets.iter().filter_map(|subnet| Some((subnet.host(GATEWAY)?, subnet.prefix))).collect();
        link::set_bridge(
            &mut sockets.route,
            &bridge,
            &self.alias(),
            &gateways,
            gateways.iter().any(|(ip, _)| ip.is_ipv6()),
        )?;
        fault::point("network.bridge.up");
        self.write_table(sockets, leases)?;
        fault::point("network.bridge.table");
        sockets.bridge = Some(bridge.clone());
        Ok(bridge)
    }

    /// The table with an element for each port that a living pod has. What is there stays.
    fn write_table(&self, sockets: &mut Sockets, leases: &Leases) -> Result<()> {
        let name = &self.settings.bridge;
        let mut batch = nft::Batch::of(name);
        table::whole(&mut batch, name, &self.subnets(sockets.v6));
        for (_, claim) in leases.alive()? {
            let elements = claim.ports.iter().flat_map(|port| table::elements(port, &claim.ips));
            elements.for_each(|(map, key, data)| batch.add(map, &key, &data));
        }
        batch.commit(&mut sockets.netfilter)?.map_err(|refusal| {
            Error::from(refusal).context("set up nftables (a kernel with CONFIG_NF_TABLES, or network.mode none)")
        })
    }

    /// What the bridge is called for people: which podwright's it is.
    fn alias(&self) -> String {
        format!("podwright {}", self.paths.state.display())
    }

    /// Refuses an interface that is no bridge, or another podwright's that is still there.
    fn check_owner(&self, link: &Link) -> Result<()> {
        let name = &link.name;
        if link.kind != "bridge" {
            let kind = if link.kind.is_empty() { "an interface" } else { &link.kind };
            return Err(Error::precondition(format!(
                "{name} is {kind} and no bridge; set network.bridge to another name"
            )));
        }
        let ours = self.alias();
        let other = link.alias.strip_prefix("podwright ").filter(|state| Path::new(state).exists());
        match other {
            Some(state) if link.alias != ours => Err(Error::precondition(format!(
                "bridge {name} is that of the podwright whose state is {state}; give this one its own network.bridge, network.subnet4 and network.subnet6"
            ))),
            _ => Ok(()),
        }
    }

    /// `alive`: the pod's namespace is there, and ends next. Then the kernel removes the interfaces with it, many pods' together; to do it here
    /// would hold up everybody who wants to change an interface by an RCU grace period each, some 20 ms.
    fn detach(&self, pod: &PodId, plan: &Plan, alive: bool) -> Result<()> {
        let leases = self.leases(&plan.bridge);
        let mut left = Vec::new();
        if let (false, Some(locked)) = (plan.ports.is_empty(), leases.lock_if_there()?) {
            for port in &plan.ports {
                let remove = |ours| if ours { remove_port(&mut *self.sockets()?, plan, port) } else { Ok(()) };
                left.extend(locked.has_port(pod, port).and_then(remove).err());
            }
        }
        fault::point("network.detach.ports");
        if !alive {
            left.extend(self.remove_link(&leases, pod, plan).err());
        }
        fault::point("network.detach.link");
        if let Some(e) = Error::collect(left) {
            return Err(e.context(format!("take pod {} off bridge {}", pod.short(), plan.bridge)));
        }
        let Some(locked) = leases.lock_if_there()? else { return Ok(()) };
        locked.give_back(pod, plan.number, &plan.ports)?;
        fault::point("network.detach.given_back");
        self.prune(&plan.bridge, locked)
    }

    /// Removes the host's end of a pod that has ended, if the pod still has the lease: else it is another one's, or nobody's.
    fn remove_link(&self, leases: &Leases, pod: &PodId, plan: &Plan) -> Result<()> {
        match leases.lock_if_there()? {
            Some(locked) if locked.has_number(pod, plan.number)? => {
                link::delete(&mut self.sockets()?.route, &plan.host_link)
            }
            _ => Ok(()),
        }
    }

    /// Removes a bridge that nobody needs.
    fn prune(&self, bridge: &str, locked: Locked<'_>) -> Result<()> {
        if !locked.is_unused()? {
            return Ok(());
        }
        let mut sockets = self.sockets()?;
        sockets.bridge = None;
        let mut batch = nft::Batch::of(bridge);
        batch.delete_table();
        match batch.commit(&mut sockets.netfilter)? {
            Err(refusal) if refusal.errno != ENOENT => return Err(refusal.into()),
            _ => {}
        }
        fault::point("network.prune.table");
        if let Some(link) = link::get(&mut sockets.route, bridge)?
            && link.alias == self.alias()
        {
            link::delete(&mut sockets.route, bridge)?;
        }
        fault::point("network.prune.bridge");
        locked.remove()
    }

    fn collect(&self) -> Result<()> {
        let bridge = &self.settings.bridge;
        let leases = self.leases(bridge);
        let Some(locked) = leases.lock_if_there()? else { return Ok(()) };
        locked.reclaim()?;
        self.collect_from_kernel(bridge, &leases.alive()?)?;
        self.prune(bridge, locked)
    }

    /// Removes the interfaces and elements of pods that have no lease.
    fn collect_from_kernel(&self, bridge: &str, alive: &[(u32, Claim)]) -> Result<()> {
        let mut sockets = self.sockets()?;
        let Some(ours) = link::get(&mut sockets.route, bridge)? else { return Ok(()) };
        for link in link::list(&mut sockets.route)?.iter().filter(|link| link.master == ours.index) {
            let Some(digits) = link.name.strip_prefix(HOST_LINK) else { continue };
            let number = u32::from_str_radix(digits, 16).ok();
            if !alive.iter().any(|(leased, _)| Some(*leased) == number) {
                link::delete(&mut sockets.route, &link.name)?;
            }
        }
        let of = |claim: &Claim| -> Vec<table::Element> {
            claim.ports.iter().flat_map(|port| table::elements(port, &claim.ips)).collect()
        };
        let known: Vec<table::Element> = alive.iter().flat_map(|(_, claim)| of(claim)).collect();
        for map in table::MAPS {
            for key in nft::keys(&mut sockets.netfilter, bridge, map)? {
                if !known.iter().any(|(of, known, _)| of.name == map.name && *known == key) {
                    remove_element(&mut sockets, bridge, map, &key)?;
                }
            }
        }
        Ok(())
    }
}

/// A socket in the pod's namespace. From a thread that is made for it and ends: no other one is ever in the wrong place.
///
/// What is set there is so before there is an interface: a pod takes no router advertisement, which another pod on the bridge could send
/// (CVE-2020-10749), and its link-local address is there at once.
fn enter(netns: &Netns) -> Result<Socket> {
    let inside = || -> Result<Socket> {
        setns(netns.fd.as_fd(), NsFlags::NET).context(|| "enter the pod's network namespace")?;
        sysctl::prepare_pod()?;
        Socket::open(Family::Route)
    };
    let joined = std::thread::scope(|scope| scope.spawn(inside).join());
    joined.map_err(|_| Error::internal("the thread in the pod's network namespace panicked"))?
}

fn add_ports(sockets: &mut Sockets, plan: &Plan) -> Result<()> {
    if plan.ports.is_empty() {
        return Ok(());
    }
    let write = |sockets: &mut Sockets| {
        let mut batch = nft::Batch::of(&plan.bridge);
        let elements = plan.ports.iter().flat_map(|port| table::elements(port, &plan.ips));
        elements.for_each(|(map, key, data)| batch.add(map, &key, &data));
        batch.commit(&mut sockets.netfilter)
    };
    if let Err(refusal) = write(sockets)? {
        if !nft::is_there(&refusal) {
            return Err(refusal.into());
        }
        // Nobody's, for we have the claim: of a pod that went without a detach.
        for (map, key, _) in plan.ports.iter().flat_map(|port| table::elements(port, &plan.ips)) {
            remove_element(sockets, &plan.bridge, map, &key)?;
        }
        write(sockets)?.map_err(Error::from)?;
    }
    forget_datagrams(&mut sockets.netfilter, &plan.ports)
}

fn remove_port(sockets: &mut Sockets, plan: &Plan, port: &HostPort) -> Result<()> {
    for (map, key, _) in table::elements(port, &plan.ips) {
        remove_element(sockets, &plan.bridge, map, &key)?;
    }
    forget_datagrams(&mut sockets.netfilter, std::slice::from_ref(port))
}

/// One that is gone, with its table or without, is no error.
fn remove_element(sockets: &mut Sockets, bridge: &str, map: &nft::Map, key: &[u8]) -> Result<()> {
    let mut batch = nft::Batch::of(bridge);
    batch.delete(map, key);
    match batch.commit(&mut sockets.netfilter)? {
        Err(refusal) if refusal.errno != ENOENT => Err(refusal.into()),
        _ => Ok(()),
    }
}

/// Who sends datagrams to a host port would otherwise be led to where it led before, for as long as it sends: nothing ends such a connection.
fn forget_datagrams(netfilter: &mut Socket, ports: &[HostPort]) -> Result<()> {
    ports
        .iter()
        .filter(|port| port.protocol == Protocol::Udp)
        .try_for_each(|port| conntrack::forget_udp(netfilter, port.host_port))
}
