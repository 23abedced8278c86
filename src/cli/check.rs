//! `podwright check`: what a manifest would do, without doing it.

use super::output::{self, Format, Page};
use super::planner::{Planner, PodView};
use super::{Session, plan_text};
use crate::agent::problem::ManifestErrors;
use crate::error::Result;
use crate::sys;
use serde::Serialize;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  podwright check pod.yaml                  all errors with line and remedy, or the plan
  podwright check -q pod.yaml               errors only; exit code 1 when there is one
  podwright check -o json pod.yaml          the plan with the OCI runtime specs";

/// Validates a manifest and prints the plan: every cgroup file, mount and capability
///
/// Exits with 1 when the manifest is wrong. That this host could not run it (an image is missing, a limit cannot be enforced) is
/// part of the plan.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct CheckArgs {
    /// Manifest, YAML or JSON; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print errors only, no plan
    #[arg(short, long)]
    quiet: bool,
    /// Of a Deployment, Job and the like plan one pod of its template, as `run --template` would
    #[arg(long)]
    template: bool,
}

/// `-o json`.
#[derive(Serialize, Default)]
struct Document {
    pods: Vec<PodView>,
    /// What is wrong with the manifests; empty when nothing is.
    errors: Vec<Problem>,
    /// How many errors more there were than are told.
    more: usize,
}

#[derive(Serialize)]
struct Problem {
    file: String,
    /// Both from 1.
    line: usize,
    column: usize,
    /// The field, `spec.containers[0].image`.
    path: String,
    value: Option<String>,
    message: String,
    remedy: String,
}

pub(super) fn run(args: &CheckArgs, session: &Session) -> Result<u8> {
    check(&args.files, args.quiet, args.template, session)
}

/// The plan of every pod in `files`; `run --dry-run` prints the same.
pub(super) fn files(files: &[PathBuf], templates: bool, session: &Session) -> Result<u8> {
    check(files, false, templates, session)
}

fn check(files: &[PathBuf], quiet: bool, templates: bool, session: &Session) -> Result<u8> {
    let mut document = Document::default();
    let mut planner = Planner::new(session)?;
    for file in files {
        match one(&mut planner, file, templates)? {
            Ok(pods) => document.pods.extend(pods),
            Err(errors) => {
                document.more += errors.more;
                document.errors.extend(errors.errors.into_iter().map(|e| Problem {
                    file: e.file.to_string(),
                    line: e.at.line,
                    column: e.at.column,
                    path: e.path.into(),
                    value: e.value.map(Into::into),
                    message: e.message.into(),
                    remedy: e.remedy.into(),
                }));
            }
        }
    }
    let code = u8::from(!document.errors.is_empty());
    if session.format == Format::Json {
        output::print_json(&document)?;
        return Ok(code);
    }
    document.errors.iter().for_each(|problem| output::note(&line(problem)));
    if document.more > 0 {
        output::note(&format!("and {} more", document.more));
    }
    if !quiet {
        let mut page = Page::default();
        document.pods.iter().for_each(|pod| plan_text::pod(&mut page, pod));
        output::print(page.text())?;
        if !sys::is_root() && !document.pods.is_empty() {
            output::note("whether the images are here only root can tell: what they add to the plan is left out");
        }
    }
    Ok(code)
}

fn one(planner: &mut Planner, file: &Path, templates: bool) -> Result<Result<Vec<PodView>, ManifestErrors>> {
    let (name, bytes) = super::run::bytes(file)?;
    match super::run::load(&bytes, &name, templates) {
        Ok(manifest) => planner.pods(&manifest),
        Err(errors) => Ok(Err(errors)),
    }
}

/// As editors and CI systems find it: `file:line:column: `.
fn line(problem: &Problem) -> String {
    let Problem { file, line, column, path, value, message, remedy } = problem;
    let value = value.as_ref().map_or(String::new(), |value| format!(" ({value})"));
    let path = if path.is_empty() { String::new() } else { format!("{path}: ") };
    format!("{file}:{line}:{column}: {path}{message}{value} \u{2014} {remedy}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_a_line_that_starts_with_its_place() {
        let mut problem = Problem {
            file: "pod.yaml".into(),
            line: 3,
            column: 5,
            path: "spec.x".into(),
            value: Some("\"y\"".into()),
            message: "unknown".into(),
            remedy: "leave it out".into(),
        };
        assert_eq!(line(&problem), "pod.yaml:3:5: spec.x: unknown (\"y\") \u{2014} leave it out");
        problem.path.clear();
        problem.value = None;
        assert_eq!(line(&problem), "pod.yaml:3:5: unknown \u{2014} leave it out");
    }
}
