//! Picks the role before any thread or runtime exists, and turns its result into an exit code. Nothing else is decided here.
//!
//! The other roles come before clap: the shim lives as long as its pod, and what it never touches is never in its memory.

use podwright::error::Result;
use podwright::image::unpack;
use podwright::launch::reaper;
use podwright::shim::{self, ShimArgs};
use podwright::{cli, engine};
use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

/// The shim's name for itself: `argv[0]` when it runs from its sealed memfd.
const SHIM_NAME: &str = "podwright-shim";
/// podwright's own failure, as opposed to a container's. Chosen beside 126 and 127, as in env(1) and docker-run(1).
const OWN_FAILURE: u8 = 125;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    match play(args) {
        Ok(code) => code,
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "podwright: {e}"); // nobody is left to tell
            ExitCode::from(OWN_FAILURE)
        }
    }
}

/// One line a role: what it is called, and where it lives.
fn play(args: Vec<OsString>) -> Result<ExitCode> {
    if reaper::is_role(args.first()) {
        reaper::run(args.into_iter().skip(1)); // inside a container: it ends with the app's status
    }
    let code = match role(&args).as_str() {
        "shim" => ShimArgs::parse(args.into_iter().skip(2)).and_then(|args| shim::run(&args)).map(|()| 0),
        "unpack" => return Ok(unpack::worker::main(&args.get(2).map(|job| job.to_string_lossy()).unwrap_or_default())),
        "sweep" => engine::sweep::main(&args),
        _ => cli::run(args),
    };
    code.map(ExitCode::from)
}

/// The first argument, or `shim` for a program that was started under the shim's name.
fn role(args: &[OsString]) -> String {
    let word = |n: usize| args.get(n).map(|arg| arg.to_string_lossy().into_owned()).unwrap_or_default();
    if word(0).ends_with(SHIM_NAME) { "shim".to_owned() } else { word(1) }
}
