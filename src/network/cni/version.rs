//! The versions of the CNI specification that are spoken here, and which of them a network and its plugins have in common.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A version of the specification, oldest first. Those before 0.3.0 know no lists and no `prevResult`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Version {
    #[serde(rename = "0.3.0")]
    V0_3_0,
    #[serde(rename = "0.3.1")]
    V0_3_1,
    #[serde(rename = "0.4.0")]
    V0_4_0,
    #[serde(rename = "1.0.0")]
    V1_0_0,
    #[serde(rename = "1.1.0")]
    V1_1_0,
}

/// Every version, and how it is written.
const ALL: [(Version, &str); 5] = [
    (Version::V0_3_0, "0.3.0"),
    (Version::V0_3_1, "0.3.1"),
    (Version::V0_4_0, "0.4.0"),
    (Version::V1_0_0, "1.0.0"),
    (Version::V1_1_0, "1.1.0"),
];

impl Version {
    /// The version that is written so; `None` for one that is not spoken here.
    pub fn parse(text: &str) -> Option<Version> {
        ALL.iter().find(|(_, written)| *written == text).map(|(version, _)| *version)
    }

    pub fn as_str(self) -> &'static str {
        ALL.iter().find(|(version, _)| *version == self).map_or("", |(_, written)| written)
    }

    /// CHECK, and `prevResult` in a DEL (SPEC 0.4.0).
    pub fn has_check(self) -> bool {
        self >= Version::V0_4_0
    }

    /// GC and STATUS (SPEC 1.1.0).
    pub fn has_gc(self) -> bool {
        self >= Version::V1_1_0
    }

    /// Addresses of a result say which family they are of (up to SPEC 0.4.0).
    pub fn has_ip_version(self) -> bool {
        self < Version::V1_0_0
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The highest of a network's versions that every plugin speaks; the network's highest when there is none, for then the plugins say best
/// what is wrong. `plugins`: what each has answered to VERSION.
pub fn highest_common(network: &[Version], plugins: &[Vec<String>]) -> Option<Version> {
    let spoken = |version: &&Version| plugins.iter().all(|plugin| plugin.iter().any(|text| text == version.as_str()));
    network.iter().filter(spoken).max().or_else(|| network.iter().max()).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_as_written_and_others_are_not_known() {
        for (version, text) in ALL {
            assert_eq!(Version::parse(text), Some(version));
            assert_eq!(serde_json::to_string(&version).expect("json"), format!("{text:?}"));
        }
        for other in ["", "0.2.0", "1.0.1", "1.2.0", "v1.0.0", "1.0"] {
            assert_eq!(Version::parse(other), None, "{other}");
        }
        assert!(Version::V0_4_0 < Version::V1_0_0 && Version::V0_4_0.has_check() && !Version::V0_3_1.has_check());
    }

    #[test]
    fn what_all_plugins_speak_is_spoken() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let network = [Version::V0_4_0, Version::V1_0_0, Version::V1_1_0];
        let common = |plugins: &[Vec<String>]| highest_common(&network, plugins).map(Version::as_str);
        assert_eq!(common(&[]), Some("1.1.0"));
        assert_eq!(common(&[words("0.4.0 1.0.0 1.1.0"), words("0.3.1 0.4.0 1.0.0")]), Some("1.0.0"));
        assert_eq!(common(&[words("0.1.0")]), Some("1.1.0"));
        assert_eq!(highest_common(&[], &[]), None);
    }
}
