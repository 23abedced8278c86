//! From the tree to the security contexts of pods and containers.

use super::decode::checked;
use super::names;
use super::pod::{ContainerSecurity, PodSecurity, RunAs, Seccomp};
use super::problem::{At, did_you_mean};
use super::read::{Field, Fields};
use super::schema;
use crate::state::model::{AppArmorProfile, SelinuxOptions};

/// The largest id Kubernetes admits (validation.go): -1 means "no change" to the kernel.
const MAX_ID: u32 = i32::MAX.unsigned_abs();

/// capabilities(7), without `CAP_`.
const CAPABILITIES: &[&str] = &[
    "ALL",
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

/// securityContext of a pod.
pub(super) fn pod(field: &Field<'_>) -> Option<PodSecurity> {
    let fields = field.object(&schema::POD_SECURITY)?;
    if let Some(policy) = fields.get("seLinuxChangePolicy") {
        // Of both the outcome is the same: a volume that is one pod's own has its label, and no volume here is mounted for a pod.
        policy.choice(&[("Recursive", ()), ("MountOption", ())]);
    }
    Some(PodSecurity {
        run_as: run_as(&fields),
        seccomp: fields.get("seccompProfile").and_then(|f| seccomp(&f)),
        apparmor: fields.get("appArmorProfile").and_then(|f| apparmor(&f)),
        selinux: fields.get("seLinuxOptions").and_then(|f| selinux(&f)),
        fs_group: fields.get("fsGroup").and_then(|f| f.unsigned(MAX_ID)),
        supplemental_groups: fields.items("supplementalGroups").iter().filter_map(|f| f.unsigned(MAX_ID)).collect(),
        strict_groups: fields
            .get("supplementalGroupsPolicy")
            .and_then(|f| f.choice(&[("Merge", false), ("Strict", true)]))
            .unwrap_or(false),
        sysctls: fields.items("sysctls").iter().filter_map(sysctl).collect(),
    })
}

fn sysctl(field: &Field<'_>) -> Option<(At<String>, String)> {
    let fields = field.object(&schema::SYSCTL)?;
    let name = fields.need("name")?;
    let dotted = names::sysctl(&checked(&name, names::sysctl)?).ok()?;
    Some((At { value: dotted, spot: name.spot() }, fields.need("value")?.string()?))
}

/// securityContext of a container.
pub(super) fn container(field: &Field<'_>) -> Option<ContainerSecurity> {
    let fields = field.object(&schema::SECURITY)?;
    let capabilities = fields.get("capabilities").and_then(|f| f.object(&schema::CAPABILITIES));
    let list = |name| -> Vec<String> {
        capabilities.iter().flat_map(|c| c.items(name)).filter_map(|f| capability(&f)).collect()
    };
    let unmasked = fields.get("procMount").and_then(|f| f.choice(&[("Default", false), ("Unmasked", true)]));
    Some(ContainerSecurity {
        spot: field.spot(),
        run_as: run_as(&fields),
        seccomp: fields.get("seccompProfile").and_then(|f| seccomp(&f)),
        apparmor: fields.get("appArmorProfile").and_then(|f| apparmor(&f)),
        selinux: fields.get("seLinuxOptions").and_then(|f| selinux(&f)),
        proc_unmasked: unmasked.unwrap_or(false),
        privileged: fields.flag("privileged"),
        allow_privilege_escalation: fields.get("allowPrivilegeEscalation").and_then(|f| f.bool()),
        read_only_root: fields.flag("readOnlyRootFilesystem"),
        add: list("add"),
        drop: list("drop"),
    })
}

fn run_as(fields: &Fields<'_>) -> RunAs {
    let id = |name| {
        let field: Field<'_> = fields.get(name)?;
        Some(At { value: field.unsigned(MAX_ID)?, spot: field.spot() })
    };
    RunAs {
        user: id("runAsUser"),
        group: id("runAsGroup"),
        non_root: fields.get("runAsNonRoot").and_then(|f| f.bool()),
    }
}

fn seccomp(field: &Field<'_>) -> Option<Seccomp> {
    let fields = field.object(&schema::SECCOMP)?;
    let kind = fields.need("type")?.choice(&[("Unconfined", 0), ("RuntimeDefault", 1), ("Localhost", 2)])?;
    let profile = fields.get("localhostProfile");
    match (kind, profile) {
        (2, Some(profile)) => Some(Seccomp::Localhost(checked(&profile, names::inside)?)),
        (2, None) => {
            field.wrong("no localhostProfile", "name the profile's file");
            None
        }
        (_, Some(profile)) => {
            profile.wrong("the type is not Localhost", "leave it out, or write type: Localhost");
            None
        }
        (0, None) => Some(Seccomp::Unconfined),
        _ => Some(Seccomp::RuntimeDefault),
    }
}

/// As [`seccomp`], with the name of a profile in the kernel for a file's.
fn apparmor(field: &Field<'_>) -> Option<AppArmorProfile> {
    let fields = field.object(&schema::APPARMOR)?;
    let kind = fields.need("type")?.choice(&[("Unconfined", 0), ("RuntimeDefault", 1), ("Localhost", 2)])?;
    match (kind, fields.get("localhostProfile")) {
        (2, Some(profile)) => Some(AppArmorProfile::Localhost(checked(&profile, names::apparmor)?)),
        (2, None) => {
            field.wrong("no localhostProfile", "name the profile as the kernel has it");
            None
        }
        (_, Some(profile)) => {
            profile.wrong("the type is not Localhost", "leave it out, or write type: Localhost");
            None
        }
        (0, None) => Some(AppArmorProfile::Unconfined),
        _ => Some(AppArmorProfile::RuntimeDefault),
    }
}

/// What the policy knows is the kernel's to say, when the pod is made.
fn selinux(field: &Field<'_>) -> Option<SelinuxOptions> {
    let fields = field.object(&schema::SELINUX)?;
    let part = |name, check: fn(&str) -> Result<(), names::Wrong>| match fields.get(name) {
        Some(part) => checked(&part, check),
        None => Some(String::new()),
    };
    Some(SelinuxOptions {
        user: part("user", |text| names::selinux("user", text))?,
        role: part("role", |text| names::selinux("role", text))?,
        kind: part("type", |text| names::selinux("type", text))?,
        level: part("level", |text| names::selinux("level", text))?,
    })
}

fn capability(field: &Field<'_>) -> Option<String> {
    let text = field.string()?;
    let name = text.strip_prefix("CAP_").unwrap_or(&text);
    if CAPABILITIES.contains(&name) {
        return Some(name.to_owned());
    }
    let remedy = match did_you_mean(name, CAPABILITIES.iter().copied()) {
        Some(meant) => format!("did you mean {meant}?"),
        None => "capabilities(7) has the names; write them without CAP_".to_owned(),
    };
    field.wrong("no capability", remedy);
    None
}
