//! Pulls: from a registry of the tests' own, which does what no registry should, and from Debian's. What is refused leaves nothing.
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod fixtures;

use fixtures::cri::Node;
use fixtures::evil_tar::{Image as Made, Layer, Tar, sha256};
use fixtures::machine::{Machine, PATIENCE, Running, image, script, until};
use fixtures::registry::{Body, Content, DockerRegistry, Registry, Reply, Seen};
use podwright::criapi::{AuthConfig, ImageSpec, ImageStatusRequest, PullImageRequest, RemoveImageRequest};
use podwright::error::{Error, Kind};
use podwright::image::oci::Platform;
use podwright::image::pull::{Given, Pulled, Puller, Request, Settings};
use podwright::image::registry::credentials::Secret;
use podwright::image::store::Store;
use podwright::image::store::session::Silent;
use podwright::image::unpack::spawn::Program;
use podwright::state::paths::Paths;
use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use tonic::Code;

/// A store of its own, and what pulls into it.
struct Place {
    dir: tempfile::TempDir,
    store: Store,
    puller: Puller,
}

impl Place {
    fn new() -> Place {
        Place::with(Duration::from_secs(20))
    }

    fn with(no_progress: Duration) -> Place {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths { root: dir.path().join("root"), state: dir.path().join("state"), instance: None };
        let store = Store::open_with(&paths, Program::at(fixtures::machine::binary())).unwrap();
        let settings = Settings {
            hosts_dir: dir.path().join("hosts"),
            auth_files: vec![dir.path().join("auth.json")],
            parallel_layers: 4,
            no_progress,
        };
        let puller = Puller::new(store.clone(), settings);
        Place { dir, store, puller }
    }

    /// Says how a registry is reached.
    fn hosts(&self, registry: &str, text: &str) -> PathBuf {
        let dir = self.dir.path().join("hosts").join(registry);
        std::fs::create_dir_all(&dir).unwrap();
        fixtures::put(dir.join("hosts.toml"), text);
        dir
    }

    async fn pull(&self, name: &str) -> Result<Pulled, Error> {
        self.pull_as(name, None).await
    }

    async fn pull_as(&self, name: &str, given: Option<Secret>) -> Result<Pulled, Error> {
        let given = given.map(|secret| Given { registry: String::new(), secret });
        let request = Request { name: name.parse().unwrap(), platform: Platform::host(), given, secrets: vec![] };
        let pulled = self.puller.pull(&request, Arc::new(Silent)).await;
        self.puller.settled().await;
        pulled
    }

    /// Refused with these words and kind, and the store is as it was.
    async fn refuses(&self, name: &str, kind: Kind, words: &[&str]) {
        let before = self.snapshot();
        let e = self.pull(name).await.expect_err(&words.join(" "));
        for word in words.iter().chain([&name]) {
            assert!(e.to_string().contains(word), "{word:?} is not in: {e}");
        }
        assert_eq!(e.kind(), kind, "{e}");
        assert_eq!(self.snapshot(), before, "{e}");
    }

    /// What the store has, but for the lock that stays.
    fn snapshot(&self) -> BTreeMap<PathBuf, u64> {
        let mut all = BTreeMap::new();
        let mut todo = vec![self.dir.path().join("root")];
        while let Some(dir) = todo.pop() {
            for entry in std::fs::read_dir(dir).unwrap().flatten() {
                let metadata = entry.metadata().unwrap();
                if metadata.is_dir() {
                    todo.push(entry.path());
                }
                if entry.file_name() != "lock" {
                    all.insert(entry.path(), if metadata.is_dir() { 0 } else { metadata.len() });
                }
            }
        }
        all
    }

    /// The content of a file in the image's layers, the uppermost that has it.
    fn file(&self, name: &str, path: &str) -> String {
        let image = self.store.lookup(name).unwrap();
        let layer = image.layers.iter().rev().find(|layer| layer.join(path).exists());
        std::fs::read_to_string(layer.unwrap_or_else(|| panic!("no {path}")).join(path)).unwrap()
    }
}

fn password(user: &str, password: &str) -> Secret {
    Secret::Password { user: user.to_owned(), password: password.to_owned() }
}

/// A layer of one file.
fn layer(path: &str, text: &str) -> Layer {
    Layer::gzip(&Tar::new().file(path, text.as_bytes()))
}

/// A layer that does not compress: it takes many packets.
fn large(seed: u8, bytes: usize) -> Layer {
    let mut state = u32::from(seed) + 1;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    })
    .take(bytes)
    .collect();
    Layer::gzip(&Tar::new().file(&format!("large-{seed}"), &noise))
}

fn one() -> Made {
    Made::new("", &[layer("a", "1")])
}

#[tokio::test]
async fn an_image_is_pulled_by_tag_by_digest_and_through_an_index() {
    let layers = [
        Layer::plain(&Tar::new().file("a", b"1")),
        Layer::gzip(&Tar::new().file("b", b"2")),
        Layer::zstd(&Tar::new().file("c", b"3")),
    ];
    let made = Made::new("", &layers);
    let mut content = Content::of(&[("t/a:1", &made)]);
    let host = Platform::host();
    let mut ours = made.descriptor.clone();
    ours["platform"] = serde_json::json!({"os": "linux", "architecture": host.architecture});
    let mut other = made.descriptor.clone();
    other["platform"] = serde_json::json!({"os": "linux", "architecture": "s390x"});
    let index = content.index("t/a:many", &[other.clone(), ours]);
    content.index("t/a:foreign", &[other]);
    let registry = Registry::of(content);
    let place = Place::new();

    let name = registry.image("t/a:1");
    let pulled = place.pull(&name).await.unwrap();
    assert_eq!((pulled.id.to_string(), pulled.fresh), (made.id(), false));
    for (path, text) in [("a", "1"), ("b", "2"), ("c", "3")] {
        assert_eq!(place.file(&name, path), text);
    }
    let stored = place.store.lookup(&name).unwrap();
    let manifest = made.descriptor["digest"].as_str().unwrap();
    assert_eq!(
        (stored.names, stored.digests),
        (vec![name.clone()], vec![format!("{}@{manifest}", registry.image("t/a"))])
    );

    // Nothing but the question what the tag is.
    let before = registry.seen().len();
    assert!(place.pull(&name).await.unwrap().fresh);
    let asked = registry.seen().split_off(before);
    assert_eq!(asked.iter().map(|seen| seen.method.as_str()).collect::<Vec<_>>(), ["HEAD"]);

    // Another name of it: what that is, and neither config nor layers.
    let before = registry.blobs_seen().len();
    let by_index = place.pull(&registry.image("t/a:many")).await.unwrap();
    assert_eq!(by_index.target.unwrap().to_string(), index);
    assert_eq!(registry.blobs_seen().len(), before);
    let by_digest = registry.image(&format!("t/a@{index}"));
    assert_eq!(place.pull(&by_digest).await.unwrap().id.to_string(), made.id());
    let before = registry.seen().len();
    assert!(place.pull(&by_digest).await.unwrap().fresh);
    assert_eq!(registry.seen().len(), before, "what has a digest never changes");

    let words = ["linux/s390x", "--platform"];
    place.refuses(&registry.image("t/a:foreign"), Kind::NotFound, &words).await;
    place.refuses(&registry.image("t/none:1"), Kind::NotFound, &["t/none/manifests/1 not found", "NAME_UNKNOWN"]).await;
}

#[tokio::test]
async fn a_tag_that_has_moved_is_pulled_again_and_the_old_image_stays_without_it() {
    let (first, second) = (one(), Made::new("", &[layer("a", "2")]));
    let contents = [Content::of(&[("t/a:1", &first)]), Content::of(&[("t/a:1", &second)])];
    let moved = Arc::new(AtomicUsize::new(0));
    let now = Arc::clone(&moved);
    let registry = Registry::start(move |seen| contents[now.load(Ordering::Relaxed)].reply(seen));
    let (place, name) = (Place::new(), registry.image("t/a:1"));
    place.pull(&name).await.unwrap();
    moved.store(1, Ordering::Relaxed);
    assert_eq!(place.pull(&name).await.unwrap().id.to_string(), second.id());
    assert_eq!(place.file(&name, "a"), "2");
    assert!(place.store.lookup(&first.id()).unwrap().names.is_empty());
}

#[tokio::test]
async fn what_a_registry_lies_about_is_refused_and_leaves_nothing() {
    let made = Made::new("", &[layer("a", "1"), large(1, 300_000)]);
    let manifest = format!("/v2/t/a/manifests/{}", made.descriptor["digest"].as_str().unwrap());
    let config = format!("/v2/t/a/blobs/{}", made.id());
    let blob = format!("/v2/t/a/blobs/{}", made.layers[1].digest);
    let size = made.layers[1].blob.len();
    let mut flipped = made.layers[1].blob.clone();
    flipped[size / 2] ^= 1;
    let other = Made::new("", &[layer("a", "other")]);
    let unlike = large(2, 300_000);
    let lies: Vec<(&str, String, Reply, &[&str])> = vec![
        ("another manifest", manifest.clone(), Reply::new(200, other.manifest), &["has"]),
        ("another config", config.clone(), Reply::new(200, vec![b' '; made.config.len()]), &["config", "the digest"]),
        ("an endless manifest", manifest, Reply { status: 200, headers: vec![], body: Body::Endless }, &["more bytes"]),
        ("an endless config", config, Reply { status: 200, headers: vec![], body: Body::Endless }, &["more bytes"]),
        ("a flipped bit", blob.clone(), Reply::new(200, flipped), &["layer"]),
        ("a longer layer", blob.clone(), Reply::new(200, vec![0; size + 1]), &["the manifest says"]),
        ("another layer", blob.clone(), Reply::new(200, &unlike.blob[..size.min(unlike.blob.len())]), &["layer"]),
        ("an endless layer", blob.clone(), Reply { status: 200, headers: vec![], body: Body::Endless }, &["layer"]),
        ("an absent layer", blob, Reply::error(404, "BLOB_UNKNOWN", "blob unknown"), &["not found"]),
    ];
    let mut content = Content::of(&[("t/a:1", &made)]);
    content.index("t/a:index", std::slice::from_ref(&made.descriptor));
    for (what, path, reply, words) in lies {
        let content = content.clone();
        let registry =
            Registry::start(move |seen| if seen.bare() == path { reply.clone() } else { content.reply(seen) });
        let place = Place::new();
        let before = place.snapshot();
        let e = place.pull(&registry.image("t/a:index")).await.expect_err(what).to_string();
        words.iter().for_each(|word| assert!(e.contains(word), "{what}: {e}"));
        assert_eq!(place.snapshot(), before, "{what}: {e}");
    }
}

#[tokio::test]
async fn a_layer_of_another_digest_is_told_by_both_digests() {
    let (made, other) = (Made::new("", &[large(1, 10_000)]), large(2, 10_000));
    let mut content = Content::of(&[("t/a:1", &made)]);
    let path = format!("/v2/t/a/blobs/{}", made.layers[0].digest);
    // As long as it should be, and good gzip for as long as it goes.
    let mut blob = other.blob.clone();
    blob.resize(made.layers[0].blob.len(), 0);
    content.0.insert(path, (String::new(), blob.clone()));
    let registry = Registry::of(content);
    let place = Place::new();
    let e = place.pull(&registry.image("t/a:1")).await.expect_err("another").to_string();
    assert!(e.contains(&sha256(&blob)) || e.contains("damaged") || e.contains("behind the end"), "{e}");
}

#[tokio::test]
async fn an_index_of_a_hundred_thousand_entries_and_one_that_leads_nowhere_are_refused() {
    let made = one();
    let mut content = Content::of(&[("t/a:1", &made)]);
    content.index("t/a:huge", &vec![made.descriptor.clone(); 100_000]);
    let small = serde_json::json!({"digest": made.descriptor["digest"], "size": 1});
    content.index("t/a:many", &vec![small; 2000]);
    // Indexes in indexes, deeper than anybody makes them.
    let mut inner = made.descriptor.clone();
    for depth in 0..6 {
        let digest = content.index(&format!("t/a:deep{depth}"), std::slice::from_ref(&inner));
        let size = content.0[&format!("/v2/t/a/manifests/{digest}")].1.len();
        inner =
            serde_json::json!({"mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest, "size": size});
    }
    // Not deep, but wide at each step: a thousand ways to a manifest that suits nobody.
    let mut wrong = made.descriptor.clone();
    wrong["platform"] = serde_json::json!({"os": "linux", "architecture": "s390x"});
    let mut wide = wrong;
    for step in 0..3 {
        let digest = content.index(&format!("t/a:wide{step}"), &vec![wide.clone(); if step == 0 { 1 } else { 1000 }]);
        let size = content.0[&format!("/v2/t/a/manifests/{digest}")].1.len();
        wide =
            serde_json::json!({"mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest, "size": size});
    }
    let registry = Registry::of(content);
    let place = Place::new();
    place.refuses(&registry.image("t/a:huge"), Kind::ResourceExhausted, &["no manifest or index is so long"]).await;
    place.refuses(&registry.image("t/a:many"), Kind::InvalidArgument, &["2000 manifests in one index"]).await;
    assert!(place.pull(&registry.image("t/a:deep0")).await.is_ok());
    place.refuses(&registry.image("t/a:deep5"), Kind::ResourceExhausted, &["indexes in each other"]).await;
    let before = registry.seen().len();
    place.refuses(&registry.image("t/a:wide2"), Kind::ResourceExhausted, &["64 documents"]).await;
    assert!(registry.seen().len() - before < 70);
}

#[tokio::test]
async fn a_redirect_to_another_host_carries_neither_credentials_nor_headers() {
    let made = Made::new("", &[large(1, 100_000)]);
    let content = Content::of(&[("t/a:1", &made)]);
    let blobs = content.clone();
    let store = Registry::start(move |seen| {
        let path = seen.path.trim_start_matches("/store").to_owned();
        blobs.reply(&Seen { path, ..seen.clone() })
    });
    let elsewhere = store.url();
    let registry = Registry::start(move |seen| {
        if seen.header("authorization") != "Basic dXNlcjpzZWNyZXQ=" {
            return Reply::error(401, "UNAUTHORIZED", "authentication required")
                .with("WWW-Authenticate", "Basic realm=\"x\"");
        }
        match seen.is_blob() {
            true => Reply::new(307, "").with("Location", format!("{elsewhere}/store{}", seen.path)),
            false => content.reply(seen),
        }
    });
    let place = Place::new();
    let url = registry.url();
    place.hosts(&registry.address.to_string(), &format!("server = \"{url}\"\n[header]\nx-key = \"sesame\"\n"));
    place.pull_as(&registry.image("t/a:1"), Some(password("user", "secret"))).await.unwrap();
    assert!(registry.seen().iter().all(|seen| seen.header("x-key") == "sesame"));
    let stored = store.seen();
    assert_eq!(stored.len(), 2, "config and layer");
    for seen in stored {
        assert_eq!((seen.header("authorization"), seen.header("x-key")), ("", ""), "{seen:?}");
        assert_eq!(seen.header("host"), store.address.to_string());
    }
}

#[tokio::test]
async fn a_redirect_whose_signature_is_over_is_asked_for_again() {
    let made = one();
    let content = Content::of(&[("t/a:1", &made)]);
    let blobs = content.clone();
    let store = Registry::start(move |seen| match seen.path.contains("sig=1") {
        true => Reply::new(403, "<Error><Code>AccessDenied</Code></Error>"),
        false => blobs.reply(seen),
    });
    let elsewhere = store.url();
    let registry = Registry::start(move |seen| match seen.is_blob() {
        true => Reply::new(307, "").with("Location", format!("{elsewhere}{}?sig={}", seen.path, seen.before + 1)),
        false => content.reply(seen),
    });
    Place::new().pull(&registry.image("t/a:1")).await.unwrap();
    assert_eq!(store.blobs_seen().len(), 4, "config and layer, each twice");
}

#[tokio::test]
async fn redirects_that_go_round_are_refused() {
    let registry = Registry::start(|seen| Reply::new(302, "").with("Location", seen.path.clone()));
    Place::new().refuses(&registry.image("t/a:1"), Kind::InvalidArgument, &["5 redirects"]).await;
    let registry = Registry::start(|_| Reply::new(302, "").with("Location", "file:///etc/passwd"));
    Place::new().refuses(&registry.image("t/a:1"), Kind::InvalidArgument, &["redirect", "file:///etc/passwd"]).await;
}

/// A registry with tokens, each good for `uses` requests and those that an older one was refused for; who asks for one has to be `who`, if
/// that is anybody.
fn with_tokens(content: Content, uses: usize, who: &'static str) -> Registry {
    let given = Arc::new(AtomicUsize::new(0));
    let used = Arc::new(AtomicUsize::new(0));
    // Others at the same time must not use up what a request has got its token for: no registry's tokens end so.
    let refused: Arc<Mutex<HashSet<String>>> = Arc::default();
    Registry::start(move |seen| {
        if seen.bare() == "/token" {
            let refresh = "grant_type=refresh_token&client_id=podwright&refresh_token=identity";
            let good = match who {
                "" => seen.header("authorization").is_empty(),
                "identity" => seen.method == "POST" && seen.body.ends_with(refresh),
                who => seen.header("authorization") == who,
            };
            if !good {
                return Reply::error(401, "UNAUTHORIZED", "incorrect username or password");
            }
            let asked = if seen.method == "POST" { &seen.body } else { &seen.path };
            assert!(asked.contains("service=tests&scope=repository%3At%2Fa%3Apull"), "{asked}");
            used.store(0, Ordering::SeqCst);
            let number = given.fetch_add(1, Ordering::SeqCst) + 1;
            return Reply::new(200, format!("{{\"token\": \"number-{number}\"}}"));
        }
        let good = seen.header("authorization") == format!("Bearer number-{}", given.load(Ordering::SeqCst));
        let again = refused.lock().unwrap().contains(&seen.path);
        if !good || (!again && used.fetch_add(1, Ordering::SeqCst) >= uses) {
            refused.lock().unwrap().insert(seen.path.clone());
            let realm = format!("http://{}/token", seen.header("host"));
            let challenge = format!("Bearer realm=\"{realm}\",service=\"tests\",scope=\"repository:t/a:pull\"");
            return Reply::error(401, "UNAUTHORIZED", "authentication required").with("Www-Authenticate", challenge);
        }
        content.reply(seen)
    })
}

#[tokio::test]
async fn a_token_is_asked_for_and_again_when_it_expires_in_mid_pull() {
    let layers: Vec<Layer> = (0..8).map(|n| layer(&format!("f{n}"), &n.to_string())).collect();
    let made = Made::new("", &layers);
    let content = Content::of(&[("t/a:1", &made)]);
    for (who, secret) in [
        ("", None),
        ("Basic dXNlcjpzZWNyZXQ=", Some(password("user", "secret"))),
        ("identity", Some(Secret::Identity("identity".to_owned()))),
    ] {
        let registry = with_tokens(content.clone(), 3, who);
        let place = Place::new();
        place.pull_as(&registry.image("t/a:1"), secret).await.unwrap();
        let tokens = registry.seen().iter().filter(|seen| seen.bare() == "/token").count();
        assert!((2..=8).contains(&tokens), "{who}: {tokens} tokens for 10 requests of 3 a token");
        assert_eq!(place.file(&registry.image("t/a:1"), "f7"), "7");
    }
}

#[tokio::test]
async fn missing_and_wrong_credentials_are_told_with_the_remedy_and_never_shown() {
    let registry = with_tokens(Content::of(&[("t/a:1", &one())]), 3, "Basic dXNlcjpzZWNyZXQ=");
    let (place, name, host) = (Place::new(), registry.image("t/a:1"), registry.address.to_string());
    let login = format!("`podwright login {host}`");
    let words = ["pull access denied, or no such repository", "no credentials", &login, "imagePullSecrets"];
    place.refuses(&name, Kind::FailedPrecondition, &words).await;
    let e = place.pull_as(&name, Some(password("user", "hunter2"))).await.expect_err("wrong");
    assert_eq!(e.kind(), Kind::FailedPrecondition);
    assert!(e.to_string().contains("the password of \"user\"") && !e.to_string().contains("hunter2"), "{e}");
    // The host's own file: the registry's entry, and no other's.
    fixtures::put(place.dir.path().join("auth.json"), r#"{"auths": {"127.0.0.1:1": {"auth": "dXNlcjpzZWNyZXQ="}}}"#);
    assert!(place.pull(&name).await.is_err());
    fixtures::put(
        place.dir.path().join("auth.json"),
        format!(r#"{{"auths": {{"{host}": {{"auth": "dXNlcjpzZWNyZXQ="}}}}}}"#),
    );
    place.pull(&name).await.unwrap();
}

#[tokio::test]
async fn a_registry_that_is_busy_is_asked_again_when_it_says() {
    let content = Content::of(&[("t/a:1", &one())]);
    let registry = Registry::start(move |seen| match (seen.before, seen.is_blob()) {
        (0, true) => Reply::error(429, "TOOMANYREQUESTS", "slow down").with("Retry-After", "1"),
        (0 | 1, false) => Reply::new(503, ""),
        _ => content.reply(seen),
    });
    let (place, start) = (Place::new(), Instant::now());
    place.pull(&registry.image("t/a:1")).await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(2), "a config and a layer, each a second later");
    let registry =
        Registry::start(|_| Reply::error(429, "TOOMANYREQUESTS", "pull rate limit").with("Retry-After", "3600"));
    let start = Instant::now();
    place.refuses(&registry.image("t/a:1"), Kind::Unavailable, &["429", "pull rate limit"]).await;
    assert!(start.elapsed() < PATIENCE, "an hour is not waited for");
}

#[tokio::test]
async fn a_blob_that_breaks_off_is_resumed_where_it_broke() {
    let made = Made::new("", &[large(1, 400_000)]);
    let (blob, size) = (made.layers[0].blob.clone(), made.layers[0].blob.len());
    for knows_range in [true, false] {
        let (content, blob) = (Content::of(&[("t/a:1", &made)]), blob.clone());
        let path = format!("/v2/t/a/blobs/{}", made.layers[0].digest);
        let registry = Registry::start(move |seen| {
            if seen.path != path {
                return content.reply(seen);
            }
            match seen.before {
                0 => Reply { status: 200, headers: vec![], body: Body::Cut(blob[..1000].to_vec(), size) },
                1 if knows_range => {
                    let range = format!("bytes 1000-{}/{size}", size - 1);
                    let body = Body::Stalled(blob[1000..200_000].to_vec(), size - 1000);
                    Reply { status: 206, headers: vec![("Content-Range".to_owned(), range)], body }
                }
                _ if knows_range => content.reply(seen),
                _ => Reply::new(200, blob.clone()),
            }
        });
        let place = Place::with(Duration::from_secs(10));
        place.pull(&registry.image("t/a:1")).await.unwrap();
        let ranges: Vec<String> = registry
            .seen()
            .iter()
            .filter(|seen| seen.path.ends_with(&made.layers[0].digest))
            .map(|seen| seen.header("range").to_owned())
            .collect();
        let expected: &[&str] = if knows_range { &["", "bytes=1000-", "bytes=200000-"] } else { &["", "bytes=1000-"] };
        assert_eq!(ranges, expected);
    }
}

#[tokio::test]
async fn a_blob_that_breaks_off_again_and_again_and_one_that_never_comes_are_given_up() {
    let made = Made::new("", &[large(1, 100_000)]);
    let path = format!("/v2/t/a/blobs/{}", made.layers[0].digest);
    let size = made.layers[0].blob.len();
    for (body, no_progress_secs, words) in [
        (Body::Cut(Vec::new(), size), 20, ["layer", "registry http://"]),
        (Body::Stalled(Vec::new(), size), 2, ["nothing came for 2 s", "no_progress_timeout"]),
    ] {
        let (content, path) = (Content::of(&[("t/a:1", &made)]), path.clone());
        let registry = Registry::start(move |seen| match seen.path == path {
            true => Reply { status: 200, headers: vec![], body: body.clone() },
            false => content.reply(seen),
        });
        let place = Place::with(Duration::from_secs(no_progress_secs));
        place.refuses(&registry.image("t/a:1"), Kind::Unavailable, &words).await;
        assert!(registry.blobs_seen().len() <= 2 + 5);
    }
}

#[tokio::test]
async fn mirrors_are_asked_in_order_and_the_registry_itself_last() {
    let made = one();
    let content = Content::of(&[("t/a:1", &made), ("t/b:1", &made)]);
    let only_a = Content::of(&[("t/a:1", &made)]);
    let pull_only = Registry::of(content.clone());
    let mirror = Registry::of(only_a);
    let registry = Registry::of(content);
    let place = Place::new();
    place.hosts(
        "r.example",
        &format!(
            "server = \"{}\"\n[host.\"http://127.0.0.1:1\"]\n[host.\"{}\"]\ncapabilities = [\"pull\"]\n[host.\"{}\"]\n",
            registry.url(),
            pull_only.url(),
            mirror.url()
        ),
    );
    let secret = Some(password("user", "secret"));
    place.pull_as("r.example/t/a:1", secret.clone()).await.unwrap();
    assert_eq!(place.store.lookup("r.example/t/a:1").unwrap().names, ["r.example/t/a:1"]);
    assert_eq!(registry.seen().len(), 0);
    let asked: Vec<String> = mirror.seen().into_iter().map(|seen| seen.path).collect();
    assert_eq!(asked, ["/v2/t/a/manifests/1?ns=r.example"], "a tag: only who may resolve is asked");
    assert_eq!(pull_only.seen().len(), 2, "config and layer, by digest");
    assert!(pull_only.seen().iter().all(|seen| seen.is_blob() && seen.header("authorization").is_empty()));

    place.pull_as("r.example/t/b:1", secret).await.unwrap();
    assert_eq!(registry.seen().iter().map(|seen| seen.path.as_str()).collect::<Vec<_>>(), ["/v2/t/b/manifests/1"]);
    let words = ["mirror http://127.0.0.1:1: connect to", "ECONNREFUSED", "not found", "registry http://"];
    place.refuses("r.example/t/none:1", Kind::NotFound, &words).await;
}

/// A mirror that is right but for what it gives for one path.
fn mirror(content: &Content, path: &str, wrong: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Registry {
    let (content, path) = (content.clone(), path.to_owned());
    Registry::start(move |seen| if seen.bare() == path { wrong(seen) } else { content.reply(seen) })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_a_mirror_gives_wrongly_comes_from_the_next_and_the_mirror_is_named() {
    let made = Made::new("", &[large(1, 300_000), layer("b", "2")]);
    let content = Content::of(&[("t/a:1", &made)]);
    let path = format!("/v2/t/a/blobs/{}", made.layers[0].digest);
    let blob = made.layers[0].blob.clone();
    let size = blob.len();
    let mut flipped = blob.clone();
    flipped[size / 2] ^= 1;
    let mut other = large(2, 300_000).blob;
    other.resize(size, 0);
    let whole = |bytes: Vec<u8>| Body::Whole(bytes);
    let stories: Vec<(&str, Body, &str)> = vec![
        ("a flipped bit", whole(flipped.clone()), "has the digest"),
        ("another blob", whole(other), "has the digest"),
        ("zeros", whole(vec![0; size]), "has the digest"),
        ("a shorter one", whole(blob[..size - 1].to_vec()), "the manifest says"),
        ("an endless one", Body::Endless, "does not end after"),
        ("one that breaks off", Body::Cut(blob[..1000].to_vec(), size), "made nothing of it"),
    ];
    let all = stories.into_iter().map(|(what, body, words)| {
        let (content, path) = (content.clone(), path.clone());
        async move {
            let wrong = mirror(&content, &path, move |_| Reply { status: 200, headers: vec![], body: body.clone() });
            let good = Registry::of(content.clone());
            let place = Place::new();
            let hosts = |server: &Registry| {
                place.hosts("r.example", &format!("server = \"{}\"\n[host.\"{}\"]\n", server.url(), wrong.url()))
            };
            hosts(&good);
            place.pull("r.example/t/a:1").await.unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(place.file("r.example/t/a:1", "b"), "2", "{what}");
            assert_eq!(good.blobs_seen(), [path.as_str()], "{what}: nothing else is asked of the next");
            assert_eq!(std::fs::read_dir(place.dir.path().join("root/images/tmp")).unwrap().count(), 0, "{what}");
            // And when nobody has it, all are named.
            if words != "made nothing of it" {
                let place = Place::new();
                let neither = mirror(&content, &path, |_| Reply::error(404, "BLOB_UNKNOWN", "blob unknown"));
                let text = format!("server = \"{}\"\n[host.\"{}\"]\n", neither.url(), wrong.url());
                place.hosts("r.example", &text);
                let names = [format!("mirror {}: ", wrong.url()), format!("registry {}: ", neither.url())];
                place.refuses("r.example/t/a:1", Kind::NotFound, &[words, &names[0], &names[1], "not found"]).await;
            }
        }
    });
    futures_of(all).await;
}

/// Runs them side by side.
async fn futures_of(all: impl Iterator<Item = impl Future<Output = ()> + Send + 'static>) {
    let tasks: Vec<_> = all.map(tokio::spawn).collect();
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_mirrors_that_gave_a_wrong_layer_together_each_has_to_give_all_of_it() {
    let made = Made::new("", &[large(1, 300_000)]);
    let content = Content::of(&[("t/a:1", &made)]);
    let path = format!("/v2/t/a/blobs/{}", made.layers[0].digest);
    let size = made.layers[0].blob.len();
    let first =
        mirror(&content, &path, move |_| Reply { status: 200, headers: vec![], body: Body::Cut(vec![7; 5000], size) });
    let second = Registry::of(content.clone());
    let server = Registry::of(content);
    let place = Place::new();
    let text = format!("server = \"{}\"\n[host.\"{}\"]\n[host.\"{}\"]\n", server.url(), first.url(), second.url());
    place.hosts("r.example", &text);
    place.pull("r.example/t/a:1").await.unwrap();
    let ranges: Vec<String> =
        second.seen().iter().filter(|seen| seen.bare() == path).map(|seen| seen.header("range").to_owned()).collect();
    assert_eq!(ranges, ["bytes=5000-", ""]);
    assert_eq!(server.seen().len(), 0);
}

#[tokio::test]
async fn a_layer_that_is_damaged_in_the_image_itself_is_asked_of_no_other_mirror() {
    let mut blob = large(1, 200_000).blob;
    let middle = blob.len() / 2;
    blob[middle..middle + 100].fill(0xff);
    let made = Made::new("", &[Layer::new(&Tar::new().finish(), blob)]);
    let content = Content::of(&[("t/a:1", &made)]);
    let (first, server) = (Registry::of(content.clone()), Registry::of(content));
    let place = Place::new();
    place.hosts("r.example", &format!("server = \"{}\"\n[host.\"{}\"]\n", server.url(), first.url()));
    place.refuses("r.example/t/a:1", Kind::InvalidArgument, &["layer"]).await;
    assert_eq!((first.blobs_seen().len(), server.seen().len()), (2, 0), "config and layer, once");
}

#[tokio::test]
async fn a_registry_that_nobody_is_at_is_told_with_its_address() {
    let place = Place::new();
    place.refuses("127.0.0.1:1/t/a:1", Kind::Unavailable, &["registry https://127.0.0.1:1", "ECONNREFUSED"]).await;
    let e = place.pull("127.0.0.1:1/t/a:1").await.expect_err("nobody").to_string();
    assert!(!e.contains("mirror"), "{e}");
    // Elsewhere a mirror may help, and where it is said is said.
    let file = place.dir.path().join("hosts/nowhere.invalid:5000/hosts.toml");
    let lines = format!("[host.\"https://MIRROR\"] into {}", file.display());
    let words = ["look up nowhere.invalid", "if a mirror of nowhere.invalid:5000 can be reached, write ", &lines];
    place.refuses("nowhere.invalid:5000/t/a:1", Kind::Unavailable, &words).await;
    place.hosts("nowhere.invalid:5000", "[host.\"http://127.0.0.1:1\"]\n");
    let e = place.pull("nowhere.invalid:5000/t/a:1").await.expect_err("nobody").to_string();
    assert!(e.contains("mirror http://127.0.0.1:1") && !e.contains("if a mirror"), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_pulls_of_ten_images_fetch_each_blob_once() {
    let shared = [large(1, 200_000), large(2, 200_000)];
    let images: Vec<Made> = (0..10u8)
        .map(|n| Made::new("", &[shared[0].clone(), shared[usize::from(n % 2)].clone(), layer("own", &n.to_string())]))
        .collect();
    let names: Vec<String> = (0..10).map(|n| format!("t/a:{n}")).collect();
    let named: Vec<(&str, &Made)> = names.iter().map(String::as_str).zip(&images).collect();
    let registry = Registry::of(Content::of(&named));
    let place = Arc::new(Place::new());
    let pulls: Vec<_> = (0..50)
        .map(|n| {
            let (place, name) = (Arc::clone(&place), registry.image(&names[n % 10]));
            tokio::spawn(async move { place.pull(&name).await })
        })
        .collect();
    for pull in pulls {
        pull.await.unwrap().unwrap();
    }
    let blobs = registry.blobs_seen();
    let mut once = blobs.clone();
    once.dedup();
    assert_eq!(blobs, once, "a blob was fetched twice");
    assert_eq!(blobs.len(), 10 + 2 + 10, "configs, shared layers, own layers");
    for (n, name) in names.iter().enumerate() {
        assert_eq!(place.file(&registry.image(name), "own"), n.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_is_cancelled_at_any_moment_leaves_nothing() {
    let layers: Vec<Layer> = (0..4).map(|n| large(n, 400_000)).collect();
    let made = Made::new("", &layers);
    let content = Content::of(&[("t/a:1", &made)]);
    let registry = Registry::of(content);
    let place = Place::new();
    let request = Request {
        name: registry.image("t/a:1").parse().unwrap(),
        platform: Platform::host(),
        given: None,
        secrets: vec![],
    };
    let start = Instant::now();
    place.puller.pull(&request, Arc::new(Silent)).await.unwrap();
    let whole = start.elapsed();
    place.store.remove(&registry.image("t/a:1"), &|| Ok(Default::default())).unwrap();
    let before = place.snapshot();
    assert!(before.keys().all(|path| !path.to_string_lossy().contains("layers/")), "{before:?}");
    let mut cancelled = 0;
    for n in 0..200u32 {
        let patience = whole * (n % 50) / 50;
        let pulled = tokio::time::timeout(patience, place.puller.pull(&request, Arc::new(Silent))).await;
        place.puller.settled().await;
        match pulled {
            Ok(pulled) => {
                pulled.unwrap();
            }
            Err(_) => cancelled += 1,
        }
        // One that was committed at the last moment is whole.
        if place.store.lookup(&request.name.to_string()).is_ok() {
            place.store.remove(&request.name.to_string(), &|| Ok(Default::default())).unwrap();
        }
        assert_eq!(place.snapshot(), before, "after {patience:?} of {whole:?}");
    }
    // How many depends on how busy the machine was while `whole` was measured.
    assert!(cancelled >= 20, "{cancelled} of 200 were cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_goes_on_for_as_long_as_one_of_those_who_asked_waits() {
    let made = Made::new("", &[large(1, 100_000)]);
    let content = Content::of(&[("t/a:1", &made)]);
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = Mutex::new(held);
    let registry = Registry::start(move |seen| {
        if seen.is_blob() {
            let _ = held.lock().unwrap().recv_timeout(PATIENCE); // closed is as good as a word
        }
        content.reply(seen)
    });
    let place = Arc::new(Place::new());
    let name = registry.image("t/a:1");
    let asked = Arc::new(AtomicUsize::new(0));
    let ask = |place: &Arc<Place>| {
        let (place, name, asked) = (Arc::clone(place), name.clone(), Arc::clone(&asked));
        tokio::spawn(async move {
            let request =
                Request { name: name.parse().unwrap(), platform: Platform::host(), given: None, secrets: vec![] };
            let mut pull = std::pin::pin!(place.puller.pull(&request, Arc::new(Silent)));
            std::future::poll_fn(|context| {
                let polled = pull.as_mut().poll(context);
                asked.fetch_add(1, Ordering::Relaxed); // from the first time on it is one of those who wait
                polled
            })
            .await
        })
    };
    let first = ask(&place);
    let seen = &registry;
    until(PATIENCE, || if seen.blobs_seen().is_empty() { Err("no blob yet".to_owned()) } else { Ok(()) });
    let before = asked.load(Ordering::Relaxed);
    let second = ask(&place);
    until(PATIENCE, || if asked.load(Ordering::Relaxed) > before { Ok(()) } else { Err("it asks".to_owned()) });
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    drop(release);
    assert_eq!(second.await.unwrap().unwrap().id.to_string(), made.id());
    assert_eq!(registry.blobs_seen().len(), 2);
}

const TLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tls");

#[tokio::test]
async fn a_certificate_has_to_be_of_an_authority_that_is_known_or_named() {
    let tls = format!("  tls:\n    certificate: {TLS}/server.crt\n    key: {TLS}/server.key\n");
    let registry = DockerRegistry::start(&tls);
    let host = format!("127.0.0.1:{}", registry.port);
    let name = registry.image("t/a:1");
    let place = Place::new();
    let missing = [Kind::NotFound, Kind::Unavailable];
    place
        .refuses(&name, missing[1], &["TLS handshake", "authority that this host does not know", "`ca` in hosts.toml"])
        .await;
    let dir = place.hosts(&host, "ca = \"ca.crt\"\n");
    std::fs::copy(Path::new(TLS).join("ca.crt"), dir.join("ca.crt")).unwrap();
    place.refuses(&name, missing[0], &["t/a/manifests/1 not found"]).await;
    place.hosts(&host, "skip_verify = true\n");
    place.refuses(&name, missing[0], &["t/a/manifests/1 not found"]).await;

    let clients = format!("{tls}    clientcas:\n      - {TLS}/ca.crt\n");
    let strict = DockerRegistry::start(&clients);
    let (host, name) = (format!("127.0.0.1:{}", strict.port), strict.image("t/a:1"));
    place.hosts(&host, &format!("ca = \"{TLS}/ca.crt\"\n"));
    let e = place.pull(&name).await.expect_err("no certificate is shown");
    assert_eq!(e.kind(), Kind::Unavailable, "{e}");
    place.hosts(&host, &format!("ca = \"{TLS}/ca.crt\"\nclient = [[\"{TLS}/client.crt\", \"{TLS}/client.key\"]]\n"));
    place.refuses(&name, missing[0], &["t/a/manifests/1 not found"]).await;
}

/// user:secret
const HTPASSWD: &str = "user:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// A podwright of its own, whose files of credentials and hosts are the test's.
fn machine() -> Machine {
    let machine = Machine::new();
    fixtures::put(machine.dir("etc").join("config.toml"), {
        let dir = machine.dir("etc");
        format!("[image]\nhosts_dir = \"{0}/hosts\"\nauth_file = \"{0}/auth.json\"\n", dir.display())
    });
    machine
}

/// `podwright` there, at home nowhere.
fn podwright(machine: &Machine, args: &[&str]) -> std::process::Command {
    let mut command = machine.podwright(args.iter().copied());
    command.env("PODWRIGHT_CONFIG", machine.dir("etc").join("config.toml"));
    command.env_remove("DOCKER_CONFIG").env("HOME", machine.dir("home"));
    command
}

/// A podwright of its own with these lines in the `[image]` of its settings.
fn machine_with(lines: &str) -> Machine {
    let machine = machine();
    let path = machine.dir("etc").join("config.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    fixtures::put(path, text + lines);
    machine
}

#[test]
fn the_settings_of_pulls_are_honoured() {
    // How many layers are asked for at once: each waits for as many as there should be.
    let layers: Vec<Layer> = (0..6).map(|n| layer(&format!("f{n}"), &n.to_string())).collect();
    let made = Made::new("", &layers);
    for parallel in [1, 3] {
        let content = Content::of(&[("team/a:latest", &made)]);
        let config = format!("/v2/team/a/blobs/{}", made.id());
        let (now, most) = (Arc::new((Mutex::new(0), Condvar::new())), Arc::new(AtomicUsize::new(0)));
        let seen_most = Arc::clone(&most);
        let registry = Registry::start(move |seen| {
            if seen.is_blob() && seen.path != config {
                let mut asked = now.0.lock().unwrap();
                *asked += 1;
                most.fetch_max(*asked, Ordering::Relaxed);
                now.1.notify_all();
                let enough = |_: &mut usize| most.load(Ordering::Relaxed) < parallel;
                asked = now.1.wait_timeout_while(asked, PATIENCE, enough).unwrap().0;
                // One more would come by then.
                asked =
                    now.1.wait_timeout_while(asked, Duration::from_millis(300), |asked| *asked <= parallel).unwrap().0;
                *asked -= 1;
            }
            content.reply(seen)
        });
        let machine =
            machine_with(&format!("parallel_layers = {parallel}\ndefault_registry = \"{}\"\n", registry.address));
        let pulled = Running::of(podwright(&machine, &["pull", "-q", "team/a"])).wait();
        let name = format!("{}/team/a:latest", registry.address);
        assert!(pulled.code(0).stdout.starts_with(&format!("{name} {}", made.id())), "{}", pulled.stdout);
        assert_eq!(seen_most.load(Ordering::Relaxed), parallel);
        Running::of(podwright(&machine, &["rmi", "team/a"])).wait().code(0);
    }
    let stalls = Registry::start(|_| Reply { status: 200, headers: vec![], body: Body::Stalled(Vec::new(), 100) });
    let machine = machine_with("no_progress_timeout = \"100ms\"\n");
    Running::of(podwright(&machine, &["pull", &stalls.image("a:1")])).wait().refused(&["nothing came for 0.1 s"]);
    let machine = machine_with("default_registry = \"team\"\n");
    Running::of(podwright(&machine, &["images"]))
        .wait()
        .refused(&["image.default_registry", "neither a dot nor a port"]);
}

/// A directory with a credential helper, and the `PATH` that finds it.
fn helper(machine: &Machine, name: &str, script: &str) -> String {
    use std::os::unix::fs::PermissionsExt;
    let path = machine.dir("bin").join(format!("docker-credential-{name}"));
    fixtures::put(&path, format!("#!/bin/sh\n{script}\n"));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    format!("{}:{}", machine.dir("bin").display(), std::env::var("PATH").unwrap())
}

#[test]
fn a_credential_helper_gives_passwords_and_tokens_and_is_asked_only_when_something_is_wanted() {
    let content = Content::of(&[("t/a:1", &one())]);
    for (who, answer) in [
        ("Basic dXNlcjpzZWNyZXQ=", r#"{"ServerURL":"x","Username":"user","Secret":"secret"}"#),
        ("identity", r#"{"Username":"<token>","Secret":"identity"}"#),
    ] {
        for kind in ["credHelpers", "credsStore"] {
            let registry = with_tokens(content.clone(), 100, who);
            let (machine, host) = (machine(), registry.address);
            let asked = machine.dir("asked");
            let script = format!(
                "[ $1 = get ] && read server; echo \"$server\" > {}/server.$$; echo '{answer}'",
                asked.display()
            );
            let path = helper(&machine, "tests", &script);
            let value = match kind {
                "credsStore" => serde_json::json!("tests"),
                _ => serde_json::json!({ host.to_string(): "tests" }),
            };
            fixtures::put(machine.dir("etc").join("auth.json"), serde_json::json!({kind: value}).to_string());
            let pull = |name: &str| {
                let mut command = podwright(&machine, &["pull", "-q", name]);
                command.env("PATH", &path);
                Running::of(command).wait()
            };
            let open = Registry::of(content.clone());
            pull(&open.image("t/a:1")).code(0);
            assert_eq!(std::fs::read_dir(&asked).unwrap().count(), 0, "nobody wanted to see anything");
            pull(&registry.image("t/a:1")).code(0);
            let servers: Vec<PathBuf> = std::fs::read_dir(&asked).unwrap().map(|entry| entry.unwrap().path()).collect();
            assert_eq!(servers.len(), 1, "asked once for a pull");
            assert_eq!(std::fs::read_to_string(&servers[0]).unwrap().trim(), host.to_string());
        }
    }
}

#[test]
fn a_credential_helper_that_is_wrong_is_told_and_cannot_be_any_program() {
    let registry = with_tokens(Content::of(&[("t/a:1", &one())]), 3, "Basic dXNlcjpzZWNyZXQ=");
    let name = registry.image("t/a:1");
    let pull = |helper_name: &str, script: &str| {
        let machine = machine();
        let path = helper(&machine, "tests", script);
        let file = serde_json::json!({"credsStore": helper_name});
        fixtures::put(machine.dir("etc").join("auth.json"), file.to_string());
        let mut command = podwright(&machine, &["pull", "-q", &name]);
        command.env("PATH", path);
        let ended = Running::of(command).wait();
        assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
        ended
    };
    pull("tests", "echo the vault is locked; exit 1").refused(&[
        "docker-credential-tests",
        "the vault is locked",
        "auth.json",
    ]);
    pull("tests", "echo credentials not found in native keychain; exit 1")
        .refused(&["no credentials", "podwright login"]);
    pull("tests", "echo hunter2").refused(&["not the JSON of a credential helper"]);
    pull("tests", "yes hunter2").refused(&["longer than"]);
    pull("absent", "").refused(&["docker-credential-absent", "not in PATH"]);
    for bad in ["../../bin/sh", "-x", "a b", "a;b", &"a".repeat(100)] {
        pull(bad, "echo hunter2").refused(&["is not the name of a credential helper"]);
    }
}

#[test]
fn a_run_pulls_with_the_secrets_of_its_file() {
    let layers = [Layer::gzip(&Tar::new().file("a", b"1"))];
    let content = Content::of(&[("t/a:1", &Made::new("", &layers))]);
    let registry = with_tokens(content, 100, "Basic dXNlcjpzZWNyZXQ=");
    let name = registry.image("t/a:1");
    let pod = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n  hostNetwork: true\n  imagePullSecrets: [{{name: regcred}}]\n  \
         restartPolicy: Never\n  containers: [{{name: c, image: '{name}', command: [/absent]}}]\n"
    );
    let run = |text: &str| {
        let machine = machine();
        let manifest = machine.manifest(text);
        Running::of(podwright(&machine, &["run", "--no-daemon", manifest.to_str().unwrap()])).wait()
    };
    run(&pod).refused(&[
        "pull access denied",
        "imagePullSecrets names regcred",
        "kubectl create secret docker-registry",
    ]);
    let secret = |host: &str, more: &str| {
        let config = format!(r#"{{"auths": {{"{host}": {{"auth": "dXNlcjpzZWNyZXQ="}}}}{more}}}"#);
        format!(
            "{pod}---\napiVersion: v1\nkind: Secret\nmetadata: {{name: regcred}}\nstringData: {{.dockerconfigjson: '{config}'}}\n"
        )
    };
    run(&secret("other.example", "")).refused(&["no credentials"]);
    run(&secret("other.example", r#", "credsStore": "sh""#)).refused(&["no credentials"]);
    run(&secret(&registry.address.to_string(), "")).code(127);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_processes_and_a_daemon_fetch_each_blob_once() {
    let shared = large(1, 300_000);
    let images: Vec<Made> = (0..2u8).map(|n| Made::new("", &[shared.clone(), layer("own", &n.to_string())])).collect();
    let content = Content::of(&[("t/a:0", &images[0]), ("t/a:1", &images[1])]);
    // Nothing is given before all have asked what the tags are: 3 commands and a daemon.
    const ALL: usize = 4;
    let asked = Arc::new((Mutex::new(0), Condvar::new()));
    let registry = Registry::start(move |seen| {
        let mut count = asked.0.lock().unwrap();
        if seen.is_blob() {
            count = asked.1.wait_timeout_while(count, PATIENCE, |count| *count < ALL).unwrap().0;
        } else {
            *count += 1;
            asked.1.notify_all();
        }
        drop(count);
        content.reply(seen)
    });
    let mut node = node().await;
    let pull = |n: usize| Running::of(podwright(&node.machine, &["pull", "-q", &registry.image(&format!("t/a:{n}"))]));
    let commands: Vec<Running> = [0, 0, 1].map(pull).into_iter().collect();
    let request = PullImageRequest { image: spec(&registry.image("t/a:1")), ..PullImageRequest::default() };
    let mut images_of_node = node.images.clone();
    let pulling = tokio::spawn(async move { images_of_node.pull_image(request).await });
    for command in commands {
        command.wait().code(0);
    }
    assert_eq!(pulling.await.unwrap().expect("pulled").into_inner().image_ref, images[1].id());
    let blobs = registry.blobs_seen();
    let mut once = blobs.clone();
    once.dedup();
    assert_eq!(blobs, once, "a blob was fetched twice");
    assert_eq!(blobs.len(), 2 + 1 + 2, "configs, the shared layer, own layers");
    assert_eq!(std::fs::read_dir(node.machine.root().join("images/turns")).unwrap().count(), 0);
    node.stop().await;
}

#[test]
fn a_process_that_is_killed_or_stopped_while_it_fetches_holds_nobody_up_for_ever() {
    let made = Made::new("", &[large(1, 300_000)]);
    let path = format!("/v2/t/a/blobs/{}", made.layers[0].digest);
    for (signal, words) in [(9, ""), (19, "shows no life")] {
        let (content, size) = (Content::of(&[("t/a:1", &made)]), made.layers[0].blob.len());
        let (blob, stalls) = (made.layers[0].blob.clone(), path.clone());
        let registry = Registry::start(move |seen| match seen.path == stalls && seen.before == 0 {
            true => Reply { status: 200, headers: vec![], body: Body::Stalled(blob[..200_000].to_vec(), size) },
            false => content.reply(seen),
        });
        let machine = machine_with(if signal == 19 { "no_progress_timeout = \"10s\"\n" } else { "" });
        let name = registry.image("t/a:1");
        let mut first = Running::of(podwright(&machine, &["pull", "-q", &name]));
        first.until("the layer comes", || registry.blobs_seen().len() == 2);
        if signal == 19 {
            first.signal(signal);
        }
        let mut second = Running::of(podwright(&machine, &["pull", "-q", &name]));
        second.until("it asks what the tag is", || registry.seen().iter().filter(|seen| !seen.is_blob()).count() == 2);
        if signal == 9 {
            assert_eq!(registry.blobs_seen().len(), 2, "it waits");
            first.signal(signal);
        }
        let ended = second.wait();
        assert!(ended.code(0).stderr.contains(words), "{}", ended.stderr);
        assert_eq!(registry.blobs_seen().iter().filter(|seen| **seen == path).count(), 2);
        if signal == 19 {
            first.signal(18); // it goes on, and finds that it is second
        }
        let code = first.wait().status.code();
        assert_eq!(code, if signal == 19 { Some(0) } else { None });
    }
}

#[test]
fn from_debians_registry_with_a_password_by_command_and_by_run() {
    let machine = machine();
    let htpasswd = machine.dir("etc").join("htpasswd");
    fixtures::put(&htpasswd, HTPASSWD);
    let auth = format!("auth:\n  htpasswd:\n    realm: tests\n    path: {}\n", htpasswd.display());
    let registry = DockerRegistry::start(&auth);
    registry.push(&image("busybox"), "library/busybox", "1");
    let host = format!("127.0.0.1:{}", registry.port);
    let name = registry.image("library/busybox:1");
    let run = |args: &[&str]| Running::of(podwright(&machine, args)).wait();

    run(&["pull", &name]).refused(&["pull access denied", &format!("`podwright login {host}`")]);
    let login = |secret: &str| {
        let mut command = podwright(&machine, &["login", &host, "-u", "user", "--password-stdin"]);
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        writeln!(child.stdin.take().unwrap(), "{secret}").unwrap();
        child.wait_with_output().unwrap()
    };
    assert_eq!(login("wrong").status.code(), Some(125));
    let output = login("secret");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let pulled = run(&["pull", &name]);
    pulled.code(0);
    assert!(pulled.stdout.starts_with(&format!("{name} sha256:")), "{}", pulled.stdout);
    assert!(pulled.stderr.contains(": done"), "{}", pulled.stderr);
    let json = run(&["pull", "-q", "-o", "json", &name]);
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!((&json["images"][0]["fresh"], &json["images"][0]["name"]), (&true.into(), &name.clone().into()));
    run(&["rmi", &name]).code(0);
    run(&["logout", &host]).code(0);
    run(&["logout", &host]).refused(&["no credentials"]);
    run(&["pull", &name]).refused(&["pull access denied"]);
    login("secret");

    // A mirror rule for docker.io is all that an unchanged manifest needs.
    let hosts = machine.dir("etc").join("hosts/docker.io");
    std::fs::create_dir_all(&hosts).unwrap();
    fixtures::put(hosts.join("hosts.toml"), format!("[host.\"http://{host}\"]\n"));
    let pod = |policy: &str| {
        let text =
            script("echo hello", &format!("imagePullPolicy: {policy}")).replace("image: busybox", "image: busybox:1");
        let manifest = machine.manifest(&text);
        run(&["run", manifest.to_str().unwrap()])
    };
    pod("Never").refused(&["imagePullPolicy is Never", "not in the store"]);
    for policy in ["IfNotPresent", "IfNotPresent", "Always", "Never"] {
        let ran = pod(policy);
        ran.code(0);
        assert!(ran.stdout.contains("hello"), "{policy}: {}", ran.stdout);
    }
    drop(registry);
    pod("IfNotPresent").code(0);
    pod("Always").refused(&["docker.io/library/busybox:1", &format!("mirror http://{host}"), "ECONNREFUSED"]);
}

#[test]
fn a_pull_that_is_interrupted_leaves_nothing_and_says_so_by_its_code() {
    let made = Made::new("", &[large(1, 300_000)]);
    let path = format!("/v2/t/a/blobs/{}", made.layers[0].digest);
    let (content, size) = (Content::of(&[("t/a:1", &made)]), made.layers[0].blob.len());
    let blob = made.layers[0].blob.clone();
    let registry = Registry::start(move |seen| match seen.path == path {
        true => Reply { status: 200, headers: vec![], body: Body::Stalled(blob[..200_000].to_vec(), size) },
        false => content.reply(seen),
    });
    let mut machine = machine();
    Running::of(podwright(&machine, &["images"])).wait().code(0);
    machine.remember();
    let mut pulling = Running::of(podwright(&machine, &["pull", &registry.image("t/a:1")]));
    let seen = &registry;
    pulling.until("the layer comes", || seen.blobs_seen().len() == 2);
    pulling.signal(2);
    pulling.wait().code(130);
    machine.assert_as_before();
}

/// A daemon with nothing in its store, which knows no certificates and no credentials.
async fn node() -> Node {
    let machine = machine();
    let config = machine.dir("etc").join("config.toml");
    Node::of(machine, |command| {
        command.env("PODWRIGHT_CONFIG", config);
    })
    .await
}

fn spec(name: &str) -> Option<ImageSpec> {
    Some(ImageSpec { image: name.to_owned(), ..ImageSpec::default() })
}

#[tokio::test]
async fn the_kubelet_pulls_with_the_credentials_of_a_secret() {
    let made = one();
    let content = Content::of(&[("t/a:1", &made)]);
    let registry = with_tokens(content, 100, "Basic dXNlcjpzZWNyZXQ=");
    let name = registry.image("t/a:1");
    let mut node = node().await;
    let pull =
        |name: &str, auth: Option<AuthConfig>| PullImageRequest { image: spec(name), auth, sandbox_config: None };
    let missing = node.images.pull_image(pull(&name, None)).await.expect_err("no credentials");
    assert_eq!(missing.code(), Code::FailedPrecondition);
    assert!(missing.message().contains("imagePullSecrets"), "{missing:?}");
    let elsewhere =
        AuthConfig { auth: "dXNlcjpzZWNyZXQ=".into(), server_address: "other.example".into(), ..Default::default() };
    node.images.pull_image(pull(&name, Some(elsewhere))).await.expect_err("those of another registry");
    assert!(registry.seen().iter().all(|seen| seen.header("authorization").is_empty()), "{:?}", registry.seen());

    let server_address = format!("https://{}/v2/", registry.address);
    let auth = AuthConfig { username: "user".into(), password: "secret".into(), server_address, ..Default::default() };
    let pulled = node.images.pull_image(pull(&name, Some(auth))).await.expect("pulled").into_inner();
    assert_eq!(pulled.image_ref, made.id());
    for of in [&name, &pulled.image_ref] {
        let request = ImageStatusRequest { image: spec(of), verbose: false };
        let status = node.images.image_status(request).await.expect("status").into_inner().image.expect("there");
        let digest = made.descriptor["digest"].as_str().unwrap();
        assert_eq!((status.id, status.repo_tags), (made.id(), vec![name.clone()]));
        assert_eq!(status.repo_digests, [format!("{}@{digest}", registry.image("t/a"))]);
        assert!(status.size > 0);
    }
    node.images.remove_image(RemoveImageRequest { image: spec(&name) }).await.expect("removed");

    let gone = node.images.pull_image(pull("127.0.0.1:1/t/a:1", None)).await.expect_err("nobody is there");
    assert_eq!(gone.code(), Code::Unknown, "the kubelet looks at the message then");
    assert!(gone.message().starts_with("RegistryUnavailable: pull 127.0.0.1:1/t/a:1: "), "{gone:?}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_the_kubelet_gives_up_is_taken_back_and_the_next_one_completes() {
    let made = Made::new("", &[large(1, 300_000)]);
    let path = format!("/v2/t/a/blobs/{}", made.layers[0].digest);
    let (content, size) = (Content::of(&[("t/a:1", &made)]), made.layers[0].blob.len());
    let blob = made.layers[0].blob.clone();
    let registry = Registry::start(move |seen| match seen.path == path && seen.before == 0 {
        true => Reply { status: 200, headers: vec![], body: Body::Stalled(blob[..200_000].to_vec(), size) },
        false => content.reply(seen),
    });
    let name = registry.image("t/a:1");
    let mut node = node().await;
    let request = PullImageRequest { image: spec(&name), ..PullImageRequest::default() };
    let tmp = node.machine.root().join("images/tmp");
    let entries = |dir: &Path| std::fs::read_dir(dir).map_or(0, Iterator::count);
    let mut images = node.images.clone();
    let asked = request.clone();
    let pulling = tokio::spawn(async move { images.pull_image(asked).await });
    let seen = &registry;
    until(PATIENCE, || if seen.blobs_seen().len() == 2 { Ok(()) } else { Err("no layer yet".to_owned()) });
    assert_eq!(entries(&tmp), 1);
    pulling.abort();
    assert!(pulling.await.unwrap_err().is_cancelled());
    until(PATIENCE, || if entries(&tmp) == 0 { Ok(()) } else { Err("its session is there".to_owned()) });
    let pulled = node.images.pull_image(request).await.expect("pulled").into_inner();
    assert_eq!(pulled.image_ref, made.id());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_by_the_daemon_has_its_images_pulled_by_the_command() {
    let registry = DockerRegistry::start("");
    registry.push(&image("busybox"), "team/box", "1");
    let mut node = node().await;
    let text = script("echo hello", "").replace("image: busybox", &format!("image: {}", registry.image("team/box:1")));
    let mut command = podwright(&node.machine, &["run", node.machine.manifest(&text).to_str().unwrap()]);
    command.env("PODWRIGHT_CRI_SOCKET", node.socket());
    let ran = Running::of(command).wait();
    assert_eq!(ran.code(0).stdout, "hello\n");
    assert!(ran.stderr.contains("the daemon on") && ran.stderr.contains("pulling"), "{}", ran.stderr);
    node.stop().await;
}
