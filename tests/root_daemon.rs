//! The daemon as a process of its host: its socket, what it says of itself, and `run` that goes through it. What it answers to a kubelet is
//! in `root_cri`.

mod fixtures;

use fixtures::machine::{Machine, PATIENCE, Running, until};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

#[test]
fn the_socket_is_roots_alone_in_a_directory_of_roots_alone() {
    let machine = Machine::with_busybox();
    let socket = machine.temp.path().join("made/for/it/podwright.sock");
    let mut command = machine.podwright(["daemon"]);
    command.env("PODWRIGHT_CRI_SOCKET", &socket);
    let daemon = Running::of(command);
    until(PATIENCE, || if socket.exists() { Ok(()) } else { Err("no socket".to_owned()) });
    let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!((mode(&socket), mode(socket.parent().expect("a directory"))), (0o600, 0o700));
    daemon.signal(15);
    daemon.wait().code(0);
    assert!(!socket.exists());
}
