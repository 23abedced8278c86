//! What another OCI runtime is given: our spec with what only a start knows filled in (pure). Of a further process, `process.json`.
//!
//! | field                    | becomes                                                                                          |
//! |--------------------------|--------------------------------------------------------------------------------------------------|
//! | `root.path`              | `rootfs` of the bundle, where the overlay is attached                                             |
//! | `process.user`, HOME     | the numbers that names were resolved to, and the home of /etc/passwd                              |
//! | `linux.namespaces`       | paths of the pod's namespaces, below /proc                                                        |
//! | `linux.cgroupsPath`      | the cgroup that the engine made                                                                   |
//! | `linux.resources`        | its device rules alone: the limits are written and verified already, and a rounding of somebody else's would be over them |
//! | `linux.seccomp`          | the default profile where that is wanted, without i386                                             |
//! | `/dev/shm`, image volumes | bind mounts of what is attached in the bundle                                                     |

use super::plan::refused;
use super::{StartError, seccomp::Machine, seccomp_profile};
use crate::state::model::NamespaceMode;
use crate::state::record::User;
use crate::sys::capability;
use crate::wire::{Exec, Launch, Seccomp};
use serde_json::{Value, json};
use std::path::Path;

/// What crun before 1.9 takes; others do not look at it. What is newer in a spec is not refused for it.
const OCI_VERSION: &str = "1.0.2";
/// Left out of the default profile: libseccomp, which such runtimes use, derives an allowance of i386's socketcall(2) from every one of socket(2), in
/// conflict with the profile, which has none (its address family is out of a filter's sight). Without it 32-bit programs end by SIGSYS.
const NOT_FILTERED: &str = "SCMP_ARCH_X86";
/// In the bundle: where the root is attached.
pub(super) const ROOT: &str = "rootfs";
/// In the bundle: where the pod's /dev/shm is attached.
pub(super) const SHM: &str = "shm";

/// What is known at a start and not before.
pub(super) struct Facts<'a> {
    /// Absolute.
    pub bundle: &'a Path,
    pub user: &'a User,
    pub home: &'a str,
    /// The pid of the pod's pause, as the host has it.
    pub pause: u32,
    /// That of the container whose processes this one is to see.
    pub pid_target: Option<u32>,
    /// Below the mount point of cgroup v2.
    pub cgroups_path: &'a str,
}

/// In the bundle: where the image volume with this destination is attached; the same for every caller.
pub(super) fn image_place(number: usize) -> String {
    format!("image-{number}")
}

/// The bundle's `config.json`.
///
/// # Errors
/// [`super::Step::Plan`], naming what another runtime cannot do here.
pub(super) fn config(launch: &Launch, facts: &Facts<'_>) -> Result<Value, StartError> {
    if launch.init {
        return Err(refused(
            "an init of podwright's own needs the built-in runtime; leave it out, or the runtime handler",
        ));
    }
    if launch.namespaces.user.map().is_some() {
        return Err(refused("a user namespace needs the built-in runtime; leave it out, or the runtime handler"));
    }
    let mut spec = launch.spec.value();
    spec["ociVersion"] = OCI_VERSION.into();
    let readonly = launch.root.readonly || spec["root"]["readonly"] == true;
    spec["root"] = json!({"path": ROOT, "readonly": readonly});
    run_as(&mut spec["process"], facts.user, facts.home);
    for number in 0..spec["mounts"].as_array().map_or(0, Vec::len) {
        mount(&mut spec["mounts"][number], number, launch, facts.bundle);
    }
    namespaces(&mut spec["linux"]["namespaces"], facts)?;
    let devices = spec["linux"]["resources"]["devices"].take();
    spec["linux"]["resources"] = json!({"devices": devices});
    spec["linux"]["cgroupsPath"] = facts.cgroups_path.into();
    match launch.seccomp {
        Seccomp::Spec => {}
        Seccomp::Unconfined => drop(spec["linux"]["seccomp"].take()),
        Seccomp::RuntimeDefault => {
            let profile = seccomp_profile::default_profile(bounding(&spec["process"])?, Machine::HOST);
            let mut profile = serde_json::to_value(profile).map_err(|e| refused(format!("seccomp: {e}")))?;
            if let Some(machines) = profile["architectures"].as_array_mut() {
                machines.retain(|machine| machine != NOT_FILTERED);
            }
            spec["linux"]["seccomp"] = profile;
        }
    }
    without_nulls(&mut spec);
    Ok(spec)
}

/// The `process.json` of a further process: the container's own, with another program.
pub(super) fn process(exec: &Exec, launch: &Launch, user: &User, home: &str) -> Value {
    let mut process = launch.spec.value()["process"].take();
    process["terminal"] = exec.tty.into();
    process["consoleSize"] = match exec.size.filter(|_| exec.tty) {
        Some(size) => json!({"height": size.rows, "width": size.columns}),
        None => Value::Null, // the container's may be another
    };
    process["args"] = exec.args.clone().into();
    if !exec.cwd.is_empty() {
        process["cwd"] = exec.cwd.clone().into();
    }
    let mut env: Vec<String> = strings(&process["env"]);
    for line in &exec.env {
        let name = line.split('=').next();
        env.retain(|known| known.split('=').next() != name);
        env.push(line.clone());
    }
    process["env"] = env.into();
    run_as(&mut process, user, home);
    without_nulls(&mut process);
    process
}

fn run_as(process: &mut Value, user: &User, home: &str) {
    process["user"]["uid"] = user.uid.into();
    process["user"]["gid"] = user.gid.into();
    process["user"]["additionalGids"] = user.groups.clone().into();
    let mut env = strings(&process["env"]);
    if !env.iter().any(|line| line.starts_with("HOME=")) {
        env.push(format!("HOME={home}"));
    }
    process["env"] = env.into();
    if process["oomScoreAdj"].is_null() {
        process["oomScoreAdj"] = 0.into(); // else it would be that of the shim
    }
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

fn mount(mount: &mut Value, number: usize, launch: &Launch, bundle: &Path) {
    let bound = |source: &Path, options: &[&str]| {
        let options: Vec<&str> = [&["bind", "rprivate"], options].concat();
        json!({"type": "bind", "source": source, "options": options})
    };
    let replaced = match (mount["type"].as_str(), mount["destination"].as_str()) {
        (Some("overlay"), _) => bound(&bundle.join(image_place(number)), &["ro", "nosuid", "nodev"]),
        (Some("tmpfs"), Some("/dev/shm")) => {
            let own = launch.namespaces.ipc != NamespaceMode::Node;
            let source = if own { bundle.join(SHM) } else { "/dev/shm".into() };
            bound(&source, &["rw", "nosuid", "nodev", "noexec"])
        }
        _ => return,
    };
    for (key, value) in replaced.as_object().into_iter().flatten() {
        mount[key] = value.clone();
    }
}

/// The spec names the pod's and other containers' by words of ours.
fn namespaces(list: &mut Value, facts: &Facts<'_>) -> Result<(), StartError> {
    for namespace in list.as_array_mut().into_iter().flatten() {
        let Some(path) = namespace["path"].as_str() else { continue };
        let pid = match path {
            "podwright:pod" => facts.pause,
            _ if path.starts_with("podwright:container:") => {
                facts.pid_target.ok_or_else(|| refused("namespaces.pid: the target container does not run"))?
            }
            other => return Err(refused(format!("linux.namespaces: the path {other:?} is none of this pod's"))),
        };
        let file = match namespace["type"].as_str() {
            Some("network") => "net",
            Some(file @ ("ipc" | "uts" | "pid")) => file,
            other => return Err(refused(format!("linux.namespaces: a {other:?} namespace is not shared"))),
        };
        namespace["path"] = format!("/proc/{pid}/ns/{file}").into();
    }
    Ok(())
}

/// The bounding set as bits.
fn bounding(process: &Value) -> Result<u64, StartError> {
    let names = strings(&process["capabilities"]["bounding"]);
    names.iter().try_fold(0, |bits, name| {
        let full = if name.starts_with("CAP_") { name.clone() } else { format!("CAP_{name}") };
        let bit = capability::bit(&full).ok_or_else(|| refused(format!("process.capabilities: {name} is unknown")))?;
        Ok(bits | bit)
    })
}

/// What is absent is written as null by us; others take null for a value of the wrong type.
fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(without_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{ContainerId, ExecId};
    use crate::state::model::Namespaces;
    use crate::state::spec::SpecText;
    use crate::wire::{Root, Stdio, TerminalSize, UserChoice};

    fn launch(edit: impl FnOnce(&mut Value)) -> Launch {
        let mut spec = json!({
            "ociVersion": "1.2.0",
            "root": {"path": "x", "readonly": false},
            "process": {
                "args": ["/a"], "env": ["A=1"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "oomScoreAdj": null,
                "capabilities": {"bounding": ["CAP_CHOWN", "CAP_KILL"]},
            },
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev/shm", "type": "tmpfs", "source": "shm"},
                {"destination": "/img", "type": "overlay", "options": ["ro", "lowerdir=/l"]},
            ],
            "linux": {
                "namespaces": [
                    {"type": "mount"}, {"type": "network", "path": "podwright:pod"}, {"type": "pid", "path": "podwright:container:x"}
                ],
                "resources": {"memory": {"limit": 1}, "devices": [{"allow": false, "access": "rwm"}]},
            },
        });
        edit(&mut spec);
        Launch {
            container: ContainerId::random(),
            dir: "/d".into(),
            spec: SpecText::of(&spec).expect("JSON"),
            root: Root { layers: vec!["/l".into()], upper: "/u".into(), work: "/w".into(), readonly: true },
            user: UserChoice::default(),
            namespaces: Namespaces::default(),
            seccomp: Seccomp::RuntimeDefault,
            stdio: Stdio { tty: false, stdin: false, stdin_once: false, log: None },
            init: false,
            allow_unenforced: false,
            runtime: None,
        }
    }

    static USER: User = User { uid: 7, gid: 8, groups: Vec::new() };

    fn facts(user: &User) -> Facts<'_> {
        let bundle = Path::new("/b");
        Facts { bundle, user, home: "/h", pause: 11, pid_target: Some(12), cgroups_path: "/podwright/x" }
    }

    #[test]
    fn what_only_a_start_knows_is_filled_in() {
        let spec = config(&launch(|_| {}), &facts(&USER)).expect("made");
        assert_eq!(spec["root"], json!({"path": "rootfs", "readonly": true}));
        assert_eq!(spec["process"]["user"], json!({"uid": 7, "gid": 8, "additionalGids": []}));
        assert_eq!(spec["process"]["env"], json!(["A=1", "HOME=/h"]));
        assert_eq!(spec["process"]["oomScoreAdj"], 0);
        assert_eq!(spec["mounts"][1]["source"], "/b/shm");
        assert_eq!(spec["mounts"][2]["source"], "/b/image-2");
        assert!(spec["mounts"][2]["options"].as_array().expect("a list").contains(&"ro".into()));
        assert_eq!(spec["linux"]["namespaces"][1]["path"], "/proc/11/ns/net");
        assert_eq!(spec["linux"]["namespaces"][2]["path"], "/proc/12/ns/pid");
        assert_eq!(spec["linux"]["cgroupsPath"], "/podwright/x");
    }

    #[test]
    fn limits_that_were_verified_are_not_written_by_another() {
        let spec = config(&launch(|_| {}), &facts(&USER)).expect("made");
        assert_eq!(spec["linux"]["resources"], json!({"devices": [{"allow": false, "access": "rwm"}]}));
    }

    #[test]
    fn the_default_profile_is_the_one_of_its_capabilities() {
        let spec = config(&launch(|_| {}), &facts(&USER)).expect("made");
        let bits = capability::bit("CAP_CHOWN").expect("known") | capability::bit("CAP_KILL").expect("known");
        let expected = serde_json::to_value(seccomp_profile::default_profile(bits, Machine::HOST)).expect("JSON");
        assert_eq!(spec["linux"]["seccomp"]["syscalls"], expected["syscalls"]);
        assert!(!spec["linux"]["seccomp"]["architectures"].to_string().contains("\"SCMP_ARCH_X86\""));
        let mut plain = launch(|_| {});
        plain.seccomp = Seccomp::Unconfined;
        assert!(config(&plain, &facts(&USER)).expect("made")["linux"].get("seccomp").is_none());
    }

    #[test]
    fn what_cannot_be_honoured_is_refused() {
        let mut own_init = launch(|_| {});
        own_init.init = true;
        assert!(config(&own_init, &facts(&USER)).is_err());
        let strange = launch(|s| s["linux"]["namespaces"][1]["path"] = "/proc/1/ns/net".into());
        assert!(config(&strange, &facts(&USER)).is_err());
        let without_target = Facts { pid_target: None, ..facts(&USER) };
        assert!(config(&launch(|_| {}), &without_target).is_err());
    }

    fn exec(launch: &Launch) -> Exec {
        Exec {
            container: launch.container.clone(),
            exec: ExecId(1),
            args: vec!["/b".into(), "c".into()],
            env: vec!["A=2".into()],
            cwd: "/tmp".into(),
            user: None,
            timeout_ns: 0,
            tty: false,
            size: None,
        }
    }

    #[test]
    fn a_further_process_is_confined_as_the_first() {
        let launch = launch(|s| s["process"]["noNewPrivileges"] = true.into());
        let process = process(&exec(&launch), &launch, &USER, "/h");
        assert_eq!(process["args"], json!(["/b", "c"]));
        assert_eq!(process["env"], json!(["A=2", "HOME=/h"]));
        assert_eq!((&process["cwd"], &process["noNewPrivileges"]), (&json!("/tmp"), &json!(true)));
        assert_eq!(process["capabilities"]["bounding"], json!(["CAP_CHOWN", "CAP_KILL"]));
        assert_eq!((&process["terminal"], process.get("consoleSize")), (&json!(false), None));
    }

    #[test]
    fn a_terminal_has_its_size_from_the_start() {
        let launch = launch(|s| s["process"]["consoleSize"] = json!({"height": 1, "width": 2}));
        let mut exec = exec(&launch);
        exec.tty = true;
        let size = |exec: &Exec| process(exec, &launch, &USER, "/h").get("consoleSize").cloned();
        assert_eq!(size(&exec), None);
        exec.size = Some(TerminalSize { columns: 91, rows: 17 });
        assert_eq!(size(&exec), Some(json!({"height": 17, "width": 91})));
    }
}
