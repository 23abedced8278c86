//! `podwright daemon`: reads the settings and hands them over.

use super::{Session, output, pull, require_root, run as own, unit};
use crate::daemon::{self, Settings};
use crate::engine::checkpoint;
use crate::error::{Context, Error, Result};
use crate::stream;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  podwright daemon                                               CRI on /run/podwright/podwright.sock
  crictl -r unix:///run/podwright/podwright.sock info            what it says of itself
  podwright daemon --systemd-unit > /etc/systemd/system/podwright.service
  kubelet --container-runtime-endpoint=unix:///run/podwright/podwright.sock ...

Pods outlive it, and the next one finds them: it may be ended, killed or upgraded at any time.";

/// Serves the Kubernetes Container Runtime Interface on a unix socket
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct DaemonArgs {
    /// Socket to serve on, instead of cri.socket of the configuration
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Print a systemd unit that starts this daemon with these flags, and end
    #[arg(long)]
    systemd_unit: bool,
}

pub(super) fn run(args: &DaemonArgs, session: &Session) -> Result<u8> {
    let socket = args.socket.as_ref().map(std::path::absolute).transpose().context(|| "--socket")?;
    if args.systemd_unit {
        let program = std::env::current_exe().context(|| "read /proc/self/exe")?;
        output::print(&unit::text(&program, &session.config, socket.as_deref()))?;
        return Ok(0);
    }
    require_root("daemon")?;
    let effective: serde_json::Map<String, serde_json::Value> = session
        .config
        .entries()
        .iter()
        .map(|e| (e.key.name.to_owned(), serde_json::json!({"value": e.value, "source": e.source.to_string()})))
        .collect();
    daemon::run(Settings {
        engine: own::options(session, None)?,
        socket: socket.unwrap_or_else(|| session.config.value("cri.socket").into()),
        // Whose home directory the daemon's is, is an accident: its credentials are those of its own file, and of each request.
        pull: pull::settings(session, Vec::new()),
        metrics: session.config.value("metrics.address").to_owned(),
        streams: streams(session)?,
        checkpoints: checkpoint::Settings { criu: file(session, "checkpoint.criu") },
        nri: session.config.nri(),
        config: serde_json::Value::Object(effective).to_string(),
    })?;
    Ok(0)
}

/// A key that may be empty.
fn file(session: &Session, key: &str) -> Option<PathBuf> {
    Some(session.config.value(key)).filter(|path| !path.is_empty()).map(PathBuf::from)
}

fn streams(session: &Session) -> Result<stream::Settings> {
    let tls = match (file(session, "cri.stream_tls_cert"), file(session, "cri.stream_tls_key")) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        _ => return Err(Error::invalid("cri.stream_tls_cert and cri.stream_tls_key: it takes both")),
    };
    Ok(stream::Settings { address: session.config.value("cri.stream_address").to_owned(), tls })
}
