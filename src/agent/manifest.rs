//! A manifest file: its documents and their kinds. The entry: [`load`].
//!
//! Pods, lists of them, and the ConfigMaps and Secrets they name. Everything else is refused by kind and line. A pod's own
//! fields are read in `decode`, and judged together in `validate`.

use super::decode;
use super::names;
use super::objects::{Objects, Source};
use super::pod::Pod;
use super::problem::{ManifestErrors, Mark, Problems, Spot, did_you_mean};
use super::read::{Field, Fields};
use super::schema::{self, Object};
use super::validate;
use super::yaml::{self, Node, Value};

/// Pods of one file. A node runs 110 by default (kubelet's maxPods).
const MAX_PODS: usize = 1000;

/// What a file holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    /// In the order of the file.
    pub pods: Vec<Pod>,
    pub objects: Objects,
}

/// Reads a manifest of at most [`yaml::MAX_BYTES`], YAML or JSON. `file` is its name for messages.
///
/// # Errors
/// Everything that is wrong with it (up to [`MAX_PROBLEMS`](super::problem::MAX_PROBLEMS)): each with line, column, field, value
/// and remedy.
pub fn load(bytes: &[u8], file: &str) -> Result<Manifest, ManifestErrors> {
    let problems = Problems::new(file.into());
    let mut manifest = Manifest::default();
    let documents = yaml::parse(&problems, bytes);
    if documents.as_ref().is_some_and(Vec::is_empty) {
        let spot = Spot { at: Mark { line: 1, column: 1 }, path: String::new() };
        problems.add(&spot, "no document", "write a Pod (apiVersion: v1, kind: Pod)");
    }
    let documents = documents.unwrap_or_default();
    let mut trees = Vec::new();
    for document in &documents {
        read(&Field::new(&problems, document, ""), &mut manifest, &mut trees);
    }
    for (index, pod) in manifest.pods.iter().enumerate() {
        let same =
            |p: &&Pod| (&p.metadata.name, &p.metadata.namespace) == (&pod.metadata.name, &pod.metadata.namespace);
        if let Some(first) = manifest.pods[..index].iter().find(same).filter(|_| !pod.metadata.name.is_empty()) {
            let message = format!("a second pod of this name, the first is in line {}", first.spot.at.line);
            problems.wrong(&pod.spot.below("metadata.name"), &pod.metadata.name, message, "rename or remove one");
        }
    }
    if problems.is_empty() {
        // Only then, for a check across fields would repeat in other words what a field's own check has said.
        for (pod, tree) in manifest.pods.iter().zip(&trees) {
            validate::pod(tree, pod, &manifest.objects);
        }
    }
    problems.finish(manifest)
}

/// What a document may be.
enum Kind {
    Pod,
    List,
    ConfigMap,
    Secret,
}

/// Reads a document, or an item of a list. `trees` gets that of each pod.
fn read<'a>(field: &Field<'a>, manifest: &mut Manifest, trees: &mut Vec<Field<'a>>) {
    if !matches!(field.node.value, Value::Map(_)) {
        field.wrong(format!("{} where an object is due", field.node.kind()), "write a Pod (apiVersion: v1, kind: Pod)");
        return;
    }
    let result = match kind_of(field) {
        Some(Kind::Pod) => pod(field, manifest, trees),
        Some(Kind::List) => list(field, manifest, trees),
        Some(Kind::ConfigMap) => object(field, &schema::CONFIG_MAP, manifest),
        Some(Kind::Secret) => object(field, &schema::SECRET, manifest),
        None => None,
    };
    let _ = result; // None: a problem was told
}

/// The document's kind, if it is one that is read here.
fn kind_of(field: &Field<'_>) -> Option<Kind> {
    let text = |name: &str| match field.node.get(name).map(|n| &n.value) {
        Some(Value::Scalar { text, .. }) => Some(text.as_str()),
        _ => None,
    };
    let (version, kind) = (text("apiVersion"), text("kind"));
    let place = |name: &str| Spot {
        at: field.node.get(name).map_or(field.node.at, |n| n.at),
        path: super::problem::join(&field.path, name),
    };
    let Some(kind) = kind else {
        match misspelt(field, "kind") {
            Some((key, at)) => {
                let spot = Spot { at, path: super::problem::join(&field.path, key) };
                field.problems().wrong(&spot, key, "no object has such a field", "did you mean kind?");
            }
            None => field.problems().add(&place("kind"), "missing", "write kind: Pod"),
        }
        return None;
    };
    let known = match kind {
        "Pod" => Kind::Pod,
        "List" | "PodList" => Kind::List,
        "ConfigMap" => Kind::ConfigMap,
        "Secret" => Kind::Secret,
        _ => {
            refuse_kind(field, version.unwrap_or_default(), kind, &place("kind"));
            return None;
        }
    };
    match version {
        Some("v1") => {}
        Some(other) => {
            field.problems().wrong(&place("apiVersion"), other, format!("no version of {kind}"), "write v1");
        }
        // A misspelt one is told with the other unknown fields.
        None if misspelt(field, "apiVersion").is_some() => {}
        None => field.problems().add(&place("apiVersion"), "missing", "write apiVersion: v1"),
    }
    Some(known)
}

/// The key that was probably meant to be `name`.
fn misspelt<'a>(field: &Field<'a>, name: &'static str) -> Option<(&'a str, Mark)> {
    let Value::Map(entries) = &field.node.value else { return None };
    let mut candidates = entries.iter().filter(|e| e.key != name && schema::POD.find(&e.key).is_none());
    candidates.find(|e| did_you_mean(&e.key, [name]).is_some()).map(|e| (e.key.as_str(), e.at))
}

fn refuse_kind(field: &Field<'_>, version: &str, kind: &str, spot: &Spot) {
    const TEMPLATES: [&str; 7] =
        ["Deployment", "DaemonSet", "StatefulSet", "ReplicaSet", "ReplicationController", "Job", "CronJob"];
    const LATER: [&str; 4] = ["LimitRange", "ResourceQuota", "RuntimeClass", "PriorityClass"];
    let problems = field.problems();
    if LATER.contains(&kind) {
        problems.wrong(spot, kind, "this kind is not honoured by this podwright", "remove the document");
    } else if TEMPLATES.contains(&kind) {
        let message = format!("{version} {kind} needs a controller, which is not here");
        problems.wrong(spot, kind, message, "write its pod template as a Pod");
    } else {
        let remedy = match did_you_mean(kind, ["Pod", "List", "PodList", "ConfigMap", "Secret"]) {
            Some(meant) => format!("did you mean {meant}?"),
            None => "kinds read here are Pod, List, ConfigMap and Secret; remove the document".to_owned(),
        };
        problems.wrong(spot, kind, "not a kind that is read here", remedy);
    }
}

fn list<'a>(field: &Field<'a>, manifest: &mut Manifest, trees: &mut Vec<Field<'a>>) -> Option<()> {
    let fields = field.object(&schema::LIST)?;
    fields.need("items")?.items().iter().for_each(|item| read(item, manifest, trees));
    Some(())
}

fn pod<'a>(field: &Field<'a>, manifest: &mut Manifest, trees: &mut Vec<Field<'a>>) -> Option<()> {
    if manifest.pods.len() >= MAX_PODS {
        field.wrong(format!("more than {MAX_PODS} pods in a file"), "split the file");
        return None;
    }
    let fields = field.object(&schema::POD)?;
    let metadata = decode::metadata(&fields);
    let spec = decode::spec(&fields.need("spec")?.object(&schema::POD_SPEC)?);
    trees.push(field.clone());
    manifest.pods.push(Pod {
        file: field.problems().file(),
        spot: field.spot(),
        metadata,
        content_hash: content_hash(field.node),
        spec,
    });
    Some(())
}

fn object(field: &Field<'_>, schema: &'static Object, manifest: &mut Manifest) -> Option<()> {
    let fields = field.object(schema)?;
    let secret = schema.name == "Secret";
    let metadata = decode::metadata(&fields);
    let mut source = Source { at: field.node.at, ..Source::default() };
    if secret {
        keys(&fields, "data", true, |key, value| source.text.insert(key, value));
        keys(&fields, "stringData", false, |key, value| source.text.insert(key, value));
    } else {
        keys(&fields, "data", false, |key, value| source.text.insert(key, value));
        keys(&fields, "binaryData", true, |key, value| source.binary.insert(key, value));
    }
    if let Some(both) = source.binary.keys().find(|k| source.text.contains_key(*k)) {
        field.wrong(format!("key {both:?} is in data and in binaryData"), "remove one of the two");
    }
    if let Some(first) = manifest.objects.add(secret, &metadata, source) {
        let message = format!("a second {} of this name, the first is in line {}", schema.name, first.line);
        field.problems().wrong(&field.spot().below("metadata.name"), &metadata.name, message, "rename or remove one");
    }
    Some(())
}

fn keys<T>(fields: &Fields<'_>, name: &'static str, encoded: bool, mut add: impl FnMut(String, Vec<u8>) -> T) {
    for (key, at, value) in fields.get(name).map(|f| f.entries()).unwrap_or_default() {
        if let Err((message, remedy)) = names::key(key) {
            fields.problems().wrong(&Spot { at, path: value.path.clone() }, key, message, remedy);
        }
        let Some(text) = value.string() else { continue };
        let bytes = if encoded { super::objects::base64(&text) } else { Some(text.into_bytes()) };
        match bytes {
            Some(bytes) => drop(add(key.to_owned(), bytes)),
            // Not `wrong`: the value of a secret stays out of messages.
            None => fields.problems().add(&value.spot(), "not base64", "encode it, or move it to a plain text field"),
        }
    }
}

/// 128-bit FNV-1a (draft-eastlake-fnv) of what a document says: keys, values and structure, without places and quotes.
fn content_hash(node: &Node) -> u128 {
    let mut hash = super::fnv::Fnv::default();
    add(&mut hash, node);
    return hash.value();

    fn add(hash: &mut super::fnv::Fnv, node: &Node) {
        match &node.value {
            Value::Null => hash.add(b"n"),
            Value::Scalar { text, .. } => hash.text(b's', text),
            Value::Seq(items) => {
                hash.text(b'l', &items.len().to_string());
                items.iter().for_each(|n| add(hash, n));
            }
            Value::Map(entries) => {
                let mut sorted: Vec<_> = entries.iter().collect();
                sorted.sort_by(|a, b| a.key.cmp(&b.key));
                hash.text(b'm', &sorted.len().to_string());
                for entry in sorted {
                    hash.text(b'k', &entry.key);
                    add(hash, &entry.value);
                }
            }
        }
    }
}
