//! `podwright man`: manual pages, from the same tree that parses the command line.

use super::output;
use crate::error::{Context, Error, Result};
use crate::state::record;
use clap_mangen::Man;
use std::io::Write;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  podwright man | man -l -                  the page of podwright itself
  podwright man run | man -l -              of a command
  podwright man --dir /usr/local/share/man/man1";

/// Prints a manual page, or writes all of them to a directory
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ManArgs {
    /// The command whose page is wanted; podwright's own if none is given
    #[arg(value_name = "COMMAND")]
    command: Option<String>,
    /// Write one page a command to this directory
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    dir: Option<PathBuf>,
}

pub(super) fn run(args: &ManArgs) -> Result<u8> {
    let mut tree = super::tree();
    tree.build();
    if let Some(dir) = &args.dir {
        write_all(&tree, dir)?;
        return Ok(0);
    }
    let command = match &args.command {
        None => &tree,
        Some(name) => tree.find_subcommand(name).ok_or_else(|| {
            let names = tree.get_subcommands().map(clap::Command::get_name);
            let meant = crate::error::did_you_mean(name, names).map(|n| format!("; did you mean {n}?"));
            Error::not_found(format!("there is no command {name}{}", meant.unwrap_or_default()))
        })?,
    };
    output::print(&page(command)?)?;
    Ok(0)
}

fn write_all(tree: &clap::Command, dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).context(|| format!("make directory {}", dir.display()))?;
    for command in std::iter::once(tree).chain(tree.get_subcommands()) {
        let path = dir.join(Man::new(command.clone()).get_filename());
        record::write_bytes(&path, page(command)?.as_bytes(), 0o644, record::Durability::Disk)?;
    }
    Ok(())
}

/// One page. Examples get their own section: clap_mangen would run their lines together under `EXTRA`.
fn page(command: &clap::Command) -> Result<String> {
    let man = Man::new(command.clone()).manual("podwright");
    let mut page = vec![];
    let sections = [Man::render_title, Man::render_name_section, Man::render_synopsis_section];
    let more = [Man::render_description_section, Man::render_options_section];
    let written = (|| {
        sections.iter().chain(&more).try_for_each(|section| section(&man, &mut page))?;
        if command.has_subcommands() {
            man.render_subcommands_section(&mut page)?;
        }
        let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        verbatim(&examples, &mut page)
    })();
    written.context(|| format!("manual page of {}", command.get_name()))?;
    String::from_utf8(page).map_err(|e| Error::internal(format!("manual page of {}: {e}", command.get_name())))
}

/// Text whose line breaks and columns count. A line `Heading:` starts a section.
fn verbatim(text: &str, page: &mut Vec<u8>) -> std::io::Result<()> {
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(heading) = line.strip_suffix(':').filter(|line| !line.starts_with(' ')) {
            writeln!(page, ".SH {}\n.nf", heading.to_uppercase())?;
            continue;
        }
        // groff_char(7): \e is a backslash, \- an ASCII hyphen, \(aq an ASCII quote; \& keeps a leading dot from being a request.
        let line = line.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq").replace('`', "\\(ga");
        writeln!(page, "\\&{line}")?;
    }
    writeln!(page, ".fi")
}
