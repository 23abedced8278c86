//! The systemd unit of a daemon, systemd.service(5): printed, not shipped, so that it names the program and the settings that it is for.

use crate::config::{Config, Source};
use std::path::Path;

/// A unit that starts `program` with the settings that flags have made, on `socket` if that was given.
pub(super) fn text(program: &Path, config: &Config, socket: Option<&Path>) -> String {
    let mut words = vec![quoted(&program.to_string_lossy())];
    for entry in config.entries() {
        let Source::Flag(flag) = entry.source else { continue };
        words.push(flag.to_owned());
        if flag != "--allow-unenforced-limits" {
            words.push(quoted(&entry.value));
        }
    }
    words.push("daemon".to_owned());
    if let Some(socket) = socket {
        words.extend(["--socket".to_owned(), quoted(&socket.to_string_lossy())]);
    }
    format!(
        "\
[Unit]
Description=podwright, a Kubernetes container runtime
After=local-fs.target network-online.target
Wants=network-online.target
Before=kubelet.service

[Service]
Type=notify
ExecStart={}
# Pods outlive the daemon: only the daemon is ended, and only it is started again. Its cgroup is its own to divide.
KillMode=process
Delegate=yes
Restart=always
RestartSec=1
# Longer than the daemon waits for calls that are at work.
TimeoutStopSec=30
# Recovery of many pods takes its time before READY.
TimeoutStartSec=infinity
# The last to go when memory runs out: without it nothing is restarted. Containers have their own.
OOMScoreAdjust=-999
# A pod takes some descriptors and a task or two of the daemon. Containers have their own limits.
LimitNOFILE=1048576
LimitNPROC=infinity
LimitCORE=infinity
TasksMax=infinity

[Install]
WantedBy=multi-user.target
",
        words.join(" ")
    )
}

/// A word of a command line: systemd.service(5), COMMAND LINES. Specifiers and variables are not meant.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:=@".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    let escaped = word.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    format!("\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Flags;

    #[test]
    fn it_starts_the_daemon_as_it_was_asked_for() {
        let values = vec![
            ("root", "--root", "/srv/pod wright".to_owned()),
            ("cgroup.allow_unenforced", "--allow-unenforced-limits", "true".to_owned()),
        ];
        let config = Config::load(&Flags { file: None, values }, []).expect("valid");
        let unit = text(Path::new("/usr/bin/podwright"), &config, Some(Path::new("/run/a%b.sock")));
        let start = unit.lines().find(|line| line.starts_with("ExecStart=")).expect("it starts something");
        let expected = "ExecStart=/usr/bin/podwright --root \"/srv/pod wright\" --allow-unenforced-limits daemon --socket \"/run/a%%b.sock\"";
        assert_eq!(start, expected);
        for line in ["Type=notify", "KillMode=process", "Delegate=yes", "OOMScoreAdjust=-999", "Restart=always"] {
            assert!(unit.lines().any(|l| l == line), "{line}");
        }
    }
}
