//! Whom a script runs as (spec/executor.md 11.1).

use rustix::process::{getegid, geteuid};

use super::NotPrepared;
use crate::core::config::{Baseline, Groups, ProfileConfig};
use crate::core::sys::users::{Account, Database, number};

/// A user, complete.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// The whole group list of the process beside `gid`. With `groups = user` it holds `gid` too, as `initgroups(3)` makes it.
    pub groups: Vec<u32>,
    /// Name of the account, where there is one.
    pub name: Option<String>,
    /// Its home directory, else `/`.
    pub home: String,
}

/// Looks the account up, anew for every run. Without root there is only one answer: ourselves.
///
/// # Errors
/// There is no such user or group, or the files with the answer cannot be read.
pub fn resolve(profile: &ProfileConfig) -> Result<Identity, NotPrepared> {
    let database =
        Database::load().map_err(|error| refused(format!("users cannot be looked up: {error}")))?;
    if !geteuid().is_root() && profile.run_as.is_none() {
        return Ok(ourselves(&database));
    }
    resolve_in(profile, &database)
}

fn ourselves(database: &Database) -> Identity {
    let uid = geteuid().as_raw();
    let account = database.by_uid(uid);
    Identity {
        uid,
        gid: getegid().as_raw(),
        groups: Vec::new(),
        home: home(account.as_ref()),
        name: account.map(|account| account.name),
    }
}

fn resolve_in(profile: &ProfileConfig, database: &Database) -> Result<Identity, NotPrepared> {
    let own_group = match &profile.group {
        Some(group) => Some(find_group(group, database)?),
        None => None,
    };
    let (uid, account, gid) = match &profile.run_as {
        Some(text) => find_user(text, own_group, profile.baseline, database)?,
        None if profile.baseline == Baseline::Compat => {
            (0, database.by_uid(0), own_group.unwrap_or(0))
        }
        None => {
            return Err(refused(
                "the profile has no run_as; name the user to run as",
            ));
        }
    };
    let groups = match &profile.groups {
        Groups::None => Vec::new(),
        Groups::List(list) => list
            .iter()
            .map(|group| find_group(group, database))
            .collect::<Result<_, _>>()?,
        // Root by default has the rights of uid 0 and nothing from the group file.
        Groups::User if profile.run_as.is_none() => Vec::new(),
        Groups::User => account.as_ref().map_or_else(Vec::new, |account| {
            let mut groups = database.memberships(&account.name);
            groups.retain(|member| *member != gid);
            groups.insert(0, gid);
            groups
        }),
    };
    Ok(Identity {
        uid,
        gid,
        groups,
        home: home(account.as_ref()),
        name: account.map(|account| account.name),
    })
}

/// uid, account and gid. The name comes first, even for digits: a user may be called `1000`.
fn find_user(
    text: &str,
    own_group: Option<u32>,
    baseline: Baseline,
    database: &Database,
) -> Result<(u32, Option<Account>, u32), NotPrepared> {
    if let Some(account) = database.by_name(text) {
        let gid = own_group.unwrap_or(account.gid);
        return Ok((account.uid, Some(account), gid));
    }
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(refused(format!("unknown run_as '{text}'")));
    }
    let uid = number(text).ok_or_else(|| refused(format!("run_as '{text}' out of range")))?;
    let account = database.by_uid(uid);
    let gid = match (own_group, &account, baseline) {
        (Some(gid), _, _) => gid,
        (None, Some(account), _) => account.gid,
        (None, None, Baseline::Compat) => uid,
        (None, None, Baseline::Strict) => {
            return Err(refused(format!(
                "run_as '{text}' has no account and so no group; set group in the profile"
            )));
        }
    };
    Ok((uid, account, gid))
}

fn find_group(text: &str, database: &Database) -> Result<u32, NotPrepared> {
    database
        .group(text)
        .or_else(|| number(text))
        .ok_or_else(|| refused(format!("unknown group '{text}'")))
}

fn home(account: Option<&Account>) -> String {
    account
        .map(|account| account.home.as_str())
        .filter(|home| home.starts_with('/') && !home.contains('\0'))
        .unwrap_or("/")
        .to_owned()
}

fn refused(text: impl Into<String>) -> NotPrepared {
    NotPrepared::new("setup", text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database() -> Database {
        let dir = tempfile::tempdir().unwrap();
        let (passwd, group) = (dir.path().join("passwd"), dir.path().join("group"));
        std::fs::write(
            &passwd,
            "root:x:0:0:root:/root:/bin/ash\nservice:x:200:300::relative:\n1000:x:77:78::/home/k:/bin/sh\n\
             plain:x:1000:1001::/home/plain:/bin/sh\n",
        )
        .unwrap();
        std::fs::write(
            &group,
            "root:x:0:root\nservice:x:300:\nextra:x:301:service,other\nmore:x:302:service\n400:x:55:\nwheel:x:10:root\n",
        )
        .unwrap();
        Database::load_from(&passwd, &group).unwrap()
    }

    fn profile(baseline: Baseline, run_as: Option<&str>) -> ProfileConfig {
        ProfileConfig {
            run_as: run_as.map(str::to_owned),
            ..ProfileConfig::new(baseline)
        }
    }

    fn resolved(profile: &ProfileConfig) -> Result<Identity, String> {
        resolve_in(profile, &database()).map_err(|refusal| {
            assert_eq!(refusal.reason, "setup");
            refusal.text
        })
    }

    #[test]
    fn a_name_brings_its_group_and_memberships() {
        let found = resolved(&profile(Baseline::Strict, Some("service"))).unwrap();
        assert_eq!((found.uid, found.gid), (200, 300));
        assert_eq!(found.groups, [300, 301, 302]);
        assert_eq!(found.name.as_deref(), Some("service"));
        assert_eq!(found.home, "/", "a home that is no path is none");
    }

    #[test]
    fn a_user_whose_name_is_digits_wins_over_the_number() {
        let found = resolved(&profile(Baseline::Compat, Some("1000"))).unwrap();
        assert_eq!((found.uid, found.gid), (77, 78));
    }

    #[test]
    fn a_number_takes_group_and_memberships_of_its_account() {
        let found = resolved(&profile(Baseline::Strict, Some("200"))).unwrap();
        assert_eq!((found.uid, found.gid), (200, 300));
        assert_eq!(found.groups, [300, 301, 302]);
    }

    #[test]
    fn a_number_without_an_account_needs_a_group_in_strict() {
        let found = resolved(&profile(Baseline::Compat, Some("4000"))).unwrap();
        assert_eq!((found.uid, found.gid), (4000, 4000));
        assert!(found.groups.is_empty() && found.name.is_none());
        let mut strict = profile(Baseline::Strict, Some("4000"));
        assert!(resolved(&strict).unwrap_err().contains("set group"));
        strict.group = Some("extra".to_owned());
        assert_eq!(resolved(&strict).unwrap().gid, 301);
    }

    #[test]
    fn nothing_that_is_no_user_becomes_one() {
        for (text, says) in [
            ("nosuch", "unknown run_as 'nosuch'"),
            ("", "unknown run_as ''"),
            ("-1", "unknown run_as '-1'"),
            ("4294967295", "run_as '4294967295' out of range"),
            ("4294967296", "run_as '4294967296' out of range"),
            (
                "99999999999999999999",
                "run_as '99999999999999999999' out of range",
            ),
        ] {
            let refusal = resolved(&profile(Baseline::Compat, Some(text))).unwrap_err();
            assert_eq!(refusal, says);
        }
    }

    #[test]
    fn without_run_as_it_is_bare_root_in_compat_and_nobody_in_strict() {
        let found = resolved(&profile(Baseline::Compat, None)).unwrap();
        assert_eq!((found.uid, found.gid), (0, 0));
        assert!(found.groups.is_empty(), "wheel is not for free");
        assert_eq!(found.home, "/root");
        assert!(resolved(&profile(Baseline::Strict, None)).is_err());
    }

    #[test]
    fn group_and_groups_replace_those_of_the_account() {
        let mut wanted = profile(Baseline::Strict, Some("service"));
        wanted.group = Some("302".to_owned());
        assert_eq!(resolved(&wanted).unwrap().groups, [302, 301]);
        wanted.group = Some("400".to_owned());
        assert_eq!(resolved(&wanted).unwrap().gid, 55, "a name of digits wins");
        wanted.groups = Groups::None;
        assert!(resolved(&wanted).unwrap().groups.is_empty());
        wanted.groups = Groups::List(vec!["extra".to_owned(), "9000".to_owned()]);
        assert_eq!(resolved(&wanted).unwrap().groups, [301, 9000]);
        wanted.groups = Groups::List(vec!["4294967295".to_owned()]);
        assert_eq!(resolved(&wanted).unwrap_err(), "unknown group '4294967295'");
        wanted.group = Some("nosuch".to_owned());
        assert_eq!(resolved(&wanted).unwrap_err(), "unknown group 'nosuch'");
    }
}
