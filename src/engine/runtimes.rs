//! Runtime handlers: whose program makes a pod's containers, and what that program says of itself.
//!
//! The shim calls it ([`crate::launch::foreign`]); here it is only asked for its features, by `PROGRAM features` (runtime-spec, features.md),
//! once for as long as the file is the same. One that does not know the question, like crun before 1.9, has promised nothing.

use super::Engine;
use crate::error::{Context, Error, Result};
use crate::network::cni::exec::{self, Call, Said};
use crate::wire::Runtime;
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Paths of other OCI runtimes, by the names of their handlers.
pub type Runtimes = BTreeMap<String, PathBuf>;

/// How long a runtime may take to tell its features, or its version; they take 20 ms.
const FEATURES_TIMEOUT: Duration = Duration::from_secs(10);
/// The option of a mount that is read-only with all below it (runtime-spec, config.md).
const RECURSIVE_READ_ONLY: &str = "rro";

/// What pods of a handler can ask for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features {
    pub recursive_read_only_mounts: bool,
}

/// What a program says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The first line of `--version`.
    pub version: String,
    /// `None`: it does not know the question.
    pub features: Option<Features>,
}

/// A file as it was: another one has another.
type Mark = (u64, u64, i64, i64);

/// How long one that did not tell its features is not asked again: a kubelet asks for Status every few seconds.
const ASKED_AGAIN: Duration = Duration::from_secs(60);

/// What a program has said; of one that said nothing, when that was.
type Heard = std::result::Result<Features, Instant>;

/// What programs have said, as long as they are the same.
#[derive(Debug, Default)]
pub(super) struct Remembered(Mutex<HashMap<PathBuf, (Mark, Heard)>>);

/// What is read of the answer to `features`.
#[derive(Deserialize)]
struct Answer {
    #[serde(default, rename = "mountOptions")]
    mount_options: Vec<String>,
}

/// The other OCI runtime that a handler names; `None` for the built-in one.
///
/// # Errors
/// `InvalidArgument` for a handler that is not configured.
pub fn runtime_of(handler: &str, runtimes: &Runtimes) -> Result<Option<Runtime>> {
    if handler.is_empty() {
        return Ok(None);
    }
    match runtimes.get(handler) {
        Some(path) => Ok(Some(Runtime { name: handler.to_owned(), path: path.clone() })),
        None => {
            let known: Vec<&str> = runtimes.keys().map(String::as_str).collect();
            let known =
                if known.is_empty() { "there is none".to_owned() } else { format!("there are {}", known.join(", ")) };
            Err(Error::invalid(format!(
                "runtime handler {handler:?} is not configured ({known}); set runtimes.{handler}.path in the configuration file"
            )))
        }
    }
}

impl Engine {
    /// What pods of each handler can ask for, but for the built-in one's.
    pub async fn runtime_features(&self) -> BTreeMap<String, Features> {
        let mut all = BTreeMap::new();
        for (name, path) in &self.0.options.runtimes {
            all.insert(name.clone(), self.features_of(path).await);
        }
        all
    }

    async fn features_of(&self, program: &Path) -> Features {
        // What is not there cannot do anything, and may be installed later.
        let Ok(file) = std::fs::metadata(program) else { return Features::default() };
        let mark = (file.dev(), file.ino(), file.mtime(), file.mtime_nsec());
        let remembered = || self.0.features.0.lock().unwrap_or_else(PoisonError::into_inner);
        match remembered().get(program).filter(|(of, _)| *of == mark) {
            Some((_, Ok(features))) => return *features,
            Some((_, Err(when))) if when.elapsed() < ASKED_AGAIN => return Features::default(),
            _ => {}
        }
        let answer = ask(program).await.map(Option::unwrap_or_default).map_err(|e| {
            tracing::info!("{e}: no feature is promised for its pods");
            Instant::now()
        });
        remembered().insert(program.to_owned(), (mark, answer));
        answer.unwrap_or_default()
    }
}

/// Executes a runtime's program, to hear what it is.
///
/// # Errors
/// `Internal` when it cannot be executed, `FailedPrecondition` when it is none that tells its version, `DeadlineExceeded` after 10 s.
pub async fn look(program: &Path) -> Result<Told> {
    let said = call(program, "--version").await?;
    let version = String::from_utf8_lossy(&said.stdout).lines().next().unwrap_or_default().trim().to_owned();
    if !said.status.success() || version.is_empty() {
        let why = format!("{} --version: {}, {:?}", program.display(), said.status, said.stderr);
        return Err(Error::precondition(why));
    }
    Ok(Told { version, features: ask(program).await? })
}

/// `None`: it does not know the question.
async fn ask(program: &Path) -> Result<Option<Features>> {
    let said = call(program, "features").await?;
    if !said.status.success() {
        return Ok(None);
    }
    features(&said.stdout).map(Some).context(|| format!("{} features", program.display()))
}

async fn call(program: &Path, word: &str) -> Result<Said> {
    exec::run(Call {
        program: program.to_owned(),
        args: vec![word.to_owned()],
        env: vec![("PATH".to_owned(), "/usr/sbin:/usr/bin:/sbin:/bin".to_owned())],
        stdin: Vec::new(),
        until: Instant::now() + FEATURES_TIMEOUT,
        patience: Duration::ZERO,
    })
    .await
    .context(|| format!("{} {word}", program.display()))
}

fn features(json: &[u8]) -> Result<Features> {
    let told: Answer = serde_json::from_slice(json).map_err(|e| Error::internal(e.to_string()))?;
    Ok(Features { recursive_read_only_mounts: told.mount_options.iter().any(|option| option == RECURSIVE_READ_ONLY) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_handler_must_be_configured() {
        let known = Runtimes::from([("runc".to_owned(), "/usr/sbin/runc".into())]);
        assert_eq!(runtime_of("", &known).expect("the built-in one"), None);
        assert_eq!(runtime_of("runc", &known).expect("known").map(|r| r.path), Some("/usr/sbin/runc".into()));
        let e = runtime_of("kata", &known).expect_err("unknown").to_string();
        assert!(e.contains("\"kata\"") && e.contains("runc") && e.contains("runtimes.kata.path"), "{e}");
    }

    #[test]
    fn a_feature_is_promised_only_if_the_program_says_so() {
        let of = |json: &str| features(json.as_bytes()).map(|f| f.recursive_read_only_mounts);
        assert!(of(r#"{"ociVersionMin": "1.0.0", "mountOptions": ["ro", "rro"], "linux": {}}"#).expect("valid"));
        assert!(!of(r#"{"mountOptions": ["ro"]}"#).expect("valid"));
        assert!(!of("{}").expect("valid"));
        assert!(of("unknown command features").is_err());
    }
}
