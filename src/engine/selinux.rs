//! SELinux: whether pods have labels on this host, and which. What is done with the labels is in `launch`, and in [`super::relabel`].
//!
//! As for CRI-O and containerd the policy says what a container is by default (`lxc_contexts`, which container-selinux installs), and two
//! categories that no other pod has keep the pods apart: a label's level, `s0:c17,c512`. Which are taken is what the pods' records say, as for
//! ids. Whoever is privileged or sees the host's processes or its IPC is `spc_t`, which the policy does not confine, unless a type is asked
//! for. Every label is shown to the kernel before anything is made, which says whether its policy knows it and lets podwright start it.

use crate::error::{Context, Error, Result};
use crate::state::model::{NamespaceMode, PodConfig, SelinuxLabels, SelinuxOptions};
use crate::sys;
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::Path;

/// selinuxfs; there where the kernel was booted with SELinux and somebody (systemd) has mounted it.
const FS: &str = "/sys/fs/selinux";
/// Which of the policies below /etc/selinux is meant, selinux_config(5).
const CONFIG: &str = "/etc/selinux/config";
/// Where container-selinux says it for every policy (go-selinux reads it first).
const CONTEXTS: &str = "/usr/share/containers/selinux/contexts";
/// The largest of these files that is read.
const MAX_FILE_BYTES: u64 = 64 << 10;
/// What a container is where no file says it.
const PROCESS: &str = "system_u:system_r:container_t:s0";
const FILE: &str = "system_u:object_r:container_file_t:s0";
/// The type of what is not confined.
pub const UNCONFINED: &str = "spc_t";
/// Categories that there are in every policy of the field, c0 to c1023: 523,776 pairs.
const CATEGORIES: u16 = 1024;
/// How many pairs are drawn before it is said that there are none left.
const DRAWS: u32 = 10_000;

/// What SELinux is on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// The kernel has none, or was booted without.
    Off,
    /// `selinux.enable = false`.
    TurnedOff,
    /// Why pods have no labels: the policy knows nothing of containers.
    NoTypes(String),
    /// Nobody can say: no pod is made, which would have no labels for all its life.
    Unknown(String),
    On(Policy),
}

/// What the policy has for containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    process: Label,
    file: Label,
    /// Whether a denial is more than a line of the log.
    enforcing: bool,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            State::Off => f.write_str("not enabled on this host"),
            State::TurnedOff => f.write_str("no labels: selinux.enable is false"),
            State::NoTypes(why) => write!(f, "no labels: {why}"),
            State::Unknown(why) => write!(f, "unknown: {why}"),
            State::On(policy) => {
                let mode = if policy.enforcing { "enforcing" } else { "permissive" };
                write!(f, "{mode}, containers are {}, their files {}", policy.process, policy.file)
            }
        }
    }
}

/// `user:role:type[:level]`; a level has colons of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Label {
    user: String,
    role: String,
    kind: String,
    /// `None` in a policy without levels.
    level: Option<String>,
}

impl Label {
    fn parse(text: &str) -> Option<Label> {
        let mut parts = text.splitn(4, ':').map(str::to_owned);
        let (user, role, kind) = (parts.next()?, parts.next()?, parts.next()?);
        let level = parts.next();
        let all = SelinuxOptions { user, role, kind, level: level.clone().unwrap_or_default() };
        let whole = all.parts().iter().take(3).all(|(_, part)| !part.is_empty()) && level.as_deref() != Some("");
        let good = whole && all.parts().iter().all(|(name, part)| SelinuxOptions::is_part(name, part));
        good.then_some(Label { user: all.user, role: all.role, kind: all.kind, level })
    }

    /// With what is asked for instead.
    fn with(&self, asked: &SelinuxOptions) -> Label {
        let or = |asked: &String, own: &String| if asked.is_empty() { own.clone() } else { asked.clone() };
        Label {
            user: or(&asked.user, &self.user),
            role: or(&asked.role, &self.role),
            kind: or(&asked.kind, &self.kind),
            level: if asked.level.is_empty() { self.level.clone() } else { Some(asked.level.clone()) },
        }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.user, self.role, self.kind)?;
        self.level.as_ref().map_or(Ok(()), |level| write!(f, ":{level}"))
    }
}

/// What SELinux is here, as far as pods are concerned. `enable`: the configuration.
pub fn state(enable: bool) -> State {
    let path = Path::new(FS).join("enforce");
    let enforce = match std::fs::read_to_string(&path) {
        Ok(enforce) => enforce,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return State::Off,
        Err(e) => return State::Unknown(format!("read {}: {e}", path.display())),
    };
    if !enable {
        return State::TurnedOff;
    }
    let (process, file) = contexts();
    let known = |text: &str| {
        let Some(label) = Label::parse(text) else {
            return Err(Box::new(State::NoTypes(format!("lxc_contexts has {text:?}, which is no label"))));
        };
        match canonical(&label) {
            Ok(Some(_)) => Ok(label),
            Ok(None) => {
                let why = format!("the loaded policy does not know {label}; install container-selinux");
                Err(Box::new(State::NoTypes(why)))
            }
            Err(e) => Err(Box::new(State::Unknown(e.to_string()))),
        }
    };
    match (known(&process), known(&file)) {
        (Ok(process), Ok(file)) => State::On(Policy { process, file, enforcing: enforce.trim() == "1" }),
        (Err(state), _) | (_, Err(state)) => *state,
    }
}

/// What the policy's files say of a container's processes and files.
fn contexts() -> (String, String) {
    let read = |path: &Path| {
        let mut text = String::new();
        File::open(path).and_then(|file| file.take(MAX_FILE_BYTES).read_to_string(&mut text)).ok().map(|_| text)
    };
    let of_policy = || {
        let config = read(Path::new(CONFIG))?;
        let name = config.lines().find_map(|line| line.trim().strip_prefix("SELINUXTYPE="))?.trim().to_owned();
        // A name of a directory, and no way to another one.
        let plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
        if plain { read(&Path::new("/etc/selinux").join(name).join("contexts/lxc_contexts")) } else { None }
    };
    let text = read(Path::new(CONTEXTS)).or_else(of_policy).unwrap_or_default();
    (value(&text, "process").unwrap_or(PROCESS).to_owned(), value(&text, "file").unwrap_or(FILE).to_owned())
}

/// `key = "value"`, the quotes as one likes; `#` begins a comment.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().filter(|line| !line.trim_start().starts_with('#')).find_map(|line| {
        let (name, value) = line.split_once('=')?;
        (name.trim() == key).then(|| value.trim().trim_matches(['"', '\''])).filter(|value| !value.is_empty())
    })
}

/// The label as the kernel writes it; `None`: its policy has no such label.
fn canonical(label: &Label) -> Result<Option<String>> {
    match transaction("context", &label.to_string()) {
        Err(e) if e.raw_os_error() == Some(EINVAL) => Ok(None),
        answer => Ok(Some(answer.context(|| format!("ask the kernel for the label {label}"))?)),
    }
}

/// asm-generic/errno-base.h
const EINVAL: i32 = 22;
/// The longest answer: a page, as the kernel has it.
const MAX_ANSWER: u64 = 4096;

/// Writes a question to a file of selinuxfs and reads the answer from it.
fn transaction(file: &str, question: &str) -> std::io::Result<String> {
    let mut file = File::options().read(true).write(true).open(Path::new(FS).join(file))?;
    file.write_all(question.as_bytes())?;
    let mut answer = String::new();
    file.take(MAX_ANSWER).read_to_string(&mut answer)?;
    Ok(answer.trim_end_matches(['\0', '\n']).to_owned())
}

/// Whether the policy lets podwright start a process with that label. Where it is not enforced it does.
fn may_start(label: &str) -> Result<bool> {
    let number = |path: &str| {
        let text = std::fs::read_to_string(Path::new(FS).join(path)).context(|| format!("read {FS}/{path}"))?;
        text.trim().parse::<u32>().map_err(|e| Error::internal(format!("{FS}/{path}: {e}")))
    };
    // What a policy does not name it allows or denies as a whole; then the start says it.
    let (Ok(class), Ok(transition)) = (number("class/process/index"), number("class/process/perms/transition")) else {
        return Ok(true);
    };
    let own = own_label()?;
    let answer = transaction("access", &format!("{own} {label} {class}"));
    let answer = answer.context(|| format!("ask the kernel whether {own} may become {label}"))?;
    Ok(is_allowed(&answer, transition))
}

/// `allowed decided auditallow auditdeny seqno flags` (security/selinux/selinuxfs.c), hexadecimal but for the last but one.
fn is_allowed(answer: &str, permission: u32) -> bool {
    let words: Vec<u32> = answer.split(' ').map(|word| u32::from_str_radix(word, 16).unwrap_or(0)).collect();
    let (allowed, flags) = (words.first().copied().unwrap_or(0), words.get(5).copied().unwrap_or(0));
    /// AVD_FLAGS_PERMISSIVE
    const PERMISSIVE: u32 = 1;
    flags & PERMISSIVE != 0 || permission.checked_sub(1).is_some_and(|bit| allowed >> bit & 1 == 1)
}

/// podwright's own.
fn own_label() -> Result<String> {
    let text = std::fs::read_to_string("/proc/self/attr/current").context(|| "read podwright's own label")?;
    Ok(text.trim_end_matches(['\0', '\n']).to_owned())
}

impl Policy {
    /// Why podwright cannot start containers under this policy, if it cannot.
    pub fn refuses(&self) -> Option<String> {
        if !self.enforcing {
            return None;
        }
        match (may_start(&self.process.to_string()), own_label()) {
            (Ok(false), Ok(own)) => Some(format!("podwright runs as {own}, which may not start {}", self.process)),
            (Err(e), _) => Some(e.to_string()),
            _ => None,
        }
    }

    /// Whether a label has a level, which pods are told apart by.
    pub(super) fn has_levels(&self) -> bool {
        self.process.level.is_some()
    }

    /// The labels of what asks for `asked`. `level`: the pod's, which `asked` may replace.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the part that the loaded policy does not know; `FailedPrecondition` for a label that podwright may not start
    /// processes with.
    pub(super) fn labels(
        &self,
        asked: &SelinuxOptions,
        level: Option<&str>,
        unconfined: bool,
    ) -> Result<SelinuxLabels> {
        for (name, text) in asked.parts() {
            if !SelinuxOptions::is_part(name, text) {
                return Err(Error::invalid(format!("selinux_options.{name}: {text:?} cannot be part of a label")));
            }
        }
        if !self.has_levels() && !asked.level.is_empty() {
            let level = &asked.level;
            return Err(Error::invalid(format!("selinux_options.level: {level:?}: the loaded policy has no levels")));
        }
        let with_level = |label: &Label| match (level, &label.level) {
            (Some(level), Some(_)) => Label { level: Some(level.to_owned()), ..label.clone() },
            _ => label.clone(),
        };
        // Of files not the role, which is object_r for all of them, nor the type, which processes have others of.
        let of_files = SelinuxOptions { role: String::new(), kind: String::new(), ..asked.clone() };
        let file = self.checked(&with_level(&self.file), &of_files)?;
        let mut process = with_level(&self.process);
        if unconfined && asked.kind.is_empty() {
            process.kind = UNCONFINED.to_owned();
            if canonical(&process)?.is_none() {
                return Ok(SelinuxLabels { process: None, file });
            }
        }
        let process = self.checked(&process, asked)?;
        if self.enforcing && !may_start(&process)? {
            let own = own_label()?;
            let field = if asked.kind.is_empty() {
                "selinux_options".to_owned()
            } else {
                format!("selinux_options.type: {:?}", asked.kind)
            };
            return Err(Error::precondition(format!(
                "{field}: the loaded policy does not let podwright, which is {own}, start a process as {process}"
            )));
        }
        Ok(SelinuxLabels { process: Some(process), file })
    }

    /// The label with what is asked for, as the kernel writes it.
    fn checked(&self, label: &Label, asked: &SelinuxOptions) -> Result<String> {
        if let Some(known) = canonical(&label.with(asked))? {
            return Ok(known);
        }
        for (name, text) in asked.parts().into_iter().filter(|(_, text)| !text.is_empty()) {
            let mut alone = SelinuxOptions::default();
            match name {
                "user" => alone.user = text.to_owned(),
                "role" => alone.role = text.to_owned(),
                "type" => alone.kind = text.to_owned(),
                _ => alone.level = text.to_owned(),
            }
            let tried = label.with(&alone);
            if canonical(&tried)?.is_none() {
                return Err(Error::invalid(format!(
                    "selinux_options.{name}: {text:?}: the loaded policy has no label {tried}"
                )));
            }
        }
        Err(Error::invalid(format!("selinux_options: the loaded policy has no label {}", label.with(asked))))
    }
}

/// Whether what runs in a pod is with the host's own, whatever it asks for.
fn with_the_host(config: &PodConfig) -> bool {
    config.namespaces.pid == NamespaceMode::Node || config.namespaces.ipc == NamespaceMode::Node
}

/// The labels of a pod. `used`: whether another pod has a level.
///
/// # Errors
/// As [`Policy::labels`]; `ResourceExhausted` when no level is left.
pub(super) fn of_pod(policy: &Policy, config: &PodConfig, used: impl Fn(&str) -> bool) -> Result<SelinuxLabels> {
    let level = match policy.has_levels() && config.selinux.level.is_empty() {
        true => Some(draw(used)?),
        false => None,
    };
    policy.labels(&config.selinux, level.as_deref(), with_the_host(config))
}

/// The labels of a container in a pod that has some.
///
/// # Errors
/// As [`Policy::labels`].
pub(super) fn of_container(
    policy: &Policy,
    pod: &SelinuxLabels,
    config: &PodConfig,
    asked: &SelinuxOptions,
    privileged: bool,
) -> Result<SelinuxLabels> {
    let asked = if asked.is_unset() { &config.selinux } else { asked };
    let level = Label::parse(&pod.file).and_then(|label| label.level);
    policy.labels(asked, level.as_deref(), privileged || with_the_host(config))
}

/// Whether the policy confines what has this label.
pub(super) fn is_confined(labels: &SelinuxLabels) -> bool {
    let label = labels.process.as_deref().and_then(Label::parse);
    label.is_some_and(|label| label.kind != UNCONFINED)
}

/// A level of two categories that no pod has.
fn draw(used: impl Fn(&str) -> bool) -> Result<String> {
    for _ in 0..DRAWS {
        let mut random = [0; 4];
        sys::random(&mut random);
        let [a, b, c, d] = random;
        // 2^16 is a multiple of 1024: none is likelier than another.
        let (one, other) = (u16::from_ne_bytes([a, b]) % CATEGORIES, u16::from_ne_bytes([c, d]) % CATEGORIES);
        let level = format!("s0:c{},c{}", one.min(other), one.max(other));
        if one != other && !used(&level) {
            return Ok(level);
        }
    }
    Err(Error::exhausted("no pair of SELinux categories was found that no other pod has"))
}

/// Whether a record's text has a label of that level.
pub(super) fn has_level(record: &[u8], level: &str) -> bool {
    let ending = format!(":{level}\"");
    record.windows(ending.len()).any(|part| part == ending.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_has_three_parts_and_perhaps_a_level() {
        let label = Label::parse("system_u:system_r:container_t:s0:c1,c2").expect("a label");
        assert_eq!((label.kind.as_str(), label.level.as_deref()), ("container_t", Some("s0:c1,c2")));
        assert_eq!(label.to_string(), "system_u:system_r:container_t:s0:c1,c2");
        assert_eq!(Label::parse("u:r:t").expect("a label").to_string(), "u:r:t");
        for bad in ["", "u:r", "u::t:s0", "u:r:t:", "u:r:t:s0 x", "u:r:t\"", "kernel"] {
            assert_eq!(Label::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn what_is_asked_for_replaces_its_part_and_no_other() {
        let label = Label::parse(PROCESS).expect("a label");
        let asked = SelinuxOptions { kind: "spc_t".into(), level: "s0:c3".into(), ..SelinuxOptions::default() };
        assert_eq!(label.with(&asked).to_string(), "system_u:system_r:spc_t:s0:c3");
        assert_eq!(label.with(&SelinuxOptions::default()), label);
    }

    #[test]
    fn the_policys_file_is_read_with_and_without_spaces() {
        let text =
            "# process = \"no\"\nprocess = \"a:b:c:s0\"\nro_file=\"x\"\nfile=\"d:e:f:s0\"\ninit_process = \"z\"\n";
        assert_eq!((value(text, "process"), value(text, "file")), (Some("a:b:c:s0"), Some("d:e:f:s0")));
        assert_eq!(value("process = \"\"\n", "process"), None);
    }

    #[test]
    fn a_level_is_two_categories_that_no_record_has() {
        let first = draw(|_| false).expect("one");
        let record = format!("{{\"selinux\":{{\"process\":\"u:r:t:{first}\",\"file\":\"u:o:f:{first}\"}}}}");
        assert!(has_level(record.as_bytes(), &first));
        assert!(!has_level(record.as_bytes(), "s0:c1"), "{record}");
        assert!(!has_level(b"\"u:r:t:s0:c1,c23\"", "s0:c1,c2"));
        assert_eq!(draw(|_| true).expect_err("none").kind(), crate::error::Kind::ResourceExhausted);
        for _ in 0..100 {
            let level = draw(|_| false).expect("one");
            let (low, high) = level.strip_prefix("s0:c").and_then(|pair| pair.split_once(",c")).expect("a pair");
            assert!(low.parse::<u16>().expect("a number") < high.parse::<u16>().expect("a number"), "{level}");
        }
    }

    #[test]
    fn the_kernels_answer_is_read_by_its_bit() {
        assert!(is_allowed("2 ffffffff 0 ffffffff 1 0", 2));
        assert!(!is_allowed("2 ffffffff 0 ffffffff 1 0", 1));
        assert!(is_allowed("0 ffffffff 0 ffffffff 1 1", 2), "a permissive domain");
        assert!(!is_allowed("", 2));
    }
}
