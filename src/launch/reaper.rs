//! An own init before the app (`init: true`): PID 1 that reaps, passes signals on and ends with the app's status, like tini.
//!
//! It is the shim's program executed anew with the container's own confinement, so its memory is empty and it can do nothing that
//! the app could not: whoever may ptrace it gains nothing. It must be statically linked, for it runs in the container's root.
//!
//! Its arguments are [`ROLE`] and the app's argv; its environment the app's; descriptor 3 the report pipe.

use super::plan::{Process, programs};
use super::report::{At, Failed, Message, Reporter};
use super::{Step, confine};
use crate::sys::{clone, exec, pidfd, prctl};
use std::ffi::{CString, OsString};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStringExt;

/// The first argument of an init: how `main` knows its role, before any thread exists.
pub const ROLE: &str = "podwright-init";

/// Signals that are not passed on: those that mean this process itself (signal(7)).
const SIGCHLD: i32 = 17;

/// Executes `program` (the shim's own) as the init of `process`; returns only what went wrong.
pub(super) fn execute(program: BorrowedFd<'_>, process: &Process, reporter: &Reporter) -> Failed {
    let mut argv = vec![CString::new(ROLE).unwrap_or_default()]; // a constant without NUL
    argv.extend(process.argv.iter().cloned());
    // The one descriptor that survives, and the init marks it again before the app exists.
    match exec::become_fd_3(&reporter.0).at(Step::Exec) {
        Err(failed) => failed,
        Ok(()) => {
            let e = exec::fexecve(program, &argv, &process.env);
            Failed { step: Step::Init, object: 0, errno: e.raw_os_error().unwrap_or(0) }
        }
    }
}

/// Whether this process was executed to be an init, by the first of its arguments.
pub fn is_role(first: Option<&OsString>) -> bool {
    first.is_some_and(|first| first == ROLE)
}

/// The whole life of an init; `arguments` are the app's. Its exit code is the app's, 128+n for signal n.
pub fn run(arguments: impl Iterator<Item = OsString>) -> ! {
    let argv: Vec<CString> = arguments.filter_map(|arg| CString::new(arg.into_vec()).ok()).collect();
    let reporter = match exec::take_fd_3() {
        Ok(fd) => Reporter(fd),
        Err(_) => clone::exit_now(1),
    };
    match start(&argv, &reporter) {
        Err(failed) => {
            reporter.send(Message::Failed(failed));
            clone::exit_now(1);
        }
        Ok(app) => {
            drop(reporter); // the app's is the only one left: its exec is the good news
            clone::exit_now(reap_until(app))
        }
    }
}

/// Forks the app with every signal as it was, and none of them lost here meanwhile.
fn start(argv: &[CString], reporter: &Reporter) -> Result<u32, Failed> {
    let _ = prctl::set_not_dumpable(); // nothing in here is worth hiding; ptrace by the app's own user is merely not wanted
    exec::block_signals().at(Step::Signals)?;
    let env: Vec<CString> = std::env::vars_os()
        .filter_map(|(name, value)| CString::new([name.into_vec(), value.into_vec()].join(&b'=')).ok())
        .collect();
    let args: Vec<String> = argv.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let none = Failed { step: Step::Exec, object: 0, errno: super::libc_errno::ENOENT };
    let programs = programs(&args, &env).map_err(|_| none)?;
    match clone::fork().at(Step::Clone)? {
        Some(app) => Ok(app),
        None => {
            let failed = match exec::reset_signals().at(Step::Signals) {
                Err(failed) => failed,
                Ok(()) => confine::execute_in(&programs, argv, &env),
            };
            reporter.send(Message::Failed(failed));
            clone::exit_now(1)
        }
    }
}

/// Reaps everybody and passes signals to the app until it ends; its exit code.
fn reap_until(app: u32) -> i32 {
    loop {
        while let Ok(Some((pid, code))) = pidfd::reap_any() {
            if pid == app {
                return code;
            }
        }
        match exec::wait_signal(None) {
            Ok(None | Some(SIGCHLD)) => {}
            Ok(Some(signal)) => {
                let _ = exec::kill(app, signal); // ESRCH: it has ended, and SIGCHLD says so next
            }
            Err(_) => return 1,
        }
    }
}
