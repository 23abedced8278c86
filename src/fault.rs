//! Fault points: named places between two steps where a test may kill this process, so that "killed at any instruction" is
//! tried at every boundary and not at times that a sleep happens to hit.
//!
//! `PODWRIGHT_FAULT=kill:NAME` sends SIGKILL to this process when it passes the point NAME; `kill:NAME#3` at the third
//! pass. `PODWRIGHT_FAULT=list:FILE` appends each name passed to FILE, so that a test finds the points by itself.
//! Without the variable a point costs one load.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

enum Fault {
    None,
    Kill { name: String, pass: u32 },
    List { file: String },
}

static FAULT: OnceLock<Fault> = OnceLock::new();
static PASSES: AtomicU32 = AtomicU32::new(0);

fn read() -> Fault {
    let Ok(text) = std::env::var("PODWRIGHT_FAULT") else { return Fault::None };
    match text.split_once(':') {
        Some(("kill", point)) => {
            let (name, pass) = point.split_once('#').unwrap_or((point, "1"));
            Fault::Kill { name: name.to_owned(), pass: pass.parse().unwrap_or(1) }
        }
        Some(("list", file)) => Fault::List { file: file.to_owned() },
        _ => Fault::None,
    }
}

/// A step boundary. Names are `<module>.<verb>.<the step just done>`.
pub fn point(name: &str) {
    match FAULT.get_or_init(read) {
        Fault::None => {}
        Fault::Kill { name: wanted, pass } => {
            if name == wanted && PASSES.fetch_add(1, Ordering::Relaxed) + 1 == *pass {
                crate::sys::kill_self();
            }
        }
        Fault::List { file } => crate::sys::append_line(file, name),
    }
}
