//! What holds whatever a plugin prints and whatever a network's file says; driven by [`crate::fuzz`].

use super::conf;
use super::result::{addresses, parse};
use super::version::Version;
use serde_json::{Map, Value};

const VERSIONS: [Version; 5] = [Version::V0_3_0, Version::V0_3_1, Version::V0_4_0, Version::V1_0_0, Version::V1_1_0];

/// A result is one of each version or of none; what it was turned into is the same when it is read again; its addresses are bounded. A
/// network has names that files may have.
pub fn cni(bytes: &[u8]) {
    let read: Vec<Value> = VERSIONS.iter().filter_map(|version| parse(bytes, *version).ok()).collect();
    assert!(read.is_empty() || read.len() == VERSIONS.len(), "{read:?}");
    for (result, version) in read.iter().zip(VERSIONS) {
        let text = result.to_string();
        assert!(text.len() <= 8 * bytes.len() + 256, "{} bytes of {}", text.len(), bytes.len());
        assert_eq!(parse(text.as_bytes(), version).as_ref(), Ok(result));
        for (other, into) in read.iter().zip(VERSIONS) {
            assert_eq!(parse(text.as_bytes(), into).as_ref(), Ok(other), "{version} to {into}");
        }
        assert_eq!(addresses(result, "eth0"), addresses(&read[0], "eth0"));
        if let Ok(addresses) = addresses(result, "eth0") {
            assert!((1..=64).contains(&addresses.len()));
        }
    }
    let Ok(json) = serde_json::from_slice::<Map<String, Value>>(bytes) else { return };
    if let Ok(network) = conf::network(&json, &|_| Ok(Vec::new())) {
        let programs = network.plugins.iter().map(|plugin| &plugin.program);
        for name in programs.chain([&network.name]) {
            assert!(!name.contains(['/', '\0']) && !name.starts_with('.') && name.len() <= 128, "{name:?}");
        }
        assert!(!network.versions.is_empty() && (1..=32).contains(&network.plugins.len()));
        let text = serde_json::to_vec(&network).expect("JSON");
        assert_eq!(serde_json::from_slice::<conf::Network>(&text).expect("what was read before"), network);
    }
}
