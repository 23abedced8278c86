//! argv -> role, before any thread exists. What the roles do is in the library.

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let result = match args.next().as_deref().and_then(|role| role.to_str()) {
        Some("shim") => podwright::shim::ShimArgs::parse(args).and_then(|args| podwright::shim::run(&args)),
        _ => Err(podwright::error::Error::unsupported("this role is not written yet")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "podwright: {e}"); // whoever would read it may be gone
            ExitCode::FAILURE
        }
    }
}
