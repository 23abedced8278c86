//! The rules of the source tree that the compiler does not know: which module may name which, what only `sys` may do, which files do
//! no I/O, how long a file may be, what must carry a reason. Each finding says where it is and how to mend it.
//!
//! It reads `src` and `tests` as text: comments, strings and test items are blanked first, so that only code counts. Rules that
//! clippy can check are in Cargo.toml and hack/clippy.toml instead.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// Lines of code a file may have, without comments, blank lines and test items.
const MAX_CODE_LINES: usize = 500;

/// Longer files: each is a table, or a sequence that reads from top to bottom. The file's own doc says so too.
const LONG: &[(&str, &str)] =
    &[("src/criapi.rs", "generated"), ("src/ownapi.rs", "generated"), ("src/nriapi.rs", "generated")];

/// A module that names one below it all the same: path, module, reason.
const RANK_EXCEPTIONS: &[(&str, &str, &str)] = &[];

/// A pure file that names something of the kernel's all the same.
const PURE_EXCEPTIONS: &[(&str, &str, &str)] =
    &[("src/launch/plan.rs", "sys", "the types a plan is made of: resources, capabilities, ids; no call that acts")];

/// A file that waits for time: there is no event to wait for.
const SLEEPS: &[(&str, &str)] = &[
    ("tests/shim_client/mod.rs", "asks a /proc file until it changes: the kernel tells nobody"),
    (
        "tests/fixtures/machine.rs",
        "asks the whole machine (mounts, cgroups, processes) until it is as before: nobody tells that",
    ),
];

/// Modules that must not see each other, though their ranks would let them: they meet in `wire`.
const STRANGERS: &[(&str, &str)] = &[("engine", "launch"), ("engine", "shim"), ("agent", "launch"), ("agent", "shim")];

/// Crates that a single module may name.
const OWNED_CRATES: &[(&str, &str)] =
    &[("libc", "sys"), ("nix", "sys"), ("rustix", "sys"), ("caps", "sys"), ("cgroups_rs", "cgroup")];

/// Files of these names decide and do nothing.
const PURE: &[&str] = &["plan", "machine", "convert", "reconcile", "reference", "oci"];

/// Names that say nothing of what is inside.
const EMPTY_NAMES: &[&str] = &["util", "utils", "common", "helper", "helpers", "core", "manager", "misc"];

/// A word of the source, or a sign (`::` is one).
#[derive(Debug, Clone, Copy, PartialEq)]
struct Token<'a> {
    /// From 1.
    line: usize,
    text: &'a str,
}

/// A file with what is no code blanked out, line by line as long as it was.
struct Source {
    /// From the top of the repository, with slashes.
    path: String,
    text: String,
    /// Without comments and the content of strings.
    code: String,
    /// Without test items either.
    own: String,
    /// For each line, whether it has a `//` comment.
    commented: Vec<bool>,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let (code, commented) = without_comments_and_strings(text);
        let test_file = path.starts_with("tests/") || path.ends_with("/tests.rs") || path.ends_with("_tests.rs");
        let own = if test_file { String::new() } else { without_test_items(&code) };
        Source { path: path.to_string(), text: text.to_string(), code, own, commented }
    }

    /// `launch` for src/launch.rs and everything in src/launch/; "" for main.rs, lib.rs and tests.
    fn module(&self) -> &str {
        let Some(inside) = self.path.strip_prefix("src/") else { return "" };
        let first = inside.split('/').next().unwrap_or_default();
        match first.strip_suffix(".rs").unwrap_or(first) {
            "main" | "lib" => "",
            module => module,
        }
    }

    /// How many `super::` lead from here to the crate.
    fn depth(&self) -> usize {
        let parts = self.path.trim_start_matches("src/").split('/').count();
        if self.path.ends_with("/mod.rs") { parts - 1 } else { parts }
    }

    fn stem(&self) -> &str {
        Path::new(&self.path).file_stem().and_then(|s| s.to_str()).unwrap_or_default()
    }

    fn at(&self, line: usize, finding: &str) -> String {
        format!("{}:{line}: {finding}", self.path)
    }
}

/// Blanks comments, string and char literals; says which lines had a `//` comment.
fn without_comments_and_strings(text: &str) -> (String, Vec<bool>) {
    let bytes: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut commented = vec![false; text.lines().count() + 1];
    let (mut i, mut line) = (0, 0);
    // Copies or blanks up to `end`; line breaks stay.
    let mut take = |i: &mut usize, end: usize, keep: bool, comment: bool| {
        while *i < end.min(bytes.len()) {
            let c = bytes[*i];
            commented[line] |= comment;
            code.push(if c == '\n' || keep { c } else { ' ' });
            line += usize::from(c == '\n');
            *i += 1;
        }
    };
    let starts = |i: usize, what: &str| what.chars().enumerate().all(|(k, c)| bytes.get(i + k) == Some(&c));
    let find = |from: usize, what: &str| (from..bytes.len()).find(|i| starts(*i, what)).unwrap_or(bytes.len());
    let word = |i: usize| bytes.get(i).is_some_and(|c| c.is_alphanumeric() || *c == '_');
    while i < bytes.len() {
        let raw_hashes = (bytes[i] == 'r' && (i == 0 || !word(i - 1) || bytes[i - 1] == 'b' || bytes[i - 1] == 'c'))
            .then(|| bytes[i + 1..].iter().take_while(|c| **c == '#').count())
            .filter(|hashes| bytes.get(i + 1 + hashes) == Some(&'"'));
        if starts(i, "//") {
            let end = find(i, "\n");
            take(&mut i, end, false, true);
        } else if starts(i, "/*") {
            let end = find(i, "*/") + 2;
            take(&mut i, end, false, false);
        } else if let Some(hashes) = raw_hashes {
            let end = find(i + hashes + 2, &format!("\"{}", "#".repeat(hashes))) + 1 + hashes;
            take(&mut i, end, false, false);
        } else if bytes[i] == '"' {
            let mut end = i + 1;
            while end < bytes.len() && bytes[end] != '"' {
                end += if bytes[end] == '\\' { 2 } else { 1 };
            }
            take(&mut i, end + 1, false, false);
        } else if bytes[i] == '\'' && (starts(i + 1, "\\") || bytes.get(i + 2) == Some(&'\'')) {
            let end = find(i + if starts(i + 1, "\\") { 3 } else { 2 }, "'") + 1; // a char, not a lifetime
            take(&mut i, end, false, false);
        } else {
            let end = i + 1;
            take(&mut i, end, true, false);
        }
    }
    (code, commented)
}

/// Blanks every item below `#[cfg(test)]`.
fn without_test_items(code: &str) -> String {
    let mut own = code.to_string();
    while let Some(start) = own.find("#[cfg(test)]") {
        let (mut depth, mut end) = (0, own.len());
        for (i, c) in own[start..].char_indices() {
            match c {
                '(' | '[' | '{' => depth += 1,
                ')' | ']' => depth -= 1,
                '}' => {
                    depth -= 1;
                    if depth == 0 {
                        end = start + i + 1;
                        break;
                    }
                }
                ';' if depth == 0 => {
                    end = start + i + 1;
                    break;
                }
                _ => {}
            }
        }
        let blank: String = own[start..end].chars().map(|c| if c == '\n' { c } else { ' ' }).collect();
        own.replace_range(start..end, &blank);
    }
    own
}

fn tokens(code: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    for (number, line) in code.lines().enumerate() {
        let mut rest = line;
        while let Some(first) = rest.chars().next() {
            let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            let length = match word {
                0 if rest.starts_with("::") => 2,
                0 => first.len_utf8(),
                _ => word,
            };
            if !first.is_whitespace() {
                tokens.push(Token { line: number + 1, text: &rest[..length] });
            }
            rest = &rest[length..];
        }
    }
    tokens
}

fn is(tokens: &[Token<'_>], at: usize, text: &str) -> bool {
    tokens.get(at).is_some_and(|token| token.text == text)
}

/// What follows `root::`, and each name of `root::{...}`.
fn names_below<'a>(tokens: &[Token<'a>], root: &str) -> Vec<Token<'a>> {
    let roots = (0..tokens.len())
        .filter(|i| is(tokens, *i, root) && is(tokens, i + 1, "::") && (*i == 0 || !is(tokens, i - 1, "::")));
    roots.flat_map(|i| names_at(tokens, i + 2)).collect()
}

/// The name at `at`, or the names of the group there.
fn names_at<'a>(tokens: &[Token<'a>], at: usize) -> Vec<Token<'a>> {
    if !is(tokens, at, "{") {
        return tokens.get(at).copied().into_iter().collect();
    }
    let (mut names, mut depth) = (Vec::new(), 0);
    for i in at..tokens.len() {
        match tokens[i].text {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ if depth == 1 && (is(tokens, i - 1, "{") || is(tokens, i - 1, ",")) => names.push(tokens[i]),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names
}

/// The modules of the crate that a file names: by `crate::`, and by as many `super::` as lead there.
fn modules_named<'a>(source: &Source, tokens: &[Token<'a>]) -> Vec<Token<'a>> {
    let mut named = names_below(tokens, "crate");
    for i in 0..tokens.len() {
        let begins = is(tokens, i, "super") && (i == 0 || !is(tokens, i - 1, "::"));
        let supers = || (0..).take_while(|n| is(tokens, i + 2 * n, "super") && is(tokens, i + 2 * n + 1, "::")).count();
        if begins && supers() >= source.depth() {
            named.extend(names_at(tokens, i + 2 * source.depth()));
        }
    }
    named
}

/// The modules in the order of src/lib.rs, whose doc lists them in the same order.
fn ranks(lib: &str) -> Result<Vec<String>, String> {
    let declared: Vec<_> = lib.lines().filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let listed: Vec<_> = lib.lines().filter_map(|l| l.strip_prefix("//! * `")?.split('`').next()).collect();
    let missing: Vec<_> = declared.iter().filter(|module| !listed.contains(module)).collect();
    let in_order: Vec<_> = listed.iter().filter(|module| declared.contains(module)).collect();
    if !missing.is_empty() || !in_order.iter().copied().eq(&declared) {
        return Err(format!(
            "src/lib.rs: the map in the doc has {listed:?}, the modules are {declared:?}: put them in one order"
        ));
    }
    Ok(declared.into_iter().map(str::to_string).collect())
}

fn excepted(list: &[(&str, &str, &str)], source: &Source, name: &str) -> bool {
    list.iter().any(|(path, what, _)| source.path == *path && name == *what)
}

/// A module names only modules above it.
fn rank(source: &Source, ranks: &[String], findings: &mut Vec<String>) {
    let module = source.module();
    let of = |name: &str| ranks.iter().position(|r| r == name);
    let Some(own) = of(module) else { return };
    for name in modules_named(source, &tokens(&source.own)) {
        let Some(other) = of(name.text) else { continue };
        let strangers = STRANGERS.contains(&(module, name.text));
        if (other > own || strangers) && !excepted(RANK_EXCEPTIONS, source, name.text) {
            let why = if strangers { "they meet in `wire`" } else { "src/lib.rs ranks it below" };
            findings.push(source.at(
                name.line,
                &format!("`{module}` names `{}`, and {why}: move what is needed up, or pass it in", name.text),
            ));
        }
    }
}

/// Crates and keywords with one home; what launch and shim do without.
fn homes(source: &Source, findings: &mut Vec<String>) {
    let module = source.module();
    let (all, own) = (tokens(&source.code), tokens(&source.own));
    for i in 0..all.len() {
        let begins_path =
            is(&all, i + 1, "::") && (i == 0 || !is(&all, i - 1, "::")) || i > 0 && is(&all, i - 1, "use");
        for (name, home) in OWNED_CRATES {
            if all[i].text == *name && begins_path && module != *home && source.path.starts_with("src/") {
                findings.push(source.at(
                    all[i].line,
                    &format!("only src/{home} names {name}: wrap what is needed there, with the kernel's name for it"),
                ));
            }
        }
        if all[i].text == "unsafe" && module != "sys" && source.path.starts_with("src/") {
            findings.push(
                source.at(all[i].line, "unsafe code belongs in src/sys, with a SAFETY comment for each invariant"),
            );
        }
    }
    if ["launch", "shim"].contains(&module) {
        for (i, token) in own.iter().enumerate() {
            let thread = token.text == "thread" && (is(&own, i + 1, "::") || i > 0 && is(&own, i - 1, "::"));
            if ["tokio", "async", "await"].contains(&token.text) || thread {
                findings.push(source.at(
                    token.line,
                    &format!(
                        "`{}` in {module}: the process that clones has one thread and one loop; use the event loop",
                        token.text
                    ),
                ));
            }
        }
    }
}

/// Files that decide do not act.
fn purity(source: &Source, findings: &mut Vec<String>) {
    // In cli a file is named by the verb that people type.
    if !PURE.contains(&source.stem()) || source.module() == "cli" {
        return;
    }
    let own = tokens(&source.own);
    let std = names_below(&own, "std").into_iter().filter(|name| ["fs", "process"].contains(&name.text));
    let modules = modules_named(source, &own).into_iter().filter(|name| ["sys", "fault"].contains(&name.text));
    let types = ["TcpStream", "TcpListener", "UdpSocket", "UnixStream", "UnixListener", "tokio"];
    let opens =
        |i: usize| ["File", "OpenOptions"].contains(&own[i].text) && is(&own, i + 1, "::") && own[i + 2].text != "{";
    let words = (0..own.len()).filter(|i| types.contains(&own[*i].text) || opens(*i)).map(|i| own[i]);
    for name in std.chain(modules).chain(words) {
        if !excepted(PURE_EXCEPTIONS, source, name.text) {
            findings.push(source.at(
                name.line,
                &format!(
                    "`{}` in a file named {}: such files do no I/O and are tested without root; pass in what it reads",
                    name.text,
                    source.stem()
                ),
            ));
        }
    }
}

/// The doc, the length, the name.
fn shape(source: &Source, findings: &mut Vec<String>) {
    if !source.text.starts_with("//!") && !source.text.starts_with("#!") {
        findings.push(source.at(1, "begin with `//!`: what is in this file, and what deliberately is not"));
    }
    let lines = source.own.lines().filter(|line| !line.trim().is_empty()).count();
    if lines > MAX_CODE_LINES && !LONG.iter().any(|(path, _)| *path == source.path) {
        findings.push(source.at(1, &format!(
            "{lines} lines of code, above {MAX_CODE_LINES}: divide it by noun or verb (a table may be listed in LONG, with the reason)"
        )));
    }
    let parts: Vec<_> = source.path.trim_end_matches(".rs").split('/').collect();
    for part in &parts {
        if EMPTY_NAMES.contains(part) {
            findings.push(source.at(1, &format!("`{part}` says nothing: name the file by what is in it")));
        }
    }
    if let [.., directory, file] = parts[..]
        && directory == file
    {
        findings.push(source.at(1, &format!("{directory}/{file}.rs: use {directory}/mod.rs or another name")));
    }
}

/// What needs a reason beside it, or an issue, or is not done at all.
fn habits(source: &Source, findings: &mut Vec<String>) {
    for (i, line) in source.text.lines().enumerate() {
        // Only in a comment: the marks end one, and in a test of this file they are strings.
        let comment = line.split_once("//").map_or("", |(_, comment)| comment);
        let mark = ["TODO", "FIXME", "XXX"]
            .into_iter()
            .find(|mark| comment.trim_start_matches(['/', '!', ' ']).starts_with(mark));
        if let Some(mark) = mark.filter(|_| source.commented[i] && !comment.contains('#')) {
            findings.push(source.at(i + 1, &format!("{mark} without an issue: write `{mark} #12: ...`, or do it")));
        }
    }
    let code: Vec<_> = source.code.lines().collect();
    for (i, line) in code.iter().enumerate() {
        if line.contains("#[ignore") {
            findings.push(source.at(i + 1, "#[ignore]: make the test pass or delete it; a test that is not run rots"));
        }
        if line.contains("thread::sleep") && !SLEEPS.iter().any(|(path, _)| *path == source.path) {
            findings.push(
                source
                    .at(i + 1, "thread::sleep: wait for the event (pidfd, inotify, poll), or list the file in SLEEPS"),
            );
        }
    }
    for (i, line) in source.own.lines().enumerate() {
        if line.contains("let _ =") {
            let end = (i..code.len()).find(|n| code[*n].trim_end().ends_with(';')).unwrap_or(i);
            if !(i.saturating_sub(1)..=end).any(|n| source.commented[n]) {
                findings
                    .push(source.at(i + 1, "`let _ =` without a reason: add `// why it may be ignored`, or handle it"));
            }
        }
        let writes = line.contains("fs::write(") || line.contains("File::create(");
        if writes && source.module() != "sys" {
            findings
                .push(source.at(i + 1, "truncates in place: use state::record, whose files are complete or absent"));
        }
    }
}

fn findings(sources: &[Source], ranks: &[String]) -> Vec<String> {
    let mut findings = Vec::new();
    for source in sources {
        rank(source, ranks, &mut findings);
        homes(source, &mut findings);
        purity(source, &mut findings);
        shape(source, &mut findings);
        habits(source, &mut findings);
    }
    findings
}

/// Entries of the lists above that nothing needs any more.
fn stale(sources: &[Source]) -> Vec<String> {
    let needs = |path: &str, needed: &dyn Fn(&Source) -> bool| {
        sources.iter().find(|source| source.path == path).is_none_or(needed)
    };
    let names = |source: &Source, module: &str| {
        modules_named(source, &tokens(&source.own)).iter().any(|name| name.text == module)
    };
    let long = |source: &Source| source.own.lines().filter(|line| !line.trim().is_empty()).count() > MAX_CODE_LINES;
    let mut stale = Vec::new();
    let mut check = |list: &str, path: &str, needed: bool| {
        if !needed {
            stale.push(format!("tests/cli_layout.rs: {list} lists {path}, which no longer needs it: remove the entry"));
        }
    };
    for (path, _) in LONG {
        check("LONG", path, needs(path, &long));
    }
    for (path, module, _) in RANK_EXCEPTIONS {
        check("RANK_EXCEPTIONS", path, needs(path, &|source| names(source, module)));
    }
    for (path, module, _) in PURE_EXCEPTIONS {
        check("PURE_EXCEPTIONS", path, needs(path, &|source| names(source, module)));
    }
    for (path, _) in SLEEPS {
        check("SLEEPS", path, needs(path, &|source| source.code.contains("thread::sleep")));
    }
    stale
}

/// Every Rust file of `src` and `tests`.
fn tree(root: &Path) -> Vec<Source> {
    let mut open: Vec<PathBuf> = vec![root.join("src"), root.join("tests")];
    let mut sources = Vec::new();
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).expect("a directory of the repository") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let relative = path.strip_prefix(root).expect("below it").to_string_lossy().into_owned();
                sources.push(Source::new(&relative, &fs::read_to_string(&path).expect("UTF-8")));
            }
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    sources
}

#[test]
fn the_source_tree_keeps_its_rules() {
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("run by cargo, or set it"));
    let sources = tree(&root);
    assert!(sources.len() > 20, "this is not the repository: {}", root.display());
    let lib = sources.iter().find(|source| source.path == "src/lib.rs").expect("src/lib.rs");
    let mut all = match ranks(&lib.text) {
        Ok(ranks) => findings(&sources, &ranks),
        Err(finding) => vec![finding],
    };
    all.extend(stale(&sources));
    let mut report = String::new();
    for finding in &all {
        let _ = writeln!(report, "{finding}"); // a String takes everything
    }
    assert!(all.is_empty(), "{} findings\n{report}", all.len());
}

/// The findings in one file, as if it stood in the tree.
fn found(path: &str, text: &str) -> String {
    let ranks = ["error", "sys", "state", "launch", "shim", "engine"].map(str::to_string);
    let text = if text.starts_with("//!") || text.is_empty() { text.to_string() } else { format!("//! Doc.\n{text}") };
    findings(&[Source::new(path, &text)], &ranks).join("\n")
}

#[test]
fn each_rule_finds_its_breach() {
    for (path, text, finding) in [
        ("src/state/a.rs", "use crate::engine::x;", "src/state/a.rs:2: `state` names `engine`"),
        ("src/state/a.rs", "use crate::{error::E, shim::{S, T}};", "`state` names `shim`"),
        ("src/state/a.rs", "fn f() { super::super::launch::g() }", "`state` names `launch`"),
        ("src/state/mod.rs", "use super::launch::g;", "`state` names `launch`"),
        ("src/engine/a.rs", "use crate::launch::x;", "they meet in `wire`"),
        ("src/state/a.rs", "fn f() { unsafe { g() } }", "unsafe code belongs in src/sys"),
        ("src/state/a.rs", "use libc::c_int;", "only src/sys names libc"),
        ("src/state/a.rs", "fn f() { nix::unistd::fork() }", "only src/sys names nix"),
        ("src/state/a.rs", "use cgroups_rs::fs;", "only src/cgroup names cgroups_rs"),
        ("src/shim/a.rs", "async fn f() {}", "`async` in shim"),
        ("src/launch/a.rs", "use std::{thread, io}; fn f() { thread::spawn(g); }", "`thread` in launch"),
        ("src/launch/plan.rs", "use std::{io, fs};", "`fs` in a file named plan"),
        ("src/engine/oci.rs", "fn f() { File::open(x) }", "`File` in a file named oci"),
        ("src/engine/oci.rs", "use crate::sys::x;", "`sys` in a file named oci"),
        ("src/state/a.rs", "\n//! no doc at the top", ""),
        ("src/state/util.rs", "", "`util` says nothing"),
        ("src/state/state.rs", "", "src/state/state.rs"),
        ("src/state/a.rs", "// TODO: later", "TODO without an issue"),
        ("tests/a.rs", "#[ignore]\n#[test]\nfn f() {}", "#[ignore]: make the test pass"),
        ("tests/a.rs", "fn f() { std::thread::sleep(x); }", "thread::sleep: wait for the event"),
        ("src/state/a.rs", "fn f() {\n\n    let _ = g();\n}", "src/state/a.rs:4: `let _ =` without a reason"),
        ("src/state/a.rs", "fn f() { std::fs::write(a, b)?; }", "truncates in place"),
    ] {
        let found = found(path, text);
        assert!(found.contains(finding), "{text}\nfinds {found:?}\nand not {finding:?}");
    }
    let long = "fn f() {}\n".repeat(MAX_CODE_LINES + 1);
    assert!(found("src/state/a.rs", &long).contains("501 lines of code"));
    assert!(findings(&[Source::new("src/a.rs", "fn f() {}")], &[]).join("").contains("begin with `//!`"));
    assert!(ranks("//! * `a` x\n//! * `b` y\npub mod b;\npub mod a;\n").is_err());
}

#[test]
fn what_only_looks_like_a_breach_is_none() {
    for (path, text) in [
        ("src/engine/a.rs", "use crate::{error::E, state::S};\nuse super::launch;"),
        (
            "src/state/a.rs",
            "// crate::engine::x, unsafe, libc::x\nconst A: &str = \"crate::engine::x unsafe \\\" libc::y\";",
        ),
        (
            "src/state/a.rs",
            "const A: &str = r#\"unsafe \" crate::shim::x\"#; const B: char = '\"'; fn f<'a>(x: &'a str) {}",
        ),
        (
            "src/state/a.rs",
            "fn f() {}\n#[cfg(test)]\nmod tests {\n    use crate::engine::x;\n    fn f() { let _ = 1; std::fs::write(a, b); }\n}",
        ),
        ("src/state/a.rs", "#[cfg(test)]\nuse crate::engine::{x, y};\nfn f() {}"),
        ("src/state/a.rs", "fn f(caps: u8) -> u8 { caps.unsafe_looking() }"),
        ("src/sys/a.rs", "use libc::c_int;\nfn f() { unsafe { std::fs::write(a, b) } }"),
        ("src/state/a.rs", "// TODO #12: later\nfn f() { let _ = g(); // why\n}"),
        ("src/state/a.rs", "fn f() {\n    let _ = g(\n        h,\n    ); // why\n}"),
        ("src/state/a.rs", "fn f() {\n    let _ = match a {\n        // why\n        b => c,\n    };\n}"),
        ("src/state/plan.rs", "fn f(x: crate::state::File) {}"),
        ("src/cli/plan.rs", "use crate::sys::x;"),
        ("src/shim/machine_tests.rs", "use std::fs; fn f() { let _ = 1; }"),
        ("src/image/reference.rs", "use std::net::Ipv6Addr;"),
    ] {
        assert_eq!(found(path, text), "", "{text}");
    }
}

#[test]
fn what_is_calibrated_is_there_and_what_differs_says_why() {
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("run by cargo, or set it"));
    let list = fs::read_to_string(root.join("tests/calibration.tsv")).expect("a list");
    let lines: Vec<Vec<&str>> =
        list.lines().filter(|line| !line.starts_with('#')).map(|line| line.split('\t').collect()).collect();
    assert!(lines.len() > 20, "{} tests", lines.len());
    for line in lines {
        let [program, test, words, why] = line[..] else { panic!("program, test, words, why: {line:?}") };
        let text = fs::read_to_string(root.join("tests").join(program).with_extension("rs")).expect(program);
        assert!(text.contains(&format!("fn {test}()")), "tests/{program}.rs has no {test}");
        assert_eq!(words == "same", why.is_empty(), "{test}: {why:?}");
    }
}
