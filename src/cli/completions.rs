//! `podwright completions`: scripts for shells, from the same tree that parses the command line.

use super::output;
use crate::error::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  podwright completions bash > /usr/share/bash-completion/completions/podwright
  podwright completions zsh > /usr/share/zsh/site-functions/_podwright
  podwright completions fish > /usr/share/fish/vendor_completions.d/podwright.fish";

/// Prints a completion script for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct CompletionsArgs {
    shell: clap_complete::Shell,
}

pub(super) fn run(args: &CompletionsArgs) -> Result<u8> {
    let mut script = vec![];
    clap_complete::generate(args.shell, &mut super::tree(), "podwright", &mut script);
    let script =
        String::from_utf8(script).map_err(|e| Error::internal(format!("completions of {}: {e}", args.shell)))?;
    output::print(&script)?;
    Ok(0)
}
