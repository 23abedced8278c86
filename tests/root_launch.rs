//! A container's start, exec and end with a real kernel, as the shim asks for them. Root; a static busybox of Debian's.

mod fixtures;

use fixtures::pod::{self, Pod, bind, own, section, status};
use fixtures::{canary, runner};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    if podwright::launch::reaper::is_role(args.next().as_ref()) {
        podwright::launch::reaper::run(args);
    }
    runner::main(cases![a_container_runs_with_an_overlay_root])
}

fn a_container_runs_with_an_overlay_root() {
    let before = canary::host_mounts();
    let mut pod = Pod::new(own());
    let (code, text) = pod.run(&["sh", "-c", "echo hello; echo > /new; ls /; exit 3"], |_| {});
    assert_eq!(code, 3, "{text}");
    assert!(text.starts_with("hello\n") && text.contains("new\n"), "{text}");
    drop(pod);
    assert_eq!(before, canary::host_mounts());
}
