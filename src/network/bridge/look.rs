//! What of the host stands between pods and others, for `doctor`; and what the bridge takes over from the host.

use super::link;
use super::nft::{self, BaseChain};
use super::table::NF_INET_FORWARD;
use crate::error::Result;
use crate::network::netlink::Socket;
use crate::sys::netlink::Family;

/// The MTU of an interface when the host has none to tell (linux/if_ether.h).
const ETH_DATA_LEN: u32 = 1500;

/// A chain that drops what is forwarded and not allowed in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocker {
    /// `ip filter`.
    pub table: String,
    pub chain: String,
}

/// What there is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Look {
    pub blockers: Vec<Blocker>,
}

/// Looks at the host's firewall.
///
/// # Errors
/// `Unsupported` without nftables, or without the right to look.
pub fn look() -> Result<Look> {
    let mut netfilter = Socket::open(Family::Netfilter)?;
    let blocks = |chain: &BaseChain| chain.hook == NF_INET_FORWARD && chain.drops;
    let chains = nft::base_chains(&mut netfilter)?.into_iter().filter(blocks);
    Ok(Look { blockers: chains.map(|chain| Blocker { table: chain.table, chain: chain.name }).collect() })
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
