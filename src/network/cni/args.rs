//! What the runtime tells plugins of a pod: CNI_ARGS, capability arguments, and the configuration that each gets on its standard input.
//! Pure. Conventions: CONVENTIONS.md of the CNI project, and what kubelet's runtimes have always given.

use super::conf::Plugin;
use super::version::Version;
use crate::config::network::Subnet;
use crate::error::{Error, Result};
use crate::network::Request;
use serde_json::{Map, Value, json};
use std::net::IpAddr;

/// Which addresses a pod asks for, with commas between them: given to plugins with the capability `ips`.
pub const IPS_ANNOTATION: &str = "podwright.dev/ips";
/// Which MAC address a pod asks for: given to plugins with the capability `mac`.
pub const MAC_ANNOTATION: &str = "podwright.dev/mac";
/// Bits that may go at once beyond the rate, as containerd has it: as many as the plugin can say.
const BURST: u32 = u32::MAX;
/// Addresses a pod may ask for.
const MAX_IPS: usize = 16;

/// `CNI_ARGS`. Names were checked when the pod was: there is no `;` or `=` in them.
pub fn cni_args(request: &Request) -> String {
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
        request.namespace, request.name, request.pod, request.uid
    )
}

/// What can be said of the pod, by capability. A plugin gets what it declares.
///
/// # Errors
/// `InvalidArgument` for an annotation that is no address.
pub fn capabilities(request: &Request, pod_cidr: &[Subnet]) -> Result<Map<String, Value>> {
    let mut all = Map::new();
    let mut put = |name: &str, value: Value| all.insert(name.to_owned(), value);
    if !request.ports.is_empty() {
        let port = |port: &crate::network::HostPort| {
            json!({
                "hostPort": port.host_port,
                "containerPort": port.container_port,
                "protocol": port.protocol.name(),
                "hostIP": port.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
            })
        };
        put("portMappings", request.ports.iter().map(port).collect());
    }
    let mut bandwidth = Map::new();
    for (way, rate) in [("ingress", request.bandwidth.ingress), ("egress", request.bandwidth.egress)] {
        if let Some(rate) = rate {
            bandwidth.insert(format!("{way}Rate"), rate.into());
            bandwidth.insert(format!("{way}Burst"), BURST.into());
        }
    }
    if !bandwidth.is_empty() {
        put("bandwidth", bandwidth.into());
    }
    if let Some(dns) = &request.dns {
        put("dns", json!({"servers": dns.servers, "searches": dns.searches, "options": dns.options}));
    }
    if !pod_cidr.is_empty() {
        put("ipRanges", pod_cidr.iter().map(|subnet| json!([{"subnet": subnet.to_string()}])).collect());
    }
    if !request.hostname.is_empty() {
        put("aliases", json!([request.hostname]));
    }
    if !request.cgroup.is_empty() {
        put("cgroupPath", json!(request.cgroup));
    }
    if let Some(text) = request.annotations.get(IPS_ANNOTATION) {
        put("ips", ips(text)?);
    }
    if let Some(text) = request.annotations.get(MAC_ANNOTATION) {
        put("mac", mac(text)?);
    }
    Ok(all)
}

fn ips(text: &str) -> Result<Value> {
    let is_ip = |text: &&str| match text.split_once('/') {
        None => text.parse::<IpAddr>().is_ok(),
        Some((ip, prefix)) => {
            let longest = ip.parse::<IpAddr>().map(|ip| if ip.is_ipv4() { 32 } else { 128 });
            longest.is_ok_and(|longest| prefix.parse::<u8>().is_ok_and(|prefix| prefix <= longest))
        }
    };
    let all: Vec<&str> = text.split(',').map(str::trim).collect();
    if all.len() <= MAX_IPS && all.iter().all(is_ip) {
        return Ok(json!(all));
    }
    Err(Error::invalid(format!("annotation {IPS_ANNOTATION} = {text:?} must be IP addresses with commas between them")))
}

fn mac(text: &str) -> Result<Value> {
    let octet = |octet: &str| octet.len() == 2 && u8::from_str_radix(octet, 16).is_ok();
    if text.split(':').count() == 6 && text.split(':').all(octet) {
        return Ok(json!(text));
    }
    Err(Error::invalid(format!("annotation {MAC_ANNOTATION} = {text:?} must be like c2:11:22:33:44:55")))
}

/// The configuration for one execution (SPEC, "Deriving request configuration"): that of the plugin, with what the runtime says.
pub fn stdin(
    plugin: &Plugin,
    network: &str,
    version: Version,
    previous: Option<&Value>,
    capabilities: &Map<String, Value>,
    more: &[(&str, Value)],
) -> Vec<u8> {
    let mut body = plugin.body.clone();
    body.insert("name".into(), json!(network));
    body.insert("cniVersion".into(), json!(version.as_str()));
    let wanted = capabilities.iter().filter(|(name, _)| plugin.capabilities.contains(*name));
    let wanted: Map<String, Value> = wanted.map(|(name, value)| (name.clone(), value.clone())).collect();
    if !wanted.is_empty() {
        body.insert("runtimeConfig".into(), wanted.into());
    }
    if let Some(previous) = previous {
        body.insert("prevResult".into(), previous.clone());
    }
    body.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    Value::Object(body).to_string().into_bytes()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::id::PodId;
    use crate::network::{Bandwidth, HostPort, Netns, Protocol};
    use crate::state::model::Dns;
    use std::collections::BTreeMap;

    pub(in super::super) fn request(netns: std::path::PathBuf) -> Request {
        Request {
            pod: PodId::random(),
            name: "web".into(),
            namespace: "default".into(),
            uid: "u1".into(),
            netns: Netns { fd: std::fs::File::open("/proc/self/ns/net").expect("netns").into(), path: netns },
            hostname: "web-0".into(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            ports: Vec::new(),
            dns: None,
            bandwidth: Bandwidth::default(),
            cgroup: String::new(),
        }
    }

    fn plugin(text: &str, capabilities: &[&str]) -> Plugin {
        Plugin {
            program: "p".into(),
            capabilities: capabilities.iter().map(|name| (*name).to_owned()).collect(),
            body: serde_json::from_str(text).expect("an object"),
        }
    }

    #[test]
    fn a_plugin_gets_the_capabilities_that_it_declares_and_no_other() {
        let mut request = request("/x".into());
        request.ports.push(HostPort { protocol: Protocol::Udp, container_port: 53, host_port: 5353, host_ip: None });
        request.bandwidth.ingress = Some(1_000_000);
        request.dns = Some(Dns { servers: vec!["10.0.0.10".into()], ..Dns::default() });
        request.cgroup = "/kubepods/pod1".into();
        request.annotations.insert(IPS_ANNOTATION.into(), "10.1.0.9/16, fd00::9".into());
        request.annotations.insert(MAC_ANNOTATION.into(), "c2:11:22:33:44:55".into());
        let ranges = ["10.1.0.0/24".parse().expect("subnet"), "fd00::/64".parse().expect("subnet")];
        let all = capabilities(&request, &ranges).expect("valid");
        let expected = json!({
            "portMappings": [{"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": ""}],
            "bandwidth": {"ingressRate": 1_000_000, "ingressBurst": 4_294_967_295u32},
            "dns": {"servers": ["10.0.0.10"], "searches": [], "options": []},
            "ipRanges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]],
            "aliases": ["web-0"], "cgroupPath": "/kubepods/pod1",
            "ips": ["10.1.0.9/16", "fd00::9"], "mac": "c2:11:22:33:44:55",
        });
        assert_eq!(Value::from(all.clone()), expected);
        let given =
            stdin(&plugin(r#"{"type": "p", "a": 1}"#, &["mac", "other"]), "net", Version::V1_0_0, None, &all, &[]);
        let given: Value = serde_json::from_slice(&given).expect("json");
        let runtime = json!({"mac": "c2:11:22:33:44:55"});
        assert_eq!(given, json!({"type": "p", "a": 1, "name": "net", "cniVersion": "1.0.0", "runtimeConfig": runtime}));
    }

    #[test]
    fn what_was_before_and_what_a_command_adds_is_passed_on() {
        let previous = json!({"ips": []});
        let more = [("cni.dev/valid-attachments", json!([]))];
        let given = stdin(&plugin("{}", &[]), "n", Version::V1_1_0, Some(&previous), &Map::new(), &more);
        let given: Value = serde_json::from_slice(&given).expect("json");
        let expected =
            json!({"name": "n", "cniVersion": "1.1.0", "prevResult": {"ips": []}, "cni.dev/valid-attachments": []});
        assert_eq!(given, expected);
    }

    #[test]
    fn an_annotation_that_is_no_address_is_refused_by_name() {
        for (name, bad) in [
            (IPS_ANNOTATION, "x"),
            (IPS_ANNOTATION, ""),
            (IPS_ANNOTATION, "10.0.0.1/33"),
            (IPS_ANNOTATION, "10.0.0.1;x"),
            (MAC_ANNOTATION, "1:2:3:4:5:6"),
            (MAC_ANNOTATION, "c2:11:22:33:44"),
            (MAC_ANNOTATION, "c2:11:22:33:44:gg"),
        ] {
            let mut request = request("/x".into());
            request.annotations.insert(name.into(), bad.into());
            let e = capabilities(&request, &[]).expect_err(bad);
            assert!(e.to_string().contains(name), "{e}");
        }
        let arguments = cni_args(&request("/x".into()));
        assert!(arguments.starts_with("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;"), "{arguments}");
    }
}
