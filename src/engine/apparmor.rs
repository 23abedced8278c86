//! AppArmor: whether it confines on this host, which profiles are loaded, and podwright's own, which is loaded from here.
//!
//! A profile is compiled by apparmor_parser, of the package that a host with AppArmor has: the format it compiles to is the kernel's and
//! the parser's own affair. Whoever asks for no profile gets podwright's where it could be loaded; whoever asks for one gets it or no container.
//! Not here: how a process comes under a profile (`launch`).

use super::Engine;
use crate::error::{Context, Error, Result};
use crate::network::cni::exec::{self, Call};
use crate::state::model::{AppArmorProfile, Security};
use std::fmt;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::time::Duration;

/// The name of podwright's own profile.
pub const DEFAULT_PROFILE: &str = "podwright-default";
const SOURCE: &str = include_str!("apparmor.profile");
/// `Y` where the kernel has it and was booted with it.
const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
/// A line for each loaded profile: `name (mode)`.
const PROFILES: &str = "/sys/kernel/security/apparmor/profiles";
/// Where the package puts it; /sbin where /usr is not merged.
const PARSERS: [&str; 3] = ["/usr/sbin/apparmor_parser", "/sbin/apparmor_parser", "/usr/local/sbin/apparmor_parser"];
/// How long a parser may take: it takes 0.1 s, and the machine may be busy.
const PARSER_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest list of profiles, in bytes: Ubuntu loads 150 profiles of 30 bytes each.
const MAX_LIST: u64 = 4 << 20;

/// What there is of podwright's own profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// The kernel has no AppArmor, or was booted without.
    Off,
    Loaded,
    /// Why it is not; containers that ask for none run unconfined by AppArmor.
    NotLoaded(String),
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            State::Off => f.write_str("not enabled on this host"),
            State::Loaded => write!(f, "{DEFAULT_PROFILE} is loaded"),
            State::NotLoaded(why) => write!(f, "{DEFAULT_PROFILE} is not loaded: {why}"),
        }
    }
}

/// Whether AppArmor confines processes of this host.
pub fn is_enabled() -> bool {
    std::fs::read_to_string(ENABLED).is_ok_and(|text| text.trim() == "Y")
}

/// Where the parser is.
pub fn parser() -> Option<&'static Path> {
    PARSERS.map(Path::new).into_iter().find(|path| path.exists())
}

/// Whether the kernel has a profile of exactly that name.
///
/// # Errors
/// `FailedPrecondition` where securityfs is not mounted.
pub fn is_loaded(name: &str) -> Result<bool> {
    let file = match std::fs::File::open(PROFILES) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let remedy = "mount -t securityfs securityfs /sys/kernel/security";
            return Err(Error::precondition(format!("{PROFILES} is not there: {remedy}")));
        }
        file => file.context(|| format!("open {PROFILES}"))?,
    };
    let mut list = String::new();
    file.take(MAX_LIST).read_to_string(&mut list).context(|| format!("read {PROFILES}"))?;
    Ok(is_listed(&list, name))
}

fn is_listed(list: &str, name: &str) -> bool {
    list.lines().any(|line| line.rsplit_once(" (").is_some_and(|(profile, _)| profile == name))
}

/// The profile that a container is to have on this host, loaded or not; `None`: unconfined.
pub fn wanted(security: &Security) -> Option<&str> {
    match &security.apparmor {
        AppArmorProfile::Localhost(name) => Some(name),
        AppArmorProfile::Unset if !security.privileged && is_enabled() => Some(DEFAULT_PROFILE),
        AppArmorProfile::RuntimeDefault if !security.privileged => Some(DEFAULT_PROFILE),
        _ => None,
    }
}

/// The profile that a container gets.
///
/// # Errors
/// `FailedPrecondition` for one that was asked for and is not there: the kernel lacks AppArmor, or the profile is not loaded.
pub(super) fn given(security: &Security) -> Result<Option<String>> {
    let Some(name) = wanted(security) else { return Ok(None) };
    let asked = !security.apparmor.is_unset();
    if asked && !is_enabled() {
        return Err(Error::precondition(format!(
            "AppArmor profile {name:?} is asked for, and AppArmor is not enabled on this host"
        )));
    }
    match is_loaded(name) {
        Ok(true) => Ok(Some(name.to_owned())),
        _ if !asked => Ok(None), // told when it could not be loaded
        Ok(false) => Err(Error::precondition(match security.apparmor {
            AppArmorProfile::Localhost(_) => format!(
                "AppArmor profile {name:?} is not loaded in this host's kernel; load it with apparmor_parser --replace"
            ),
            _ => format!("podwright's AppArmor profile is not loaded: {}", lacking_parser().unwrap_or(TOLD)),
        })),
        Err(e) => Err(e),
    }
}

const TOLD: &str = "podwright's log has the reason";
const NO_PARSER: &str = "there is no apparmor_parser; install the host's package apparmor";

fn lacking_parser() -> Option<&'static str> {
    parser().is_none().then_some(NO_PARSER)
}

/// What there is of podwright's own profile on this host.
pub fn state() -> State {
    if !is_enabled() {
        return State::Off;
    }
    match is_loaded(DEFAULT_PROFILE) {
        Ok(true) => State::Loaded,
        Ok(false) => State::NotLoaded(lacking_parser().unwrap_or("it is loaded with the first container").to_owned()),
        Err(e) => State::NotLoaded(e.to_string()),
    }
}

impl Engine {
    /// Loads podwright's own profile in the version of this program, as a daemon does at its start.
    ///
    /// # Errors
    /// `FailedPrecondition` without a parser; what the parser says.
    pub async fn load_apparmor(&self) -> Result<()> {
        if !is_enabled() {
            return Ok(());
        }
        let mut failed = self.0.apparmor.lock().await;
        let loaded = load().await.context(|| format!("load AppArmor profile {DEFAULT_PROFILE}"));
        *failed = loaded.as_ref().err().map(ToString::to_string);
        loaded
    }

    /// As [`state`], with what went wrong when this engine wanted to load it.
    pub fn apparmor_state(&self) -> State {
        let failed = self.0.apparmor.try_lock().ok().and_then(|failed| failed.clone());
        match (state(), failed) {
            (State::NotLoaded(_), Some(why)) => State::NotLoaded(why),
            (state, _) => state,
        }
    }

    /// Loads it for a container if nobody has; once, unless it was asked for by name.
    pub(super) async fn prepare_apparmor(&self, security: &Security) {
        if wanted(security) != Some(DEFAULT_PROFILE) || !is_enabled() || is_loaded(DEFAULT_PROFILE).unwrap_or(false) {
            return;
        }
        let mut failed = self.0.apparmor.lock().await;
        if failed.is_some() && security.apparmor.is_unset() || is_loaded(DEFAULT_PROFILE).unwrap_or(false) {
            return;
        }
        let loaded = load().await;
        *failed = loaded.as_ref().err().map(ToString::to_string);
        // That there is no parser is no news: who asks is refused for it, and a daemon's start, its status and doctor say it to all others.
        if let Err(e) = loaded
            && parser().is_some()
        {
            tracing::warn!("load AppArmor profile {DEFAULT_PROFILE}: {e}; containers run unconfined by AppArmor");
        }
    }
}

async fn load() -> Result<()> {
    let program = parser().ok_or_else(|| Error::precondition(NO_PARSER))?;
    let said = exec::run(Call {
        program: program.to_owned(),
        // Its own cache is of files, and this is none.
        args: vec!["--replace".to_owned(), "--skip-cache".to_owned()],
        env: vec![("PATH".to_owned(), "/usr/sbin:/usr/bin:/sbin:/bin".to_owned())],
        stdin: SOURCE.as_bytes().to_vec(),
        until: tokio::time::Instant::now() + PARSER_TIMEOUT,
        patience: Duration::ZERO,
    })
    .await
    .context(|| program.display().to_string())?;
    // It may fail and end with 0: what counts is the kernel's list.
    if said.status.success() && is_loaded(DEFAULT_PROFILE)? {
        return Ok(());
    }
    Err(Error::internal(format!("{}: {}: {}", program.display(), said.status, said.stderr)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_found_by_its_whole_name() {
        let list = "podwright-default (enforce)\n/usr/bin/man//filter (complain)\nwith (brackets) (unconfined)\n";
        for (name, listed) in [
            ("podwright-default", true),
            ("/usr/bin/man//filter", true),
            ("with (brackets)", true),
            ("podwright", false),
            ("with", false),
            ("podwright-default (enforce)", false),
            ("", false),
        ] {
            assert_eq!(is_listed(list, name), listed, "{name:?}");
        }
    }

    #[test]
    fn a_privileged_container_is_unconfined_unless_it_names_a_profile() {
        let of = |privileged, apparmor| Security { privileged, apparmor, ..Security::default() };
        assert_eq!(wanted(&of(true, AppArmorProfile::Unset)), None);
        assert_eq!(wanted(&of(true, AppArmorProfile::RuntimeDefault)), None);
        assert_eq!(wanted(&of(true, AppArmorProfile::Localhost("a".into()))), Some("a"));
        assert_eq!(wanted(&of(false, AppArmorProfile::RuntimeDefault)), Some(DEFAULT_PROFILE));
        assert_eq!(wanted(&of(false, AppArmorProfile::Unconfined)), None);
    }

    #[test]
    fn the_profile_bears_the_name_it_is_asked_for_by() {
        assert!(SOURCE.contains(&format!("\nprofile {DEFAULT_PROFILE} ")));
        assert!(SOURCE.contains(&format!("signal (send,receive) peer={DEFAULT_PROFILE},")));
    }
}
