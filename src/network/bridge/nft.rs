//! The bridge's nftables table, over nfnetlink: how its rules and elements are written. What they are is [`super::table`]'s.
//!
//! A batch is one transaction: all of it, or nothing. Numbers are big-endian here, unlike in rtnetlink.

use crate::error::{Error, Result};
use crate::network::netlink::{Attributes, CREATE, DUMP, EEXIST, ENOENT, Message, Refusal, Socket, as_text};

// linux/netfilter/nfnetlink.h.
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
// linux/netfilter.h.
const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
// linux/netfilter/nf_tables.h.
const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_GETTABLE: u16 = 1;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_GETCHAIN: u16 = 4;
const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_GETRULE: u16 = 7;
const NFT_MSG_DELRULE: u16 = 8;
const NFT_MSG_NEWSET: u16 = 9;
const NFT_MSG_NEWSETELEM: u16 = 12;
const NFT_MSG_GETSETELEM: u16 = 13;
const NFT_MSG_DELSETELEM: u16 = 14;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_FLAGS: u16 = 3;
const NFTA_SET_KEY_TYPE: u16 = 4;
const NFTA_SET_KEY_LEN: u16 = 5;
const NFTA_SET_DATA_TYPE: u16 = 6;
const NFTA_SET_DATA_LEN: u16 = 7;
const NFTA_SET_ID: u16 = 10;
const NFT_SET_MAP: u32 = 8;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;
const NFT_JUMP: i32 = -3;
const NF_DROP: i32 = 0;
const NFT_REG_VERDICT: u32 = 0;
/// The first register of 16 bytes, which is also the first four of 4 bytes.
const NFT_REG_1: u32 = 1;
const NFT_REG32_00: u32 = 8;
const NFT_CMP_EQ: u32 = 0;
const NFT_CMP_NEQ: u32 = 1;
const NFT_META_OIFNAME: u32 = 7;
const NFT_META_IIFNAME: u32 = 6;
const NFT_META_NFPROTO: u32 = 15;
const NFT_META_L4PROTO: u32 = 16;
const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = 2;
const NFT_CT_STATUS: u32 = 2;
const IPS_DST_NAT: u32 = 1 << 5; // nf_conntrack_common.h
const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
const NFTA_FIB_F_DADDR: u32 = 2;
const RTN_LOCAL: u32 = 2; // linux/rtnetlink.h
const NFT_NAT_DNAT: u32 = 1;
const NF_NAT_RANGE_PROTO_RANDOM_FULLY: u32 = 1 << 4; // nf_nat.h

/// Which of the two families a rule is for: NFPROTO_IPV4, NFPROTO_IPV6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ip {
    V4 = 2,
    V6 = 10,
}

impl Ip {
    /// Bytes of an address.
    pub(super) fn bytes(self) -> u32 {
        match self {
            Ip::V4 => 4,
            Ip::V6 => 16,
        }
    }

    /// Where the network header has its source address, and behind it the destination's.
    fn source(self) -> u32 {
        match self {
            Ip::V4 => 12,
            Ip::V6 => 8,
        }
    }

    fn number(self) -> u32 {
        match self {
            Ip::V4 => 2,
            Ip::V6 => 10,
        }
    }
}

/// Where a packet is looked at: linux/netfilter.h, and the usual priorities of linux/netfilter_ipv4.h.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hook {
    /// `nat` or `filter`.
    pub kind: &'static str,
    pub hook: u32,
    pub priority: i32,
}

/// A map of the table: from some bytes to others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Map {
    pub name: &'static str,
    /// Types for nft(8) (libnftables' datatype.h), six bits each, and bytes.
    pub key: (u32, u32),
    pub data: (u32, u32),
}

fn be(number: u32) -> [u8; 4] {
    number.to_be_bytes()
}

/// struct nfgenmsg of the inet family.
fn message(kind: u16, flags: u16, what: String) -> Message {
    Message::new(NFNL_SUBSYS_NFTABLES << 8 | kind, flags, what).raw(&[NFPROTO_INET, 0, 0, 0])
}

/// Requests that are done together or not at all.
#[derive(Debug)]
pub(super) struct Batch<'a> {
    table: &'a str,
    messages: Vec<Message>,
}

impl<'a> Batch<'a> {
    pub(super) fn of(table: &'a str) -> Batch<'a> {
        Batch { table, messages: Vec::new() }
    }

    /// The table, if it is not there.
    pub(super) fn table(&mut self) {
        let what = format!("add table inet {}", self.table);
        self.messages.push(message(NFT_MSG_NEWTABLE, CREATE, what).text(NFTA_TABLE_NAME, self.table));
    }

    pub(super) fn delete_table(&mut self) {
        let what = format!("remove table inet {}", self.table);
        self.messages.push(message(NFT_MSG_DELTABLE, 0, what).text(NFTA_TABLE_NAME, self.table));
    }

    /// A map, if it is not there.
    pub(super) fn map(&mut self, map: &Map) {
        let id = u32::try_from(self.messages.len()).unwrap_or(u32::MAX); // of this batch
        self.messages.push(
            message(NFT_MSG_NEWSET, CREATE, format!("add map {} to table {}", map.name, self.table))
                .text(NFTA_SET_TABLE, self.table)
                .text(NFTA_SET_NAME, map.name)
                .attr(NFTA_SET_FLAGS, &be(NFT_SET_MAP))
                .attr(NFTA_SET_KEY_TYPE, &be(map.key.0))
                .attr(NFTA_SET_KEY_LEN, &be(map.key.1))
                .attr(NFTA_SET_DATA_TYPE, &be(map.data.0))
                .attr(NFTA_SET_DATA_LEN, &be(map.data.1))
                .attr(NFTA_SET_ID, &be(id)),
        );
    }

    /// A chain, if it is not there, without the rules that it had.
    pub(super) fn chain(&mut self, name: &str, hook: Option<Hook>) {
        let what = format!("add chain {name} to table {}", self.table);
        let chain =
            message(NFT_MSG_NEWCHAIN, CREATE, what).text(NFTA_CHAIN_TABLE, self.table).text(NFTA_CHAIN_NAME, name);
        self.messages.push(match hook {
            None => chain,
            Some(hook) => chain
                .nest(NFTA_CHAIN_HOOK, |m| {
                    m.attr(NFTA_HOOK_HOOKNUM, &be(hook.hook)).attr(NFTA_HOOK_PRIORITY, &hook.priority.to_be_bytes())
                })
                .attr(NFTA_CHAIN_POLICY, &be(1)) // NF_ACCEPT
                .text(NFTA_CHAIN_TYPE, hook.kind),
        });
        self.messages.push(
            message(NFT_MSG_DELRULE, 0, format!("flush chain {name} of table {}", self.table))
                .text(NFTA_RULE_TABLE, self.table)
                .text(NFTA_RULE_CHAIN, name),
        );
    }

    /// A rule at the end of a chain.
    pub(super) fn rule(&mut self, chain: &str, rule: Rule) {
        let what = format!("add a rule to chain {chain} of table {}", self.table);
        self.messages.push(
            message(NFT_MSG_NEWRULE, CREATE | crate::network::netlink::APPEND, what)
                .text(NFTA_RULE_TABLE, self.table)
                .text(NFTA_RULE_CHAIN, chain)
                .nest(NFTA_RULE_EXPRESSIONS, |m| rule.0.into_iter().fold(m, |m, expression| expression(m))),
        );
    }

    /// An element of a map.
    pub(super) fn add(&mut self, map: &Map, key: &[u8], data: &[u8]) {
        let what = format!("add an element to map {} of table {}", map.name, self.table);
        let value = |m: Message| {
            m.nest(NFTA_SET_ELEM_KEY, |m| m.attr(NFTA_DATA_VALUE, key))
                .nest(NFTA_SET_ELEM_DATA, |m| m.attr(NFTA_DATA_VALUE, data))
        };
        let message = self.elements(NFT_MSG_NEWSETELEM, CREATE, map, what);
        self.messages.push(message.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |m| m.nest(NFTA_LIST_ELEM, value)));
    }

    pub(super) fn delete(&mut self, map: &Map, key: &[u8]) {
        let what = format!("remove an element of map {} of table {}", map.name, self.table);
        let value = |m: Message| m.nest(NFTA_SET_ELEM_KEY, |m| m.attr(NFTA_DATA_VALUE, key));
        let message = self.elements(NFT_MSG_DELSETELEM, 0, map, what);
        self.messages.push(message.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |m| m.nest(NFTA_LIST_ELEM, value)));
    }

    fn elements(&self, kind: u16, flags: u16, map: &Map, what: String) -> Message {
        message(kind, flags, what).text(NFTA_SET_ELEM_LIST_TABLE, self.table).text(NFTA_SET_ELEM_LIST_SET, map.name)
    }

    /// Does all of it, or nothing.
    ///
    /// # Errors
    /// What the kernel refuses: its first refusal, with the reason.
    pub(super) fn commit(self, socket: &mut Socket) -> Result<Result<(), Refusal>> {
        let Some((last, rest)) = self.messages.split_last() else { return Ok(Ok(())) };
        let frame = |kind| {
            let [a, b] = NFNL_SUBSYS_NFTABLES.to_be_bytes();
            Message::new(kind, 0, format!("change table inet {}", self.table)).raw(&[0, 0, a, b])
        };
        let mut messages = vec![frame(NFNL_MSG_BATCH_BEGIN)];
        messages.extend(rest.iter().cloned());
        messages.push(last.clone().acked());
        let answered = messages.len() - 1;
        messages.push(frame(NFNL_MSG_BATCH_END));
        let refused = socket.send_until(messages, answered)?;
        Ok(refused.into_iter().next().map_or(Ok(()), |(_, refusal)| Err(refusal)))
    }
}

/// Whether the table is there.
pub(super) fn has_table(socket: &mut Socket, table: &str) -> Result<bool> {
    let ask = message(NFT_MSG_GETTABLE, 0, format!("look at table inet {table}")).text(NFTA_TABLE_NAME, table);
    match socket.ask_one(ask)? {
        Ok(_) => Ok(true),
        Err(refusal) if refusal.errno == ENOENT => Ok(false),
        Err(refusal) => Err(refusal.into()),
    }
}

/// The keys of a map; none when there is no such map.
pub(super) fn keys(socket: &mut Socket, table: &str, map: &Map) -> Result<Vec<Vec<u8>>> {
    let ask = message(NFT_MSG_GETSETELEM, DUMP, format!("list map {} of table {table}", map.name))
        .text(NFTA_SET_ELEM_LIST_TABLE, table)
        .text(NFTA_SET_ELEM_LIST_SET, map.name);
    let answers = match socket.ask(ask)? {
        Ok(answers) => answers,
        Err(refusal) if refusal.errno == ENOENT => return Ok(Vec::new()),
        Err(refusal) => return Err(refusal.into()),
    };
    let key = |(_, element): (u16, &[u8])| {
        Attributes(element).inside(NFTA_SET_ELEM_KEY).get(NFTA_DATA_VALUE).map(<[u8]>::to_vec)
    };
    let list = |body: &[u8]| -> Vec<Vec<u8>> {
        Attributes(body.get(4..).unwrap_or_default()).inside(NFTA_SET_ELEM_LIST_ELEMENTS).filter_map(key).collect()
    };
    Ok(answers.iter().flat_map(|answer| list(&answer.body)).collect())
}

/// A base chain of any table of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BaseChain {
    /// NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6.
    family: u8,
    table: String,
    pub name: String,
    pub hook: u32,
    pub drops: bool,
}

impl BaseChain {
    /// As nft(8) names it: `inet filter`.
    pub(super) fn table(&self) -> String {
        let family = match self.family {
            NFPROTO_INET => "inet",
            NFPROTO_IPV6 => "ip6",
            _ => "ip",
        };
        format!("{family} {}", self.table)
    }
}

/// Whether a rule of a chain has that name of an interface in it.
pub(super) fn names(socket: &mut Socket, chain: &BaseChain, interface: &str) -> Result<bool> {
    let kind = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETRULE;
    let ask = Message::new(kind, DUMP, format!("list chain {} of table {}", chain.name, chain.table()))
        .raw(&[chain.family, 0, 0, 0])
        .text(NFTA_RULE_TABLE, &chain.table)
        .text(NFTA_RULE_CHAIN, &chain.name);
    let answers = socket.ask(ask)?.map_err(Error::from)?;
    let name = interface.as_bytes();
    Ok(answers.iter().any(|answer| answer.body.windows(name.len()).any(|bytes| bytes == name)))
}

/// The base chains that are there.
pub(super) fn base_chains(socket: &mut Socket) -> Result<Vec<BaseChain>> {
    let kind = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN;
    let ask = Message::new(kind, DUMP, "list the chains of nftables").raw(&[0, 0, 0, 0]);
    let answers = socket.ask(ask)?.map_err(Error::from)?;
    let chain = |body: &[u8]| {
        let (header, attributes) = body.split_first_chunk::<4>()?;
        let attributes = Attributes(attributes);
        let number = |bytes: &[u8]| bytes.first_chunk().map(|word| u32::from_be_bytes(*word));
        let hook = number(attributes.inside(NFTA_CHAIN_HOOK).get(NFTA_HOOK_HOOKNUM)?)?;
        let text = |kind| attributes.get(kind).map(as_text).unwrap_or_default();
        let family = header[0];
        if !matches!(family, NFPROTO_INET | NFPROTO_IPV4 | NFPROTO_IPV6) {
            return None;
        }
        Some(BaseChain {
            family,
            table: text(NFTA_CHAIN_TABLE),
            name: text(NFTA_CHAIN_NAME),
            hook,
            drops: attributes.get(NFTA_CHAIN_POLICY).and_then(number) == Some(0),
        })
    };
    Ok(answers.iter().filter_map(|answer| chain(&answer.body)).collect())
}

/// Whether a refusal says that an element is there already, with other data or the same.
pub(super) fn is_there(refusal: &Refusal) -> bool {
    const EBUSY: i32 = 16; // errno-base.h
    matches!(refusal.errno, EEXIST | EBUSY)
}

type Expression = Box<dyn FnOnce(Message) -> Message>;

/// A rule, expression by expression, as libnftnl writes them.
pub(super) struct Rule(Vec<Expression>);

impl Rule {
    pub(super) fn new() -> Rule {
        Rule(Vec::new())
    }

    fn expression(mut self, name: &'static str, data: impl FnOnce(Message) -> Message + 'static) -> Rule {
        self.0.push(Box::new(move |m| {
            m.nest(NFTA_LIST_ELEM, |m| m.text(NFTA_EXPR_NAME, name).nest(NFTA_EXPR_DATA, data))
        }));
        self
    }

    /// `cmp`: the first register is, or is not, this.
    fn compare(self, operation: u32, value: Vec<u8>) -> Rule {
        self.expression("cmp", move |m| {
            m.attr(1, &be(NFT_REG_1)).attr(2, &be(operation)).nest(3, |m| m.attr(NFTA_DATA_VALUE, &value))
        })
    }

    fn meta(self, key: u32, register: u32) -> Rule {
        self.expression("meta", move |m| m.attr(1, &be(register)).attr(2, &be(key)))
    }

    fn payload(self, base: u32, offset: u32, bytes: u32, register: u32) -> Rule {
        self.expression("payload", move |m| {
            m.attr(1, &be(register)).attr(2, &be(base)).attr(3, &be(offset)).attr(4, &be(bytes))
        })
    }

    /// `bitwise`: the first register and a mask.
    fn masked(self, mask: Vec<u8>) -> Rule {
        self.expression("bitwise", move |m| {
            let bytes = u32::try_from(mask.len()).unwrap_or_default(); // at most 16
            let zero = vec![0; mask.len()];
            m.attr(1, &be(NFT_REG_1))
                .attr(2, &be(NFT_REG_1))
                .attr(3, &be(bytes))
                .nest(4, |m| m.attr(NFTA_DATA_VALUE, &mask))
                .nest(5, |m| m.attr(NFTA_DATA_VALUE, &zero))
        })
    }

    fn verdict(self, code: i32, chain: Option<&'static str>) -> Rule {
        self.expression("immediate", move |m| {
            m.attr(1, &be(NFT_REG_VERDICT)).nest(2, |m| {
                m.nest(NFTA_DATA_VERDICT, |m| {
                    let m = m.attr(NFTA_VERDICT_CODE, &code.to_be_bytes());
                    chain.map_or(m.clone(), |chain| m.text(NFTA_VERDICT_CHAIN, chain))
                })
            })
        })
    }

    fn interface(self, key: u32, name: &str, is: bool) -> Rule {
        let mut padded = name.as_bytes().to_vec();
        padded.resize(16, 0); // IFNAMSIZ
        self.meta(key, NFT_REG_1).compare(if is { NFT_CMP_EQ } else { NFT_CMP_NEQ }, padded)
    }

    /// `iifname NAME`.
    pub(super) fn coming_from(self, name: &str) -> Rule {
        self.interface(NFT_META_IIFNAME, name, true)
    }

    /// `oifname NAME`, or not.
    pub(super) fn going_to(self, name: &str, is: bool) -> Rule {
        self.interface(NFT_META_OIFNAME, name, is)
    }

    /// `meta nfproto ipv4`.
    pub(super) fn family(self, ip: Ip) -> Rule {
        self.meta(NFT_META_NFPROTO, NFT_REG_1).compare(NFT_CMP_EQ, vec![u8::try_from(ip.number()).unwrap_or_default()])
    }

    fn subnet(self, ip: Ip, offset: u32, network: Vec<u8>, prefix: u8, is: bool) -> Rule {
        let mask = (0..ip.bytes()).map(|n| {
            let bits = u32::from(prefix).saturating_sub(n * 8).min(8);
            u8::try_from(0xff00u32 >> bits & 0xff).unwrap_or_default()
        });
        let mask: Vec<u8> = mask.collect();
        self.payload(NFT_PAYLOAD_NETWORK_HEADER, offset, ip.bytes(), NFT_REG_1)
            .masked(mask)
            .compare(if is { NFT_CMP_EQ } else { NFT_CMP_NEQ }, network)
    }

    /// `ip saddr NETWORK/PREFIX`.
    pub(super) fn source(self, ip: Ip, network: Vec<u8>, prefix: u8) -> Rule {
        self.subnet(ip, ip.source(), network, prefix, true)
    }

    /// `ip daddr NETWORK/PREFIX`, or not.
    pub(super) fn destination(self, ip: Ip, network: Vec<u8>, prefix: u8, is: bool) -> Rule {
        self.subnet(ip, ip.source() + ip.bytes(), network, prefix, is)
    }

    /// `fib daddr type local`.
    pub(super) fn addressed_to_host(self) -> Rule {
        self.expression("fib", |m| {
            m.attr(1, &be(NFT_REG_1)).attr(2, &be(NFT_FIB_RESULT_ADDRTYPE)).attr(3, &be(NFTA_FIB_F_DADDR))
        })
        .compare(NFT_CMP_EQ, RTN_LOCAL.to_ne_bytes().to_vec())
    }

    /// `ct status dnat`.
    pub(super) fn redirected(self) -> Rule {
        self.expression("ct", |m| m.attr(1, &be(NFT_REG_1)).attr(2, &be(NFT_CT_STATUS)))
            .masked(IPS_DST_NAT.to_ne_bytes().to_vec())
            .compare(NFT_CMP_NEQ, vec![0; 4])
    }

    /// `dnat ip to [ip daddr .] meta l4proto . th dport map @MAP`: goes on behind the rule when the map has no such key.
    pub(super) fn redirect(self, ip: Ip, map: &'static str, by_address: bool) -> Rule {
        let address = if by_address { ip.bytes() / 4 } else { 0 };
        let rule = if by_address {
            self.payload(NFT_PAYLOAD_NETWORK_HEADER, ip.source() + ip.bytes(), ip.bytes(), NFT_REG_1)
        } else {
            self
        };
        let port = NFT_REG32_00 + ip.bytes() / 4;
        rule.meta(NFT_META_L4PROTO, NFT_REG32_00 + address)
            .payload(NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, NFT_REG32_00 + address + 1)
            .expression("lookup", move |m| m.text(1, map).attr(2, &be(NFT_REG_1)).attr(3, &be(NFT_REG_1)))
            .expression("nat", move |m| {
                m.attr(1, &be(NFT_NAT_DNAT)).attr(2, &be(ip.number())).attr(3, &be(NFT_REG_1)).attr(5, &be(port))
            })
    }

    /// `masquerade fully-random`: two pods that use one port at once do not get in each other's way.
    pub(super) fn masquerade(self) -> Rule {
        self.expression("masq", |m| m.attr(1, &be(NF_NAT_RANGE_PROTO_RANDOM_FULLY)))
    }

    pub(super) fn jump(self, chain: &'static str) -> Rule {
        self.verdict(NFT_JUMP, Some(chain))
    }

    pub(super) fn drop(self) -> Rule {
        self.verdict(NF_DROP, None)
    }
}
