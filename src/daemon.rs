//! `podwright daemon`: one engine behind a socket. Wiring only: what is done is the engine's, what is said is `cri`'s.
//!
//! It starts: lock, recovery, what a dead daemon left unfinished, socket, READY. It ends on SIGTERM or SIGINT: no new connection, calls
//! that are at work have some time, pods live on. It may also be killed at any instruction: the next one finds everything.

use crate::agent::service::{self, Service};
use crate::cgroup::systemd;
use crate::config::CgroupDriver;
use crate::config::nri::NriSettings;
use crate::cri::{self, Cri, Listener};
use crate::engine::{self, Engine, Options, checkpoint, in_use, mkdir_all, sweep};
use crate::error::{Context, Error, Result};
use crate::fault;
use crate::image::pull::{self, Puller};
use crate::nri::{Nri, Times};
use crate::stream;
use crate::sys::rlimit::{self, Resource};
use crate::sys::sched;
use std::fs::Permissions;
use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

/// Threads for calls, at most: they wait for shims and the kernel more than they work.
const MAX_WORKERS: usize = 4;
/// Threads for what blocks: reading images, walking writable layers.
const MAX_BLOCKING: usize = 32;
/// How long such a thread waits for more: a thread is cheap to make and its stack is not free to keep.
const IDLE_THREAD: Duration = Duration::from_secs(1);
/// How long verbs that were begun may go on when the daemon is to end; the next daemon copes with what is not finished.
const DRAIN: Duration = Duration::from_secs(10);
/// Of the socket, and of its directory if that has to be made: who may connect is root on this host, and so only root may.
const SOCKET_MODE: u32 = 0o600;
const SOCKET_DIRECTORY_MODE: u32 = 0o700;
/// How long somebody who serves our socket is waited for, before he is taken for one who goes on.
const SOCKET_FREED: Duration = Duration::from_secs(1);

/// What the daemon is told.
#[derive(Debug)]
pub struct Settings {
    pub engine: Options,
    pub socket: PathBuf,
    pub pull: pull::Settings,
    /// An address and port or a unix socket's path to serve `/metrics` on; empty for nowhere.
    pub metrics: String,
    pub streams: stream::Settings,
    pub checkpoints: checkpoint::Settings,
    /// Where plugins of the Node Resource Interface connect; `None`: nowhere.
    pub nri: Option<NriSettings>,
    /// The effective configuration as JSON.
    pub config: String,
}

/// Runs until it is told to end.
///
/// # Errors
/// `FailedPrecondition` when another daemon has the same state directory; what keeps it from starting.
pub fn run(settings: Settings) -> Result<()> {
    // 1024 is what shells and units give for the sake of select(2), which nothing here calls; a pod costs the daemon a few descriptors.
    rlimit::raise(Resource::NOFILE).context(|| "raise the limit of open files")?;
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(cpus.min(MAX_WORKERS)).max_blocking_threads(MAX_BLOCKING).thread_name("podwright");
    builder.thread_keep_alive(IDLE_THREAD);
    // Callers wait for its answers, and should not behind the containers that it starts.
    let answer_soon = || drop(sched::answer_soon()); // refused it costs time and nothing else
    builder.on_thread_start(answer_soon);
    answer_soon();
    let runtime = builder.enable_all().build().context(|| "start a runtime")?;
    let ended = runtime.block_on(serve(settings));
    // What still works is killed with the process, as kill -9 would: it is found again.
    runtime.shutdown_background();
    ended
}

async fn serve(settings: Settings) -> Result<()> {
    let paths = settings.engine.paths.clone();
    let _lock = sweep::claim(&paths).context(|| "another daemon has this state directory")?;
    fault::point("daemon.start.locked");
    let mut terminate = signal(SignalKind::terminate()).context(|| "watch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context(|| "watch SIGINT")?;
    let engine = recover(settings.engine).await?;
    fault::point("daemon.start.recovered");
    engine.set_checkpoints(settings.checkpoints);
    let (metrics, metrics_place) = listen_for_metrics(&settings.metrics).await?;
    let (streams, streaming) = stream::Server::bind(engine.clone(), &settings.streams).await?;
    let (listener, place) = listen(&settings.socket).await?;
    fault::point("daemon.start.listening");
    let plugins = match &settings.nri {
        Some(nri) => listen_for_plugins(&engine, nri).await,
        None => None,
    };
    let (close, closing) = watch::channel(false);
    let (working, mut at_work) = mpsc::channel(1);
    tokio::spawn(sweep_behind(engine.clone(), working.clone()));
    let loading = engine.clone();
    // Nothing waits for it but a container that comes before it is done: what runs gets the new one under its feet.
    tokio::spawn(async move {
        if let Err(e) = loading.load_apparmor().await {
            tracing::warn!("{e}; containers that ask for no profile run unconfined by AppArmor");
        }
    });
    let tended = engine.clone();
    tokio::spawn(async move { tended.network().tend().await }); // it ends with the process
    service::take_down_foreground(&engine);
    let own = Service::new(engine.clone(), closing.clone(), working.clone());
    let puller = Puller::new(engine.images().clone(), settings.pull);
    let cri = Cri::new(engine.clone(), puller.clone(), streams.clone(), settings.config, closing.clone(), working);
    if let Some(metrics) = metrics {
        tokio::spawn(cri::serve_metrics(cri.clone(), metrics, closing.clone())); // it ends with `closing`, or with the process
    }
    tokio::spawn(streams.serve(streaming, closing.clone())); // as above
    let server = tokio::spawn(cri::serve(cri, own.server(), listener, closing));
    tracing::info!("serving CRI on {}", settings.socket.display());
    notify("READY=1");
    fault::point("daemon.start.ready");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    notify("STOPPING=1");
    tracing::info!("asked to end: waiting for calls that are at work");
    fault::point("daemon.drain.asked");
    close.send_replace(true);
    let drained = async {
        let _ = server.await; // it does not panic, and if it did there is no more to wait for
        at_work.recv().await;
        puller.settled().await;
    };
    if tokio::time::timeout(DRAIN * 2, drained).await.is_err() {
        tracing::warn!("ending with calls at work: the next daemon finds what they began");
    }
    fault::point("daemon.drain.drained");
    if let Err(e) = engine.network().release().await {
        tracing::warn!("{e}");
    }
    [Some(place), metrics_place, plugins].iter().flatten().for_each(Place::remove);
    fault::point("daemon.drain.unlinked");
    engine.prune_cgroups();
    sweep::prune_directories(&paths);
    Ok(())
}

/// An engine that knows what is there.
async fn recover(options: Options) -> Result<Engine> {
    if options.cgroup_driver == CgroupDriver::Systemd {
        systemd::check()?; // now, and not by the first pod
    }
    let engine = Engine::open(options)?;
    for e in engine.recover().await? {
        tracing::error!("{e}");
    }
    fault::point("daemon.start.known");
    for e in engine.sweep_unfinished().await? {
        tracing::warn!("{e}");
    }
    if let Err(e) = engine.network().collect().await {
        tracing::warn!("{e}");
    }
    tracing::info!("{} pods are there", engine.list_pods().len());
    Ok(engine)
}

/// What others have left: a `run` that was killed together with its shims, a daemon that was killed in RemoveImage. Nobody waits for it.
async fn sweep_behind(engine: Engine, working: mpsc::Sender<()>) {
    if let Err(e) = sweep::sweep_dead(engine.options()).await {
        tracing::warn!("{e}");
    }
    let swept = engine::blocking(move || engine.images().collect_unneeded(&|| in_use::in_use(engine.paths()))).await;
    match swept {
        Ok(removed) if removed.layers.is_empty() => {}
        Ok(removed) => tracing::info!("{} layers that no image needs are removed", removed.layers.len()),
        Err(e) => tracing::warn!("image layers that nobody needs stay: {e}"),
    }
    drop(working);
}

/// A socket's place, to know it again: whoever has put another one there since keeps that.
struct Place {
    path: PathBuf,
    inode: (u64, u64),
}

impl Place {
    fn inode(path: &Path) -> std::io::Result<(u64, u64)> {
        std::fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
    }

    /// A socket that nobody listens on only misleads.
    fn remove(&self) {
        if Place::inode(&self.path).is_ok_and(|inode| inode == self.inode) {
            let _ = std::fs::remove_file(&self.path); // the next one replaces it
        }
    }
}

/// The socket, made beside its place and renamed into it: it is never there with other permissions, and that of a dead daemon goes.
///
/// # Errors
/// `FailedPrecondition` where somebody serves it, another runtime for instance, or where something else than a socket is.
async fn listen(path: &Path) -> Result<(UnixListener, Place)> {
    let doing = || format!("make socket {}", path.display());
    let parent = path.parent().ok_or_else(|| Error::invalid(format!("socket {} has no directory", path.display())))?;
    mkdir_all(parent, SOCKET_DIRECTORY_MODE)?;
    free(path).await.context(doing)?;
    let new = crate::state::paths::beside(path);
    let _ = std::fs::remove_file(&new); // of a daemon that was killed before its rename
    let listener = UnixListener::bind(&new).context(doing)?;
    std::fs::set_permissions(&new, Permissions::from_mode(SOCKET_MODE)).context(doing)?;
    let inode = Place::inode(&new).context(doing)?;
    fault::point("daemon.start.bound");
    std::fs::rename(&new, path).context(doing)?;
    Ok((listener, Place { path: path.to_owned(), inode }))
}

/// Waits until a socket's place is nobody's. For a while: of a daemon that is being killed the lock may go before the socket.
async fn free(path: &Path) -> Result<()> {
    let until = Instant::now() + SOCKET_FREED;
    loop {
        match std::fs::symlink_metadata(path) {
            Err(_) => return Ok(()), // what is wrong with it, bind says
            Ok(there) if !there.file_type().is_socket() => {
                return Err(Error::precondition("something else than a socket is there; it has to be removed first"));
            }
            Ok(_) => {}
        }
        match tokio::net::UnixStream::connect(path).await {
            Err(e) if matches!(e.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => return Ok(()),
            _ if Instant::now() < until => tokio::time::sleep(SOCKET_FREED / 20).await,
            _ => {
                let why = "another daemon or runtime serves it; end that one, or give this one a socket of its own";
                return Err(Error::precondition(why));
            }
        }
    }
}

/// Where `/metrics` is asked for: nowhere, an address and port, or a socket like that of the CRI.
async fn listen_for_metrics(address: &str) -> Result<(Option<Listener>, Option<Place>)> {
    match address {
        "" => Ok((None, None)),
        path if path.starts_with('/') => {
            let (listener, place) = listen(Path::new(path)).await?;
            Ok((Some(Listener::Unix(listener)), Some(place)))
        }
        address => Ok((Some(Listener::tcp(address).await?), None)),
    }
}

/// The socket of NRI. Another runtime of this host may have it: it keeps it, and pods of this one are without plugins.
async fn listen_for_plugins(engine: &Engine, settings: &NriSettings) -> Option<Place> {
    let socket = settings.socket.as_path();
    if tokio::net::UnixStream::connect(socket).await.is_ok() {
        tracing::warn!("NRI is off: another runtime serves {}; give this one its own nri.socket", socket.display());
        return None;
    }
    match listen(socket).await {
        Ok((listener, place)) => {
            let times = Times { registration: settings.registration, request: settings.request };
            Nri::serve(engine, listener, times);
            Some(place)
        }
        Err(e) => {
            tracing::error!("NRI is off: {e}");
            None
        }
    }
}

/// Tells systemd, if it wants to know: sd_notify(3).
fn notify(state: &str) {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = match name.as_bytes() {
        [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest),
        _ => SocketAddr::from_pathname(&name),
    };
    let sent = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(e) = sent {
        tracing::warn!("tell {} {state}: {e}", name.display());
    }
}
