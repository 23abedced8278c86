//! One repository: its manifests and blobs, from the first endpoint that has them (OCI distribution-spec 1.1, "Pull").
//!
//! | what happens                              | what is done                                                           |
//! |-------------------------------------------|------------------------------------------------------------------------|
//! | no connection, no such thing, denied      | the next endpoint                                                      |
//! | a redirect, and an error there            | again, for a signature that is not over                                |
//! | 401                                       | the challenge is answered and the request sent again, in mid-pull too  |
//! | 408, 429, 5xx                             | again after `Retry-After`, or a pause that doubles                     |
//! | it breaks off, or stops coming            | again, a blob from where it broke (`Range`)                            |
//! | a redirect                                | followed; to another origin without credentials, headers, certificate  |
//! | another digest, more bytes than announced | refused; the next endpoint, for a blob from its beginning ([`super::blob`]) |
//!
//! Nothing is believed that has no digest but what a tag is, which is why only endpoints that may `resolve` are asked that.

use super::authorize::{Authorizer, Shown};
use super::challenge;
use super::credentials::{Candidate, Secret};
use super::failure::{Failure, Why};
use super::hosts::Endpoint;
use super::transport::{Answer, Route, Transport};
use super::url::Url;
use crate::error::{Context, Error, Kind, Result};
use crate::id::Digest;
use crate::image::oci::MAX_DOCUMENT;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

/// Redirects of one request, at most.
const MAX_REDIRECTS: u32 = 5;
/// Challenges of one request that are answered by asking for a token: one, and another when the first is just over.
const MAX_CHALLENGES: u32 = 2;
/// All that are answered: the token that another request has asked for may be over as well when this one shows it.
const MAX_REFUSALS: u32 = 8;
/// Requests to one endpoint that bring nothing new, at most.
const MAX_ATTEMPTS: u32 = 5;
/// The same where no connection comes about: a server that restarts is worth a moment, one that is gone is not.
const MAX_CONNECTS: u32 = 2;
/// Requests for one blob, at most, whatever they bring: a server that gives a byte a time must end.
const MAX_REQUESTS: u32 = 64;
/// The first pause before another attempt; each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause, also when a server asks for one.
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// Bytes of an answer that says what is wrong, at most.
const MAX_COMPLAINT: usize = 4 << 10;
/// Letters of it that are shown.
const SHOWN_COMPLAINT: usize = 300;

/// Media types of what a name may stand for.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
/// The digest of a manifest, by which a HEAD tells what a tag is.
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// A repository at its endpoints.
#[derive(Debug)]
pub struct Client<'a> {
    transport: &'a Transport,
    /// The registry's name in references.
    registry: String,
    /// The path of the repository; empty for none.
    path: String,
    scope: String,
    places: Vec<Place>,
    /// What helps where the registry cannot be reached and has no mirror.
    remedy: String,
}

/// An endpoint, and what this client has learned of it.
#[derive(Debug)]
pub(super) struct Place {
    /// Among those of its client.
    pub(super) number: usize,
    endpoint: Endpoint,
    route: Route,
    /// What may be shown to it, the first that there is.
    candidates: Vec<Candidate>,
    /// Which that is, once it was wanted.
    secret: tokio::sync::OnceCell<Option<Secret>>,
    shown: tokio::sync::Mutex<Shown>,
    /// It could not be reached.
    down: AtomicBool,
    /// What it said when it was asked in TLS.
    not_tls: AtomicBool,
}

/// A document that no digest vouched for.
#[derive(Debug)]
pub struct Tagged {
    pub bytes: Vec<u8>,
    /// As the answer says.
    pub media_type: String,
}

impl Place {
    pub(super) fn describe(&self) -> String {
        format!("{} {}", if self.endpoint.mirror { "mirror" } else { "registry" }, self.endpoint.base.origin)
    }

    /// What is shown here; helpers are asked the first time.
    async fn secret(&self) -> Result<Option<&Secret>, Failure> {
        let found = self.secret.get_or_try_init(async || {
            for candidate in &self.candidates {
                match candidate {
                    Candidate::Known(secret) => return Ok(Some(secret.clone())),
                    Candidate::Helper(helper) => match helper.get().await {
                        Ok(None) => {}
                        got => return got,
                    },
                }
            }
            Ok(None)
        });
        // Another endpoint may want nothing to be shown.
        let found = found.await.map_err(|error: Error| Failure { why: Why::Denied, error })?;
        Ok(found.as_ref())
    }
}

impl<'a> Client<'a> {
    /// A client of `path` at the registry `host`. `candidates` gives what may be shown to an endpoint.
    pub fn new(
        transport: &'a Transport,
        host: &str,
        path: &str,
        endpoints: Vec<Endpoint>,
        candidates: impl Fn(&Endpoint) -> Vec<Candidate>,
    ) -> Client<'a> {
        let place = |(number, endpoint): (usize, Endpoint)| Place {
            number,
            route: Route {
                origin: endpoint.base.origin.clone(),
                tls: endpoint.tls.clone(),
                dial_timeout: endpoint.dial_timeout,
            },
            candidates: candidates(&endpoint),
            secret: tokio::sync::OnceCell::new(),
            endpoint,
            shown: tokio::sync::Mutex::default(),
            down: AtomicBool::new(false),
            not_tls: AtomicBool::new(false),
        };
        Client {
            transport,
            registry: host.to_owned(),
            path: path.to_owned(),
            scope: if path.is_empty() { String::new() } else { format!("repository:{path}:pull") },
            places: endpoints.into_iter().enumerate().map(place).collect(),
            remedy: String::new(),
        }
    }

    /// Says what helps when the registry cannot be reached.
    #[must_use]
    pub fn with_remedy(self, remedy: String) -> Client<'a> {
        Client { remedy, ..self }
    }

    /// What a tag is at this moment, without fetching it; `None` when the registry does not say.
    ///
    /// # Errors
    /// `NotFound`, `FailedPrecondition` for missing or wrong credentials, `Unavailable`.
    pub async fn resolve(&self, tag: &str) -> Result<Option<Digest>> {
        self.any(true, &Cell::new(0), async |place: &Place| {
            let answer = self.request(place, &Method::HEAD, &format!("manifests/{tag}"), &accept()).await?;
            Ok(answer.header(CONTENT_DIGEST).parse().ok())
        })
        .await
    }

    /// The document of a tag.
    ///
    /// # Errors
    /// As [`Client::resolve`]; `ResourceExhausted` for one that is too long.
    pub async fn tagged(&self, tag: &str) -> Result<Tagged> {
        self.any(true, &Cell::new(0), async |place: &Place| {
            let answer = self.request(place, &Method::GET, &format!("manifests/{tag}"), &accept()).await?;
            let media_type =
                answer.header(header::CONTENT_TYPE).split(';').next().unwrap_or_default().trim().to_owned();
            Ok(Tagged { bytes: whole(answer, None).await?, media_type })
        })
        .await
    }

    /// The manifest or index of this digest, and of this size if that is known.
    ///
    /// # Errors
    /// As [`Client::tagged`]; `InvalidArgument` for another digest or size.
    pub async fn manifest(&self, digest: &Digest, size: Option<u64>) -> Result<Vec<u8>> {
        self.document(&format!("manifests/{digest}"), &accept(), digest, size).await
    }

    /// A small blob, a config.
    ///
    /// # Errors
    /// As [`Client::manifest`].
    pub async fn small_blob(&self, digest: &Digest, size: u64) -> Result<Vec<u8>> {
        self.document(&format!("blobs/{digest}"), &HeaderMap::new(), digest, Some(size)).await
    }

    async fn document(&self, what: &str, headers: &HeaderMap, digest: &Digest, size: Option<u64>) -> Result<Vec<u8>> {
        if let Some(size) = size.filter(|size| *size > MAX_DOCUMENT) {
            return Err(Error::exhausted(format!("{digest} has {size} bytes, at most {MAX_DOCUMENT} are read")));
        }
        self.any(false, &Cell::new(0), async |place: &Place| {
            let bytes = whole(self.request(place, &Method::GET, what, headers).await?, size).await?;
            let is = Digest::from_sha256(&Sha256::digest(&bytes).into());
            match is == *digest {
                true => Ok(bytes),
                false => Err(Failure::new(Why::Wrong, format!("what it gives for {digest} has the digest {is}"))),
            }
        })
        .await
    }

    async fn any<T>(
        &self,
        tag: bool,
        progress: &Cell<u64>,
        ask: impl AsyncFnMut(&Place) -> Result<T, Failure>,
    ) -> Result<T> {
        self.attempt(&self.able(tag), progress, ask).await.map_err(|failure| failure.error)
    }

    /// The endpoints that may say what a tag is, or give what has a digest. Those that could not be reached before come last.
    pub(super) fn able(&self, tag: bool) -> Vec<&Place> {
        let able = |place: &&Place| if tag { place.endpoint.resolve } else { place.endpoint.pull };
        let mut places: Vec<&Place> = self.places.iter().filter(able).collect();
        places.sort_by_key(|place| place.down.load(Ordering::Relaxed));
        places
    }

    /// Asks one endpoint after the other, each as often as the table above says.
    pub(super) async fn attempt<T>(
        &self,
        places: &[&Place],
        progress: &Cell<u64>,
        mut ask: impl AsyncFnMut(&Place) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let (mut failures, mut requests): (Vec<Failure>, u32) = (Vec::new(), 0);
        for (n, place) in places.iter().enumerate() {
            let known_plain = self.places.iter().any(|other| other.not_tls.load(Ordering::Relaxed));
            let no_use = match place.endpoint.plain {
                true => !known_plain,
                false => place.not_tls.load(Ordering::Relaxed) && places.iter().any(|other| other.endpoint.plain),
            };
            if no_use {
                continue;
            }
            let last = n + 1 == places.len();
            let (mut attempts, mut before) = (0, progress.get());
            let failure = loop {
                let failure = match ask(place).await {
                    Ok(answer) => return Ok(answer),
                    Err(failure) => failure,
                };
                if progress.get() > before {
                    (attempts, before) = (0, progress.get());
                }
                attempts += 1;
                requests += 1;
                let Some(pause) = pause(&failure, attempts, last).filter(|_| requests < MAX_REQUESTS) else {
                    break failure;
                };
                tracing::debug!("{}: {}; again in {} ms", place.describe(), failure.error, pause.as_millis());
                tokio::time::sleep(pause).await;
            };
            match failure.why {
                Why::Unwanted => return Err(failure),
                Why::Corrupt => return Err(failure.context(place.describe())),
                Why::Unreachable | Why::Untrusted => place.down.store(true, Ordering::Relaxed),
                Why::NotTls => place.not_tls.store(true, Ordering::Relaxed),
                _ => {}
            }
            // That it speaks plain http is no failure where that is tried next.
            let retried = failure.why == Why::NotTls && places.get(n + 1).is_some_and(|next| next.endpoint.plain);
            if !retried {
                failures.push(failure.context(place.describe()));
            }
        }
        Err(self.summary(failures))
    }

    /// One failure of those of all endpoints: the registry's own decides what it is, for it is the last.
    pub(super) fn summary(&self, mut failures: Vec<Failure>) -> Failure {
        let Some(last) = failures.pop() else {
            return Failure::new(
                Why::Wrong,
                format!("no endpoint for {} has the capability for this in its hosts.toml", self.registry),
            );
        };
        let mirrored = self.places.iter().any(|place| place.endpoint.mirror);
        let helps = last.why == Why::Unreachable && !mirrored && !self.remedy.is_empty();
        if failures.is_empty() && !helps {
            return last;
        }
        let mut texts: Vec<String> = failures.iter().chain([&last]).map(|failure| failure.error.to_string()).collect();
        texts.extend(helps.then(|| self.remedy.clone()));
        Failure { why: last.why, error: Error::new(last.error.kind(), texts.join("; ")) }
    }

    /// Sends a request below the repository, and answers challenges; the answer is a good one.
    pub(super) async fn request(
        &self,
        place: &Place,
        method: &Method,
        what: &str,
        headers: &HeaderMap,
    ) -> Result<Answer<'a>, Failure> {
        let mut url = place.endpoint.base.with(&format!("/{}/{what}", self.path));
        if place.endpoint.mirror {
            url.path = format!("{}?ns={}", url.path, super::url::escape(&self.registry));
        }
        self.exchange(place, method, &url, headers, what).await
    }

    /// Asks whether the registry takes our credentials, or wants none.
    ///
    /// # Errors
    /// As [`Client::resolve`].
    pub async fn ping(&self) -> Result<()> {
        self.any(true, &Cell::new(0), async |place: &Place| {
            let url = place.endpoint.base.with("/");
            self.exchange(place, &Method::GET, &url, &HeaderMap::new(), "its API").await?.drain().await;
            Ok(())
        })
        .await
    }

    async fn exchange(
        &self,
        place: &Place,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
        what: &str,
    ) -> Result<Answer<'a>, Failure> {
        let (mut challenges, mut refusals) = (0, 0);
        loop {
            let (authorization, generation) = place.shown.lock().await.header();
            let answer = self.follow(place, method, url, headers, authorization).await?;
            let own = answer.origin == place.route.origin;
            if answer.status != 401 || !own || challenges == MAX_CHALLENGES || refusals == MAX_REFUSALS {
                return self.judge(place, answer, what).await;
            }
            refusals += 1;
            let offered: Vec<String> = answer
                .headers
                .get_all(header::WWW_AUTHENTICATE)
                .iter()
                .filter_map(|value| value.to_str().ok().map(str::to_owned))
                .collect();
            answer.drain().await;
            let challenge = challenge::choose(offered.iter().map(String::as_str));
            if self.authorizer(place).await?.answer(&place.shown, generation, challenge).await? {
                challenges += 1;
            }
        }
    }

    async fn authorizer<'b>(&'b self, place: &'b Place) -> Result<Authorizer<'b>, Failure> {
        Ok(Authorizer {
            transport: self.transport,
            route: &place.route,
            secret: place.secret().await?,
            registry: if place.endpoint.mirror { &place.endpoint.base.origin.host } else { &self.registry },
            scope: &self.scope,
        })
    }

    /// Sends a request and follows redirects. What the endpoint may know stays with its origin.
    async fn follow(
        &self,
        place: &Place,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
        authorization: Option<HeaderValue>,
    ) -> Result<Answer<'a>, Failure> {
        let (mut url, mut left) = (url.clone(), false);
        for _ in 0..=MAX_REDIRECTS {
            left |= url.origin != place.route.origin;
            let mut all = headers.clone();
            let mut route = place.route.clone();
            if left {
                route = Route { origin: url.origin.clone(), tls: route.tls.elsewhere(), ..route };
            } else {
                for (name, value) in &place.endpoint.headers {
                    all.append(name.clone(), value.clone());
                }
                if let Some(authorization) = &authorization {
                    all.insert(header::AUTHORIZATION, authorization.clone());
                }
            }
            let sent = self.transport.send(&route, method, &url, &all, "").await;
            let answer = match left {
                true => sent.map_err(|e| e.context(format!("redirected to {}", url.origin)))?,
                false => sent?,
            };
            if !matches!(answer.status, 301 | 302 | 303 | 307 | 308) {
                return Ok(answer);
            }
            let to = url.join(answer.header(header::LOCATION)).context(|| "its redirect")?;
            answer.drain().await;
            url = to;
        }
        Err(Failure::new(Why::Wrong, format!("more than {MAX_REDIRECTS} redirects")))
    }

    /// A good answer, or what a bad one means.
    async fn judge(&self, place: &Place, answer: Answer<'a>, what: &str) -> Result<Answer<'a>, Failure> {
        let status = answer.status;
        if matches!(status, 200 | 206) {
            return Ok(answer);
        }
        let after = retry_after(answer.header(header::RETRY_AFTER));
        if answer.origin != place.route.origin {
            // A signature that is over: the endpoint gives a new one. What else is said there is no concern of people's.
            let says = format!("redirected to {}, which answers {status}", answer.origin);
            return Err(Failure::new(if status == 404 { Why::Missing } else { Why::Busy(after) }, says));
        }
        let said = complaint(answer).await;
        let says =
            if said.is_empty() { format!("it answers {status}") } else { format!("it answers {status}, {said}") };
        Err(match status {
            401 | 403 => self.authorizer(place).await?.denied(&says),
            404 => Failure::new(Why::Missing, format!("{}/{} not found: {says}", self.path, what)),
            408 | 429 | 500 | 502 | 503 | 504 => Failure::new(Why::Busy(after), says),
            _ => Failure::new(Why::Wrong, says),
        })
    }
}

fn accept() -> HeaderMap {
    HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(MANIFEST_TYPES))])
}

/// How long to wait before the same endpoint is asked again; `None`: not again.
fn pause(failure: &Failure, attempts: u32, last: bool) -> Option<Duration> {
    let most = match failure.why {
        Why::Busy(_) | Why::Broken => MAX_ATTEMPTS,
        // Another endpoint is at hand sooner.
        Why::Unreachable | Why::Untrusted if last => MAX_CONNECTS,
        _ => return None,
    };
    let doubled = FIRST_PAUSE * 2u32.pow(attempts.min(8));
    let asked = if let Why::Busy(Some(after)) = failure.why { after } else { Duration::ZERO };
    (attempts < most && asked <= MAX_PAUSE).then(|| asked.max(jittered(doubled / 2)).min(MAX_PAUSE))
}

/// Half to all of it, for a thousand nodes were refused at the same moment.
fn jittered(pause: Duration) -> Duration {
    let mut byte = [0];
    crate::sys::random(&mut byte);
    pause / 2 + pause / 2 * u32::from(byte[0]) / 255
}

/// `Retry-After`: seconds, or a date (RFC 9110, 10.2.3).
fn retry_after(text: &str) -> Option<Duration> {
    let date = || httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).ok();
    text.parse().ok().map(Duration::from_secs).or_else(date)
}

/// The whole of a document, of `size` bytes if that is known.
async fn whole(answer: Answer<'_>, size: Option<u64>) -> Result<Vec<u8>, Failure> {
    let most = size.unwrap_or(MAX_DOCUMENT).min(MAX_DOCUMENT);
    let long = || {
        let error = match size {
            Some(size) => Error::invalid(format!("it has more bytes than the {size} that what points to it says")),
            None => Error::exhausted(format!("it has more than {MAX_DOCUMENT} bytes: no manifest or index is so long")),
        };
        Failure { why: Why::Wrong, error }
    };
    if answer.length().is_some_and(|length| length > most) {
        return Err(long());
    }
    let (bytes, all) = answer.text(usize::try_from(most).unwrap_or(usize::MAX)).await?;
    match size {
        _ if !all => Err(long()),
        Some(size) if bytes.len() as u64 != size => {
            Err(Failure::new(Why::Wrong, format!("it has {} bytes, what points to it says {size}", bytes.len())))
        }
        _ => Ok(bytes),
    }
}

#[derive(Deserialize)]
struct RawComplaint {
    errors: Vec<RawError>,
}

#[derive(Deserialize)]
struct RawError {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// What a registry says is wrong, in one harmless line; empty when it says nothing that can be read.
async fn complaint(answer: Answer<'_>) -> String {
    let Ok((bytes, true)) = answer.text(MAX_COMPLAINT).await else { return String::new() };
    let Ok(raw) = serde_json::from_slice::<RawComplaint>(&bytes) else { return String::new() };
    let text = raw.errors.iter().map(|e| format!("{}: {}", e.code, e.message)).collect::<Vec<_>>().join(", ");
    text.chars().filter(|c| !c.is_control()).take(SHOWN_COMPLAINT).collect()
}

/// The error of a pull that is cancelled.
pub fn cancelled() -> Error {
    Error::new(Kind::Unavailable, "cancelled: nobody waits for it any more")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(why: Why) -> Failure {
        Failure::new(why, "x")
    }

    #[test]
    fn a_pause_doubles_and_a_server_may_ask_for_more_but_not_for_hours() {
        let second = pause(&failure(Why::Broken), 2, true).expect("again");
        assert!((FIRST_PAUSE..=2 * FIRST_PAUSE).contains(&second), "{second:?}");
        let asked = failure(Why::Busy(Some(Duration::from_secs(7))));
        assert_eq!(pause(&asked, 1, true), Some(Duration::from_secs(7)));
        assert_eq!(pause(&failure(Why::Busy(Some(Duration::from_secs(3600)))), 1, true), None);
        assert_eq!(pause(&failure(Why::Broken), MAX_ATTEMPTS, true), None);
        assert_eq!(pause(&failure(Why::Unreachable), 1, false), None, "another endpoint is at hand");
        for never in [Why::Denied, Why::Missing, Why::Wrong, Why::Unwanted, Why::NotTls] {
            assert_eq!(pause(&failure(never), 1, true), None, "{never:?}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(retry_after("3"), Some(Duration::from_secs(3)));
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        assert!(retry_after(&date).is_some_and(|after| after > Duration::from_secs(90)));
        assert_eq!(retry_after("Thu, 01 Jan 1970 00:00:00 GMT"), None);
        assert_eq!(retry_after("soon"), None);
    }
}
