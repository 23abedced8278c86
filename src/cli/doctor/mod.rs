//! `podwright doctor`: what of this host is in the way, why it matters, and the remedy. One file an area:
//! `kernel` (features, tried), `cgroups`, `privileges`, `storage`, `network`, `runtimes` (of handlers) and `host` (limits, clock, security
//! modules).
//!
//! A check never changes the host. It never judges by a version number either: what works, works.

mod cgroups;
mod host;
mod kernel;
mod network;
mod privileges;
mod records;
mod runtimes;
mod storage;

use super::Session;
use super::output::{self, Format};
use crate::error::{Result, describe_io};
use serde::Serialize;
use std::io;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  podwright doctor                          faults and warnings with their remedy; exit code 1 for a fault
  podwright doctor --why                    why each check matters, passed ones too
  podwright doctor --root /srv/podwright    would that directory do?
  podwright doctor -o json";

/// Checks this host: what podwright needs, what is there, and the remedy for what is not
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct DoctorArgs {
    /// Say why it matters for passed checks too
    #[arg(long)]
    why: bool,
}

/// What a check came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// Pods run, without something.
    Warn,
    /// Pods, or those that ask for what is missing, are refused.
    Fail,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        }
    }
}

/// One check: an element of `checks` in `-o json`.
#[derive(Debug, Serialize)]
struct Finding {
    area: &'static str,
    check: String,
    verdict: Verdict,
    found: String,
    why: String,
    /// Only with a verdict that is not `ok`.
    remedy: Option<String>,
}

impl Finding {
    fn ok(area: &'static str, check: impl Into<String>, found: impl Into<String>, why: impl Into<String>) -> Finding {
        let (check, found, why) = (check.into(), found.into(), why.into());
        Finding { area, check, verdict: Verdict::Ok, found, why, remedy: None }
    }

    /// The same check with another outcome, and what to do about it.
    fn but(self, verdict: Verdict, remedy: impl Into<String>) -> Finding {
        Finding { verdict, remedy: Some(remedy.into()), ..self }
    }
}

/// `-o json`: `{"fail": N, "warn": N, "ok": N, "checks": [{"area", "check", "verdict", "found", "why", "remedy"}]}`.
#[derive(Serialize)]
struct Report {
    fail: usize,
    warn: usize,
    ok: usize,
    checks: Vec<Finding>,
}

pub(super) fn run(args: &DoctorArgs, session: &Session) -> Result<u8> {
    let settings = session.config.settings();
    let mut checks = privileges::check();
    checks.extend(kernel::check());
    checks.extend(cgroups::check(&settings));
    checks.extend(storage::check(&settings));
    checks.extend(network::check(&settings));
    checks.extend(records::check(&settings));
    checks.extend(runtimes::check(&settings.runtimes));
    let cdi: Vec<PathBuf> = session.config.value("cdi.spec_dirs").split(',').map(PathBuf::from).collect();
    let criu = Some(session.config.value("checkpoint.criu")).filter(|path| !path.is_empty()).map(PathBuf::from);
    checks.extend(host::check(&cdi, criu.as_deref(), session.config.labels_with_selinux()));
    let count = |verdict| checks.iter().filter(|finding| finding.verdict == verdict).count();
    let (fail, warn, ok) = (count(Verdict::Fail), count(Verdict::Warn), count(Verdict::Ok));
    match session.format {
        Format::Json => output::print_json(&Report { fail, warn, ok, checks })?,
        Format::Table => {
            let mut text = page(&checks, args.why);
            text.push_str(&format!("\n{fail} failed, {warn} warnings, {ok} ok: {}\n", conclusion(fail, warn)));
            output::print(&text)?;
        }
    }
    Ok(u8::from(fail > 0))
}

fn conclusion(fail: usize, warn: usize) -> &'static str {
    match (fail, warn) {
        (0, 0) => "pods run here with everything they ask for",
        (0, _) => "pods run here, but for what the warnings say",
        _ => "pods that need what failed are refused",
    }
}

/// The findings for people: an area a paragraph, a check a line, reasons and remedies below what did not pass.
fn page(checks: &[Finding], why: bool) -> String {
    let mut text = String::new();
    let width = checks.iter().map(|finding| finding.check.chars().count()).max().unwrap_or_default();
    let mut area = "";
    for finding in checks {
        if finding.area != area {
            let gap = if area.is_empty() { "" } else { "\n" };
            text.push_str(&format!("{gap}{}\n", finding.area));
            area = finding.area;
        }
        let found = output::harmless(&finding.found);
        text.push_str(&format!("  {:<4}  {:<width$}  {found}\n", finding.verdict.word(), finding.check));
        if why || finding.verdict != Verdict::Ok {
            text.push_str(&format!("        why: {}\n", finding.why));
        }
        if let Some(remedy) = &finding.remedy {
            text.push_str(&format!("        remedy: {remedy}\n"));
        }
    }
    text
}

/// The text of a small file of /proc or /sys, trimmed.
fn read(path: &str) -> io::Result<String> {
    // These files are made by the kernel and a page or so long; mountinfo of a full node is the largest.
    std::fs::read_to_string(path).map(|text| text.trim().to_owned())
}

fn not_readable(path: &str, e: &io::Error) -> String {
    format!("{path}: {}", describe_io(e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_pass_is_followed_by_its_reason_and_remedy() {
        let checks = [
            Finding::ok("kernel", "release", "6.1", "the floor"),
            Finding::ok("kernel", "overlay", "ENODEV", "roots").but(Verdict::Fail, "modprobe overlay"),
        ];
        let expected = "kernel\n  ok    release  6.1\n  FAIL  overlay  ENODEV\n        why: roots\n        \
                        remedy: modprobe overlay\n";
        assert_eq!(page(&checks, false), expected);
    }
}
