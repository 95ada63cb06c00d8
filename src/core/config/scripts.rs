//! The allowlist: from raw entries to [`Allowlist`], and the check across both files of an agent.

use std::path::Path;
use std::time::Duration;

use super::diagnostics::{Report, Severity};
use super::error::UndefinedProfiles;
use super::raw::{Located, Style};
use super::reader::Reader;
use super::scripts_conf::RawScript;
use super::source::SourceFile;
use super::toml_front::RawScriptTable;
use super::values::digits;
use super::{AgentConfig, Allowlist, Annotations, ScriptEntry};
use crate::core::paths::Paths;
use crate::core::profile::{self, protected};
use crate::core::types::{AbsolutePath, ProfileName};

/// The profile of a script that names none. It must be defined like any other.
pub const DEFAULT_PROFILE: &str = "default";

/// Longest time limit of a script, as of `run_timeout`.
const MAX_TIMEOUT: u64 = 31 * 86_400;

/// Turns the tables of `scripts.toml` into the form that `scripts.conf` has.
pub(super) fn from_toml(
    tables: Vec<RawScriptTable>,
    source: &SourceFile,
    report: &mut Report,
) -> Vec<RawScript> {
    let mut scripts = Vec::new();
    for (name, table) in tables {
        let context = format!("Script '{}': ", name.value);
        let mut r = Reader::new(source, report, Style::Toml, table, context);
        if !r.has("path") {
            r.error(
                &name.span,
                "'path' is missing: name the absolute path of the script",
            );
        }
        if let Some(span) = r.value_span("sha256") {
            r.error(&span, "a digest is written digest = \"sha256:...\"");
            r.forget("sha256");
        }
        let (path, profile) = (r.text("path"), r.text("profile"));
        let (digest, schema) = (r.text("digest"), r.text("schema"));
        let timeout = r.read("timeout", |r, value| {
            let text = r.scalar("timeout", value)?;
            Some(Located::new(text, value.span.clone()))
        });
        r.finish();
        if let Some(path) = path {
            scripts.push(RawScript {
                name: name.value,
                path,
                profile,
                digest,
                timeout,
                schema,
            });
        }
    }
    scripts
}

/// Validates the entries.
pub(super) fn build(
    scripts: Vec<RawScript>,
    source: &SourceFile,
    report: &mut Report,
) -> Allowlist {
    let mut allowlist = Allowlist {
        source: source.path.clone(),
        scripts: std::collections::BTreeMap::new(),
    };
    for script in scripts {
        let mut error = |span: &std::ops::Range<usize>, message: String| {
            report.add(source.diagnostic(Severity::Error, span, message));
        };
        let name = &script.name;
        let path = match AbsolutePath::new(&script.path.value) {
            Ok(path) if script.path.value.len() <= 4095 => path,
            Ok(_) => {
                error(
                    &script.path.span,
                    format!("Script '{name}': path is longer than 4095 bytes"),
                );
                continue;
            }
            Err(_) => {
                let message = format!(
                    "Script '{name}': path must be absolute: {}",
                    script.path.value
                );
                error(&script.path.span, message);
                continue;
            }
        };
        let annotations = annotations(&script, &mut error);
        match profile_name(script.profile.as_ref()) {
            Ok(profile) => {
                let entry = ScriptEntry {
                    path,
                    profile,
                    annotations,
                };
                allowlist.scripts.insert(script.name, entry);
            }
            Err((span, why)) => {
                let message = format!("script(s) reference an undefined profile: {name} -> {why}");
                error(&span, message);
            }
        }
    }
    if allowlist.scripts.is_empty() && !report.failed() {
        let message = "no script is allowed: the allowlist is empty";
        report.add(source.of_file(Severity::Warning, message));
    }
    allowlist
}

/// What stands beside path and profile. A value that does not fit is an error, never passed over: each of them narrows.
fn annotations(
    script: &RawScript,
    error: &mut impl FnMut(&std::ops::Range<usize>, String),
) -> Annotations {
    let name = &script.name;
    let mut judged = Annotations::default();
    if let Some(text) = &script.digest {
        judged.digest = digest(&text.value);
        if judged.digest.is_none() {
            let message = format!(
                "Script '{name}': digest must be 'sha256:' and 64 hex digits, not '{}'",
                text.value
            );
            error(&text.span, message);
        }
    }
    if let Some(text) = &script.timeout {
        let seconds = digits(&text.value).filter(|n| (1..=MAX_TIMEOUT).contains(n));
        judged.timeout = seconds.map(Duration::from_secs);
        if seconds.is_none() {
            let message = format!(
                "Script '{name}': timeout must be seconds from 1 to {MAX_TIMEOUT}, not '{}'",
                text.value
            );
            error(&text.span, message);
        }
    }
    if let Some(text) = &script.schema {
        let path = AbsolutePath::new(&text.value);
        judged.schema = path.ok().filter(|_| text.value.len() <= 4095);
        if judged.schema.is_none() {
            let message = format!(
                "Script '{name}': schema must be an absolute path of at most 4095 bytes, not '{}'",
                text.value
            );
            error(&text.span, message);
        }
    }
    judged
}

/// `sha256:` and 64 hex digits in either case.
fn digest(text: &str) -> Option<[u8; 32]> {
    let digits = text.strip_prefix("sha256:")?.as_bytes();
    let mut bytes = [0; 32];
    if digits.len() != 2 * bytes.len() {
        return None;
    }
    let value = |digit: u8| {
        char::from(digit)
            .to_digit(16)
            .and_then(|v| u8::try_from(v).ok())
    };
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(bytes)
}

/// A name that cannot be a profile's can never be defined, so the script could never run.
fn profile_name(
    written: Option<&Located<String>>,
) -> Result<ProfileName, (std::ops::Range<usize>, String)> {
    let (text, span) = match written {
        Some(located) => (located.value.as_str(), located.span.clone()),
        None => (DEFAULT_PROFILE, 0..0),
    };
    ProfileName::new(text).map_err(|wrong| (span, format!("'{text}' ({wrong})")))
}

/// What the allowlist and the agent's own file mean together. Scripts that `script_dirs` will refuse stay listed, with a warning: the
/// directories may appear later.
pub(super) fn check_against_agent(
    allowlist: &Allowlist,
    agent: &AgentConfig,
    paths: &Paths,
    source: &SourceFile,
    report: &mut Report,
) {
    let mut warn = |message: String| report.add(source.of_file(Severity::Warning, message));
    for (name, entry) in &allowlist.scripts {
        if !profile::in_script_dirs(&entry.path, &agent.script_dirs) {
            warn(format!(
                "Allowlist: '{name}' will be refused - path not in approved script_dirs: {}",
                entry.path
            ));
        }
        let pinned = entry.annotations.digest.is_some();
        if agent.executor.require_digest && !pinned {
            warn(format!(
                "Allowlist: '{name}' will be refused by the executor - it has no digest= and require_digest is on"
            ));
        }
        if pinned && agent.executor_socket.is_none() {
            warn(format!(
                "Allowlist: the digest of '{name}' is checked by the executor only, and executor_socket is not set"
            ));
        }
    }
    let socket = agent.executor_socket.as_deref();
    let known = protected::protected_paths(agent, &Allowlist::default(), paths, socket, None);
    let protected = protected::protected_paths(agent, allowlist, paths, socket, None);
    for (name, profile) in &agent.profiles {
        for path in &profile.writable {
            // What the agent's own file tells was judged when that was read.
            let inside = protected::inside(path.as_path(), &protected);
            if let (Some(inside), None) = (inside, protected::inside(path.as_path(), &known)) {
                let message = protected::conflict_text(name, path, inside);
                report.add(source.of_file(Severity::Error, message));
            }
        }
    }
}

/// Every profile that a script resolves to must be defined, `default` included (spec/agent.md 3.5).
///
/// # Errors
/// Some are not; the error lists each script with its profile.
pub fn check_profiles(allowlist: &Allowlist, agent: &AgentConfig) -> Result<(), UndefinedProfiles> {
    let missing: Vec<_> = allowlist
        .scripts
        .iter()
        .filter(|(_, entry)| !agent.profiles.contains_key(&entry.profile))
        .map(|(name, entry)| (name.clone(), entry.profile.clone()))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(UndefinedProfiles {
        missing,
        source_file: Path::to_owned(&agent.source),
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::core::types::ScriptName;

    fn host(agent: &str, file: &str, scripts: &str) -> Host {
        let host = Host::new();
        host.write(
            "/etc/ctrl-exec-agent/agent.conf",
            &format!("{REQUIRED}{agent}"),
        );
        host.write(&format!("/etc/ctrl-exec-agent/{file}"), scripts);
        host
    }

    fn name(text: &str) -> ScriptName {
        ScriptName::new(text).unwrap()
    }

    #[test]
    fn conf_and_toml_give_the_same_allowlist() {
        let conf = host("", "scripts.conf", "a = /x/a\nb = profile=p /x/b\n");
        let toml = host(
            "",
            "scripts.toml",
            "[scripts.a]\npath = \"/x/a\"\n[scripts]\nb = { path = \"/x/b\", profile = \"p\" }\n",
        );
        let (conf, toml) = (conf.allowlist().unwrap(), toml.allowlist().unwrap());
        assert_eq!(conf.value.scripts, toml.value.scripts);
        let a = &conf.value.scripts[&name("a")];
        assert_eq!(
            (a.path.to_string().as_str(), a.profile.as_str()),
            ("/x/a", "default")
        );
        assert!(conf.warnings.is_empty() && toml.warnings.is_empty());
    }

    #[test]
    fn toml_mistakes_are_errors_all_at_once() {
        let host = host(
            "",
            "scripts.toml",
            "port = 1\n[scripts.a]\npath = \"x\"\n[scripts.\"b c\"]\npath = \"/x\"\n[scripts.d]\nprofil = \"p\"\n[scripts.e]\npath = \"/e\"\nprofile = \"a/b\"\n[scripts]\nf = \"/x\"\n",
        );
        let all = errors(host.allowlist());
        let expected = [
            "1:1: error: unknown key 'port'; allowed: [scripts.NAME] tables",
            "3:8: error: Script 'a': path must be absolute: x",
            "4:10: error: invalid script name 'b c'",
            "6:10: error: Script 'd': 'path' is missing",
            "7:1: error: Script 'd': unknown key 'profil'; did you mean 'profile'? Allowed: path, profile",
            "10:11: error: script(s) reference an undefined profile: e -> 'a/b'",
        ];
        for part in expected {
            assert!(
                all.iter().any(|line| line.contains(part)),
                "{all:#?}\n lacks {part}"
            );
        }
    }

    #[test]
    fn an_empty_allowlist_is_allowed_and_said() {
        for file in ["scripts.conf", "scripts.toml"] {
            let loaded = host("", file, "").allowlist().unwrap();
            assert!(loaded.value.scripts.is_empty());
            assert!(warnings(&loaded)[0].contains("no script is allowed"));
        }
    }

    #[test]
    fn an_empty_profile_name_is_an_undefined_profile() {
        let line = error(host("", "scripts.conf", "a = /x profile=\n").allowlist());
        assert!(line.contains("1:16: error: script(s) reference an undefined profile: a -> ''"));
    }

    #[test]
    fn a_script_on_two_lines_is_absent() {
        let loaded = host("", "scripts.conf", "a = /x\nb = /y\na = /z\n")
            .allowlist()
            .unwrap();
        assert_eq!(
            loaded.value.scripts.keys().collect::<Vec<_>>(),
            [&name("b")]
        );
        assert!(warnings(&loaded)[0].contains("3:1: warning: Allowlist: skipping 'a'"));
    }

    #[test]
    fn annotations_in_both_syntaxes() {
        let hex = "0123456789abcdefABCDEF".repeat(3)[..64].to_owned();
        let executor = "executor_socket = /run/x/exec.sock\n";
        let conf = host(
            executor,
            "scripts.conf",
            &format!("a = digest=sha256:{hex} /x timeout=9 schema=/s.json profile=p\n"),
        );
        let toml = host(
            executor,
            "scripts.toml",
            &format!(
                "[scripts.a]\npath = \"/x\"\nprofile = \"p\"\ndigest = \"sha256:{hex}\"\ntimeout = 9\nschema = \"/s.json\"\n"
            ),
        );
        let (conf, toml) = (conf.allowlist().unwrap(), toml.allowlist().unwrap());
        assert_eq!(conf.value.scripts, toml.value.scripts);
        assert!(conf.warnings.is_empty() && toml.warnings.is_empty());
        let a = &conf.value.scripts[&name("a")].annotations;
        assert_eq!(a.timeout, Some(Duration::from_secs(9)));
        assert_eq!(a.schema, AbsolutePath::new("/s.json").ok());
        let digest = a.digest.unwrap();
        assert_eq!(
            digest[..11],
            [
                1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0xab, 0xcd, 0xef
            ]
        );
    }

    #[test]
    fn bad_annotations_are_errors_and_never_passed_over() {
        let f = |n: usize| "f".repeat(n);
        for (bad, part) in [
            (
                "digest=".to_owned(),
                "digest must be 'sha256:' and 64 hex digits",
            ),
            ("digest=sha256:".to_owned(), "64 hex digits"),
            (format!("digest={}", f(64)), "64 hex digits"),
            (format!("digest=sha256:{}", f(63)), "64 hex digits"),
            (format!("digest=sha256:{}", f(65)), "64 hex digits"),
            (format!("digest=sha256:{}g", f(63)), "64 hex digits"),
            (format!("digest=sha256:é{}", f(62)), "64 hex digits"),
            (format!("digest=SHA256:{}", f(64)), "64 hex digits"),
            (format!("digest=sha512:{}", f(128)), "64 hex digits"),
            ("timeout=0".to_owned(), "timeout must be seconds from 1"),
            ("timeout=".to_owned(), "timeout must be seconds"),
            ("timeout=1m".to_owned(), "timeout must be seconds"),
            ("timeout=2678401".to_owned(), "timeout must be seconds"),
            (
                "schema=x.json".to_owned(),
                "schema must be an absolute path",
            ),
            ("schema=".to_owned(), "schema must be an absolute path"),
        ] {
            let line = error(host("", "scripts.conf", &format!("a = /x {bad}\n")).allowlist());
            assert!(line.contains("scripts.conf:1:"), "{line}");
            assert!(
                line.contains("error: Script 'a': ") && line.contains(part),
                "{bad}: {line}"
            );
        }
        let toml = "[scripts.a]\npath = \"/x\"\nsha256 = \"ff\"\n";
        let line = error(host("", "scripts.toml", toml).allowlist());
        assert!(
            line.contains("3:10: error: Script 'a': a digest is written digest = "),
            "{line}"
        );
    }

    #[test]
    fn strict_refuses_doubt_about_scripts() {
        let agent = "script_dirs = /opt\n[executor]\nbaseline = strict\n";
        for (line, part) in [
            ("a = /opt/x\na = /opt/x\n", "stands in line 1 too"),
            (
                "a = /opt/x color=red\n",
                "annotation 'color=' of 'a' is unknown",
            ),
        ] {
            let said = error(host(agent, "scripts.conf", line).allowlist());
            assert!(said.contains(part), "{said}");
        }
    }

    #[test]
    fn digests_are_checked_by_the_executor_and_that_is_said() {
        let digest = "f".repeat(64);
        let line = format!("a = /bin/sh digest=sha256:{digest}\nb = /bin/sh\n");
        let said = warnings(&host("", "scripts.conf", &line).allowlist().unwrap());
        assert!(said[0].contains("the digest of 'a' is checked by the executor only"));
        let agent = "executor_socket = /run/x/exec.sock\n[executor]\nrequire_digest = on\n";
        let said = warnings(&host(agent, "scripts.conf", &line).allowlist().unwrap());
        assert_eq!(said.len(), 1);
        assert!(said[0].contains("'b' will be refused by the executor - it has no digest="));
    }

    #[test]
    fn no_profile_may_write_to_a_script_or_its_schema() {
        let agent = "[profile p]\nrun_as = a\nwritable = /srv/tools/run.sh\n";
        for line in [
            "a = /srv/tools/run.sh\n",
            "a = /x schema=/srv/tools/run.sh\n",
        ] {
            let said = error(host(agent, "scripts.conf", line).allowlist());
            assert!(
                said.contains("writable path '/srv/tools/run.sh' lies inside"),
                "{said}"
            );
        }
        assert!(
            host(agent, "scripts.conf", "a = /srv/tools/other\n")
                .allowlist()
                .is_ok()
        );
    }

    #[test]
    fn scripts_outside_the_approved_directories_are_named() {
        let loaded = host("script_dirs = /nowhere\n", "scripts.conf", "a = /bin/sh\n").allowlist();
        let loaded = loaded.unwrap();
        assert_eq!(loaded.value.scripts.len(), 1);
        assert!(
            warnings(&loaded)[0]
                .contains("'a' will be refused - path not in approved script_dirs: /bin/sh")
        );
    }

    #[test]
    fn every_profile_must_be_defined_also_default() {
        let check = |agent: &str| {
            let host = host(
                agent,
                "scripts.conf",
                "a = /x\nb = /y profile=p\nc = /z profile=P\n",
            );
            let list = host.allowlist().unwrap().value;
            check_profiles(&list, &host.agent().unwrap().value)
        };
        let text = check("").unwrap_err().to_string();
        assert!(text.starts_with(
            "script(s) reference an undefined profile: a -> default, b -> p, c -> P; define"
        ));
        let error = check("[profile default]\n[profile p]\n").unwrap_err();
        assert_eq!(error.missing.len(), 1, "names are case-sensitive");
        assert!(check("[profile default]\n[profile p]\n[profile P]\n").is_ok());
        let none = host("", "scripts.conf", "# none\n");
        let list = none.allowlist().unwrap().value;
        assert!(check_profiles(&list, &none.agent().unwrap().value).is_ok());
    }
}
