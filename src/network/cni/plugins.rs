//! Plugins as programs: where they are, what they are executed with, and what their failures mean in a sentence.

use super::conf::{Network, Plugin};
use super::exec::{self, Call};
use super::version::{Version, highest_common};
use crate::error::{Error, Kind, Result};
use crate::id::PodId;
use crate::network::INTERFACE;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Plugins that run at once. A node that starts has a hundred pods to attach, and each plugin is a process of 10 MB.
const MAX_AT_ONCE: usize = 16;
/// Characters of a plugin's own words that are passed on.
const MAX_WORDS: usize = 400;
/// What VERSION has said, remembered for so many programs.
const MAX_KNOWN: usize = 256;
/// Where plugins find iptables and the like when this process has no PATH.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `CNI_COMMAND`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Add,
    Check,
    Del,
    Gc,
    Status,
    Version,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verb::Add => "ADD",
            Verb::Check => "CHECK",
            Verb::Del => "DEL",
            Verb::Gc => "GC",
            Verb::Status => "STATUS",
            Verb::Version => "VERSION",
        })
    }
}

/// What of an attachment is told by the environment.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    pub pod: &'a PodId,
    /// Empty when the namespace is gone.
    pub netns: &'a str,
    /// `CNI_ARGS`.
    pub args: &'a str,
}

/// One execution.
#[derive(Debug)]
pub struct Job<'a> {
    pub verb: Verb,
    pub plugin: &'a Plugin,
    /// The network's name, for people.
    pub network: &'a str,
    pub subject: Option<Subject<'a>>,
    pub stdin: Vec<u8>,
    pub until: Instant,
}

/// A file as it was: another one has another.
type Mark = (u64, u64, i64, i64);

/// Runs plugins, some at once.
#[derive(Debug)]
pub struct Plugins {
    at_once: Semaphore,
    /// What programs have answered to VERSION.
    versions: Mutex<HashMap<PathBuf, (Mark, Vec<String>)>>,
}

/// An error as plugins print it (SPEC, "Error").
#[derive(Debug, Deserialize)]
struct Complaint {
    #[serde(default)]
    code: u32,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

#[derive(Debug, Deserialize, Serialize)]
struct Versions {
    #[serde(rename = "supportedVersions", default)]
    supported: Vec<String>,
}

impl Default for Plugins {
    fn default() -> Self {
        Plugins { at_once: Semaphore::new(MAX_AT_ONCE), versions: Mutex::default() }
    }
}

impl Plugins {
    /// Executes a plugin that is in one of `directories`; what it has printed.
    ///
    /// # Errors
    /// `FailedPrecondition` when there is no such program, with the remedy; `DeadlineExceeded` when its time is over; `Unavailable` when it
    /// asks to be tried later; `Internal`, with its own words, for what else it says. All name the network and the plugin.
    pub async fn run(&self, job: Job<'_>, directories: &[PathBuf]) -> Result<Vec<u8>> {
        let doing = format!("network {}: {} of plugin {}", job.network, job.verb, job.plugin.program);
        self.run_quietly(job, directories).await.map_err(|e| e.context(doing))
    }

    async fn run_quietly(&self, job: Job<'_>, directories: &[PathBuf]) -> Result<Vec<u8>> {
        let program = find(&job.plugin.program, directories)?;
        let full = |_| Error::new(Kind::DeadlineExceeded, "too many other plugins were running all the time");
        let permit = tokio::time::timeout_at(job.until, self.at_once.acquire()).await.map_err(full)?;
        let env = environment(&job, directories);
        let call = Call { program, args: vec![], env, stdin: job.stdin, until: job.until, patience: Duration::ZERO };
        let said = exec::run(call).await?;
        drop(permit);
        if said.status.success() {
            return Ok(said.stdout);
        }
        let how = match said.status.code() {
            Some(code) => format!("exit code {code}"),
            None => said.status.to_string(),
        };
        Err(complaint(&said.stdout, &said.stderr, &how))
    }

    /// The version to run a network with: the highest that it and all its plugins speak. Plugins are asked only when there is a choice.
    pub async fn negotiate(&self, network: &Network, directories: &[PathBuf], until: Instant) -> Option<Version> {
        if network.versions.len() < 2 {
            return network.versions.first().copied();
        }
        let mut spoken = Vec::new();
        for plugin in &network.plugins {
            // One that does not answer says by its next failure what is wrong with it.
            spoken.extend(self.versions(network, plugin, directories, until).await.ok());
        }
        highest_common(&network.versions, &spoken)
    }

    async fn versions(
        &self,
        network: &Network,
        plugin: &Plugin,
        directories: &[PathBuf],
        until: Instant,
    ) -> Result<Vec<String>> {
        let program = find(&plugin.program, directories)?;
        let mark =
            std::fs::metadata(&program).map(|m| (m.dev(), m.ino(), m.mtime(), m.mtime_nsec())).unwrap_or_default();
        let known = || self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, versions)) = known().get(&program).filter(|(then, _)| *then == mark) {
            return Ok(versions.clone());
        }
        let highest = network.versions.last().map_or("", |version| version.as_str());
        let stdin = serde_json::json!({ "cniVersion": highest }).to_string().into_bytes();
        let job = Job { verb: Verb::Version, plugin, network: &network.name, subject: None, stdin, until };
        let said = self.run(job, directories).await?;
        let answer: Versions = serde_json::from_slice(&said).map_err(|e| Error::internal(e.to_string()))?;
        let mut known = known();
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(program, (mark, answer.supported.clone()));
        Ok(answer.supported)
    }
}

/// The program of a plugin: an executable file of that name in the first of the directories that has one. Nothing else is looked at.
///
/// # Errors
/// `FailedPrecondition`, with the remedy.
pub fn find(program: &str, directories: &[PathBuf]) -> Result<PathBuf> {
    let executable = |path: &PathBuf| {
        std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    // A second look, for a record of another time gets here too.
    let plain = !program.is_empty() && program != ".." && program != "." && !program.contains(['/', '\0']);
    let found = directories.iter().map(|directory| directory.join(program)).filter(|_| plain).find(executable);
    found.ok_or_else(|| {
        let places: Vec<String> = directories.iter().map(|d| d.display().to_string()).collect();
        Error::precondition(format!(
            "there is no program {program} in {}; install it there, or say with network.cni_bin_dirs where it is",
            places.join(" or ")
        ))
    })
}

/// This process's own, for plugins use proxies, kubeconfigs and iptables; without what is ours, and with what CNI says.
fn environment(job: &Job<'_>, directories: &[PathBuf]) -> Vec<(String, String)> {
    let not_theirs = |name: &str| {
        ["CNI_", "PODWRIGHT_", "LISTEN_"].iter().any(|prefix| name.starts_with(prefix)) || name == "NOTIFY_SOCKET"
    };
    let own =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let mut env: Vec<(String, String)> = own.filter(|(name, _)| !not_theirs(name)).collect();
    if !env.iter().any(|(name, _)| name == "PATH") {
        env.push(("PATH".into(), PATH.into()));
    }
    let path = directories.iter().map(|d| d.display().to_string()).collect::<Vec<_>>().join(":");
    let mut say = |name: &str, value: &str| env.push((format!("CNI_{name}"), value.to_owned()));
    say("COMMAND", &job.verb.to_string());
    say("PATH", &path);
    if let Some(subject) = job.subject {
        say("CONTAINERID", subject.pod.as_str());
        say("NETNS", subject.netns);
        say("IFNAME", INTERFACE);
        say("ARGS", subject.args);
    } else if job.verb == Verb::Version {
        // Libraries before 1.0 want them there, and do not look.
        say("CONTAINERID", "version");
        say("NETNS", "version");
        say("IFNAME", INTERFACE);
    }
    env
}

/// What a plugin that has failed says, as one sentence.
fn complaint(stdout: &[u8], stderr: &str, how: &str) -> Error {
    let told = serde_json::from_slice::<Complaint>(stdout).ok().filter(|c| c.code != 0 || !c.msg.is_empty());
    let Some(Complaint { code, msg, details }) = told else {
        let printed = String::from_utf8_lossy(stdout);
        let words = [stderr, printed.as_ref()].map(words);
        let words = words.into_iter().find(|words| !words.is_empty());
        return Error::internal(match words {
            Some(words) => format!("{how}, without an error of CNI; it says: {words}"),
            None => format!("{how}, without a word"),
        });
    };
    // The container is unknown; try again later; not available (SPEC, "Error").
    let kind = match code {
        3 => Kind::NotFound,
        11 | 50 | 51 => Kind::Unavailable,
        _ => Kind::Internal,
    };
    let parts: Vec<String> = [&msg, &details].into_iter().map(|part| words(part)).filter(|p| !p.is_empty()).collect();
    let text = if parts.is_empty() { how.to_owned() } else { parts.join(": ") };
    Error::new(kind, if code == 0 { text } else { format!("{text} (code {code})") })
}

/// A plugin's own words in one line of printable characters.
fn words(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let plain: String = line.chars().filter(|c| !c.is_control()).take(MAX_WORDS).collect();
    if plain.len() < line.len() && plain.chars().count() == MAX_WORDS { format!("{plain}...") } else { plain }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_in_the_plugins_own_words() {
        let told = |stdout: &str, stderr: &str| complaint(stdout.as_bytes(), stderr, "exit code 1");
        let e = told(
            r#"{"cniVersion": "1.0.0", "code": 7, "msg": "Invalid config", "details": "too small\n to use"}"#,
            "log",
        );
        assert_eq!((e.kind(), e.to_string().as_str()), (Kind::Internal, "Invalid config: too small to use (code 7)"));
        let later = told(r#"{"code": 11, "msg": "try again later"}"#, "");
        assert_eq!((later.kind(), later.to_string().as_str()), (Kind::Unavailable, "try again later (code 11)"));
        assert_eq!(told("", "").to_string(), "exit code 1, without a word");
        let e = told("garbage", "boom\nat line 1").to_string();
        assert_eq!(e, "exit code 1, without an error of CNI; it says: boom at line 1");
        assert!(told(&"x".repeat(10_000), "").to_string().len() < 500);
        assert!(told("{}", "why").to_string().contains("why"));
    }

    #[test]
    fn a_program_is_found_in_the_directories_only() {
        let dir = tempfile::tempdir().expect("tempdir");
        let other = dir.path().join("other");
        std::fs::create_dir_all(&other).expect("mkdir");
        let put = |path: &std::path::Path, mode: u32| {
            crate::state::record::write_bytes(path, b"", mode, crate::state::record::Durability::Boot).expect("write");
        };
        put(&other.join("bridge"), 0o755);
        put(&dir.path().join("notes"), 0o644);
        let directories = [dir.path().to_owned(), other.clone()];
        assert_eq!(find("bridge", &directories).expect("there"), other.join("bridge"));
        for bad in ["other/bridge", "../bridge", "", "..", ".", "notes", "other", "absent", "/bin/sh"] {
            let e = find(bad, &directories).expect_err(bad);
            assert!(e.kind() == Kind::FailedPrecondition && e.to_string().contains("network.cni_bin_dirs"), "{e}");
        }
    }
}
