//! The network of pods: does the built-in bridge work here, and what of the host is in its way. What plugins of CNI need is theirs to tell.

use super::{Finding, Verdict, read};
use crate::config::Settings;
use crate::config::network::{NetworkMode, NetworkSettings};
use crate::network::bridge;
use crate::sys::is_root;

const AREA: &str = "network";

pub(super) fn check(settings: &Settings) -> Vec<Finding> {
    let network = &settings.network;
    let mut findings = vec![mode(network)];
    if matches!(network.mode, NetworkMode::None | NetworkMode::Cni) {
        return findings;
    }
    if !is_root() {
        let finding = Finding::ok(AREA, "bridge", "not tried without root", BRIDGE_WHY);
        findings.push(finding.but(Verdict::Warn, "run doctor as root"));
        return findings;
    }
    findings.push(works(network));
    findings.push(range(network));
    findings.push(forwarding(network));
    findings.push(loopback());
    findings
}

const BRIDGE_WHY: &str = "pods are connected by a bridge, pairs of interfaces and a table of nftables";

fn mode(network: &NetworkSettings) -> Finding {
    let word = match network.mode {
        NetworkMode::Auto => "auto: CNI when a conflist is there, else the bridge",
        NetworkMode::Bridge => "bridge",
        NetworkMode::Cni => "cni",
        NetworkMode::None => "none: a pod has its own loopback, or the host's network",
    };
    Finding::ok(AREA, "network.mode", word, "what a pod is connected to that does not ask for the host's network")
}

/// Tried in a namespace of its own: nothing of the host changes.
fn works(network: &NetworkSettings) -> Finding {
    let finding = Finding::ok(AREA, "bridge, veth, nftables", "works", BRIDGE_WHY);
    match bridge::attempt(network) {
        Ok(()) => finding,
        Err(e) => Finding { found: e.to_string(), ..finding }.but(
            Verdict::Fail,
            "modprobe bridge veth nf_tables nft_chain_nat nft_fib_inet nft_masq; or network.mode none",
        ),
    }
}

fn range(network: &NetworkSettings) -> Finding {
    let subnets = [network.subnet4, network.subnet6].into_iter().flatten();
    let ranges: Vec<String> = subnets.map(|subnet| subnet.to_string()).collect();
    let why = "a range that the host has a way to already would be cut off from it";
    let finding = Finding::ok(AREA, "addresses", ranges.join(" and "), why);
    match bridge::check_ranges(network) {
        Ok(()) => finding,
        Err(e) => Finding { found: e.to_string(), ..finding }
            .but(Verdict::Fail, "network.subnet4 and network.subnet6 of their own in the configuration"),
    }
}

/// What a host firewall drops, no other table can accept.
fn forwarding(network: &NetworkSettings) -> Finding {
    let why = "pods reach others, and are reached at host ports, by what this host forwards";
    let finding = Finding::ok(AREA, "host firewall", "forwards what it does not know", why);
    let name = &network.bridge;
    let blockers = match bridge::blockers(name) {
        Ok(blockers) => blockers,
        Err(e) => return Finding { found: e.to_string(), ..finding }.but(Verdict::Warn, "see the kernel's area"),
    };
    if let Some(blocker) = blockers.first() {
        let chains: Vec<String> = blockers.iter().map(|b| format!("chain {} of table {}", b.chain, b.table)).collect();
        let bridge::Blocker { table, chain } = blocker;
        let remedy = format!(
            "nft insert rule {table} {chain} iifname {name} accept; nft insert rule {table} {chain} oifname {name} accept (with Docker: iptables -I DOCKER-USER -i {name} -j ACCEPT, and -o)"
        );
        let found = format!("{} drops what it does not know, and knows nothing of {name}", chains.join(", "));
        return Finding { found, ..finding }.but(Verdict::Warn, remedy);
    }
    let legacy = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"]
        .iter()
        .any(|path| read(path).is_ok_and(|tables| tables.lines().any(|table| table == "filter")));
    if legacy {
        let found = "iptables-legacy has a filter table, which cannot be looked into from here";
        let remedy = format!(
            "where `iptables-legacy -S FORWARD` says DROP: iptables-legacy -I FORWARD -i {name} -j ACCEPT, and -o"
        );
        return Finding { found: found.to_owned(), ..finding }.but(Verdict::Warn, remedy);
    }
    finding
}

/// Told and no warning: nothing but `[::1]` is different.
fn loopback() -> Finding {
    let on = read("/proc/sys/net/bridge/bridge-nf-call-ip6tables").is_ok_and(|value| value == "1");
    let found = if on {
        "127.0.0.1 leads to pods, [::1] does not: net.bridge.bridge-nf-call-ip6tables is on"
    } else {
        "127.0.0.1 and [::1] lead to pods"
    };
    Finding::ok(AREA, "host ports on loopback", found, "a host port is reached from the host itself as from others")
}
