//! Connections that the kernel remembers, over nfnetlink: those to a host port whose pod has changed are to be forgotten.

use crate::error::{Error, Result};
use crate::network::netlink::{ACK, Attributes, DUMP, ENOENT, Message, Socket};

// linux/netfilter/nfnetlink_conntrack.h.
const NFNL_SUBSYS_CTNETLINK: u16 = 1; // linux/netfilter/nfnetlink.h
const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
/// Of the tuple, only protocol and destination port are compared (net/netfilter/nf_internals.h).
const PROTO_NUM_AND_DST_PORT: u32 = 1 << 3 | 1 << 5;
const IPPROTO_UDP: u8 = 17; // linux/in.h
const FAMILIES: [u8; 2] = [2, 10]; // AF_INET, AF_INET6

/// Forgets the datagrams' connections to a port of this host, in both families.
///
/// # Errors
/// `Internal` when the kernel does not list them.
pub(super) fn forget_udp(socket: &mut Socket, port: u16) -> Result<()> {
    for family in FAMILIES {
        let udp_to_port = |m: Message| {
            m.nest(CTA_TUPLE_PROTO, |m| {
                m.attr(CTA_PROTO_NUM, &[IPPROTO_UDP]).attr(CTA_PROTO_DST_PORT, &port.to_be_bytes())
            })
        };
        let what = format!("list connections to udp port {port}");
        let ask = Message::new(NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET, DUMP, what)
            .raw(&[family, 0, 0, 0])
            .nest(CTA_TUPLE_ORIG, udp_to_port)
            .nest(CTA_FILTER, |m| m.attr(CTA_FILTER_ORIG_FLAGS, &PROTO_NUM_AND_DST_PORT.to_ne_bytes()));
        let answers = match socket.ask(ask)? {
            Ok(answers) => answers,
            Err(refusal) if refusal.errno == ENOENT => continue,
            Err(refusal) => return Err(refusal.into()),
        };
        for answer in answers {
            let attributes = Attributes(answer.body.get(4..).unwrap_or_default());
            let proto = attributes.inside(CTA_TUPLE_ORIG).inside(CTA_TUPLE_PROTO);
            // Compared again: a kernel that does not know the filter lists all of them.
            if proto.get(CTA_PROTO_NUM) != Some(&[IPPROTO_UDP])
                || proto.get(CTA_PROTO_DST_PORT) != Some(&port.to_be_bytes())
            {
                continue;
            }
            let tuple = attributes.get(CTA_TUPLE_ORIG).unwrap_or_default().to_vec();
            let what = format!("forget a connection to udp port {port}");
            let delete = Message::new(NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE, ACK, what)
                .raw(&[family, 0, 0, 0])
                .nest(CTA_TUPLE_ORIG, |m| m.raw(&tuple));
            let refused = socket.send(vec![delete])?.into_iter().find(|(_, refusal)| refusal.errno != ENOENT);
            refused.map_or(Ok(()), |(_, refusal)| Err(Error::from(refusal)))?;
        }
    }
    Ok(())
}
