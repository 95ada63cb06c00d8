//! Users and groups, from `/etc/passwd` and `/etc/group`: a static binary has no name service modules to ask.
//!
//! A file system without `/etc/passwd` (an image made of nothing but this binary) has the accounts of [`BUILT_IN`], so that there is somebody
//! to be instead of root.

use std::io;
use std::path::Path;

use rustix::fs::CWD;

use super::small_files;

/// Largest user or group file that is read, in bytes.
const MOST: usize = 1024 * 1024;
/// As a uid or gid it means "leave unchanged" to the kernel: never somebody's number.
const NOBODY_AT_ALL: u32 = u32::MAX;

/// Users and groups where there is no `/etc/passwd` at all: root, nobody, and the accounts of our services with the numbers that the
/// images document (spec/operations.md 16.4).
const BUILT_IN: &[(&str, u32)] = &[
    ("root", 0),
    ("ctrl-exec-agent", 9443),
    ("ctrl-exec", 9445),
    ("nobody", 65_534),
];

/// uid and primary gid of a user. `None` when there is no such user or the file cannot be read.
pub fn find_user(name: &str) -> Option<(u32, u32)> {
    let accounts = Database::load().ok()?;
    accounts.by_name(name).map(|found| (found.uid, found.gid))
}

/// gid of a group. `None` when there is no such group or the file cannot be read.
pub fn find_group(name: &str) -> Option<u32> {
    Database::load().ok()?.group(name)
}

/// One line of `/etc/passwd`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Account {
    pub name: String,
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// As written; may be empty.
    pub home: String,
    /// As written; may be empty.
    pub shell: String,
}

/// Both files as they were at one moment. Lines that are not text, lack fields or hold no usable number count as absent, as the C
/// library has it.
#[derive(Clone, Debug, Default)]
pub struct Database {
    passwd: Vec<u8>,
    group: Vec<u8>,
}

impl Database {
    /// Reads `/etc/passwd` and `/etc/group`, at most 1 MiB each. Without the former it is the built-in accounts.
    ///
    /// # Errors
    /// The file that cannot be read or is too large, with its path.
    pub fn load() -> io::Result<Self> {
        match Self::load_from(Path::new("/etc/passwd"), Path::new("/etc/group")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::built_in()),
            read => read,
        }
    }

    fn built_in() -> Self {
        let mut all = Self::default();
        for (name, id) in BUILT_IN {
            let passwd = format!("{name}:x:{id}:{id}::/:\n");
            all.passwd.extend_from_slice(passwd.as_bytes());
            let group = format!("{name}:x:{id}:\n");
            all.group.extend_from_slice(group.as_bytes());
        }
        all
    }

    /// As [`Self::load`], from other places. A missing group file is an empty one.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_from(passwd: &Path, group: &Path) -> io::Result<Self> {
        Ok(Self {
            passwd: read_bounded(passwd)?,
            group: match read_bounded(group) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
                read => read?,
            },
        })
    }

    pub fn by_name(&self, name: &str) -> Option<Account> {
        self.account(|found, _| found == name)
    }

    /// The first account with that number.
    pub fn by_uid(&self, uid: u32) -> Option<Account> {
        self.account(|_, found| found == uid)
    }

    /// gid of a group.
    pub fn group(&self, name: &str) -> Option<u32> {
        self.groups()
            .find(|(found, _, _)| *found == name)
            .map(|(_, gid, _)| gid)
    }

    /// The first group with that number.
    pub fn group_name(&self, gid: u32) -> Option<String> {
        self.groups()
            .find(|(_, found, _)| *found == gid)
            .map(|(name, _, _)| name.to_owned())
    }

    /// The groups that name the user as a member, in the order of the file, each once. The primary group is not looked at.
    pub fn memberships(&self, user: &str) -> Vec<u32> {
        let mut gids = Vec::new();
        for (_, gid, members) in self.groups() {
            if !gids.contains(&gid) && members.split(',').any(|member| member == user) {
                gids.push(gid);
            }
        }
        gids
    }

    /// The first account of which name and uid are as wanted. Only that one is copied.
    fn account(&self, wanted: impl Fn(&str, u32) -> bool) -> Option<Account> {
        lines(&self.passwd).find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            let uid = number(fields.nth(1)?)?;
            let gid = number(fields.next()?)?;
            if !wanted(name, uid) {
                return None;
            }
            let home = fields.nth(1).unwrap_or_default();
            let shell = fields.next().unwrap_or_default();
            Some(Account {
                name: name.to_owned(),
                uid,
                gid,
                home: home.to_owned(),
                shell: shell.to_owned(),
            })
        })
    }

    /// Name, gid and members.
    fn groups(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        lines(&self.group).filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            let gid = number(fields.nth(1)?)?;
            Some((name, gid, fields.next().unwrap_or_default()))
        })
    }
}

/// A uid or gid as decimal digits alone; never the one that means "leave unchanged".
pub fn number(text: &str) -> Option<u32> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|number| *number != NOBODY_AT_ALL)
}

fn lines(file: &[u8]) -> impl Iterator<Item = &str> {
    file.split(|byte| *byte == b'\n')
        .filter_map(|line| std::str::from_utf8(line).ok())
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    small_files::bytes(CWD, path, MOST).map_err(|error| {
        let at = path.display();
        let text = match error.kind() {
            io::ErrorKind::FileTooLarge => format!("{at}: larger than 1 MiB"),
            _ => format!("{at}: {error}"),
        };
        io::Error::new(error.kind(), text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_zero_and_nobody_else_is_invented() {
        assert_eq!(find_user("root"), Some((0, 0)));
        assert_eq!(find_group("root"), Some(0));
        assert_eq!(find_user("no-such-user-here"), None);
        assert_eq!(find_group(""), None);
    }

    #[test]
    fn numbers_are_digits_and_never_the_one_that_changes_nothing() {
        assert_eq!(number("0"), Some(0));
        assert_eq!(number("4294967294"), Some(4_294_967_294));
        for bad in [
            "4294967295",
            "4294967296",
            "-1",
            "+1",
            "",
            " 1",
            "1 ",
            "0x1",
        ] {
            assert_eq!(number(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn unusable_lines_are_absent_ones() {
        let database = Database {
            passwd: b"+::::::\nbad\xff:x:1:1::/:\nshort:x:5\nminus:x:4294967295:1::/:/bin/sh\n:x:0:0::/:\n\
                      ok:x:7:8:who:/home/ok:/bin/ash\nok:x:9:9::/:\nbare:x:10:11"
                .to_vec(),
            group: b"a:x:20:ok,other\nb:x:4294967295:ok\nc:x:21:okay\nd:x:20:ok\ne:x:22:x,ok\nf:x:23".to_vec(),
        };
        let found = database.by_name("ok").unwrap();
        assert_eq!((found.uid, found.gid), (7, 8));
        assert_eq!(
            (found.home.as_str(), found.shell.as_str()),
            ("/home/ok", "/bin/ash")
        );
        for absent in ["+", "short", "minus", "", "bad"] {
            assert_eq!(database.by_name(absent), None, "{absent}");
        }
        assert_eq!(database.by_name("bare").unwrap().home, "");
        assert_eq!(database.by_uid(9).unwrap().name, "ok");
        assert_eq!(database.memberships("ok"), [20, 22]);
        assert_eq!(database.group("b"), None);
        assert_eq!(database.group("f"), Some(23));
    }

    #[test]
    fn where_there_are_no_files_the_services_have_accounts_all_the_same() {
        let database = Database::built_in();
        let agent = database.by_name("ctrl-exec-agent").unwrap();
        assert_eq!((agent.uid, agent.gid), (9443, 9443));
        assert_eq!(database.group("ctrl-exec"), Some(9445));
        assert_eq!(database.by_uid(65_534).unwrap().name, "nobody");
        assert_eq!(database.by_name("daemon"), None);
    }

    #[test]
    fn a_file_beyond_the_bound_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let passwd = dir.path().join("passwd");
        std::fs::write(&passwd, vec![b'\n'; 1024 * 1024 + 1]).unwrap();
        let error = Database::load_from(&passwd, &passwd).unwrap_err();
        assert!(error.to_string().contains("passwd: larger than 1 MiB"));
        let missing = dir.path().join("none");
        assert!(Database::load_from(&missing, &passwd).is_err());
        std::fs::write(&passwd, "a:x:1:2::/:\n").unwrap();
        assert!(Database::load_from(&passwd, &missing).is_ok());
    }
}
