//! `podwright version`.

use super::output::{self, Format};
use crate::error::Result;

const EXAMPLES: &str = "\
Examples:
  podwright version
  podwright version -o json";

/// Prints the version of podwright and of the protocol between its processes
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct VersionArgs {}

#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    version: &'static str,
    /// Oldest and newest version of the protocol with the shim ([`crate::wire::VERSIONS`]).
    shim_protocol: (u32, u32),
    arch: &'static str,
}

pub(super) fn run(_args: &VersionArgs, format: Format) -> Result<u8> {
    let version = Version {
        version: env!("CARGO_PKG_VERSION"),
        shim_protocol: crate::wire::VERSIONS,
        arch: std::env::consts::ARCH,
    };
    match format {
        Format::Json => output::print_json(&version)?,
        Format::Table => {
            let (oldest, newest) = version.shim_protocol;
            output::print(&format!(
                "podwright {}\nshim protocol {oldest} to {newest}\n{}\n",
                version.version, version.arch
            ))?;
        }
    }
    Ok(0)
}
