//! Typed access to a YAML tree: every getter reports what is wrong, with place and remedy, and goes on.
//!
//! A getter returns `None` both for a field that is absent (or null, which is the same in the API) and for one that is wrong; in
//! the latter case the problem is told and the file is refused at the end, so no caller needs to tell the two apart.

use super::problem::{At, Mark, Problems, Spot, did_you_mean, join};
use super::quantity::Quantity;
use super::schema::{Object, Use};
use super::yaml::{self, Entry, Node, Value};

/// Items of one list: lists are looked through for each other's names. Arguments of a command are the longest in practice.
const MAX_ITEMS: usize = 4096;

/// A value in the tree, and what the field is called.
#[derive(Debug, Clone)]
pub struct Field<'a> {
    problems: &'a Problems,
    pub node: &'a Node,
    pub path: String,
}

/// An object whose field names were checked.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    problems: &'a Problems,
    entries: &'a [Entry],
    pub spot: Spot,
    object: &'static Object,
}

impl<'a> Field<'a> {
    /// `node` as the field called `path`.
    pub fn new(problems: &'a Problems, node: &'a Node, path: impl Into<String>) -> Self {
        Field { problems, node, path: path.into() }
    }

    /// Place and name.
    pub fn spot(&self) -> Spot {
        Spot { at: self.node.at, path: self.path.clone() }
    }

    /// Who collects problems.
    pub fn problems(&self) -> &'a Problems {
        self.problems
    }

    /// The field of this path, and where it stands: a simple value itself, else its key; `None` if it is absent.
    pub fn locate(&self, path: &str) -> Option<(Mark, &'a Node)> {
        let mut rest = path.strip_prefix(self.path.as_str())?;
        let (mut node, mut at) = (self.node, self.node.at);
        while !rest.is_empty() {
            if let Some(index) = rest.strip_prefix('[') {
                let (number, after) = index.split_once(']')?;
                let Value::Seq(items) = &node.value else { return None };
                node = items.get(number.parse::<usize>().ok()?)?;
                (at, rest) = (node.at, after);
                continue;
            }
            rest = rest.strip_prefix('.').unwrap_or(rest);
            let Value::Map(entries) = &node.value else { return None };
            let mut found = entries.iter().filter_map(|e| Some((e, rest.strip_prefix(quoted(&e.key).as_str())?)));
            let (entry, after) = found.find(|(_, after)| after.is_empty() || after.starts_with(['.', '[']))?;
            node = &entry.value;
            // A value on the key's line is what the reader looks for; an object below it is found by its key.
            at = if matches!(node.value, Value::Scalar { .. }) { node.at } else { entry.at };
            rest = after;
        }
        Some((at, node))
    }

    /// Tells that the value is wrong.
    pub fn wrong(&self, message: impl Into<String>, remedy: impl Into<String>) {
        match &self.node.value {
            Value::Scalar { text, .. } => self.problems.wrong(&self.spot(), text, message, remedy),
            _ => self.problems.add(&self.spot(), message, remedy),
        }
    }

    fn expected(&self, what: &str, remedy: impl Into<String>) {
        self.wrong(format!("{} where {what} is due", self.node.kind()), remedy);
    }

    /// A string; a plain scalar that YAML 1.1 takes for something else is refused, as the API server does.
    pub fn string(&self) -> Option<String> {
        match &self.node.value {
            Value::Scalar { text, plain: false } => Some(text.clone()),
            Value::Scalar { text, .. } if yaml::as_bool(text).is_none() && !yaml::looks_numeric(text) => {
                Some(text.clone())
            }
            Value::Scalar { text, .. } => {
                self.expected("a string", format!("put it in quotes: {text:?}"));
                None
            }
            _ => {
                self.expected("a string", "write one");
                None
            }
        }
    }

    /// A string and its place.
    pub fn string_at(&self) -> Option<At<String>> {
        Some(At { value: self.string()?, spot: self.spot() })
    }

    /// `true` or `false`.
    pub fn bool(&self) -> Option<bool> {
        let value = match &self.node.value {
            Value::Scalar { text, plain: true } => yaml::as_bool(text),
            _ => None,
        };
        if value.is_none() {
            self.expected("a boolean", "write true or false, without quotes");
        }
        value
    }

    /// An integer of `min` to `max`.
    pub fn int(&self, min: i64, max: i64) -> Option<i64> {
        let value = match &self.node.value {
            Value::Scalar { text, plain: true } => yaml::as_int(text),
            _ => None,
        };
        match value {
            None => self.expected("an integer", format!("write a whole number of {min} to {max}, without quotes")),
            Some(n) if n < min || n > max => {
                self.wrong("out of range", format!("write a number of {min} to {max}"));
                return None;
            }
            Some(_) => {}
        }
        value
    }

    /// An integer of 0 to `max`.
    pub fn unsigned(&self, max: u32) -> Option<u32> {
        self.int(0, i64::from(max)).and_then(|n| u32::try_from(n).ok())
    }

    /// A quantity, quoted or not.
    pub fn quantity(&self) -> Option<At<Quantity>> {
        let Value::Scalar { text, .. } = &self.node.value else {
            self.expected("a quantity", "write one like 250m or 64Mi");
            return None;
        };
        match text.parse() {
            Ok(value) => Some(At { value, spot: self.spot() }),
            Err(error) => {
                self.wrong(error.message, error.remedy);
                None
            }
        }
    }

    /// One of `choices`, exactly.
    pub fn choice<T: Copy>(&self, choices: &[(&'static str, T)]) -> Option<T> {
        let text = self.string()?;
        let found = choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        if found.is_none() {
            let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
            let all = names.iter().map(|n| if n.is_empty() { "\"\"" } else { n }).collect::<Vec<_>>().join(", ");
            let remedy = match did_you_mean(&text, names) {
                Some(meant) => format!("did you mean {meant}? it is one of {all}"),
                None => format!("write one of {all}"),
            };
            self.wrong("not a value of this field", remedy);
        }
        found
    }

    /// The items of a list.
    pub fn items(&self) -> Vec<Field<'a>> {
        match &self.node.value {
            Value::Seq(items) if items.len() > MAX_ITEMS => {
                self.wrong(format!("{} items", items.len()), format!("write at most {MAX_ITEMS}"));
                Vec::new()
            }
            Value::Seq(items) => items
                .iter()
                .enumerate()
                .map(|(index, node)| Field::new(self.problems, node, format!("{}[{index}]", self.path)))
                .collect(),
            _ => {
                self.expected("a list", "begin each item with \"- \"");
                Vec::new()
            }
        }
    }

    /// The strings of a list.
    pub fn strings(&self) -> Vec<String> {
        self.items().iter().filter_map(Field::string).collect()
    }

    /// The entries of a map with free keys; the key's place comes with it. Null values stay out.
    pub fn entries(&self) -> Vec<(&'a str, Mark, Field<'a>)> {
        match &self.node.value {
            Value::Map(entries) => entries
                .iter()
                .filter(|e| e.value.value != Value::Null)
                .map(|e| (e.key.as_str(), e.at, Field::new(self.problems, &e.value, join(&self.path, &quoted(&e.key)))))
                .collect(),
            _ => {
                self.expected("an object", "write name: value, a line each");
                Vec::new()
            }
        }
    }

    /// An object of the schema: its field names are checked here, all of them.
    pub fn object(&self, object: &'static Object) -> Option<Fields<'a>> {
        let Value::Map(entries) = &self.node.value else {
            self.expected(&format!("an object ({})", object.name), "write name: value, a line each");
            return None;
        };
        for entry in entries {
            self.check(entry, object);
        }
        Some(Fields { problems: self.problems, entries, spot: self.spot(), object })
    }

    fn check(&self, entry: &Entry, object: &'static Object) {
        let spot = Spot { at: entry.at, path: join(&self.path, &entry.key) };
        match object.find(&entry.key) {
            None => {
                let meant = if self.problems.is_full() { None } else { did_you_mean(&entry.key, object.names()) };
                let remedy = match meant {
                    Some(meant) => format!("did you mean {meant}?"),
                    None => "remove it, or look up its name and place with kubectl explain".to_owned(),
                };
                self.problems.wrong(&spot, &entry.key, format!("{} has no such field", object.name), remedy);
            }
            Some(Use::Refused(remedy)) if entry.value.value != Value::Null => {
                let remedy = if remedy.is_empty() { "remove the field to run the pod without it" } else { remedy };
                self.problems.add(&spot, "not honoured by this podwright", remedy);
            }
            Some(_) => {}
        }
    }
}

/// A free key as it reads in a path: as it is, or quoted where it has a dot.
fn quoted(key: &str) -> String {
    if key.contains('.') { format!("{key:?}") } else { key.to_owned() }
}

impl<'a> Fields<'a> {
    /// The field called `name`, unless it is absent or null.
    pub fn get(&self, name: &'static str) -> Option<Field<'a>> {
        debug_assert!(
            self.object.find(name) == Some(Use::Honoured),
            "{} {name} is not in the schema",
            self.object.name
        );
        let entry = self.entries.iter().find(|e| e.key == name)?;
        (entry.value.value != Value::Null).then(|| Field::new(self.problems, &entry.value, self.path_of(name)))
    }

    /// The same, and a problem if it is absent.
    pub fn need(&self, name: &'static str) -> Option<Field<'a>> {
        let field = self.get(name);
        if field.is_none() {
            let spot = Spot { at: self.spot.at, path: self.path_of(name) };
            self.problems.add(&spot, "missing", format!("add it, {} needs one", self.object.name));
        }
        field
    }

    fn path_of(&self, name: &str) -> String {
        join(&self.spot.path, name)
    }

    /// A string field that may be absent.
    pub fn string(&self, name: &'static str) -> Option<String> {
        self.get(name)?.string()
    }

    /// A boolean field, `false` when absent.
    pub fn flag(&self, name: &'static str) -> bool {
        self.get(name).and_then(|f| f.bool()).unwrap_or(false)
    }

    /// A list field's strings.
    pub fn strings(&self, name: &'static str) -> Vec<String> {
        self.get(name).map(|f| f.strings()).unwrap_or_default()
    }

    /// A list field's items.
    pub fn items(&self, name: &'static str) -> Vec<Field<'a>> {
        self.get(name).map(|f| f.items()).unwrap_or_default()
    }

    /// Who collects problems.
    pub fn problems(&self) -> &'a Problems {
        self.problems
    }
}
