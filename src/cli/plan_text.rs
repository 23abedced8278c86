//! A pod's plan as text for people; and the parts of it that `inspect` shows of a running one.

use super::output::Page;
use super::planner::{ContainerView, Limit, PodView};
use serde_json::Value;
use std::collections::BTreeMap;

/// The plan of one pod.
pub(super) fn pod(page: &mut Page, pod: &PodView) {
    page.gap();
    page.line(0, &format!("pod {}/{}", pod.namespace, pod.name));
    page.fields(
        1,
        &[
            ("uid", pod.uid.clone()),
            ("qos class", pod.qos.clone()),
            ("restart policy", pod.restart_policy.clone()),
            ("grace period", format!("{}s", pod.termination_grace_seconds)),
            ("deadline", pod.active_deadline_seconds.map(|s| format!("{s}s")).unwrap_or_default()),
            ("hostname", if pod.hostname.is_empty() { "the node's".to_owned() } else { pod.hostname.clone() }),
            ("namespaces", namespaces(&pod.namespaces)),
            ("cgroup", pod.cgroup.clone()),
        ],
    );
    limits(page, 1, &pod.limits);
    page.list(1, "sysctls:", pod.sysctls.iter().map(|(name, value)| format!("{name} = {value}")));
    let resolv_conf = pod.resolv_conf.iter().flat_map(|text| text.lines());
    page.list(1, "resolv.conf:", resolv_conf.map(str::to_owned));
    page.list(1, "host aliases:", pod.host_aliases.iter().cloned());
    page.list(1, "ports:", pod.ports.iter().cloned());
    page.table(
        1,
        "volumes:",
        ["NAME", "KIND", "ON THE HOST"],
        pod.volumes.iter().map(|v| [v.name.clone(), v.kind.clone(), v.path.clone()]),
    );
    for volume in &pod.volumes {
        page.list(1, &format!("files of volume {}:", volume.name), volume.files.iter().cloned());
    }
    page.line(1, &format!("starts: {}", order(&pod.containers)));
    for view in &pod.containers {
        container(page, view);
    }
    problems(page, "warnings:", &pod.warnings);
    problems(page, "`run` would refuse it on this host:", &pod.refusals);
}

/// `ipc, network and uts of the pod; cgroup, mount and pid of the container`.
pub(super) fn namespaces(all: &BTreeMap<&'static str, &'static str>) -> String {
    let mut owners: Vec<(&str, Vec<&str>)> = Vec::new();
    for (kind, whose) in all {
        match owners.iter_mut().find(|(owner, _)| owner == whose) {
            Some((_, kinds)) => kinds.push(kind),
            None => owners.push((whose, vec![kind])),
        }
    }
    let text = owners.iter().map(|(whose, kinds)| format!("{} of the {whose}", and(kinds)));
    text.collect::<Vec<_>>().join("; ")
}

/// `a, b and c`.
fn and(words: &[&str]) -> String {
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => words.concat(),
    }
}

/// Warnings of limits with the same cause as one: `cpu.max and cpu.weight cannot be enforced: WHY`.
pub(super) fn grouped(warnings: &[String]) -> Vec<String> {
    const MIDDLE: &str = " cannot be enforced: ";
    let mut causes: Vec<(&str, Vec<&str>)> = Vec::new();
    let mut rest = Vec::new();
    for warning in warnings {
        // `FILE ASKED of CGROUP cannot be enforced: WHY`
        let Some((what, why)) = warning.split_once(MIDDLE) else {
            rest.push(warning.clone());
            continue;
        };
        let file = what.split(' ').next().unwrap_or(what);
        match causes.iter_mut().find(|(cause, _)| *cause == why) {
            Some((_, files)) => files.push(file),
            None => causes.push((why, vec![file])),
        }
    }
    let grouped = causes.iter().map(|(why, files)| format!("{}{MIDDLE}{why}", and(files)));
    grouped.chain(rest).collect()
}

fn problems(page: &mut Page, heading: &str, sentences: &[String]) {
    if !sentences.is_empty() {
        page.gap();
    }
    page.list(1, heading, sentences.iter().cloned());
}

/// `init a, then sidecar b, then c and d together`.
fn order(containers: &[ContainerView]) -> String {
    let before = containers.iter().filter(|c| c.role != "app");
    let mut steps: Vec<String> =
        before.map(|c| format!("{} {}", c.name, if c.role == "init" { "(to its end)" } else { "(sidecar)" })).collect();
    let apps: Vec<&str> = containers.iter().filter(|c| c.role == "app").map(|c| c.name.as_str()).collect();
    steps.push(if apps.len() > 1 { format!("{} together", and(&apps)) } else { apps.concat() });
    steps.join(", then ")
}

fn container(page: &mut Page, view: &ContainerView) {
    page.gap();
    page.line(1, &format!("container {} ({})", view.name, view.role));
    let missing = " (not known here)".to_owned();
    page.fields(
        2,
        &[
            (
                "image",
                format!("{}{}", view.image, view.image_id.as_ref().map_or(missing, |id| format!(" {}", &id[..19]))),
            ),
            ("user", view.user.clone() + if view.run_as_non_root { " (root is refused)" } else { "" }),
            ("groups", numbers(&view.supplemental_groups)),
            ("privileged", if view.privileged { "yes".to_owned() } else { String::new() }),
            ("seccomp", view.seccomp.clone()),
            ("stop signal", view.stop_signal.to_string()),
            ("cgroup", view.cgroup.clone()),
            ("log", view.log.clone().unwrap_or_else(|| "none: output is discarded".to_owned())),
        ],
    );
    limits(page, 2, &view.limits);
    if let Some(spec) = &view.spec {
        process(page, 2, spec);
    }
}

/// What an OCI runtime spec says of process, mounts and confinement.
pub(super) fn process(page: &mut Page, level: usize, spec: &Value) {
    let process = &spec["process"];
    let capabilities = strings(&process["capabilities"]["bounding"]);
    let capabilities: Vec<&str> = capabilities.iter().map(|c| c.trim_start_matches("CAP_")).collect();
    let yes = |flag: &Value| if flag.as_bool() == Some(true) { "yes" } else { "no" }.to_owned();
    page.fields(
        level,
        &[
            ("command", quoted(&strings(&process["args"]))),
            ("directory", process["cwd"].as_str().unwrap_or_default().to_owned()),
            ("capabilities", if capabilities.is_empty() { "none".to_owned() } else { capabilities.join(" ") }),
            ("no new privileges", yes(&process["noNewPrivileges"])),
            ("read-only root", yes(&spec["root"]["readonly"])),
            ("oom_score_adj", process["oomScoreAdj"].to_string()),
            ("SELinux label", process["selinuxLabel"].as_str().unwrap_or_default().to_owned()),
            ("label of files", spec["linux"]["mountLabel"].as_str().unwrap_or_default().to_owned()),
            ("masked paths", strings(&spec["linux"]["maskedPaths"]).join(" ")),
            ("read-only paths", strings(&spec["linux"]["readonlyPaths"]).join(" ")),
        ],
    );
    let limit =
        |limit: &Value| format!("{} {} {}", limit["type"].as_str().unwrap_or_default(), limit["soft"], limit["hard"]);
    page.list(level, "resource limits (soft, hard):", process["rlimits"].as_array().into_iter().flatten().map(limit));
    let mount = |mount: &Value| {
        let text = |key: &str| mount[key].as_str().unwrap_or_default().to_owned();
        [text("destination"), text("type"), strings(&mount["options"]).join(","), text("source")]
    };
    let mounts = spec["mounts"].as_array().into_iter().flatten().map(mount);
    page.table(level, "mounts:", ["DESTINATION", "TYPE", "OPTIONS", "SOURCE"], mounts);
    page.list(level, "environment:", strings(&process["env"]));
}

/// Files of a cgroup, what was asked and what is written for it.
fn limits(page: &mut Page, level: usize, limits: &[Limit]) {
    let word = |limit: &Limit| match (&limit.not_enforced, &limit.not_available) {
        (Some(_), _) => "no",
        (None, Some(_)) => "not available",
        (None, None) => "yes",
    };
    let rows = limits.iter().map(|l| [l.file.clone(), l.asked.clone(), l.written.clone(), word(l).to_owned()]);
    page.table(level, "limits:", ["FILE", "ASKED", "WRITTEN", "ENFORCEABLE"], rows);
}

fn numbers(list: &[u32]) -> String {
    list.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

/// Words as a shell would take them back.
fn quoted(words: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+<>".contains(c);
    let quote = |word: &String| match !word.is_empty() && word.chars().all(plain) {
        true => word.clone(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    };
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_a_shell_would_take_it() {
        let words = ["sh", "-c", "echo 'a b'", ""].map(str::to_owned);
        assert_eq!(quoted(&words), r"sh -c 'echo '\''a b'\''' ''");
    }

    #[test]
    fn limits_with_one_cause_are_one_warning() {
        let warnings = ["cpu.max 1 of /a cannot be enforced: x", "other", "cpu.weight 1 of /a cannot be enforced: x"];
        assert_eq!(grouped(&warnings.map(str::to_owned)), ["cpu.max and cpu.weight cannot be enforced: x", "other"]);
    }

    #[test]
    fn namespaces_are_grouped_by_whose_they_are() {
        let all = BTreeMap::from([("ipc", "pod"), ("mount", "container"), ("network", "pod"), ("uts", "pod")]);
        assert_eq!(namespaces(&all), "ipc, network and uts of the pod; mount of the container");
    }

    #[test]
    fn the_order_of_starts_tells_what_waits_for_what() {
        let container = |name: &str, role: &'static str| ContainerView {
            name: name.into(),
            role,
            image: String::new(),
            image_id: None,
            user: String::new(),
            supplemental_groups: vec![],
            run_as_non_root: false,
            privileged: false,
            seccomp: String::new(),
            stop_signal: 15,
            cgroup: String::new(),
            limits: vec![],
            log: None,
            spec: None,
        };
        assert_eq!(order(&[container("a", "app")]), "a");
        let all = [container("i", "init"), container("s", "sidecar"), container("a", "app"), container("b", "app")];
        assert_eq!(order(&all), "i (to its end), then s (sidecar), then a and b together");
    }
}
