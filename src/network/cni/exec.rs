//! One execution of a plugin (or of another program of the host, apparmor_parser, criu): fed, listened to, and ended, within a time and with bounded output, whatever the plugin does.
//!
//! A plugin is a process group. When its first process has ended, or its time is over, the group is killed: what a plugin leaves behind
//! in it would go on to change a network that nobody waits for, and be this process's to reap. One that wants a daemon gives it a
//! session of its own, as daemons have. The work goes on when the caller is dropped, so that nothing is left half fed.

use crate::error::{Context, Error, Kind, Result};
use crate::sys;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, timeout, timeout_at};

/// Bytes of an answer: one with a thousand routes is a tenth of it.
const MAX_ANSWER: usize = 1 << 20;
/// Bytes of standard error that are kept for people; the rest is read and dropped.
const MAX_COMPLAINT: usize = 8 << 10;
/// How long a pipe may stay open when the plugin has ended: a daemon that it started holds it.
const DRAIN: Duration = Duration::from_secs(1);
/// How long a process may take to die of SIGKILL, until it is left to die when it can.
const DEATH: Duration = Duration::from_secs(5);
/// How often a program is tried that somebody is writing to (ETXTBSY): an add-on installs a new one in its place.
const BUSY_TRIES: u32 = 10;
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// What is executed.
#[derive(Debug)]
pub struct Call {
    pub program: PathBuf,
    /// None of them for a plugin, which is told all by its environment.
    pub args: Vec<String>,
    /// All of it.
    pub env: Vec<(String, String)>,
    pub stdin: Vec<u8>,
    /// When it is killed.
    pub until: Instant,
    /// For one that must not be killed in the middle: until then it can write no files any more, so that it fails by itself and puts back what it
    /// has changed, and for so long it is waited for. Zero: it is killed at once.
    pub patience: Duration,
}

/// How a plugin has ended and what it has said.
#[derive(Debug)]
pub struct Said {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    /// At most its first 8 KiB.
    pub stderr: String,
}

/// Executes a plugin to its end.
///
/// # Errors
/// `DeadlineExceeded` when its time is over, `ResourceExhausted` when it says too much, `Internal` when it cannot be started.
pub async fn run(call: Call) -> Result<Said> {
    tokio::spawn(to_the_end(call)).await.map_err(|e| Error::internal(format!("a task ended: {e}")))?
}

async fn to_the_end(call: Call) -> Result<Said> {
    let begun = Instant::now();
    let mut child = start(&call).await?;
    let pidfd = sys::pidfd::pidfd_open(child.id()).and_then(sys::async_fd::readable);
    let ended = match pidfd {
        Ok(ended) => ended,
        Err(e) => {
            let _ = child.kill(); // it may have ended by itself
            let _ = child.wait(); // a child of ours that was killed is there to be reaped
            return Err(e).context(|| "watch it");
        }
    };
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let talked = match pipes(&mut child) {
        Ok(pipes) => {
            let last = LastWork { pid: child.id(), until: call.until, patience: call.patience };
            talk(pipes, call.stdin, &mut stdout, &mut stderr, &ended, &last).await
        }
        Err(e) => Err(e).context(|| "open its pipes"),
    };
    let status = end(child, ended).await;
    match (talked, status) {
        (Ok(true), Ok(status)) => {
            Ok(Said { status, stdout, stderr: String::from_utf8_lossy(&stderr).trim().to_owned() })
        }
        (Ok(true), Err(e)) | (Err(e), _) => Err(e),
        (Ok(false), _) => Err(Error::new(
            Kind::DeadlineExceeded,
            format!("it had not ended after {:.1} s and was killed", begun.elapsed().as_secs_f64()),
        )),
    }
}

async fn start(call: &Call) -> Result<Child> {
    let mut tries = 0;
    loop {
        let mut command = Command::new(&call.program);
        command.args(&call.args).env_clear().envs(call.env.iter().map(|(name, value)| (name, value))).current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        if !call.patience.is_zero() {
            sys::ignore_file_size_signal(&mut command);
        }
        match command.spawn() {
            Err(e) if e.kind() == io::ErrorKind::ExecutableFileBusy && tries < BUSY_TRIES => tries += 1,
            started => return started.context(|| format!("execute {}", call.program.display())),
        }
        tokio::time::sleep(BUSY_PAUSE).await; // nobody tells when the writer has closed it
    }
}

/// Its three pipes, this side of them.
type Pipes = (pipe::Sender, pipe::Receiver, pipe::Receiver);

fn pipes(child: &mut Child) -> io::Result<Pipes> {
    let gone = || io::Error::from_raw_os_error(9); // EBADF: each is taken once
    let stdin = child.stdin.take().map(OwnedFd::from).ok_or_else(gone)?;
    let stdout = child.stdout.take().map(OwnedFd::from).ok_or_else(gone)?;
    let stderr = child.stderr.take().map(OwnedFd::from).ok_or_else(gone)?;
    Ok((
        pipe::Sender::from_owned_fd(stdin)?,
        pipe::Receiver::from_owned_fd(stdout)?,
        pipe::Receiver::from_owned_fd(stderr)?,
    ))
}

/// Feeds it and listens until it has ended; `false` when its time is over.
async fn talk(
    (mut stdin, stdout, stderr): Pipes,
    input: Vec<u8>,
    answer: &mut Vec<u8>,
    complaint: &mut Vec<u8>,
    ended: &AsyncFd<OwnedFd>,
    last: &LastWork,
) -> Result<bool> {
    let feed = async move {
        let _ = stdin.write_all(&input).await; // EPIPE: it does not want it
    };
    let hear = async {
        tokio::try_join!(take(stdout, answer, MAX_ANSWER, true), take(stderr, complaint, MAX_COMPLAINT, false))
    };
    let work = async { tokio::join!(feed, hear).1.map(|_| ()) };
    tokio::pin!(work);
    let all = async {
        tokio::select! {
            heard = &mut work => {
                heard?;
                let _ = ended.readable().await; // a pidfd has no errors
            }
            _ = ended.readable() => {
                if let Ok(heard) = timeout(DRAIN, &mut work).await {
                    heard?;
                }
            }
        }
        Ok(true)
    };
    tokio::pin!(all);
    if let Ok(done) = timeout_at(last.until, &mut all).await {
        return done;
    }
    if !last.patience.is_zero() && sys::rlimit::forbid_files(last.pid).is_ok() {
        let _ = timeout(last.patience, all).await; // how it ends is its own matter: its time is over
    }
    Ok(false)
}

/// When its time is over, and what then.
struct LastWork {
    /// A child that is not reaped yet.
    pid: u32,
    until: Instant,
    patience: Duration,
}

/// Reads to the end, keeping at most `most` bytes; more are an error if `strict`.
async fn take(mut from: pipe::Receiver, into: &mut Vec<u8>, most: usize, strict: bool) -> Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let n = from.read(&mut buffer).await.context(|| "read what it says")?;
        if n == 0 {
            return Ok(());
        }
        let room = most - into.len();
        into.extend_from_slice(&buffer[..n.min(room)]);
        if strict && n > room {
            return Err(Error::exhausted(format!("it has printed more than {most} bytes and was killed")));
        }
    }
}

/// Kills what is left of the group, and reaps all of it.
async fn end(mut child: Child, ended: AsyncFd<OwnedFd>) -> Result<ExitStatus> {
    let group = child.id();
    // Until its first process is reaped the number cannot be another group's.
    let _ = sys::session::kill_group(group); // ESRCH: there is none any more
    if timeout(DEATH, ended.readable()).await.is_err() {
        tokio::spawn(async move {
            let _ = ended.readable().await; // a pidfd has no errors
            let _ = child.wait(); // it has ended, so there is nothing to wait for
        });
        return Err(Error::new(
            Kind::DeadlineExceeded,
            format!("process {group} has not died of SIGKILL within {} s; it hangs in the kernel", DEATH.as_secs()),
        ));
    }
    let status = child.wait().context(|| "wait for it")?;
    // Others of the group came to this process, if it is a subreaper; without any this is one call.
    if !sys::wait::reap_group(group).unwrap_or(true)
        && let Ok(mut news) = signal(SignalKind::child())
    {
        let rest = async { while !sys::wait::reap_group(group).unwrap_or(true) && news.recv().await.is_some() {} };
        let _ = timeout(DEATH, rest).await; // as above: what hangs in the kernel is not waited for
    }
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sh(script: &str, stdin: &[u8], limit: Duration) -> Result<Said> {
        let dir = tempfile::tempdir().expect("tempdir");
        let program = dir.path().join("plugin");
        let text = format!("#!/bin/sh\n{script}\n");
        crate::state::record::write_bytes(&program, text.as_bytes(), 0o755, crate::state::record::Durability::Boot)
            .expect("write");
        let env = vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned()), ("CNI_COMMAND".to_owned(), "ADD".to_owned())];
        run(Call {
            program,
            args: Vec::new(),
            env,
            stdin: stdin.to_vec(),
            until: Instant::now() + limit,
            patience: Duration::ZERO,
        })
        .await
    }

    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_plugin_gets_its_input_and_environment_and_is_heard() {
        let said = sh("cat; echo $CNI_COMMAND $HOME. >&2; exit 3", &[b'x'; 300_000], LONG).await.expect("it ran");
        assert_eq!((said.status.code(), said.stdout.len(), said.stderr.as_str()), (Some(3), 300_000, "ADD ."));
        // One that reads nothing and says nothing is no trouble.
        let said = sh("exec true", &[b'x'; 300_000], LONG).await.expect("it ran");
        assert!(said.status.success() && said.stdout.is_empty());
    }

    #[tokio::test]
    async fn one_that_hangs_is_killed_with_all_its_children() {
        let dir = tempfile::tempdir().expect("tempdir");
        let pids = dir.path().join("pids");
        let script = format!("sleep 1000 & echo $! >{0}.new; mv {0}.new {0}; sleep 1000", pids.display());
        let begun = Instant::now();
        let e = sh(&script, b"", Duration::from_secs(3)).await.expect_err("it hangs");
        assert_eq!(e.kind(), Kind::DeadlineExceeded, "{e}");
        assert!(begun.elapsed() < LONG, "{:?}", begun.elapsed());
        let child = std::fs::read_to_string(&pids).expect("it ran");
        // Killed is not yet dead.
        loop {
            let state = std::fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
            if state.is_empty() || state.contains(") Z ") || state.contains(") X ") {
                break;
            }
            assert!(begun.elapsed() < LONG, "{state}");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn one_that_must_not_be_killed_fails_by_itself_and_puts_things_back() {
        let dir = tempfile::tempdir().expect("tempdir");
        let program = dir.path().join("program");
        // A shell would end at the signal, too; what it says goes through a pipe, which is no file.
        let text =
            "#!/bin/sh\ncd $0.d; while echo x >>file; do :; done 2>/dev/null; mkdir back; seq 20000; exec sleep 1000\n";
        std::fs::create_dir(dir.path().join("program.d")).expect("mkdir");
        crate::state::record::write_bytes(&program, text.as_bytes(), 0o755, crate::state::record::Durability::Boot)
            .expect("write");
        let env = vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())];
        let until = Instant::now() + Duration::from_secs(1);
        let call = Call { program, args: Vec::new(), env, stdin: Vec::new(), until, patience: Duration::from_secs(2) };
        let e = run(call).await.expect_err("its time is over");
        assert_eq!(e.kind(), Kind::DeadlineExceeded, "{e}");
        assert!(dir.path().join("program.d/back").is_dir(), "it was killed in the middle");
    }

    #[tokio::test]
    async fn one_that_leaves_a_child_with_its_pipes_does_not_hold_up() {
        let begun = Instant::now();
        let said = sh("sleep 1000 & echo done", b"", LONG).await.expect("it ran");
        assert_eq!(said.stdout, b"done\n");
        let said_of_a_daemon = sh("setsid sleep 30 & echo done", b"", LONG).await.expect("it ran");
        assert_eq!(said_of_a_daemon.stdout, b"done\n");
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn one_that_says_too_much_is_killed_and_its_complaints_are_cut() {
        let e = sh("exec yes", b"", LONG).await.expect_err("endless");
        assert_eq!(e.kind(), Kind::ResourceExhausted, "{e}");
        let said = sh("head -c 10000000 /dev/zero >&2; echo ok", b"", LONG).await.expect("it ran");
        assert_eq!((said.stderr.len(), said.stdout.as_slice()), (MAX_COMPLAINT, b"ok\n".as_slice()));
    }

    #[tokio::test]
    async fn one_that_cannot_be_executed_is_an_error() {
        let call = Call {
            program: "/etc/passwd".into(),
            args: vec![],
            env: vec![],
            stdin: vec![],
            until: Instant::now() + LONG,
            patience: Duration::ZERO,
        };
        let e = run(call).await.expect_err("no program");
        assert!(e.to_string().contains("execute /etc/passwd: EACCES"), "{e}");
    }
}
