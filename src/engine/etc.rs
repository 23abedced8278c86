//! The texts of a pod's own /etc/hosts, /etc/hostname and /etc/resolv.conf. Pure; `run_pod` writes them.

use crate::error::{Error, Result};
use crate::state::model::{Dns, HostAlias, PodConfig};
use std::fmt::Write;
use std::net::IpAddr;

/// The most name servers that reach resolv.conf: MAXNS of resolv.conf(5).
const MAX_SERVERS: usize = 3;
/// The most search domains, as Kubernetes has it (KEP-2595).
const MAX_SEARCHES: usize = 32;
/// The longest search list in characters, as Kubernetes has it.
const MAX_SEARCH_CHARS: usize = 2048;

/// A word for a line of one of these files: printable, no blanks, no comment sign.
fn word<'a>(field: &str, text: &'a str) -> Result<&'a str> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
        return Ok(text);
    }
    Err(Error::invalid(format!("{field} {text:?} must be printable ASCII without blanks or '#'")))
}

/// resolv.conf(5): `search`, `nameserver`, `options`, in that order as containerd writes it.
///
/// # Errors
/// `InvalidArgument` for an entry that is no word, or for more of them than the file may have.
pub fn resolv_conf(dns: &Dns) -> Result<String> {
    if dns.servers.len() > MAX_SERVERS {
        return Err(Error::invalid(format!(
            "{} name servers; resolv.conf has room for {MAX_SERVERS}",
            dns.servers.len()
        )));
    }
    let search = dns.searches.iter().map(|s| word("dns search domain", s)).collect::<Result<Vec<_>>>()?.join(" ");
    if dns.searches.len() > MAX_SEARCHES || search.len() > MAX_SEARCH_CHARS {
        return Err(Error::invalid(format!(
            "{} dns search domains of {} characters together; at most {MAX_SEARCHES} of {MAX_SEARCH_CHARS}",
            dns.searches.len(),
            search.len()
        )));
    }
    let mut text = String::new();
    if !search.is_empty() {
        line(&mut text, format_args!("search {search}"));
    }
    for server in &dns.servers {
        if server.parse::<std::net::IpAddr>().is_err() {
            return Err(Error::invalid(format!("dns server {server:?} is not an IP address")));
        }
        line(&mut text, format_args!("nameserver {server}"));
    }
    if !dns.options.is_empty() {
        let options = dns.options.iter().map(|o| word("dns option", o)).collect::<Result<Vec<_>>>()?.join(" ");
        line(&mut text, format_args!("options {options}"));
    }
    Ok(text)
}

/// The host's resolv.conf for a pod with a network of its own. What listens on the host's loopback (127.0.0.53 of systemd-resolved, dnsmasq) is
/// out of a pod's reach: of such a file `resolved` is taken, systemd-resolved's with its own servers, as kubeadm has a kubelet do; and where
/// there is none, what is left without those servers.
pub fn host_resolv_conf(host: &str, resolved: Option<&str>) -> String {
    let loopback = |line: &str| {
        let mut words = line.split_whitespace();
        words.next() == Some("nameserver")
            && words.next().and_then(|ip| ip.parse::<IpAddr>().ok()).is_some_and(|ip| ip.is_loopback())
    };
    if !host.lines().any(loopback) {
        return host.to_owned();
    }
    let reachable = |text: &&str| {
        text.lines().any(|line| line.trim_start().starts_with("nameserver")) && !text.lines().any(loopback)
    };
    match resolved.filter(reachable) {
        Some(text) => text.to_owned(),
        None => {
            let left = host.lines().filter(|line| !loopback(line));
            let why = "# A name server on the host's loopback is left out: pods cannot reach it (see dnsConfig).";
            std::iter::once(why).chain(left).map(|line| format!("{line}\n")).collect()
        }
    }
}

fn line(text: &mut String, words: std::fmt::Arguments<'_>) {
    let _ = writeln!(text, "{words}"); // a String takes everything
}

/// /etc/hosts as the kubelet manages it: the loopback names, the pod's addresses, the aliases.
///
/// With the host's network it is the node's file (`node`) and the aliases.
///
/// # Errors
/// `InvalidArgument` for an alias that is no address or name.
pub fn hosts(pod: &PodConfig, addresses: &[IpAddr], node: Option<&str>) -> Result<String> {
    let mut text = match node {
        Some(node) => format!("# The node's /etc/hosts, copied by podwright for this pod.\n{}\n", node.trim_end()),
        None => "# Made by podwright for this pod.\n\
                 127.0.0.1\tlocalhost\n\
                 ::1\tlocalhost ip6-localhost ip6-loopback\n\
                 fe00::0\tip6-localnet\n\
                 fe00::0\tip6-mcastprefix\n\
                 fe00::1\tip6-allnodes\n\
                 fe00::2\tip6-allrouters\n"
            .to_owned(),
    };
    if node.is_none() && !pod.hostname.is_empty() {
        let name = word("hostname", &pod.hostname)?;
        // A pod without an address of its own still has to find itself by name; Debian's 127.0.1.1 is the custom for that.
        let itself = [IpAddr::from([127, 0, 1, 1])];
        for address in if addresses.is_empty() { &itself } else { addresses } {
            line(&mut text, format_args!("{address}\t{name}"));
        }
    }
    if !pod.host_aliases.is_empty() {
        text.push_str("\n# From hostAliases.\n");
    }
    for HostAlias { ip, hostnames } in &pod.host_aliases {
        if ip.parse::<std::net::IpAddr>().is_err() {
            return Err(Error::invalid(format!("hostAliases ip {ip:?} is not an IP address")));
        }
        let names = hostnames.iter().map(|n| word("hostAliases hostname", n)).collect::<Result<Vec<_>>>()?;
        line(&mut text, format_args!("{ip}\t{}", names.join("\t")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_has_search_servers_and_options_in_this_order() {
        let dns = Dns {
            servers: vec!["10.0.0.10".into(), "fd00::a".into()],
            searches: vec!["ns.svc.cluster.local".into(), "cluster.local".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(
            resolv_conf(&dns).expect("valid"),
            "search ns.svc.cluster.local cluster.local\nnameserver 10.0.0.10\nnameserver fd00::a\noptions ndots:5\n"
        );
    }

    #[test]
    fn what_would_start_another_line_is_refused() {
        let inject = |s: &str| Dns { searches: vec![s.into()], ..Dns::default() };
        assert!(resolv_conf(&inject("a\nnameserver 6.6.6.6")).is_err());
        assert!(resolv_conf(&Dns { servers: vec!["example.org".into()], ..Dns::default() }).is_err());
        assert!(resolv_conf(&Dns { servers: vec!["1.1.1.1".into(); 4], ..Dns::default() }).is_err());
        let alias = |ip: &str, name: &str| PodConfig {
            host_aliases: vec![HostAlias { ip: ip.into(), hostnames: vec![name.into()] }],
            ..PodConfig::default()
        };
        assert!(hosts(&alias("1.2.3.4", "a b"), &[], None).is_err());
        assert!(hosts(&alias("x", "a"), &[], None).is_err());
    }

    #[test]
    fn a_name_server_on_the_hosts_loopback_is_none_of_a_pods() {
        let plain = "nameserver 10.0.0.1\nsearch a\n";
        assert_eq!(host_resolv_conf(plain, Some("nameserver 1.1.1.1\n")), plain);
        let stub = "nameserver 127.0.0.53\noptions edns0\nsearch a\n";
        assert_eq!(host_resolv_conf(stub, Some(plain)), plain);
        for resolved in [None, Some(stub), Some("")] {
            let text = host_resolv_conf(stub, resolved);
            assert!(text.ends_with("\noptions edns0\nsearch a\n") && !text.contains("127."), "{text}");
        }
        assert!(!host_resolv_conf("nameserver ::1\nnameserver 10.0.0.1\n", None).contains("::1"));
    }

    #[test]
    fn hosts_names_the_pod_and_its_aliases() {
        let pod = PodConfig {
            hostname: "web".into(),
            host_aliases: vec![HostAlias { ip: "10.1.2.3".into(), hostnames: vec!["a".into(), "b".into()] }],
            ..PodConfig::default()
        };
        let ips = ["10.118.0.2", "fd00::2"].map(|ip| ip.parse().expect("ip"));
        let text = hosts(&pod, &ips, None).expect("valid");
        assert!(text.contains("127.0.0.1\tlocalhost\n") && text.contains("10.118.0.2\tweb\nfd00::2\tweb\n"), "{text}");
        assert!(text.ends_with("# From hostAliases.\n10.1.2.3\ta\tb\n"), "{text}");
        assert!(hosts(&pod, &[], Some("127.0.0.1 node\n")).expect("valid").contains("127.0.0.1 node\n"));
    }
}
