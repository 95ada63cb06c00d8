//! `[profile NAME]` (spec/agent.md 3.5, spec/executor.md 7.2-7.5). What a profile does not say clearly is an error: a profile that
//! is read otherwise than it was meant gives rights away.

use std::collections::BTreeMap;

use caps::Capability;

use super::ProfileConfig;
use super::diagnostics::{Report, Severity};
use super::raw::{Located, RawProfile, RawValue, Style};
use super::reader::Reader;
use super::source::SourceFile;
use crate::core::types::{AbsolutePath, ProfileName};

/// Longest user name and capability token (spec/executor.md 3.5).
const MAX_TOKEN: usize = 127;
/// Largest uid; 4294967295 is -1 to the kernel.
const MAX_UID: u64 = 4_294_967_294;

/// Validates all profiles in the order of their names.
pub(super) fn build(
    raw: BTreeMap<String, RawProfile>,
    style: Style,
    source: &SourceFile,
    report: &mut Report,
) -> BTreeMap<ProfileName, ProfileConfig> {
    let mut profiles = BTreeMap::new();
    for (name, raw) in raw {
        let Ok(valid) = ProfileName::new(&name) else {
            continue; // reported by the front end
        };
        let context = format!("Profile '{name}': ");
        let mut r = Reader::new(source, report, style, raw.table, context);
        let named_user = r.has("run_as");
        let profile = ProfileConfig {
            run_as: run_as(&mut r),
            caps: caps(&mut r).unwrap_or_default(),
            writable: writable(&mut r).unwrap_or_default(),
            no_new_privileges: r.boolean("no_new_privileges", true),
            ..ProfileConfig::default()
        };
        r.finish();
        if !named_user {
            let message = format!(
                "Profile '{name}': run_as is not set: under the executor its scripts run as root; write run_as = root if that is meant"
            );
            report.add(source.diagnostic(Severity::Warning, &raw.name_span, message));
        }
        profiles.insert(valid, profile);
    }
    profiles
}

fn run_as(r: &mut Reader<'_>) -> Option<String> {
    r.read("run_as", |r, value| {
        let user = match &value.value {
            RawValue::Text(text) => text.clone(),
            RawValue::Integer(uid) => uid.to_string(),
            other => {
                let message = format!(
                    "'run_as' must be a user name or a uid, not {}",
                    other.kind()
                );
                r.error(&value.span, &message);
                return None;
            }
        };
        let fault = if user.bytes().all(|b| b.is_ascii_digit()) && !user.is_empty() {
            let fits = user.parse::<u64>().is_ok_and(|uid| uid <= MAX_UID);
            (!fits).then(|| format!("run_as '{user}' out of range {}", r.in_file()))
        } else {
            (!is_user_name(&user)).then(|| format!("invalid run_as '{user}' {}", r.in_file()))
        };
        match fault {
            None => Some(user),
            Some(message) => {
                r.error(&value.span, &message);
                None
            }
        }
    })
}

fn is_user_name(text: &str) -> bool {
    let rest = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    text.len() <= MAX_TOKEN
        && text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.bytes().all(rest)
}

fn caps(r: &mut Reader<'_>) -> Option<Vec<Capability>> {
    let separator = |c| matches!(c, ',' | ' ' | '\t');
    r.list("caps", separator, |r, items| {
        Some(
            items
                .value
                .iter()
                .filter_map(|item| capability(r, item))
                .collect(),
        )
    })
}

fn capability(r: &mut Reader<'_>, item: &Located<String>) -> Option<Capability> {
    let cap = item.value.as_str();
    if let Ok(known) = cap.parse() {
        return Some(known);
    }
    let well_formed = cap.len() <= MAX_TOKEN
        && cap.strip_prefix("CAP_").is_some_and(|rest| {
            !rest.is_empty()
                && rest
                    .bytes()
                    .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
        });
    if r.report.is_full() {
        r.report.count_only(Severity::Error);
        return None;
    }
    let names: Vec<String> = caps::all().iter().map(ToString::to_string).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let near = super::words::closest_capability(cap, &names)
        .map_or(String::new(), |near| format!("; did you mean {near}?"));
    let message = if well_formed {
        format!(
            "invalid capability '{cap}' (unknown to Linux) {}{near}",
            r.in_file()
        )
    } else {
        format!(
            "invalid capability '{cap}' (expected CAP_*) {}{near}",
            r.in_file()
        )
    };
    r.error(&item.span, &message);
    None
}

fn writable(r: &mut Reader<'_>) -> Option<Vec<AbsolutePath>> {
    r.list(
        "writable",
        |c| c == ':',
        |r, items| {
            let mut dirs = Vec::new();
            for item in &items.value {
                if item.value.starts_with('/') {
                    dirs.extend(r.absolute(item, "writable path"));
                } else {
                    let message = format!(
                        "writable path must be absolute: '{}' {}",
                        item.value,
                        r.in_file()
                    );
                    r.error(&item.span, &message);
                }
            }
            Some(dirs)
        },
    )
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn profile(lines: &str) -> (ProfileConfig, Vec<String>) {
        let loaded = agent_lines(&format!("[profile p]\n{lines}")).unwrap();
        let said = warnings(&loaded);
        (loaded.value.profiles.into_values().next().unwrap(), said)
    }

    fn refused(line: &str) -> String {
        error(agent_lines(&format!(
            "[profile p]\nrun_as = nobody\n{line}\n"
        )))
    }

    #[test]
    fn a_whole_profile() {
        let (p, said) = profile(
            "run_as = svc_a-1\ncaps = CAP_NET_BIND_SERVICE CAP_KILL,\tCAP_CHOWN , \nwritable = /a:/b c:\n",
        );
        assert!(said.is_empty(), "{said:?}");
        assert_eq!(p.run_as.as_deref(), Some("svc_a-1"));
        assert_eq!(
            p.caps,
            [
                Capability::CAP_NET_BIND_SERVICE,
                Capability::CAP_KILL,
                Capability::CAP_CHOWN
            ]
        );
        let dirs: Vec<String> = p.writable.iter().map(ToString::to_string).collect();
        assert_eq!(dirs, ["/a", "/b c"]);
        assert!(p.no_new_privileges, "on unless switched off");
    }

    #[test]
    fn root_by_silence_is_warned_about() {
        let (p, said) = profile("");
        assert_eq!(p.run_as, None);
        assert!(said[0].contains("6:1: warning: Profile 'p': run_as is not set"));
        let (_, said) = profile("run-as = nobody\nuser = nobody\n");
        assert!(said.iter().any(|s| {
            s.contains("Profile 'p': unknown key 'run-as' is ignored; did you mean 'run_as'?")
        }));
        assert!(said.iter().any(|s| s.contains("run as root")));
    }

    #[test]
    fn run_as_is_a_name_or_a_uid_of_the_kernel() {
        for good in ["nobody", "_x", "0", "65534", "4294967294"] {
            let (p, _) = profile(&format!("run_as = {good}\n"));
            assert_eq!(p.run_as.as_deref(), Some(good));
        }
        for big in ["4294967295", "4294967296", "99999999999999999999"] {
            let line = error(agent_lines(&format!("[profile p]\nrun_as = {big}\n")));
            assert!(line.contains(&format!("Profile 'p': run_as '{big}' out of range in '")));
        }
        let long = "u".repeat(128);
        for bad in ["1bad name", "-x", "a.b", "é", &long] {
            let line = error(agent_lines(&format!("[profile p]\nrun_as = {bad}\n")));
            assert!(line.contains(&format!("Profile 'p': invalid run_as '{bad}' in '")));
        }
    }

    #[test]
    fn fail_open_spots_of_the_original_are_errors() {
        const HINT: &str = "inline '# ...' comments are not supported";
        for (line, part) in [
            ("no_new_privileges = ture", "1 y yes true on"),
            ("no_new_privileges = enabled", "0 n no false off"),
            ("no_new_privileges = yes  # comment", HINT),
            (
                "caps = CAP_NOSUCH",
                "invalid capability 'CAP_NOSUCH' (unknown to Linux)",
            ),
            ("caps = cap_kill", "(expected CAP_*)"),
            ("caps = NET_RAW", "did you mean CAP_NET_RAW?"),
            ("writable = /a:/b # note", HINT),
            ("writable = a", "writable path must be absolute: 'a' in '"),
            ("writable = ", "has no value"),
            ("caps =", "Malformed config line"),
            ("run_as = ", "has no value"),
            ("caps = CAP_KILL\u{b}CAP_CHOWN", "control character"),
            ("caps = CAP_KILL\u{c}CAP_CHOWN", "control character"),
        ] {
            let said = refused(line);
            assert!(said.contains(part), "{line}: {said}");
        }
        let said = errors(agent_lines(
            "[profile p]\nrun_as = nobody\ncaps = CAP_KILL # note\n",
        ));
        assert!(said[0].contains("invalid capability '#' (expected CAP_*)"));
        assert!(said[0].contains(HINT));
    }

    #[test]
    fn booleans_have_their_words_in_any_case() {
        for (word, on) in [("YES", true), ("1", true), ("Off", false), ("n", false)] {
            let (p, _) = profile(&format!("run_as = a\nno_new_privileges = {word}\n"));
            assert_eq!(p.no_new_privileges, on);
        }
    }

    #[test]
    fn sections_of_one_profile_merge_and_many_profiles_are_fine() {
        let mut text =
            "[Profile p]\nrun_as = a\n[profile q]\nrun_as=b\n[profile p]\ncaps = CAP_KILL\n"
                .to_owned();
        for n in 0..100 {
            text.push_str(&format!("[profile n{n}]\nrun_as = 1\n"));
        }
        let loaded = agent_lines(&text).unwrap();
        assert_eq!(loaded.value.profiles.len(), 102);
        let p = &loaded.value.profiles[&ProfileName::new("p").unwrap()];
        assert_eq!((p.run_as.as_deref(), p.caps.len()), (Some("a"), 1));
    }

    #[test]
    fn toml_profiles_follow_the_same_rules() {
        let loaded = agent_toml("script_dirs = [\"/opt\"]\n[profile.default]\nrun_as = 65534\n");
        let loaded = loaded.unwrap();
        let p = &loaded.value.profiles[&ProfileName::new("default").unwrap()];
        assert_eq!(p.run_as.as_deref(), Some("65534"));
        let all = errors(agent_toml(
            "[profile.x]\nrun-as = \"a\"\nrun_as = -1\ncaps = [\"CAP_NOSUCH\", 1]\nwritable = [\"a\"]\nno_new_privileges = \"yes\"\n",
        ));
        let expected = [
            "2:1: error: Profile 'x': unknown key 'run-as'; did you mean 'run_as'? Allowed: run_as, caps, writable, no_new_privileges",
            "3:10: error: Profile 'x': invalid run_as '-1' in '",
            "4:9: error: Profile 'x': invalid capability 'CAP_NOSUCH'",
            "4:23: error: Profile 'x': 'caps' must be a string, not an integer",
            "5:13: error: Profile 'x': writable path must be absolute: 'a'",
            "6:21: error: Profile 'x': 'no_new_privileges' must be true or false, not a string",
        ];
        assert_eq!(all.len(), expected.len(), "{all:#?}");
        for (line, part) in all.iter().zip(expected) {
            assert!(line.contains(part), "{line}\n lacks {part}");
        }
    }
}
