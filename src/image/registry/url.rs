//! Absolute http and https URLs, and what counts as the same place. Pure.
//!
//! Credentials, certificates and headers are given for an [`Origin`]: scheme, host and port. Whatever leads elsewhere, they stay behind.

use crate::error::{Error, Result};
use std::fmt;
use std::net::IpAddr;

/// Bytes of a URL, at most: redirects to object stores carry signatures of two thousand.
const MAX_URL: usize = 16 << 10;

/// Scheme, host and port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    pub https: bool,
    /// Lower case; an IPv6 address in brackets.
    pub host: String,
    pub port: u16,
}

impl Origin {
    /// The default port of its scheme.
    fn default_port(https: bool) -> u16 {
        if https { 443 } else { 80 }
    }

    /// What a `Host` header says.
    pub fn authority(&self) -> String {
        match self.port == Self::default_port(self.https) {
            true => self.host.clone(),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// The host without brackets, as a resolver and a certificate have it.
    pub fn name(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    /// Whether it is this machine.
    pub fn is_loopback(&self) -> bool {
        is_loopback(self.name())
    }
}

/// Whether a name or address (without brackets) is this machine's loopback.
pub fn is_loopback(name: &str) -> bool {
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.https { "https" } else { "http" }, self.authority())
    }
}

/// An absolute URL without user, password and fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    pub origin: Origin,
    /// Path and query, with a slash in front.
    pub path: String,
}

impl Url {
    /// Reads an absolute URL.
    ///
    /// # Errors
    /// `InvalidArgument` for another scheme, a user in it, and what is no URL.
    pub fn parse(text: &str) -> Result<Url> {
        let bad = |why: &str| {
            let shown: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
            Error::invalid(format!("{shown:?} is not a URL that is followed: {why}"))
        };
        if text.len() > MAX_URL {
            return Err(bad("it is too long"));
        }
        let uri: http::Uri = text.parse().map_err(|e: http::uri::InvalidUri| bad(&e.to_string()))?;
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(bad("it does not start with https:// or http://")),
        };
        let authority = uri.authority().ok_or_else(|| bad("it has no host"))?;
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(bad("it has a user, or no host"));
        }
        // http's reader takes brackets anywhere, and then ends the host within them.
        let host = authority.host();
        let name = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if name.contains(['[', ']']) {
            return Err(bad("its host is none"));
        }
        let port = match (authority.port(), authority.port_u16()) {
            (None, _) => Origin::default_port(https),
            (Some(_), Some(port)) if port != 0 => port,
            _ => return Err(bad("its port is none")),
        };
        let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Url { origin: Origin { https, host: host.to_lowercase(), port }, path })
    }

    /// Where a `Location` header leads from here (RFC 3986, 5.2, without dot segments, which servers resolve).
    ///
    /// # Errors
    /// As [`Url::parse`]; and for one that leaves https.
    pub fn join(&self, location: &str) -> Result<Url> {
        let scheme = if self.origin.https { "https" } else { "http" };
        let to = if location.contains("://") && !location.starts_with(['/', '?', '.']) {
            Url::parse(location)?
        } else if let Some(rest) = location.strip_prefix("//") {
            Url::parse(&format!("{scheme}://{rest}"))?
        } else {
            let bare = self.path.split('?').next().unwrap_or_default();
            let dir = bare.rsplit_once('/').map_or("", |(dir, _)| dir);
            let path = match location.chars().next() {
                Some('/') => location.to_owned(),
                Some('?') => format!("{bare}{location}"),
                _ => format!("{dir}/{location}"),
            };
            Url::parse(&format!("{}{path}", self.origin))?
        };
        if self.origin.https && !to.origin.https {
            return Err(Error::invalid(format!(
                "{} leads from https to {}, which is not followed",
                self.origin, to.origin
            )));
        }
        Ok(to)
    }

    /// The same place with more of a path.
    #[must_use]
    pub fn with(&self, more: &str) -> Url {
        Url { origin: self.origin.clone(), path: format!("{}{more}", self.path.trim_end_matches('/')) }
    }
}

impl fmt::Display for Url {
    /// Without the query, which may hold a signature.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin, self.path.split('?').next().unwrap_or_default())
    }
}

/// Text as it may stand in a query (RFC 3986, unreserved characters).
pub fn escape(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).expect(text)
    }

    #[test]
    fn the_same_place_written_in_two_ways_is_one_origin() {
        assert_eq!(url("https://Registry.Example/v2").origin, url("https://registry.example:443/x").origin);
        assert_ne!(url("https://registry.example").origin, url("http://registry.example").origin);
        assert_ne!(url("https://registry.example").origin, url("https://registry.example:5000").origin);
        let six = url("http://[::1]:5000/a?b=c");
        assert_eq!((six.origin.name(), six.origin.authority().as_str()), ("::1", "[::1]:5000"));
        assert!(six.origin.is_loopback() && url("http://127.8.0.1").origin.is_loopback());
        assert!(!url("http://localhost.example").origin.is_loopback());
        assert_eq!(six.to_string(), "http://[::1]:5000/a");
    }

    #[test]
    fn a_redirect_is_resolved_and_never_leaves_https() {
        let from = url("https://r.example/v2/a/blobs/x?y=1");
        for (location, to) in [
            ("https://cdn.example/b?sig=://x", "https://cdn.example/b"),
            ("//cdn.example/b", "https://cdn.example/b"),
            ("/b", "https://r.example/b"),
            ("b", "https://r.example/v2/a/blobs/b"),
            ("?z=2", "https://r.example/v2/a/blobs/x"),
        ] {
            assert_eq!(from.join(location).expect(location).to_string(), to);
        }
        assert!(from.join("http://r.example/b").expect_err("downgrade").to_string().contains("from https"));
        for bad in ["https://user:password@r.example/", "ftp://r.example/", "https://", "file:///etc/passwd"] {
            let e = from.join(bad).expect_err(bad).to_string();
            assert!(e.contains("not a URL"), "{e}");
        }
    }

    #[test]
    fn a_query_holds_what_was_put_in() {
        assert_eq!(escape("repository:a/b:pull é"), "repository%3Aa%2Fb%3Apull%20%C3%A9");
    }
}
