//! YAML as JSON, as far as specifications of CDI are written in it: one document of mappings, lists and scalars of the core schema.
//! Anchors, tags and keys that stand twice are refused.

use granit_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Number, Value};

/// The deepest nesting; a specification has five levels.
const MAX_DEPTH: usize = 32;
/// The most values.
const MAX_VALUES: usize = 200_000;

enum Open {
    List(Vec<Value>),
    Object(Map<String, Value>, Option<String>),
}

/// The document of a text.
///
/// # Errors
/// What is wrong, with its line.
pub fn value(text: &str) -> Result<Value, String> {
    let mut options = granit_parser::options! { flow_nesting_limit: MAX_DEPTH, block_nesting_limit: MAX_DEPTH };
    options.set_emit_comments(false);
    let (mut open, mut documents, mut count): (Vec<Open>, Vec<Value>, usize) = (Vec::new(), Vec::new(), 0);
    for next in Parser::new_from_str_with_options(text, options) {
        let (event, span) = next.map_err(|e| format!("not YAML: line {}: {}", e.marker().line(), e.info()))?;
        let at = |what: &str| format!("line {}: {what}", span.start.line().max(1));
        let done = match event {
            Event::Scalar(text, style, anchor, tag) => {
                if anchor != 0 || tag.is_some() {
                    return Err(at("anchors and tags are not taken"));
                }
                if let Some(Open::Object(object, key @ None)) = open.last_mut() {
                    if object.contains_key(&*text) {
                        return Err(at(&format!("{text:?} stands twice")));
                    }
                    *key = Some(text.into_owned());
                    continue;
                }
                if style == ScalarStyle::Plain { plain(&text) } else { Value::String(text.into_owned()) }
            }
            Event::SequenceStart(_, anchor, tag) | Event::MappingStart(_, anchor, tag)
                if anchor != 0 || tag.is_some() =>
            {
                return Err(at("anchors and tags are not taken"));
            }
            Event::SequenceStart(..) | Event::MappingStart(..) if open.len() >= MAX_DEPTH => {
                return Err(at("nested too deeply"));
            }
            Event::SequenceStart(..) | Event::MappingStart(..)
                if matches!(open.last(), Some(Open::Object(_, None))) =>
            {
                return Err(at("a key that is no string"));
            }
            Event::SequenceStart(..) => {
                open.push(Open::List(Vec::new()));
                continue;
            }
            Event::MappingStart(..) => {
                open.push(Open::Object(Map::new(), None));
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open::List(items)) => Value::Array(items),
                Some(Open::Object(object, _)) => Value::Object(object),
                None => return Err(at("an end without a beginning")),
            },
            Event::Alias(_) => return Err(at("aliases are not taken")),
            _ => continue,
        };
        count += 1;
        if count > MAX_VALUES {
            return Err(at("too many values"));
        }
        match open.last_mut() {
            None => documents.push(done),
            Some(Open::List(items)) => items.push(done),
            Some(Open::Object(object, key)) => match key.take() {
                Some(key) => drop(object.insert(key, done)),
                None => return Err(at("a key that is no string")),
            },
        }
    }
    match (documents.pop(), documents.is_empty()) {
        (Some(document), true) => Ok(document),
        (None, _) => Err("it is empty".to_owned()),
        (Some(_), false) => Err("it has several documents".to_owned()),
    }
}

/// A scalar without quotes: the core schema of YAML 1.2, and octal numbers as YAML 1.1 and Go write them (`0644`).
fn plain(text: &str) -> Value {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let number = |digits: &str, radix| {
        let number = i64::from_str_radix(digits, radix).ok()?;
        Some(Value::Number(Number::from(if text.starts_with('-') { -number } else { number })))
    };
    let parsed = match digits.as_bytes() {
        [b'0', b'x', ..] => number(&digits[2..], 16),
        [b'0', b'o', ..] => number(&digits[2..], 8),
        [b'0', b'0'..=b'7', ..] => number(&digits[1..], 8),
        [b'0'..=b'9', ..] => number(digits, 10),
        _ => None,
    };
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ => parsed.unwrap_or_else(|| Value::String(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn yaml_is_the_json_that_it_looks_like() {
        let text = "# c\na: 1\nb: [x, '1', \"y\", 0644, 0x10, -5, true, null, 1.2]\nc:\n- d: {e: f}\n- ''\n";
        let expected =
            json!({"a": 1, "b": ["x", "1", "y", 0o644, 16, -5, true, null, "1.2"], "c": [{"d": {"e": "f"}}, ""]});
        assert_eq!(value(text), Ok(expected));
        assert_eq!(value("{\"a\": [1, \"b\"]}"), Ok(json!({"a": [1, "b"]})));
    }

    #[test]
    fn what_json_could_not_say_is_refused() {
        let deep = format!("{}{}", "[".repeat(40), "]".repeat(40));
        for text in
            ["", "a: 1\na: 2", "a: &x 1\nb: *x", "a: !!str 1", "? [a]\n: b", "---\na: 1\n---\nb: 1", "a: [", &deep]
        {
            assert!(value(text).is_err(), "{text}");
        }
    }
}
