//! `podwright doctor`: placeholder until the probes follow in the next commit.
use super::Session;
use crate::error::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  podwright doctor                          what was found, why it matters, and the remedy
  podwright doctor -o json";

/// Checks this host: what podwright needs, what is there, and the remedy for what is not
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct DoctorArgs {}

pub(super) fn run(_args: &DoctorArgs, _session: &Session) -> Result<u8> {
    Err(Error::unsupported("`podwright doctor` has no probes in this build"))
}
