//! What of the host stands between pods and others, for `doctor`; and what the bridge takes over from the host.

use super::lease::GATEWAY;
use super::link::{self, Pair};
use super::nft::{self, BaseChain, Batch};
use super::table::{self, NF_INET_FORWARD};
use super::{has_ipv6, subnets};
use crate::config::network::{NetworkSettings, Subnet};
use crate::error::{Context, Error, Result};
use crate::network::netlink::Socket;
use crate::sys::netlink::Family;
use crate::sys::ns::{NsFlags, unshare};
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd;

/// The MTU of an interface when the host has none to tell (linux/if_ether.h).
const ETH_DATA_LEN: u32 = 1500;

/// A chain that drops what is forwarded and not allowed in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocker {
    /// `ip filter`.
    pub table: String,
    pub chain: String,
}

/// Looks for chains of the host's firewall that drop what is forwarded, and do not name the bridge in any rule.
///
/// # Errors
/// `Unsupported` without nftables, or without the right to look.
pub fn blockers(bridge: &str) -> Result<Vec<Blocker>> {
    let mut netfilter = Socket::open(Family::Netfilter)?;
    let blocks = |chain: &BaseChain| chain.hook == NF_INET_FORWARD && chain.drops;
    let mut all = Vec::new();
    for chain in nft::base_chains(&mut netfilter)?.into_iter().filter(blocks) {
        if !nft::names(&mut netfilter, &chain, bridge)? {
            all.push(Blocker { table: chain.table(), chain: chain.name });
        }
    }
    Ok(all)
}

/// Whether the host has no way to the bridge's ranges but by the bridge.
///
/// # Errors
/// `FailedPrecondition`, naming the route.
pub fn check_ranges(settings: &NetworkSettings) -> Result<()> {
    check_routes(&mut Socket::open(Family::Route)?, &settings.bridge, &subnets(settings, has_ipv6()))
}

/// Makes a bridge with a port and the table, in a network namespace of its own that ends with it.
///
/// # Errors
/// What the kernel refuses.
pub fn attempt(settings: &NetworkSettings) -> Result<()> {
    let make = || -> Result<()> {
        unshare(NsFlags::NET).context(|| "make a network namespace")?;
        let (mut route, mut netfilter) = (Socket::open(Family::Route)?, Socket::open(Family::Netfilter)?);
        let (name, subnets) = (&settings.bridge, subnets(settings, has_ipv6()));
        let gateways: Vec<(IpAddr, u8)> =
            subnets.iter().filter_map(|subnet| Some((subnet.host(GATEWAY)?, subnet.prefix))).collect();
        let (address, _) = *gateways.first().ok_or_else(|| Error::unsupported("no IPv6, and no subnet4"))?;
        link::add_bridge(&mut route, name, ETH_DATA_LEN, address)?;
        let bridge = link::get(&mut route, name)?.ok_or_else(|| Error::internal("the bridge is gone"))?;
        link::set_bridge(&mut route, &bridge, "", &gateways, has_ipv6())?;
        let here = File::open("/proc/thread-self/ns/net").context(|| "open /proc/thread-self/ns/net")?;
        let pair = Pair {
            host: "podwr0",
            alias: "",
            bridge: &bridge,
            interface: "eth0",
            netns: here.as_fd(),
            address,
            mtu: ETH_DATA_LEN,
            v6: has_ipv6(),
        };
        link::add_pair(&mut route, &pair)?;
        let mut batch = Batch::of(name);
        table::whole(&mut batch, name, &subnets);
        batch.commit(&mut netfilter)?.map_err(Error::from)
    };
    let joined = std::thread::scope(|scope| scope.spawn(make).join());
    joined.map_err(|_| Error::internal("the thread that tries it panicked"))?
}

/// Refuses subnets that the host has a way to already, but by the bridge.
pub(super) fn check_routes(socket: &mut Socket, bridge: &str, subnets: &[Subnet]) -> Result<()> {
    for subnet in subnets {
        let links = link::list(socket)?;
        let name = |index: u32| links.iter().find(|link| link.index == index).map(|link| link.name.as_str());
        let other = |route: &&link::Route| {
            name(route.index) != Some(bridge) && route.to.is_some_and(|to| to.prefix != 0 && to.overlaps(subnet))
        };
        let routes = link::routes(socket, subnet.address.is_ipv6())?;
        let Some((route, to)) = routes.iter().find(other).and_then(|route| Some((route, route.to?))) else { continue };
        let what = if route.local { "address" } else { "route" };
        return Err(Error::precondition(format!(
            "pods cannot have {subnet}: the host has the {what} {to} by {}; set network.subnet{} to a range that the host does not use",
            name(route.index).unwrap_or("several interfaces"),
            if subnet.address.is_ipv4() { 4 } else { 6 },
        )));
    }
    Ok(())
}

/// That of the interface by which everything goes that has no other way.
pub(super) fn default_mtu(socket: &mut Socket) -> Result<u32> {
    for v6 in [false, true] {
        let routes = link::routes(socket, v6)?;
        let Some(default) = routes.iter().find(|route| route.to.is_none() && route.index != 0) else { continue };
        let links = link::list(socket)?;
        if let Some(link) = links.iter().find(|link| link.index == default.index) {
            return Ok(link.mtu);
        }
    }
    Ok(ETH_DATA_LEN)
}
