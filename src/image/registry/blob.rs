//! A layer's blob: from whichever endpoint has it, gone on with where one breaks off, and begun anew when what came is something else.
//!
//! Bytes of several endpoints may make one blob. If the whole then has another digest, nobody knows who was wrong: from there on each endpoint
//! has to give all of it. An endpoint that alone gave something else is not asked for this blob again. Whoever takes the bytes throws away what it
//! had before the blob begins anew.

use super::client::{Client, Place};
use super::failure::{Failure, Why};
use super::transport::Answer;
use crate::error::Error;
use crate::id::Digest;
use http::{HeaderMap, HeaderValue, Method, header};
use sha2::{Digest as _, Sha256};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Times that one blob is begun anew, at most: each is all of its bytes.
const MAX_ANEW: usize = 4;

/// What was found out about the endpoints of one blob.
#[derive(Debug, Default)]
pub struct Doubts {
    /// Endpoints that need not be asked again, by number.
    out: BTreeSet<usize>,
    /// Nobody goes on where another endpoint broke off.
    apart: bool,
    failures: Vec<Failure>,
}

impl Client<'_> {
    /// Writes a blob into `sink`, as it comes: nobody may take it for the blob until this has returned that it is. A sink that takes no more
    /// (it found something wrong in the bytes) does not end it: whether they are the blob's is what it may want to know.
    ///
    /// # Errors
    /// `Corrupt`: something else came, and another endpoint can be asked, with the same `doubts` and an empty sink. Else as
    /// [`Client::manifest`]; `Unavailable` when it broke off too often.
    pub async fn blob(
        &self,
        digest: &Digest,
        size: u64,
        sink: &mut (impl AsyncWrite + Unpin),
        doubts: &mut Doubts,
    ) -> Result<(), Failure> {
        let mut places = self.able(false);
        places.retain(|place| !doubts.out.contains(&place.number));
        places.truncate(if doubts.apart { 1 } else { usize::MAX });
        let (done, givers) = (Cell::new(0), RefCell::new(Vec::<&Place>::new()));
        let (mut hash, mut taken) = (Sha256::new(), true);
        let path = format!("blobs/{digest}");
        let came = self
            .attempt(&places, &done, async |place: &Place| {
                if done.get() == size {
                    return Ok(()); // it broke off behind its last byte
                }
                let mut headers = HeaderMap::new();
                if done.get() > 0 {
                    let range = HeaderValue::try_from(format!("bytes={}-", done.get()));
                    headers.insert(header::RANGE, range.map_err(|e| Error::internal(e.to_string()))?);
                }
                let mut answer = self.request(place, &Method::GET, &path, &headers).await?;
                let mut skip = missed(&answer, done.get(), size)?;
                while let Some(chunk) = answer.chunk().await? {
                    let passed = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
                    skip -= passed as u64;
                    let new = &chunk[passed..];
                    if new.len() as u64 > size - done.get() {
                        givers.replace(places.iter().copied().filter(|other| other.number == place.number).collect());
                        return Err(Failure::new(
                            Why::Corrupt,
                            format!("{digest} does not end after its {size} bytes"),
                        ));
                    }
                    if givers.borrow().iter().all(|other| other.number != place.number) && !new.is_empty() {
                        givers.borrow_mut().extend(places.iter().copied().find(|other| other.number == place.number));
                    }
                    hash.update(new);
                    taken = taken && sink.write_all(new).await.is_ok();
                    done.set(done.get() + new.len() as u64);
                }
                match done.get() == size {
                    true => Ok(()),
                    false => Err(Failure::new(
                        Why::Broken,
                        format!("{digest} ends after {} of {size} bytes: it is truncated", done.get()),
                    )),
                }
            })
            .await;
        let givers = givers.into_inner();
        let failure = match came {
            Ok(()) => {
                let is = Digest::from_sha256(&hash.finalize().into());
                if is == *digest {
                    return Ok(());
                }
                let names: Vec<String> = givers.iter().map(|place| place.describe()).collect();
                let error = format!("{}: what came for {digest} has the digest {is}", names.join(" and "));
                Failure::new(Why::Corrupt, error)
            }
            Err(failure) => failure,
        };
        Err(self.doubt(doubts, failure, &givers, &places))
    }

    /// Notes what a failure says about endpoints; `Corrupt` as long as another one can be asked.
    fn doubt(&self, doubts: &mut Doubts, failure: Failure, givers: &[&Place], asked: &[&Place]) -> Failure {
        let gave_up = failure.why == Why::Unwanted;
        match (failure.why, givers) {
            (Why::Corrupt, [only]) => drop(doubts.out.insert(only.number)),
            (Why::Corrupt, _) if !doubts.apart => doubts.apart = true,
            // Of those that have to give all of it one was asked.
            _ if doubts.apart => doubts.out.extend(asked.iter().map(|place| place.number)),
            // All that were left were asked.
            _ => doubts.out.extend(self.able(false).iter().map(|place| place.number)),
        }
        doubts.failures.push(failure);
        let left = self.able(false).iter().any(|place| !doubts.out.contains(&place.number));
        match doubts.failures.last() {
            Some(last) if left && !gave_up && doubts.failures.len() <= MAX_ANEW => {
                Failure { why: Why::Corrupt, error: last.error.clone() }
            }
            _ => {
                let all = self.summary(std::mem::take(&mut doubts.failures));
                Failure { why: if all.why == Why::Corrupt { Why::Wrong } else { all.why }, error: all.error }
            }
        }
    }
}

/// How much of an answer was had before: a server may not know `Range`, and begin anew.
fn missed(answer: &Answer<'_>, done: u64, size: u64) -> Result<u64, Failure> {
    let wrong = |message: String| Err(Failure::new(Why::Wrong, message));
    let (from, skip) = match answer.status {
        206 => {
            let range = answer.header(header::CONTENT_RANGE);
            let start = range.strip_prefix("bytes ").and_then(|r| r.split_once('-')).map(|(start, _)| start);
            if start.and_then(|start| start.parse().ok()) != Some(done) {
                return wrong(format!("it was asked for what follows byte {done}, and gives {range:?}"));
            }
            (done, 0)
        }
        _ => (0, done),
    };
    match answer.length() {
        Some(length) if length != size - from => {
            wrong(format!("it has {} bytes, the manifest says {size}", from.saturating_add(length)))
        }
        _ => Ok(skip),
    }
}
