//! Answers to challenges, for one endpoint: a password, or a token that somebody gives for it.
//!
//! What is shown is shown to one origin ([`super::client`] sees to that), and to the realm that this origin names for its tokens, which has to
//! speak https if the origin does.

use super::challenge::Challenge;
use super::credentials::{Secret, encode};
use super::failure::{Failure, Why};
use super::transport::{Route, Transport};
use super::url::{Origin, Url, escape};
use http::{HeaderMap, HeaderValue, Method, header};
use serde::Deserialize;

/// Bytes of a token server's answer, at most: tokens of clouds have some thousand.
const MAX_ANSWER: usize = 1 << 20;
/// Who asks, for OAuth2.
const CLIENT_ID: &str = "podwright";

/// What is shown to an endpoint.
#[derive(Debug, Default)]
pub struct Shown {
    header: Option<HeaderValue>,
    /// Grows with each change, so that of many requests that were refused together one asks for a token.
    generation: u32,
}

impl Shown {
    pub fn header(&self) -> (Option<HeaderValue>, u32) {
        (self.header.clone(), self.generation)
    }
}

/// Who answers for whom.
#[derive(Debug)]
pub struct Authorizer<'a> {
    pub transport: &'a Transport,
    /// The way to the endpoint.
    pub route: &'a Route,
    pub secret: Option<&'a Secret>,
    /// The host in references, for remedies.
    pub registry: &'a str,
    /// `repository:library/nginx:pull`; empty for none.
    pub scope: &'a str,
}

#[derive(Deserialize)]
struct RawToken {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

impl Authorizer<'_> {
    /// Makes what is shown next, after a request with what was shown in `generation` was refused with this challenge. False when
    /// another request has made it already.
    ///
    /// # Errors
    /// `Denied`, with the remedy; those of asking for a token.
    pub async fn answer(
        &self,
        shown: &tokio::sync::Mutex<Shown>,
        generation: u32,
        challenge: Option<Challenge>,
    ) -> Result<bool, Failure> {
        let mut shown = shown.lock().await;
        if shown.generation != generation {
            return Ok(false);
        }
        let text = match (challenge, self.secret) {
            (None, _) => return Err(self.denied("it does not say how to authenticate")),
            (Some(Challenge::Bearer { .. }), Some(Secret::Bearer(token))) => format!("Bearer {token}"),
            (Some(Challenge::Bearer { realm, service, scope }), _) => {
                let scope = scope.unwrap_or_else(|| self.scope.to_owned());
                format!("Bearer {}", self.token(&realm, service.as_deref(), &scope).await?)
            }
            (Some(Challenge::Basic), Some(Secret::Password { user, password })) => {
                format!("Basic {}", encode(user, password))
            }
            (Some(Challenge::Basic), _) => return Err(self.denied("it wants a user and a password")),
        };
        let mut value = HeaderValue::try_from(text).map_err(|_| self.denied("its token is not one of HTTP"))?;
        value.set_sensitive(true);
        // A password or a token of the user's that was refused is refused again; a new token is not known to be.
        if shown.header.as_ref() == Some(&value) {
            return Err(self.denied("it refuses them"));
        }
        shown.header = Some(value);
        shown.generation += 1;
        Ok(true)
    }

    /// What was missing, and where it comes from.
    pub fn denied(&self, why: &str) -> Failure {
        let registry = self.registry;
        let shown = match self.secret {
            None => format!(
                "no credentials for {registry} were given: `podwright login {registry}`, or imagePullSecrets of the pod"
            ),
            Some(secret) => format!(
                "{} for {registry} was shown; `podwright login {registry}`, or imagePullSecrets of the pod, give others",
                secret.describe()
            ),
        };
        let what = if self.scope.is_empty() { "access denied" } else { "pull access denied, or no such repository" };
        Failure::new(Why::Denied, format!("{what} ({why}); {shown}"))
    }

    /// A token for `scope` (distribution: docs/spec/auth/token.md and oauth.md).
    async fn token(&self, realm: &str, service: Option<&str>, scope: &str) -> Result<String, Failure> {
        let url = Url::parse(realm)
            .map_err(|e| Failure::new(Why::Wrong, e.to_string()).context("the realm of its tokens"))?;
        self.get_token(&url, service, scope).await.map_err(|e| e.context(format!("ask {url} for a token")))
    }

    async fn get_token(&self, realm: &Url, service: Option<&str>, scope: &str) -> Result<String, Failure> {
        if self.route.origin.https && !realm.origin.https {
            return Err(Failure::new(
                Why::Wrong,
                "it gives tokens without TLS, and would see the password; nothing was sent",
            ));
        }
        let mut query: Vec<(&str, &str)> = Vec::new();
        query.extend(service.map(|service| ("service", service)));
        query.extend(Some(("scope", scope)).filter(|_| !scope.is_empty()));
        let mut headers = HeaderMap::new();
        let answer = match self.secret {
            Some(Secret::Identity(token)) => {
                query.extend([("grant_type", "refresh_token"), ("client_id", CLIENT_ID), ("refresh_token", token)]);
                let form = HeaderValue::from_static("application/x-www-form-urlencoded");
                headers.insert(header::CONTENT_TYPE, form);
                self.transport
                    .send(&self.towards(&realm.origin), &Method::POST, realm, &headers, &encoded(&query))
                    .await?
            }
            secret => {
                if let Some(Secret::Password { user, password }) = secret {
                    query.push(("account", user));
                    let text = format!("Basic {}", encode(user, password));
                    let mut value =
                        HeaderValue::try_from(text).map_err(|_| self.denied("the user is not one of HTTP"))?;
                    value.set_sensitive(true);
                    headers.insert(header::AUTHORIZATION, value);
                }
                let mut url = realm.clone();
                url.path.push(if url.path.contains('?') { '&' } else { '?' });
                url.path.push_str(&encoded(&query));
                self.transport.send(&self.towards(&url.origin), &Method::GET, &url, &headers, "").await?
            }
        };
        let status = answer.status;
        let (bytes, whole) = answer.text(MAX_ANSWER).await?;
        match status {
            200 if whole => {}
            400 | 401 | 403 => return Err(self.denied(&format!("the token server answers {status}"))),
            429 | 500..=599 => return Err(Failure::new(Why::Busy(None), format!("it answers {status}"))),
            _ => return Err(Failure::new(Why::Wrong, format!("it answers {status}, or more than {MAX_ANSWER} bytes"))),
        }
        let raw: Option<RawToken> = serde_json::from_slice(&bytes).ok(); // its own message could quote the token
        let token = raw.and_then(|raw| raw.token.filter(|t| !t.is_empty()).or(raw.access_token));
        token.filter(|t| !t.is_empty()).ok_or_else(|| Failure::new(Why::Wrong, "there is no token in its answer"))
    }

    fn towards(&self, origin: &Origin) -> Route {
        match *origin == self.route.origin {
            true => self.route.clone(),
            false => {
                Route { origin: origin.clone(), tls: self.route.tls.elsewhere(), dial_timeout: self.route.dial_timeout }
            }
        }
    }
}

fn encoded(query: &[(&str, &str)]) -> String {
    query.iter().map(|(name, value)| format!("{name}={}", escape(value))).collect::<Vec<_>>().join("&")
}
