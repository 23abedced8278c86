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
use super::template;
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
    read_all(bytes, file, false)
}

/// The same, with one pod of the template of each workload (a Deployment, a Job and their like), instead of refusing them.
///
/// # Errors
/// As [`load`].
pub fn load_templates(bytes: &[u8], file: &str) -> Result<Manifest, ManifestErrors> {
    read_all(bytes, file, true)
}

fn read_all(bytes: &[u8], file: &str, templates: bool) -> Result<Manifest, ManifestErrors> {
    let problems = Problems::new(file.into());
    let mut manifest = Manifest::default();
    let documents = yaml::parse(&problems, bytes);
    if documents.as_ref().is_some_and(Vec::is_empty) {
        let spot = Spot { at: Mark { line: 1, column: 1 }, path: String::new() };
        problems.add(&spot, "no document", "write a Pod (apiVersion: v1, kind: Pod)");
    }
    let mut documents = documents.unwrap_or_default();
    if templates {
        documents = documents.into_iter().map(|document| template::pods_of(&problems, document)).collect();
        if !problems.is_empty() {
            return problems.finish(manifest); // or what was left as it is would be refused by kind as well
        }
    }
    let mut trees = Vec::new();
    for document in &documents {
        read(&Field::new(&problems, document, ""), &mut manifest, &mut trees);
    }
    for (index, pod) in manifest.pods.iter().enumerate() {
        let same =
            |p: &&Pod| (&p.metadata.name, &p.metadata.namespace) == (&pod.metadata.name, &pod.metadata.namespace);
        if let Some(first) = manifest.pods[..index].iter().find(same).filter(|_| !pod.metadata.name.is_empty()) {
            let message = format!("a second pod of this name, the first is in line {}", first.spot.at.line);
            let mut spot = pod.spot.below("metadata.name");
            spot.at = trees.get(index).and_then(|t| t.locate(&spot.path)).map_or(spot.at, |(at, _)| at);
            problems.wrong(&spot, &pod.metadata.name, message, "rename or remove one");
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
    const LATER: [&str; 3] = ["LimitRange", "ResourceQuota", "PriorityClass"];
    let problems = field.problems();
    if LATER.contains(&kind) {
        problems.wrong(spot, kind, "this kind is not honoured by this podwright", "remove the document");
    } else if kind == "RuntimeClass" {
        let remedy = "remove the document; name its handler in spec.runtimeClassName, and write its overhead.podFixed as spec.overhead";
        problems.wrong(spot, kind, "runtime handlers are those of the configuration file", remedy);
    } else if template::has_one(kind) {
        let message = format!("{version} {kind} needs a controller, which is not here");
        problems.wrong(spot, kind, message, "run one pod of its template with --template");
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
    // The API server leaves out the kind of a PodList's items: it is told by the list's.
    let of_pods = fields.string("kind").as_deref() == Some("PodList");
    for item in fields.need("items")?.items() {
        if of_pods && item.node.get("kind").is_none() && misspelt(&item, "kind").is_none() {
            let _ = pod(&item, manifest, trees); // None: a problem was told
        } else {
            read(&item, manifest, trees);
        }
    }
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
        let mut spot = field.spot().below("metadata.name");
        spot.at = field.locate(&spot.path).map_or(spot.at, |(at, _)| at);
        field.problems().wrong(&spot, &metadata.name, message, "rename or remove one");
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::{Path, PathBuf};

    fn manifests(below: &str) -> Vec<PathBuf> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/manifests").join(below);
        let entries = std::fs::read_dir(&dir).expect("the directory is there");
        let mut files: Vec<_> = entries.map(|e| e.expect("readable").path()).filter(|p| p.is_file()).collect();
        files.sort();
        files
    }

    #[test]
    fn good_manifests_are_read() {
        let files = manifests("");
        assert!(files.len() >= 4, "they are there");
        for path in files {
            let bytes = std::fs::read(&path).expect("readable");
            let manifest = load(&bytes, "f").unwrap_or_else(|e| panic!("{}:\n{e}", path.display()));
            assert_eq!(manifest.pods.len(), 1, "{}", path.display());
        }
    }

    /// Line 1 of each is a comment with the message: place, field, value, what is wrong, remedy.
    #[test]
    fn bad_manifests_are_refused_with_place_value_and_remedy() {
        let files = manifests("bad");
        assert!(files.len() >= 40, "they are there");
        let mut different = Vec::new();
        for path in files {
            let text = std::fs::read_to_string(&path).expect("readable");
            let expected = text.lines().next().and_then(|l| l.strip_prefix("# ")).expect("a comment in line 1");
            let got = load(text.as_bytes(), "f").expect_err("it is bad").to_string();
            // The place is right by itself: the value stands there.
            let parts: Vec<&str> = got.splitn(4, ':').collect();
            let number = |i: usize| parts[i].parse::<usize>().expect("a number");
            let here: String =
                text.lines().nth(number(1) - 1).unwrap_or_default().chars().skip(number(2) - 1).collect();
            let value = parts[3].split_once(" = \"").and_then(|(_, rest)| rest.split('"').next()).unwrap_or_default();
            assert!(here.trim_start_matches('"').starts_with(value), "{got}\nstands at {here}");
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !got.starts_with(&format!("f:{expected}")) || got.lines().count() != 1 {
                different.push(format!("{name}\n  expected f:{expected}\n  got      {got}"));
            }
        }
        assert!(different.is_empty(), "{}", different.join("\n"));
    }

    #[test]
    fn the_same_pod_in_yaml_and_json_is_the_same_pod() {
        let read = |name: &str| {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/manifests").join(name);
            load(&std::fs::read(path).expect("readable"), name).expect("good").pods.remove(0)
        };
        let (yaml, json) = (read("frontend.yaml"), read("frontend.json"));
        assert_eq!(yaml.content_hash, json.content_hash);
        assert_eq!(yaml.spec.containers[1].image.value, json.spec.containers[1].image.value);
    }

    #[test]
    fn the_pods_of_a_pod_list_need_no_kind() {
        let item = "{\"metadata\":{\"name\":\"N\"},\"spec\":{\"containers\":[{\"name\":\"c\",\"image\":\"i\"}]}}";
        let items = [item.replace('N', "a"), item.replace('N', "b")].join(",");
        let text = format!("{{\"kind\":\"PodList\",\"apiVersion\":\"v1\",\"items\":[{items}]}}");
        let manifest = load(text.as_bytes(), "f").unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(manifest.pods.iter().map(|p| p.metadata.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert!(load(text.replace("PodList", "List").as_bytes(), "f").is_err());
    }

    #[test]
    fn a_file_full_of_nonsense_is_refused_in_time() {
        let fields: String = (0..50_000).map(|i| format!("containrs{i}: x\n")).collect();
        let list = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n  containers: [{}]\n",
            "x,".repeat(50_000)
        );
        let start = std::time::Instant::now();
        for text in [format!("kind: Pod\napiVersion: v1\n{fields}"), list] {
            let errors = load(text.as_bytes(), "f").expect_err("nonsense");
            assert!(errors.errors.len() <= crate::agent::problem::MAX_PROBLEMS);
        }
        assert!(start.elapsed() < std::time::Duration::from_secs(20), "{:?}", start.elapsed());
    }

    #[test]
    fn everything_wrong_is_told_at_once_in_the_order_of_the_file() {
        let text =
            "apiVersion: v1\nkind: Pod\nmetadata: {name: A}\nspec:\n  containers:\n  - image: 5\n    comand: [x]\n";
        let errors = load(text.as_bytes(), "f").expect_err("bad").errors;
        let places: Vec<_> = errors.iter().map(|e| (e.at.line, &*e.path)).collect();
        let path = |field| format!("spec.containers[0].{field}");
        let expected = [(3, "metadata.name".to_owned()), (6, path("name")), (6, path("image")), (7, path("comand"))];
        assert_eq!(places, expected.iter().map(|(l, p)| (*l, p.as_str())).collect::<Vec<_>>());
    }

    /// Fields that the schema calls honoured are read: a wrong value of each is noticed, or it is named here with why not.
    #[test]
    fn every_honoured_field_of_a_pod_and_container_is_read() {
        let (mut pod_fields, mut container_fields) = (Vec::new(), Vec::new());
        for (object, indent, unread) in
            [(&schema::POD_SPEC, "  ", &mut pod_fields), (&schema::CONTAINER, "    ", &mut container_fields)]
        {
            let before = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n";
            for (name, used) in object.fields {
                let own = match *name {
                    "name" => "  containers:\n  - image: i\n".to_owned(),
                    "image" => "  containers:\n  - name: c\n".to_owned(),
                    "containers" => String::new(),
                    _ => "  containers:\n  - name: c\n    image: i\n".to_owned(),
                };
                // A list of a list is a wrong value of every field there is.
                let text = format!("{before}{own}{indent}{name}: [[[]]]\n");
                if *used == schema::Use::Honoured && load(text.as_bytes(), "f").is_ok() {
                    unread.push(*name);
                }
            }
        }
        assert_eq!((pod_fields, container_fields), (vec![], vec![]));
    }

    proptest::proptest! {
        /// Any line of a good manifest lost, doubled or damaged is read or refused, and never panics.
        #[test]
        fn no_damage_panics(line in 0usize..200, how in 0u8..5, text in "[-a-z0-9:{}\\[\\]\"'&*$(). ]{0,20}") {
            let good = include_str!("../../tests/manifests/everything.yaml");
            let mut lines: Vec<String> = good.lines().map(str::to_owned).collect();
            let line = line % lines.len();
            match how {
                0 => drop(lines.remove(line)),
                1 => lines.insert(line, lines[line].clone()),
                2 => lines[line].push_str(&text),
                3 => lines[line] = format!("{}{text}", &lines[line][..lines[line].len() / 2]),
                _ => lines.insert(line, text),
            }
            let text = lines.join("\n");
            if let Ok(manifest) = load(text.as_bytes(), "f") {
                for index in 0..manifest.pods.len() {
                    let _ = super::super::convert::plan(&manifest, index, &Default::default());
                }
            }
        }
    }
}
