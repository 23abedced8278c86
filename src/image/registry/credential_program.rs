//! Programs that keep passwords for docker: `docker-credential-NAME get`, a server's name on its standard input, JSON on its output
//! (docker/docker-credential-helpers).
//!
//! Asked only once a registry wants to be shown something: a helper may unlock a keyring or ask a cloud. It is started without a shell, from
//! PATH, by a name that can lead nowhere else; what it says and how long it takes have bounds.

use super::credentials::Secret;
use crate::error::{Context, Error, Kind, Result};
use crate::sys;
use serde::Deserialize;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::timeout;

/// How long a helper may take: those of clouds ask over the network.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of its answer, at most: tokens of clouds have some thousand.
const MAX_ANSWER: u64 = 256 << 10;
/// Bytes of a helper's name, at most.
const MAX_NAME: usize = 64;
/// What helpers say, in words that have not changed, when they have nothing (docker-credential-helpers: credentials/error.go).
const NOTHING: [&str; 3] =
    ["credentials not found in native keychain", "no credentials server URL", "no credentials username"];
/// The user that stands for an identity token (docker/cli: config/credentials/native_store.go).
const TOKEN_USER: &str = "<token>";
/// Letters of what it says that are shown.
const SHOWN: usize = 300;

/// One program, for one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Helper {
    /// As in the file: `ecr-login`.
    pub name: String,
    /// As docker names it: `https://index.docker.io/v1/`, else the registry's host.
    pub server: String,
    /// The file that names it, for messages.
    pub file: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawAnswer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// A helper at work, ended when nobody waits for it any more.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended
        let _ = self.0.wait(); // as above
    }
}

impl Helper {
    /// What it has for its server; `None` when it has nothing. To be called within a tokio runtime.
    ///
    /// # Errors
    /// `FailedPrecondition` when it is not there, fails, says something else, or takes too long; what it said as an answer is not shown.
    pub async fn get(&self) -> Result<Option<Secret>> {
        let told = |e: Error| e.context(format!("credentials of {} ({})", self.server, self.file));
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let name = &self.name;
        if name.is_empty() || name.len() > MAX_NAME || name.starts_with(['-', '.']) || !name.bytes().all(plain) {
            let shown: String = name.escape_default().take(MAX_NAME).collect();
            return Err(told(Error::precondition(format!("\"{shown}\" is not the name of a credential helper"))));
        }
        let program = format!("docker-credential-{name}");
        match timeout(PATIENCE, self.ask(&program)).await {
            Ok(answer) => answer.context(|| format!("ask {program}")).map_err(told),
            Err(_) => {
                let late = format!("{program} gave no answer in {} s", PATIENCE.as_secs());
                Err(told(Error::precondition(late)))
            }
        }
    }

    async fn ask(&self, program: &str) -> Result<Option<Secret>> {
        let mut command = Command::new(program);
        command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut running = match command.spawn() {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::precondition("it is not in PATH; install it, or take it out of the file"));
            }
            started => Running(started.context(|| "start it").map_err(|e| e.with_kind(Kind::FailedPrecondition))?),
        };
        if let Some(mut stdin) = running.0.stdin.take() {
            let _ = stdin.write_all(self.server.as_bytes()); // a pipe holds it; who does not read it, says what it likes
        }
        let stdout = running.0.stdout.take().ok_or_else(|| Error::internal("it has no standard output"))?;
        let stdout = pipe::Receiver::from_owned_fd(OwnedFd::from(stdout)).context(|| "watch its output")?;
        let mut text = Vec::new();
        stdout.take(MAX_ANSWER + 1).read_to_end(&mut text).await.context(|| "read its answer")?;
        if text.len() as u64 > MAX_ANSWER {
            return Err(Error::precondition(format!("its answer is longer than {MAX_ANSWER} bytes")));
        }
        // Closing its output is not yet its end.
        let ended = sys::pidfd::pidfd_open(running.0.id()).and_then(sys::async_fd::readable);
        ended.context(|| "watch it")?.readable().await.context(|| "wait for its end")?.retain_ready();
        let status = running.0.wait().context(|| "wait for it")?;
        self.read(status.success(), &text)
    }

    fn read(&self, success: bool, text: &[u8]) -> Result<Option<Secret>> {
        if !success {
            let said: String =
                String::from_utf8_lossy(text).trim().chars().filter(|c| !c.is_control()).take(SHOWN).collect();
            return match NOTHING.iter().any(|nothing| said.contains(nothing)) {
                true => Ok(None),
                false => Err(Error::precondition(format!("it fails: {said:?}"))),
            };
        }
        // serde's own message would quote the secret.
        let wrong = || Error::precondition("its answer is not the JSON of a credential helper");
        let answer: RawAnswer = serde_json::from_slice(text).map_err(|_| wrong())?;
        Ok(match (answer.username.as_str(), answer.secret) {
            (_, secret) if secret.is_empty() => None,
            (TOKEN_USER, secret) => Some(Secret::Identity(secret)),
            ("", _) => return Err(wrong()),
            (user, password) => Some(Secret::Password { user: user.to_owned(), password }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_password_an_identity_token_nothing_or_an_error_that_shows_nothing() {
        let helper = Helper { name: "x".into(), server: "r.example".into(), file: "config.json".into() };
        let read = |success, text: &str| helper.read(success, text.as_bytes());
        let password = Secret::Password { user: "u".into(), password: "p".into() };
        assert_eq!(read(true, r#"{"ServerURL":"r","Username":"u","Secret":"p"}"#).expect("one"), Some(password));
        let token = Some(Secret::Identity("t".into()));
        assert_eq!(read(true, r#"{"Username":"<token>","Secret":"t"}"#).expect("a token"), token);
        assert_eq!(read(false, "credentials not found in native keychain\n").expect("none"), None);
        assert_eq!(read(true, "{}").expect("none"), None);
        assert!(read(false, "the vault is locked").expect_err("locked").to_string().contains("the vault is locked"));
        for wrong in ["", "hunter2", r#"{"Username": 4711, "Secret": "hunter2"}"#, r#"{"Secret":"hunter2"}"#] {
            let e = read(true, wrong).expect_err(wrong).to_string();
            assert!(!e.contains("hunter2") && !e.contains("4711"), "{e}");
        }
    }
}
