//! What `contrib/` promises to monitoring systems: its files can be read, and speak of what the programs really say.

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::process;
use ctrl_exec::core::metrics::{
    AgentRefusal, ApiRefusal, FAMILIES, Family, Kind, Outcome, RunEnd, What,
};

fn contrib(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("contrib")
        .join(file)
}

fn read(file: &str) -> String {
    let path = contrib(file);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// `key: value` of the part of YAML that our files keep to.
#[derive(Debug, PartialEq)]
struct Entry {
    indent: usize,
    key: String,
    value: Option<String>,
}

/// Block mappings and sequences, quoted or plain words, comments on lines of their own: whatever reads YAML reads that alike.
fn scan(text: &str) -> Result<Vec<Entry>, String> {
    let mut entries = Vec::new();
    // The mappings that are open, by indentation, with their keys.
    let mut open: Vec<(usize, BTreeSet<String>)> = Vec::new();
    let mut may_deepen = true;
    for (at, line) in text.lines().enumerate() {
        let wrong = |reason: &str| Err(format!("line {}: {reason}: {line}", at + 1));
        let content = line.trim_start_matches(' ');
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        if line.contains('\t') || line.ends_with(' ') {
            return wrong("a tab, or a blank at the end");
        }
        let outer = line.len() - content.len();
        let (indent, content, item) = match content.strip_prefix("- ") {
            Some(rest) => (outer + 2, rest, true),
            None => (outer, content, false),
        };
        let depth = open.last().map_or(0, |(depth, _)| *depth);
        let deepest = if may_deepen {
            depth + 2 + if item { 2 } else { 0 }
        } else {
            depth
        };
        if outer % 2 == 1 || indent > deepest || (indent > depth && !may_deepen) {
            return wrong("the indentation fits nothing");
        }
        open.retain(|(depth, _)| *depth < indent || (*depth == indent && !item));
        if open.last().is_none_or(|(depth, _)| *depth < indent) {
            open.push((indent, BTreeSet::new()));
        }
        let (key, value) = match content.split_once(':') {
            Some((key, value)) if is_word(key) => (key, value),
            _ if item && scalar(content).is_some() => {
                may_deepen = false;
                continue;
            }
            _ => return wrong("no key"),
        };
        let known = open
            .last_mut()
            .is_some_and(|(_, keys)| !keys.insert(key.to_owned()));
        if known {
            return wrong("the key is there twice");
        }
        let value = match value.strip_prefix(' ') {
            None if value.is_empty() => None,
            Some(value) => match scalar(value) {
                Some(value) => Some(value),
                None => return wrong("a value that needs quotes"),
            },
            None => return wrong("no blank before the value"),
        };
        may_deepen = value.is_none();
        entries.push(Entry {
            indent,
            key: key.to_owned(),
            value,
        });
    }
    if entries.is_empty() || may_deepen {
        return Err("it ends before its value".to_owned());
    }
    Ok(entries)
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphabetic() || c == '_')
}

fn scalar(text: &str) -> Option<String> {
    for quote in ['\'', '"'] {
        if let Some(inner) = text.strip_prefix(quote) {
            let inner = inner.strip_suffix(quote)?;
            return (!inner.contains([quote, '\\'])).then(|| inner.to_owned());
        }
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "_./-".contains(c);
    (!text.is_empty() && !text.starts_with('-') && text.chars().all(plain)).then(|| text.to_owned())
}

#[test]
fn the_scanner_takes_and_refuses_what_it_should() {
    let good = "# c\ngroups:\n  - name: a\n    rules:\n      - alert: B\n        expr: 'x{y=\"z\"} > 0'\n      - alert: C\n        expr: up\nrest:\n  - \"a:1\"\n  - b\n";
    let entries = scan(good).expect("it is right");
    assert_eq!(entries.len(), 8);
    assert_eq!(entries[4].value.as_deref(), Some("x{y=\"z\"} > 0"));
    for bad in [
        "",
        "a:\n",
        "a: b: c\n",
        "a: b # c\n",
        "a:b\n",
        "a: 'b\n",
        "a: 'it''s'\n",
        "a: {b\n",
        "a: b\n  c: d\n",
        "a:\n   b: c\n",
        "a:\n      b: c\n",
        "a:\n\tb: c\n",
        "a: b \n",
        "a: b\na: c\n",
        "a:\n  - b: c\n    b: d\n",
        "words\n",
    ] {
        assert!(scan(bad).is_err(), "{bad:?} was taken");
    }
}

/// A metric in an expression, with its matchers.
#[derive(Debug)]
struct Use<'a> {
    family: &'static Family,
    matchers: Vec<(&'a str, &'a str)>,
}

fn uses(expr: &str) -> Result<Vec<Use<'_>>, String> {
    let mut found = Vec::new();
    let mut rest = expr;
    while let Some(at) = rest.find("ctrl_exec_") {
        rest = &rest[at..];
        let end = rest
            .find(|c: char| !c.is_ascii_lowercase() && c != '_')
            .unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        let family = family_of(name).ok_or_else(|| format!("nothing exports {name}"))?;
        let mut matchers = Vec::new();
        if let Some(inside) = after.strip_prefix('{') {
            let (inside, _) = inside.split_once('}').ok_or("no end of the matchers")?;
            for matcher in inside.split(',') {
                let (label, value) = matcher.split_once('=').ok_or("no matcher")?;
                let value = value.trim_start_matches('~');
                let value = value
                    .strip_prefix('"')
                    .and_then(|v| v.strip_suffix('"'))
                    .ok_or("a matcher without quotes")?;
                matchers.push((label.trim_end_matches('!'), value));
            }
        }
        found.push(Use { family, matchers });
        rest = after;
    }
    Ok(found)
}

fn family_of(name: &str) -> Option<&'static Family> {
    FAMILIES.iter().copied().find(|family| {
        let suffixes: &[&str] = match family.kind {
            Kind::Histogram => &["_bucket", "_sum", "_count"],
            Kind::Counter | Kind::Gauge => &[""],
        };
        let own = |suffix: &&str| name.strip_suffix(*suffix) == Some(family.name);
        suffixes.iter().any(own)
    })
}

/// The words that a label can have; `None`: no list of ours.
fn words(family: &Family, label: &str) -> Option<Vec<&'static str>> {
    Some(match (family.name, label) {
        ("ctrl_exec_api_refusals_total", "reason") => {
            ApiRefusal::ALL.iter().map(|r| r.as_str()).collect()
        }
        ("ctrl_exec_agent_refusals_total", "reason") => {
            AgentRefusal::ALL.iter().map(|r| r.as_str()).collect()
        }
        ("ctrl_exec_run_results_total", "outcome") => {
            Outcome::ALL.iter().map(|o| o.as_str()).collect()
        }
        ("ctrl_exec_agent_run_results_total", "outcome") => {
            RunEnd::ALL.iter().map(|o| o.as_str()).collect()
        }
        (_, "what") => What::ALL.iter().map(|w| w.as_str()).collect(),
        (_, "serial_status") => vec!["current", "pending", "stale", "unknown"],
        (_, "kind") => vec!["dispatcher", "ca", "api", "agent"],
        _ => return None,
    })
}

/// What is wrong with an expression.
fn judge(expr: &str) -> Result<(), String> {
    let count = |c| expr.matches(c).count();
    if count('(') != count(')') || count('{') != count('}') || count('"') % 2 == 1 {
        return Err("brackets or quotes do not fit".to_owned());
    }
    let uses = uses(expr)?;
    for Use { family, matchers } in &uses {
        for (label, value) in matchers {
            if !family.labels.contains(label) {
                return Err(format!("{} has no label {label}", family.name));
            }
            let known = words(family, label);
            let unknown = |word: &&str| known.as_ref().is_some_and(|all| !all.contains(word));
            if let Some(word) = value.split('|').find(|word| unknown(word)) {
                return Err(format!("{} never has {label}={word}", family.name));
            }
        }
    }
    // Labels by which is grouped.
    for group in expr.split("by (").skip(1) {
        let (labels, rest) = group.split_once(')').ok_or("no end of the labels")?;
        let about = self::uses(rest)?;
        let about = about.first().ok_or("grouped by nothing")?;
        for label in labels.split(", ") {
            let own = about.family.labels.contains(&label);
            let bucket = label == "le" && about.family.kind == Kind::Histogram;
            if !own && !bucket && label != "instance" {
                return Err(format!("{} has no label {label}", about.family.name));
            }
        }
    }
    Ok(())
}

#[test]
fn the_judge_of_expressions_finds_mistakes() {
    for good in [
        "up == 0",
        "ctrl_exec_agents{serial_status=\"stale\"} > 0",
        "histogram_quantile(0.9, sum by (instance, le) (rate(ctrl_exec_hook_duration_seconds_bucket[5m]))) > 5",
    ] {
        assert_eq!(judge(good), Ok(()));
    }
    for bad in [
        "ctrl_exec_agent > 0",
        "ctrl_exec_hook_duration_seconds > 0",
        "ctrl_exec_agents_bucket > 0",
        "ctrl_exec_agents{status=\"stale\"} > 0",
        "ctrl_exec_agents{serial_status=~\"stale|lost\"} > 0",
        "ctrl_exec_agents{serial_status=\"stale\" > 0",
        "sum by (script) (ctrl_exec_agents) > 0",
        "sum(ctrl_exec_agents > 0",
    ] {
        assert!(judge(bad).is_err(), "{bad} was taken");
    }
}

#[test]
fn every_rule_speaks_of_what_is_exported() {
    let entries = scan(&read("prometheus/alerts.yml")).expect("it can be read");
    let mut names = BTreeSet::new();
    let mut used = BTreeSet::new();
    let mut rule: Option<(String, BTreeSet<&str>)> = None;
    let whole = |rule: Option<(String, BTreeSet<&str>)>| {
        if let Some((name, keys)) = rule {
            for key in ["expr", "severity", "summary"] {
                assert!(keys.contains(key), "{name} has no {key}");
            }
        }
    };
    let mut expr = "";
    for entry in &entries {
        let value = entry.value.as_deref().unwrap_or_default();
        match entry.key.as_str() {
            "alert" => {
                assert!(names.insert(value.to_owned()), "{value} twice");
                whole(rule.replace((value.to_owned(), BTreeSet::new())));
                continue;
            }
            "expr" => {
                expr = value;
                judge(value).unwrap_or_else(|reason| panic!("{reason}: {value}"));
                let all = uses(value).expect("judged");
                assert!(!all.is_empty() || value.starts_with("up{"), "{value}");
                used.extend(all.iter().map(|u| u.family.name));
            }
            "severity" => assert!(["info", "warning", "critical"].contains(&value), "{value}"),
            "summary" | "description" => {
                let families = uses(expr).expect("judged");
                for label in value.split("$labels.").skip(1) {
                    let label = label.split(' ').next().unwrap_or_default();
                    let own = families.iter().any(|u| u.family.labels.contains(&label));
                    assert!(own || label == "instance", "{label}: {value}");
                }
            }
            _ => {}
        }
        if let Some((_, keys)) = &mut rule {
            keys.insert(&entry.key);
        }
    }
    whole(rule);
    assert!(names.len() > 20 && used.len() > 12, "{names:?} {used:?}");
}

#[test]
fn the_example_of_scraping_can_be_read() {
    let entries = scan(&read("prometheus/scrape.yml")).expect("it can be read");
    let of = |key: &str| -> Vec<&str> {
        let same = entries.iter().filter(|e| e.key == key);
        same.filter_map(|e| e.value.as_deref()).collect()
    };
    assert_eq!(of("job_name"), ["ctrl-exec-api", "ctrl-exec-agent"]);
    assert_eq!(of("metrics_path"), ["/metrics", "/metrics"]);
    assert_eq!(of("scheme"), ["https", "https"]);
    assert_eq!(
        (of("cert_file").len(), of("credentials_file").len()),
        (1, 1)
    );
}

/// Every word that stands between quotes somewhere in the sources.
fn literals(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).expect("the sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            literals(&path, found);
        } else {
            let text = std::fs::read_to_string(&path).expect("a source file");
            found.extend(text.split('"').map(str::to_owned));
        }
    }
}

#[test]
fn the_patterns_name_actions_that_are_written_and_find_their_lines() {
    let patterns = read("logs/patterns.txt");
    let mut said = BTreeSet::new();
    literals(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut said,
    );
    // Of the API (spec/operations.md 11.2).
    for line in patterns.lines() {
        assert!(
            line.starts_with("ACTION="),
            "an empty pattern finds everything: {line}"
        );
        let names = line
            .trim_start_matches("ACTION=")
            .split([' ', '?'])
            .next()
            .unwrap_or_default();
        let names = names
            .trim_end_matches("( |$)")
            .trim_end_matches("(-async-done)");
        for name in names
            .split(['(', ')', '|'])
            .filter(|n| !n.is_empty() && *n != "$")
        {
            assert!(said.contains(name), "nobody writes {name}");
        }
    }
    for (line, wanted) in [
        (
            "ACTION=result-deny DISPATCHER=a PEER=10.0.0.1 REASON=not-owner",
            true,
        ),
        (
            "ACTION=auth HOOK=/x REASON=hook-not-executable RESULT=error",
            true,
        ),
        ("ACTION=auth AUTHACTION=run RESULT=pass USER=x", false),
        ("ACTION=renew ERROR=\"no route\" TARGET=a:7443", true),
        ("ACTION=renew REQID=00 STATUS=starting TARGET=a:7443", false),
        ("ACTION=maintain AGENTS=3 PINGED=3", false),
        ("ACTION=maintain ERROR=x PHASE=ping", true),
        ("ACTION=run EXIT=0 PEER=10.0.0.1 REQID=00 SCRIPT=x", false),
        ("ACTION=run EXIT=10 PEER=10.0.0.1 REQID=00 SCRIPT=x", true),
        ("ACTION=run EXIT=-1 REQID=00 SCRIPT=x", true),
        ("ACTION=run-async-done EXIT=1 REQID=00 SCRIPT=x", true),
        ("ACTION=run-async-done EXIT=0 REQID=00 SCRIPT=x", false),
        ("ACTION=deny PEER=10.0.0.1 REQID=00 SCRIPT=x", true),
        ("ACTION=config-reload SCRIPTS=3 TRUSTED=1", false),
        ("ACTION=config-reload ERROR=x", true),
        ("ACTION=rotation-state-corrupt ERROR=x", true),
        ("ACTION=cert-rotated AGENTS=3", false),
        ("ACTION=ping REQID=00 RESULT=ok RTT=1ms", false),
        ("ACTION=pair-request AGENT=a IP=10.0.0.1", true),
    ] {
        let mut grep = Command::new("grep");
        grep.args(["-q", "-E", "-f"])
            .arg(contrib("logs/patterns.txt"));
        let text = format!("Jan  1 00:00:00 host ctrl-exec-agent[7]: {line}\n");
        let run = process::run_with_input(&mut grep, text.as_bytes());
        assert_eq!(run.code() == 0, wanted, "{line}");
    }
}

#[test]
fn the_readme_names_what_is_there() {
    for (file, folder) in [("README.md", ""), ("logs/README.md", "logs/")] {
        let text = read(file);
        let mut links = 0;
        for link in text.split("](").skip(1) {
            let link = link.split(')').next().unwrap_or_default();
            assert!(
                contrib(&format!("{folder}{link}")).exists(),
                "{file}: {link}"
            );
            links += 1;
        }
        assert!(links >= 3, "{file}");
    }
}
