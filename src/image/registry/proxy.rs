//! `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`, as Go's net/http reads them: what containerd, docker and the kubelet obey.

use super::credentials;
use super::failure::{Failure, Why};
use super::url::{Origin, Url};
use std::net::IpAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Bytes of a proxy's answer to CONNECT, at most.
const MAX_ANSWER: usize = 16 << 10;

/// What the environment says.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    https: Option<Proxy>,
    http: Option<Proxy>,
    /// Hosts that are asked directly.
    none: Vec<String>,
}

/// A proxy, spoken to in plain HTTP.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    pub origin: Origin,
    /// For `Proxy-Authorization`.
    pub authorization: Option<String>,
}

impl std::fmt::Debug for Proxy {
    /// Without its password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.origin)
    }
}

impl Proxies {
    /// Reads the environment by `var`. What is no URL is none, for other programs read these variables too.
    pub fn from_env(var: impl Fn(&str) -> Option<String>) -> Proxies {
        let either = |upper: &str| var(upper).or_else(|| var(&upper.to_lowercase())).filter(|text| !text.is_empty());
        let none = either("NO_PROXY").unwrap_or_default();
        Proxies {
            https: either("HTTPS_PROXY").as_deref().and_then(parse),
            http: either("HTTP_PROXY").as_deref().and_then(parse),
            none: none.split(',').map(|entry| entry.trim().to_lowercase()).filter(|entry| !entry.is_empty()).collect(),
        }
    }

    /// The proxy on the way to `origin`; loopback is never behind one.
    pub fn towards(&self, origin: &Origin) -> Option<&Proxy> {
        let proxy = if origin.https { &self.https } else { &self.http };
        proxy.as_ref().filter(|_| !origin.is_loopback() && !self.none.iter().any(|entry| excepts(entry, origin)))
    }
}

/// One entry of `NO_PROXY`: `*`, a domain with all below it, an address or a range of them, perhaps with a port.
fn excepts(entry: &str, origin: &Origin) -> bool {
    if entry == "*" {
        return true;
    }
    if let (Ok(address), Some((net, bits))) = (origin.name().parse::<IpAddr>(), entry.split_once('/')) {
        return net.parse().is_ok_and(|net| bits.parse().is_ok_and(|bits| is_in(address, net, bits)));
    }
    let (name, port) = match entry.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') => (name, port.parse::<u16>().ok()),
        _ => (entry, None),
    };
    let name = name.trim_start_matches("*.").trim_start_matches('.').trim_matches(['[', ']']);
    let same = origin.name().strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    same && !name.is_empty() && port.is_none_or(|port| port == origin.port)
}

fn is_in(address: IpAddr, net: IpAddr, bits: u32) -> bool {
    match (address, net) {
        (IpAddr::V4(a), IpAddr::V4(n)) => {
            u32::MAX.checked_shl(32 - bits.min(32)).unwrap_or(0) & (a.to_bits() ^ n.to_bits()) == 0
        }
        (IpAddr::V6(a), IpAddr::V6(n)) => {
            u128::MAX.checked_shl(128 - bits.min(128)).unwrap_or(0) & (a.to_bits() ^ n.to_bits()) == 0
        }
        _ => false,
    }
}

fn parse(text: &str) -> Option<Proxy> {
    let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
    let (user, host) = rest.rsplit_once('@').map_or((None, rest), |(user, host)| (Some(user), host));
    let origin = Url::parse(&format!("{scheme}://{host}")).ok()?.origin;
    let authorization = user.map(|user| {
        let (user, password) = user.split_once(':').unwrap_or((user, ""));
        format!("Basic {}", credentials::encode(user, password))
    });
    (!origin.https).then_some(Proxy { origin, authorization })
}

/// Asks a proxy for a way to `origin`.
///
/// # Errors
/// `Unreachable`, with what it has said.
pub async fn connect(stream: &mut TcpStream, proxy: &Proxy, origin: &Origin) -> Result<(), Failure> {
    let failed = |why: String| Failure::new(Why::Unreachable, format!("proxy {}: {why}", proxy.origin));
    let to = format!("{}:{}", origin.host, origin.port);
    let authorization = proxy.authorization.iter().map(|a| format!("Proxy-Authorization: {a}\r\n")).collect::<String>();
    let request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{authorization}\r\n");
    stream.write_all(request.as_bytes()).await.map_err(|e| failed(e.to_string()))?;
    let mut answer = Vec::new();
    // A byte at a time: what follows the empty line is TLS's.
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() == MAX_ANSWER {
            return Err(failed("its answer does not end".to_owned()));
        }
        answer.push(stream.read_u8().await.map_err(|e| failed(e.to_string()))?);
    }
    let line = String::from_utf8_lossy(answer.split(|b| *b == b'\r').next().unwrap_or_default()).into_owned();
    match line.split(' ').nth(1) {
        Some("200") => Ok(()),
        _ => Err(failed(format!("it says {line:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(no_proxy: &str) -> Proxies {
        Proxies::from_env(|name| match name {
            "https_proxy" => Some("http://user:pass@proxy.example:3128".to_owned()),
            "HTTP_PROXY" => Some("proxy.example".to_owned()),
            "NO_PROXY" => Some(no_proxy.to_owned()),
            _ => None,
        })
    }

    fn origin(url: &str) -> Origin {
        Url::parse(url).expect(url).origin
    }

    #[test]
    fn each_scheme_has_its_proxy_and_loopback_none() {
        let all = proxies("");
        let https = all.towards(&origin("https://r.example")).expect("a proxy");
        assert_eq!((https.origin.port, https.authorization.as_deref()), (3128, Some("Basic dXNlcjpwYXNz")));
        assert_eq!(all.towards(&origin("http://r.example")).expect("a proxy").origin.port, 80);
        assert_eq!(all.towards(&origin("http://127.0.0.1:5000")), None);
        assert!(!format!("{all:?}").contains("pass"));
    }

    #[test]
    fn no_proxy_is_read_as_go_reads_it() {
        for (entry, url) in [
            ("*", "https://r.example"),
            ("r.example", "https://r.example"),
            ("example", "https://r.example"),
            (".example", "https://r.example"),
            ("x, r.example:443", "https://r.example"),
            ("10.0.0.0/8", "https://10.1.2.3"),
            ("fd00::/8", "https://[fd00::1]:5000"),
            ("10.1.2.3", "https://10.1.2.3:5000"),
        ] {
            assert_eq!(proxies(entry).towards(&origin(url)), None, "{entry} {url}");
        }
        for (entry, url) in
            [("ample", "https://r.example"), ("r.example:80", "https://r.example"), ("10.0.0.0/8", "https://11.0.0.1")]
        {
            assert!(proxies(entry).towards(&origin(url)).is_some(), "{entry} {url}");
        }
    }
}
