//! Which transport and which protocol a client and this server have in common, from the headers of its request. Pure.
//!
//! SPDY: `Upgrade: SPDY/3.1` and `X-Stream-Protocol-Version`, as k8s.io/streaming has it. WebSocket: RFC 6455 with a subprotocol.

use super::websocket::Channels;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

/// What a URL is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Exec and attach.
    Command,
    PortForward,
}

/// What was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A stream for each of stdin, stdout, stderr, errors and sizes; or two for each forwarded connection.
    Spdy { version: Version },
    /// The same as channels of a WebSocket.
    WebSocket { channels: Channels, version: Version },
    /// A SPDY connection in the messages of a WebSocket; nothing is left to be agreed on there.
    Tunnel,
}

/// Of the protocol `remotecommand`, or of `portforward`, which has one only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    V1 = 1,
    V2,
    /// From here on a terminal has sizes.
    V3,
    /// From here on how it ended is told as JSON, also when all went well.
    V4,
    /// From here on a client can end a channel.
    V5,
}

/// The answer to a request.
#[derive(Debug)]
pub struct Agreed {
    pub transport: Transport,
    /// For `101 Switching Protocols`.
    pub headers: HeaderMap,
}

/// Why there is none.
#[derive(Debug)]
pub struct Refused {
    pub status: StatusCode,
    pub message: String,
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

const PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// Of SPDY; the client's order counts.
const COMMAND: &[(&str, Version)] = &[
    ("v4.channel.k8s.io", Version::V4),
    ("v3.channel.k8s.io", Version::V3),
    ("v2.channel.k8s.io", Version::V2),
    ("channel.k8s.io", Version::V1),
];
const PORT_FORWARD: &[(&str, Version)] = &[("portforward.k8s.io", Version::V1)];

/// Of WebSockets: name, whether it is base64, version.
const CHANNELS: &[(&str, bool, Version)] = &[
    ("v5.channel.k8s.io", false, Version::V5),
    ("v4.channel.k8s.io", false, Version::V4),
    ("v4.base64.channel.k8s.io", true, Version::V4),
    ("channel.k8s.io", false, Version::V1),
    ("base64.channel.k8s.io", true, Version::V1),
];
const FORWARD_CHANNELS: &[(&str, bool, Version)] =
    &[("v4.channel.k8s.io", false, Version::V4), ("v4.base64.channel.k8s.io", true, Version::V4)];
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// Appended to a client's key, RFC 6455 section 1.3.
const KEY_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What both can do.
///
/// # Errors
/// What the client is to be answered.
pub fn negotiate(kind: Kind, method: &Method, headers: &HeaderMap) -> Result<Agreed, Refused> {
    if method != Method::GET && method != Method::POST {
        return Err(refused(StatusCode::METHOD_NOT_ALLOWED, "GET or POST".to_owned()));
    }
    if has(headers, &UPGRADE, "websocket") && has(headers, &CONNECTION, "upgrade") {
        return websocket(kind, method, headers);
    }
    spdy(kind, headers)
}

fn refused(status: StatusCode, message: String) -> Refused {
    Refused { status, message, headers: Vec::new() }
}

/// Case-insensitive and somewhere in it, as Kubernetes' own server has it.
fn has(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.into_iter().any(|value| value.to_ascii_lowercase().contains(word))
}

/// All values of a header that may be repeated, or be a list.
fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|word| !word.is_empty())
}

fn spdy(kind: Kind, headers: &HeaderMap) -> Result<Agreed, Refused> {
    let known = match kind {
        Kind::Command => COMMAND,
        Kind::PortForward => PORT_FORWARD,
    };
    if list(headers, &PROTOCOL).next().is_none() {
        return Err(refused(StatusCode::BAD_REQUEST, "unable to upgrade: X-Stream-Protocol-Version is missing".into()));
    }
    let common = list(headers, &PROTOCOL).find_map(|theirs| known.iter().find(|(ours, _)| *ours == theirs));
    let Some((name, version)) = common else {
        let offered: Vec<&str> = list(headers, &PROTOCOL).collect();
        let message = format!("unable to upgrade: none of the protocols {offered:?} is known here");
        let mut refusal = refused(StatusCode::FORBIDDEN, message);
        for (ours, _) in known {
            refusal.headers.push((ACCEPTED, HeaderValue::from_static(ours)));
        }
        return Err(refusal);
    };
    if !has(headers, &CONNECTION, "upgrade") || !has(headers, &UPGRADE, "spdy/3.1") {
        let message = "unable to upgrade: Connection: Upgrade and Upgrade: SPDY/3.1 are missing".to_owned();
        return Err(refused(StatusCode::BAD_REQUEST, message));
    }
    let mut answer = switching("SPDY/3.1");
    answer.insert(PROTOCOL, HeaderValue::from_static(name));
    Ok(Agreed { transport: Transport::Spdy { version: *version }, headers: answer })
}

fn switching(to: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(to));
    headers
}

fn websocket(kind: Kind, method: &Method, headers: &HeaderMap) -> Result<Agreed, Refused> {
    let bad = |message: &str| refused(StatusCode::BAD_REQUEST, format!("unable to upgrade: {message}"));
    if method != Method::GET {
        return Err(bad("a WebSocket begins with GET"));
    }
    if !has(headers, &http::header::SEC_WEBSOCKET_VERSION, "13") {
        let mut refusal = refused(StatusCode::UPGRADE_REQUIRED, "WebSocket version 13 only".to_owned());
        refusal.headers.push((http::header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13")));
        return Err(refusal);
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok()).ok_or_else(|| bad("no key"))?;
    let hash =
        ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, format!("{}{KEY_SUFFIX}", key.trim()).as_bytes());
    let accept = HeaderValue::from_str(&BASE64_STANDARD.encode(hash)).map_err(|_| bad("no key"))?;
    let known = match kind {
        Kind::Command => CHANNELS,
        Kind::PortForward => FORWARD_CHANNELS,
    };
    let mut answer = switching("websocket");
    answer.insert(SEC_WEBSOCKET_ACCEPT, accept);
    let find = |theirs: &str| {
        if kind == Kind::PortForward && theirs == TUNNEL {
            return Some((TUNNEL, Transport::Tunnel));
        }
        let (name, base64, version) = *known.iter().find(|(ours, ..)| *ours == theirs)?;
        let channels = Channels { base64, half_close: version >= Version::V5 };
        Some((name, Transport::WebSocket { channels, version }))
    };
    let offered: Vec<&str> = list(headers, &SEC_WEBSOCKET_PROTOCOL).collect();
    let transport = match offered.iter().find_map(|theirs| find(theirs)) {
        Some((name, transport)) => {
            answer.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
            transport
        }
        // As Kubernetes' own server has it: who asks for none gets the first.
        None if offered.is_empty() => {
            let channels = Channels { base64: false, half_close: false };
            Transport::WebSocket { channels, version: Version::V1 }
        }
        None => {
            let message = format!("unable to upgrade: none of the protocols {offered:?} is known here");
            return Err(refused(StatusCode::FORBIDDEN, message));
        }
    };
    Ok(Agreed { transport, headers: answer })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(kind: Kind, method: &str, headers: &[(&str, &str)]) -> Result<Agreed, Refused> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name: HeaderName = name.parse().expect("valid");
            map.append(name, value.parse().expect("valid"));
        }
        negotiate(kind, &method.parse().expect("valid"), &map)
    }

    const SPDY: [(&str, &str); 2] = [("Connection", "upgrade"), ("Upgrade", "spdy/3.1")];
    const WEBSOCKET: [(&str, &str); 4] = [
        ("Connection", "keep-alive, Upgrade"),
        ("Upgrade", "WebSocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    fn with<'a>(base: &[(&'a str, &'a str)], more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        [base, more].concat()
    }

    #[test]
    fn the_first_protocol_of_the_client_that_is_known_is_taken() {
        let asked = with(
            &SPDY,
            &[
                ("X-Stream-Protocol-Version", "v5.channel.k8s.io,v3.channel.k8s.io"),
                ("X-Stream-Protocol-Version", "v4.channel.k8s.io"),
            ],
        );
        let agreed = ask(Kind::Command, "POST", &asked).expect("common");
        assert_eq!(agreed.transport, Transport::Spdy { version: Version::V3 });
        assert_eq!(agreed.headers[&PROTOCOL], "v3.channel.k8s.io");
        assert_eq!(agreed.headers[&UPGRADE], "SPDY/3.1");
        let asked = with(&SPDY, &[("X-Stream-Protocol-Version", "portforward.k8s.io")]);
        assert!(ask(Kind::PortForward, "GET", &asked).is_ok());
        let refusal = ask(Kind::Command, "POST", &asked).expect_err("none");
        assert_eq!((refusal.status, refusal.headers.len()), (StatusCode::FORBIDDEN, 4));
    }

    #[test]
    fn what_is_no_upgrade_is_told_what_is_missing() {
        let status = |headers: &[(&str, &str)]| ask(Kind::Command, "POST", headers).expect_err("refused").status;
        assert_eq!(status(&SPDY), StatusCode::BAD_REQUEST);
        assert_eq!(status(&[("X-Stream-Protocol-Version", "v4.channel.k8s.io")]), StatusCode::BAD_REQUEST);
        assert_eq!(ask(Kind::Command, "PUT", &SPDY).expect_err("refused").status, StatusCode::METHOD_NOT_ALLOWED);
    }

    #[test]
    fn a_websocket_is_answered_as_in_the_rfc() {
        let asked = with(&WEBSOCKET, &[("Sec-WebSocket-Protocol", "v9.channel.k8s.io, v5.channel.k8s.io")]);
        let agreed = ask(Kind::Command, "GET", &asked).expect("common");
        assert_eq!(agreed.headers[&SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(agreed.headers[&SEC_WEBSOCKET_PROTOCOL], "v5.channel.k8s.io");
        let channels = Channels { base64: false, half_close: true };
        assert_eq!(agreed.transport, Transport::WebSocket { channels, version: Version::V5 });
        let tunnel = with(&WEBSOCKET, &[("Sec-WebSocket-Protocol", TUNNEL)]);
        assert_eq!(ask(Kind::PortForward, "GET", &tunnel).expect("common").transport, Transport::Tunnel);
        assert_eq!(ask(Kind::Command, "GET", &tunnel).expect_err("none").status, StatusCode::FORBIDDEN);
        let none = ask(Kind::Command, "GET", &WEBSOCKET).expect("the oldest");
        assert!(matches!(none.transport, Transport::WebSocket { version: Version::V1, .. }));
        assert_eq!(ask(Kind::Command, "POST", &WEBSOCKET).expect_err("refused").status, StatusCode::BAD_REQUEST);
    }
}
