//! From the tree to a [`Container`], its environment, ports, resources and mounts.

use super::decode::{checked, restart_policy};
use super::decode_security;
use super::names;
use super::pod::{
    Container, Env, EnvFrom, EnvValue, FieldRef, KeyRef, MessagePolicy, Port, PullPolicy, RecursiveReadOnly,
    ResourceList, ResourceRef, SubPath, VolumeMount,
};
use super::problem::{At, Spot, did_you_mean};
use super::quantity::Quantity;
use super::read::{Field, Fields};
use super::schema;
use crate::state::model::Propagation;

/// A container of either list.
pub(super) fn container(field: &Field<'_>, host_network: bool) -> Option<Container> {
    let fields = field.object(&schema::CONTAINER)?;
    let image = fields.need("image").and_then(|f| image(&f)).unwrap_or_default();
    let (limits, requests) = resources(&fields);
    Some(Container {
        spot: field.spot(),
        name: fields.need("name").and_then(|f| checked(&f, names::label)).unwrap_or_default(),
        pull_policy: pull_policy(fields.get("imagePullPolicy"), &image.value),
        image,
        command: fields.strings("command"),
        args: fields.strings("args"),
        working_dir: fields.get("workingDir").and_then(|f| checked(&f, names::absolute)).unwrap_or_default(),
        env_from: fields.items("envFrom").iter().filter_map(env_from).collect(),
        env: fields.items("env").iter().filter_map(env).collect(),
        ports: fields.items("ports").iter().filter_map(|f| port(f, host_network)).collect(),
        requests,
        limits,
        restart_policy: fields.get("restartPolicy").and_then(|f| restart_policy(&f)),
        security: fields.get("securityContext").and_then(|f| decode_security::container(&f)).unwrap_or_default(),
        stdin: fields.flag("stdin"),
        stdin_once: fields.flag("stdinOnce"),
        tty: fields.flag("tty"),
        mounts: fields.items("volumeMounts").iter().filter_map(mount).collect(),
        termination_message_path: fields
            .get("terminationMessagePath")
            .and_then(|f| checked(&f, names::mount_path))
            .unwrap_or_else(|| "/dev/termination-log".to_owned()),
        termination_message_policy: fields
            .get("terminationMessagePolicy")
            .and_then(|f| {
                f.choice(&[
                    ("File", MessagePolicy::File),
                    ("FallbackToLogsOnError", MessagePolicy::FallbackToLogsOnError),
                ])
            })
            .unwrap_or_default(),
    })
}

pub(super) fn image(field: &Field<'_>) -> Option<At<String>> {
    let image = field.string_at()?;
    if image.value.is_empty() || image.value.trim() != image.value {
        field.wrong("not an image name", "write one like nginx:1.27, without spaces around it");
        return None;
    }
    Some(image)
}

/// The default is by tag: `latest` or none is Always (pkg/apis/core/v1/defaults.go).
pub(super) fn pull_policy(given: Option<Field<'_>>, image: &str) -> PullPolicy {
    let choices =
        &[("Always", PullPolicy::Always), ("IfNotPresent", PullPolicy::IfNotPresent), ("Never", PullPolicy::Never)];
    if let Some(policy) = given.and_then(|f| f.choice(choices)) {
        return policy;
    }
    let (name, digest) = image.split_once('@').map_or((image, None), |(n, d)| (n, Some(d)));
    let last = name.rsplit('/').next().unwrap_or(name);
    match (last.split_once(':'), digest) {
        (Some((_, "latest")), _) | (None, None) => PullPolicy::Always,
        _ => PullPolicy::IfNotPresent,
    }
}

fn env_from(field: &Field<'_>) -> Option<EnvFrom> {
    let fields = field.object(&schema::ENV_FROM)?;
    let prefix = fields.get("prefix").and_then(|f| checked(&f, names::env)).unwrap_or_default();
    let (reference, secret) = match (fields.get("configMapRef"), fields.get("secretRef")) {
        (Some(map), None) => (map, false),
        (None, Some(secret)) => (secret, true),
        _ => {
            field.wrong("not exactly one source", "write one of configMapRef and secretRef");
            return None;
        }
    };
    let reference_fields = reference.object(&schema::NAME_REF)?;
    let name = reference_fields.need("name").and_then(|f| checked(&f, names::subdomain))?;
    Some(EnvFrom { prefix, secret, name, optional: reference_fields.flag("optional"), spot: reference.spot() })
}

fn env(field: &Field<'_>) -> Option<Env> {
    let fields = field.object(&schema::ENV)?;
    let name = fields.need("name").and_then(|f| checked(&f, names::env))?;
    match (fields.get("value"), fields.get("valueFrom")) {
        (Some(_), Some(from)) => {
            from.wrong("value is given as well", "write only one of the two");
            None
        }
        (Some(value), None) => Some(Env { name, value: EnvValue::Literal(value.string()?), spot: value.spot() }),
        (None, Some(from)) => {
            let (value, spot) = env_source(&from)?;
            Some(Env { name, value, spot })
        }
        (None, None) => Some(Env { name, value: EnvValue::Literal(String::new()), spot: field.spot() }),
    }
}

fn env_source(field: &Field<'_>) -> Option<(EnvValue, Spot)> {
    let fields = field.object(&schema::ENV_SOURCE)?;
    let sources = ["configMapKeyRef", "secretKeyRef", "fieldRef", "resourceFieldRef"];
    let given: Vec<_> = sources.iter().filter_map(|name| Some((*name, fields.get(name)?))).collect();
    let [(name, source)] = given.as_slice() else {
        field.wrong("not exactly one source", format!("write one of {}", sources.join(", ")));
        return None;
    };
    let value = match *name {
        "configMapKeyRef" => EnvValue::ConfigMap(key_ref(source)?),
        "secretKeyRef" => EnvValue::Secret(key_ref(source)?),
        "fieldRef" => EnvValue::Field(field_ref(source, false)?),
        _ => EnvValue::Resource(resource_ref(source, false)?),
    };
    Some((value, source.spot()))
}

fn key_ref(field: &Field<'_>) -> Option<KeyRef> {
    let fields = field.object(&schema::KEY_REF)?;
    let name = fields.need("name").and_then(|f| checked(&f, names::subdomain));
    let key = fields.need("key").and_then(|f| checked(&f, names::key));
    Some(KeyRef { name: name?, key: key?, optional: fields.flag("optional") })
}

/// fieldRef of a variable or, `in_volume`, of a file.
pub(super) fn field_ref(field: &Field<'_>, in_volume: bool) -> Option<FieldRef> {
    const EVERYWHERE: [&str; 3] = ["metadata.name", "metadata.namespace", "metadata.uid"];
    const IN_ENV: [&str; 6] = [
        "spec.nodeName",
        "spec.serviceAccountName",
        "status.hostIP",
        "status.hostIPs",
        "status.podIP",
        "status.podIPs",
    ];
    const IN_VOLUME: [&str; 2] = ["metadata.labels", "metadata.annotations"];
    let fields = field.object(&schema::FIELD_REF)?;
    if let Some(version) = fields.get("apiVersion").filter(|f| f.string().is_some_and(|v| v != "v1")) {
        version.wrong("not v1", "write v1, or leave it out");
    }
    let path = fields.need("fieldPath")?;
    let text = path.string()?;
    let found = match (text.as_str(), in_volume) {
        ("metadata.name", _) => Some(FieldRef::Name),
        ("metadata.namespace", _) => Some(FieldRef::Namespace),
        ("metadata.uid", _) => Some(FieldRef::Uid),
        ("metadata.labels", true) => Some(FieldRef::Labels),
        ("metadata.annotations", true) => Some(FieldRef::Annotations),
        ("spec.nodeName", false) => Some(FieldRef::NodeName),
        ("spec.serviceAccountName", false) => Some(FieldRef::ServiceAccountName),
        ("status.hostIP", false) => Some(FieldRef::HostIp),
        ("status.hostIPs", false) => Some(FieldRef::HostIps),
        ("status.podIP", false) => Some(FieldRef::PodIp),
        ("status.podIPs", false) => Some(FieldRef::PodIps),
        (text, _) => subscript(text, "metadata.labels")
            .map(FieldRef::Label)
            .or_else(|| subscript(text, "metadata.annotations").map(FieldRef::Annotation)),
    };
    if found.is_none() {
        let known = EVERYWHERE.iter().chain(if in_volume { &IN_VOLUME[..] } else { &IN_ENV[..] }).copied();
        let all = known.clone().collect::<Vec<_>>().join(", ");
        let remedy = match did_you_mean(&text, known) {
            Some(meant) => format!("did you mean {meant}?"),
            None => format!("write {all}, metadata.labels['KEY'] or metadata.annotations['KEY']"),
        };
        path.wrong("no field that can be asked for here", remedy);
    }
    found
}

/// `KEY` of `base['KEY']`.
fn subscript(text: &str, base: &str) -> Option<String> {
    let key = text.strip_prefix(base)?.strip_prefix("['")?.strip_suffix("']")?;
    names::qualified(key).ok().map(|()| key.to_owned())
}

/// resourceFieldRef of a variable or, `in_volume`, of a file.
pub(super) fn resource_ref(field: &Field<'_>, in_volume: bool) -> Option<ResourceRef> {
    let fields = field.object(&schema::RESOURCE_REF)?;
    let container = fields.get("containerName").and_then(|f| checked(&f, names::label));
    if in_volume && container.is_none() {
        field.wrong("no containerName", "say whose limit is meant");
    }
    let divisor = match fields.get("divisor").and_then(|f| f.quantity()) {
        Some(divisor) if divisor.value > Quantity::ZERO => divisor.value,
        _ => Quantity::from_units(1),
    };
    let resource = fields.need("resource")?;
    let text = resource.string()?;
    let (limit, name) = match text.split_once('.') {
        Some(("limits", name)) => (true, name),
        Some(("requests", name)) => (false, name),
        _ => (false, ""),
    };
    if !matches!(name, "cpu" | "memory") && !name.starts_with("hugepages-") {
        resource.wrong(
            "no resource that can be asked for",
            "write limits.cpu, limits.memory, requests.cpu or requests.memory",
        );
        return None;
    }
    Some(ResourceRef { container, limit, resource: name.to_owned(), divisor })
}

fn port(field: &Field<'_>, host_network: bool) -> Option<Port> {
    let fields = field.object(&schema::PORT)?;
    let number = |f: Field<'_>, min| f.int(min, 65535).and_then(|n| u16::try_from(n).ok());
    let container_port = fields.need("containerPort").and_then(|f| number(f, 1))?;
    let host_port = fields.get("hostPort").and_then(|f| number(f, 0)).unwrap_or_default();
    if let Some(host) = fields.get("hostPort").filter(|_| host_network && host_port != 0 && host_port != container_port)
    {
        host.wrong(
            format!("hostNetwork, and containerPort is {container_port}"),
            "write the same port or leave it out",
        );
    }
    Some(Port {
        spot: field.spot(),
        name: fields.get("name").and_then(|f| checked(&f, names::port)),
        container_port,
        host_port: if host_network { container_port } else { host_port },
        protocol: fields
            .get("protocol")
            .and_then(|f| f.choice(&[("TCP", "TCP"), ("UDP", "UDP"), ("SCTP", "SCTP")]))
            .unwrap_or("TCP"),
        host_ip: fields.get("hostIP").and_then(|f| checked(&f, names::ip)).unwrap_or_default(),
    })
}

/// Limits and requests; a limit without a request is one (pkg/apis/core/v1/defaults.go).
fn resources(fields: &Fields<'_>) -> (ResourceList, ResourceList) {
    let Some(fields) = fields.get("resources").and_then(|f| f.object(&schema::RESOURCES)) else {
        return Default::default();
    };
    let list = |name| fields.get(name).map(|f| resource_list(&f)).unwrap_or_default();
    let (limits, mut requests): (ResourceList, ResourceList) = (list("limits"), list("requests"));
    for (name, limit) in &limits {
        requests.entry(name.clone()).or_insert_with(|| limit.clone());
    }
    (limits, requests)
}

/// Quantities by the resource's name.
pub(super) fn resource_list(field: &Field<'_>) -> ResourceList {
    let mut result = ResourceList::new();
    for (name, at, value) in field.entries() {
        let spot = Spot { at, path: value.path.clone() };
        match name {
            "cpu" | "memory" => {}
            _ if name.strip_prefix("hugepages-").is_some_and(|size| size.parse::<Quantity>().is_ok()) => {}
            "ephemeral-storage" => {
                field.problems().add(&spot, "not honoured by this podwright", "remove it: nothing bounds disk usage");
            }
            _ if name.contains('/') => {
                field.problems().add(&spot, "no device plugin offers it on this node", "remove it");
            }
            _ => {
                let remedy = match did_you_mean(name, ["cpu", "memory", "ephemeral-storage", "hugepages-2Mi"]) {
                    Some(meant) => format!("did you mean {meant}?"),
                    None => "write cpu, memory or hugepages-SIZE".to_owned(),
                };
                field.problems().wrong(&spot, name, "no such resource", remedy);
            }
        }
        if let Some(quantity) = value.quantity() {
            if quantity.value.is_negative() {
                value.wrong("below zero", "write a quantity of at least 0");
                continue;
            }
            result.insert(name.to_owned(), quantity);
        }
    }
    result
}

fn mount(field: &Field<'_>) -> Option<VolumeMount> {
    let fields = field.object(&schema::MOUNT)?;
    let sub_path = |name, expand| {
        let text =
            fields.get(name).and_then(|f| checked(&f, if expand { names::sub_path_expr } else { names::inside }))?;
        Some(SubPath { text, expand })
    };
    if let Some(both) = fields.get("subPathExpr").filter(|_| fields.get("subPath").is_some()) {
        both.wrong("subPath is given as well", "write only one of the two");
    }
    let recursive = [
        ("Disabled", RecursiveReadOnly::Disabled),
        ("IfPossible", RecursiveReadOnly::IfPossible),
        ("Enabled", RecursiveReadOnly::Enabled),
    ];
    let propagation = [
        ("None", Propagation::Private),
        ("HostToContainer", Propagation::HostToContainer),
        ("Bidirectional", Propagation::Bidirectional),
    ];
    Some(VolumeMount {
        spot: field.spot(),
        name: fields.need("name").and_then(|f| f.string_at())?,
        mount_path: fields.need("mountPath").and_then(|f| checked(&f, names::mount_path))?,
        read_only: fields.flag("readOnly"),
        recursive_read_only: fields.get("recursiveReadOnly").and_then(|f| f.choice(&recursive)).unwrap_or_default(),
        propagation: fields.get("mountPropagation").and_then(|f| f.choice(&propagation)).unwrap_or_default(),
        sub_path: sub_path("subPath", false).or_else(|| sub_path("subPathExpr", true)),
    })
}
