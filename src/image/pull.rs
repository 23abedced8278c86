//! Pulls: from a registry into the store in one pass, once however many ask.
//!
//! ```text
//! socket -> sha256 -> pipe -> [worker: gunzip/unzstd -> sha256 -> tar -> files] -> syncfs -> rename into layers/
//! ```
//! Nothing else is written: a blob is never on the disk. Its digest is compared before the layer is published, and the process that has
//! computed it is not the one that has parsed the blob.
//!
//! Who asks for what is being pulled already waits for that pull. A pull ends early when the last of those who wait has gone; then, as after
//! every failure, its session takes back what it made. A layer that two images share is fetched by one pull, and found by the other; so is all
//! of an image that two processes pull ([`super::store::turn`]).

use super::found::{self, Beating, Found, Held, Search, Source, Unpack, What, unsuitable};
use super::oci::{Descriptor, Platform};
use super::reference::Reference;
use super::registry::blob::Doubts;
use super::registry::client::{Client, cancelled};
use super::registry::credentials::{AuthFile, Candidate, Secret, registry_name};
use super::registry::failure::{Failure, Why};
use super::registry::hosts::{self, Endpoint};
use super::registry::proxy::Proxies;
use super::registry::transport::Transport;
use super::store::Store;
use super::store::session::{Expected, Progress};
use super::unpack::Unpacked;
use super::unpack::spawn::Blob;
use crate::error::{Context, Error, Kind, Result};
use crate::fault;
use crate::id::Digest;
use crate::sys;
use std::collections::{BTreeMap, HashMap};
use std::io::PipeWriter;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;
use tokio::net::unix::pipe;
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, watch};

/// Images that are pulled at once, at most; others wait.
const MAX_PULLS: usize = 16;
/// Bytes that a worker may be behind the network: the most that anybody may have a pipe hold (/proc/sys/fs/pipe-max-size).
const PIPE: usize = 1 << 20;
/// What `podwright` calls a document's type when nothing points to it.
const DOCUMENT_TYPES: [&str; 2] = ["application/vnd.oci.image.", "application/vnd.docker.distribution.manifest."];

/// How images are pulled on this host.
#[derive(Debug, Clone)]
pub struct Settings {
    /// See [`hosts`].
    pub hosts_dir: PathBuf,
    /// Docker's config.json, the first that has a registry counts; they need not exist.
    pub auth_files: Vec<PathBuf>,
    /// Layers of one image that are fetched at once.
    pub parallel_layers: usize,
    /// How long a registry may send nothing.
    pub no_progress: Duration,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Request {
    pub name: Reference,
    pub platform: Platform,
    /// Counts before those of the host's files.
    pub given: Option<Given>,
    /// Of the pod: count before the host's files as well.
    pub secrets: Vec<AuthFile>,
}

/// Credentials that come with a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Given {
    /// The registry that they are for; empty: that of the image.
    pub registry: String,
    pub secret: Secret,
}

/// Says that a worker has failed, by being dropped.
type Failed = watch::Receiver<()>;

/// An image that is in the store now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    pub id: Digest,
    /// What the name is: the digest of an index or manifest.
    pub target: Option<Digest>,
    /// It was there, and is what the registry says.
    pub fresh: bool,
}

/// Pulls into one store. Cheap to clone; all clones are the same one.
#[derive(Debug, Clone)]
pub struct Puller(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    settings: Settings,
    transport: Transport,
    flights: Mutex<HashMap<Request, Weak<Flight>>>,
    /// Who makes what: images and layers.
    turns: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    slots: Arc<Semaphore>,
    /// Threads that are at a pull.
    at_work: watch::Sender<usize>,
}

/// A pull that somebody waits for. Those who wait hold it, its thread does not: with the last of them it is dropped, and the thread hears of it.
#[derive(Debug)]
struct Flight {
    done: watch::Receiver<Option<Result<Pulled>>>,
    _wanted: watch::Sender<()>,
}

/// What drives the sockets and timers of all pulls. Of its own, for a thread of a pull must not outlive what it waits with.
fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<std::result::Result<Runtime, Error>> = OnceLock::new();
    let made = RUNTIME.get_or_init(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(1).thread_name("pull-io").enable_all().build().context(|| "start a runtime for pulls")
    });
    made.as_ref().map_err(Clone::clone)
}

/// Asks a registry whether it takes credentials, or wants none. Mirrors are not asked.
///
/// # Errors
/// `FailedPrecondition` when it does not take them, else those of [`Puller::pull`].
pub fn check_login(registry: &str, secret: Secret, settings: &Settings) -> Result<()> {
    let transport = Transport::new(settings.no_progress, Proxies::from_env(|name| std::env::var(name).ok()));
    let mut endpoints = hosts::endpoints(&settings.hosts_dir, registry)?;
    endpoints.retain(|endpoint| !endpoint.mirror);
    let client = Client::new(&transport, registry, "", endpoints, |_| vec![Candidate::Known(secret.clone())]);
    runtime()?.block_on(client.ping()).context(|| format!("log in to {registry}"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Puller {
    pub fn new(store: Store, settings: Settings) -> Puller {
        let proxies = Proxies::from_env(|name| std::env::var(name).ok());
        Puller(Arc::new(Inner {
            store,
            transport: Transport::new(settings.no_progress, proxies),
            settings,
            flights: Mutex::default(),
            turns: Mutex::default(),
            slots: Arc::new(Semaphore::new(MAX_PULLS)),
            at_work: watch::channel(0).0,
        }))
    }

    /// The store that images come into.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Has the image of this name in the store as the registry has it. Dropped by all who wait for it, it ends and leaves nothing.
    ///
    /// # Errors
    /// `NotFound` for no such image or platform; `FailedPrecondition` when credentials are missing or refused, with the remedy;
    /// `Unavailable` when no endpoint answers; `InvalidArgument` for what is wrong in the image; `ResourceExhausted` for a bound or a full disk.
    pub async fn pull(&self, request: &Request, progress: Arc<dyn Progress + Send>) -> Result<Pulled> {
        let flight = self.board(request, progress)?;
        let mut done = flight.done.clone();
        let ended = done.wait_for(Option::is_some).await;
        match ended.as_deref() {
            Ok(Some(result)) => result.clone(),
            _ => Err(Error::internal("the thread of a pull ended without a word")),
        }
    }

    /// Waits until no thread is at a pull, those included that nobody waits for any more and that take back what they made.
    pub async fn settled(&self) {
        let mut at_work = self.0.at_work.subscribe();
        let _ = at_work.wait_for(|threads| *threads == 0).await; // its sender is ours
    }

    /// The pull of what is asked for, which may be under way.
    fn board(&self, request: &Request, progress: Arc<dyn Progress + Send>) -> Result<Arc<Flight>> {
        let mut flights = lock(&self.0.flights);
        flights.retain(|_, flight| flight.strong_count() > 0);
        let under_way = flights.get(request).and_then(Weak::upgrade);
        if let Some(flight) = under_way.filter(|flight| flight.done.borrow().is_none()) {
            return Ok(flight);
        }
        let (wanted, unwanted) = watch::channel(());
        let (tell, done) = watch::channel(None);
        let flight = Arc::new(Flight { done, _wanted: wanted });
        let (inner, request_of_thread) = (Arc::clone(&self.0), request.clone());
        let runtime = runtime()?;
        self.0.at_work.send_modify(|threads| *threads += 1);
        let thread = std::thread::Builder::new().name("pull".to_owned()).spawn(move || {
            let result = inner.run(runtime, &request_of_thread, &*progress, &unwanted);
            tell.send_replace(Some(result));
            inner.at_work.send_modify(|threads| *threads -= 1);
        });
        if thread.is_err() {
            self.0.at_work.send_modify(|threads| *threads -= 1);
        }
        thread.context(|| "start a thread for a pull")?;
        flights.insert(request.clone(), Arc::downgrade(&flight));
        Ok(flight)
    }
}

impl Inner {
    fn run(
        &self,
        runtime: &Runtime,
        request: &Request,
        progress: &dyn Progress,
        unwanted: &watch::Receiver<()>,
    ) -> Result<Pulled> {
        let pulled = || {
            let _slot = block(runtime, unwanted, async {
                let slot = Arc::clone(&self.slots).acquire_owned().await;
                slot.map_err(|e| Error::internal(format!("wait for a turn: {e}")))
            })?;
            let name = &request.name;
            let files = self.settings.auth_files.iter().map(|path| AuthFile::read(path)).collect::<Result<Vec<_>>>()?;
            let endpoints = hosts::endpoints(&self.settings.hosts_dir, name.host())?;
            let files: Vec<AuthFile> = request.secrets.iter().cloned().chain(files).collect();
            let candidates = |endpoint: &Endpoint| candidates(request, &files, endpoint);
            let client = Client::new(&self.transport, name.host(), name.path(), endpoints, candidates);
            let client = client.with_remedy(hosts::remedy(&self.settings.hosts_dir, name.host()));
            let (abandon, abandoned) = watch::channel(());
            let network =
                Network { inner: self, runtime, client, unwanted, abandon: Mutex::new(Some(abandon)), abandoned };
            network.pull(request, progress)
        };
        pulled().context(|| format!("pull {}", request.name))
    }
}

/// Waits for `work`, unless nobody waits for what comes of it.
fn block<T>(runtime: &Runtime, unwanted: &watch::Receiver<()>, work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut unwanted = unwanted.clone();
    runtime.block_on(async {
        tokio::select! {
            biased;
            _ = unwanted.changed() => Err(cancelled()),
            done = work => done,
        }
    })
}

/// What may be shown to an endpoint: what is its registry's, and a mirror is its own.
fn candidates(request: &Request, files: &[AuthFile], endpoint: &Endpoint) -> Vec<Candidate> {
    let (registry, own) = (request.name.host(), endpoint.base.origin.authority());
    let known_as: Vec<&str> = if endpoint.mirror { vec![&own] } else { vec![registry, &own] };
    if let Some(given) = &request.given {
        let fits = match registry_name(&given.registry) {
            None => !endpoint.mirror,
            named => known_as
                .iter()
                .any(|host| registry_name(host).map(|(host, _)| host) == named.as_ref().map(|n| n.0.clone())),
        };
        if fits {
            return vec![Candidate::Known(given.secret.clone())];
        }
    }
    let of = |host| files.iter().flat_map(move |file: &AuthFile| file.candidates(host, request.name.path()));
    known_as.iter().flat_map(|host| of(host)).collect()
}

/// One repository as a source of documents and layers.
struct Network<'a> {
    inner: &'a Inner,
    runtime: &'a Runtime,
    client: Client<'a>,
    unwanted: &'a watch::Receiver<()>,
    /// Dropped when a layer has failed.
    abandon: Mutex<Option<watch::Sender<()>>>,
    abandoned: watch::Receiver<()>,
}

impl Network<'_> {
    fn block<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        block(self.runtime, self.unwanted, work)
    }

    fn pull(&self, request: &Request, progress: &dyn Progress) -> Result<Pulled> {
        let (name, store) = (&request.name, &self.inner.store);
        let fresh = |id: Digest, target: Option<Digest>| Pulled { id, target, fresh: true };
        let known = store.named(name)?;
        let descriptor = |digest: Digest, size: u64, media_type: &str| Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size,
            platform: None,
            annotations: BTreeMap::new(),
        };
        let (top, bytes) = match (name.digest(), name.tag()) {
            (Some(digest), _) => {
                // What has a digest never changes.
                if let Some(known) = known.filter(|known| known.target.as_ref() == Some(digest)) {
                    return Ok(fresh(known.image, known.target));
                }
                let bytes = self.block(self.client.manifest(digest, None))?;
                (descriptor(digest.clone(), bytes.len() as u64, ""), bytes)
            }
            (None, tag) => {
                let tag = tag.unwrap_or("latest");
                // A HEAD costs the registry nothing, and Docker Hub does not count it.
                if let Some(known) = known.filter(|known| known.target.is_some()) {
                    let now = match self.block(self.client.resolve(tag)) {
                        Err(e) if e.kind() == Kind::Unavailable => return Err(e),
                        now => now.unwrap_or_default(), // not every registry knows HEAD; a GET says what is wrong
                    };
                    if now == known.target {
                        return Ok(fresh(known.image, known.target));
                    }
                }
                let tagged = self.block(self.client.tagged(tag))?;
                let known_type = DOCUMENT_TYPES.iter().any(|known| tagged.media_type.starts_with(known));
                let media_type = if known_type { tagged.media_type.as_str() } else { "" };
                let (digest, size) = (found::sha256(&tagged.bytes), tagged.bytes.len() as u64);
                (descriptor(digest, size, media_type), tagged.bytes)
            }
        };
        self.bring(request, &top, bytes, progress)
    }

    fn bring(&self, request: &Request, top: &Descriptor, bytes: Vec<u8>, progress: &dyn Progress) -> Result<Pulled> {
        // Who comes second finds all of it.
        let held = self.take_turn(format!("image-{}", top.digest.hex()))?;
        let progress = &Beating { progress, held: Some(&held) };
        let session = self.inner.store.session()?;
        let found = Search::new(self, &request.platform).from(top, bytes.clone())?;
        let mut found = found.ok_or_else(|| unsuitable(&request.platform, &platforms(&bytes)))?;
        found.names = vec![request.name.clone()];
        fault::point("image.pull.found");
        let all = [found];
        let layers = found::layers(&session, self, &all, self.inner.settings.parallel_layers, progress)?;
        let [found]: [Found; 1] = all;
        let (id, target) = (found.id.clone(), found.target.clone());
        let image = found::new_image(found, &layers, true)?;
        fault::point("image.pull.layers");
        self.block(async { Ok(()) })?; // the last moment to hear that nobody wants it
        session.commit(&[image])?;
        Ok(Pulled { id, target, fresh: false })
    }

    /// Waits until nobody else makes this, in this process or another one.
    fn take_turn(&self, what: String) -> Result<Held> {
        let turn = {
            let mut all = lock(&self.inner.turns);
            all.retain(|_, turn| turn.strong_count() > 0);
            let turn = all.get(&what).and_then(Weak::upgrade).unwrap_or_default();
            all.insert(what.clone(), Arc::downgrade(&turn));
            turn
        };
        self.block(async {
            let here = turn.lock_owned().await;
            let there = self.inner.store.turn(&what, self.inner.settings.no_progress).await?;
            Ok(Held { here, there })
        })
    }

    /// Writes a layer's blob into the pipe that its worker reads.
    fn fetch(
        &self,
        blob: (&Digest, u64),
        doubts: &mut Doubts,
        pipe: PipeWriter,
        failed: Failed,
    ) -> Result<(), Failure> {
        let work = async {
            let sink = pipe::Sender::from_owned_fd(OwnedFd::from(pipe));
            let mut sink = sink.context(|| "watch a pipe")?;
            self.client.blob(blob.0, blob.1, &mut sink, doubts).await
        };
        let (mut unwanted, mut abandoned, mut failed) = (self.unwanted.clone(), self.abandoned.clone(), failed);
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                _ = unwanted.changed() => Err(Failure { why: Why::Wrong, error: cancelled() }),
                _ = abandoned.changed() => Err(Failure { why: Why::Wrong, error: cancelled() }),
                _ = failed.changed() => Err(Failure { why: Why::Unwanted, error: cancelled() }),
                done = work => done,
            }
        })
    }

    /// Has a worker unpack what endpoints give for a blob; `None` when that was something else, and more endpoints can be asked.
    fn unpack_once(&self, blob: (&Digest, u64), doubts: &mut Doubts, unpack: Unpack<'_>) -> Result<Option<Unpacked>> {
        let (read, write) = std::io::pipe().context(|| "make a pipe")?;
        let _ = sys::pipe::set_size(write.as_fd(), PIPE); // a smaller one is only slower
        let (failing, failed) = watch::channel(());
        let (fetched, unpacked) = std::thread::scope(|scope| {
            let fetch = scope.spawn(|| self.fetch(blob, doubts, write, failed));
            let unpacked = unpack(Blob::Pipe { pipe: read.into(), len: Some(blob.1) });
            // A worker that has failed takes no more. If it is the bytes that are wrong, the rest tells whose fault that is: the image's if they
            // have its digest, else that of who gave them.
            let wrong = |e: &Error| e.kind() == Kind::InvalidArgument;
            let failing = Some(failing).filter(|_| unpacked.as_ref().map_or_else(wrong, |_| true));
            let fetched = fetch.join();
            drop(failing);
            (fetched, unpacked)
        });
        match (fetched, unpacked) {
            (Err(_), _) => Err(Error::internal("the thread of a layer panicked")),
            (Ok(Err(failure)), Err(e)) if failure.why == Why::Unwanted => Err(e),
            (Ok(Err(failure)), _) if failure.why == Why::Corrupt => {
                tracing::warn!("{}; another endpoint is asked for it", failure.error);
                Ok(None)
            }
            (Ok(Err(failure)), _) => Err(failure.error),
            (Ok(Ok(())), unpacked) => unpacked.map(Some),
        }
    }
}

/// The platforms of what was looked at first, for a message.
fn platforms(bytes: &[u8]) -> String {
    match super::oci::document(bytes, "") {
        Ok(super::oci::Document::Index(descriptors)) => super::oci::platforms(&descriptors),
        _ => "another".to_owned(),
    }
}

impl Source for Network<'_> {
    fn document(&self, descriptor: &Descriptor, what: What) -> Result<Vec<u8>> {
        let known = self.inner.store.document(&descriptor.digest);
        if let Some(bytes) = known.filter(|bytes| bytes.len() as u64 == descriptor.size) {
            return Ok(bytes);
        }
        let read = async {
            match what {
                What::Manifest => self.client.manifest(&descriptor.digest, Some(descriptor.size)).await,
                What::Config => self.client.small_blob(&descriptor.digest, descriptor.size).await,
            }
        };
        self.block(read).context(|| format!("{what} {}", descriptor.digest))
    }

    fn unpack(&self, expected: &Expected, _: &str, unpack: Unpack<'_>) -> Result<Unpacked> {
        let (Some(digest), Some(size)) = (&expected.blob, expected.bytes) else {
            return Err(Error::internal("a layer of a registry without a digest"));
        };
        let mut doubts = Doubts::default();
        loop {
            // Each time that it is not, `doubts` has less endpoints left.
            if let Some(unpacked) = self.unpack_once((digest, size), &mut doubts, unpack)? {
                return Ok(unpacked);
            }
        }
    }

    fn turn(&self, diff_id: &Digest) -> Result<Option<Held>> {
        self.take_turn(format!("layer-{}", diff_id.hex())).map(Some)
    }

    fn abandon(&self) {
        drop(lock(&self.abandon).take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn request(name: &str, given: Option<(&str, Secret)>) -> Request {
        let given = given.map(|(registry, secret)| Given { registry: registry.into(), secret });
        Request { name: name.parse().expect("a name"), platform: Platform::host(), given, secrets: Vec::new() }
    }

    fn shown(request: &Request, files: &str, mirror: Option<&str>) -> Option<Secret> {
        let files = [AuthFile::parse(files.as_bytes()).expect("valid")];
        let mut endpoint = hosts::endpoints(Path::new("/nonexistent"), request.name.host()).expect("own").remove(0);
        if let Some(mirror) = mirror {
            endpoint.base = super::super::registry::url::Url::parse(mirror).expect("a URL");
            endpoint.mirror = true;
        }
        match candidates(request, &files, &endpoint).into_iter().next() {
            Some(Candidate::Known(secret)) => Some(secret),
            _ => None,
        }
    }

    #[test]
    fn credentials_are_shown_to_their_registry_and_to_no_mirror() {
        let own = Secret::Bearer("own".into());
        let none = r#"{}"#;
        for registry in ["", "docker.io", "https://index.docker.io/v1/", "registry-1.docker.io"] {
            let request = request("nginx", Some((registry, own.clone())));
            assert_eq!(shown(&request, none, None), Some(own.clone()), "{registry}");
            assert_eq!(shown(&request, none, Some("https://mirror.example")), None, "{registry}");
        }
        let other = request("nginx", Some(("other.example", own.clone())));
        assert_eq!(shown(&other, none, None), None);
        let of_mirror = request("nginx", Some(("mirror.example", own.clone())));
        assert_eq!(shown(&of_mirror, none, Some("https://mirror.example")), Some(own.clone()));
        let files =
            r#"{"auths": {"docker.io": {"registrytoken": "hub"}, "mirror.example:5000": {"registrytoken": "mirror"}}}"#;
        let bare = request("nginx", None);
        assert_eq!(shown(&bare, files, None), Some(Secret::Bearer("hub".into())));
        let mirror = shown(&bare, files, Some("https://mirror.example:5000"));
        assert_eq!(mirror, Some(Secret::Bearer("mirror".into())));
        assert_eq!(shown(&bare, files, Some("https://mirror.example")), None);
    }
}
