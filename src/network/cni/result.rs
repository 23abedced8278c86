//! What an ADD answers: read from any version's shape, turned into the version that the network is run with, and searched for the pod's
//! addresses. Fields that are not known here are passed on to the next plugin as they are. Pure.

use super::version::Version;
use crate::state::model::Dns;
use serde_json::{Map, Value, json};
use std::net::IpAddr;

/// Addresses of one attachment, more than anybody has.
const MAX_IPS: usize = 64;
/// Name servers that reach resolv.conf(5): MAXNS.
const MAX_SERVERS: usize = 3;

/// What a plugin has printed, as a result of `version`.
///
/// # Errors
/// A sentence, when it is no result.
pub fn parse(printed: &[u8], version: Version) -> Result<Value, String> {
    let mut result: Map<String, Value> =
        serde_json::from_slice(printed).map_err(|e| format!("its answer is no result: {e}"))?;
    // The shape of 0.2.0 and before, which some plugins answer whatever they are asked.
    for (key, family) in [("ip4", "4"), ("ip6", "6")] {
        let Some(Value::Object(mut old)) = result.remove(key) else { continue };
        let mut ip = Map::from_iter([("version".to_owned(), json!(family))]);
        ip.insert("address".into(), old.remove("ip").unwrap_or_default());
        ip.extend(old.remove("gateway").map(|gateway| ("gateway".to_owned(), gateway)));
        push(&mut result, "ips", Value::Object(ip));
        for route in old.remove("routes").as_ref().and_then(Value::as_array).into_iter().flatten() {
            push(&mut result, "routes", route.clone());
        }
    }
    result.insert("cniVersion".into(), json!(version.as_str()));
    let mut ips = match result.remove("ips") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(ips)) => ips,
        Some(_) => return Err("its answer is no result: ips is no list".into()),
    };
    if ips.len() > MAX_IPS {
        return Err(format!("its answer has {} addresses, and {MAX_IPS} are the most", ips.len()));
    }
    for ip in &mut ips {
        let address = address(ip)?;
        let Value::Object(ip) = ip else { continue };
        ip.remove("version");
        if version.has_ip_version() {
            ip.insert("version".into(), json!(if address.is_ipv4() { "4" } else { "6" }));
        }
    }
    result.insert("ips".into(), Value::Array(ips));
    Ok(Value::Object(result))
}

fn push(object: &mut Map<String, Value>, key: &str, value: Value) {
    let list = object.entry(key).or_insert_with(|| json!([]));
    if !list.is_array() {
        *list = json!([]);
    }
    if let Value::Array(list) = list {
        list.push(value);
    }
}

/// The address of an entry of `ips`, without its prefix length.
fn address(ip: &Value) -> Result<IpAddr, String> {
    let text = ip.get("address").and_then(Value::as_str);
    let wrong = || format!("its answer has the address {}, which is none", text.unwrap_or("(nothing)"));
    let (address, prefix) = text.and_then(|text| text.split_once('/')).ok_or_else(wrong)?;
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    match prefix.parse::<u8>() {
        Ok(prefix) if prefix <= longest => Ok(address),
        _ => Err(wrong()),
    }
}

/// The pod's addresses in the order of the result: those of the interface `ifname` in the sandbox; else of any that is in it; of all
/// when the plugins name no interfaces.
///
/// # Errors
/// A sentence: for an address of an interface that is not in the list, and when there is none.
pub fn addresses(result: &Value, ifname: &str) -> Result<Vec<IpAddr>, String> {
    let list = |key: &str| result.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let interfaces = list("interfaces");
    let in_sandbox =
        |interface: &Value| interface.get("sandbox").and_then(Value::as_str).is_some_and(|sandbox| !sandbox.is_empty());
    let (mut own, mut others) = (Vec::new(), Vec::new());
    for ip in list("ips") {
        let address = address(ip)?;
        let Some(index) = ip.get("interface").filter(|index| !index.is_null()) else {
            own.push(address);
            continue;
        };
        let at = index.as_u64().and_then(|index| usize::try_from(index).ok());
        let interface = at.and_then(|at| interfaces.get(at));
        let interface =
            interface.ok_or_else(|| format!("address {address} is of interface {index}, which is not in the list"))?;
        if in_sandbox(interface) {
            let named = interface.get("name").and_then(Value::as_str) == Some(ifname);
            if named { own.push(address) } else { others.push(address) }
        }
    }
    let found = if own.is_empty() { others } else { own };
    if found.is_empty() { Err("its plugins gave the pod no address".into()) } else { Ok(found) }
}

/// What the plugins know of name servers (`dns`); `None` without any, and for what is none: few plugins have a say in it.
pub fn dns(result: &Value) -> Option<Dns> {
    let dns = result.get("dns")?;
    let words = |key: &str| -> Vec<String> {
        let list = dns.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let mut servers = words("nameservers");
    servers.truncate(MAX_SERVERS);
    if servers.is_empty() || servers.iter().any(|server| server.parse::<IpAddr>().is_err()) {
        return None;
    }
    let mut searches = words("search");
    if let (true, Some(domain)) = (searches.is_empty(), dns.get("domain").and_then(Value::as_str)) {
        searches.extend(Some(domain.to_owned()).filter(|domain| !domain.is_empty()));
    }
    Some(Dns { servers, searches, options: words("options") })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BRIDGE: &str = r#"{"cniVersion": "1.0.0",
        "interfaces": [{"name": "cni0", "mac": "00:00"}, {"name": "veth1", "mac": "00:01"},
                       {"name": "eth0", "mac": "00:02", "sandbox": "/proc/7/ns/net"}],
        "ips": [{"interface": 2, "address": "10.1.0.5/16", "gateway": "10.1.0.1"}, {"interface": 2, "address": "fd00::5/64"}],
        "routes": [{"dst": "0.0.0.0/0"}], "dns": {}, "x-own": {"kept": true}}"#;

    fn ips(result: &Value) -> Result<Vec<String>, String> {
        addresses(result, "eth0").map(|all| all.iter().map(IpAddr::to_string).collect())
    }

    #[test]
    fn a_result_of_one_version_is_turned_into_that_of_another_and_back() {
        let new = parse(BRIDGE.as_bytes(), Version::V1_1_0).expect("a result");
        assert_eq!(new["cniVersion"], "1.1.0");
        assert_eq!(new["x-own"]["kept"], true);
        assert_eq!(ips(&new).expect("addresses"), ["10.1.0.5", "fd00::5"]);
        let old = parse(BRIDGE.as_bytes(), Version::V0_3_1).expect("a result");
        assert_eq!((&old["ips"][0]["version"], &old["ips"][1]["version"]), (&json!("4"), &json!("6")));
        assert_eq!(parse(old.to_string().as_bytes(), Version::V1_1_0).expect("a result"), new);
    }

    #[test]
    fn the_shape_of_the_oldest_versions_is_understood() {
        let old = br#"{"cniVersion": "0.2.0", "ip4": {"ip": "10.1.0.5/16", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
                       "ip6": {"ip": "fd00::5/64"}}"#;
        let result = parse(old, Version::V1_0_0).expect("a result");
        assert_eq!(ips(&result).expect("addresses"), ["10.1.0.5", "fd00::5"]);
        assert_eq!(result["routes"], json!([{"dst": "0.0.0.0/0"}]));
        assert_eq!(result["ips"][0], json!({"address": "10.1.0.5/16", "gateway": "10.1.0.1"}));
    }

    #[test]
    fn only_addresses_inside_the_sandbox_are_the_pods() {
        let result = |text: &str| parse(text.as_bytes(), Version::V1_0_0).expect("a result");
        let host = result(r#"{"interfaces": [{"name": "veth"}], "ips": [{"interface": 0, "address": "10.0.0.1/8"}]}"#);
        assert_eq!(ips(&host).expect_err("the host's"), "its plugins gave the pod no address");
        let none = result(r#"{"ips": [{"address": "10.0.0.2/8"}]}"#);
        assert_eq!(ips(&none).expect("the pod's"), ["10.0.0.2"]);
        let two = result(
            r#"{"interfaces": [{"name": "net1", "sandbox": "/x"}, {"name": "eth0", "sandbox": "/x"}],
                "ips": [{"interface": 0, "address": "10.0.0.1/8"}, {"interface": 1, "address": "10.0.0.2/8"}]}"#,
        );
        assert_eq!(ips(&two).expect("of eth0"), ["10.0.0.2"]);
        let off = result(r#"{"interfaces": [], "ips": [{"interface": 3, "address": "10.0.0.1/8"}]}"#);
        assert!(ips(&off).expect_err("no such").contains("interface 3"));
        assert!(ips(&result("{}")).is_err());
    }

    #[test]
    fn name_servers_are_taken_when_all_of_them_are_addresses() {
        let of = |text: &str| dns(&parse(text.as_bytes(), Version::V1_0_0).expect("a result"));
        let full = of(
            r#"{"dns": {"nameservers": ["10.0.0.10", "fd00::a"], "domain": "x", "search": ["a.b"], "options": ["ndots:2"]}}"#,
        );
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let expected =
            Dns { servers: words(&["10.0.0.10", "fd00::a"]), searches: words(&["a.b"]), options: words(&["ndots:2"]) };
        assert_eq!(full, Some(expected));
        let domain = of(r#"{"dns": {"nameservers": ["10.0.0.10"], "domain": "x"}}"#).expect("some");
        assert_eq!(domain.searches, ["x"]);
        assert_eq!(
            of(r#"{"dns": {"nameservers": ["1.1.1.1", "1.1.1.2", "1.1.1.3", "1.1.1.4"]}}"#)
                .expect("three")
                .servers
                .len(),
            3
        );
        for none in ["{}", r#"{"dns": {}}"#, r#"{"dns": {"nameservers": ["x y"]}}"#, r#"{"dns": {"nameservers": 1}}"#] {
            assert_eq!(of(none), None, "{none}");
        }
    }

    #[test]
    fn what_is_no_result_is_refused_with_a_reason() {
        for bad in [
            "",
            "ok",
            "[]",
            r#"{"ips": 3}"#,
            r#"{"ips": [{}]}"#,
            r#"{"ips": [{"address": "10.0.0.1"}]}"#,
            r#"{"ips": [{"address": "10.0.0.1/33"}]}"#,
            r#"{"ips": ["10.0.0.1/8"]}"#,
        ] {
            assert!(parse(bad.as_bytes(), Version::V1_0_0).is_err(), "{bad}");
        }
    }
}
