//! Which pods there are, and which of them the user means. Pods belong to a daemon or to instances of `podwright run`; a command reads
//! them from records and shims, and so needs neither to look at them.
//!
//! What is left of an instance whose `run` was killed is taken away first: a command never shows the dead as living.

use super::{Session, run, status};
use crate::engine::query::{ContainerStatus, PodStatus};
use crate::engine::{Engine, Options, sweep};
use crate::error::{Error, Result, did_you_mean};

/// Digits of an id that are enough, when they are no name: fewer are a slip.
const MIN_PREFIX: usize = 4;
/// Candidates that an error lists.
const MAX_LISTED: usize = 10;

/// A pod, and the engine that sees it.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub engine: Engine,
    pub pod: PodStatus,
    /// The newest first.
    pub containers: Vec<ContainerStatus>,
}

impl Found {
    /// Whether it is a daemon's pod, and not that of a `run` by itself.
    pub(super) fn is_daemons(&self) -> bool {
        self.engine.paths().instance.is_none()
    }

    /// `web`, or `namespace/web` where that is not the default.
    pub(super) fn name(&self) -> String {
        let config = &self.pod.record.config;
        if config.namespace == "default" {
            config.name.clone()
        } else {
            format!("{}/{}", config.namespace, config.name)
        }
    }

    /// The newest attempt of each container, in the order of the manifest.
    pub(super) fn current(&self) -> Vec<&ContainerStatus> {
        let mut current: Vec<&ContainerStatus> = Vec::new();
        for container in self.containers.iter().rev() {
            match current.iter_mut().find(|c| c.record.config.name == container.record.config.name) {
                Some(older) => *older = container,
                None => current.push(container),
            }
        }
        let roles = status::roles(&self.pod.record.config);
        current.sort_by_key(|c| roles.iter().position(|(name, _)| *name == c.record.config.name));
        current
    }

    /// The one app container, for whoever names only the pod.
    fn only_app(&self) -> Option<&ContainerStatus> {
        let roles = status::roles(&self.pod.record.config);
        let mut apps = roles.iter().filter(|(_, role)| *role == "app");
        let (only, None) = (apps.next()?, apps.next()) else { return None };
        self.current().into_iter().find(|c| c.record.config.name == only.0)
    }

    fn entry(&self) -> Entry {
        let config = &self.pod.record.config;
        Entry {
            namespace: config.namespace.clone(),
            name: config.name.clone(),
            id: self.pod.record.id.to_string(),
            containers: self
                .containers
                .iter()
                .map(|c| (c.record.config.name.clone(), c.record.id.to_string()))
                .collect(),
        }
    }
}

/// What a word of the command line stands for.
#[derive(Debug, Clone)]
pub(super) enum Target {
    Pod(Found),
    Container(Found, Box<ContainerStatus>),
}

/// All pods, the newest first, after what dead instances left was taken away.
///
/// # Errors
/// `Unsupported` without cgroup v2, `Internal`. What cannot be read of one pod is logged, and the others are listed.
pub(super) async fn all(session: &Session) -> Result<Vec<Found>> {
    let options = run::options(session, None)?;
    if let Err(e) = sweep::sweep_dead(&options).await {
        tracing::warn!("{e}");
    }
    // One that is dead could not be swept, and that was told.
    let alive = sweep::instances(&options.paths)?.into_iter().filter(|(_, alive)| *alive);
    let of_runs = alive.map(|(instance, _)| options.paths.of_instance(instance));
    let mut all = Vec::new();
    for paths in std::iter::once(options.paths.clone()).chain(of_runs) {
        let engine = Engine::open(Options { paths, ..options.clone() })?;
        for unreadable in engine.observe().await? {
            tracing::debug!("{unreadable}"); // most often a pod that ends or begins at this moment
        }
        let containers = engine.list_containers();
        all.extend(engine.list_pods().into_iter().map(|pod| Found {
            engine: engine.clone(),
            containers: containers.iter().filter(|c| c.record.pod == pod.record.id).cloned().collect(),
            pod,
        }));
    }
    all.sort_by_key(|found| std::cmp::Reverse(found.pod.record.created_at_ns));
    Ok(all)
}

/// What each of `words` stands for.
///
/// # Errors
/// `NotFound` with names that are near; `InvalidArgument` with the candidates when there are several.
pub(super) fn targets(all: &[Found], words: &[String]) -> Result<Vec<Target>> {
    words.iter().map(|word| target(all, word)).collect()
}

/// What `word` stands for: POD, NAMESPACE/POD, POD/CONTAINER, NAMESPACE/POD/CONTAINER, or the first digits of an id.
///
/// # Errors
/// As [`targets`].
pub(super) fn target(all: &[Found], word: &str) -> Result<Target> {
    let entries: Vec<Entry> = all.iter().map(Found::entry).collect();
    Ok(match resolve(&entries, word)? {
        Place { pod, container: None } => Target::Pod(all[pod].clone()),
        Place { pod, container: Some(index) } => {
            Target::Container(all[pod].clone(), Box::new(all[pod].containers[index].clone()))
        }
    })
}

/// The container that `word` stands for, with `-c` if that was given; a pod of one container (beside init containers and sidecars)
/// needs no more than its name.
///
/// # Errors
/// As [`targets`]; `InvalidArgument` for a pod of several, listing them.
pub(super) fn container(all: &[Found], word: &str, name: Option<&str>) -> Result<(Found, ContainerStatus)> {
    let found = match (target(all, word)?, name) {
        (Target::Container(found, container), None) => return Ok((found, *container)),
        (Target::Container(_, container), Some(_)) => {
            let own = &container.record.config.name;
            return Err(Error::invalid(format!("{word:?} is container {own} already; leave --container out")));
        }
        (Target::Pod(found), _) => found,
    };
    let current = found.current();
    let names: Vec<&str> = current.iter().map(|c| c.record.config.name.as_str()).collect();
    let chosen = match (name, current.as_slice()) {
        (Some(name), _) => current.iter().find(|c| c.record.config.name == name),
        (None, [only]) => Some(only),
        (None, _) if found.only_app().is_some() => {
            current.iter().find(|c| found.only_app().is_some_and(|a| a.record.id == c.record.id))
        }
        (None, []) => return Err(Error::precondition(format!("pod {} has no container yet", found.name()))),
        (None, _) => {
            let why = format!("pod {} has several containers; name one: {}", found.name(), names.join(", "));
            return Err(Error::invalid(why));
        }
    };
    match chosen {
        Some(container) => Ok(((found).clone(), (*container).clone())),
        None => {
            let why =
                format!("pod {} has no container {:?}; it has {}", found.name(), name.unwrap_or(""), names.join(", "));
            Err(Error::not_found(why))
        }
    }
}

/// What names are looked up in.
#[derive(Debug)]
struct Entry {
    namespace: String,
    name: String,
    id: String,
    /// Name and id, the newest first.
    containers: Vec<(String, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    pod: usize,
    container: Option<usize>,
}

fn resolve(all: &[Entry], word: &str) -> Result<Place> {
    let mut found = by_name(all, word);
    if found.is_empty() {
        found = by_id(all, word);
    }
    match found.as_slice() {
        [one] => Ok(*one),
        [] => Err(absent(all, word)),
        several => {
            let list: Vec<String> = several.iter().take(MAX_LISTED).map(|p| describe(all, *p)).collect();
            let more = several.len().saturating_sub(MAX_LISTED);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            Err(Error::invalid(format!("{word:?} may be {}{more}; use more of the id", list.join(", "))))
        }
    }
}

/// Every reading of `word` as names. Of several attempts of a container the newest is meant.
fn by_name(all: &[Entry], word: &str) -> Vec<Place> {
    let parts: Vec<&str> = word.split('/').collect();
    let mut found = Vec::new();
    for (pod, entry) in all.iter().enumerate() {
        let container = |name: &str| entry.containers.iter().position(|(n, _)| n == name);
        let named = |name: &str| entry.name == name || is_id(&entry.id, name);
        match parts.as_slice() {
            [name] if entry.name == *name => found.push(Place { pod, container: None }),
            [first, second] => {
                if let (true, Some(index)) = (named(first), container(second)) {
                    found.push(Place { pod, container: Some(index) });
                }
                if entry.namespace == *first && entry.name == *second {
                    found.push(Place { pod, container: None });
                }
            }
            [namespace, name, third] if entry.namespace == *namespace && entry.name == *name => {
                found.extend(container(third).map(|index| Place { pod, container: Some(index) }));
            }
            _ => {}
        }
    }
    found
}

fn by_id(all: &[Entry], word: &str) -> Vec<Place> {
    let mut found = Vec::new();
    for (pod, entry) in all.iter().enumerate() {
        if is_id(&entry.id, word) {
            found.push(Place { pod, container: None });
        }
        let containers = entry.containers.iter().enumerate().filter(|(_, (_, id))| is_id(id, word));
        found.extend(containers.map(|(index, _)| Place { pod, container: Some(index) }));
    }
    found
}

fn is_id(id: &str, digits: &str) -> bool {
    digits.len() >= MIN_PREFIX && id.starts_with(digits)
}

fn describe(all: &[Entry], place: Place) -> String {
    let pod = &all[place.pod];
    match place.container {
        None => format!("pod {}/{} ({})", pod.namespace, pod.name, &pod.id[..12]),
        Some(index) => {
            let (name, id) = &pod.containers[index];
            format!("container {}/{name} ({})", pod.name, &id[..12])
        }
    }
}

fn absent(all: &[Entry], word: &str) -> Error {
    if all.is_empty() {
        return Error::not_found(format!("{word:?}: there are no pods; `podwright run` runs one"));
    }
    let names: Vec<String> = all
        .iter()
        .flat_map(|pod| {
            let containers = pod.containers.iter().map(|(name, _)| format!("{}/{name}", pod.name));
            [pod.name.clone()].into_iter().chain(containers)
        })
        .collect();
    match did_you_mean(word, names.iter().map(String::as_str)) {
        Some(near) => Error::not_found(format!("no pod or container {word:?}; did you mean {near}?")),
        None => {
            let mut pods: Vec<&str> = all.iter().map(|p| p.name.as_str()).take(MAX_LISTED).collect();
            pods.dedup();
            Error::not_found(format!("no pod or container {word:?}; there is {}", pods.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(namespace: &str, name: &str, id: &str, containers: &[(&str, &str)]) -> Entry {
        let long = |id: &str| format!("{id:0<64}");
        Entry {
            namespace: namespace.into(),
            name: name.into(),
            id: long(id),
            containers: containers.iter().map(|(n, id)| ((*n).to_owned(), long(id))).collect(),
        }
    }

    fn pods() -> Vec<Entry> {
        vec![
            entry("default", "web", "aaaa1", &[("nginx", "cccc2"), ("log", "cccc3"), ("nginx", "cccc1")]),
            entry("test", "web", "aaaa2", &[]),
            entry("default", "db", "bbbb1", &[("pg", "dddd1")]),
            entry("db", "pg", "bbbb2", &[]),
        ]
    }

    #[test]
    fn a_word_is_a_pod_a_container_or_the_start_of_an_id() {
        let all = pods();
        let place = |pod, container| Place { pod, container };
        for (word, expected) in [
            ("db", place(2, None)),
            ("test/web", place(1, None)),
            ("default/web", place(0, None)),
            ("web/nginx", place(0, Some(0))),
            ("aaaa1/log", place(0, Some(1))),
            ("default/web/log", place(0, Some(1))),
            ("aaaa2", place(1, None)),
            ("cccc1", place(0, Some(2))),
            ("dddd", place(2, Some(0))),
        ] {
            assert_eq!(resolve(&all, word).expect(word), expected, "{word}");
        }
    }

    #[test]
    fn a_word_that_means_several_things_is_refused_with_the_candidates() {
        let all = pods();
        for (word, candidates) in [
            ("web", ["pod default/web (aaaa10000000)", "pod test/web (aaaa20000000)"]),
            ("aaaa", ["pod default/web", "pod test/web"]),
            ("db/pg", ["container db/pg", "pod db/pg"]),
        ] {
            let told = resolve(&all, word).expect_err(word).to_string();
            assert!(candidates.iter().all(|c| told.contains(c)), "{word}: {told}");
        }
    }

    #[test]
    fn what_is_not_there_is_told_with_what_is_near_or_what_there_is() {
        let all = pods();
        let told = |word: &str| resolve(&all, word).expect_err(word).to_string();
        assert!(told("wbe").contains("did you mean web?"), "{}", told("wbe"));
        assert!(told("web/ngnix").contains("did you mean web/nginx?"), "{}", told("web/ngnix"));
        assert!(told("aaa").contains("there is web, db"), "too few digits: {}", told("aaa"));
        assert!(resolve(&[], "x").expect_err("none").to_string().contains("there are no pods"));
    }
}
