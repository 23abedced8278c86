//! What a cgroup may be called: absolute paths in the v2 hierarchy, checked once. No I/O.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The longest component, in bytes: `NAME_MAX`, limits.h.
const MAX_COMPONENT_BYTES: usize = 255;
/// The longest path, in bytes, so that it and a file's name stay below `PATH_MAX` behind any mount point.
const MAX_PATH_BYTES: usize = 3072;

/// A cgroup's path in the v2 hierarchy: `/` or `/a/b`, without `.`, `..`, empty components or anything unprintable.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CgroupPath(String);

impl CgroupPath {
    /// The root of the hierarchy (as this process sees it, cgroup_namespaces(7)).
    pub fn root() -> Self {
        CgroupPath("/".to_owned())
    }

    /// The text, `/` or `/a/b`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is `/`.
    pub fn is_root(&self) -> bool {
        self.0 == "/"
    }

    /// The components, from the top.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/').filter(|c| !c.is_empty())
    }

    /// The cgroup `name` in this one.
    ///
    /// # Errors
    /// `InvalidArgument` for a name that is no single component, or that an interface file could have.
    pub fn child(&self, name: &str) -> Result<Self> {
        check_component(name, name)?;
        let path = if self.is_root() { format!("/{name}") } else { format!("{}/{name}", self.0) };
        check_length(&path)?;
        Ok(CgroupPath(path))
    }

    /// Appends a relative path, `burstable/pod1`.
    ///
    /// # Errors
    /// As [`CgroupPath::child`], for each component.
    pub fn join(&self, relative: &str) -> Result<Self> {
        relative.split('/').try_fold(self.clone(), |path, name| path.child(name))
    }

    /// The cgroup this one is in, and its name there; `None` for the root.
    pub fn split(&self) -> Option<(Self, &str)> {
        let (parent, name) = self.0.rsplit_once('/').filter(|_| !self.is_root())?;
        Some((CgroupPath(if parent.is_empty() { "/" } else { parent }.to_owned()), name))
    }

    /// Whether this is `other` or inside it.
    pub fn is_within(&self, other: &CgroupPath) -> bool {
        let rest = self.0.strip_prefix(other.0.as_str());
        other.is_root() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

fn check_length(path: &str) -> Result<()> {
    if path.len() > MAX_PATH_BYTES {
        return Err(Error::invalid(format!("cgroup path of {} bytes is longer than {MAX_PATH_BYTES}", path.len())));
    }
    Ok(())
}

/// A component must not be what the kernel may call a file there: `<controller>.<file>` (cgroup-v2.rst, "Avoid Name Collisions").
fn check_component(name: &str, whole: &str) -> Result<()> {
    /// Not `io.`, with which domain names start; what is a file there cannot be made or opened as a cgroup anyway.
    const PREFIXES: [&str; 7] = ["cgroup.", "cpu.", "cpuset.", "memory.", "pids.", "hugetlb.", "rdma."];
    let wrong = if name.is_empty() {
        "has an empty component"
    } else if name == "." || name == ".." {
        "has a component that leads elsewhere"
    } else if name.len() > MAX_COMPONENT_BYTES {
        "has a component of more than 255 bytes"
    } else if name.contains(|c: char| c == '/' || c.is_control() || c.is_whitespace()) {
        "has a component with a slash, space or control character"
    } else if PREFIXES.iter().any(|p| name.starts_with(p)) {
        "has a component that the kernel's own files could be called"
    } else {
        return Ok(());
    };
    Err(Error::invalid(format!("cgroup path {whole:?} {wrong}")))
}

impl std::str::FromStr for CgroupPath {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let Some(rest) = text.strip_prefix('/') else {
            return Err(Error::invalid(format!("cgroup path {text:?} does not start with /")));
        };
        check_length(text)?;
        if !rest.is_empty() {
            rest.split('/').try_for_each(|name| check_component(name, text))?;
        }
        Ok(CgroupPath(text.to_owned()))
    }
}

impl TryFrom<String> for CgroupPath {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<CgroupPath> for String {
    fn from(path: CgroupPath) -> String {
        path.0
    }
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> CgroupPath {
        text.parse().expect(text)
    }

    #[test]
    fn a_path_that_leads_elsewhere_or_hides_a_line_is_refused() {
        let long = format!("/{}", "a".repeat(256));
        let many = "/a".repeat(2000);
        for bad in [
            "",
            "a",
            "/a/",
            "//a",
            "/a//b",
            "/..",
            "/a/../b",
            "/.",
            "/a\nb",
            "/a b",
            "/memory.max",
            "/cgroup.x",
            &long,
            &many,
        ] {
            assert!(bad.parse::<CgroupPath>().is_err(), "{bad:?}");
        }
        for good in ["/", "/a", "/kubepods.slice/kubepods-pod1_2.slice", r"/a\x2db@1:2", "/exec-1", "/cpu"] {
            assert_eq!(path(good).as_str(), good);
        }
    }

    #[test]
    fn a_child_is_one_component() {
        assert_eq!(path("/").child("a").expect("child").as_str(), "/a");
        assert_eq!(path("/a").join("b/c").expect("join").as_str(), "/a/b/c");
        for bad in ["", "..", "a/b", "/a"] {
            assert!(path("/a").child(bad).is_err(), "{bad:?}");
        }
        assert!(path("/a").join("../b").is_err());
    }

    #[test]
    fn a_path_is_within_its_ancestors_only() {
        for (inner, outer, within) in
            [("/a/b", "/a", true), ("/a", "/a", true), ("/ab", "/a", false), ("/a", "/", true), ("/", "/a", false)]
        {
            assert_eq!(path(inner).is_within(&path(outer)), within, "{inner} {outer}");
        }
    }

    #[test]
    fn a_path_splits_into_parent_and_name() {
        assert_eq!(path("/").split(), None);
        assert_eq!(path("/a").split(), Some((path("/"), "a")));
        assert_eq!(path("/a/b").split(), Some((path("/a"), "b")));
    }
}
