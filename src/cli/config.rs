//! `podwright config`: the effective settings, and where each came from.

use super::Session;
use super::output::{self, Format};
use crate::config::runtimes::RuntimeSetting;
use crate::config::{Entry, Source};
use crate::error::Result;

/// What a `runtimes.NAME.path` is for.
const RUNTIME: &str = "another OCI runtime, for pods of this runtime handler";

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
    key: String,
    value: &'a str,
    source: Origin,
    /// The variable of the environment that sets it, if one does.
    #[serde(skip_serializing_if = "Option::is_none")]
    env: Option<String>,
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
            settings: config.entries().iter().map(setting).chain(config.runtimes().iter().map(runtime)).collect(),
        })?,
        Format::Table => {
            let row =
                |e: &Entry| [e.key.name.to_owned(), e.value.clone(), e.source.to_string(), e.key.about.to_owned()];
            let runtimes = config.runtimes().iter().map(|r| {
                [
                    format!("runtimes.{}.path", r.name),
                    r.path.display().to_string(),
                    r.source.to_string(),
                    RUNTIME.to_owned(),
                ]
            });
            let rows = config.entries().iter().map(row).chain(runtimes);
            output::print(&output::table(["KEY", "VALUE", "SOURCE", "ABOUT"], rows))?;
        }
    }
    Ok(0)
}

fn origin(source: &Source) -> Origin {
    match source {
        Source::Default => Origin::Default,
        Source::File { path, line } => Origin::File { path: path.display().to_string(), line: *line },
        Source::Env(name) => Origin::Env { name: name.clone() },
        Source::Flag(flag) => Origin::Flag { name: flag },
    }
}

fn setting(entry: &Entry) -> Setting<'_> {
    let key = entry.key;
    Setting {
        key: key.name.to_owned(),
        value: &entry.value,
        source: origin(&entry.source),
        env: Some(key.env()),
        honoured: key.honoured(),
        about: key.about,
    }
}

fn runtime(runtime: &RuntimeSetting) -> Setting<'_> {
    Setting {
        key: format!("runtimes.{}.path", runtime.name),
        value: runtime.path.to_str().unwrap_or_default(), // from a TOML string
        source: origin(&runtime.source),
        env: None,
        honoured: true,
        about: RUNTIME,
    }
}
