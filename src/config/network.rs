//! The settings of pod networks: `network.*`, checked.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// The longest name of an interface, in bytes: IFNAMSIZ of linux/if.h without its NUL.
const MAX_INTERFACE_BYTES: usize = 15;
/// The least MTU: IPv6 wants it of every link (RFC 8200, section 5).
const MIN_MTU: u32 = 1280;
/// The largest: what the length field of an IP packet holds.
const MAX_MTU: u32 = 65535;
/// The most directories that plugins are looked for in.
const MAX_DIRECTORIES: usize = 16;

/// Which network pods get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NetworkMode {
    /// CNI when a conflist exists, else the built-in bridge; decided for each pod when it is made.
    Auto,
    Bridge,
    Cni,
    /// Pods have their own loopback and nothing else.
    #[default]
    None,
}

impl NetworkMode {
    /// The words of the configuration.
    pub const WORDS: &[&str] = &["auto", "bridge", "cni", "none"];

    pub(super) fn of(word: &str) -> NetworkMode {
        match word {
            "auto" => NetworkMode::Auto,
            "bridge" => NetworkMode::Bridge,
            "cni" => NetworkMode::Cni,
            _ => NetworkMode::None,
        }
    }
}

/// The settings of pod networks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkSettings {
    pub mode: NetworkMode,
    /// The interface that is the built-in bridge, and the name of its nftables table.
    pub bridge: String,
    /// At least one of the two is there. `None`: pods have no addresses of that family.
    pub subnet4: Option<Subnet>,
    pub subnet6: Option<Subnet>,
    /// Bytes; `None`: that of the interface with the host's default route.
    pub mtu: Option<u32>,
    pub cni_conf_dir: PathBuf,
    /// Where network namespaces of pods on CNI are bound.
    pub netns_dir: PathBuf,
    /// In the order in which plugins are looked for.
    pub cni_bin_dirs: Vec<PathBuf>,
}

/// A range of addresses, `10.118.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    /// Without bits behind the prefix.
    pub address: IpAddr,
    /// Bits.
    pub prefix: u8,
}

impl Subnet {
    /// Bits of an address of this family.
    pub fn bits(&self) -> u8 {
        if self.address.is_ipv4() { 32 } else { 128 }
    }

    /// The address that is `number` above the first, if it is one of these.
    pub fn host(&self, number: u32) -> Option<IpAddr> {
        let free = u32::from(self.bits() - self.prefix);
        if free < 32 && number >> free != 0 {
            return None;
        }
        Some(match self.address {
            IpAddr::V4(first) => IpAddr::V4((u32::from(first) | number).into()),
            IpAddr::V6(first) => IpAddr::V6((u128::from(first) | u128::from(number)).into()),
        })
    }

    /// How many addresses above the first there are, at most `u32::MAX`.
    pub fn hosts(&self) -> u32 {
        u32::try_from((1u128 << (self.bits() - self.prefix).min(32)) - 1).unwrap_or(u32::MAX)
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        self.overlaps(&Subnet { address, prefix: if address.is_ipv4() { 32 } else { 128 } })
    }

    /// Whether there is an address in both.
    pub fn overlaps(&self, other: &Subnet) -> bool {
        let prefix = self.prefix.min(other.prefix);
        match (self.address, other.address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                prefix == 0 || (u32::from(a) ^ u32::from(b)).leading_zeros() >= u32::from(prefix)
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                prefix == 0 || (u128::from(a) ^ u128::from(b)).leading_zeros() >= u32::from(prefix)
            }
            _ => false,
        }
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = String;

    /// With room for the network's own address, the bridge, and a pod.
    fn from_str(text: &str) -> Result<Subnet, String> {
        let grammar = || "must be an address and a prefix length, like 10.118.0.0/16 or fd70:6f64:7772::/64".to_owned();
        let (address, prefix) = text.split_once('/').ok_or_else(grammar)?;
        let address: IpAddr = address.parse().map_err(|_| grammar())?;
        let prefix = prefix.parse().map_err(|_| grammar())?;
        let subnet = Subnet { address, prefix };
        if prefix == 0 || prefix > subnet.bits() - 2 {
            return Err(format!("must have a prefix length from 1 to {}", subnet.bits() - 2));
        }
        let behind = match address {
            IpAddr::V4(a) => u32::from(a) << prefix != 0,
            IpAddr::V6(a) => u128::from(a) << prefix != 0,
        };
        if behind {
            return Err(format!("has bits behind the prefix of {prefix}"));
        }
        Ok(subnet)
    }
}

/// A subnet of one family, or nothing.
pub(super) fn check_subnet(value: &str, v6: bool) -> Result<(), String> {
    if value.is_empty() {
        return Ok(());
    }
    let subnet: Subnet = value.parse()?;
    if subnet.address.is_ipv6() != v6 {
        return Err(format!("must be of IPv{}", if v6 { 6 } else { 4 }));
    }
    Ok(())
}

/// What the kernel takes for an interface, and nft(8) for a table.
pub(super) fn check_interface(value: &str) -> Result<(), String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    if value.len() > MAX_INTERFACE_BYTES || !value.bytes().all(plain) || !value.starts_with(|c: char| c.is_alphabetic())
    {
        return Err(format!(
            "must be a letter and at most {} letters, digits, - and _ after it",
            MAX_INTERFACE_BYTES - 1
        ));
    }
    Ok(())
}

pub(super) fn check_mtu(value: &str) -> Result<(), String> {
    if value.is_empty() || value.parse().is_ok_and(|mtu| (MIN_MTU..=MAX_MTU).contains(&mtu)) {
        return Ok(());
    }
    Err(format!("must be from {MIN_MTU} to {MAX_MTU}"))
}

/// Absolute paths with commas between them.
pub(super) fn check_directories(value: &str, check: impl Fn(&str) -> Result<(), String>) -> Result<(), String> {
    if value.split(',').count() > MAX_DIRECTORIES {
        return Err(format!("must be at most {MAX_DIRECTORIES} directories"));
    }
    value.split(',').try_for_each(check)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().expect(text)
    }

    #[test]
    fn a_subnet_counts_its_hosts_and_ends() {
        let small = subnet("10.0.0.8/30");
        assert_eq!((small.hosts(), small.host(3)), (3, Some("10.0.0.11".parse().expect("ip"))));
        assert_eq!(small.host(4), None);
        let six = subnet("fd70:6f64:7772::/64");
        assert_eq!(six.host(258), Some("fd70:6f64:7772::102".parse().expect("ip")));
        assert_eq!(six.hosts(), u32::MAX);
        for bad in ["10.0.0.0", "10.0.0.1/8", "10.0.0.0/31", "10.0.0.0/0", "x/8", "fd00::1/64", "fd00::/127"] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }

    #[test]
    fn two_subnets_overlap_when_the_shorter_prefix_is_common() {
        let ours = subnet("10.118.0.0/16");
        assert!(ours.overlaps(&subnet("10.0.0.0/8")) && ours.overlaps(&subnet("10.118.4.0/24")));
        assert!(!ours.overlaps(&subnet("10.119.0.0/16")) && !ours.overlaps(&subnet("fd00::/8")));
        assert!(ours.contains("10.118.255.255".parse().expect("ip")) && !ours.contains("::1".parse().expect("ip")));
    }

    #[test]
    fn a_bridge_has_a_name_that_no_tool_misreads() {
        assert!(check_interface("podwright0").is_ok());
        for bad in ["", "0a", "a b", "a/b", "a.b", "abcdefghijklmnop", "-a"] {
            assert!(check_interface(bad).is_err(), "{bad:?}");
        }
        assert!(check_mtu("").is_ok() && check_mtu("1500").is_ok() && check_mtu("68").is_err());
    }
}
