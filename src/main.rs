//! argv to role, before any thread exists.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    match args.get(1..).unwrap_or_default() {
        [role, job] if role == "unpack" => podwright::image::unpack::worker::main(job),
        _ => ExitCode::from(125),
    }
}
