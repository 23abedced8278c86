//! The one error of the crate: a kind to branch on, and a chain of sentences for people.
//!
//! An error is returned or logged, never both. The operation and its object are named once, at the call that failed
//! (`mount overlay on /x: EINVAL`); callers add what they were doing with [`Context::context`]. Codes of gRPC and exit
//! codes are made from [`Kind`] at the edges, not here.

use std::fmt;
use std::io;

/// What a caller may want to branch on. The names mirror gRPC's codes without depending on tonic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The named object does not exist.
    NotFound,
    /// An object of that name exists and is a different one.
    AlreadyExists,
    /// The request or file is wrong and will stay wrong.
    InvalidArgument,
    /// The request is right but the object is not in a state for it.
    FailedPrecondition,
    /// The peer is not there (now); trying again may help.
    Unavailable,
    /// The time given for the operation is over.
    DeadlineExceeded,
    /// A bound was reached: a size, a count, a disk.
    ResourceExhausted,
    /// The host or this version cannot do it.
    Unsupported,
    /// Everything else: a system call that should have worked.
    Internal,
}

/// An error: its [`Kind`] and its sentences, outermost first.
#[derive(Clone, PartialEq, Eq)]
pub struct Error {
    kind: Kind,
    chain: Vec<String>,
}

/// The result of everything fallible here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind` whose innermost sentence is `message`: lower case, no final period, with the remedy when there is one.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error { kind, chain: vec![message.into()] }
    }

    /// [`Kind::NotFound`].
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    /// [`Kind::InvalidArgument`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::InvalidArgument, message)
    }

    /// [`Kind::FailedPrecondition`].
    pub fn precondition(message: impl Into<String>) -> Self {
        Self::new(Kind::FailedPrecondition, message)
    }

    /// [`Kind::Unsupported`].
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(Kind::Unsupported, message)
    }

    /// [`Kind::ResourceExhausted`].
    pub fn exhausted(message: impl Into<String>) -> Self {
        Self::new(Kind::ResourceExhausted, message)
    }

    /// [`Kind::Internal`].
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }

    /// What went wrong, for a caller to branch on.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The same error with another kind: for the caller that knows better what a failure means.
    #[must_use]
    pub fn with_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// The same error, told as part of what the caller was doing.
    #[must_use]
    pub fn context(mut self, doing: impl Into<String>) -> Self {
        self.chain.insert(0, doing.into());
        self
    }

    /// One error of several, as teardown collects them; `None` for an empty list. The kind is the first one's.
    pub fn collect(errors: Vec<Error>) -> Option<Error> {
        let kind = errors.first()?.kind;
        let text = errors.iter().map(Error::to_string).collect::<Vec<_>>().join("; ");
        Some(Error::new(kind, text))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.chain.join(": "))
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.kind)
    }
}

impl std::error::Error for Error {}

/// The kind an error of the operating system has unless the caller says otherwise.
fn kind_of(error: &io::Error) -> Kind {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::OutOfMemory => {
            Kind::ResourceExhausted
        }
        io::ErrorKind::TimedOut => Kind::DeadlineExceeded,
        _ => Kind::Internal,
    }
}

/// The name of an errno as the man pages spell it (`EINVAL`), followed by what it means.
pub fn describe_io(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => describe_errno(number),
        None => error.to_string(),
    }
}

/// `EPERM (operation not permitted)` for 1, and so on; `errno 4242` for a number that has no name.
pub fn describe_errno(number: i32) -> String {
    let name = crate::sys::errno_name(number);
    let text = io::Error::from_raw_os_error(number).to_string();
    let text = text.split(" (os error").next().unwrap_or_default().to_lowercase();
    if name.is_empty() { format!("errno {number}") } else { format!("{name} ({text})") }
}

/// The candidate that `word` was most likely meant to be, for "did you mean": at most a third of its letters (and at least
/// one) are wrong, missing, too many or swapped with their neighbour. Case does not count.
pub fn did_you_mean<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Longer than any name that we know; the comparison takes the square of it.
    const MAX_LETTERS: usize = 64;
    let word: Vec<char> = word.to_lowercase().chars().take(MAX_LETTERS + 1).collect();
    if word.len() > MAX_LETTERS {
        return None;
    }
    let near = |candidate: &str| distance(&word, &candidate.to_lowercase().chars().collect::<Vec<_>>());
    let best = candidates.into_iter().map(|c| (near(c), c)).min_by_key(|(distance, _)| *distance);
    best.filter(|(distance, _)| *distance <= (word.len() / 3).max(1)).map(|(_, candidate)| candidate)
}

/// Edits that make one word the other: insert, delete, replace a letter, or swap two neighbours (optimal string alignment).
fn distance(a: &[char], b: &[char]) -> usize {
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replace.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// Names what was being done, on the line that did it.
pub trait Context<T> {
    /// Adds a sentence in front of the error; it is made only when there is an error.
    ///
    /// # Errors
    /// The same error, with the sentence.
    fn context<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T>;
}

impl<T> Context<T> for Result<T> {
    fn context<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|e| e.context(doing()))
    }
}

impl<T> Context<T> for io::Result<T> {
    fn context<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|e| Error::new(kind_of(&e), describe_io(&e)).context(doing()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_reads_as_one_line_from_the_outside_in() {
        let e = Err::<(), _>(io::Error::from_raw_os_error(22))
            .context(|| "mount overlay on /x")
            .context(|| "start container c1");
        let e = e.expect_err("it was made an error");
        assert_eq!(e.to_string(), "start container c1: mount overlay on /x: EINVAL (invalid argument)");
        assert_eq!(e.kind(), Kind::Internal);
    }

    #[test]
    fn a_full_disk_is_an_exhausted_resource() {
        let e = Err::<(), _>(io::Error::from_raw_os_error(28)).context(|| "write /x");
        assert_eq!(e.expect_err("it was made an error").kind(), Kind::ResourceExhausted);
    }

    #[test]
    fn collected_errors_keep_every_sentence() {
        assert_eq!(Error::collect(vec![]), None);
        let both = Error::collect(vec![Error::not_found("a"), Error::internal("b")]).expect("two errors");
        assert_eq!((both.kind(), both.to_string().as_str()), (Kind::NotFound, "a; b"));
    }

    #[test]
    fn a_slip_of_the_finger_is_recognised_and_another_word_is_not() {
        let known = ["apiVersion", "kind", "spec"];
        assert_eq!(did_you_mean("apiversion", known), Some("apiVersion"));
        assert_eq!(did_you_mean("sepc", known), Some("spec"));
        assert_eq!(did_you_mean("knd", known), Some("kind"));
        assert_eq!(did_you_mean("volume", known), None);
        assert_eq!(did_you_mean(&"spec".repeat(1000), known), None);
        assert_eq!(did_you_mean("x", []), None);
    }
}
