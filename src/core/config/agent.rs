//! `agent.conf` and `agent.toml`: from raw values to [`AgentConfig`] (spec/agent.md 3.2-3.4).

use std::path::Path;

use super::diagnostics::{Report, Severity};
use super::profiles::CarveOut;
use super::raw::{RawDocument, RawValue, Style};
use super::reader::Reader;
use super::source::SourceFile;
use super::{
    AgentConfig, Allowlist, Baseline, MetricsAudience, cidr, executor, hook, profiles, tags,
};
use crate::core::paths::Paths;
use crate::core::profile::protected;
use crate::core::types::AbsolutePath;

const DAY: u64 = 86_400;

/// Validates everything; what cannot be used is reported and has its default in the answer.
pub(super) fn build(
    raw: RawDocument,
    source: &SourceFile,
    paths: &Paths,
    last_cap: Option<u8>,
    report: &mut Report,
) -> AgentConfig {
    let mut config = AgentConfig::defaults(paths, &source.path);
    let style = raw.style;
    require(&raw, source, report);
    let mut r = Reader::new(source, report, style, raw.top, String::new());
    network(&mut r, &mut config);
    files(&mut r, &mut config, paths);
    limits(&mut r, &mut config);
    config.auth_deny_generic = r.boolean("auth_deny_generic", config.auth_deny_generic);
    config.pairing_require_bound_code = r.boolean(
        "pairing_require_bound_code",
        config.pairing_require_bound_code,
    );
    config.metrics = metrics(&mut r).unwrap_or_default();
    let known = r.finish_with(&["tags", "executor", "profile"]);
    config.tags = tags::build(raw.tags, &known, source, report);
    config.executor = executor::build(raw.executor, style, source, report);
    let rules = profiles::Rules {
        baseline: config.executor.baseline,
        last_cap,
    };
    let (built, carve_outs) = profiles::build(raw.profiles, style, rules, source, report);
    config.profiles = built;
    refuse_open_doors(&config, &carve_outs, paths, source, report);
    if config.script_dirs.is_empty() && !report.failed() {
        let severity = match rules.baseline {
            Baseline::Compat => Severity::Warning,
            Baseline::Strict => Severity::Error,
        };
        let message = "script_dirs is not set: every absolute path may be a script; name the directories that hold your scripts";
        report.add(source.of_file(severity, message));
    }
    config
}

/// No profile may write where scripts, configuration or keys are (spec/executor.md 15.4).
fn refuse_open_doors(
    config: &AgentConfig,
    carve_outs: &[CarveOut],
    paths: &Paths,
    source: &SourceFile,
    report: &mut Report,
) {
    if carve_outs.is_empty() {
        return;
    }
    let socket = config.executor_socket.as_deref();
    let protected = protected::protected_paths(config, &Allowlist::default(), paths, socket, None);
    for CarveOut {
        profile,
        path,
        span,
    } in carve_outs
    {
        if let Some(inside) = protected::inside(path.as_path(), &protected) {
            let message = protected::conflict_text(profile, path, inside);
            report.add(source.diagnostic(Severity::Error, span, message));
        }
    }
}

/// The original insists on four keys; with TOML they have their defaults.
fn require(raw: &RawDocument, source: &SourceFile, report: &mut Report) {
    if raw.style == Style::Toml {
        return;
    }
    for key in ["port", "cert", "key", "ca"] {
        if raw.top.entries.contains_key(key) {
            continue;
        }
        let below = [&raw.tags, &raw.executor]
            .into_iter()
            .chain(raw.profiles.values().map(|p| &p.table))
            .find_map(|table| table.entries.get(key));
        let hint = below.map_or(String::new(), |entry| {
            format!(
                " (line {} sets it below a section header: move it above the first '[...]')",
                source.line_number(entry.key_span.start)
            )
        });
        let message = format!(
            "Missing required config key '{key}' in '{}'{hint}",
            source.path.display()
        );
        report.add(source.of_file(Severity::Error, message));
    }
}

fn network(r: &mut Reader<'_>, config: &mut AgentConfig) {
    config.port = r.port("port", config.port);
    config.bind = r.address("bind");
    config.allowed_ips = cidr::allowed_ips(r).unwrap_or_default();
}

fn files(r: &mut Reader<'_>, config: &mut AgentConfig, paths: &Paths) {
    let mut set = |key, field: &mut std::path::PathBuf| {
        if let Some(path) = r.path(key, paths) {
            *field = path;
        }
    };
    set("cert", &mut config.cert);
    set("key", &mut config.key);
    set("ca", &mut config.ca);
    set(
        "trusted_dispatchers_path",
        &mut config.trusted_dispatchers_path,
    );
    set("revoked_serials", &mut config.revoked_serials);
    set("async_runs_dir", &mut config.async_runs_dir);
    set("cert_staging_path", &mut config.cert_staging_path);
    config.script_dirs = script_dirs(r).unwrap_or_default();
    config.executor_socket = executor_socket(r, paths);
    config.auth_hook = hook::read(r, paths, true);
}

fn script_dirs(r: &mut Reader<'_>) -> Option<Vec<AbsolutePath>> {
    r.list(
        "script_dirs",
        |c| c == ':',
        |r, items| {
            if items.value.is_empty() {
                let message = format!(
                    "script_dirs names no directory {}: name one, or remove the key",
                    r.in_file()
                );
                r.error(&items.span, &message);
            }
            let mut dirs = Vec::new();
            for item in &items.value {
                let Some(dir) = r.absolute(item, "script_dirs: directory") else {
                    continue;
                };
                if dir.as_path() == Path::new("/") {
                    r.warn(&item.span, "script_dirs holds '/': it allows every path");
                }
                dirs.push(dir);
            }
            Some(dirs)
        },
    )
}

fn metrics(r: &mut Reader<'_>) -> Option<MetricsAudience> {
    let text = r.text("metrics")?;
    let wanted = text.value.to_ascii_lowercase();
    let known = MetricsAudience::ALL
        .into_iter()
        .find(|a| a.as_str() == wanted);
    if known.is_none() {
        let message = format!(
            "'metrics' must be off, dispatchers or ca, not '{}' {}",
            text.value,
            r.in_file()
        );
        r.error(&text.span, &message);
    }
    known
}

/// Empty or `0` = the agent runs scripts itself.
fn executor_socket(r: &mut Reader<'_>, paths: &Paths) -> Option<std::path::PathBuf> {
    r.read("executor_socket", |r, value| match &value.value {
        RawValue::Text(text) if text.is_empty() || text == "0" => None,
        RawValue::Text(text) => {
            let text = super::raw::Located::new(text.clone(), value.span.clone());
            let path = r.absolute(&text, "'executor_socket'")?;
            Some(paths.resolve(path.as_path()))
        }
        other => {
            let message = format!("'executor_socket' must be a string, not {}", other.kind());
            r.error(&value.span, &message);
            None
        }
    })
}

fn limits(r: &mut Reader<'_>, config: &mut AgentConfig) {
    config.stdin_timeout = r.seconds("stdin_timeout", 1..=DAY, config.stdin_timeout);
    config.run_timeout = r.seconds("run_timeout", 1..=31 * DAY, config.run_timeout);
    config.max_output = r.size("max_output", 1024..=1 << 30, config.max_output);
    config.max_children = r.size("max_children", 1..=65_535, config.max_children);
    let off = r.boolean("rate_limit_disable", false);
    config.rate_limit_volume = r.rate("rate_limit_volume", config.rate_limit_volume);
    config.rate_limit_probe = r.rate("rate_limit_probe", config.rate_limit_probe);
    config.rate_limit_dispatcher = r.rate("rate_limit_dispatcher", config.rate_limit_dispatcher);
    if off {
        config.rate_limit_volume = None;
        config.rate_limit_probe = None;
        config.rate_limit_dispatcher = None;
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::core::config::RateSpec;

    #[test]
    fn the_required_keys_are_enough_and_the_rest_has_its_defaults() {
        let host = Host::new();
        let path = host.write("/etc/ctrl-exec-agent/agent.conf", REQUIRED);
        let loaded = host.agent().unwrap();
        assert_eq!(
            loaded.value,
            AgentConfig::defaults(&host.paths(), &path),
            "the shipped values are the defaults"
        );
        let said = warnings(&loaded);
        assert_eq!(said.len(), 1);
        assert!(said[0].contains("script_dirs is not set"));
        assert_eq!(loaded.value.ca, host.at("/etc/ctrl-exec-agent/ca.crt"));
    }

    #[test]
    fn missing_keys_are_named_all_at_once() {
        let all = errors(agent_conf("# nothing\n"));
        assert_eq!(all.len(), 4);
        for (key, line) in ["port", "cert", "key", "ca"].iter().zip(&all) {
            assert!(
                line.contains(&format!("Missing required config key '{key}' in '")),
                "{line}"
            );
        }
    }

    #[test]
    fn a_key_below_a_section_does_not_count_and_is_found_again() {
        let text = REQUIRED.replace("port = 7443\n", "") + "[tags]\nport = 7443\n";
        let line = error(agent_conf(&text));
        assert!(
            line.contains("Missing required config key 'port'"),
            "{line}"
        );
        assert!(
            line.contains("(line 5 sets it below a section header"),
            "{line}"
        );
    }

    #[test]
    fn all_mistakes_of_a_file_come_in_one_run() {
        let text = "port = abc\ncert = x\nno pair\nmax_children = 0\n[profile p]\nrun_as = 1bad name\ncaps = X # note\n[profile]\n";
        let all = errors(agent_conf(text));
        let expected = [
            "1:8: error: port must be numeric in '",
            "2:8: error: 'cert' must be an absolute path: 'x'",
            "3:1: error: Malformed config line in '",
            "4:16: error: 'max_children' must be a whole number from 1 to 65535, not '0'",
            "6:10: error: Profile 'p': invalid run_as '1bad name' in '",
            "7:8: error: Profile 'p': invalid capability 'X' (expected CAP_*)",
            "7:10: error: Profile 'p': invalid capability '#' (expected CAP_*)",
            "7:12: error: Profile 'p': invalid capability 'note' (expected CAP_*)",
            "8:1: error: Profile section needs a name ([profile <name>]) in '",
            "Missing required config key 'key'",
            "Missing required config key 'ca'",
        ];
        assert_eq!(all.len(), expected.len(), "{all:#?}");
        for (line, part) in all.iter().zip(expected) {
            assert!(line.contains(part), "{line}\n lacks {part}");
        }
        let shown = agent_conf(text).unwrap_err().to_string();
        assert!(shown.contains("\n  port = abc\n         ^"), "{shown}");
    }

    #[test]
    fn ports_are_checked() {
        for (text, good) in [
            ("0", true),
            ("65535", true),
            ("65536", false),
            ("-1", false),
            ("+1", false),
            ("7443x", false),
            ("99999999999999999999999", false),
        ] {
            let file = REQUIRED.replace("7443", text);
            assert_eq!(agent_conf(&file).is_ok(), good, "{text}");
        }
        let line = error(agent_conf(&REQUIRED.replace("7443", "7443 # x")));
        assert!(line.contains("port must be numeric in '"));
        assert!(line.contains("inline '# ...' comments are not supported"));
    }

    #[test]
    fn an_inline_comment_never_becomes_part_of_a_value() {
        for key in [
            "revoked_serials = /x # y",
            "rate_limit_disable = yes\t# why",
            "script_dirs = /a:/b # c",
        ] {
            let line = error(agent_lines(key));
            assert!(
                line.contains("inline '# ...' comments are not supported"),
                "{line}"
            );
        }
        let loaded = agent_lines("[tags]\nnote = a # b\n").unwrap();
        assert_eq!(loaded.value.tags["note"], "a # b");
        assert!(agent_lines("cert_staging_path = /x#y\n").is_ok());
    }

    #[test]
    fn unknown_keys_are_warned_about_with_the_near_one() {
        let loaded = agent_lines("max_childen = 3\nsandbox = 1\n").unwrap();
        let said = warnings(&loaded);
        assert!(said[0].contains(
            "6:1: warning: unknown key 'max_childen' is ignored; did you mean 'max_children'?"
        ));
        assert!(said[1].contains("unknown key 'sandbox' is ignored"));
    }

    #[test]
    fn script_dirs() {
        let dirs = |text: &str| agent_conf(&format!("{REQUIRED}script_dirs = {text}\n"));
        let loaded = dirs("/a::/b/c: ").unwrap();
        let shown: Vec<String> = loaded
            .value
            .script_dirs
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(shown, ["/a", "/b/c"]);
        assert!(warnings(&dirs("/").unwrap())[0].contains("allows every path"));
        assert!(error(dirs("a")).contains("must be an absolute path: 'a'"));
        assert!(error(dirs(":")).contains("script_dirs names no directory"));
        assert!(error(dirs("")).contains("has no value"));
    }

    #[test]
    fn rates_and_switches() {
        let config = |text: &str| agent_lines(text).unwrap();
        let loaded = config("rate_limit_volume = 5/6/7\nrate_limit_probe = 0/1/1\n").value;
        assert_eq!(loaded.rate_limit_volume, Some(RateSpec::new(5, 6, 7)));
        assert_eq!(loaded.rate_limit_probe, None);
        let loaded = config("rate_limit_volume = many\nrate_limit_probe = 0\n");
        assert_eq!(
            loaded.value.rate_limit_volume,
            Some(RateSpec::new(10, 60, 300))
        );
        assert_eq!(
            loaded.value.rate_limit_probe,
            Some(RateSpec::new(3, 600, 3600))
        );
        assert!(warnings(&loaded)[0].contains("the default 10/60/300 stays"));
        for on in ["1", "y", "YES", "true", "On"] {
            let c = config(&format!("rate_limit_disable = {on}\n")).value;
            assert_eq!(
                (
                    c.rate_limit_volume,
                    c.rate_limit_probe,
                    c.rate_limit_dispatcher
                ),
                (None, None, None)
            );
        }
        for off in ["0", "n", "no", "False", "off"] {
            let c = config(&format!("rate_limit_disable = {off}\n")).value;
            assert!(c.rate_limit_volume.is_some());
        }
        for other in ["yep", "2", "ture"] {
            let line = error(agent_lines(&format!("rate_limit_disable = {other}\n")));
            assert!(line.contains("1 y yes true on"), "{line}");
        }
    }

    #[test]
    fn metrics_are_for_nobody_unless_the_host_says_so() {
        assert_eq!(agent_lines("").unwrap().value.metrics, MetricsAudience::Off);
        for audience in MetricsAudience::ALL {
            let word = audience.as_str();
            let conf = agent_lines(&format!("metrics = {}\n", word.to_uppercase()));
            assert_eq!(conf.unwrap().value.metrics, audience);
            let toml = agent_toml(&format!("metrics = \"{word}\"\n"));
            assert_eq!(toml.unwrap().value.metrics, audience);
        }
        for bad in ["on", "yes", "all", "dispatcher"] {
            let line = error(agent_lines(&format!("metrics = {bad}\n")));
            assert!(line.contains("must be off, dispatchers or ca"), "{line}");
        }
        assert!(error(agent_toml("metrics = true\n")).contains("must be a string"));
    }

    #[test]
    fn executor_socket_is_moved_by_the_root_and_can_be_unset() {
        let host = Host::new();
        let write = |value: &str| {
            let text = format!("{REQUIRED}executor_socket = {value}\n");
            host.write("/etc/ctrl-exec-agent/agent.conf", &text);
            host.agent()
        };
        let socket = write("/run/ctrl-exec-agent/exec.sock").unwrap().value;
        assert_eq!(
            socket.executor_socket,
            Some(host.at("/run/ctrl-exec-agent/exec.sock"))
        );
        assert_eq!(write("0").unwrap().value.executor_socket, None);
        assert!(error(write("exec.sock")).contains("absolute"));
        assert!(error(write(" ")).contains("has no value"));
    }

    #[test]
    fn toml_needs_nothing_but_content_and_says_what_is_allowed() {
        let loaded = agent_toml("# all defaults\n").unwrap();
        assert_eq!(loaded.value.port, 7443);
        assert!(error(agent_toml(" \n")).contains("the file is empty"));
        let all = errors(agent_toml(
            "port = \"7443\"\nprot = 1\nmax_output = -1\nallowed_ips = \"10.0.0.1\"\nrate_limit_disable = 1\nrun_timeout = 1.5\n[tags]\na = 1\n",
        ));
        let expected = [
            "1:8: error: port must be numeric in '",
            "2:1: error: unknown key 'prot'; allowed: port, bind, allowed_ips, cert, ",
            "3:14: error: 'max_output' must be a whole number from 1024 to 1073741824, not -1",
            "4:15: error: 'allowed_ips' must be an array of strings, not a string",
            "5:22: error: 'rate_limit_disable' must be true or false, not an integer",
            "6:15: error: 'run_timeout' must be a whole number from 1 to 2678400, not a float",
            "8:5: error: tag 'a' must be a string, not an integer",
        ];
        assert_eq!(all.len(), expected.len(), "{all:#?}");
        for (line, part) in all.iter().zip(expected) {
            assert!(line.contains(part), "{line}\n lacks {part}");
        }
    }

    #[test]
    fn both_syntaxes_give_the_same_value() {
        let conf = agent_lines(
            "bind = ::1\nallowed_ips = 10.0.0.0/8, ::1\nrun_timeout = 5\nrate_limit_probe = 1/2/3\nauth_deny_generic = yes\n[tags]\nsite = x\n[profile p.q]\nrun_as = nobody\ncaps = CAP_KILL, CAP_CHOWN\nwritable = /a:/b\nno_new_privileges = off\nallow_setuid = yes\n",
        );
        let toml = agent_toml(
            "script_dirs = [\"/opt\"]\nbind = \"::1\"\nallowed_ips = [\"10.0.0.0/8\", \"::1\"]\nrun_timeout = 5\nrate_limit_probe = \"1/2/3\"\nauth_deny_generic = true\n[tags]\nsite = \"x\"\n[profile.\"p.q\"]\nrun_as = \"nobody\"\ncaps = [\"CAP_KILL\", \"CAP_CHOWN\"]\nwritable = [\"/a\", \"/b\"]\nno_new_privileges = false\nallow_setuid = true\n",
        );
        let (conf, toml) = (conf.unwrap(), toml.unwrap());
        assert_eq!(warnings(&conf), warnings(&toml));
        let strip = |mut config: AgentConfig| {
            for path in [
                &mut config.source,
                &mut config.cert,
                &mut config.key,
                &mut config.ca,
                &mut config.trusted_dispatchers_path,
                &mut config.revoked_serials,
                &mut config.async_runs_dir,
                &mut config.cert_staging_path,
            ] {
                *path = std::path::PathBuf::new(); // below different temporary roots
            }
            config
        };
        assert_eq!(strip(conf.value), strip(toml.value));
    }
}
