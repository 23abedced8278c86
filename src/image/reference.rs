//! What people write for an image: the grammar of distribution's `reference` package, and its defaults. Pure.
//!
//! ```text
//! reference  = name [ ":" tag ] [ "@" digest ]
//! name       = [ host [ ":" port ] "/" ] component { "/" component }
//! component  = [a-z0-9]+ separated by one ".", one or two "_", or any number of "-"
//! tag        = [A-Za-z0-9_][A-Za-z0-9_.-]{0,127}
//! ```
//! The first part is a host if it has `.` or `:` or is `localhost`; otherwise the host is docker.io, or what [`set_default_host`] said, and a
//! single component stands in `library/` on docker.io. No tag and no digest means the tag `latest`. With both, the digest decides and the tag is
//! kept for show.

use crate::error::{Error, Result};
use crate::id::Digest;
use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

/// Bytes of host and path together (distribution: `NameTotalLengthMax`).
const MAX_NAME: usize = 255;
/// Bytes of a tag (distribution: `TagRegexp`).
const MAX_TAG: usize = 128;
/// Docker Hub: the registry of names that have no host, unless somebody says another.
const HUB: &str = "docker.io";
/// Its other spelling, which means the same.
const LEGACY_HOST: &str = "index.docker.io";
/// Where it keeps names of one component.
const OFFICIAL: &str = "library";

/// A whole, normalised reference.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    host: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry, with its port when one is given: `docker.io`, `localhost:5000`, `[::1]:5000`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository's path in its registry: `library/nginx`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// `None` only with a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// What decides, when it is there.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Host and path: `docker.io/library/nginx`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.host, self.path)
    }

    /// What the store files the image under: `repository@digest` if there is a digest, else `repository:tag`.
    pub fn key(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => format!("{}@{digest}", self.repository()),
            (None, tag) => format!("{}:{}", self.repository(), tag.as_deref().unwrap_or("latest")),
        }
    }
}

/// What names without a host mean in this process, if not docker.io. One for all of it: two parts of a program that read `nginx` differently
/// would start other images than they pull.
static DEFAULT_HOST: OnceLock<String> = OnceLock::new();

/// Says which registry names without a host are of (`image.default_registry`); before any is read, and only once.
///
/// # Errors
/// `InvalidArgument` for what is no host of a reference.
pub fn set_default_host(host: &str) -> Result<()> {
    let wrong = |why: String| Error::invalid(format!("{why}; write it as in image names: registry.example:5000"));
    check_host(host).map_err(wrong)?;
    if !is_host(host) {
        return Err(wrong(format!("{host:?} has neither a dot nor a port, and is not localhost")));
    }
    let set = DEFAULT_HOST.get_or_init(|| host.to_owned());
    match set == host {
        true => Ok(()),
        false => Err(Error::internal(format!("names without a host are of {set} already"))),
    }
}

/// Whether the first part of a name is a host.
fn is_host(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost"
}

impl Reference {
    /// What docker writes without a host into its archives: docker.io is meant, whatever such a name means on this host.
    ///
    /// # Errors
    /// As for any reference.
    pub fn of_docker(text: &str) -> Result<Reference> {
        parse(text, HUB).map_err(|why| refused(text, &why))
    }
}

fn refused(text: &str, why: &str) -> Error {
    Error::invalid(format!("image reference {}: {why}", shorten(text)))
}

/// Whether a text is an image's id, `sha256:` and 64 digits or these alone, and so of what is there and no name of what could be.
pub fn is_id(text: &str) -> bool {
    is_hex64(text.strip_prefix("sha256:").unwrap_or(text))
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = Error;

    /// # Errors
    /// `InvalidArgument`, with the text and what is wrong with it.
    fn from_str(text: &str) -> Result<Self> {
        parse(text, DEFAULT_HOST.get().map_or(HUB, String::as_str)).map_err(|why| refused(text, &why))
    }
}

/// A reference in quotes, cut where it stops being readable.
fn shorten(text: &str) -> String {
    const SHOWN: usize = 300;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}

fn parse(text: &str, default_host: &str) -> Result<Reference, String> {
    if text.is_empty() {
        return Err("it is empty".to_owned());
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse::<Digest>().map_err(|e| e.to_string())?)),
        None => (text, None),
    };
    // A colon after the last slash starts the tag; one before it is a port's.
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(check_tag(tag)?.to_owned())),
        _ => (rest, None),
    };
    let (host, path) = split_host(name, default_host);
    check_host(host)?;
    let path = if host == HUB && !path.contains('/') { format!("{OFFICIAL}/{path}") } else { path.to_owned() };
    if host.len() + 1 + path.len() > MAX_NAME {
        return Err(format!("its name is longer than {MAX_NAME} bytes"));
    }
    path.split('/').try_for_each(check_component)?;
    if digest.is_none() && is_hex64(name) {
        return Err("64 hex digits are an image id, not a name".to_owned());
    }
    let tag = if tag.is_none() && digest.is_none() { Some("latest".to_owned()) } else { tag };
    Ok(Reference { host: host.to_owned(), path, tag, digest })
}

fn is_hex64(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn split_host<'a>(name: &'a str, default_host: &'a str) -> (&'a str, &'a str) {
    match name.split_once('/') {
        Some((first, rest)) if is_host(first) => (if first == LEGACY_HOST { HUB } else { first }, rest),
        _ => (if default_host == LEGACY_HOST { HUB } else { default_host }, name),
    }
}

fn check_tag(tag: &str) -> Result<&str, String> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if tag.is_empty() {
        return Err("its tag is empty".to_owned());
    }
    if tag.len() > MAX_TAG {
        return Err(format!("its tag is longer than {MAX_TAG} bytes"));
    }
    let good = word(tag.as_bytes()[0]) && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-');
    if good { Ok(tag) } else { Err(format!("tag {tag:?} has other characters than letters, digits, '_', '.', '-'")) }
}

fn check_host(host: &str) -> Result<(), String> {
    let bad = || Err(format!("host {host:?} is not a host name with an optional port"));
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) if address.parse::<std::net::Ipv6Addr>().is_ok() => {
                ("", port.strip_prefix(':').or(if port.is_empty() { None } else { Some("not a port") }))
            }
            _ => return bad(),
        },
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    if port.is_some_and(|p| p.bytes().any(|b| !b.is_ascii_digit()) || p.parse::<u16>().is_err()) {
        return bad();
    }
    let label = |label: &str| {
        let bytes = label.as_bytes();
        !bytes.is_empty()
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
            && bytes[0] != b'-'
            && bytes[bytes.len() - 1] != b'-'
    };
    if host.starts_with('[') || name.split('.').all(label) { Ok(()) } else { bad() }
}

fn check_component(component: &str) -> Result<(), String> {
    if component.is_empty() {
        return Err("its name has an empty part".to_owned());
    }
    if component.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(format!("its name must be lower case, {component:?} is not"));
    }
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let good = bytes.iter().all(|b| word(*b) || matches!(b, b'.' | b'_' | b'-'))
        && word(bytes[0])
        && word(bytes[bytes.len() - 1])
        && bytes.split(|b| word(*b)).all(|s| matches!(s, b"" | b"." | b"_" | b"__") || s.iter().all(|b| *b == b'-'));
    if good {
        Ok(())
    } else {
        Err(format!("{component:?} is not lower-case letters and digits separated by '.', '_', '__' or '-'"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_mean_what_docker_means_by_them() {
        for (text, whole) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27"),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest"),
            ("bitnami/redis", "docker.io/bitnami/redis:latest"),
            ("localhost/a", "localhost/a:latest"),
            ("localhost:5000/a:b", "localhost:5000/a:b"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
            ("[::1]:5000/a/b__c/d--e.f", "[::1]:5000/a/b__c/d--e.f:latest"),
            ("h.example/a.b_c:T-1.x", "h.example/a.b_c:T-1.x"),
        ] {
            assert_eq!(text.parse::<Reference>().expect(text).to_string(), whole);
        }
    }

    #[test]
    fn a_digest_decides_and_the_tag_is_kept_for_show() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let both: Reference = format!("nginx:1@{digest}").parse().expect("valid");
        assert_eq!((both.tag(), both.key()), (Some("1"), format!("docker.io/library/nginx@{digest}")));
        let only: Reference = format!("nginx@{digest}").parse().expect("valid");
        assert_eq!((only.tag(), only.to_string()), (None, format!("docker.io/library/nginx@{digest}")));
    }

    #[test]
    fn what_the_grammar_does_not_have_is_refused_with_the_reason() {
        let long = format!("a/{}", "b".repeat(255));
        let id = "a".repeat(64);
        for (text, why) in [
            ("", "empty"),
            ("Nginx", "lower case"),
            ("nginx:", "tag is empty"),
            ("nginx:-a", "tag"),
            ("a//b", "empty part"),
            ("a/../b", "separated"),
            ("a b", "separated"),
            ("a___b", "separated"),
            ("-a", "separated"),
            ("h.example:99999/a", "host"),
            ("h..example/a", "host"),
            ("[::1/a", "host"),
            ("nginx@sha256:12", "digest"),
            ("nginx@md5:12", "digest"),
            (&long, "longer"),
            (&id, "image id"),
        ] {
            let e = text.parse::<Reference>().expect_err(text).to_string();
            assert!(e.contains(why), "{text}: {e}");
        }
    }

    #[test]
    fn a_short_name_is_of_the_registry_that_is_said_and_docker_means_its_own() {
        for (text, whole) in [
            ("nginx:1", "r.example:5000/nginx:1"),
            ("team/a", "r.example:5000/team/a:latest"),
            ("docker.io/nginx", "docker.io/library/nginx:latest"),
            ("localhost/a", "localhost/a:latest"),
        ] {
            assert_eq!(parse(text, "r.example:5000").expect(text).to_string(), whole);
        }
        assert_eq!(parse("nginx", LEGACY_HOST).expect("hub").to_string(), "docker.io/library/nginx:latest");
        assert_eq!(Reference::of_docker("nginx").expect("hub").to_string(), "docker.io/library/nginx:latest");
        for bad in ["registry", "", "r.example/team", "https://r.example", "-.example", "r.example:x"] {
            assert!(set_default_host(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_id_is_told_from_a_name_that_is_spelled_like_one() {
        let digits = "a".repeat(64);
        assert!(is_id(&digits) && is_id(&format!("sha256:{digits}")));
        assert!(!is_id("sha256:12") && !is_id("nginx") && !is_id(&format!("nginx@sha256:{digits}")));
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_accepted_prints_as_something_that_means_the_same(text in "[a-zA-Z0-9./:@_\\[\\]-]{0,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                proptest::prop_assert_eq!(reference.to_string().parse::<Reference>().expect("printed form"), reference);
            }
        }
    }
}
