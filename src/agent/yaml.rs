//! YAML (and so JSON) as a tree in which every key and value knows its line and column.
//!
//! A tree of our own and not serde, because serde's error stops at the first problem and a check made after decoding (limits
//! below requests) no longer knows where the value stood. The events come from the parser below serde-saphyr. What YAML has
//! beyond JSON and manifests use is here: anchors and merge keys, expanded under a budget. Types are not: a scalar keeps its text
//! and whether it was quoted, and whoever reads a field decides. Plain scalars then mean what kubectl's YAML 1.1 reader makes of
//! them (`yes`, `0644`); the strings that it would turn into something else are refused where a string is due.

use super::problem::{Mark, Problems, Spot};
use granit_parser::{Event, Parser, ScalarStyle, Span, Tag};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

/// Bytes of one manifest; what the kubelet reads of a file (pkg/kubelet/config/common.go).
pub const MAX_BYTES: usize = 10 << 20;
/// Nodes of one stream, aliases expanded: every node costs about a hundred bytes of memory.
const MAX_NODES: usize = 500_000;
/// Bytes that aliases may add to a stream.
const MAX_ALIAS_BYTES: usize = 10 << 20;
/// Nested collections; a pod has about ten.
const MAX_DEPTH: usize = 64;

/// A value and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub at: Mark,
    pub value: Value,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// `null`, `~` or nothing.
    Null,
    /// `plain`: it was not quoted, so that `5` is a number and `true` a boolean.
    Scalar {
        text: String,
        plain: bool,
    },
    Seq(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key and its value; keys of one map differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub at: Mark,
    pub value: Node,
}

impl Node {
    /// The value of `key`, if this is a map that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|e| e.key == key).map(|e| &e.value),
            _ => None,
        }
    }

    /// What this is, for a message: `a list`.
    pub fn kind(&self) -> &'static str {
        match &self.value {
            Value::Null => "null",
            Value::Scalar { plain: false, .. } => "a string",
            Value::Scalar { text, .. } if as_bool(text).is_some() => "a boolean",
            Value::Scalar { text, .. } if looks_numeric(text) => "a number",
            Value::Scalar { .. } => "a string",
            Value::Seq(_) => "a list",
            Value::Map(_) => "an object",
        }
    }

    /// Nodes in and below this, their depth, and the bytes of their text.
    fn measure(&self) -> Size {
        let mut size = Size { nodes: 1, depth: 1, bytes: 0 };
        let mut add = |child: &Node, key: usize| {
            let below = child.measure();
            size.nodes += below.nodes;
            size.depth = size.depth.max(below.depth + 1);
            size.bytes += below.bytes + key;
        };
        match &self.value {
            Value::Null => {}
            Value::Scalar { text, .. } => size.bytes = text.len(),
            Value::Seq(items) => items.iter().for_each(|n| add(n, 0)),
            Value::Map(entries) => entries.iter().for_each(|e| add(&e.value, e.key.len())),
        }
        size
    }
}

#[derive(Debug, Clone, Copy)]
struct Size {
    nodes: usize,
    depth: usize,
    bytes: usize,
}

/// A plain scalar as a boolean of YAML 1.1 (yaml.org/type/bool.html, as go-yaml reads it).
pub fn as_bool(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => Some(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => Some(false),
        _ => None,
    }
}

/// A plain scalar as an integer of YAML 1.1: decimal, `0644` and `0o644` octal, `0x1f`, `0b1`.
pub fn as_int(text: &str) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x', ..] => (16, &digits[2..]),
        [b'0', b'o', ..] => (8, &digits[2..]),
        [b'0', b'b', ..] => (2, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let value = i64::from_str_radix(digits, radix).ok()?;
    Some(if negative { -value } else { value })
}

/// Whether a YAML 1.1 reader would take this plain scalar for a number.
pub fn looks_numeric(text: &str) -> bool {
    if as_int(text).is_some() {
        return true;
    }
    let numeric = text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.'))
        && text.bytes().any(|b| b.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E'));
    (numeric && text.parse::<f64>().is_ok()) || matches!(text, ".inf" | "-.inf" | "+.inf" | ".nan" | ".NaN" | ".Inf")
}

/// The documents of a stream that are not empty. `None` when it cannot be read on; then a problem says where and why.
pub fn parse(problems: &Problems, bytes: &[u8]) -> Option<Vec<Node>> {
    let start = Spot { at: Mark { line: 1, column: 1 }, path: String::new() };
    if bytes.len() > MAX_BYTES {
        let size = format!("the file has {} bytes, the bound is {MAX_BYTES}", bytes.len());
        problems.add(&start, size, "split it");
        return None;
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
        Err(error) => {
            let spot = Spot { at: place_of(bytes, error.valid_up_to()), path: String::new() };
            problems.add(&spot, "not UTF-8", "save the file as UTF-8 (is it a binary or compressed file?)");
            return None;
        }
    };
    if let Some(index) = text.bytes().position(|b| b < b' ' && !matches!(b, b'\t' | b'\n' | b'\r')) {
        let spot = Spot { at: place_of(text.as_bytes(), index), path: String::new() };
        let byte = text.as_bytes()[index];
        problems.add(
            &spot,
            format!("control character 0x{byte:02x}"),
            "remove it, or write an escape in double quotes",
        );
        return None;
    }
    let mut options = granit_parser::options! { flow_nesting_limit: MAX_DEPTH, block_nesting_limit: MAX_DEPTH };
    options.set_emit_comments(false);
    let mut tree = Tree::new(problems);
    for next in Parser::new_from_str_with_options(text, options) {
        match next {
            Ok((event, span)) => tree.event(event, span)?,
            Err(error) => {
                let mark = *error.marker();
                let at = Mark { line: mark.line().max(1), column: mark.col() + 1 };
                let line = text.lines().nth(at.line - 1).unwrap_or_default();
                let remedy = if line.trim_start_matches(' ').starts_with('\t') {
                    "indent with spaces, YAML has no tabs there"
                } else {
                    "look at the indentation, the quotes and the colons there and in the line before"
                };
                problems.add(&Spot { at, path: String::new() }, format!("not YAML: {}", error.info()), remedy);
                return None;
            }
        }
    }
    Some(tree.documents)
}

/// Line and column of the byte at `index`.
fn place_of(bytes: &[u8], index: usize) -> Mark {
    let before = &bytes[..index.min(bytes.len())];
    let line = before.iter().filter(|b| **b == b'\n').count() + 1;
    let start = before.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
    Mark { line, column: String::from_utf8_lossy(&before[start..]).chars().count() + 1 }
}

/// A collection that is not closed yet.
enum Open {
    Seq(Vec<Node>),
    Map { entries: Vec<Entry>, key: Option<(String, Mark)> },
}

struct Level {
    at: Mark,
    anchor: usize,
    open: Open,
}

/// Builds documents from events; iterative, so that no input can exhaust the stack.
struct Tree<'p> {
    problems: &'p Problems,
    levels: Vec<Level>,
    anchors: HashMap<usize, (Node, Size)>,
    documents: Vec<Node>,
    nodes: usize,
    alias_bytes: usize,
}

impl<'p> Tree<'p> {
    fn new(problems: &'p Problems) -> Self {
        Tree { problems, levels: Vec::new(), anchors: HashMap::new(), documents: Vec::new(), nodes: 0, alias_bytes: 0 }
    }

    fn stop(&self, at: Mark, message: impl Into<String>, remedy: &str) -> Option<()> {
        self.problems.add(&Spot { at, path: String::new() }, message, remedy);
        None
    }

    /// `None` when reading cannot go on; the problem was told.
    fn event(&mut self, event: Event<'_>, span: Span) -> Option<()> {
        let at = Mark { line: span.start.line().max(1), column: span.start.col() + 1 };
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && !is_string_tag(tag.as_deref());
                self.check_tag(tag.as_ref(), at);
                let null = plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                let value = if null { Value::Null } else { Value::Scalar { text: text.into_owned(), plain } };
                self.close(Node { at, value }, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.check_tag(tag.as_ref(), at);
                self.open(at, anchor, Open::Seq(Vec::new()))
            }
            Event::MappingStart(_, anchor, tag) => {
                self.check_tag(tag.as_ref(), at);
                self.open(at, anchor, Open::Map { entries: Vec::new(), key: None })
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let level = self.levels.pop()?;
                let value = match level.open {
                    Open::Seq(items) => Value::Seq(items),
                    Open::Map { entries, .. } => Value::Map(self.finish_map(entries)),
                };
                self.close(Node { at: level.at, value }, level.anchor)
            }
            Event::Alias(id) => {
                let Some((node, size)) = self.anchors.get(&id) else {
                    return self.stop(at, "an alias inside its own anchor", "write the value out");
                };
                let (node, size) = (node.clone_at(at), *size);
                self.nodes += size.nodes;
                self.alias_bytes += size.bytes;
                if self.alias_bytes > MAX_ALIAS_BYTES || self.levels.len() + size.depth > MAX_DEPTH {
                    return self.stop(at, "aliases expand to more than a manifest can be", "write the values out");
                }
                self.close(node, 0)
            }
            Event::DocumentStart(..) => {
                self.anchors.clear();
                Some(())
            }
            _ => Some(()),
        }
    }

    fn check_tag(&self, tag: Option<&Cow<'_, Tag>>, at: Mark) {
        if let Some(tag) = tag.filter(|t| !is_string_tag(Some(t))) {
            let spot = Spot { at, path: String::new() };
            self.problems.wrong(&spot, &tag.original(), "tags mean nothing in a manifest", "remove the tag");
        }
    }

    fn open(&mut self, at: Mark, anchor: usize, open: Open) -> Option<()> {
        if self.levels.len() >= MAX_DEPTH {
            return self.stop(at, format!("more than {MAX_DEPTH} nested collections"), "no pod is that deep");
        }
        if matches!(self.levels.last(), Some(Level { open: Open::Map { key: None, .. }, .. })) {
            return self.stop(at, "a list or an object as a key", "keys are strings");
        }
        self.levels.push(Level { at, anchor, open });
        Some(())
    }

    /// Puts a finished node where it belongs.
    fn close(&mut self, node: Node, anchor: usize) -> Option<()> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return self.stop(node.at, format!("more than {MAX_NODES} values"), "split the file");
        }
        if anchor != 0 {
            let size = node.measure();
            self.alias_bytes += size.bytes; // an anchor is a copy as well
            if self.alias_bytes > MAX_ALIAS_BYTES {
                return self.stop(node.at, "anchors hold more than a manifest can be", "write the values out");
            }
            self.anchors.insert(anchor, (node.clone(), size));
        }
        match self.levels.last_mut() {
            None => {
                if node.value != Value::Null {
                    self.documents.push(node);
                }
            }
            Some(Level { open: Open::Seq(items), .. }) => items.push(node),
            Some(Level { open: Open::Map { entries, key }, .. }) => match key.take() {
                Some((key, at)) => entries.push(Entry { key, at, value: node }),
                None => match node.value {
                    Value::Scalar { text, .. } => *key = Some((text, node.at)),
                    _ => return self.stop(node.at, "a key that is not a string", "keys are strings"),
                },
            },
        }
        Some(())
    }

    /// Merges `<<` and refuses keys that stand twice.
    fn finish_map(&self, entries: Vec<Entry>) -> Vec<Entry> {
        let mut seen: HashMap<&str, Mark> = HashMap::new();
        for entry in &entries {
            if let Some(first) = seen.insert(&entry.key, entry.at) {
                let message = format!("the key stands twice, first in line {}", first.line);
                let spot = Spot { at: entry.at, path: String::new() };
                self.problems.wrong(&spot, &entry.key, message, "remove one of the two");
            }
        }
        if !seen.contains_key("<<") {
            return entries;
        }
        let (merges, mut result): (Vec<_>, Vec<_>) = entries.into_iter().partition(|e| e.key == "<<");
        let sources = merges.into_iter().flat_map(|e| match e.value.value {
            Value::Seq(items) => items,
            _ => vec![e.value],
        });
        for source in sources {
            match source.value {
                Value::Map(more) => {
                    let known: HashSet<&str> = result.iter().map(|e| e.key.as_str()).collect();
                    let new: Vec<_> = more.into_iter().filter(|m| !known.contains(m.key.as_str())).collect();
                    result.extend(new);
                }
                _ => {
                    let spot = Spot { at: source.at, path: "<<".into() };
                    self.problems.add(&spot, "only an object can be merged", "merge an alias of an object");
                }
            }
        }
        result
    }
}

impl Node {
    /// A copy that claims to stand where the alias stands; what is below it keeps its own place.
    fn clone_at(&self, at: Mark) -> Node {
        Node { at, value: self.value.clone() }
    }
}

fn is_string_tag(tag: Option<&Tag>) -> bool {
    tag.is_some_and(|t| t.is_yaml_core_schema_tag("str"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Node>, String> {
        let problems = Problems::new("f".into());
        let documents = parse(&problems, text.as_bytes());
        problems.finish(documents.unwrap_or_default()).map_err(|e| e.to_string())
    }

    fn text_of(node: &Node) -> &str {
        match &node.value {
            Value::Scalar { text, .. } => text,
            other => panic!("{other:?} is no scalar"),
        }
    }

    #[test]
    fn every_key_and_value_knows_its_place() {
        let documents = read("a: 1\nb:\n  - x\n  - {c: \"y\"}\n---\n---\nd: 2\n").expect("valid");
        assert_eq!(documents.len(), 2, "an empty document is none");
        let Value::Map(entries) = &documents[0].value else { panic!("a map") };
        assert_eq!((entries[1].at, entries[0].value.at), (Mark { line: 2, column: 1 }, Mark { line: 1, column: 4 }));
        let Value::Seq(items) = &entries[1].value.value else { panic!("a list") };
        assert_eq!(items[1].get("c").expect("present").at, Mark { line: 4, column: 9 });
    }

    #[test]
    fn json_with_tabs_escapes_and_surrogates_is_read_as_json() {
        let documents =
            read("{\n\t\"a\": \"\\u00e9\\ud83d\\ude00\\/\",\n\t\"b\": [1, true, null]\n}\n").expect("valid");
        assert_eq!(text_of(documents[0].get("a").expect("present")), "\u{e9}\u{1f600}/");
        let Value::Seq(items) = &documents[0].get("b").expect("present").value else { panic!("a list") };
        assert_eq!(items[2].value, Value::Null);
    }

    #[test]
    fn a_key_that_stands_twice_is_refused_with_both_lines() {
        let error = read("a: 1\nb: 2\na: 3\n").expect_err("twice");
        assert!(error.starts_with("f:3:1: \"a\": the key stands twice, first in line 1"), "{error}");
    }

    #[test]
    fn an_alias_bomb_stops_at_the_budget() {
        let mut text = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for i in 1..30 {
            let list = vec![format!("*a{}", i - 1); 10].join(",");
            text.push_str(&format!("a{i}: &a{i} [{list}]\n"));
        }
        let error = read(&text).expect_err("ten to the thirtieth");
        assert!(error.contains("more than"), "{error}");
        let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), vec!["*a"; 100].join(","));
        assert!(read(&long).expect_err("100 MiB").contains("aliases expand"), "bytes count as well");
    }

    #[test]
    fn nesting_is_bounded_also_through_aliases() {
        assert!(read(&"[".repeat(10_000)).is_err());
        let mut text = String::from("a0: &a0 x\n");
        for i in 1..100 {
            text.push_str(&format!("a{i}: &a{i} [*a{}]\n", i - 1));
        }
        assert!(read(&text).expect_err("100 deep").contains("aliases expand"));
    }

    #[test]
    fn merge_keys_fill_what_is_missing() {
        let documents = read("base: &b {x: 1, y: 2}\nc:\n  <<: *b\n  y: 3\n").expect("valid");
        let c = documents[0].get("c").expect("present");
        assert_eq!((text_of(c.get("x").expect("x")), text_of(c.get("y").expect("y"))), ("1", "3"));
    }

    #[test]
    fn what_is_not_text_is_refused_at_its_place() {
        let problems = Problems::new("f".into());
        assert_eq!(parse(&problems, b"a: 1\nb: \xff\n"), None);
        let error = problems.finish(()).expect_err("not UTF-8").errors.remove(0);
        assert_eq!((error.at, &*error.message), (Mark { line: 2, column: 4 }, "not UTF-8"));
        assert!(read("a: 1\nb: \0c\n").expect_err("NUL").contains("f:2:4: control character 0x00"));
        assert!(read("a:\n\tb: 1\n").expect_err("a tab").contains("indent with spaces"));
    }

    #[test]
    fn numbers_and_booleans_are_those_of_yaml_1_1() {
        for (text, value) in [("0644", 420), ("0o644", 420), ("0x1F", 31), ("-5", -5), ("0", 0), ("00", 0)] {
            assert_eq!(as_int(text), Some(value), "{text}");
        }
        for text in ["", "-", "08", "1_000", "1.0", "ten", "0x", "--1", "9223372036854775808"] {
            assert_eq!(as_int(text), None, "{text}");
        }
        assert!(looks_numeric("1e3") && looks_numeric("-0.5") && looks_numeric("9223372036854775808"));
        assert!(!looks_numeric("1.2.3") && !looks_numeric("500x") && !looks_numeric("-") && !looks_numeric("e"));
        assert_eq!((as_bool("yes"), as_bool("Off"), as_bool("y")), (Some(true), Some(false), None));
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,200}") { let _ = read(&text); }

        #[test]
        fn no_yaml_soup_panics(text in "[-a:&*\\[\\]{},#|>'\"!%\n\t ~?<0]{0,80}") { let _ = read(&text); }
    }
}
