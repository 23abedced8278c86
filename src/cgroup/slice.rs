//! What systemd calls the cgroups that it makes: slices and the scope of a pod, and where these are. No I/O.

use super::path::CgroupPath;
use crate::error::{Error, Result};

/// The longest name of a unit, in bytes: systemd.unit(5).
const MAX_UNIT_BYTES: usize = 255;
const SLICE: &str = ".slice";

/// Whether a parent is named as for systemd's driver: `kubepods.slice`, or the path of one, which a kubelet gives.
pub fn is_slice(parent: &str) -> bool {
    parent.trim_end_matches('/').ends_with(SLICE)
}

/// A slice's name without what is in front of it in a path: of `/a.slice/a-b.slice` it says all.
pub fn name_of(parent: &str) -> &str {
    let parent = parent.trim_end_matches('/');
    parent.rsplit_once('/').map_or(parent, |(_, name)| name)
}

/// Where a slice is, systemd.slice(5): `a-b.slice` is `/a.slice/a-b.slice`, and `-.slice` is the root.
///
/// # Errors
/// `InvalidArgument` for what is no name of a slice.
pub fn path_of(slice: &str) -> Result<CgroupPath> {
    let wrong = |why: &str| Error::invalid(format!("slice {slice:?} {why}; a-b.slice is one, in a.slice"));
    let words = slice.strip_suffix(SLICE).ok_or_else(|| wrong("does not end in .slice"))?;
    if words == "-" {
        return Ok(CgroupPath::root());
    }
    if slice.len() > MAX_UNIT_BYTES {
        return Err(wrong("has more than 255 bytes"));
    }
    // Of what a unit may be called all but the escapes, `\x2d`: nobody who names cgroups for podwright writes them.
    let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, ':' | '_' | '.' | '-');
    if !words.chars().all(letter) {
        return Err(wrong("has more in it than letters, digits and ':_.-'"));
    }
    if words.split('-').any(str::is_empty) {
        return Err(wrong("has an empty word between its dashes"));
    }
    let mut path = CgroupPath::root();
    for end in words.match_indices('-').map(|(at, _)| at).chain([words.len()]) {
        path = path.child(&format!("{}{SLICE}", &words[..end]))?;
    }
    Ok(path)
}

/// The slice that `cgroup.root` means: one that it names itself, else its words: `/podwright` is `podwright.slice`. What is a dash in
/// a word becomes an underscore, as a kubelet does it, for a dash leads one slice down.
///
/// # Errors
/// `InvalidArgument` for what no slice can be called.
pub fn of_root(root: &str) -> Result<String> {
    let name = if is_slice(root) {
        name_of(root).to_owned()
    } else {
        let words: Vec<String> = root.split('/').filter(|w| !w.is_empty()).map(|w| w.replace('-', "_")).collect();
        format!("{}{SLICE}", words.join("-"))
    };
    path_of(&name).map(|_| name)
}

/// The scope of a pod.
pub fn scope_of(pod: &str) -> String {
    format!("podwright-{pod}.scope")
}

/// The scope of the shims that belong to a slice.
pub fn shims_of(slice: &str) -> String {
    format!("{}-shims.scope", slice.strip_suffix(SLICE).unwrap_or(slice))
}

/// The part of a cgroup's path that ends with the scope of that pod; `None`: systemd did not make it.
pub fn scope_in<'a>(cgroup: &'a str, pod: &str) -> Option<&'a str> {
    let name = format!("/{}", scope_of(pod));
    let end = cgroup.find(&name)? + name.len();
    let rest = &cgroup[end..];
    (rest.is_empty() || rest.starts_with('/')).then_some(&cgroup[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(slice: &str) -> String {
        path_of(slice).expect(slice).to_string()
    }

    #[test]
    fn a_slice_is_in_the_slices_that_its_name_says() {
        assert_eq!(path("kubepods.slice"), "/kubepods.slice");
        assert_eq!(path("a-b-c.slice"), "/a.slice/a-b.slice/a-b-c.slice");
        assert_eq!(path("-.slice"), "/");
        assert_eq!(
            path("kubepods-besteffort-pod123e4567_e89b.slice"),
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod123e4567_e89b.slice"
        );
    }

    #[test]
    fn what_systemd_would_refuse_or_take_for_something_else_is_refused() {
        let long = format!("{}.slice", "x".repeat(250));
        for bad in [
            "",
            "a",
            ".slice",
            "--.slice",
            "-a.slice",
            "a-.slice",
            "a--b.slice",
            "a b.slice",
            "a/b.slice",
            "../a.slice",
            "a\n.slice",
            "a\\x2db.slice",
            "ü.slice",
            "a.scope",
            &long,
        ] {
            assert!(path_of(bad).is_err(), "{bad:?} is {:?}", path_of(bad));
        }
    }

    #[test]
    fn of_a_kubelets_parent_the_last_slice_counts() {
        let parent = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podu.slice";
        assert!(is_slice(parent) && is_slice("a.slice") && is_slice("/a.slice/"));
        assert!(!is_slice("/kubepods/burstable/podu") && !is_slice(""));
        assert_eq!(name_of(parent), "kubepods-burstable-podu.slice");
        assert_eq!(path(name_of(parent)), parent, "and its name says where it is");
    }

    #[test]
    fn podwrights_own_slice_is_named_by_its_cgroup_root() {
        assert_eq!(of_root("/podwright").expect("valid"), "podwright.slice");
        assert_eq!(of_root("/a/b-c/").expect("valid"), "a-b_c.slice");
        assert_eq!(of_root("/machine.slice/machine-pods.slice").expect("valid"), "machine-pods.slice");
        assert!(of_root("/").is_err() && of_root("/a b").is_err());
        assert_eq!(shims_of("a-b.slice"), "a-b-shims.scope");
    }

    #[test]
    fn a_pods_scope_is_found_in_its_cgroups() {
        let scope = format!("/a.slice/{}", scope_of("123"));
        for cgroup in [scope.clone(), format!("{scope}/pod"), format!("{scope}/pod/456")] {
            assert_eq!(scope_in(&cgroup, "123"), Some(scope.as_str()), "{cgroup}");
            assert_eq!(scope_in(&cgroup, "12"), None);
        }
        assert_eq!(scope_in("/podwright/pods/123", "123"), None);
        assert_eq!(scope_in("/podwright-123.scopes", "123"), None);
    }
}
