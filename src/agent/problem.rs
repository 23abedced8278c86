//! What is wrong with a manifest: place, field, value, what is wrong and what to write instead.
//!
//! One file may be wrong in several places and all of them (up to [`MAX_PROBLEMS`]) are reported at once, in the order of the
//! file. Nothing here knows what a pod is.

use crate::error::{Error, Kind};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::sync::Arc;

/// Problems told of one file; the rest is counted only. More would scroll the first one, which often explains them, away.
pub const MAX_PROBLEMS: usize = 20;
/// Bytes of a value that are repeated in a message.
const MAX_SHOWN_BYTES: usize = 80;

/// A place in a file; both count from 1, the column in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Mark {
    pub line: usize,
    pub column: usize,
}

/// A place in a file and the field that stands there (`spec.containers[0].image`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Spot {
    pub at: Mark,
    pub path: String,
}

impl Spot {
    /// A field below this one that does not stand in the file: the same place.
    pub fn below(&self, name: &str) -> Spot {
        Spot { at: self.at, path: join(&self.path, name) }
    }
}

/// `a` and `b` as `a.b`.
pub fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct At<T> {
    pub value: T,
    pub spot: Spot,
}

/// One thing that is wrong with a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestError {
    /// The file's name as the user gave it.
    pub file: Arc<str>,
    /// Where the value stands (the key, where the key is what is wrong).
    pub at: Mark,
    /// The field; empty for what concerns the whole document.
    pub path: Box<str>,
    /// What stands there, cut to a line; `None` where there is no one value.
    pub value: Option<Box<str>>,
    /// What is wrong with it: lower case, no final period.
    pub message: Box<str>,
    /// What to write instead.
    pub remedy: Box<str>,
}

impl ManifestError {
    /// One at `spot` of `file`; `value` is what stands there.
    pub fn new(
        file: Arc<str>,
        spot: &Spot,
        value: Option<&str>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        ManifestError {
            file,
            at: spot.at,
            path: spot.path.as_str().into(),
            value: value.map(|v| shown(v).into()),
            message: message.into().into(),
            remedy: remedy.into().into(),
        }
    }
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.at.line, self.at.column)?;
        match (&*self.path, &self.value) {
            ("", None) => {}
            ("", Some(value)) => write!(f, "{value}: ")?,
            (path, None) => write!(f, "{path}: ")?,
            (path, Some(value)) => write!(f, "{path} = {value}: ")?,
        }
        write!(f, "{}; {}", self.message, self.remedy)
    }
}

/// Everything found wrong with a file, never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestErrors {
    /// At most [`MAX_PROBLEMS`], in the order of the file.
    pub errors: Vec<ManifestError>,
    /// How many more there were.
    pub more: usize,
}

impl fmt::Display for ManifestErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        if self.more > 0 {
            write!(f, "\nand {} more", self.more)?;
        }
        Ok(())
    }
}

impl std::error::Error for ManifestErrors {}

impl From<ManifestErrors> for Error {
    /// One [`Kind::InvalidArgument`] with a line for each problem.
    fn from(errors: ManifestErrors) -> Error {
        Error::new(Kind::InvalidArgument, errors.to_string())
    }
}

/// Collects the problems of one file while it is read; shared by all who read it.
#[derive(Debug)]
pub struct Problems {
    file: Arc<str>,
    list: RefCell<Vec<ManifestError>>,
    more: Cell<usize>,
}

impl Problems {
    /// None yet.
    pub fn new(file: Arc<str>) -> Self {
        Problems { file, list: RefCell::default(), more: Cell::default() }
    }

    /// The file's name.
    pub fn file(&self) -> Arc<str> {
        Arc::clone(&self.file)
    }

    /// Adds one, with the `value` that is wrong.
    pub fn wrong(&self, spot: &Spot, value: &str, message: impl Into<String>, remedy: impl Into<String>) {
        self.push(ManifestError::new(self.file(), spot, Some(value), message, remedy));
    }

    /// Adds one that is not about one value.
    pub fn add(&self, spot: &Spot, message: impl Into<String>, remedy: impl Into<String>) {
        self.push(ManifestError::new(self.file(), spot, None, message, remedy));
    }

    fn push(&self, error: ManifestError) {
        let mut list = self.list.borrow_mut();
        if list.contains(&error) {
            return; // a field that two others depend on is read twice
        }
        if list.len() >= MAX_PROBLEMS {
            self.more.set(self.more.get() + 1);
            return;
        }
        list.push(error);
    }

    /// Whether further ones are only counted: no need to look for a remedy.
    pub fn is_full(&self) -> bool {
        self.list.borrow().len() >= MAX_PROBLEMS
    }

    /// Whether there is none so far.
    pub fn is_empty(&self) -> bool {
        self.list.borrow().is_empty()
    }

    /// `value` if nothing was wrong.
    ///
    /// # Errors
    /// All problems, in the order of the file.
    pub fn finish<T>(self, value: T) -> Result<T, ManifestErrors> {
        let mut errors = self.list.into_inner();
        if errors.is_empty() {
            return Ok(value);
        }
        errors.sort_by_key(|e| e.at);
        Err(ManifestErrors { errors, more: self.more.get() })
    }
}

/// A value in quotes, escaped and cut so that it stays on its line.
fn shown(value: &str) -> String {
    let mut end = value.len().min(MAX_SHOWN_BYTES);
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    let cut = if end < value.len() { "..." } else { "" };
    format!("{:?}{cut}", &value[..end])
}

/// `did you mean X?` for the nearest of `known`, if one is near enough to be meant.
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    /// Longer words are no typing errors, and the comparison is quadratic.
    const MAX_WORD: usize = 64;
    if word.len() > MAX_WORD {
        return None;
    }
    let lower = word.to_lowercase();
    let allowed = (word.chars().count() / 3).clamp(1, 3);
    known
        .into_iter()
        .map(|candidate| (distance(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(d, candidate)| *d <= allowed && *d < candidate.len())
        .min_by_key(|(d, _)| *d)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, replacements and swaps of neighbours between two words (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_proposed_and_a_distant_one_is_not() {
        let known = ["apiVersion", "kind", "metadata", "spec"];
        assert_eq!(did_you_mean("apiversion", known), Some("apiVersion"));
        assert_eq!(did_you_mean("sepc", known), Some("spec"));
        assert_eq!(did_you_mean("knid", known), Some("kind"));
        assert_eq!(did_you_mean("replicas", known), None);
        assert_eq!(did_you_mean(&"x".repeat(1000), known), None);
    }

    #[test]
    fn twenty_problems_are_told_and_the_rest_counted() {
        let problems = Problems::new("f".into());
        for line in (1..=25).rev() {
            problems.add(&Spot { at: Mark { line, column: 1 }, path: String::new() }, "bad", "good");
        }
        let errors = problems.finish(()).expect_err("25 were added");
        assert_eq!((errors.errors.len(), errors.more), (MAX_PROBLEMS, 5));
        assert!(errors.errors.is_sorted_by_key(|e| e.at));
        assert!(errors.to_string().ends_with("and 5 more"));
    }

    #[test]
    fn a_long_value_is_cut_at_a_character() {
        let text = shown(&"\u{e9}".repeat(1000));
        assert!(text.len() < 2 * MAX_SHOWN_BYTES && text.ends_with("\"..."), "{text}");
    }
}
