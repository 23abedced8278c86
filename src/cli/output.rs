//! How results reach people and scripts: tables, JSON, and a reader who goes away early.
//!
//! Tables look like kubectl's: upper-case headings, two spaces between columns, no lines, no wrapping. JSON is what scripts
//! parse: camelCase names, stable within a major version; a field may be added, none changes its meaning.

use crate::error::{Context, Error, Result};
use comfy_table::{ContentArrangement, Table, TableStyle};
use serde::Serialize;
use serde_json::Value;
use std::io::Write;

/// `-o`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(super) enum Format {
    #[default]
    Table,
    Json,
}

/// Prints `text` to stdout. A reader who has gone (`podwright ps | head -1`) has what he wanted: no error, no noise.
///
/// # Errors
/// Whatever else write(2) says, a full disk behind a redirection for instance.
pub(super) fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context(|| "write to stdout"),
    }
}

/// Prints `value` as indented JSON, and a newline.
///
/// # Errors
/// As [`print`].
pub(super) fn print_json(value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(|e| Error::internal(format!("print as JSON: {e}")))?;
    text.push('\n');
    print(&text)
}

/// A value whose keys are names of our own fields, with those in camelCase. Not for maps with other people's keys.
pub(super) fn camel_case(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(map.into_iter().map(|(k, v)| (camel(&k), camel_case(v))).collect()),
        Value::Array(list) => Value::Array(list.into_iter().map(camel_case).collect()),
        other => other,
    }
}

fn camel(name: &str) -> String {
    let mut words = name.split('_');
    let mut text = words.next().unwrap_or_default().to_owned();
    for word in words {
        let (first, rest) = word.split_at(word.chars().next().map_or(0, char::len_utf8));
        text.push_str(&first.to_uppercase());
        text.push_str(rest);
    }
    text
}

/// Says something beside the result, on stderr: progress, or that there is nothing. Never an error, which is returned.
pub(super) fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", harmless(text)); // nobody is left to tell
}

/// A table as text. What stands in a cell may come from images and containers: control characters are shown, not obeyed.
pub(super) fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    for row in rows {
        table.add_row(row.map(|cell| harmless(&cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text = table.trim_fmt();
    text.push('\n');
    text
}

/// A text of headings, fields and tables, as `inspect` and `check` print it.
#[derive(Debug, Default)]
pub(super) struct Page(String);

/// Blanks a level.
const INDENT: usize = 2;

impl Page {
    /// The text so far.
    pub(super) fn text(&self) -> &str {
        &self.0
    }

    /// An empty line, unless nothing stands above it.
    pub(super) fn gap(&mut self) {
        if !self.0.is_empty() && !self.0.ends_with("\n\n") {
            self.0.push('\n');
        }
    }

    /// A line.
    pub(super) fn line(&mut self, level: usize, text: &str) {
        self.0.extend(std::iter::repeat_n(' ', level * INDENT));
        self.0.push_str(harmless(text).trim_end());
        self.0.push('\n');
    }

    /// Names and values, the values below each other; an empty value is left out.
    pub(super) fn fields(&mut self, level: usize, fields: &[(&str, String)]) {
        let width = fields.iter().filter(|(_, value)| !value.is_empty()).map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
            self.line(level, &format!("{name:width$}  {value}"));
        }
    }

    /// A heading and what it has a line each; nothing when there is nothing.
    pub(super) fn list(&mut self, level: usize, heading: &str, lines: impl IntoIterator<Item = String>) {
        let mut heading = Some(heading);
        for text in lines {
            if let Some(heading) = heading.take() {
                self.line(level, heading);
            }
            self.line(level + 1, &text);
        }
    }

    /// A heading and a table; nothing when it has no rows.
    pub(super) fn table<const N: usize>(
        &mut self,
        level: usize,
        heading: &str,
        header: [&str; N],
        rows: impl IntoIterator<Item = [String; N]>,
    ) {
        let rows: Vec<_> = rows.into_iter().collect();
        if rows.is_empty() {
            return;
        }
        self.line(level, heading);
        for line in table(header, rows).lines() {
            self.line(level + 1, line);
        }
    }
}

/// `text` with each control character written as an escape, so that it stays on its line and cannot drive a terminal.
pub(super) fn harmless(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_two_spaces_between_columns_and_none_at_the_end() {
        let text = table(["NAME", "STATE"], [["a".into(), "Running".into()], ["longer".into(), String::new()]]);
        assert_eq!(text, "NAME    STATE\na       Running\nlonger\n");
    }

    #[test]
    fn a_cell_cannot_drive_the_terminal_or_forge_a_row() {
        let text = table(["NAME"], [["a\x1b[2J\nb".into()]]);
        assert_eq!(text, "NAME\na\\u{1b}[2J\\nb\n");
    }

    #[test]
    fn field_names_become_camel_case_at_every_depth() {
        let value = serde_json::json!({"usage_us": 1, "io": [{"read_bytes": 2}], "avg10_e2": null});
        let expected = serde_json::json!({"usageUs": 1, "io": [{"readBytes": 2}], "avg10E2": null});
        assert_eq!(camel_case(value), expected);
    }

    #[test]
    fn a_page_leaves_out_what_is_empty_and_aligns_the_rest() {
        let mut page = Page::default();
        page.line(0, "pod web");
        page.fields(1, &[("a", "1".into()), ("longer name", String::new()), ("bcd", "2".into())]);
        page.list(1, "nothing:", []);
        page.table(1, "rows:", ["A", "B"], [["x".into(), "y".into()]]);
        assert_eq!(page.text(), "pod web\n  a    1\n  bcd  2\n  rows:\n    A  B\n    x  y\n");
    }

    #[test]
    fn a_long_cell_is_never_wrapped() {
        let long = "x ".repeat(400);
        assert_eq!(table(["NAME"], [[long.clone()]]).lines().count(), 2);
    }
}
