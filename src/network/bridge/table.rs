//! What the bridge's nftables table says.
//!
//! ```text
//!   table inet podwright0 {
//!     map ports4   { inet_proto . inet_service : ipv4_addr . inet_service }                  host port -> the pod's address and port
//!     map ports4at { ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service }      the same with a hostIP
//!     map ports6, ports6at                                                                   the same of IPv6
//!     chain prerouting, output  { type nat priority dstnat;  fib daddr type local jump ports }
//!     chain ports        dnat to what the maps say, hostIP first
//!     chain postrouting { type nat priority srcnat
//!       from a pod to a pod, redirected           masquerade   the answer must come back this way: pods are neighbours
//!       from 127.0.0.0/8 or ::1 to the bridge     masquerade   the host itself, by loopback
//!       from a pod to anywhere but the bridge     masquerade }
//!     chain raw { type filter hook prerouting priority raw
//!       from the bridge, to or from 127.0.0.0/8   drop }       see below
//!   }
//! ```
//! So a pod more is elements more, and the rules stay. There is no forward chain: to accept in one does not overrule another table that
//! drops; `doctor` names such a table.
//!
//! **127.0.0.1.** A connection of the host to 127.0.0.1 at a host port leaves by the bridge, and its answer comes back by it: the kernel takes
//! neither unless `route_localnet` is on there. With it, and nothing else, a pod could reach what listens on the host's loopback (that was
//! CVE-2020-8558 in Kubernetes). So it is on for the bridge alone, and the chain `raw` drops what has a loopback address when it comes in from
//! there: an answer has not, at that point, for it is addressed to the bridge until connection tracking puts the loopback address back.
//! A proxy process for each port would be the other way, and cost a process.
//!
//! **::1.** There is no such switch for IPv6, but a route does it: the kernel takes a packet to ::1 from an interface by which it has a local
//! route of ::1. What has that address already when it comes in, the kernel drops by itself. It drops the answers too where the sysctl
//! net.bridge.bridge-nf-call-ip6tables is on (kube-proxy wants it), for then they get their old address before the kernel has looked:
//! there `[::1]` does not lead to pods, and `doctor` says so.

use super::nft::{Batch, Hook, Ip, Map, Rule};
use crate::config::network::Subnet;
use crate::network::{HostPort, Protocol};
use std::net::IpAddr;

// libnftables, datatype.h.
const IPADDR: u32 = 7;
const IP6ADDR: u32 = 8;
const INET_PROTOCOL: u32 = 12;
const INET_SERVICE: u32 = 13;

const fn pair(a: u32, b: u32) -> u32 {
    a << 6 | b
}

pub(super) const PORTS4: Map =
    Map { name: "ports4", key: (pair(INET_PROTOCOL, INET_SERVICE), 8), data: (pair(IPADDR, INET_SERVICE), 8) };
pub(super) const PORTS4_AT: Map = Map {
    name: "ports4at",
    key: (pair(pair(IPADDR, INET_PROTOCOL), INET_SERVICE), 12),
    data: (pair(IPADDR, INET_SERVICE), 8),
};
pub(super) const PORTS6: Map =
    Map { name: "ports6", key: (pair(INET_PROTOCOL, INET_SERVICE), 8), data: (pair(IP6ADDR, INET_SERVICE), 20) };
pub(super) const PORTS6_AT: Map = Map {
    name: "ports6at",
    key: (pair(pair(IP6ADDR, INET_PROTOCOL), INET_SERVICE), 24),
    data: (pair(IP6ADDR, INET_SERVICE), 20),
};
pub(super) const MAPS: [&Map; 4] = [&PORTS4, &PORTS4_AT, &PORTS6, &PORTS6_AT];

// linux/netfilter.h, and linux/netfilter_ipv4.h for the priorities.
const NF_INET_PRE_ROUTING: u32 = 0;
pub(super) const NF_INET_FORWARD: u32 = 2;
const NF_INET_LOCAL_OUT: u32 = 3;
const NF_INET_POST_ROUTING: u32 = 4;
const NF_IP_PRI_RAW: i32 = -300;
const NF_IP_PRI_NAT_DST: i32 = -100;
const NF_IP_PRI_NAT_SRC: i32 = 100;

/// The whole table without elements; those that are there stay.
pub(super) fn whole<'a>(batch: &mut Batch<'a>, bridge: &'a str, subnets: &[Subnet]) {
    batch.table();
    MAPS.iter().for_each(|map| batch.map(map));
    let nat = |hook, priority| Some(Hook { kind: "nat", hook, priority });
    batch.chain("ports", None);
    batch.chain("prerouting", nat(NF_INET_PRE_ROUTING, NF_IP_PRI_NAT_DST));
    batch.chain("output", nat(NF_INET_LOCAL_OUT, NF_IP_PRI_NAT_DST));
    batch.chain("postrouting", nat(NF_INET_POST_ROUTING, NF_IP_PRI_NAT_SRC));
    batch.chain("raw", Some(Hook { kind: "filter", hook: NF_INET_PRE_ROUTING, priority: NF_IP_PRI_RAW }));
    for chain in ["prerouting", "output"] {
        batch.rule(chain, Rule::new().addressed_to_host().jump("ports"));
    }
    for (ip, at, all) in [(Ip::V4, PORTS4_AT.name, PORTS4.name), (Ip::V6, PORTS6_AT.name, PORTS6.name)] {
        batch.rule("ports", Rule::new().family(ip).redirect(ip, at, true));
        batch.rule("ports", Rule::new().family(ip).redirect(ip, all, false));
    }
    for subnet in subnets {
        let (ip, network) = split(subnet.address);
        let (loopback, bits, group) = match ip {
            Ip::V4 => (vec![127, 0, 0, 0], 8, vec![224, 0, 0, 0]),
            Ip::V6 => (std::net::Ipv6Addr::LOCALHOST.octets().to_vec(), 128, [&[0xff][..], &[0; 15]].concat()),
        };
        let of_a_pod = || Rule::new().family(ip).source(ip, network.clone(), subnet.prefix);
        let to_a_pod = of_a_pod().destination(ip, network.clone(), subnet.prefix, true);
        batch.rule("postrouting", to_a_pod.redirected().masquerade());
        let by_loopback = Rule::new().family(ip).going_to(bridge, true).source(ip, loopback.clone(), bits);
        batch.rule("postrouting", by_loopback.masquerade());
        let group_bits = if ip == Ip::V4 { 4 } else { 8 };
        let outside = of_a_pod().going_to(bridge, false).destination(ip, group, group_bits, false);
        batch.rule("postrouting", outside.masquerade());
        if ip == Ip::V4 {
            let from = || Rule::new().coming_from(bridge).family(ip);
            batch.rule("raw", from().destination(ip, loopback.clone(), bits, true).drop());
            batch.rule("raw", from().source(ip, loopback, bits).drop());
        }
    }
}

fn split(address: IpAddr) -> (Ip, Vec<u8>) {
    match address {
        IpAddr::V4(ip) => (Ip::V4, ip.octets().to_vec()),
        IpAddr::V6(ip) => (Ip::V6, ip.octets().to_vec()),
    }
}

/// An element: its map, key and value.
pub(super) type Element = (&'static Map, Vec<u8>, Vec<u8>);

/// The elements that a host port of a pod with these addresses is: one for each of its families in which it has an address of the host.
pub(super) fn elements(port: &HostPort, ips: &[IpAddr]) -> Vec<Element> {
    let protocol = match port.protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    };
    let padded = |number: u16| [&number.to_be_bytes()[..], &[0, 0]].concat();
    let service = [&[protocol, 0, 0, 0][..], &padded(port.host_port)].concat();
    let element = |ip: &IpAddr| {
        let (family, octets) = split(*ip);
        let (at, all) = if family == Ip::V4 { (&PORTS4_AT, &PORTS4) } else { (&PORTS6_AT, &PORTS6) };
        let data = [octets, padded(port.container_port)].concat();
        match port.host_ip.map(split) {
            None => Some((all, service.clone(), data)),
            Some((of, host)) if of == family => Some((at, [host, service.clone()].concat(), data)),
            Some(_) => None,
        }
    };
    ips.iter().filter_map(element).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(host_ip: Option<&str>) -> HostPort {
        let host_ip = host_ip.map(|ip| ip.parse().expect("ip"));
        HostPort { protocol: Protocol::Udp, container_port: 80, host_port: 0x1f90, host_ip }
    }

    #[test]
    fn a_host_port_is_an_element_in_each_family_that_its_address_is_of() {
        let ips: [IpAddr; 2] = ["10.118.0.2", "fd00::2"].map(|ip| ip.parse().expect("ip"));
        let all = elements(&port(None), &ips);
        assert_eq!(all.iter().map(|(map, _, _)| map.name).collect::<Vec<_>>(), ["ports4", "ports6"]);
        assert_eq!(all[0].1, [17, 0, 0, 0, 0x1f, 0x90, 0, 0]);
        assert_eq!(all[0].2, [10, 118, 0, 2, 0, 80, 0, 0]);
        for (map, key, data) in elements(&port(Some("127.0.0.1")), &ips).into_iter().chain(all) {
            assert_eq!((key.len(), data.len()), (map.key.1 as usize, map.data.1 as usize), "{}", map.name);
        }
        let six = elements(&port(Some("::1")), &ips);
        assert_eq!((six.len(), six[0].0.name, six[0].1.len()), (1, "ports6at", 24));
    }
}
