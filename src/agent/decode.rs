//! From the tree to a [`Pod`]: metadata and spec. Containers, volumes and security contexts have files of their own.
//!
//! Reads each field once, with its default; what needs two fields to be judged is in `validate`.

use super::decode_container::{container, resource_list};
use super::decode_security;
use super::decode_volume::volume;
use super::names::{self, Wrong};
use super::pod::{Container, DnsConfig, DnsPolicy, Metadata, PodSpec, ResourceList, RestartPolicy};
use super::problem::{At, Spot};
use super::read::{Field, Fields};
use super::schema;
use super::yaml::Value;
use std::collections::BTreeMap;

/// Bytes of all annotations of an object (apimachinery, pkg/api/validation/objectmeta.go).
const MAX_ANNOTATION_BYTES: usize = 256 << 10;
/// Bytes of a kernel hostname, uname(2).
pub(super) const MAX_HOSTNAME: usize = 63;

/// Tells the problem that `check` finds in a string.
pub(super) fn checked<T>(field: &Field<'_>, check: fn(&str) -> Result<T, Wrong>) -> Option<String> {
    let text = field.string()?;
    if let Err((message, remedy)) = check(&text) {
        field.wrong(message, remedy);
        return None;
    }
    Some(text)
}

/// metadata of an object that needs a name; `spot` is the object's.
pub(super) fn metadata(object: &Fields<'_>) -> Metadata {
    let mut result = Metadata { namespace: "default".into(), ..Metadata::default() };
    let Some(fields) = object.need("metadata").and_then(|f| f.object(&schema::METADATA)) else {
        return result;
    };
    if let Some(name) = fields.need("name").and_then(|f| checked(&f, names::subdomain)) {
        result.name = name;
    }
    if let Some(namespace) = fields.get("namespace").and_then(|f| checked(&f, names::label)) {
        result.namespace = namespace;
    }
    result.uid = fields.get("uid").and_then(|f| checked(&f, names::uid));
    if let Some(labels) = fields.get("labels") {
        result.labels = key_values(&labels, names::label_value);
    }
    if let Some(annotations) = fields.get("annotations") {
        result.annotations = key_values(&annotations, |_| Ok(()));
        let bytes: usize = result.annotations.iter().map(|(k, v)| k.len() + v.len()).sum();
        if bytes > MAX_ANNOTATION_BYTES {
            annotations.wrong(format!("{bytes} bytes"), format!("keep annotations within {MAX_ANNOTATION_BYTES}"));
        }
    }
    result
}

fn key_values(field: &Field<'_>, check: fn(&str) -> Result<(), Wrong>) -> BTreeMap<String, String> {
    let mut result = BTreeMap::new();
    for (key, at, value) in field.entries() {
        if let Err((message, remedy)) = names::qualified(key) {
            field.problems().wrong(&Spot { at, path: field.path.clone() }, key, message, remedy);
        }
        if let Some(text) = checked(&value, check) {
            result.insert(key.to_owned(), text);
        }
    }
    result
}

const RESTART: &[(&str, RestartPolicy)] =
    &[("Always", RestartPolicy::Always), ("OnFailure", RestartPolicy::OnFailure), ("Never", RestartPolicy::Never)];

/// restartPolicy of a pod or container.
pub(super) fn restart_policy(field: &Field<'_>) -> Option<RestartPolicy> {
    field.choice(RESTART)
}

/// spec of a pod.
pub(super) fn spec(fields: &Fields<'_>) -> PodSpec {
    let host_network = fields.flag("hostNetwork");
    refuse_unless_harmless(fields);
    PodSpec {
        containers: containers(fields),
        init_containers: fields.items("initContainers").iter().filter_map(|f| container(f, host_network)).collect(),
        volumes: fields.items("volumes").iter().filter_map(volume).collect(),
        restart_policy: fields.get("restartPolicy").and_then(|f| restart_policy(&f)).unwrap_or_default(),
        termination_grace_seconds: fields
            .get("terminationGracePeriodSeconds")
            .and_then(|f| f.unsigned(i32::MAX.unsigned_abs()))
            .unwrap_or(30),
        active_deadline_seconds: fields
            .get("activeDeadlineSeconds")
            .and_then(|f| f.int(1, i64::from(i32::MAX)))
            .and_then(|n| u32::try_from(n).ok()),
        host_network,
        own_users: fields.get("hostUsers").and_then(|f| f.bool()) == Some(false),
        host_pid: fields.flag("hostPID"),
        host_ipc: fields.flag("hostIPC"),
        share_process_namespace: fields.flag("shareProcessNamespace"),
        hostname: fields.get("hostname").and_then(|f| checked(&f, names::label)),
        hostname_override: hostname_override(fields),
        host_aliases: fields.items("hostAliases").iter().filter_map(host_alias).collect(),
        dns_policy: dns_policy(fields),
        dns_config: fields.get("dnsConfig").and_then(|f| dns_config(&f)).unwrap_or_default(),
        security: fields.get("securityContext").and_then(|f| decode_security::pod(&f)).unwrap_or_default(),
        node_name: fields.get("nodeName").and_then(|f| f.string_at()),
        image_pull_secrets: fields.items("imagePullSecrets").iter().filter_map(local_ref).collect(),
        service_account: service_account(fields),
        runtime_class: fields.get("runtimeClassName").and_then(|f| {
            checked(&f, names::subdomain)?;
            f.string_at()
        }),
        overhead: overhead(fields),
    }
}

/// It is the RuntimeClass's, which an API server writes here (plugin/pkg/admission/runtimeclass).
fn overhead(fields: &Fields<'_>) -> ResourceList {
    let Some(field) = fields.get("overhead") else { return ResourceList::new() };
    if fields.get("runtimeClassName").is_none() {
        field.wrong("an overhead without a runtimeClassName", "give spec.runtimeClassName, or leave it out");
    }
    resource_list(&field)
}

/// The name of an object in the pod's namespace.
fn local_ref(field: &Field<'_>) -> Option<At<String>> {
    field.object(&schema::LOCAL_REF)?.need("name")?.string_at()
}

fn containers(fields: &Fields<'_>) -> Vec<Container> {
    let host_network = fields.flag("hostNetwork");
    let Some(list) = fields.need("containers") else { return Vec::new() };
    let items = list.items();
    if items.is_empty() {
        list.wrong("no container", "a pod needs at least one");
    }
    items.iter().filter_map(|f| container(f, host_network)).collect()
}

/// Fields that are accepted with one value only.
fn refuse_unless_harmless(fields: &Fields<'_>) {
    if let Some(field) = fields.get("automountServiceAccountToken").filter(|f| f.bool() == Some(true)) {
        field.wrong("there is no API server to give tokens", "write false, or leave it out");
    }
    if let Some(field) = fields.get("setHostnameAsFQDN").filter(|f| f.bool() == Some(true)) {
        field.wrong("not honoured by this podwright: there is no cluster domain", "use hostnameOverride");
    }
    let os = fields.get("os").and_then(|f| f.object(&schema::OS));
    if let Some(name) = os.and_then(|f| f.need("name")).filter(|f| f.string().is_some_and(|n| n != "linux")) {
        name.wrong("another operating system", "write linux");
    }
}

/// There are no service accounts; the default one's name does no harm and can be asked for by fieldRef.
fn service_account(fields: &Fields<'_>) -> String {
    for name in ["serviceAccountName", "serviceAccount"] {
        if let Some(field) = fields.get(name).filter(|f| f.string().is_some_and(|n| n != "default" && !n.is_empty())) {
            field.wrong("there is no API server that knows the account", "leave it out");
        }
    }
    "default".to_owned()
}

fn hostname_override(fields: &Fields<'_>) -> Option<String> {
    let field = fields.get("hostnameOverride")?;
    let name = checked(&field, names::subdomain)?;
    if name.len() > MAX_HOSTNAME + 1 {
        field.wrong(format!("{} bytes", name.len()), "the kernel takes 64");
    }
    if fields.flag("hostNetwork") {
        field.wrong("hostNetwork shows the node's name", "leave out one of the two");
    }
    Some(name)
}

fn host_alias(field: &Field<'_>) -> Option<(String, Vec<String>)> {
    let fields = field.object(&schema::HOST_ALIAS)?;
    let ip = fields.need("ip").and_then(|f| checked(&f, names::ip))?;
    let names = fields.items("hostnames").iter().filter_map(|f| checked(f, names::subdomain)).collect();
    Some((ip, names))
}

fn dns_policy(fields: &Fields<'_>) -> DnsPolicy {
    let choices = &[
        ("ClusterFirst", DnsPolicy::ClusterFirst),
        ("ClusterFirstWithHostNet", DnsPolicy::ClusterFirstWithHostNet),
        ("Default", DnsPolicy::Default),
        ("None", DnsPolicy::None),
    ];
    let policy = fields.get("dnsPolicy").and_then(|f| f.choice(choices)).unwrap_or_default();
    if policy == DnsPolicy::None {
        let config = fields.get("dnsConfig");
        let servers = config.as_ref().and_then(|f| f.node.get("nameservers")).map(|n| &n.value);
        let none = !matches!(servers, Some(Value::Seq(servers)) if !servers.is_empty());
        if let Some(field) = fields.get("dnsPolicy").filter(|_| none) {
            field.wrong("no name server", "give dnsConfig.nameservers");
        }
    }
    policy
}

fn dns_config(field: &Field<'_>) -> Option<DnsConfig> {
    /// As many as reach resolv.conf (validation.go, MaxDNSNameservers).
    const MAX_SERVERS: usize = 3;
    const MAX_SEARCHES: usize = 32;
    const MAX_SEARCH_BYTES: usize = 2048;
    let fields = field.object(&schema::DNS)?;
    let servers = fields.items("nameservers");
    if let Some(fourth) = servers.get(MAX_SERVERS) {
        fourth.wrong(format!("more than {MAX_SERVERS} name servers"), "remove the others");
    }
    let searches: Vec<String> = fields
        .items("searches")
        .iter()
        .filter_map(|f| {
            checked(f, |text| if text == "." { Ok(()) } else { names::subdomain(text.trim_end_matches('.')) })
        })
        .collect();
    if searches.len() > MAX_SEARCHES || searches.join(" ").len() > MAX_SEARCH_BYTES {
        field.wrong(
            format!("more than {MAX_SEARCHES} searches or {MAX_SEARCH_BYTES} bytes of them"),
            "remove the others",
        );
    }
    let options = fields.items("options").iter().filter_map(dns_option).collect();
    Some(DnsConfig { nameservers: servers.iter().filter_map(|f| checked(f, names::ip)).collect(), searches, options })
}

fn dns_option(field: &Field<'_>) -> Option<(String, Option<String>)> {
    let word = |text: &str| {
        let good = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && b != b'#' && b != b';');
        if good { Ok(()) } else { Err(("not a word".to_owned(), "write it without spaces".to_owned())) }
    };
    let fields = field.object(&schema::DNS_OPTION)?;
    let name = fields.need("name").and_then(|f| checked(&f, word))?;
    Some((name, fields.get("value").and_then(|f| checked(&f, word))))
}
