//! `[executor]` (spec/executor.md 15.1). No older file has this section, so unknown keys are errors in both syntaxes.

use std::path::PathBuf;

use super::diagnostics::Report;
use super::raw::{Located, RawTable, Style};
use super::reader::Reader;
use super::source::SourceFile;
use super::values::Unit;
use super::{Baseline, ExecutorConfig};

/// Largest frame and largest kept output, the original's own bounds.
const MOST: u64 = 16 * 1024 * 1024;

/// Validates the section; what cannot be used is reported and has its default in the answer.
pub(super) fn build(
    table: RawTable,
    style: Style,
    source: &SourceFile,
    report: &mut Report,
) -> ExecutorConfig {
    let mut config = ExecutorConfig::default();
    let mut r = Reader::new(source, report, style, table, "[executor]: ".to_owned());
    r.refuse_unknown();
    let words = [("compat", Baseline::Compat), ("strict", Baseline::Strict)];
    config.baseline = r.word("baseline", &words).unwrap_or_default();
    config.max_runs = r.size("max_runs", 1..=4096, config.max_runs);
    config.request_timeout = r.seconds("request_timeout", 1..=300, config.request_timeout);
    config.max_frame = bytes(&mut r, "max_frame", config.max_frame);
    config.max_output = bytes(&mut r, "max_output", config.max_output);
    config.drain_grace = r.seconds("drain_grace", 0..=60, config.drain_grace);
    config.require_digest = r.boolean("require_digest", false);
    config.cgroup_parent = cgroup_parent(&mut r);
    config.executor_peer_unit = peer_unit(&mut r);
    if r.has("script_dirs") {
        let span = r.value_span("script_dirs").unwrap_or(0..0);
        let message = "script_dirs does not belong here (the original's executor would take it for the one at the top of the file): move it above the first section";
        r.error(&span, message);
        r.forget("script_dirs");
    }
    r.finish();
    config
}

fn bytes(r: &mut Reader<'_>, key: &'static str, default: usize) -> usize {
    r.amount(key, Unit::Bytes, 1024..=MOST)
        .and_then(|n| usize::try_from(n).ok())
        .unwrap_or(default)
}

/// A directory of the host: not moved by the root prefix.
fn cgroup_parent(r: &mut Reader<'_>) -> Option<PathBuf> {
    let text: Located<String> = r.text("cgroup_parent")?;
    let path = r.absolute(&text, "'cgroup_parent'")?;
    let path = path.as_path();
    if path
        .components()
        .any(|c| c == std::path::Component::ParentDir)
    {
        return r.not("cgroup_parent", &text, "a path without '..'");
    }
    Some(path.to_owned())
}

fn peer_unit(r: &mut Reader<'_>) -> Option<String> {
    let text = r.text("executor_peer_unit")?;
    let fits = |b: u8| b.is_ascii_alphanumeric() || b":_.@-\\".contains(&b);
    let named = text
        .value
        .strip_suffix(".service")
        .is_some_and(|stem| !stem.is_empty());
    if named && text.value.len() <= 255 && text.value.bytes().all(fits) {
        return Some(text.value);
    }
    r.not(
        "executor_peer_unit",
        &text,
        "the name of a systemd unit that ends in .service",
    )
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use std::time::Duration;

    #[test]
    fn absent_means_compat_and_the_defaults() {
        let loaded = agent_lines("").unwrap();
        assert_eq!(loaded.value.executor, ExecutorConfig::default());
        assert_eq!(loaded.value.executor.baseline, Baseline::Compat);
        assert!(loaded.warnings.is_empty());
    }

    #[test]
    fn every_key_in_both_syntaxes() {
        let conf = agent_lines(
            "[executor]\nbaseline = strict\nmax_runs = 3\nrequest_timeout = 4\nmax_frame = 64K\nmax_output = 1M\ndrain_grace = 0\nrequire_digest = yes\ncgroup_parent = /sys/fs/cgroup/x\nexecutor_peer_unit = ctrl-exec-agent.service\n",
        );
        let toml = agent_toml(
            "script_dirs = [\"/opt\"]\n[executor]\nbaseline = \"strict\"\nmax_runs = 3\nrequest_timeout = 4\nmax_frame = 65536\nmax_output = \"1M\"\ndrain_grace = 0\nrequire_digest = true\ncgroup_parent = \"/sys/fs/cgroup/x\"\nexecutor_peer_unit = \"ctrl-exec-agent.service\"\n",
        );
        let expected = ExecutorConfig {
            baseline: Baseline::Strict,
            max_runs: 3,
            request_timeout: Duration::from_secs(4),
            max_frame: 65_536,
            max_output: 1 << 20,
            drain_grace: Duration::ZERO,
            require_digest: true,
            cgroup_parent: Some("/sys/fs/cgroup/x".into()),
            executor_peer_unit: Some("ctrl-exec-agent.service".to_owned()),
        };
        for loaded in [conf, toml] {
            let loaded = loaded.unwrap();
            assert_eq!(warnings(&loaded), Vec::<String>::new());
            assert_eq!(loaded.value.executor, expected);
        }
    }

    #[test]
    fn doubt_is_an_error_with_its_place() {
        for (line, part) in [
            (
                "baseline = Strict",
                "7:12: error: [executor]: 'baseline' must be compat or strict, not 'Strict'",
            ),
            (
                "baseline = strict # x",
                "inline '# ...' comments are not supported",
            ),
            ("baseline = ", "'baseline' has no value"),
            (
                "basline = strict",
                "unknown key 'basline'; did you mean 'baseline'?",
            ),
            ("max_runs = 0", "from 1 to 4096"),
            ("max_frame = 17M", "from 1024 to 16777216"),
            ("max_output = 1", "from 1024 to 16777216"),
            ("require_digest = ture", "1 y yes true on"),
            ("cgroup_parent = runs", "absolute"),
            ("cgroup_parent = /sys/../etc", "without '..'"),
            ("executor_peer_unit = agent", "ends in .service"),
            ("script_dirs = /evil", "script_dirs does not belong here"),
            ("log_level = info", "unknown key 'log_level'"),
        ] {
            let said = error(agent_lines(&format!("[executor]\n{line}\n")));
            assert!(said.contains(part), "{line}: {said}");
        }
        assert!(error(agent_lines("[executer]\n")).contains("did you mean [executor]?"));
        assert!(error(agent_lines("[executor x]\n")).contains("takes no name"));
        let said = error(agent_toml("executor = 1\n"));
        assert!(said.contains("'executor' must be a table"), "{said}");
        let said = warnings(&agent_lines("[Executor]\nmax_runs = 2\n").unwrap());
        assert!(said[0].contains("section [Executor] is read as [executor]"));
    }
}
