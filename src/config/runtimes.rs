//! `[runtimes.NAME]`: other OCI runtimes, each under the name by which a pod asks for it (CRI `runtime_handler`, RuntimeClass `handler`).
//! Whether the program is there is asked when it is called: a package may be installed after podwright has started.

use super::{Source, check_directory};
use crate::error::{Error, Result, did_you_mean};
use std::path::PathBuf;
use toml::de::DeValue;

/// The most of them.
const MAX_RUNTIMES: usize = 64;
/// The longest name, in bytes: a RuntimeClass's handler is a label of DNS.
const MAX_NAME_BYTES: usize = 63;
/// The keys of one.
const KEYS: [&str; 1] = ["path"];

/// One other runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeSetting {
    pub name: String,
    /// Of its program; absolute.
    pub path: PathBuf,
    pub source: Source,
}

/// Those of the table `runtimes`. `source` says where in the file an offset is, `offset` is the table's.
///
/// # Errors
/// `InvalidArgument`, with the line and the key.
pub(super) fn parse(
    table: &DeValue<'_>,
    offset: usize,
    source: impl Fn(usize) -> Source,
) -> Result<Vec<RuntimeSetting>> {
    let DeValue::Table(runtimes) = table else {
        return Err(Error::invalid(format!("{}: runtimes: must be tables, [runtimes.NAME]", source(offset))));
    };
    if runtimes.len() > MAX_RUNTIMES {
        return Err(Error::invalid(format!("{}: runtimes: at most {MAX_RUNTIMES} are allowed", source(offset))));
    }
    let mut all = Vec::new();
    for (name, runtime) in runtimes {
        let at = source(name.span().start);
        let name = name.get_ref();
        check_name(name).map_err(|why| Error::invalid(format!("{at}: runtimes.{name}: {why}")))?;
        let DeValue::Table(keys) = runtime.get_ref() else {
            return Err(Error::invalid(format!("{at}: runtimes.{name}: must be a table with the key path")));
        };
        let mut path = None;
        for (key, value) in keys {
            let at = source(key.span().start);
            let key = format!("runtimes.{name}.{}", key.get_ref());
            match (key.rsplit('.').next(), value.get_ref()) {
                (Some("path"), DeValue::String(text)) => {
                    check_directory(text).map_err(|why| Error::invalid(format!("{at}: {key} = {text:?}: {why}")))?;
                    path = Some(PathBuf::from(text.as_ref()));
                }
                (Some("path"), _) => return Err(Error::invalid(format!("{at}: {key}: must be a string"))),
                (other, _) => {
                    let meant = other.and_then(|other| did_you_mean(other, KEYS)).unwrap_or("path");
                    return Err(Error::invalid(format!("{at}: unknown key {key}; did you mean {meant}?")));
                }
            }
        }
        let path = path.ok_or_else(|| Error::invalid(format!("{at}: runtimes.{name}.path is missing")))?;
        all.push(RuntimeSetting { name: name.to_string(), path, source: at });
    }
    Ok(all)
}

fn check_name(name: &str) -> Result<(), String> {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    match name.len() <= MAX_NAME_BYTES
        && ends(name.chars().next())
        && ends(name.chars().last())
        && name.chars().all(inside)
    {
        true => Ok(()),
        false => Err(format!(
            "a handler's name has 1 to {MAX_NAME_BYTES} of a-z 0-9 and '-' in between, as in a RuntimeClass"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use toml::de::DeTable;

    fn read(text: &str) -> Result<Vec<RuntimeSetting>> {
        let document = DeTable::parse(text).expect("TOML");
        let (_, table) = document.get_ref().iter().next().expect("a table");
        parse(table.get_ref(), 0, |offset| Source::File {
            path: "c.toml".into(),
            line: 1 + text[..offset].bytes().filter(|b| *b == b'\n').count(),
        })
    }

    #[test]
    fn runtimes_have_names_and_paths() {
        let all = read("[runtimes.runc]\npath = \"/usr/sbin/runc\"\n[runtimes.crun]\npath = \"/usr/bin/crun\"")
            .expect("valid");
        let mut all: Vec<_> = all.iter().map(|r| (r.name.as_str(), r.path.to_str().expect("UTF-8"))).collect();
        all.sort_unstable();
        assert_eq!(all, [("crun", "/usr/bin/crun"), ("runc", "/usr/sbin/runc")]);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let refused = |text: &str| read(text).expect_err(text).to_string();
        assert!(
            refused("[runtimes.runc]\npaht = \"/x\"")
                .starts_with("c.toml:2: unknown key runtimes.runc.paht; did you mean path?")
        );
        assert!(refused("[runtimes.runc]\npath = \"runc\"").contains("c.toml:2: runtimes.runc.path = \"runc\""));
        assert!(refused("[runtimes.runc]\npath = 1").contains("must be a string"));
        assert!(refused("[runtimes.runc]").contains("runtimes.runc.path is missing"));
        assert!(refused("[runtimes.\"a.b\"]\npath = \"/x\"").contains("a handler's name has"));
        assert!(refused("runtimes = 1").contains("must be tables"));
        assert!(refused("[runtimes]\nrunc = 1").contains("must be a table"));
    }
}
