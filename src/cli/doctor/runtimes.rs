//! Runtime handlers: is each one's program there, can it be executed, and what does it say of itself.

use super::{Finding, Verdict};
use crate::engine::Runtimes;
use crate::engine::runtimes::{self, Told};
use crate::error::Result;
use std::path::Path;

const AREA: &str = "runtime handlers";
/// Where such runtimes look for cgroup v2, and nowhere else.
const CGROUP2: &str = "/sys/fs/cgroup/cgroup.controllers";

/// Nothing where none is configured.
pub(super) fn check(handlers: &Runtimes) -> Vec<Finding> {
    if handlers.is_empty() {
        return Vec::new();
    }
    let mut findings = vec![place(Path::new(CGROUP2).exists())];
    findings.extend(handlers.iter().map(|(name, path)| program(name, path, look(path))));
    findings
}

fn look(path: &Path) -> Result<Told> {
    crate::cli::runtime()?.block_on(runtimes::look(path))
}

fn place(there: bool) -> Finding {
    let why = "other OCI runtimes look for cgroup v2 at /sys/fs/cgroup, and pods of their handlers are refused where it is not";
    let finding = Finding::ok(AREA, "cgroup v2", "at /sys/fs/cgroup", why);
    match there {
        true => finding,
        false => Finding { found: "not at /sys/fs/cgroup".to_owned(), ..finding }
            .but(Verdict::Fail, "boot with cgroup_no_v1=all, or systemd.unified_cgroup_hierarchy=1"),
    }
}

fn program(name: &str, path: &Path, told: Result<Told>) -> Finding {
    let why = format!("pods of the runtime handler {name} are made by {}", path.display());
    let found = match &told {
        Ok(Told { version, features: None }) => format!("{version}; it does not tell its features"),
        Ok(Told { version, features: Some(features) }) => {
            let not = if features.recursive_read_only_mounts { "" } else { "no " };
            format!("{version}; {not}recursive read-only mounts")
        }
        Err(e) => e.to_string(),
    };
    let finding = Finding::ok(AREA, name, found, why);
    match told {
        Ok(_) => finding,
        Err(_) => finding.but(
            Verdict::Fail,
            format!("install it, correct runtimes.{name}.path in the configuration file, or leave the handler out"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_a_program_says_of_itself_is_told_and_one_that_cannot_be_executed_is_a_fault() {
        let dir = tempfile::tempdir().expect("tempdir");
        let with = |name: &str, text: &str, mode: u32| {
            let path = dir.path().join(name);
            fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("write");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
            program(name, &path, look(&path))
        };
        let told =
            "case $1 in --version) echo \"x 1\"; echo spec: 1;; features) echo '{\"mountOptions\": [\"rro\"]}';; esac";
        let full = with("full", told, 0o755);
        assert_eq!((full.verdict, full.found.as_str()), (Verdict::Ok, "x 1; recursive read-only mounts"));
        let old = with("old", "[ $1 = --version ] && echo x 0", 0o755);
        assert_eq!((old.verdict, old.found.as_str()), (Verdict::Ok, "x 0; it does not tell its features"));
        for (name, text, mode) in
            [("plain", "echo x 1", 0o644), ("silent", "exit 0", 0o755), ("fails", "exit 3", 0o755)]
        {
            let finding = with(name, text, mode);
            assert_eq!(finding.verdict, Verdict::Fail, "{name}: {}", finding.found);
            assert!(finding.remedy.is_some_and(|remedy| remedy.contains(&format!("runtimes.{name}.path"))));
        }
        let absent = dir.path().join("absent");
        let finding = program("absent", &absent, look(&absent));
        assert!(finding.verdict == Verdict::Fail && finding.found.contains("absent"), "{}", finding.found);
    }
}
