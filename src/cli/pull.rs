//! `podwright pull`: images from registries; and what `run` and the daemon pull with.

use super::output::{self, Format};
use super::{Session, progress, require_root, runtime};
use crate::error::{Context, Error, Result};
use crate::image::oci::Platform;
use crate::image::pull::{Pulled, Puller, Request, Settings};
use crate::image::reference::Reference;
use crate::image::registry::credentials::AuthFile;
use crate::image::store::Store;
use serde::Serialize;
use std::path::{Path, PathBuf};
use tokio::signal::unix::{SignalKind, signal};

const EXAMPLES: &str = "\
Examples:
  podwright pull nginx
  podwright pull registry.example:5000/team/app:v4 --authfile ~/.docker/config.json
  podwright pull nginx@sha256:...           exactly this, whatever the tag is by now

Mirrors, certificates and plain http of a registry are said in image.hosts_dir/REGISTRY/hosts.toml, as for containerd.
Credentials are looked for in --authfile, image.auth_file (`podwright login`) and docker's config.json, in this order.";

/// Exit code after Ctrl-C, 128 + SIGINT.
const INTERRUPTED: u8 = 130;

/// Pulls images from their registries, or the mirrors of those
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct PullArgs {
    /// Name, with a tag or digest; without one `latest` is meant
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Which image of several platforms, linux/arm64 for instance, instead of this machine's
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Credentials of registries: docker's config.json
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
    /// Say nothing of layers
    #[arg(short, long)]
    quiet: bool,
}

/// `-o json`: `{"images": [{"id", "name", "digest", "fresh"}]}`.
#[derive(Serialize)]
struct Document {
    images: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    id: String,
    name: String,
    /// Of the index or manifest that the name is.
    digest: Option<String>,
    /// It was there, and is what the registry says.
    fresh: bool,
}

pub(super) fn run(args: &PullArgs, session: &Session) -> Result<u8> {
    let names = args.images.iter().map(|text| text.parse::<Reference>()).collect::<Result<Vec<_>>>()?;
    require_root("pull")?;
    let puller = puller(session.store()?, session, args.authfile.as_deref())?;
    let mut images = Vec::new();
    for name in names {
        let pulled = runtime()?.block_on(pull(&puller, name.clone(), args.platform.clone(), Vec::new(), args.quiet))?;
        let Some(pulled) = pulled else { return Ok(INTERRUPTED) };
        let (id, digest) = (pulled.id.to_string(), pulled.target.map(|target| target.to_string()));
        if session.format == Format::Table {
            output::print(&format!("{name} {id}\n"))?;
        }
        images.push(Entry { id, name: name.to_string(), digest, fresh: pulled.fresh });
    }
    if session.format == Format::Json {
        output::print_json(&Document { images })?;
    }
    Ok(0)
}

/// How this host pulls, with these files of credentials before its own.
pub(super) fn settings(session: &Session, before: Vec<PathBuf>) -> Settings {
    let image = session.config.settings().image;
    let mut auth_files = before;
    auth_files.push(image.auth_file);
    Settings {
        hosts_dir: image.hosts_dir,
        auth_files,
        parallel_layers: image.parallel_layers,
        no_progress: image.no_progress_timeout,
    }
}

/// What pulls for a user: with `authfile`, and with what docker knows.
///
/// # Errors
/// `NotFound` for an `authfile` that is not there.
pub(super) fn puller(store: Store, session: &Session, authfile: Option<&Path>) -> Result<Puller> {
    if let Some(path) = authfile.filter(|path| !path.exists()) {
        return Err(Error::not_found(format!("--authfile {} does not exist", path.display())));
    }
    let mut settings = settings(session, authfile.map(Path::to_owned).into_iter().collect());
    let docker = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let docker = docker.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".docker")));
    settings.auth_files.extend(docker.map(|dir| dir.join("config.json")));
    Ok(Puller::new(store, settings))
}

/// Pulls one image, with a pod's credentials before the host's, telling on stderr how it goes; `None` after Ctrl-C, when nothing is left of it.
///
/// # Errors
/// Those of [`Puller::pull`].
pub(super) async fn pull(
    puller: &Puller,
    name: Reference,
    platform: Option<Platform>,
    secrets: Vec<AuthFile>,
    quiet: bool,
) -> Result<Option<Pulled>> {
    let mut interrupt = signal(SignalKind::interrupt()).context(|| "watch SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context(|| "watch SIGTERM")?;
    let request = Request { name, platform: platform.unwrap_or_else(Platform::host), given: None, secrets };
    let pulled = tokio::select! {
        pulled = puller.pull(&request, progress::of(quiet, "pulling")) => Some(pulled?),
        _ = interrupt.recv() => None,
        _ = terminate.recv() => None,
    };
    puller.settled().await;
    Ok(pulled)
}
