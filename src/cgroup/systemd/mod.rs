//! systemd, asked over its private socket to make and end scopes: the driver `systemd` ([`super::slice`] has the names).
//!
//! On a host that systemd runs it alone writes the upper part of the tree (systemd.io/CGROUP_DELEGATION): it takes controllers away
//! that no unit of its own needs, and rewrites limits of its units whenever it is reloaded. What it leaves alone is a delegated
//! unit's inside. So each pod is one delegated scope, and its containers are plain cgroups in there, with limits as everywhere.
//!
//! The private socket and not the system bus: it is there before and without dbus-daemon, and root may use it; systemctl does.
//! Blocking, with a bound on everything: not for a thread that others wait for.

pub mod message;

use crate::error::{Context, Error, Kind, Result};
use message::{FIXED_BYTES, Incoming, Properties, START, STOP, Value};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Where systemd listens for root.
pub const PRIVATE_SOCKET: &str = "/run/systemd/private";
/// How long a call and the job that it makes may take. systemd is busy for seconds while it is reloaded.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest answer to the greeting, in bytes: `OK` and 32 digits.
const MAX_GREETING_BYTES: usize = 512;
/// Ends of jobs of one unit that are remembered during a call: there is one as a rule.
const MAX_JOBS: usize = 256;
const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

/// A scope to be started.
#[derive(Debug, Clone)]
pub struct Scope {
    pub name: String,
    /// The slice it is to be in.
    pub slice: String,
    /// The slice is podwright's own: it goes with the last of its scopes. A kubelet's stays.
    pub own_slice: bool,
    pub description: String,
    /// The process that is in it first: without one there is no scope.
    pub pid: u32,
    /// cgroup-v2.rst, cpu.weight.
    pub cpu_weight: Option<u64>,
}

/// A connection to systemd.
#[derive(Debug)]
pub struct Systemd {
    socket: UnixStream,
    serial: u32,
    end: Instant,
}

/// How a call ended that systemd has answered.
enum Answer {
    Done,
    Refused { name: String, text: String },
}

/// Makes a scope, with its process in it when this returns. Whether it was made: `false` when there is one of that name.
///
/// # Errors
/// `Unsupported` when systemd is not there; `DeadlineExceeded`; what systemd says, as `Internal`.
pub fn start_scope(scope: &Scope) -> Result<bool> {
    Systemd::connect(Path::new(PRIVATE_SOCKET))?.start(scope)
}

/// Ends a unit; one that is not there is no error.
///
/// # Errors
/// As [`start_scope`].
pub fn stop_unit(name: &str) -> Result<()> {
    Systemd::connect(Path::new(PRIVATE_SOCKET))?.stop(name)
}

/// Whether systemd is there.
///
/// # Errors
/// `Unsupported` with the remedy.
pub fn check() -> Result<()> {
    Systemd::connect(Path::new(PRIVATE_SOCKET)).map(|_| ())
}

impl Systemd {
    /// # Errors
    /// `Unsupported` when nobody listens at `path`; `Internal` when it is not systemd.
    pub fn connect(path: &Path) -> Result<Systemd> {
        let socket = UnixStream::connect(path).map_err(|e| {
            Error::unsupported(format!(
                "connect to systemd at {}: {e}; cgroup.driver = \"systemd\" needs systemd as PID 1 here, and its socket: else set it to \"cgroupfs\"",
                path.display()
            ))
        })?;
        let mut systemd = Systemd { socket, serial: 0, end: Instant::now() + PATIENCE };
        systemd.greet().context(|| format!("greet systemd at {}", path.display()))?;
        Ok(systemd)
    }

    /// D-Bus Specification, "Authentication Protocol": as the user that the kernel says we are, in hexadecimal digits of its decimal
    /// ones. Only root may; 30 is its 0.
    fn greet(&mut self) -> Result<()> {
        self.write(b"\0AUTH EXTERNAL 30\r\n")?;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            if line.len() == MAX_GREETING_BYTES {
                return Err(Error::internal("its answer has no end"));
            }
            line.extend(self.read::<1>()?); // what follows the line is no part of it
        }
        if !line.starts_with(b"OK ") {
            return Err(Error::internal(format!("it refuses: {}", String::from_utf8_lossy(&line).trim_end())));
        }
        self.write(b"BEGIN\r\n")
    }

    /// # Errors
    /// As [`start_scope`].
    pub fn start(&mut self, scope: &Scope) -> Result<bool> {
        let doing = || format!("start {} in {}", scope.name, scope.slice);
        let properties = properties(scope);
        // A slice that a scope names is made with it and stays for ever, unless it is told to go when nobody needs it: not by us, who
        // cannot know what another podwright starts in there at this moment. That can only be said of one that nobody has described.
        let slice: Properties =
            vec![("Description", Value::Text("podwright's pods".to_owned())), ("StopWhenUnneeded", Value::Bool(true))];
        let auxiliary = if scope.own_slice { vec![(scope.slice.clone(), slice)] } else { Vec::new() };
        let mut answer = self.start_with(&scope.name, &properties, &auxiliary).context(doing)?;
        if scope.own_slice && matches!(&answer, Answer::Refused { name, .. } if name == UNIT_EXISTS) {
            answer = self.start_with(&scope.name, &properties, &[]).context(doing)?;
        }
        match answer {
            Answer::Done => Ok(true),
            Answer::Refused { name, .. } if name == UNIT_EXISTS => Ok(false),
            refused => Err(refused.into_error()).context(doing),
        }
    }

    fn start_with(&mut self, unit: &str, properties: &Properties, more: &[(String, Properties)]) -> Result<Answer> {
        self.job("StartTransientUnit", START, &message::start_arguments(unit, properties, more), unit)
    }

    /// # Errors
    /// As [`start_scope`].
    pub fn stop(&mut self, unit: &str) -> Result<()> {
        let doing = || format!("stop {unit}");
        match self.job("StopUnit", STOP, &message::stop_arguments(unit), unit).context(doing)? {
            Answer::Done => Ok(()),
            Answer::Refused { name, .. } if name == NO_SUCH_UNIT => Ok(()),
            refused => Err(refused.into_error()).context(doing),
        }
    }

    /// Makes a call that starts a job of `unit`, and waits for the end of both. Others may have jobs of that unit as well, which are cancelled by this
    /// one or come after it: what became of those is no answer.
    fn job(&mut self, member: &str, signature: &str, body: &[u8], unit: &str) -> Result<Answer> {
        self.serial += 1;
        let serial = self.serial;
        self.write(&message::call(serial, member, signature, body))?;
        // The end of a job may come before the answer that names it.
        let (mut own, mut ended) = (None, Vec::new());
        loop {
            match self.receive()? {
                Incoming::Return { to, job } if to == serial => {
                    own =
                        Some(job.ok_or_else(|| Error::internal(format!("systemd's answer to {member} names no job")))?);
                }
                Incoming::Error { to, name, text } if to == serial => return Ok(Answer::Refused { name, text }),
                Incoming::JobRemoved { job, unit: of, result } if of == unit => {
                    if ended.len() == MAX_JOBS {
                        return Err(Error::exhausted(format!("{unit} has had more than {MAX_JOBS} jobs meanwhile")));
                    }
                    ended.push((job, result));
                }
                _ => {} // of other units, which systemd tells everybody
            }
            let result = ended.iter().find(|(job, _)| own.as_ref() == Some(job)).map(|(_, result)| result.as_str());
            match result {
                None => {}
                Some("done") => return Ok(Answer::Done),
                Some(other) => {
                    return Ok(Answer::Refused { name: String::new(), text: format!("its job ended: {other}") });
                }
            }
        }
    }

    fn receive(&mut self) -> Result<Incoming> {
        let fixed = self.read::<FIXED_BYTES>()?;
        let mut message = fixed.to_vec();
        message.resize(message::whole_length(fixed)?, 0);
        self.fill(FIXED_BYTES, &mut message)?;
        message::decode(&message)
    }

    fn read<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = vec![0; N];
        self.fill(0, &mut bytes)?;
        bytes.try_into().map_err(|_| Error::internal("bytes are missing"))
    }

    /// Reads all of `bytes` from `at` on.
    fn fill(&mut self, mut at: usize, bytes: &mut [u8]) -> Result<()> {
        while at < bytes.len() {
            let left = self.left()?;
            self.socket.set_read_timeout(Some(left)).context(|| "set a timeout")?;
            match self.socket.read(&mut bytes[at..]) {
                Ok(0) => return Err(Error::new(Kind::Unavailable, "systemd hung up")),
                Ok(n) => at += n,
                Err(e) if is_only_time(&e) => {}
                Err(e) => return Err(e).context(|| "hear systemd"),
            }
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let left = self.left()?;
        self.socket.set_write_timeout(Some(left)).context(|| "set a timeout")?;
        self.socket.write_all(bytes).context(|| "tell systemd")
    }

    fn left(&self) -> Result<Duration> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let text = format!("systemd has not answered within {} s", PATIENCE.as_secs());
            return Err(Error::new(Kind::DeadlineExceeded, text));
        }
        Ok(left)
    }
}

impl Answer {
    fn into_error(self) -> Error {
        match self {
            Answer::Done => Error::internal("no error"),
            Answer::Refused { name, text } => Error::internal(format!("systemd: {text} {name}").trim_end().to_owned()),
        }
    }
}

/// The deadline tells, or a signal came.
fn is_only_time(e: &std::io::Error) -> bool {
    use std::io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(e.kind(), WouldBlock | TimedOut | Interrupted)
}

/// What a scope is started with.
fn properties(scope: &Scope) -> Properties {
    let text = |text: &str| Value::Text(text.to_owned());
    let mut list = vec![
        ("Description", text(&scope.description)),
        ("Slice", text(&scope.slice)),
        // All controllers, and its inside is ours: systemd neither writes nor takes away anything below.
        ("Delegate", Value::Bool(true)),
        ("PIDs", Value::U32s(vec![scope.pid])),
        // Else DefaultTasksMax= of system.conf is a limit that nobody asked for.
        ("TasksMax", Value::U64(u64::MAX)),
        // One that failed does not stay for somebody to look at it.
        ("CollectMode", text("inactive-or-failed")),
        // At a shutdown the kubelet ends pods, in its order; systemd does not, in none.
        ("DefaultDependencies", Value::Bool(false)),
    ];
    list.extend(scope.cpu_weight.map(|weight| ("CPUWeight", Value::U64(weight))));
    list
}

#[cfg(test)]
mod tests {
    use super::message::made;
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::thread::JoinHandle;

    /// A systemd that answers each call with the next of `answers`, and where it is.
    fn played(answers: Vec<Vec<Vec<u8>>>) -> (tempfile::TempDir, JoinHandle<Vec<Vec<u8>>>) {
        let temp = tempfile::tempdir().expect("tempdir");
        let listener = UnixListener::bind(temp.path().join("private")).expect("bind");
        let player = std::thread::spawn(move || {
            let (mut peer, _) = listener.accept().expect("accept");
            let mut greeting = [0; 19];
            peer.read_exact(&mut greeting).expect("greeting");
            assert_eq!(&greeting, b"\0AUTH EXTERNAL 30\r\n");
            peer.write_all(b"OK 0123456789abcdef0123456789abcdef\r\n").expect("write");
            let mut begin = [0; 7];
            peer.read_exact(&mut begin).expect("begin");
            assert_eq!(&begin, b"BEGIN\r\n");
            let mut calls = Vec::new();
            for messages in answers {
                let mut fixed = [0; FIXED_BYTES];
                peer.read_exact(&mut fixed).expect("a call");
                let mut call = fixed.to_vec();
                call.resize(message::whole_length(fixed).expect("a message"), 0);
                peer.read_exact(&mut call[FIXED_BYTES..]).expect("the rest");
                calls.push(call);
                for message in messages {
                    peer.write_all(&message).expect("answer");
                }
            }
            calls
        });
        (temp, player)
    }

    fn scope() -> Scope {
        Scope {
            name: "p.scope".to_owned(),
            slice: "a-b.slice".to_owned(),
            own_slice: true,
            description: "pod a/b".to_owned(),
            pid: 42,
            cpu_weight: Some(35),
        }
    }

    fn contains(message: &[u8], text: &str) -> bool {
        message.windows(text.len()).any(|window| window == text.as_bytes())
    }

    #[test]
    fn a_scope_is_there_when_its_own_job_is_done() {
        // The job may end before its call is answered, and others end all the time.
        let answers =
            vec![made::removed(8, "other.scope", "failed"), made::removed(9, "p.scope", "done"), made::answer(1, 9)];
        let (temp, player) = played(vec![answers]);
        let mut systemd = Systemd::connect(&temp.path().join("private")).expect("connect");
        assert!(systemd.start(&scope()).expect("started"));
        let calls = player.join().expect("joined");
        for word in ["StartTransientUnit", "p.scope", "a-b.slice", "Delegate", "PIDs", "CPUWeight", "StopWhenUnneeded"]
        {
            assert!(contains(&calls[0], word), "{word}");
        }
    }

    #[test]
    fn a_slice_that_is_there_already_is_taken_as_it_is_and_a_scope_is_not() {
        let exists = |to| made::error(to, UNIT_EXISTS, "Unit a-b.slice was already loaded");
        let (temp, player) =
            played(vec![vec![exists(1)], vec![made::answer(2, 9), made::removed(9, "p.scope", "done")]]);
        let mut systemd = Systemd::connect(&temp.path().join("private")).expect("connect");
        assert!(systemd.start(&scope()).expect("started"));
        assert!(!contains(&player.join().expect("joined")[1], "StopWhenUnneeded"));

        let (temp, player) = played(vec![vec![exists(1)], vec![exists(2)]]);
        let mut systemd = Systemd::connect(&temp.path().join("private")).expect("connect");
        assert!(!systemd.start(&scope()).expect("answered"));
        player.join().expect("joined");
    }

    #[test]
    fn what_systemd_refuses_is_told_in_its_words() {
        let denied = made::error(1, "org.freedesktop.DBus.Error.AccessDenied", "Permission denied");
        let failed = vec![made::answer(1, 9), made::removed(9, "p.scope", "failed")];
        for (answers, said) in [(vec![denied], "Permission denied"), (failed, "its job ended: failed")] {
            let (temp, player) = played(vec![answers]);
            let mut systemd = Systemd::connect(&temp.path().join("private")).expect("connect");
            let e = systemd.start(&scope()).expect_err("refused").to_string();
            assert!(e.contains(said) && e.contains("start p.scope in a-b.slice"), "{e}");
            player.join().expect("joined");
        }
    }

    #[test]
    fn what_becomes_of_another_job_of_the_same_unit_is_no_answer() {
        // The start of somebody else's, which is cancelled by this stop; before the answer that names its own, and after it.
        let canceled = || made::removed(8, "p.scope", "canceled");
        let done = || made::removed(9, "p.scope", "done");
        for answers in [vec![canceled(), made::answer(1, 9), done()], vec![made::answer(1, 9), canceled(), done()]] {
            let (temp, player) = played(vec![answers]);
            let mut systemd = Systemd::connect(&temp.path().join("private")).expect("connect");
            systemd.stop("p.scope").expect("its own is done");
            player.join().expect("joined");
        }
        // That another one is done is not enough.
        let answers =
            vec![made::removed(8, "p.scope", "done"), made::answer(1, 9), made::removed(9, "p.scope", "failed")];
        let (temp, player) = played(vec![answers]);
        let mut systemd = Systemd::connect(&temp.path().join("private")).expect("connect");
        let e = systemd.stop("p.scope").expect_err("its own has failed").to_string();
        assert!(e.contains("its job ended: failed"), "{e}");
        player.join().expect("joined");
    }

    #[test]
    fn to_stop_what_is_gone_is_no_error() {
        let (temp, player) = played(vec![vec![made::error(1, NO_SUCH_UNIT, "Unit p.scope not loaded.")]]);
        let mut systemd = Systemd::connect(&temp.path().join("private")).expect("connect");
        systemd.stop("p.scope").expect("gone");
        player.join().expect("joined");
    }

    #[test]
    fn without_systemd_the_error_says_what_to_set() {
        let temp = tempfile::tempdir().expect("tempdir");
        let e = Systemd::connect(&temp.path().join("private")).expect_err("nobody");
        assert_eq!(e.kind(), Kind::Unsupported);
        assert!(e.to_string().contains("needs systemd as PID 1") && e.to_string().contains("cgroupfs"), "{e}");
        let listener = UnixListener::bind(temp.path().join("private")).expect("bind");
        let player = std::thread::spawn(move || drop(listener.accept().expect("accept")));
        let e = Systemd::connect(&temp.path().join("private")).expect_err("it hangs up");
        assert!(e.to_string().contains("greet systemd"), "{e}");
        player.join().expect("joined");
    }
}
