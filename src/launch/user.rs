//! Who a container runs as: names looked up in the image's /etc/passwd and /etc/group, read beneath the root and bounded.
//!
//! The decision is made once, on the final number. What is written in digits is a number and never a name; out of range it is
//! refused. A number that passwd does not know has gid 0, no groups and the home `/` (as in Docker and containerd).

use super::plan::id_in_range;
use super::{StartError, Step};
use crate::state::record::User;
use crate::sys::credentials::GROUPS_MAX;
use crate::sys::openat2::{Links, Open, fstat, open_beneath};
use crate::wire::UserChoice;
use std::ffi::CStr;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};

/// The largest /etc/passwd or /etc/group that is read, in bytes: Debian's have 1 KiB.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// The longest line that is looked at, in bytes: a group with many members.
const MAX_LINE_BYTES: usize = 64 << 10;

/// A user and its home directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    pub user: User,
    pub home: String,
}

/// Resolves `choice` in the root directory `root`. The files are read only where a name or a number's entry is wanted.
///
/// # Errors
/// [`Step::User`], naming who or what: a user or group that is not there, a number out of range, root where it is refused, a
/// file that is no regular file or too large.
pub fn resolve(root: BorrowedFd<'_>, choice: &UserChoice) -> Result<Resolved, StartError> {
    let passwd = read_file(root, c"etc/passwd")?;
    let group = read_file(root, c"etc/group")?;
    lookup(choice, &passwd, &group)
}

/// A file of the image; empty when it is not there.
fn read_file(root: BorrowedFd<'_>, path: &CStr) -> Result<String, StartError> {
    let name = path.to_string_lossy();
    let os = |e: io::Error| StartError::os(Step::User, &format!("/{name}"), e.raw_os_error().unwrap_or(0));
    let file = match open_beneath(root, path, Links::InRoot, Open::Read) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => return Ok(String::new()),
        opened => opened.map_err(os)?,
    };
    let stat = fstat(file.as_fd()).map_err(os)?;
    if !stat.is_file {
        return Err(StartError::refused(Step::User, format!("/{name} of the image is not a regular file")));
    }
    let too_large =
        || StartError::refused(Step::User, format!("/{name} of the image is larger than {MAX_FILE_BYTES} bytes"));
    if stat.size_bytes > MAX_FILE_BYTES {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    let read = std::fs::File::from(file).take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(os)?;
    if read as u64 > MAX_FILE_BYTES {
        return Err(too_large());
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A line of passwd(5).
struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// Lines of passwd(5); what is not one is skipped, as in the C library.
fn passwd_entries(text: &str) -> impl Iterator<Item = PasswdEntry<'_>> {
    text.lines().filter(|line| line.len() <= MAX_LINE_BYTES).filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let home = fields.nth(1).unwrap_or_default();
        (!name.is_empty() && !name.starts_with('#')).then_some(PasswdEntry { name, uid, gid, home })
    })
}

/// Lines of group(5): name, gid, members.
fn group_entries(text: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    text.lines().filter(|line| line.len() <= MAX_LINE_BYTES).filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let gid = fields.next()?.parse().ok()?;
        let members = fields.next().unwrap_or_default();
        (!name.is_empty() && !name.starts_with('#')).then_some((name, gid, members))
    })
}

/// What somebody wrote for a user or a group.
enum Named<'a> {
    Number(u32),
    Name(&'a str),
}

fn named<'a>(what: &str, text: &'a str) -> Result<Named<'a>, StartError> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(Named::Name(text));
    }
    match text.parse() {
        Ok(number) if digits == text && id_in_range(number) => Ok(Named::Number(number)),
        _ => Err(refused(format!("{what} {text} is not a number from 0 to 2147483647"))),
    }
}

fn refused(message: impl Into<String>) -> StartError {
    StartError::refused(Step::User, message)
}

/// [`resolve`] without its files.
fn lookup(choice: &UserChoice, passwd: &str, group: &str) -> Result<Resolved, StartError> {
    let (user, user_group) = match choice.user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (choice.user.as_str(), None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let (uid, entry) = match named("user", user)? {
        Named::Number(uid) => (uid, passwd_entries(passwd).find(|entry| entry.uid == uid)),
        Named::Name(name) => {
            let entry = passwd_entries(passwd).find(|entry| entry.name == name);
            let entry = entry.ok_or_else(|| refused(format!("user {name:?} is not in the image's /etc/passwd")))?;
            (entry.uid, Some(entry))
        }
    };
    let gid = match (choice.group, user_group) {
        (Some(gid), _) => gid,
        (None, Some(text)) => match named("group", text)? {
            Named::Number(gid) => gid,
            Named::Name(name) => group_entries(group)
                .find(|(known, _, _)| *known == name)
                .map(|(_, gid, _)| gid)
                .ok_or_else(|| refused(format!("group {name:?} is not in the image's /etc/group")))?,
        },
        (None, None) => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    // The primary group is one of the supplementary ones, so that a setgid program that drops to them keeps it (CVE-2023-25173).
    let mut groups = vec![gid];
    if let (Some(entry), false) = (&entry, choice.strict_groups) {
        let of_user = group_entries(group).filter(|(_, _, members)| members.split(',').any(|m| m == entry.name));
        groups.extend(of_user.map(|(_, gid, _)| gid));
    }
    groups.extend(&choice.supplemental_groups);
    let mut seen = std::collections::HashSet::new();
    groups.retain(|gid| seen.insert(*gid));
    check(choice, uid, &groups)?;
    let home = entry.map(|entry| entry.home).filter(|home| home.starts_with('/') && !home.contains('\0'));
    Ok(Resolved { user: User { uid, gid, groups }, home: home.unwrap_or("/").to_owned() })
}

/// What is asked of the final numbers, wherever they came from.
fn check(choice: &UserChoice, uid: u32, groups: &[u32]) -> Result<(), StartError> {
    if choice.non_root && uid == 0 {
        return Err(refused(format!("user {:?} is root, and the container must not run as root", choice.user)));
    }
    if let Some(id) = [uid].iter().chain(groups).find(|id| !id_in_range(**id)) {
        return Err(refused(format!("user {:?}: id {id} is not between 0 and 2147483647", choice.user)));
    }
    if groups.len() > GROUPS_MAX {
        return Err(refused(format!("user {:?}: {} groups, and {GROUPS_MAX} are allowed", choice.user, groups.len())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::openat2::{NodeKind, make_node};
    use std::os::fd::OwnedFd;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        # a comment\nbroken\nnobody:x:65534:65534:::\n\
        web:x:33:34:web:/var/www:/bin/sh\nweb:x:44:44::/second:\nbig:x:4294967295:0::/:\n1000:x:7:7:a name of digits:/:\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nlog:x:50:web,other\nadm:x:51:other,web\nweb:x:60:webb\n::\n";

    fn choice(user: &str) -> UserChoice {
        UserChoice { user: user.into(), ..UserChoice::default() }
    }

    fn ids(choice: &UserChoice) -> Result<(u32, u32, Vec<u32>), String> {
        lookup(choice, PASSWD, GROUP).map(|r| (r.user.uid, r.user.gid, r.user.groups)).map_err(|e| e.to_string())
    }

    #[test]
    fn a_user_is_found_by_name_and_number_with_group_and_groups() {
        assert_eq!(ids(&choice("")), Ok((0, 0, vec![0])));
        assert_eq!(ids(&choice("web")), Ok((33, 34, vec![34, 50, 51])), "the first entry of that name");
        assert_eq!(ids(&choice("33")), Ok((33, 34, vec![34, 50, 51])), "a number that passwd knows");
        assert_eq!(ids(&choice("4000")), Ok((4000, 0, vec![0])), "a number that it does not");
        assert_eq!(ids(&choice("web:log")), Ok((33, 50, vec![50, 51])));
        assert_eq!(ids(&choice("4000:4001")), Ok((4000, 4001, vec![4001])));
        assert_eq!(ids(&choice("1000")), Ok((1000, 0, vec![0])), "digits are never a name");
    }

    #[test]
    fn groups_are_merged_or_strict() {
        let mut web = UserChoice { group: Some(9), supplemental_groups: vec![50, 70], ..choice("web:log") };
        assert_eq!(ids(&web), Ok((33, 9, vec![9, 50, 51, 70])));
        web.strict_groups = true;
        assert_eq!(ids(&web), Ok((33, 9, vec![9, 50, 70])));
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for bad in
            ["-1", "+5", "2147483648", "4294967295", "99999999999999999999", "0:-1", "0:2147483648", "ghost", "0:ghost"]
        {
            let e = ids(&choice(bad)).expect_err(bad);
            assert!(e.contains(bad.rsplit(':').next().expect("a part")), "{bad}: {e}");
        }
        assert!(ids(&choice("big")).is_err(), "a name whose number is out of range");
        assert!(ids(&UserChoice { group: Some(u32::MAX), ..choice("0") }).is_err());
    }

    #[test]
    fn root_is_refused_on_the_final_number() {
        for user in ["", "0", "root", "root:log", "00"] {
            let e = ids(&UserChoice { non_root: true, ..choice(user) }).expect_err(user);
            assert!(e.contains("must not run as root"), "{e}");
        }
        assert!(ids(&UserChoice { non_root: true, ..choice("web") }).is_ok());
    }

    #[test]
    fn the_home_is_passwds_and_a_slash_for_a_stranger() {
        let home = |user: &str| lookup(&choice(user), PASSWD, GROUP).expect(user).home;
        assert_eq!((home("web"), home("4000"), home("nobody")), ("/var/www".into(), "/".into(), "/".into()));
    }

    fn root(dir: &std::path::Path) -> OwnedFd {
        std::fs::create_dir_all(dir.join("etc")).expect("etc");
        OwnedFd::from(std::fs::File::open(dir).expect("open"))
    }

    #[test]
    fn a_fifo_a_directory_and_a_huge_file_are_refused_without_waiting() {
        let temp = tempfile::tempdir().expect("tempdir");
        let root = root(temp.path());
        let passwd = temp.path().join("etc/passwd");
        assert!(resolve(root.as_fd(), &choice("0")).is_ok(), "no file at all");
        let etc = std::fs::File::open(temp.path().join("etc")).expect("etc");
        make_node(etc.as_fd(), c"passwd", NodeKind::Fifo, (0, 0), 0o600, None).expect("mkfifo");
        assert!(resolve(root.as_fd(), &choice("0")).expect_err("fifo").to_string().contains("not a regular file"));
        std::fs::remove_file(&passwd).expect("rm");
        std::fs::OpenOptions::new()
            .create_new(true)
            .write(true)
            .open(&passwd)
            .expect("new")
            .set_len(100 << 20)
            .expect("sparse");
        assert!(resolve(root.as_fd(), &choice("0")).expect_err("huge").to_string().contains("larger than"));
        std::fs::remove_file(&passwd).expect("rm");
        std::os::unix::fs::symlink("/proc/self/environ", &passwd).expect("symlink");
        assert!(resolve(root.as_fd(), &choice("0")).is_ok(), "a link out of the root leads nowhere");
    }

    proptest::proptest! {
        #[test]
        fn garbage_never_panics(user in ".{0,40}", passwd in "(.{0,60}\n){0,20}", group in "(.{0,60}\n){0,20}") {
            let _ = lookup(&choice(&user), &passwd, &group); // any answer will do
        }
    }
}
