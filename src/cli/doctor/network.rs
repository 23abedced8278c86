//! The network of pods: does the built-in bridge work here, and what of the host is in its way; on CNI, is there a network, are its
//! programs there, and what do they say themselves (STATUS).

use super::{Finding, Verdict, read};
use crate::config::Settings;
use crate::config::network::{NetworkMode, NetworkSettings};
use crate::network::cni::{Cni, Places};
use crate::network::{Status, bridge};
use crate::state::paths::Paths;
use crate::sys::is_root;

const AREA: &str = "network";

pub(super) fn check(settings: &Settings) -> Vec<Finding> {
    let network = &settings.network;
    let mut findings = vec![mode(network)];
    let paths = Paths { root: settings.root.clone(), state: settings.state.clone(), instance: None };
    let cni = Cni::new(Places::of(network), paths);
    match network.mode {
        NetworkMode::None => return findings,
        NetworkMode::Auto if !cni.is_configured() => {}
        NetworkMode::Auto | NetworkMode::Cni => {
            findings.extend(on_cni(&cni));
            return findings;
        }
        NetworkMode::Bridge => {}
    }
    if !is_root() {
        let finding = Finding::ok(AREA, "bridge", "not tried without root", BRIDGE_WHY);
        findings.push(finding.but(Verdict::Warn, "run doctor as root"));
        return findings;
    }
    findings.push(works(network));
    findings.push(range(network));
    findings.push(forwarding(&network.bridge));
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

/// Nothing is attached: only STATUS is asked, of plugins that have it.
fn on_cni(cni: &Cni) -> Vec<Finding> {
    let (found, lacking) = cni.look();
    let why = "pods are connected to the first valid network by the name of its file";
    let finding = Finding::ok(AREA, "CNI network", "there is none", why);
    let Some((file, network)) = found.network else {
        let told = ask(cni).unwrap_or_else(|| "there is none".to_owned());
        let remedy = "install a network add-on, or set network.mode = \"bridge\"";
        return vec![Finding { found: told, ..finding }.but(Verdict::Fail, remedy)];
    };
    let plugins: Vec<&str> = network.plugins.iter().map(|plugin| plugin.program.as_str()).collect();
    let what = format!("{} of {}: {}", network.name, file.display(), plugins.join(", "));
    let mut findings = vec![match found.skipped.as_slice() {
        [] => Finding { found: what, ..finding },
        skipped => Finding { found: format!("{what}; not valid before it: {}", skipped.join("; ")), ..finding }
            .but(Verdict::Warn, "repair those files, or remove them"),
    }];
    let finding = Finding::ok(AREA, "CNI plugins", "there, and ready", "each pod is attached by executing them");
    findings.push(match (lacking.as_slice(), ask(cni)) {
        ([], None) => finding,
        ([], Some(why)) => {
            Finding { found: why, ..finding }.but(Verdict::Fail, "see what the add-on says: its pods, its log")
        }
        (lacking, _) => Finding { found: lacking.join("; "), ..finding }
            .but(Verdict::Fail, "apt-get install containernetworking-plugins has the usual ones"),
    });
    // That plugin opens the way itself.
    let bridges = network.bridges().filter(|_| is_root() && !plugins.contains(&"firewall"));
    findings.extend(bridges.map(forwarding));
    findings
}

/// Why pods cannot be attached; `None`: they can.
fn ask(cni: &Cni) -> Option<String> {
    let status = crate::cli::runtime().map(|runtime| runtime.block_on(cni.status()));
    match status {
        Ok(Status::Ready) => None,
        Ok(Status::NotReady(why)) => Some(why),
        Err(e) => Some(e.to_string()),
    }
}

/// What a host firewall drops, no other table can accept.
fn forwarding(name: &str) -> Finding {
    let why = "pods reach others, and are reached at host ports, by what this host forwards";
    let finding = Finding::ok(AREA, "host firewall", "forwards what it does not know", why);
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
