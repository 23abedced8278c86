//! `podwright verify`: a live pod against its plan.

use super::{Session, without_engine};
use crate::error::Result;

const EXAMPLES: &str = "\
Examples:
  podwright verify web                      all limits of pod web
  podwright verify -o json web | jq .       exit code 1 when anything differs";

/// Compares a running pod with what it asked for: each limit as asked, written, in the kernel, and effective
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct VerifyArgs {
    /// POD, POD/CONTAINER, or the first digits of an id
    #[arg(required = true, value_name = "POD")]
    targets: Vec<String>,
}

pub(super) fn run(_args: &VerifyArgs, _session: &Session) -> Result<u8> {
    without_engine("verify")
}
