//! What was asked for over the CRI and is still to be fetched over HTTP: each under a token that nobody can guess, once, for a minute.

use crate::error::{Error, Result};
use crate::sys;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// How long a URL is good for, as with the kubelet's own (k8s.io/cri-streaming, request_cache.go).
const VALID: Duration = Duration::from_secs(60);
/// How many are out at a time, as there.
const MAX_OUT: usize = 1000;
/// Random bytes of a token.
const TOKEN_BYTES: usize = 16;

/// Requests by their tokens.
#[derive(Debug)]
pub struct Tokens<T> {
    requests: HashMap<String, T>,
    /// When each ends, the next one first. One that was taken is still in here.
    ends: VecDeque<(Instant, String)>,
}

impl<T> Default for Tokens<T> {
    fn default() -> Self {
        Tokens { requests: HashMap::new(), ends: VecDeque::new() }
    }
}

impl<T> Tokens<T> {
    /// A token for the request: 22 characters that need no escaping in a URL.
    ///
    /// # Errors
    /// `ResourceExhausted` when too many are out.
    pub fn put(&mut self, request: T, now: Instant) -> Result<String> {
        self.expire(now);
        if self.requests.len() >= MAX_OUT {
            let text = format!("{MAX_OUT} streaming requests wait for their clients; try again in a minute");
            return Err(Error::exhausted(text));
        }
        let mut bytes = [0; TOKEN_BYTES];
        sys::random(&mut bytes);
        let token = BASE64_URL_SAFE_NO_PAD.encode(bytes);
        self.requests.insert(token.clone(), request);
        self.ends.push_back((now + VALID, token.clone()));
        Ok(token)
    }

    /// The request of a token, if it is `wanted`: then it is gone.
    pub fn take(&mut self, token: &str, now: Instant, wanted: impl FnOnce(&T) -> bool) -> Option<T> {
        self.expire(now);
        if self.requests.get(token).is_some_and(wanted) { self.requests.remove(token) } else { None }
    }

    /// Whether there is such a request.
    pub fn has(&mut self, token: &str, now: Instant, wanted: impl FnOnce(&T) -> bool) -> bool {
        self.expire(now);
        self.requests.get(token).is_some_and(wanted)
    }

    fn expire(&mut self, now: Instant) {
        // Those that were taken are dropped with their time, and bounded by how many are given out in it.
        while self.ends.front().is_some_and(|(end, token)| *end <= now || !self.requests.contains_key(token)) {
            if let Some((_, token)) = self.ends.pop_front() {
                self.requests.remove(&token);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_once_and_for_a_minute_and_for_what_it_was_given_for() {
        let (mut tokens, now) = (Tokens::default(), Instant::now());
        let token = tokens.put("exec", now).expect("room");
        assert!(token.len() >= 8 && token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
        assert_eq!(tokens.take(&token, now, |request| *request == "attach"), None);
        assert_eq!(tokens.take(&token, now, |request| *request == "exec"), Some("exec"));
        assert_eq!(tokens.take(&token, now, |_| true), None);
        let late = tokens.put("exec", now).expect("room");
        assert_eq!(tokens.take(&late, now + VALID, |_| true), None);
        assert!(tokens.requests.is_empty() && tokens.ends.is_empty());
    }

    #[test]
    fn a_thousand_wait_at_most_and_those_whose_time_is_over_make_room() {
        let (mut tokens, now) = (Tokens::default(), Instant::now());
        let all: std::collections::HashSet<String> = (0..MAX_OUT).map(|n| tokens.put(n, now).expect("room")).collect();
        assert_eq!(all.len(), MAX_OUT);
        assert_eq!(tokens.put(0, now).expect_err("full").kind(), crate::error::Kind::ResourceExhausted);
        tokens.put(0, now + VALID).expect("room again");
        assert_eq!((tokens.requests.len(), tokens.ends.len()), (1, 1));
    }

    #[test]
    fn tokens_that_are_taken_at_once_are_not_kept_for_their_minute() {
        let (mut tokens, now) = (Tokens::default(), Instant::now());
        for n in 0..10 * MAX_OUT {
            let token = tokens.put(n, now).expect("room");
            assert_eq!(tokens.take(&token, now, |_| true), Some(n));
        }
        assert!(tokens.ends.len() <= 1);
    }
}
