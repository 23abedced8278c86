//! Tables of nftables that another program keeps in a network namespace, by their names: which are there, and away with them.
//!
//! podwright's own table is the bridge's ([`super::bridge`]).

use super::netlink::{Attributes, DUMP, ENOENT, Message, Socket, as_text};
use crate::error::{Context, Error, Result};
use crate::sys::netlink::Family;
use crate::sys::ns::{NsFlags, setns};
use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;

// linux/netfilter/nfnetlink.h, linux/netfilter.h, linux/netfilter/nf_tables.h.
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFPROTO_INET: u8 = 1;
const NFT_MSG_GETTABLE: u16 = 1;
const NFT_MSG_DELTABLE: u16 = 2;
const NFTA_TABLE_NAME: u16 = 1;

/// Tables of one prefix: a program has one.
const MAX_TABLES: usize = 4096;

/// The tables of the family inet whose names begin so.
///
/// # Errors
/// `ResourceExhausted` when there are more than 4096; those of the kernel.
pub fn named(netns: BorrowedFd<'_>, prefix: &str) -> Result<BTreeSet<String>> {
    let kind = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE;
    let ask = Message::new(kind, DUMP, "list the tables of nftables").raw(&[NFPROTO_INET, 0, 0, 0]);
    let answers = socket_in(netns)?.ask(ask)?.map_err(Error::from)?;
    let name = |body: &[u8]| body.get(4..).and_then(|rest| Attributes(rest).get(NFTA_TABLE_NAME)).map(as_text);
    let all: BTreeSet<String> =
        answers.iter().filter_map(|answer| name(&answer.body)).filter(|name| name.starts_with(prefix)).collect();
    if all.len() > MAX_TABLES {
        return Err(Error::exhausted(format!("there are more than {MAX_TABLES} tables {prefix}* of nftables")));
    }
    Ok(all)
}

/// Removes tables of the family inet with all that is in them; one that is not there is no error.
///
/// # Errors
/// Those of the kernel.
pub fn delete<'a>(netns: BorrowedFd<'_>, names: impl IntoIterator<Item = &'a String>) -> Result<()> {
    let mut socket = None;
    for name in names {
        let socket = match &mut socket {
            Some(socket) => socket,
            none => none.insert(socket_in(netns)?),
        };
        let what = || format!("remove table inet {name}");
        let [a, b] = NFNL_SUBSYS_NFTABLES.to_be_bytes();
        let frame = |kind| Message::new(kind, 0, what()).raw(&[0, 0, a, b]);
        let delete = Message::new(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_DELTABLE, 0, what());
        let delete = delete.raw(&[NFPROTO_INET, 0, 0, 0]).text(NFTA_TABLE_NAME, name).acked();
        let refused = socket.send_until(vec![frame(NFNL_MSG_BATCH_BEGIN), delete, frame(NFNL_MSG_BATCH_END)], 1)?;
        if let Some((_, refusal)) = refused.into_iter().find(|(_, refusal)| refusal.errno != ENOENT) {
            return Err(refusal.into());
        }
    }
    Ok(())
}

/// A socket in that namespace. From a thread that is made for it and ends: no other one is ever in the wrong place.
fn socket_in(netns: BorrowedFd<'_>) -> Result<Socket> {
    let inside = || -> Result<Socket> {
        setns(netns, NsFlags::NET).context(|| "enter the network namespace")?;
        Socket::open(Family::Netfilter)
    };
    let joined = std::thread::scope(|scope| scope.spawn(inside).join());
    joined.map_err(|_| Error::internal("the thread in the network namespace panicked"))?
}
