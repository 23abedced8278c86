//! The grammars of names in a manifest (apimachinery, pkg/util/validation): each says why a text is none.

use crate::state::model::{AppArmorProfile, SelinuxOptions};

/// Bytes of a DNS label, RFC 1123.
const MAX_LABEL: usize = 63;
/// Bytes of a DNS name, RFC 1123.
const MAX_SUBDOMAIN: usize = 253;
/// Bytes of a port's name, RFC 6335.
const MAX_PORT_NAME: usize = 15;
/// Bytes of a path, limits.h.
const MAX_PATH: usize = 4095;

/// What is wrong, and the remedy.
pub type Wrong = (String, String);

fn wrong<T>(message: impl Into<String>, remedy: impl Into<String>) -> Result<T, Wrong> {
    Err((message.into(), remedy.into()))
}

fn is_alphanumeric(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    matches!(bytes.len(), 1..=MAX_LABEL)
        && bytes.iter().all(|b| is_alphanumeric(*b) || *b == b'-')
        && bytes.first().is_some_and(|b| is_alphanumeric(*b))
        && bytes.last().is_some_and(|b| is_alphanumeric(*b))
}

/// A name of a container or volume: a DNS label.
pub fn label(text: &str) -> Result<(), Wrong> {
    if is_label(text) {
        return Ok(());
    }
    wrong("not a DNS label", "write at most 63 of a-z, 0-9 and -, no - at the start or end")
}

/// A name of a pod: a DNS subdomain.
pub fn subdomain(text: &str) -> Result<(), Wrong> {
    if text.len() <= MAX_SUBDOMAIN && text.split('.').all(is_label) {
        return Ok(());
    }
    wrong(
        "not a DNS name",
        "write at most 253 of a-z, 0-9, - and ., a letter or digit at the start and end of each part",
    )
}

/// The key of a label or annotation: an optional DNS prefix and a name.
pub fn qualified(text: &str) -> Result<(), Wrong> {
    let (prefix, name) = text.split_once('/').map_or((None, text), |(p, n)| (Some(p), n));
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let good = matches!(name.len(), 1..=MAX_LABEL)
        && name.bytes().all(inner)
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.ends_with(|c: char| c.is_ascii_alphanumeric())
        && prefix.is_none_or(|p| subdomain(&p.to_ascii_lowercase()).is_ok());
    if good {
        return Ok(());
    }
    wrong("not a qualified name", "write name or dns.prefix/name, the name of at most 63 letters, digits, -, _ and .")
}

/// The value of a label.
pub fn label_value(text: &str) -> Result<(), Wrong> {
    if text.is_empty() || (!text.contains('/') && qualified(text).is_ok()) {
        return Ok(());
    }
    wrong("not a label value", "write at most 63 letters, digits, -, _ and ., a letter or digit at the start and end")
}

/// The name of an environment variable: printable ASCII without `=` (RelaxedEnvironmentVariableValidation).
pub fn env(text: &str) -> Result<(), Wrong> {
    if !text.is_empty() && text.bytes().all(|b| matches!(b, b' '..=b'~') && b != b'=') {
        return Ok(());
    }
    wrong("not the name of an environment variable", "write printable ASCII without =")
}

/// The name of a port: lower-case letters, digits and single dashes, with a letter (RFC 6335).
pub fn port(text: &str) -> Result<(), Wrong> {
    let good = matches!(text.len(), 1..=MAX_PORT_NAME)
        && is_label(text)
        && !text.contains("--")
        && text.bytes().any(|b| b.is_ascii_lowercase());
    if good {
        return Ok(());
    }
    wrong("not a port's name", "write at most 15 of a-z, 0-9 and single dashes, with a letter")
}

/// The key of a ConfigMap or Secret, which becomes a file name.
pub fn key(text: &str) -> Result<(), Wrong> {
    let good = matches!(text.len(), 1..=MAX_SUBDOMAIN)
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && text != "."
        && !text.starts_with("..");
    if good {
        return Ok(());
    }
    wrong("not a key", "write at most 253 letters, digits, -, _ and ., not beginning with ..")
}

/// A uid as file name: what Kubernetes makes is hex with dashes.
pub fn uid(text: &str) -> Result<(), Wrong> {
    if matches!(text.len(), 1..=MAX_LABEL) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Ok(());
    }
    wrong("not a uid that can be a file name", "write at most 63 letters, digits and -, or leave it out")
}

/// An absolute path.
pub fn absolute(text: &str) -> Result<(), Wrong> {
    if !text.starts_with('/') {
        return wrong("not an absolute path", format!("write /{text}"));
    }
    bounded_path(text)
}

/// The path of a hostPath volume: absolute, without `..`.
pub fn host_path(text: &str) -> Result<(), Wrong> {
    absolute(text)?;
    no_dot_dot(text)
}

/// Where a volume is mounted: not empty, without `:`; absolute, for nothing sensible is relative to a root.
pub fn mount_path(text: &str) -> Result<(), Wrong> {
    if text.contains(':') {
        return wrong("a : in the path", "mount it at a path without :");
    }
    absolute(text)?;
    no_dot_dot(text)?;
    if text.split('/').all(|part| part.is_empty() || part == ".") {
        return wrong("the root directory", "mount it below, the root is the image's");
    }
    Ok(())
}

/// A path inside a volume: relative, without `..`.
pub fn inside(text: &str) -> Result<(), Wrong> {
    if text.is_empty() || text.starts_with('/') {
        return wrong("not a path inside the volume", "write a relative path");
    }
    bounded_path(text)?;
    no_dot_dot(text)
}

/// A profile of AppArmor.
pub fn apparmor(text: &str) -> Result<(), Wrong> {
    if AppArmorProfile::is_name(text) {
        return Ok(());
    }
    wrong("not a name of a profile", "write at most 255 bytes of one line, as apparmor_status shows it")
}

/// A part of a label of SELinux, by its name.
pub fn selinux(part: &str, text: &str) -> Result<(), Wrong> {
    if SelinuxOptions::is_part(part, text) {
        return Ok(());
    }
    let most = SelinuxOptions::MAX_PART;
    wrong(format!("not the {part} of a label"), format!("write at most {most} bytes, as ps -Z shows it"))
}

/// subPathExpr: checked again when it is expanded.
pub fn sub_path_expr(text: &str) -> Result<(), Wrong> {
    inside(text)
}

/// A path of a file made from a key: as [`inside`], and not beginning with `..`, which is the writer's own.
pub fn file_inside(text: &str) -> Result<(), Wrong> {
    inside(text)?;
    if text.starts_with("..") || text.split('/').any(|part| part.is_empty() || part == "." || part.len() > 255) {
        return wrong("not a file's path inside the volume", "write names of at most 255 bytes, with single / between");
    }
    Ok(())
}

fn no_dot_dot(text: &str) -> Result<(), Wrong> {
    if text.split('/').any(|part| part == "..") {
        return wrong(".. in the path", "write the path it means");
    }
    Ok(())
}

fn bounded_path(text: &str) -> Result<(), Wrong> {
    if text.len() > MAX_PATH {
        return wrong(format!("a path of more than {MAX_PATH} bytes"), "write a shorter one");
    }
    if text.contains('\0') {
        return wrong("a NUL in the path", "remove it");
    }
    Ok(())
}

/// A sysctl's name with dots, from either form; segments as Kubernetes has them.
pub fn sysctl(text: &str) -> Result<String, Wrong> {
    let segment = |s: &str| {
        let ok = |b: u8| is_alphanumeric(b) || matches!(b, b'-' | b'_');
        s.bytes().all(ok)
            && s.starts_with(|c: char| c.is_ascii_alphanumeric())
            && s.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    // The first separator decides what the other one is: net/ipv4/conf/eth0.1/x is net.ipv4.conf.eth0/1.x (sysctl(8)).
    let first = text.find(['.', '/']).map(|i| text.as_bytes()[i]);
    let dotted = match first {
        Some(b'/') => text
            .chars()
            .map(|c| {
                if c == '/' {
                    '.'
                } else if c == '.' {
                    '/'
                } else {
                    c
                }
            })
            .collect(),
        _ => text.to_owned(),
    };
    if text.len() <= MAX_SUBDOMAIN && first.is_some() && dotted.split(['.', '/']).all(segment) {
        return Ok(dotted);
    }
    wrong("not a sysctl's name", "write it as net.ipv4.ip_unprivileged_port_start")
}

/// An IP address.
pub fn ip(text: &str) -> Result<(), Wrong> {
    if text.parse::<std::net::IpAddr>().is_ok() {
        return Ok(());
    }
    wrong("not an IP address", "write one like 10.0.0.1 or fd00::1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_those_of_rfc_1123() {
        for good in ["a", "web-1", "0", &"a".repeat(63)] {
            assert!(label(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", &"a".repeat(64), "\u{e9}"] {
            assert!(label(bad).is_err(), "{bad}");
        }
        assert!(subdomain("a.b-c.d").is_ok() && subdomain("a..b").is_err() && subdomain(&"a.".repeat(127)).is_err());
    }

    #[test]
    fn paths_that_leave_are_refused() {
        assert!(inside("a/b").is_ok() && inside("..a").is_ok());
        for bad in ["", "/a", "..", "a/../b", "a/.."] {
            assert!(inside(bad).is_err(), "{bad}");
        }
        assert!(file_inside("..a").is_err() && file_inside("a//b").is_err());
        for bad in ["", "a", "/", "/.", "//", "/a:b", "/a/../b"] {
            assert!(mount_path(bad).is_err(), "{bad}");
        }
        assert!(mount_path("/data").is_ok());
    }

    #[test]
    fn both_forms_of_a_sysctl_are_one_name() {
        assert_eq!(sysctl("net.ipv4.ip_forward"), sysctl("net/ipv4/ip_forward"));
        assert_eq!(sysctl("net/ipv4/conf/eth0.1/x").expect("valid"), "net.ipv4.conf.eth0/1.x");
        for bad in ["", "net", "net..x", "Net.x", "net.ipv4.", "net. x", "kernel.../x"] {
            assert!(sysctl(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_and_variables_cannot_smuggle_anything() {
        assert!(key("a.conf").is_ok() && key("..data").is_err() && key("a/b").is_err() && key(".").is_err());
        assert!(env("A B").is_ok() && env("A=B").is_err() && env("").is_err() && env("\u{e9}").is_err());
        assert!(port("http").is_ok() && port("80").is_err() && port("a--b").is_err());
        assert!(qualified("a.b/c_d").is_ok() && qualified("/c").is_err() && qualified("a/b/c").is_err());
    }
}
