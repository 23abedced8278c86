//! What the kernel shows of a live process, against its OCI runtime spec. Pure: `verify` reads the files.
//!
//! A program may give up what it was given, and many do: fewer capabilities, another uid, no_new_privs, a filter of its own. That is
//! told and is no difference. That it has more than it was given is one.

use crate::engine::oci::CAPABILITIES;
use crate::state::record::User;
use crate::wire::Seccomp;
use serde::Serialize;
use serde_json::Value;

/// One comparison.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    /// The pod, or POD/CONTAINER.
    pub subject: String,
    /// A file of the cgroup, a line of /proc/PID/status, `mount /proc`, `namespace pid`, ...
    pub check: String,
    pub ok: bool,
    pub expected: String,
    pub found: String,
    /// Why, where that needs saying.
    pub note: String,
}

impl Check {
    pub(super) fn new(check: impl Into<String>, expected: impl Into<String>, found: impl Into<String>) -> Check {
        let (expected, found) = (expected.into(), found.into());
        Check {
            subject: String::new(),
            check: check.into(),
            ok: expected == found,
            expected,
            found,
            note: String::new(),
        }
    }

    /// Takes it for right although the two differ, and says why.
    #[must_use]
    fn excused(mut self, excuse: bool, note: &str) -> Check {
        if !self.ok && excuse {
            self.ok = true;
            note.clone_into(&mut self.note);
        }
        self
    }
}

/// The value of a line of /proc/PID/status, proc_pid_status(5).
fn line<'a>(status: &'a str, name: &str) -> &'a str {
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.map_or("", str::trim)
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Ids, groups, capabilities, no_new_privs and seccomp of /proc/PID/status. `last_capability` is the highest that the kernel has.
pub(super) fn status(status: &str, spec: &Value, user: &User, seccomp: &Seccomp, last_capability: u32) -> Vec<Check> {
    let process = &spec["process"];
    let set = |name: &str| bits(&process["capabilities"][name], last_capability);
    let bounding = set("bounding");
    let may = |capability: &str| {
        CAPABILITIES.iter().position(|c| *c == capability).is_some_and(|bit| bounding >> bit & 1 == 1)
    };
    // /proc shows a reader the ids of the reader's own namespace, the host's.
    let host =
        |field: &str| spec["linux"][field][0]["hostID"].as_u64().and_then(|id| u32::try_from(id).ok()).unwrap_or(0);
    let (first_uid, first_gid) = (host("uidMappings"), host("gidMappings"));
    let four = |id: u32| format!("{id} {id} {id} {id}");
    let ids = |name: &str, id: u32, capability: &str| {
        Check::new(name, four(id), words(line(status, name))).excused(may(capability), "the program changed it")
    };
    let mut groups = user.groups.clone();
    groups.sort_unstable();
    groups.dedup();
    let groups: Vec<String> = groups.iter().map(|gid| gid.saturating_add(first_gid).to_string()).collect();
    let mut checks = vec![
        ids("Uid", user.uid.saturating_add(first_uid), "SETUID"),
        ids("Gid", user.gid.saturating_add(first_gid), "SETGID"),
        Check::new("Groups", groups.join(" "), sorted(line(status, "Groups")))
            .excused(may("SETGID"), "the program changed it"),
    ];
    // A uid other than 0 keeps over execve(2) what is ambient and nothing else, capabilities(7).
    let kept = |name: &str| if user.uid == 0 { set(name) } else { set("ambient") };
    for (line_name, expected) in [
        ("CapBnd", bounding),
        ("CapPrm", kept("permitted")),
        ("CapEff", kept("effective")),
        ("CapInh", set("inheritable") | set("ambient")),
        ("CapAmb", set("ambient")),
    ] {
        checks.push(capabilities(line_name, expected, line(status, line_name)));
    }
    let asked = u8::from(process["noNewPrivileges"].as_bool() == Some(true)).to_string();
    let found = line(status, "NoNewPrivs");
    checks.push(Check::new("NoNewPrivs", asked, found).excused(found == "1", "the program set it"));
    let filtered = !matches!(seccomp, Seccomp::Unconfined);
    let found = line(status, "Seccomp");
    let check = Check::new("Seccomp", if filtered { "2" } else { "0" }, found);
    checks.push(check.excused(!filtered && found == "2", "a filter of the program, or of what podwright runs in"));
    checks
}

/// Numbers in order.
fn sorted(text: &str) -> String {
    let mut numbers: Vec<u32> = text.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
}

/// The set that a list of `CAP_` names is, without what this kernel does not have.
fn bits(names: &Value, last: u32) -> u64 {
    let names = names.as_array().into_iter().flatten().filter_map(Value::as_str);
    let index = |name: &str| CAPABILITIES.iter().position(|c| Some(*c) == name.strip_prefix("CAP_"));
    let set = names.filter_map(index).fold(0u64, |set, bit| set | 1 << bit);
    if last >= 63 { set } else { set & ((1 << (last + 1)) - 1) }
}

fn capabilities(name: &str, expected: u64, found: &str) -> Check {
    let is = u64::from_str_radix(found, 16).ok();
    let show = |set: u64| if set == 0 { "none".to_owned() } else { capability_names(set) };
    let mut check = Check::new(name, show(expected), is.map_or_else(|| found.to_owned(), show));
    if let Some(more) = is.map(|is| is & !expected).filter(|more| *more != 0) {
        check.note = format!("more than it was given: {}", capability_names(more));
    }
    check.excused(is.is_some_and(|is| is & !expected == 0), "less than it was given")
}

fn capability_names(set: u64) -> String {
    let known =
        CAPABILITIES.iter().enumerate().filter(|(bit, _)| set >> bit & 1 == 1).map(|(_, name)| (*name).to_owned());
    let unknown = (CAPABILITIES.len()..64).filter(|bit| set >> bit & 1 == 1).map(|bit| format!("CAP_{bit}"));
    known.chain(unknown).collect::<Vec<_>>().join(" ")
}

/// Each of the spec's rlimits against /proc/PID/limits, proc_pid_limits(5).
pub(super) fn rlimits(limits: &str, spec: &Value) -> Vec<Check> {
    let asked = spec["process"]["rlimits"].as_array().into_iter().flatten();
    asked
        .filter_map(|limit| {
            let name = limit["type"].as_str()?;
            let number = |value: &Value| match value.as_u64() {
                Some(u64::MAX) | None => "unlimited".to_owned(),
                Some(number) => number.to_string(),
            };
            let expected = format!("{} {}", number(&limit["soft"]), number(&limit["hard"]));
            Some(Check::new(name, expected, rlimit(limits, name).unwrap_or_else(|| "not there".to_owned())))
        })
        .collect()
}

/// Soft and hard limit of a line.
fn rlimit(limits: &str, name: &str) -> Option<String> {
    let title = match name {
        "RLIMIT_CPU" => "Max cpu time",
        "RLIMIT_FSIZE" => "Max file size",
        "RLIMIT_DATA" => "Max data size",
        "RLIMIT_STACK" => "Max stack size",
        "RLIMIT_CORE" => "Max core file size",
        "RLIMIT_RSS" => "Max resident set",
        "RLIMIT_NPROC" => "Max processes",
        "RLIMIT_NOFILE" => "Max open files",
        "RLIMIT_MEMLOCK" => "Max locked memory",
        "RLIMIT_AS" => "Max address space",
        "RLIMIT_LOCKS" => "Max file locks",
        "RLIMIT_SIGPENDING" => "Max pending signals",
        "RLIMIT_MSGQUEUE" => "Max msgqueue size",
        "RLIMIT_NICE" => "Max nice priority",
        "RLIMIT_RTPRIO" => "Max realtime priority",
        "RLIMIT_RTTIME" => "Max realtime timeout",
        _ => return None,
    };
    let mut values = limits.lines().find_map(|line| line.strip_prefix(title))?.split_whitespace();
    Some(format!("{} {}", values.next()?, values.next()?))
}

/// A line of mountinfo, proc_pid_mountinfo(5).
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mounted {
    target: String,
    /// Of this mount: `ro`, `nosuid`, ...
    options: Vec<String>,
    fs: String,
    /// Of the file system under it.
    super_options: Vec<String>,
}

fn mountinfo(text: &str) -> Vec<Mounted> {
    let options = |text: &str| text.split(',').map(str::to_owned).collect();
    let parse = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        Some(Mounted {
            target: unescape(left.get(4)?),
            options: options(left.get(5)?),
            fs: (*right.first()?).to_owned(),
            super_options: options(right.get(2)?),
        })
    };
    text.lines().filter_map(parse).collect()
}

/// Blanks, newlines and backslashes stand as `\040` and so on.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let octal = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(|_| *first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Root, mounts, masked and read-only paths of the spec against /proc/PID/mountinfo. `exists` tells whether a path is there at all.
pub(super) fn mounts(info: &str, spec: &Value, exists: impl Fn(&str) -> bool) -> Vec<Check> {
    let mounted = mountinfo(info);
    // Of several on one place the last is the one that is seen.
    let at = |target: &str| mounted.iter().rev().find(|m| m.target == target);
    let strings = |value: &Value| {
        value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    let readonly = spec["root"]["readonly"].as_bool() == Some(true);
    let mut checks = vec![Check::new(
        "mount /",
        if readonly { "overlay ro" } else { "overlay rw" },
        at("/").map_or_else(missing, |m| format!("{} {}", m.fs, access(m))),
    )];
    for mount in spec["mounts"].as_array().into_iter().flatten() {
        let target = mount["destination"].as_str().unwrap_or_default();
        let options = strings(&mount["options"]);
        checks.push(one_mount(target, mount["type"].as_str().unwrap_or_default(), &options, at(target)));
        if options.iter().any(|o| o == "rro") {
            checks.extend(below(&mounted, target).map(|m| Check::new(format!("mount {}", m.target), "ro", access(m))));
        }
    }
    for path in strings(&spec["linux"]["maskedPaths"]).iter().filter(|path| exists(path)) {
        checks.push(Check::new(format!("masked {path}"), "mounted over", at(path).map_or("open", |_| "mounted over")));
    }
    for path in strings(&spec["linux"]["readonlyPaths"]).iter().filter(|path| exists(path)) {
        let within = mounted.iter().rev().filter(|m| is_within(path, &m.target)).max_by_key(|m| m.target.len());
        checks.push(Check::new(format!("read-only {path}"), "ro", within.map_or("open", access)));
    }
    checks
}

fn missing() -> String {
    "not mounted".to_owned()
}

fn below<'a>(mounted: &'a [Mounted], target: &str) -> impl Iterator<Item = &'a Mounted> {
    let prefix = format!("{target}/");
    mounted.iter().filter(move |m| m.target.starts_with(&prefix))
}

/// Whether a path is another or below it.
fn is_within(path: &str, above: &str) -> bool {
    let rest = path.strip_prefix(above.trim_end_matches('/'));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether one may write: a mount or its file system may forbid it.
fn access(mount: &Mounted) -> &'static str {
    let ro = mount.options.iter().chain(&mount.super_options).any(|o| o == "ro");
    if ro { "ro" } else { "rw" }
}

fn one_mount(target: &str, kind: &str, options: &[String], found: Option<&Mounted>) -> Check {
    let name = format!("mount {target}");
    let has = |flag: &str| options.iter().any(|o| o == flag);
    let readonly = has("ro") || has("rro");
    let flags = ["nosuid", "nodev", "noexec"].into_iter().filter(|flag| has(flag));
    // A bind mount has the type of what is bound; one that may be written may still be of a read-only file system.
    let bind = kind == "bind" || has("bind") || has("rbind");
    let fs = if kind == "cgroup" { "cgroup2" } else { kind };
    let mut expected: Vec<&str> = if bind { Vec::new() } else { vec![fs] };
    expected.push(if readonly { "ro" } else { "rw" });
    expected.extend(flags.clone());
    let Some(mount) = found else { return Check::new(name, expected.join(" "), missing()) };
    let mut is: Vec<&str> = if bind { Vec::new() } else { vec![&mount.fs] };
    is.push(if bind && !readonly && !mount.options.iter().any(|o| o == "ro") { "rw" } else { access(mount) });
    is.extend(flags.filter(|flag| mount.options.iter().any(|o| o == flag)));
    Check::new(name, expected.join(" "), is.join(" "))
}

/// Links of /proc/PID/ns: of the process, of the pod's pause process, of the host, and of the container whose pid namespace it joins.
#[derive(Debug, Clone, Default)]
pub(super) struct Namespaces {
    /// The spec's name (`network`) and the four links; empty for what could not be read.
    pub links: Vec<(&'static str, [String; 4])>,
}

/// Whether each namespace is the one that the spec says.
pub(super) fn namespaces(spec: &Value, found: &Namespaces) -> Vec<Check> {
    let asked = spec["linux"]["namespaces"].as_array();
    let list: &[Value] = asked.map_or(&[], Vec::as_slice);
    found
        .links
        .iter()
        .map(|(kind, [own, pause, host, target])| {
            let entry = list.iter().find(|n| n["type"] == **kind);
            let expected = match entry.map(|n| n["path"].as_str()) {
                None => "the host's",
                Some(None) => "its own",
                Some(Some("podwright:pod")) => "the pod's",
                Some(Some(_)) => "the target's",
            };
            let is = if own.is_empty() {
                "not readable"
            } else if expected == "the target's" && own == target {
                "the target's"
            } else if own == host {
                "the host's"
            } else if own == pause {
                "the pod's"
            } else {
                "its own"
            };
            Check::new(format!("namespace {kind}"), expected, is)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const STATUS: &str = "Name:\tsleep\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nGroups:\t10 0 \nCapInh:\t0000000000000000\n\
        CapPrm:\t00000000000000e1\nCapEff:\t00000000000000e1\nCapBnd:\t00000000000000e1\nCapAmb:\t0000000000000000\n\
        NoNewPrivs:\t0\nSeccomp:\t2\nSeccomp_filters:\t1\n";

    fn spec() -> Value {
        let caps = json!(["CAP_CHOWN", "CAP_KILL", "CAP_SETGID", "CAP_SETUID"]);
        json!({"process": {
            "capabilities": {"bounding": caps, "permitted": caps, "effective": caps, "inheritable": [], "ambient": []},
            "noNewPrivileges": false,
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}, {"type": "RLIMIT_CORE", "soft": 0, "hard": u64::MAX}],
        }})
    }

    fn differing(text: &str, user: &User, seccomp: &Seccomp) -> Vec<String> {
        status(text, &spec(), user, seccomp, 40).into_iter().filter(|c| !c.ok).map(|c| c.check).collect()
    }

    #[test]
    fn a_process_as_it_was_asked_for_differs_in_nothing() {
        let user = User { uid: 0, gid: 0, groups: vec![0, 10] };
        assert_eq!(differing(STATUS, &user, &Seccomp::RuntimeDefault), [""; 0]);
    }

    #[test]
    fn more_than_was_given_differs_and_less_does_not() {
        let user = User { uid: 0, gid: 0, groups: vec![0, 10] };
        let with = |from: &str, to: &str| differing(&STATUS.replace(from, to), &user, &Seccomp::RuntimeDefault);
        assert_eq!(with("CapEff:\t00000000000000e1", "CapEff:\t00000000002000e1"), ["CapEff"]);
        assert_eq!(with("CapBnd:\t00000000000000e1", "CapBnd:\t000001ffffffffff"), ["CapBnd"]);
        assert_eq!(with("CapEff:\t00000000000000e1", "CapEff:\t0000000000000001"), [""; 0]);
        assert_eq!(with("Seccomp:\t2", "Seccomp:\t0"), ["Seccomp"]);
        assert_eq!(with("NoNewPrivs:\t0", "NoNewPrivs:\t1"), [""; 0]);
        assert_eq!(with("Uid:\t0\t0\t0\t0", "Uid:\t33\t33\t33\t33"), [""; 0], "it has CAP_SETUID");
    }

    #[test]
    fn without_the_capability_another_uid_differs_and_without_root_nothing_is_permitted() {
        let user = User { uid: 1000, gid: 1000, groups: vec![] };
        let mut bare = spec();
        bare["process"]["capabilities"]["bounding"] = json!([]);
        let text = STATUS.replace("e1\n", "00\n");
        let checks = status(&text, &bare, &user, &Seccomp::Unconfined, 40);
        let bad: Vec<_> = checks.iter().filter(|c| !c.ok).map(|c| c.check.as_str()).collect();
        assert_eq!(bad, ["Uid", "Gid", "Groups"]);
        let prm = checks.iter().find(|c| c.check == "CapPrm").expect("there");
        assert_eq!((prm.expected.as_str(), prm.ok), ("none", true));
    }

    #[test]
    fn rlimits_are_compared_with_soft_and_hard() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
            Max open files            10                   20                   files     \n\
            Max core file size        1                    unlimited            bytes     \n";
        let checks = rlimits(text, &spec());
        assert_eq!(checks.iter().map(|c| c.ok).collect::<Vec<_>>(), [true, false], "{checks:?}");
    }

    const MOUNTS: &str = "\
        1 0 0:1 / / rw,relatime - overlay overlay rw,lowerdir=/x\n\
        2 1 0:2 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw\n\
        3 1 0:3 / /sys ro,nosuid,nodev,noexec,relatime - sysfs sysfs rw\n\
        4 1 8:1 /d /a\\040b ro,relatime - ext4 /dev/sda1 rw\n\
        5 4 8:2 / /a\\040b/c rw,relatime - ext4 /dev/sda2 rw\n\
        6 2 0:4 / /proc/kcore rw - tmpfs tmpfs rw\n\
        7 2 0:2 /sys /proc/sys ro,relatime - proc proc rw\n";

    #[test]
    fn mounts_are_compared_by_type_flags_and_access() {
        let spec = json!({
            "root": {"readonly": false},
            "mounts": [
                {"destination": "/proc", "type": "proc", "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/sys", "type": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
                {"destination": "/a b", "type": "bind", "options": ["rbind", "rro"]},
                {"destination": "/gone", "type": "tmpfs", "options": []},
            ],
            "linux": {"maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/none"], "readonlyPaths": ["/proc/sys", "/proc/bus"]},
        });
        let checks = mounts(MOUNTS, &spec, |path| path != "/proc/none");
        let bad: Vec<_> = checks.iter().filter(|c| !c.ok).map(|c| c.check.as_str()).collect();
        assert_eq!(bad, ["mount /a b/c", "mount /gone", "masked /proc/keys", "read-only /proc/bus"]);
        assert!(
            !mounts(MOUNTS, &json!({"root": {"readonly": true}}), |_| true)[0].ok,
            "a root that should be read-only"
        );
    }

    #[test]
    fn namespaces_are_the_pods_the_hosts_or_its_own() {
        let spec = json!({"linux": {"namespaces": [
            {"type": "mount"}, {"type": "network", "path": "podwright:pod"}, {"type": "pid", "path": "podwright:container:c"},
        ]}});
        let links = |own: &str| [own, "pause", "host", "target"].map(str::to_owned);
        let check = |kind, own: &str| namespaces(&spec, &Namespaces { links: vec![(kind, links(own))] }).remove(0).ok;
        assert!(check("mount", "mine") && !check("mount", "host") && !check("mount", "pause"));
        assert!(check("network", "pause") && !check("network", "host") && !check("network", "mine"));
        assert!(check("ipc", "host") && !check("ipc", "pause"));
        assert!(check("pid", "target") && !check("pid", "pause"));
        assert!(!check("pid", ""));
    }
}
