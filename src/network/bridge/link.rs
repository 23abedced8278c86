//! Interfaces, addresses and routes: the requests of rtnetlink(7) that the bridge is made of. Each function is one exchange.

use crate::config::network::Subnet;
use crate::error::{Error, Result};
use crate::network::netlink::{
    ACK, APPEND, Attributes, CREATE, DUMP, EEXIST, ENODEV, EXCL, Message, Socket, as_text, word,
};
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

// linux/rtnetlink.h.
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RT_TABLE_MAIN: u8 = 254;
const RT_TABLE_LOCAL: u8 = 255;
const RTPROT_BOOT: u8 = 3;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
/// Behind the kernel's own, which has 0.
const LOOPBACK_METRIC: u32 = 1024;
// linux/if_link.h.
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const IFLA_BR_MCAST_SNOOPING: u16 = 23;
const VETH_INFO_PEER: u16 = 1; // linux/veth.h
// linux/if_addr.h.
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_F_NODAD: u8 = 2;
const IFF_UP: u32 = 1; // linux/if.h
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub index: u32,
    pub name: String,
    /// `bridge`, `veth`, ...; empty for hardware.
    pub kind: String,
    pub alias: String,
    pub mtu: u32,
    /// The bridge that it is a port of; 0: none.
    pub master: u32,
}

/// struct ifinfomsg.
fn ifinfo(family: u8, index: u32, up: bool) -> [u8; 16] {
    let flags = if up { IFF_UP } else { 0 }.to_ne_bytes();
    let mut header = [0; 16];
    header[0] = family;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags);
    header[12..16].copy_from_slice(&flags); // of the flags only this one changes
    header
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

/// A locally administered hardware address that says the IP address: a pod that gets another's address has its hardware address as well,
/// so that no neighbour remembers a wrong one.
pub(super) fn hardware_address(ip: IpAddr) -> [u8; 6] {
    let all = octets(ip);
    let last: [u8; 4] = all.last_chunk().copied().unwrap_or_default();
    [0x0a, 0x70, last[0], last[1], last[2], last[3]]
}

fn link(body: &[u8]) -> Option<Link> {
    let attributes = Attributes(body.get(16..)?);
    let number = |kind| attributes.get(kind).map_or(0, word);
    let text = |kind| attributes.get(kind).map(as_text).unwrap_or_default();
    Some(Link {
        index: word(&body[4..]),
        name: text(IFLA_IFNAME),
        kind: attributes.inside(IFLA_LINKINFO).get(IFLA_INFO_KIND).map(as_text).unwrap_or_default(),
        alias: text(IFLA_IFALIAS),
        mtu: number(IFLA_MTU),
        master: number(IFLA_MASTER),
    })
}

/// The interface of that name; `None` when there is none.
pub(super) fn get(socket: &mut Socket, name: &str) -> Result<Option<Link>> {
    let ask = Message::new(RTM_GETLINK, 0, format!("look at interface {name}"));
    match socket.ask_one(ask.raw(&ifinfo(0, 0, false)).text(IFLA_IFNAME, name))? {
        Err(refusal) if refusal.errno == ENODEV => Ok(None),
        Err(refusal) => Err(refusal.into()),
        Ok(body) => Ok(link(&body)),
    }
}

/// All interfaces.
pub(super) fn list(socket: &mut Socket) -> Result<Vec<Link>> {
    let ask = Message::new(RTM_GETLINK, DUMP, "list interfaces").raw(&ifinfo(0, 0, false));
    let answers = socket.ask(ask)?.map_err(Error::from)?;
    Ok(answers.iter().filter(|answer| answer.kind == RTM_NEWLINK).filter_map(|answer| link(&answer.body)).collect())
}

/// Makes a bridge, down; one that is there stays as it is. Multicast goes to every port: pods find each other by it, and snooping would wait for
/// a querier that a host does not have.
pub(super) fn add_bridge(socket: &mut Socket, name: &str, mtu: u32, address: IpAddr) -> Result<()> {
    let message = Message::new(RTM_NEWLINK, CREATE | EXCL | ACK, format!("add bridge {name}"))
        .raw(&ifinfo(0, 0, false))
        .text(IFLA_IFNAME, name)
        .attr(IFLA_MTU, &mtu.to_ne_bytes())
        .attr(IFLA_ADDRESS, &hardware_address(address))
        .nest(IFLA_LINKINFO, |m| {
            m.text(IFLA_INFO_KIND, "bridge").nest(IFLA_INFO_DATA, |m| m.attr(IFLA_BR_MCAST_SNOOPING, &[0]))
        });
    let refused = socket.send(vec![message])?.into_iter().find(|(_, refusal)| refusal.errno != EEXIST);
    refused.map_or(Ok(()), |(_, refusal)| Err(refusal.into()))
}

/// Gives a bridge its name for people and its addresses, which may be there already, and brings it up. `loopback`: answers to ::1 are
/// taken from it ([`super::table`]).
pub(super) fn set_bridge(
    socket: &mut Socket,
    link: &Link,
    alias: &str,
    addresses: &[(IpAddr, u8)],
    loopback: bool,
) -> Result<()> {
    let name = &link.name;
    let mut messages = vec![
        Message::new(RTM_SETLINK, ACK, format!("bring up bridge {name}"))
            .raw(&ifinfo(0, link.index, true))
            .text(IFLA_IFALIAS, alias),
    ];
    messages.extend(addresses.iter().map(|(address, prefix)| add_address(link.index, name, *address, *prefix)));
    if loopback {
        messages.push(add_loopback(link.index, name));
    }
    let refused = socket.send(messages)?.into_iter().find(|(_, refusal)| refusal.errno != EEXIST);
    refused.map_or(Ok(()), |(_, refusal)| Err(refusal.into()))
}

/// `local ::1 dev NAME table local`, behind that of `lo`: the kernel takes a packet to ::1 only from an interface with such a route.
fn add_loopback(index: u32, name: &str) -> Message {
    let header = [AF_INET6, 128, 0, 0, RT_TABLE_LOCAL, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_LOCAL, 0, 0, 0, 0];
    Message::new(RTM_NEWROUTE, CREATE | EXCL | ACK, format!("add a route of ::1 by {name}"))
        .raw(&header)
        .attr(RTA_DST, &octets(Ipv6Addr::LOCALHOST.into()))
        .attr(RTA_OIF, &index.to_ne_bytes())
        .attr(RTA_PRIORITY, &LOOPBACK_METRIC.to_ne_bytes())
}

/// A pair of interfaces: one here, a port of the bridge and up; the other in the pod.
pub(super) struct Pair<'a> {
    /// Here.
    pub host: &'a str,
    /// For people.
    pub alias: &'a str,
    pub bridge: &'a Link,
    /// In the pod, down.
    pub interface: &'a str,
    pub netns: BorrowedFd<'a>,
    pub address: IpAddr,
    pub mtu: u32,
    /// The kernel here has IPv6, and gives a port an address of its own that nobody needs unless it is told not to.
    pub v6: bool,
}

/// Makes both ends in one exchange.
pub(super) fn add_pair(socket: &mut Socket, pair: &Pair<'_>) -> Result<()> {
    let Pair { host, alias, bridge, interface, .. } = pair;
    let mtu = pair.mtu.to_ne_bytes();
    let make = Message::new(RTM_NEWLINK, CREATE | EXCL | ACK, format!("add {host} to bridge {}", bridge.name))
        .raw(&ifinfo(0, 0, false))
        .text(IFLA_IFNAME, host)
        .attr(IFLA_MTU, &mtu)
        .attr(IFLA_MASTER, &bridge.index.to_ne_bytes())
        .nest(IFLA_LINKINFO, |m| {
            m.text(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, |m| {
                m.nest(VETH_INFO_PEER, |m| {
                    m.raw(&ifinfo(0, 0, false)) // it cannot be up before the other end is there
                        .text(IFLA_IFNAME, interface)
                        .attr(IFLA_MTU, &mtu)
                        .attr(IFLA_ADDRESS, &hardware_address(pair.address))
                        .attr(IFLA_NET_NS_FD, &pair.netns.as_raw_fd().to_ne_bytes())
                })
            })
        });
    // A pod that asks for its own host port is answered by the port that it came from, where bridged packets go through the firewall too.
    let hairpin = |m: Message| {
        m.text(IFLA_INFO_SLAVE_KIND, "bridge").nest(IFLA_INFO_SLAVE_DATA, |m| m.attr(IFLA_BRPORT_MODE, &[1]))
    };
    let up = Message::new(RTM_NEWLINK, ACK, format!("bring up {host}"))
        .raw(&ifinfo(0, 0, true))
        .text(IFLA_IFNAME, host)
        .text(IFLA_IFALIAS, alias)
        .nest(IFLA_LINKINFO, hairpin);
    let none = |m: Message| m.attr(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
    let up = if pair.v6 { up.nest(IFLA_AF_SPEC, |m| m.nest(u16::from(AF_INET6), none)) } else { up };
    socket.done(vec![make, up])
}

/// Removes an interface; one that is gone is no error.
pub(super) fn delete(socket: &mut Socket, name: &str) -> Result<()> {
    let message = Message::new(RTM_DELLINK, ACK, format!("remove interface {name}"));
    let message = message.raw(&ifinfo(0, 0, false)).text(IFLA_IFNAME, name);
    let refused = socket.send(vec![message])?.into_iter().find(|(_, refusal)| refusal.errno != ENODEV);
    refused.map_or(Ok(()), |(_, refusal)| Err(refusal.into()))
}

/// struct ifaddrmsg and the address. A lease is nobody else's: no detection of duplicates.
fn add_address(index: u32, name: &str, address: IpAddr, prefix: u8) -> Message {
    let mut header = [family(address), prefix, IFA_F_NODAD, RT_SCOPE_UNIVERSE, 0, 0, 0, 0];
    header[4..].copy_from_slice(&index.to_ne_bytes());
    let octets = octets(address);
    Message::new(RTM_NEWADDR, CREATE | EXCL | ACK, format!("add address {address}/{prefix} to {name}"))
        .raw(&header)
        .attr(IFA_LOCAL, &octets)
        .attr(IFA_ADDRESS, &octets)
}

/// struct rtmsg and the route of everything to a gateway.
fn add_default(index: u32, gateway: IpAddr) -> Message {
    let header = [family(gateway), 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_UNICAST, 0, 0, 0, 0];
    Message::new(RTM_NEWROUTE, CREATE | APPEND | ACK, format!("add the default route by {gateway}"))
        .raw(&header)
        .attr(RTA_GATEWAY, &octets(gateway))
        .attr(RTA_OIF, &index.to_ne_bytes())
}

/// An address of a pod: itself, the length of its prefix, and the gateway.
#[derive(Debug, Clone, Copy)]
pub(super) struct Address {
    pub ip: IpAddr,
    pub prefix: u8,
    pub gateway: IpAddr,
}

/// Brings up an interface of the socket's namespace, with its addresses and the default routes by it.
pub(super) fn configure(socket: &mut Socket, interface: &str, addresses: &[Address]) -> Result<()> {
    let link = get(socket, interface)?;
    let index = link.ok_or_else(|| Error::precondition(format!("{interface} is gone from the pod")))?.index;
    let up = Message::new(RTM_SETLINK, ACK, format!("bring up {interface}")).raw(&ifinfo(0, index, true));
    let set = addresses.iter().map(|address| add_address(index, interface, address.ip, address.prefix));
    let routes = addresses.iter().map(|address| add_default(index, address.gateway));
    socket.done([up].into_iter().chain(set).chain(routes).collect())
}

/// A route of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    /// `None`: everything.
    pub to: Option<Subnet>,
    /// The interface; 0 for one that leads nowhere.
    pub index: u32,
    /// It is an address of the host, not a way to others.
    pub local: bool,
}

/// The host's routes of one family, in every table.
pub(super) fn routes(socket: &mut Socket, v6: bool) -> Result<Vec<Route>> {
    let ours = if v6 { AF_INET6 } else { AF_INET };
    let mut header = [0; 12];
    header[0] = ours;
    let ask = Message::new(RTM_GETROUTE, DUMP, "list routes").raw(&header);
    let answers = socket.ask(ask)?.map_err(Error::from)?;
    let route = |body: &[u8]| {
        let (header, attributes) = body.split_first_chunk::<12>()?;
        let [family, prefix, .., kind, _, _, _, _] = *header;
        if family != ours || !matches!(kind, RTN_UNICAST | RTN_LOCAL) {
            return None; // broadcast and multicast addresses, and what is unreachable
        }
        let attributes = Attributes(attributes);
        let to = match attributes.get(RTA_DST) {
            None => None,
            Some(bytes) => Some(Subnet { address: address(bytes)?, prefix }),
        };
        Some(Route { to, index: attributes.get(RTA_OIF).map_or(0, word), local: kind == RTN_LOCAL })
    };
    Ok(answers.iter().filter(|answer| answer.kind == RTM_NEWROUTE).filter_map(|answer| route(&answer.body)).collect())
}

/// An address from its bytes.
pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hardware_address_is_local_and_says_the_ip_address() {
        let mac = hardware_address("10.118.1.2".parse().expect("ip"));
        assert_eq!(mac, [0x0a, 0x70, 10, 118, 1, 2]);
        assert_eq!(mac[0] & 3, 2, "locally administered, and of one");
        assert_eq!(hardware_address("fd00::1:2".parse().expect("ip"))[2..], [0, 1, 0, 2]);
    }

    #[test]
    fn an_interface_is_read_from_its_attributes() {
        let mut body = ifinfo(0, 7, true).to_vec();
        for (kind, value) in [(IFLA_IFNAME, b"p0\0\0".as_slice()), (IFLA_MTU, &1400u32.to_ne_bytes())] {
            body.extend(8u16.to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(value);
        }
        let link = link(&body).expect("whole");
        assert_eq!((link.index, link.name.as_str(), link.mtu, link.master), (7, "p0", 1400, 0));
        assert_eq!(super::link(&body[..15]), None);
    }
}
