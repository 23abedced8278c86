//! dnsPolicy and hostname: what of a pod's /etc is decided here. The texts of the files are the engine's.
//!
//! Sources: pkg/kubelet/network/dns/dns.go, pkg/kubelet/kubelet_pods.go.

use super::pod::{DnsConfig, DnsPolicy, PodSpec};
use crate::state::model::Dns;

/// What reaches resolv.conf (validation.go).
const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_BYTES: usize = 2048;
/// Bytes of a kernel hostname that Kubernetes uses; uname(2) has 64.
const MAX_HOSTNAME: usize = 63;

/// The pod's resolv.conf; `None`: a copy of the host's. No cluster DNS is configured here, so ClusterFirst means the host's too,
/// as for a kubelet without clusterDNS.
pub fn dns(spec: &PodSpec, host_resolv_conf: &str) -> Option<Dns> {
    let config = &spec.dns_config;
    let mut dns = match spec.dns_policy {
        DnsPolicy::None => Dns::default(),
        _ if *config == DnsConfig::default() => return None,
        _ => parse(host_resolv_conf),
    };
    let add = |list: &mut Vec<String>, more: &[String]| {
        for item in more {
            if !list.contains(item) {
                list.push(item.clone());
            }
        }
    };
    add(&mut dns.servers, &config.nameservers);
    add(&mut dns.searches, &config.searches);
    for (name, value) in &config.options {
        dns.options.retain(|o| o.split(':').next() != Some(name));
        dns.options.push(value.as_ref().map_or_else(|| name.clone(), |v| format!("{name}:{v}")));
    }
    dns.servers.truncate(MAX_SERVERS);
    dns.searches.truncate(MAX_SEARCHES);
    while dns.searches.join(" ").len() > MAX_SEARCH_BYTES {
        dns.searches.pop();
    }
    Some(dns)
}

/// resolv.conf(5): the last `search` counts, servers and options add up.
fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_whitespace().take_while(|w| !w.starts_with(['#', ';']));
        match words.next() {
            Some("nameserver") => dns.servers.extend(words.next().map(str::to_owned)),
            Some("search" | "domain") => dns.searches = words.map(|w| trim_dot(w).to_owned()).collect(),
            Some("options") => dns.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    dns
}

/// `a.b.` as `a.b`; the root stays.
fn trim_dot(name: &str) -> &str {
    if name == "." { name } else { name.trim_end_matches('.') }
}

/// The hostname; empty on the host's network, where the node's name is shown.
pub fn hostname(spec: &PodSpec, pod_name: &str) -> String {
    if spec.host_network {
        return String::new();
    }
    let name = spec.hostname_override.as_deref().or(spec.hostname.as_deref()).unwrap_or(pod_name);
    // Names were checked to be ASCII.
    name.get(..MAX_HOSTNAME).unwrap_or(name).trim_end_matches(['-', '.']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str =
        "# c\nnameserver 10.0.0.1\nnameserver 10.0.0.2 # x\nsearch a.example. b.example\noptions ndots:2 rotate\n";

    fn spec(policy: DnsPolicy, servers: &[&str], options: &[(&str, Option<&str>)]) -> PodSpec {
        let options = options.iter().map(|(n, v)| ((*n).to_owned(), v.map(str::to_owned))).collect();
        let nameservers = servers.iter().map(|s| (*s).to_owned()).collect();
        let dns_config = DnsConfig { nameservers, options, ..DnsConfig::default() };
        PodSpec { dns_policy: policy, dns_config, ..PodSpec::default() }
    }

    #[test]
    fn without_a_config_the_hosts_file_is_copied() {
        for policy in [DnsPolicy::ClusterFirst, DnsPolicy::ClusterFirstWithHostNet, DnsPolicy::Default] {
            assert_eq!(dns(&spec(policy, &[], &[]), HOST), None);
        }
    }

    #[test]
    fn a_config_adds_servers_and_overrides_options_by_name() {
        let dns = dns(&spec(DnsPolicy::Default, &["10.0.0.1", "1.1.1.1", "8.8.8.8"], &[("ndots", Some("5"))]), HOST);
        let dns = dns.expect("made");
        assert_eq!(dns.servers, ["10.0.0.1", "10.0.0.2", "1.1.1.1"], "no doubles, three at most");
        assert_eq!(
            (dns.searches.join(" "), dns.options.join(" ")),
            ("a.example b.example".into(), "rotate ndots:5".into())
        );
    }

    #[test]
    fn policy_none_takes_nothing_of_the_host() {
        let dns = dns(&spec(DnsPolicy::None, &["1.1.1.1"], &[("edns0", None)]), HOST).expect("made");
        assert_eq!(
            (dns.servers.join(" "), dns.searches.len(), dns.options.join(" ")),
            ("1.1.1.1".into(), 0, "edns0".into())
        );
    }

    #[test]
    fn the_hostname_is_cut_where_kubernetes_cuts_it() {
        let long = format!("{}-{}", "a".repeat(62), "b".repeat(20));
        assert_eq!(hostname(&PodSpec::default(), &long), "a".repeat(62));
        let named = PodSpec { hostname: Some("h".into()), ..PodSpec::default() };
        assert_eq!(hostname(&named, "p"), "h");
        assert_eq!(hostname(&PodSpec { hostname_override: Some("o".into()), ..named }, "p"), "o");
        assert_eq!(hostname(&PodSpec { host_network: true, ..PodSpec::default() }, "p"), "");
    }
}
