//! `podwright login` and `logout`: credentials of registries, in the form and the places that docker has them.

use super::output;
use super::{Session, pull};
use crate::error::{Context, Error, Result};
use crate::image::pull::check_login;
use crate::image::registry::credentials::{self, Secret, encode, registry_name};
use crate::state::record::{self, Durability};
use serde_json::{Map, Value, json};
use std::io::BufRead;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  podwright login registry.example -u me --password-stdin < password
  podwright login docker.io -u me --authfile ./auth.json --password-stdin < token
  podwright logout registry.example";

/// Bytes of a password, at most.
const MAX_PASSWORD: u64 = 64 << 10;
/// Of the file: it has passwords.
const MODE: u32 = 0o600;

/// Stores the credentials of a registry, after the registry has accepted them
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct LoginArgs {
    /// Registry, as in image names: docker.io, registry.example:5000
    #[arg(value_name = "REGISTRY", default_value = "docker.io")]
    registry: String,
    /// User
    #[arg(short, long, value_name = "USER")]
    username: String,
    /// Read the password from standard input, its first line (there is no flag for the password: others would see it)
    #[arg(long, required = true)]
    password_stdin: bool,
    /// File to store them in, instead of image.auth_file
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
}

const LOGOUT_EXAMPLES: &str = "\
Examples:
  podwright logout registry.example
  podwright logout --authfile ./auth.json";

/// Removes the credentials of a registry
#[derive(Debug, clap::Args)]
#[command(after_help = LOGOUT_EXAMPLES)]
pub(super) struct LogoutArgs {
    /// Registry, as in image names
    #[arg(value_name = "REGISTRY", default_value = "docker.io")]
    registry: String,
    /// File to remove them from, instead of image.auth_file
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
}

pub(super) fn run(args: &LoginArgs, session: &Session) -> Result<u8> {
    let registry = named(&args.registry)?;
    let mut password = String::new();
    let read = std::io::Read::take(std::io::stdin().lock(), MAX_PASSWORD).read_line(&mut password);
    read.context(|| "read the password")?;
    let password = password.trim_end_matches(['\r', '\n']);
    if args.username.is_empty() || args.username.contains(':') || password.is_empty() {
        return Err(Error::invalid("a user without \":\" and a password on standard input are needed"));
    }
    let secret = Secret::Password { user: args.username.clone(), password: password.to_owned() };
    check_login(&registry, secret, &pull::settings(session, Vec::new()))?;
    let path = file(args.authfile.as_deref(), session);
    change(&path, |auths| {
        auths.retain(|name, _| !is_same(name, &registry));
        auths.insert(key(&registry), json!({"auth": encode(&args.username, password)}));
    })?;
    output::note(&format!("credentials for {registry} are in {}", path.display()));
    Ok(0)
}

pub(super) fn logout(args: &LogoutArgs, session: &Session) -> Result<u8> {
    let registry = named(&args.registry)?;
    let path = file(args.authfile.as_deref(), session);
    let mut before = 0;
    let mut after = 0;
    change(&path, |auths| {
        before = auths.len();
        auths.retain(|name, _| !is_same(name, &registry));
        after = auths.len();
    })?;
    match before == after {
        true => Err(Error::not_found(format!("{} has no credentials for {registry}", path.display()))),
        false => Ok(0),
    }
}

fn named(text: &str) -> Result<String> {
    let named = registry_name(text).filter(|(_, path)| path.is_empty());
    named.map(|(host, _)| host).ok_or_else(|| Error::invalid(format!("{text:?} is not the name of a registry")))
}

/// As docker writes it, so that docker finds it.
fn key(registry: &str) -> String {
    if registry == "docker.io" { credentials::HUB_SERVER.to_owned() } else { registry.to_owned() }
}

fn is_same(name: &str, registry: &str) -> bool {
    registry_name(name).is_some_and(|(host, path)| host == registry && path.is_empty())
}

fn file(given: Option<&Path>, session: &Session) -> PathBuf {
    given.map_or_else(|| session.config.settings().image.auth_file, Path::to_owned)
}

/// Changes `auths` of a config.json and nothing else in it.
fn change(path: &Path, edit: impl FnOnce(&mut Map<String, Value>)) -> Result<()> {
    let wrong = || Error::invalid(format!("{} is not docker's config.json; nothing was changed", path.display()));
    let mut all = match credentials::text(path)? {
        Some(bytes) => serde_json::from_slice::<Map<String, Value>>(&bytes).map_err(|_| wrong())?,
        None => Map::new(),
    };
    edit(all.entry("auths").or_insert_with(|| json!({})).as_object_mut().ok_or_else(wrong)?);
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).context(|| format!("mkdir {}", parent.display()))?;
    }
    let text = serde_json::to_vec_pretty(&all).map_err(|e| Error::internal(format!("encode credentials: {e}")))?;
    record::write_bytes(path, &text, MODE, Durability::Disk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_changes_its_own_entry_and_nothing_else() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("sub/config.json");
        change(&path, |auths| drop(auths.insert("a".into(), json!({"auth": "x"})))).expect("made");
        std::fs::write(
            &path,
            r#"{"credsStore": "desktop", "auths": {"https://index.docker.io/v1/": {}, "b": {"auth": "y"}}}"#,
        )
        .expect("write");
        change(&path, |auths| auths.retain(|name, _| !is_same(name, "docker.io"))).expect("changed");
        let text: Value = serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("JSON");
        assert_eq!(text, json!({"credsStore": "desktop", "auths": {"b": {"auth": "y"}}}));
        std::fs::write(&path, "[]").expect("write");
        assert!(change(&path, |_| {}).expect_err("another file").to_string().contains("nothing was changed"));
    }

    #[test]
    fn a_registry_is_named_as_in_images() {
        assert_eq!(named("https://index.docker.io/v1/").expect("hub"), "docker.io");
        assert_eq!(named("registry.example:5000").expect("a port"), "registry.example:5000");
        assert!(named("registry.example/team").is_err() && named("").is_err());
    }
}
