//! `podwright rm`: stops and removes. A pod goes with the `podwright run` that it belongs to, or the daemon removes it.

use super::find::{self, Target};
use super::stop::{self, Document};
use super::{Session, output};
use crate::engine::pod::State;
use crate::error::{Error, Result};
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  podwright rm web                          stop it gracefully; it is removed when it has
  podwright rm --force web                  kill it at once";

/// Stops pods and removes them, with their logs and volumes; removes containers that have ended
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct RmArgs {
    /// POD, POD/CONTAINER, or the first digits of an id
    #[arg(required = true, value_name = "POD")]
    targets: Vec<String>,
    /// Kill at once what still runs, without a grace period
    #[arg(short, long)]
    force: bool,
}

pub(super) fn run(args: &RmArgs, session: &Session) -> Result<u8> {
    super::require_root("rm")?;
    let document = super::runtime()?.block_on(async {
        let all = find::all(session).await?;
        let targets = find::targets(&all, &args.targets)?;
        let running = targets.iter().find(|t| matches!(t, Target::Container(_, c) if c.state == State::Running));
        if let (Some(target), false) = (running, args.force) {
            let name = stop::name(target);
            return Err(Error::precondition(format!(
                "container {name} runs; `podwright stop {name}` first, or --force"
            )));
        }
        let mut document = Document::default();
        let (of_daemon, targets): (Vec<_>, Vec<_>) = targets.into_iter().partition(stop::is_daemons);
        for target in &targets {
            if let Target::Container(found, container) = target {
                found.engine.remove_container(&container.record.id).await?;
                document.stopped.push(stop::name(target));
            }
        }
        let grace = args.force.then_some(Duration::ZERO);
        stop::stop_pods(&all, &targets, grace, &mut document)?;
        stop::ask_daemon(session, &of_daemon, grace, true, &mut document).await?;
        Ok(document)
    })?;
    match session.format {
        output::Format::Json => output::print_json(&serde_json::json!({ "removed": document.stopped })).map(|()| 0),
        output::Format::Table => stop::print(session, &document, "removed"),
    }
}
