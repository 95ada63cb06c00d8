//! What a profile may say, what it comes to, and what is refused.

use caps::Capability;

use super::super::testing::*;
use super::super::*;

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
        "[Profile p]\nrun_as = a\n[profile q]\nrun_as=b\n[profile p]\ncaps = CAP_KILL\n".to_owned();
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
