//! `podwright daemon`: reads the settings and hands them over.

use super::{Session, require_root, run as own};
use crate::daemon::{self, Settings};
use crate::error::Result;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  podwright daemon                                               CRI on /run/podwright/podwright.sock
  crictl -r unix:///run/podwright/podwright.sock info            what it says of itself
  kubelet --container-runtime-endpoint=unix:///run/podwright/podwright.sock ...

Pods outlive it, and the next one finds them: it may be ended, killed or upgraded at any time.";

/// Serves the Kubernetes Container Runtime Interface on a unix socket
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct DaemonArgs {
    /// Socket to serve on, instead of cri.socket of the configuration
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

pub(super) fn run(args: &DaemonArgs, session: &Session) -> Result<u8> {
    require_root("daemon")?;
    let effective: serde_json::Map<String, serde_json::Value> = session
        .config
        .entries()
        .iter()
        .map(|e| (e.key.name.to_owned(), serde_json::json!({"value": e.value, "source": e.source.to_string()})))
        .collect();
    daemon::run(Settings {
        engine: own::options(session, None)?,
        socket: args.socket.clone().unwrap_or_else(|| session.config.value("cri.socket").into()),
        metrics: session.config.value("metrics.address").to_owned(),
        config: serde_json::Value::Object(effective).to_string(),
    })?;
    Ok(0)
}
