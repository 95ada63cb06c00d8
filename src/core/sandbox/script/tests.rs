use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::PathBuf;

use proptest::prelude::*;

use super::judge::{Facts, Wrong};
use super::*;

fn facts(uid: u32, mode: u32) -> Facts {
    Facts {
        uid,
        mode,
        ..Facts::default()
    }
}

#[test]
fn the_shipped_layout_passes() {
    assert!(judge::directory(facts(0, 0o040_750), 65_534).is_empty());
    assert!(judge::directory(facts(0, 0o042_755), 0).is_empty());
    assert!(judge::file(facts(0, 0o100_750), 65_534).is_empty());
    assert!(judge::file(facts(0, 0o100_755), 0).is_empty());
}

#[test]
fn directories_that_others_write_are_found_sticky_or_not() {
    for mode in [0o040_775, 0o040_757, 0o041_777, 0o040_770] {
        let wrong = judge::directory(facts(0, mode), 0);
        assert_eq!(
            wrong,
            [Wrong::Writable {
                mode,
                directory: true
            }]
        );
    }
    let wrong = judge::directory(facts(7, 0o040_755), 7);
    assert_eq!(
        wrong,
        [Wrong::Owner {
            uid: 7,
            runs_as: true
        }]
    );
}

#[test]
fn files_are_found_by_each_rule() {
    let one = |facts| {
        let wrong = judge::file(facts, 1000);
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        wrong[0]
    };
    let owner = |uid, runs_as| Wrong::Owner { uid, runs_as };
    assert_eq!(one(facts(1000, 0o100_755)), owner(1000, true));
    assert_eq!(one(facts(5, 0o100_755)), owner(5, false));
    for mode in [0o100_775, 0o100_757] {
        assert!(matches!(one(facts(0, mode)), Wrong::Writable { .. }));
    }
    assert!(matches!(
        one(facts(0, 0o100_644)),
        Wrong::NotExecutable { .. }
    ));
    for mode in [0o104_755, 0o102_755] {
        assert!(matches!(one(facts(0, mode)), Wrong::SetId { .. }));
    }
    assert_eq!(one(facts(0, 0o010_755)), Wrong::NotRegular);
    let capable = Facts {
        capabilities: true,
        ..facts(0, 0o100_755)
    };
    assert_eq!(one(capable), Wrong::FileCapabilities);
    let listed = Facts {
        access_list_writes: true,
        ..facts(0, 0o100_755)
    };
    assert_eq!(one(listed), Wrong::AccessList);
}

#[test]
fn findings_name_the_thing_and_the_cure() {
    let text = |path: &str, what| {
        let path = PathBuf::from(path);
        Finding { path, what }.to_string()
    };
    let writable = |mode, directory| Wrong::Writable { mode, directory };
    assert_eq!(
        text("/opt/x", writable(0o100_775, false)),
        "file '/opt/x' is writable by its group (mode 0775): chmod g-w '/opt/x'"
    );
    assert_eq!(
        text("/tmp", writable(0o041_777, true)),
        "directory '/tmp' is writable by its group and others (mode 1777) (the sticky bit does not help): chmod go-w '/tmp'"
    );
    let owner = Wrong::Owner {
        uid: 9,
        runs_as: true,
    };
    assert!(text("/opt", owner).ends_with("not to root: chown root '/opt'"));
}

/// An access list as the kernel stores it.
fn list(entries: &[(u16, u16)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(1000_u32.to_le_bytes());
    }
    bytes
}

#[test]
fn access_lists_are_read_with_their_mask() {
    let writes = |entries: &[(u16, u16)]| judge::access_list_writes(&list(entries));
    assert!(!writes(&[(1, 7), (4, 5), (0x20, 5)]));
    assert!(writes(&[(1, 7), (2, 6), (4, 5), (0x10, 7), (0x20, 5)]));
    assert!(writes(&[(1, 7), (8, 2), (0x10, 7)]));
    assert!(!writes(&[(1, 7), (2, 6), (0x10, 5)]));
    assert!(!writes(&[(1, 7), (2, 5), (0x10, 7)]));
    for broken in [&b""[..], b"\x02\0\0", b"\x03\0\0\0", b"\x02\0\0\0\x01"] {
        assert!(judge::access_list_writes(broken));
    }
}

#[test]
fn the_first_line_is_read_as_the_kernel_reads_it() {
    let of = |text: &str| judge::interpreter(text.as_bytes()).map(|p| p.display().to_string());
    assert_eq!(of("#!/bin/sh\n"), Some("/bin/sh".to_owned()));
    assert_eq!(
        of("#! \t/usr/bin/env  python3\nx"),
        Some("/usr/bin/env".to_owned())
    );
    assert_eq!(of("#!sh"), Some("sh".to_owned()));
    assert_eq!(of("#!/bin/sh\r\n"), Some("/bin/sh\r".to_owned()));
    for none in [
        "",
        "#",
        "#!",
        "#!\n/bin/sh",
        "#!  \n",
        "\u{7f}ELF",
        " #!/bin/sh",
    ] {
        assert_eq!(of(none), None, "{none:?}");
    }
}

proptest! {
    #[test]
    fn no_bytes_upset_the_parsers(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = judge::access_list_writes(&bytes);
        let mut line = b"#!".to_vec();
        line.extend(&bytes);
        if let Some(path) = judge::interpreter(&line) {
            prop_assert!(!path.as_os_str().is_empty());
        }
    }

    #[test]
    fn whatever_another_user_may_write_is_found(mode in 0_u32..0o10000, uid in 0_u32..3) {
        let trusted = uid == 0 && mode & 0o022 == 0;
        prop_assert_eq!(judge::directory(facts(uid, 0o040_000 | mode), 1).is_empty(), trusted);
        if !trusted {
            prop_assert!(!judge::file(facts(uid, 0o100_000 | mode), 1).is_empty());
        }
    }
}

/// A directory that the walk trusts, which no directory for temporary files is. `None` when we are not root; never in CI.
fn trusted_tree() -> Option<tempfile::TempDir> {
    if !rustix::process::geteuid().is_root() {
        assert!(
            std::env::var_os("CI").is_none(),
            "this test needs root, and CI must not skip"
        );
        return None;
    }
    let dir = tempfile::Builder::new()
        .prefix("ctrl-exec-test.")
        .tempdir_in("/var/lib")
        .unwrap();
    set_mode(dir.path(), 0o755);
    Some(dir)
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

fn script(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    set_mode(path, 0o755);
}

struct Judged {
    profile: ProfileConfig,
    annotations: Annotations,
    executor: ExecutorConfig,
    report: Protections,
}

impl Judged {
    fn new(trust: ScriptTrust) -> Self {
        Self {
            profile: ProfileConfig {
                script_trust: trust,
                ..ProfileConfig::new(Baseline::Compat)
            },
            annotations: Annotations::default(),
            executor: ExecutorConfig::default(),
            report: Protections::default(),
        }
    }

    fn check(&mut self, path: &Path) -> Result<Checked, NotPrepared> {
        check(
            path,
            65_534,
            &self.profile,
            &self.annotations,
            &self.executor,
            &mut self.report,
        )
    }

    fn refused(&mut self, path: &Path) -> String {
        let refused = self.check(path).unwrap_err();
        assert_eq!(refused.reason, "untrusted-script");
        refused.text
    }
}

#[test]
fn a_trusted_script_passes_and_each_change_on_the_way_is_found() {
    let Some(dir) = trusted_tree() else { return };
    let below = dir.path().join("below");
    std::fs::create_dir(&below).unwrap();
    set_mode(&below, 0o750);
    let path = below.join("s");
    script(&path, "#!/bin/sh\n");
    set_mode(&path, 0o750);
    let mut judged = Judged::new(ScriptTrust::Enforce);
    judged.check(&path).unwrap();
    assert_eq!(judged.report.0[&Protection::ScriptTrust], Level::Enforced);

    set_mode(&below, 0o1777);
    let text = judged.refused(&path);
    assert!(text.contains(&format!("chmod go-w '{}'", below.display())));
    set_mode(&below, 0o750);

    chown(&below, Some(65_534), None).unwrap();
    assert!(judged.refused(&path).contains("runs as"));
    chown(&below, Some(0), None).unwrap();

    set_mode(&path, 0o770);
    assert!(judged.refused(&path).contains("chmod g-w"));
    set_mode(&path, 0o4750);
    assert!(judged.refused(&path).contains("set-id"));
    set_mode(&path, 0o640);
    assert!(judged.refused(&path).contains("executable by nobody"));
    set_mode(&path, 0o750);

    script(&path, "#!sh\n");
    assert!(judged.refused(&path).contains("without an absolute path"));
    let own = below.join("interpreter");
    std::fs::copy("/bin/sh", &own).unwrap();
    set_mode(&own, 0o757);
    script(&path, &format!("#!{}\n", own.display()));
    assert!(judged.refused(&path).contains("interpreter' is writable"));

    judged.profile.script_trust = ScriptTrust::Warn;
    let checked = judged.check(&path).unwrap();
    assert_eq!(checked.warnings.len(), 1, "{:?}", checked.warnings);
    assert!(matches!(
        judged.report.0[&Protection::ScriptTrust],
        Level::Degraded(_)
    ));
    judged.profile.script_trust = ScriptTrust::Off;
    assert!(judged.check(&path).unwrap().warnings.is_empty());
}

#[test]
fn links_are_walked_and_their_way_is_judged() {
    let Some(dir) = trusted_tree() else { return };
    let at = |name: &str| dir.path().join(name);
    script(&at("s"), "#!/bin/sh\n");
    std::fs::create_dir(at("open")).unwrap();
    std::fs::create_dir(at("good")).unwrap();
    set_mode(&at("open"), 0o777);
    symlink(at("s"), at("absolute")).unwrap();
    symlink("../s", at("good/relative")).unwrap();
    symlink("good", at("dir")).unwrap();
    symlink(at("s"), at("open/link")).unwrap();
    symlink("open/link", at("through")).unwrap();
    symlink("loop", at("loop")).unwrap();
    let mut judged = Judged::new(ScriptTrust::Enforce);
    for good in ["absolute", "good/relative", "dir/relative", "good/../s"] {
        judged.check(&at(good)).unwrap();
    }
    for bad in ["open/link", "through", "open/../s"] {
        assert!(judged.refused(&at(bad)).contains("open' is writable"));
    }
    assert!(judged.refused(&at("loop")).contains("too many"));
    assert!(judged.refused(&at("good")).contains("no regular file"));
}

#[test]
fn devices_and_pipes_are_refused_without_waiting() {
    let Some(dir) = trusted_tree() else { return };
    let fifo = dir.path().join("fifo");
    let mode = rustix::fs::Mode::from_raw_mode(0o755);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let mut judged = Judged::new(ScriptTrust::Enforce);
    assert!(judged.refused(&fifo).contains("no regular file"));
    assert!(
        judged
            .refused(Path::new("/dev/null"))
            .contains("no regular")
    );
}

#[test]
fn a_script_that_is_not_there_gets_the_words_of_the_original() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("absent");
    let refused = Judged::new(ScriptTrust::Enforce).check(&path).unwrap_err();
    assert_eq!(refused.reason, "setup");
    assert!(
        refused.text.ends_with(
            "is not executable by the profile's run_as user (No such file or directory)"
        )
    );
}

#[test]
fn the_pinned_file_runs_as_it_was_read_and_any_other_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    script(&path, "#!/bin/sh\necho one\n");
    let mut judged = Judged::new(ScriptTrust::Off);
    judged.annotations.digest = Some(digest_of(&path).unwrap());
    let checked = judged.check(&path).unwrap();
    assert_eq!(checked.copy.unwrap(), b"#!/bin/sh\necho one\n");
    for protection in [Protection::Digest, Protection::VerifiedCopy] {
        assert_eq!(judged.report.0[&protection], Level::Enforced);
    }
    judged.profile.verified_copy = Some(false);
    assert!(judged.check(&path).unwrap().copy.is_none());
    script(&path, "#!/bin/sh\necho two\n");
    let refused = judged.check(&path).unwrap_err();
    assert_eq!(refused.reason, "digest-mismatch");
    let now = digest::hex(&digest_of(&path).unwrap());
    assert!(refused.text.contains(&now), "{}", refused.text);
}

#[test]
fn large_scripts_are_hashed_but_not_copied() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    script(&path, "#!/bin/sh\n");
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(MAX_COPY + 1).unwrap();
    let mut judged = Judged::new(ScriptTrust::Off);
    judged.annotations.digest = Some(digest_of(&path).unwrap());
    assert!(judged.check(&path).unwrap().copy.is_none());
    assert_eq!(judged.report.0[&Protection::Digest], Level::Enforced);
    assert!(matches!(
        judged.report.0[&Protection::VerifiedCopy],
        Level::Degraded(_)
    ));
}

#[test]
fn a_digest_can_be_demanded() {
    let mut judged = Judged::new(ScriptTrust::Off);
    judged.executor.require_digest = true;
    let refused = judged.check(Path::new("/bin/sh")).unwrap_err();
    assert_eq!(refused.reason, "digest-mismatch");
    assert!(refused.text.contains("ctrl-exec-exec digest /bin/sh"));
}

#[test]
fn strict_copies_and_compat_does_not() {
    assert!(wants_copy(&ProfileConfig::new(Baseline::Strict), false));
    assert!(!wants_copy(&ProfileConfig::new(Baseline::Compat), false));
    assert!(wants_copy(&ProfileConfig::new(Baseline::Compat), true));
}
