//! proto/runtime.v1.proto against the table of the interface, both ways; src/criapi.rs, src/ownapi.rs and src/nriapi.rs against what is
//! generated from the three protos.
//!
//! The generated files are committed, so that a build needs neither protoc nor a build script. After a change of a proto:
//! `PODWRIGHT_BLESS=1 cargo test --test cli_proto`.

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto};
use std::collections::BTreeSet;
use std::path::PathBuf;

const PACKAGE: &str = "runtime.v1";

/// A generated file: its package, where it is, and what stands above what is generated.
const GENERATED: &[(&str, &str, &str)] = &[
    (
        "runtime.v1",
        "src/criapi.rs",
        "\
//! Generated from proto/runtime.v1.proto by tests/cli_proto.rs, and checked by it; not to be edited.
//!
//! The messages of the CRI, its two services and their clients. Nothing here decides anything.

",
    ),
    (
        "podwright.v1",
        "src/ownapi.rs",
        "\
//! Generated from proto/podwright.v1.proto by tests/cli_proto.rs, and checked by it; not to be edited.
//!
//! What podwright's commands and its daemon say to each other. Nothing here decides anything.

",
    ),
    (
        "nri.pkg.api.v1alpha1",
        "src/nriapi.rs",
        "\
//! Generated from proto/nri.pkg.api.v1alpha1.proto by tests/cli_proto.rs, and checked by it; not to be edited.
//!
//! The messages of the Node Resource Interface. Nothing here decides anything.

",
    ),
];

fn top() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

fn descriptor() -> prost_types::FileDescriptorSet {
    protox::compile(GENERATED.iter().map(|(package, _, _)| format!("{package}.proto")), [top().join("proto")])
        .unwrap_or_else(|e| panic!("{e:?}"))
}

/// A line of the table: kind, parent, name, number, type, label.
type Row = [String; 6];

fn row(kind: &str, parent: &str, name: &str, number: impl ToString, of: &str, label: &str) -> Row {
    [kind, parent, name, &number.to_string(), of, label].map(str::to_owned)
}

fn table() -> BTreeSet<Row> {
    let text = include_str!("fixtures/cri-v1.tsv");
    let cells = |line: &str| {
        let mut cells = line.split('\t').map(str::to_owned);
        std::array::from_fn(|_| cells.next().unwrap_or_default())
    };
    text.lines().skip(1).map(cells).collect()
}

/// The last part of `.runtime.v1.Name`.
fn short(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

fn service_rows(file: &FileDescriptorProto, rows: &mut BTreeSet<Row>) {
    for service in &file.service {
        rows.insert(row("service", PACKAGE, service.name(), "", "", ""));
        for method in &service.method {
            assert!(!method.client_streaming(), "{}: no method of the CRI streams requests", method.name());
            let of = format!("{} -> {}", short(method.input_type()), short(method.output_type()));
            let label = if method.server_streaming() { "server-stream" } else { "unary" };
            rows.insert(row("rpc", service.name(), method.name(), "", &of, label));
        }
    }
}

fn enum_rows(of: &EnumDescriptorProto, parent: &str, rows: &mut BTreeSet<Row>) {
    let name = format!("{parent}{}", of.name());
    rows.insert(row("enum", "", &name, "", "", ""));
    rows.extend(of.value.iter().map(|value| row("enum", &name, value.name(), value.number(), "", "")));
}

fn message_rows(message: &DescriptorProto, rows: &mut BTreeSet<Row>) {
    rows.insert(row("message", "", message.name(), "", "", ""));
    for nested in &message.enum_type {
        enum_rows(nested, &format!("{}.", message.name()), rows);
    }
    for field in &message.field {
        let map = message.nested_type.iter().find(|n| {
            n.options.as_ref().is_some_and(|o| o.map_entry()) && field.type_name().ends_with(&format!(".{}", n.name()))
        });
        let (of, label) = match map {
            Some(entry) => {
                let types: Vec<String> = entry.field.iter().map(scalar).collect();
                (format!("map<{}>", types.join(",")), "map".to_owned())
            }
            None => (scalar(field), label(field)),
        };
        rows.insert(row("message", message.name(), field.name(), field.number(), &of, &label));
    }
}

fn scalar(field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message | Type::Enum => short(field.type_name()).to_owned(),
        other => other.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    }
}

fn label(field: &FieldDescriptorProto) -> String {
    if field.label() == Label::Repeated {
        return "repeated".to_owned();
    }
    // The descriptor that we read with is older than debug_redact: the proto's own text has it.
    let redact = format!(" {} = {} [debug_redact = true];", field.name(), field.number());
    if field.options.as_ref().is_some_and(|options| options.deprecated()) {
        "[deprecated=true]".to_owned()
    } else if include_str!("../proto/runtime.v1.proto").contains(&redact) {
        "[debug_redact=true]".to_owned()
    } else {
        String::new()
    }
}

#[test]
fn the_proto_is_the_whole_interface_and_nothing_else() {
    let set = descriptor();
    let file = set.file.iter().find(|f| f.package() == PACKAGE).expect("the package");
    let mut rows = BTreeSet::new();
    service_rows(file, &mut rows);
    for message in &file.message_type {
        message_rows(message, &mut rows);
    }
    for of in &file.enum_type {
        enum_rows(of, "", &mut rows);
    }
    let table = table();
    let show = |rows: Vec<&Row>| rows.iter().map(|row| row.join(" ")).collect::<Vec<_>>().join("\n  ");
    let missing = show(table.difference(&rows).collect());
    let surplus = show(rows.difference(&table).collect());
    assert!(missing.is_empty() && surplus.is_empty(), "not in the proto:\n  {missing}\nnot in the table:\n  {surplus}");
    assert!(rows.len() > 780, "the table has {} rows", rows.len());
}

#[test]
fn the_generated_files_are_what_the_protos_say() {
    let temp = tempfile::tempdir().expect("tempdir");
    tonic_prost_build::configure()
        .out_dir(temp.path())
        .build_transport(false)
        .btree_map(".")
        // Its Debug would print passwords: src/cri/mod.rs has one that does not.
        .skip_debug([".runtime.v1.AuthConfig"])
        .compile_fds(descriptor())
        .expect("generate");
    for (package, path, header) in GENERATED {
        let generated = std::fs::read_to_string(temp.path().join(format!("{package}.rs"))).expect("generated");
        let wanted = format!("{header}{generated}");
        if std::env::var_os("PODWRIGHT_BLESS").is_some() {
            std::fs::write(top().join(path), &wanted).expect("write what is generated");
        }
        let found = std::fs::read_to_string(top().join(path)).unwrap_or_default();
        assert!(found == wanted, "{path} is not what its proto says: PODWRIGHT_BLESS=1 cargo test --test cli_proto");
    }
}
