//! The security contexts of a CRI request, checked and converted. Pure; `convert` says what is honoured by what is there anyway.

use super::convert::{refuse, target};
use crate::criapi::security_profile::ProfileType;
use crate::criapi::{
    IdMapping, Int64Value, LinuxContainerSecurityContext, LinuxSandboxSecurityContext, Mount, NamespaceMode as Mode,
    NamespaceOption, SeLinuxOption, SecurityProfile, SupplementalGroupsPolicy,
};
use crate::error::{Error, Result};
use crate::state::model::{
    AppArmorProfile, IdMap, IdRange, NamespaceMode, Namespaces, PodConfig, SeccompProfile, Security, SelinuxOptions,
    UserNamespace,
};

/// Refuses what would have to be done to the pause process, and cannot be.
pub(super) fn refuse_sandbox_security(context: &LinuxSandboxSecurityContext) -> Result<()> {
    if context.run_as_group.is_some() && context.run_as_user.is_none() {
        return Err(Error::invalid("config.linux.security_context.run_as_group needs run_as_user"));
    }
    // Pause runs no program of an image, and has nothing that a profile could keep it from.
    apparmor(context.apparmor.as_ref(), "").map(|_| ())
}

/// What of a label is asked for; the policy is asked when the pod is made.
pub(super) fn selinux(options: Option<SeLinuxOption>) -> Result<SelinuxOptions> {
    let SeLinuxOption { user, role, r#type, level } = options.unwrap_or_default();
    let options = SelinuxOptions { user, role, kind: r#type, level };
    if let Some((name, text)) = options.parts().into_iter().find(|(name, text)| !SelinuxOptions::is_part(name, text)) {
        let message = format!("security_context.selinux_options.{name}: {text:?} cannot be part of a label");
        return Err(Error::invalid(message));
    }
    Ok(options)
}

/// `old` is the deprecated field, which counts when the profile is absent.
fn apparmor(profile: Option<&SecurityProfile>, old: &str) -> Result<AppArmorProfile> {
    let localhost = |name: &str| {
        // The deprecated field has the prefix, and so have clients that fill the new one from it.
        let name = name.strip_prefix("localhost/").unwrap_or(name);
        if AppArmorProfile::is_name(name) {
            return Ok(AppArmorProfile::Localhost(name.to_owned()));
        }
        Err(Error::invalid(format!("security_context.apparmor: {name:?} is no name of a profile")))
    };
    match profile {
        Some(profile) => match profile_type("apparmor", profile)? {
            ProfileType::RuntimeDefault => Ok(AppArmorProfile::RuntimeDefault),
            ProfileType::Unconfined => Ok(AppArmorProfile::Unconfined),
            ProfileType::Localhost => localhost(&profile.localhost_ref),
        },
        None => match old {
            "" => Ok(AppArmorProfile::Unset),
            "unconfined" => Ok(AppArmorProfile::Unconfined),
            "runtime/default" => Ok(AppArmorProfile::RuntimeDefault),
            name if name.starts_with("localhost/") => localhost(name),
            other => Err(Error::invalid(format!("security_context.apparmor_profile: {other:?} is none"))),
        },
    }
}

fn profile_type(field: &str, profile: &SecurityProfile) -> Result<ProfileType> {
    let wrong = |why: &str| Error::invalid(format!("security_context.{field}: {why}"));
    let kind = ProfileType::try_from(profile.profile_type).map_err(|_| wrong("a profile_type that is none"))?;
    if kind != ProfileType::Localhost && !profile.localhost_ref.is_empty() {
        return Err(wrong("localhost_ref is for profile_type Localhost only"));
    }
    Ok(kind)
}

fn mode(field: &str, number: i32) -> Result<Mode> {
    Mode::try_from(number).map_err(|_| Error::invalid(format!("namespace_options.{field}: {number} is no mode")))
}

/// A pod's namespaces. Without any option all are the pod's, as the zero of the interface says.
pub(super) fn pod_namespaces(options: Option<&NamespaceOption>) -> Result<Namespaces> {
    let Some(options) = options else { return Ok(Namespaces::default()) };
    let user = user_namespace(options)?;
    let own_or_host = |field: &str, number| match mode(field, number)? {
        Mode::Pod => Ok(NamespaceMode::Pod),
        Mode::Node => Ok(NamespaceMode::Node),
        Mode::Container | Mode::Target => {
            Err(Error::invalid(format!("namespace_options.{field}: a pod's is POD or NODE")))
        }
    };
    Ok(Namespaces {
        network: own_or_host("network", options.network)?,
        pid: match mode("pid", options.pid)? {
            Mode::Container => NamespaceMode::Container,
            _ => own_or_host("pid", options.pid)?,
        },
        ipc: own_or_host("ipc", options.ipc)?,
        user,
    })
}

/// The mappings that clients (the kubelet) have chosen: one each, from 0 on.
fn user_namespace(options: &NamespaceOption) -> Result<UserNamespace> {
    let Some(asked) = &options.userns_options else { return Ok(UserNamespace::Host) };
    let at = |why: String| Error::invalid(format!("namespace_options.userns_options: {why}"));
    match mode("userns_options.mode", asked.mode)? {
        Mode::Node if asked.uids.is_empty() && asked.gids.is_empty() => Ok(UserNamespace::Host),
        Mode::Pod => match (id_range(&asked.uids), id_range(&asked.gids)) {
            (Ok(uids), Ok(gids)) => Ok(UserNamespace::Mapped(IdMap { uids, gids })),
            (Err(why), _) => Err(at(format!("uids: {why}"))),
            (_, Err(why)) => Err(at(format!("gids: {why}"))),
        },
        _ => Err(at("the mode is POD with mappings, or NODE without".to_owned())),
    }
}

fn id_range(mappings: &[IdMapping]) -> Result<IdRange, String> {
    match mappings {
        [IdMapping { container_id: 0, host_id, length }] => IdRange::new(*host_id, *length)
            .ok_or_else(|| format!("{length} ids from {host_id} on: a range has neither the host's root nor 2^32-1")),
        [one] => Err(format!("it begins with {} of the container, and not with 0, its root", one.container_id)),
        several => Err(format!("{} mappings; there is one", several.len())),
    }
}

/// Whether a mount is to be seen through the pod's ids.
pub(super) fn is_idmapped(mount: &Mount, pod: &PodConfig) -> Result<bool> {
    if mount.uid_mappings.is_empty() && mount.gid_mappings.is_empty() {
        return Ok(false);
    }
    let asked = (id_range(&mount.uid_mappings), id_range(&mount.gid_mappings));
    match (pod.namespaces.user.map(), asked) {
        (Some(map), (Ok(uids), Ok(gids))) if map == (IdMap { uids, gids }) => Ok(true),
        _ => {
            let path = &mount.container_path;
            Err(refuse(
                &format!("mount {path:?}: uidMappings, gidMappings"),
                "other ids than those of the pod's user namespace",
            ))
        }
    }
}

/// The pid namespace of another container, if that is asked for. All else must be as the pod has it: it is shared.
fn pid_target(options: Option<&NamespaceOption>, pod: &PodConfig) -> Result<Option<crate::id::ContainerId>> {
    let Some(options) = options else { return Ok(None) };
    let differs = |field: &str| {
        Err(Error::invalid(format!("namespace_options.{field}: differs from the pod's, which its containers share")))
    };
    let as_pod = |field: &str, number, pods: &NamespaceMode| {
        let same = match mode(field, number)? {
            Mode::Pod => *pods == NamespaceMode::Pod,
            Mode::Container => *pods == NamespaceMode::Container,
            Mode::Node => *pods == NamespaceMode::Node,
            Mode::Target => false,
        };
        if same { Ok(()) } else { differs(field) }
    };
    if options.userns_options.is_some() && user_namespace(options)? != pod.namespaces.user {
        differs("userns_options")?;
    }
    as_pod("network", options.network, &pod.namespaces.network)?;
    as_pod("ipc", options.ipc, &pod.namespaces.ipc)?;
    if mode("pid", options.pid)? == Mode::Target {
        return target(&options.target_id).map(Some);
    }
    as_pod("pid", options.pid, &pod.namespaces.pid)?;
    Ok(None)
}

fn id(field: &str, value: i64) -> Result<u32> {
    // 2^32-1 is no id: chown(2) and setresuid(2) take it for "leave as it is".
    u32::try_from(value)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| Error::invalid(format!("security_context.{field}: {value} is no id")))
}

/// A container's security context.
pub(super) fn container_security(context: LinuxContainerSecurityContext, pod: &PodConfig) -> Result<Security> {
    #[allow(deprecated, reason = "older clients fill only these")]
    let (old_apparmor, old_seccomp) = (context.apparmor_profile.clone(), context.seccomp_profile_path.clone());
    let privileged = context.privileged;
    let optional = |field: &str, value: Option<Int64Value>| value.map(|v| id(field, v.value)).transpose();
    let capabilities = context.capabilities.unwrap_or_default();
    let strict_groups = match SupplementalGroupsPolicy::try_from(context.supplemental_groups_policy) {
        Ok(SupplementalGroupsPolicy::Merge) => false,
        Ok(SupplementalGroupsPolicy::Strict) => true,
        Err(_) => return Err(Error::invalid("security_context.supplemental_groups_policy is none")),
    };
    let run_as_user = optional("run_as_user", context.run_as_user)?;
    let run_as_group = optional("run_as_group", context.run_as_group)?;
    if run_as_group.is_some() && run_as_user.is_none() && context.run_as_username.is_empty() {
        return Err(Error::invalid("security_context.run_as_group needs run_as_user or run_as_username"));
    }
    Ok(Security {
        privileged,
        run_as_user,
        run_as_group,
        run_as_username: context.run_as_username,
        run_as_non_root: false, // the kubelet looks at the image's user itself
        supplemental_groups: context
            .supplemental_groups
            .into_iter()
            .map(|group| id("supplemental_groups", group))
            .collect::<Result<_>>()?,
        strict_groups,
        add_capabilities: capabilities.add_capabilities,
        drop_capabilities: capabilities.drop_capabilities,
        ambient_capabilities: capabilities.add_ambient_capabilities,
        no_new_privs: context.no_new_privs,
        readonly_rootfs: context.readonly_rootfs,
        masked_paths: context.masked_paths,
        readonly_paths: context.readonly_paths,
        seccomp: if privileged { SeccompProfile::Unconfined } else { seccomp(context.seccomp.as_ref(), &old_seccomp)? },
        apparmor: apparmor(context.apparmor.as_ref(), &old_apparmor)?,
        selinux: selinux(context.selinux_options)?,
        pid_target: pid_target(context.namespace_options.as_ref(), pod)?,
        rlimits: Vec::new(),
    })
}

/// Absent is unconfined. `old` is the deprecated path, which counts then.
fn seccomp(profile: Option<&SecurityProfile>, old: &str) -> Result<SeccompProfile> {
    let localhost = |path: &str| {
        // Some clients keep the prefix that the deprecated field had.
        let path = path.strip_prefix("localhost/").unwrap_or(path);
        if path.starts_with('/') {
            return Ok(SeccompProfile::Localhost(path.into()));
        }
        Err(Error::invalid(format!("security_context.seccomp: the profile {path:?} is not an absolute path")))
    };
    match profile {
        Some(profile) => match profile_type("seccomp", profile)? {
            ProfileType::RuntimeDefault => Ok(SeccompProfile::RuntimeDefault),
            ProfileType::Unconfined => Ok(SeccompProfile::Unconfined),
            ProfileType::Localhost => localhost(&profile.localhost_ref),
        },
        None => match old {
            "" | "unconfined" => Ok(SeccompProfile::Unconfined),
            "runtime/default" | "docker/default" => Ok(SeccompProfile::RuntimeDefault),
            path if path.starts_with("localhost/") => localhost(path),
            other => Err(Error::invalid(format!("security_context.seccomp_profile_path: {other:?} is none"))),
        },
    }
}
