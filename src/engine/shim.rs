//! The engine's end of the wire: makes a pod's shim, speaks with it, hears its events. Knows nothing of what a shim does.

use super::cgroups::{OWNER_CGROUP, here};
use crate::config::CgroupDriver;
use crate::error::{Context, Error, Kind, Result};
use crate::id::{InstanceId, PodId};
use crate::state::paths::Paths;
use crate::sys;
use crate::sys::spawn::{self, Child, Spawn};
use crate::wire::{self, Event, HEADER_BYTES, MAX_FDS, Reply, Request, ToEngine, ToShim};
use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::io::Interest;
use tokio::sync::{mpsc, oneshot};

/// How much is read from a shim at a time, in bytes: most messages are shorter.
const READ_BYTES: usize = 4 << 10;

/// How long a shim may take for what it does without waiting for anything; it may be at work on a start meanwhile.
const QUICK: Duration = Duration::from_secs(10);
/// The same for a process that is to be made: mounts of slow disks, and a CPU limit that a start is under in part.
const LAUNCH: Duration = Duration::from_secs(60);
/// The same for a sandbox that is to be stopped: the shim gives each container 10 s to die of SIGKILL, all at a time.
const STOP: Duration = Duration::from_secs(30);
/// How long a shim that has just failed to answer may take to show that it lives.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);

/// What the engine hears of a shim unasked.
#[derive(Debug)]
pub enum Heard {
    Event(Event),
    /// The connection is gone, and so is the shim, or it soon will be.
    HungUp,
}

/// errno-base.h, of clone3(2): the cgroup is gone.
const ENODEV: i32 = 19;

type Answer = (Reply, Vec<OwnedFd>);

struct Shared {
    socket: tokio::net::UnixStream,
    /// Taken while one frame is written, for frames must not mix.
    writing: Arc<tokio::sync::Mutex<()>>,
    /// Who waits for which answer; `None` when the shim has hung up.
    waiting: Mutex<Option<HashMap<u32, oneshot::Sender<Answer>>>>,
    next: AtomicU32,
    /// What both speak; 0 until the shim has said.
    version: AtomicU32,
}

/// A connection to a pod's shim.
#[derive(Clone)]
pub struct Shim {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Shim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shim").finish_non_exhaustive()
    }
}

/// Everything that a new shim is told by its command line.
#[derive(Debug)]
pub struct Birth<'a> {
    pub pod: &'a PodId,
    pub paths: &'a Paths,
    /// podwright's own cgroup, for the sweep that the shim may turn into.
    pub cgroup_root: &'a str,
    /// And who makes cgroups.
    pub cgroup_driver: CgroupDriver,
    /// The sealed program that all shims share.
    pub program: BorrowedFd<'a>,
    /// The shims' own cgroup when it is there.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// It takes over from one that died: a fault that was meant for that one is not its own.
    pub heir: bool,
}

/// Starts a shim: a process of its own group, its file descriptor 0 the other end of the connection. Tells whether it was born in
/// the shims' cgroup, too.
///
/// # Errors
/// `Internal` when the process or its socket cannot be made.
pub fn spawn(birth: &Birth<'_>) -> Result<(Child, OwnedFd, bool)> {
    let (ours, theirs) = UnixStream::pair().context(|| "socketpair for a shim")?;
    let mut args: Vec<&OsStr> = ["podwright-shim", "shim", birth.pod.as_str(), "--root"].map(OsStr::new).into();
    args.extend([birth.paths.root.as_os_str(), OsStr::new("--state"), birth.paths.state.as_os_str()]);
    if let Some(instance) = &birth.paths.instance {
        args.extend(["--instance", instance.as_str()].map(OsStr::new));
    }
    // Nothing of our environment is the shim's business: it outlives us, and a pod may come to see it.
    let mut env = vec![format!("PODWRIGHT_CGROUP_ROOT={}", birth.cgroup_root)];
    if birth.cgroup_driver != CgroupDriver::default() {
        env.push(format!("PODWRIGHT_CGROUP_DRIVER={}", birth.cgroup_driver.word()));
    }
    if let Some(cgroup) = here()? {
        env.push(format!("{OWNER_CGROUP}={cgroup}"));
    }
    if let Ok(fault) = std::env::var("PODWRIGHT_FAULT")
        && !["kill:engine.", "kill:network."].iter().any(|ours| fault.starts_with(ours))
        && (!birth.heir || !fault.starts_with("kill:") || fault.starts_with("kill:shim.adopt."))
    {
        env.push(format!("PODWRIGHT_FAULT={fault}"));
    }
    let doing = || format!("start the shim of pod {}", birth.pod.short());
    let words = |word: &OsStr| CString::new(word.as_bytes()).map_err(std::io::Error::from);
    let argv = args.into_iter().map(words).collect::<std::io::Result<Vec<_>>>().context(doing)?;
    let envp = env.iter().map(|e| words(OsStr::new(e))).collect::<std::io::Result<Vec<_>>>().context(doing)?;
    // A group of its own: Ctrl-C in the terminal of `run` is for `run` alone.
    let into = |cgroup| {
        spawn::spawn(&Spawn { program: birth.program, argv: &argv, envp: &envp, stdin: theirs.as_fd(), cgroup })
    };
    let (child, inside) = match into(birth.cgroup) {
        // Another podwright has removed it in this moment, with its last pod.
        Err(e) if birth.cgroup.is_some() && e.raw_os_error() == Some(ENODEV) => (into(None), false),
        child => (child, birth.cgroup.is_some()),
    };
    Ok((child.context(doing)?, ours.into(), inside))
}

/// Makes the socket at `path` that a shim will listen on.
///
/// # Errors
/// `Internal` when it cannot be made.
pub fn listen_at(path: &Path) -> Result<UnixListener> {
    let doing = || format!("make socket {}", path.display());
    let (_dir, short) = short_path(path).context(doing)?;
    UnixListener::bind(short).context(doing)
}

/// Connects to a shim that is there already.
///
/// # Errors
/// `Unavailable` when nobody listens.
pub fn connect(socket: &Path) -> Result<OwnedFd> {
    let stream = short_path(socket)
        .and_then(|(_dir, short)| UnixStream::connect(short))
        .context(|| format!("connect to {}", socket.display()))
        .map_err(|e| e.with_kind(Kind::Unavailable))?;
    Ok(stream.into())
}

/// A name of at most 108 bytes for a socket (unix(7), `sun_path`): by its directory, which must stay open meanwhile. The ids in
/// our paths leave 14 of them to the state directory, exactly the length of `/run/podwright`.
fn short_path(socket: &Path) -> std::io::Result<(OwnedFd, PathBuf)> {
    use std::os::fd::AsRawFd;
    let dir = sys::fs::open_dir(socket.parent().unwrap_or(Path::new("/")))?;
    let short = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string());
    let short = short.join(socket.file_name().unwrap_or_default());
    Ok((dir, short))
}

impl Shim {
    /// Speaks over `socket`; what is heard goes to `heard`, ending with [`Heard::HungUp`]. Must be called within a runtime.
    ///
    /// # Errors
    /// `Internal` when the socket cannot be watched.
    pub fn new(socket: OwnedFd, heard: mpsc::UnboundedSender<Heard>) -> Result<Shim> {
        let socket = UnixStream::from(socket);
        socket.set_nonblocking(true).context(|| "make the shim's socket non-blocking")?;
        let shared = Arc::new(Shared {
            socket: tokio::net::UnixStream::from_std(socket).context(|| "watch the shim's socket")?,
            writing: Arc::default(),
            waiting: Mutex::new(Some(HashMap::new())),
            next: AtomicU32::new(1),
            version: AtomicU32::new(0),
        });
        let reader = shared.clone();
        tokio::spawn(async move {
            let end = reader.read(&heard).await;
            if let Err(e) = end {
                tracing::debug!("shim: {e}");
            }
            *reader.waiting() = None; // whoever waited learns it by the dropped sender
            let _ = heard.send(Heard::HungUp); // nobody listens any more when the pod was removed
        });
        Ok(Shim { shared })
    }

    /// Says who we are, and learns which version both speak.
    ///
    /// # Errors
    /// `Unsupported` without a common version, else as [`Shim::call`].
    pub async fn hello(&self, owner: bool) -> Result<()> {
        self.greet(owner).await?.answered().await
    }

    /// Says who we are. When this returns it is said: a shim that has not read it yet finds it before it finds that we are gone.
    ///
    /// # Errors
    /// `Unavailable` when the shim hung up.
    pub async fn greet(&self, owner: bool) -> Result<Greeting> {
        let asked = self.send(Request::Hello { versions: wire::VERSIONS, owner }, &[]).await?;
        Ok(Greeting { asked, shim: self.clone() })
    }

    /// The version of the protocol that both speak; 0 before the greeting was answered.
    pub fn version(&self) -> u32 {
        self.shared.version.load(Ordering::Relaxed)
    }

    /// Whether this is the same connection.
    pub fn is(&self, other: &Shim) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Sends a request and waits for its answer; a `Failed` becomes an error.
    ///
    /// # Errors
    /// What the shim answers; `Unavailable` when it hung up.
    pub async fn call(&self, request: Request, fds: &[BorrowedFd<'_>]) -> Result<Answer> {
        match self.ask(request, fds).await? {
            (Reply::Failed(failure), _) => Err(failure.into()),
            answer => Ok(answer),
        }
    }

    /// As [`Shim::call`], for a request that is answered by `Done`.
    ///
    /// # Errors
    /// As [`Shim::call`].
    pub async fn done(&self, request: Request, fds: &[BorrowedFd<'_>]) -> Result<()> {
        match self.call(request, fds).await?.0 {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// As [`Shim::call`], with a `Failed` as an answer like any other.
    ///
    /// # Errors
    /// `Unavailable` when the shim hung up, `DeadlineExceeded` when it does not answer.
    pub async fn ask(&self, request: Request, fds: &[BorrowedFd<'_>]) -> Result<Answer> {
        let (what, patience) = patience(&request);
        within(what, patience, async { self.send(request, fds).await?.answer().await }).await
    }

    /// Whether it answers a question that takes it no time. One that has hung up has answered.
    pub async fn answers(&self) -> bool {
        self.answers_within(SIGN_OF_LIFE).await
    }

    /// The same with a patience of the caller's.
    pub async fn answers_within(&self, patience: Duration) -> bool {
        let asked = async { self.send(Request::List, &[]).await?.answer().await };
        tokio::time::timeout(patience, asked).await.is_ok()
    }

    /// Sends a request; its answer is waited for by [`Asked::answer`].
    ///
    /// # Errors
    /// `Unavailable` when the shim hung up.
    pub async fn send(&self, request: Request, fds: &[BorrowedFd<'_>]) -> Result<Asked> {
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let frame = wire::encode(&ToShim { id, request })?;
        let (sender, answer) = oneshot::channel();
        self.shared.waiting().as_mut().ok_or_else(shim_is_gone)?.insert(id, sender);
        if let Err(e) = self.shared.write(frame, fds).await {
            if let Some(waiting) = self.shared.waiting().as_mut() {
                waiting.remove(&id);
            }
            return Err(e);
        }
        Ok(Asked(answer))
    }
}

/// A request that was sent.
#[derive(Debug)]
pub struct Asked(oneshot::Receiver<Answer>);

impl Asked {
    /// Waits for its answer.
    ///
    /// # Errors
    /// `Unavailable` when the shim hung up.
    pub async fn answer(self) -> Result<Answer> {
        self.0.await.map_err(|_| shim_is_gone())
    }
}

/// A greeting that the shim has yet to answer.
#[derive(Debug)]
pub struct Greeting {
    asked: Asked,
    shim: Shim,
}

impl Greeting {
    /// Waits for the answer: which version both speak.
    ///
    /// # Errors
    /// `Unsupported` without a common version; `Unavailable` when the shim hung up, `DeadlineExceeded` when it does not answer.
    pub async fn answered(self) -> Result<()> {
        match within("the greeting", QUICK, self.asked.answer()).await?.0 {
            Reply::Hello { version, .. } => {
                let version = wire::negotiate((version, version))?;
                self.shim.shared.version.store(version, Ordering::Relaxed);
                Ok(())
            }
            Reply::Failed(failure) => Err(failure.into()),
            other => Err(unexpected(&other)),
        }
    }
}

/// What a request is called, and how long its answer may take. An exec is waited for by its caller.
fn patience(request: &Request) -> (&'static str, Duration) {
    match request {
        Request::CreateSandbox(_) => ("the request to make the sandbox", LAUNCH),
        Request::Start(_) => ("the request to start a container", LAUNCH),
        Request::StopSandbox => ("the request to stop the sandbox", STOP),
        Request::Signal { .. } => ("a signal", QUICK),
        Request::Kill { .. } => ("the request to kill a container", QUICK),
        _ => ("a request", QUICK),
    }
}

async fn within<T>(what: &str, patience: Duration, answer: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(patience, answer).await.unwrap_or_else(|_| {
        let seconds = patience.as_secs();
        Err(Error::new(Kind::DeadlineExceeded, format!("the pod's shim has not answered {what} within {seconds} s")))
    })
}

fn shim_is_gone() -> Error {
    Error::new(Kind::Unavailable, "the pod's shim is gone")
}

/// An answer that does not fit its request.
pub fn unexpected(reply: &Reply) -> Error {
    Error::internal(format!("unexpected answer of the shim: {reply:?}"))
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Option<HashMap<u32, oneshot::Sender<Answer>>>> {
        self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Writes a whole frame, whether or not the caller goes on waiting for that: half of one would be the end of the connection.
    async fn write(self: &Arc<Self>, frame: Vec<u8>, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let one_frame = self.writing.clone().lock_owned().await;
        let sent = match self.socket.try_io(Interest::WRITABLE, || sys::socket::sendmsg(&self.socket, &frame, fds)) {
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => 0,
            sent => sent.context(|| "send to the shim").map_err(|e| e.with_kind(Kind::Unavailable))?,
        };
        if sent == frame.len() {
            return Ok(());
        }
        let riding = if sent == 0 { fds } else { &[] };
        let riding = riding.iter().map(BorrowedFd::try_clone_to_owned).collect::<std::io::Result<Vec<_>>>();
        let (shared, riding) = (self.clone(), riding.context(|| "dup what rides along")?);
        let rest = tokio::spawn(async move {
            let written = shared.write_from(&frame, sent, riding).await;
            drop(one_frame);
            written
        });
        rest.await.map_err(|e| Error::internal(format!("a writer ended: {e}")))?
    }

    async fn write_from(&self, frame: &[u8], mut sent: usize, fds: Vec<OwnedFd>) -> Result<()> {
        let mut riding: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        while sent < frame.len() {
            sent += self
                .socket
                .async_io(Interest::WRITABLE, || sys::socket::sendmsg(&self.socket, &frame[sent..], &riding))
                .await
                .context(|| "send to the shim")
                .map_err(|e| e.with_kind(Kind::Unavailable))?;
            riding.clear(); // they went with the first byte
        }
        Ok(())
    }

    async fn read(&self, heard: &mpsc::UnboundedSender<Heard>) -> Result<()> {
        let mut bytes: Vec<u8> = Vec::new();
        let mut fds: Vec<OwnedFd> = Vec::new();
        let mut chunk = vec![0; READ_BYTES];
        loop {
            let received = self
                .socket
                .async_io(Interest::READABLE, || sys::socket::recvmsg(&self.socket, &mut chunk))
                .await
                .context(|| "receive from the shim")?;
            if received.bytes == 0 {
                return Ok(());
            }
            bytes.extend_from_slice(&chunk[..received.bytes]);
            fds.extend(received.fds);
            if fds.len() > MAX_FDS * 2 {
                return Err(Error::exhausted("the shim sent more file descriptors than its messages have"));
            }
            while let Some(frame) = take_frame(&mut bytes)? {
                self.dispatch(&frame, &mut fds, heard)?;
            }
        }
    }

    fn dispatch(&self, frame: &[u8], fds: &mut Vec<OwnedFd>, heard: &mpsc::UnboundedSender<Heard>) -> Result<()> {
        let message =
            serde_json::from_slice(frame).map_err(|e| Error::internal(format!("message of the shim: {e}")))?;
        match message {
            ToEngine::Event(event) => {
                let _ = heard.send(Heard::Event(event)); // nobody listens any more when the pod was removed
            }
            ToEngine::Reply { id, reply } => {
                let riding = if carries_fds(&reply) { std::mem::take(fds) } else { Vec::new() };
                if let Some(sender) = self.waiting().as_mut().and_then(|w| w.remove(&id)) {
                    let _ = sender.send((reply, riding)); // the caller was cancelled; the shim's state is the truth anyway
                }
            }
        }
        Ok(())
    }
}

/// Which answers bring file descriptors: so those of the next message in the same read are not taken for this one's.
fn carries_fds(reply: &Reply) -> bool {
    matches!(reply, Reply::Sandbox(_) | Reply::Started(_) | Reply::Duplicates { .. })
}

fn take_frame(bytes: &mut Vec<u8>) -> Result<Option<Vec<u8>>> {
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let end = HEADER_BYTES + wire::frame_len(*header)?;
    if bytes.len() < end {
        return Ok(None);
    }
    let frame = bytes[HEADER_BYTES..end].to_vec();
    bytes.drain(..end);
    Ok(Some(frame))
}

/// The instance a shim belongs to, for people.
pub fn instance_name(instance: Option<&InstanceId>) -> String {
    instance.map_or_else(|| "the daemon".to_owned(), |i| format!("run {i}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_may_have_a_longer_path_than_an_address_has_room_for() {
        let temp = tempfile::tempdir().expect("tempdir");
        let dir = temp.path().join("d".repeat(200));
        std::fs::create_dir(&dir).expect("mkdir");
        let path = dir.join("shim.sock");
        let listener = listen_at(&path).expect("bind");
        let _connection = connect(&path).expect("connect");
        listener.accept().expect("accept");
        assert_eq!(connect(&dir.join("other.sock")).expect_err("nobody").kind(), Kind::Unavailable);
    }
}
