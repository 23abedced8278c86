//! Workloads as pods: of a Deployment, Job and their like, one pod of its template (`run --template`).
//!
//! A document is rewritten before it is read, value by value with its place, so that a pod of a template is read and judged like any
//! other; its fields are told as the pod's (`spec.containers`), in the line where they stand. What a controller does with the rest of a workload
//! (replicas, selector, schedule, retries) is not looked at: nothing here controls.

use super::problem::{Problems, Spot};
use super::yaml::{Entry, Node, Value};

/// Kinds with a template, their version, and where the template is.
const WORKLOADS: &[(&str, &str, &[&str])] = &[
    ("Deployment", "apps/v1", &["spec", "template"]),
    ("DaemonSet", "apps/v1", &["spec", "template"]),
    ("StatefulSet", "apps/v1", &["spec", "template"]),
    ("ReplicaSet", "apps/v1", &["spec", "template"]),
    ("ReplicationController", "v1", &["spec", "template"]),
    ("Job", "batch/v1", &["spec", "template"]),
    ("CronJob", "batch/v1", &["spec", "jobTemplate", "spec", "template"]),
];

/// Whether objects of this kind have a template.
pub(super) fn has_one(kind: &str) -> bool {
    WORKLOADS.iter().any(|(known, ..)| *known == kind)
}

/// The document with a pod in place of each workload, in lists as well. A workload that is wrong is told, and left as it is.
pub(super) fn pods_of(problems: &Problems, mut document: Node) -> Node {
    let text = |node: Option<&Node>| match node.map(|n| &n.value) {
        Some(Value::Scalar { text, .. }) => text.clone(),
        _ => String::new(),
    };
    let kind = text(document.get("kind"));
    if kind == "List" {
        let Value::Map(entries) = &mut document.value else { return document };
        for items in entries.iter_mut().filter(|e| e.key == "items") {
            if let Value::Seq(items) = &mut items.value.value {
                *items = std::mem::take(items).into_iter().map(|item| pods_of(problems, item)).collect();
            }
        }
        return document;
    }
    let Some((_, version, path)) = WORKLOADS.iter().find(|(known, ..)| *known == kind) else { return document };
    let place = |key: &str| Spot { at: document.get(key).map_or(document.at, |n| n.at), path: key.to_owned() };
    let given = text(document.get("apiVersion"));
    if given != *version {
        let message = format!("no version of {kind}");
        problems.wrong(&place("apiVersion"), &given, message, format!("write {version}"));
        return document;
    }
    let template = path.iter().try_fold(&document, |node, key| node.get(key));
    let Some(template) = template else {
        let spot = Spot { path: path.join("."), ..place("spec") };
        problems.add(&spot, "missing", format!("add it, {kind} needs one"));
        return document;
    };
    pod(&document, template)
}

/// The pod that a controller would make of a template, with the workload's own name.
fn pod(workload: &Node, template: &Node) -> Node {
    let scalar = |text: &str| Node { at: workload.at, value: Value::Scalar { text: text.to_owned(), plain: true } };
    let entry = |key: &str, value: Node| Entry { key: key.to_owned(), at: value.at, value };
    let entries = |node: Option<&Node>| match node.map(|n| &n.value) {
        Some(Value::Map(entries)) => entries.clone(),
        _ => Vec::new(),
    };
    let named = |entry: &Entry| ["name", "namespace"].contains(&entry.key.as_str());
    let mut metadata: Vec<Entry> = entries(workload.get("metadata")).into_iter().filter(&named).collect();
    metadata.extend(entries(template.get("metadata")).into_iter().filter(|e| !named(e)));
    let at = workload.get("metadata").map_or(workload.at, |n| n.at);
    let metadata = Node { at, value: Value::Map(metadata) };
    let own = [entry("apiVersion", scalar("v1")), entry("kind", scalar("Pod")), entry("metadata", metadata)];
    let rest = entries(Some(template)).into_iter().filter(|e| e.key != "metadata");
    Node { at: template.at, value: Value::Map(own.into_iter().chain(rest).collect()) }
}

#[cfg(test)]
mod tests {
    use crate::agent::manifest::{load, load_templates};

    const POD: &str = "{metadata: {name: ignored, labels: {app: a}}, spec: {containers: [{name: c, image: i}]}}";

    fn workload(kind: &str, version: &str, spec: &str) -> String {
        format!(
            "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: web, namespace: shop, labels: {{of: it}}}}\nspec: {spec}\n"
        )
    }

    #[test]
    fn a_workload_is_a_pod_of_its_template_with_its_own_name() {
        let template = format!("{{replicas: 3, template: {POD}}}");
        let cron = format!("{{schedule: '* * * * *', jobTemplate: {{spec: {template}}}}}");
        for (kind, version, spec) in
            [("Deployment", "apps/v1", &template), ("Job", "batch/v1", &template), ("CronJob", "batch/v1", &cron)]
        {
            let text = workload(kind, version, spec);
            let manifest = load_templates(text.as_bytes(), "f").unwrap_or_else(|e| panic!("{kind}: {e}"));
            let metadata = &manifest.pods[0].metadata;
            assert_eq!((metadata.name.as_str(), metadata.namespace.as_str()), ("web", "shop"), "{kind}");
            assert_eq!(metadata.labels.clone().into_iter().collect::<Vec<_>>(), [("app".to_owned(), "a".to_owned())]);
            assert!(
                load(text.as_bytes(), "f").expect_err("not asked for").to_string().contains("--template"),
                "{kind}"
            );
        }
    }

    #[test]
    fn pods_and_lists_beside_it_are_read_as_ever() {
        let item =
            format!("{{apiVersion: apps/v1, kind: ReplicaSet, metadata: {{name: b}}, spec: {{template: {POD}}}}}");
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec: {{containers: [{{name: c, image: i}}]}}\n---\n\
             apiVersion: v1\nkind: List\nitems: [{item}]\n"
        );
        let pods = load_templates(text.as_bytes(), "f").unwrap_or_else(|e| panic!("{e}")).pods;
        assert_eq!(pods.iter().map(|p| p.metadata.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn what_is_wrong_is_told_in_the_line_where_it_stands() {
        let bad = workload(
            "Deployment",
            "apps/v1",
            "\n  template:\n    spec:\n      containers:\n      - {name: c, imge: i}",
        );
        for (text, told) in [
            (bad.as_str(), "f:8:19: spec.containers[0].imge"),
            (
                &workload("Deployment", "v1", "{}"),
                "f:1:13: apiVersion = \"v1\": no version of Deployment; write apps/v1",
            ),
            (&workload("Job", "batch/v1", "{}"), "f:4:7: spec.template: missing; add it, Job needs one"),
        ] {
            let e = load_templates(text.as_bytes(), "f").expect_err(told).to_string();
            assert!(e.contains(told), "{e}");
        }
    }
}
