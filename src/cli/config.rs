//! `podwright config`: the effective settings, and where each came from.

use super::Session;
use super::output::{self, Format};
use crate::config::{Entry, Source};
use crate::error::Result;

const EXAMPLES: &str = "\
Examples:
  podwright config                          every setting, its value, and the flag, variable or line that set it
  podwright config -o json
  PODWRIGHT_CGROUP_ROOT=/test podwright config";

/// Prints the effective settings and where each came from: a flag, the environment, a line of the file, or the default
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ConfigArgs {}

/// `-o json`: `{"file": PATH or null, "settings": [{"key", "value", "source": {"kind", ...}, "honoured", "about"}]}`.
#[derive(serde::Serialize)]
struct Document<'a> {
    file: Option<String>,
    settings: Vec<Setting<'a>>,
}

#[derive(serde::Serialize)]
struct Setting<'a> {
    key: &'a str,
    value: &'a str,
    source: Origin,
    /// The variable of the environment that sets it.
    env: String,
    /// Whether this version does what it says.
    honoured: bool,
    about: &'a str,
}

#[derive(serde::Serialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
enum Origin {
    Default,
    File { path: String, line: usize },
    Env { name: String },
    Flag { name: &'static str },
}

pub(super) fn run(_args: &ConfigArgs, session: &Session) -> Result<u8> {
    let config = &session.config;
    match session.format {
        Format::Json => output::print_json(&Document {
            file: config.file.as_ref().map(|path| path.display().to_string()),
            settings: config.entries().iter().map(setting).collect(),
        })?,
        Format::Table => {
            let row =
                |e: &Entry| [e.key.name.to_owned(), e.value.clone(), e.source.to_string(), e.key.about.to_owned()];
            output::print(&output::table(["KEY", "VALUE", "SOURCE", "ABOUT"], config.entries().iter().map(row)))?;
        }
    }
    Ok(0)
}

fn setting(entry: &Entry) -> Setting<'_> {
    let source = match &entry.source {
        Source::Default => Origin::Default,
        Source::File { path, line } => Origin::File { path: path.display().to_string(), line: *line },
        Source::Env(name) => Origin::Env { name: name.clone() },
        Source::Flag(flag) => Origin::Flag { name: flag },
    };
    let key = entry.key;
    Setting { key: key.name, value: &entry.value, source, env: key.env(), honoured: key.honoured(), about: key.about }
}
