//! Manual pages and completions tell of everything that the programs' help tells of, and the programs that read them find nothing wrong.

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::process::{Run, run};
use common::{Host, Legacy};
use ctrl_exec::manual::{self, Entry, Program};
use tempfile::TempDir;

/// What the generator would write, in a folder.
struct Share {
    dir: TempDir,
    programs: Vec<Program>,
}

impl Share {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let programs = manual::programs().expect("every program explains itself");
        for (path, entry) in manual::files(&programs) {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().expect("below the folder")).expect("a folder");
            match entry {
                Entry::Text(text) => std::fs::write(path, text).expect("written"),
                Entry::Link(target) => std::os::unix::fs::symlink(target, path).expect("a link"),
            }
        }
        Self { dir, programs }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.path(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    /// The page of a program, as it is read.
    fn page(&self, program: &Program, name: &str) -> String {
        let section = program.section;
        self.read(&format!("man/man{section}/{name}.{section}"))
            .replace("\\-", "-")
    }
}

/// `--name` of every option in a text.
fn options(text: &str) -> BTreeSet<String> {
    let names = text.split("--").skip(1).map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '-');
        &rest[..end.unwrap_or(rest.len())]
    });
    names
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[test]
fn whatever_help_shows_is_in_the_page_and_in_every_completion() {
    let share = Share::new();
    let host = Host::new("any.test");
    let bash = share.read("completions/bash/ctrl-exec");
    let zsh = share.read("completions/zsh/_ctrl-exec");
    let mut seen = 0;
    for program in &share.programs {
        let page = share.page(program, program.name);
        for alias in program.aliases {
            assert_eq!(share.page(program, alias), page, "{alias}");
        }
        let fish = share.read(&format!("completions/fish/{}.fish", program.name));
        // The real program, by its name.
        let mut told = vec![host.run(program.name, &["--help"]).ok().out()];
        for verb in &program.verbs {
            for (shell, text) in [("bash", &bash), ("zsh", &zsh), ("fish", &fish)] {
                assert!(text.contains(verb.name), "{shell}: {}", verb.name);
            }
            assert!(page.contains(verb.name), "{}", verb.name);
            told.push(host.run(program.name, &[verb.name, "--help"]).ok().out());
        }
        for text in told {
            for option in options(&text) {
                seen += 1;
                let spelt = format!("--{option}");
                assert!(
                    page.contains(&spelt),
                    "{}: no {spelt} in the page",
                    program.name
                );
                assert!(
                    bash.contains(&spelt),
                    "{}: no {spelt} for bash",
                    program.name
                );
                assert!(zsh.contains(&spelt), "{}: no {spelt} for zsh", program.name);
                let in_fish = format!("-l {option}");
                assert!(
                    fish.contains(&in_fish),
                    "{}: no {spelt} for fish",
                    program.name
                );
            }
        }
    }
    assert!(seen > 100, "only {seen} options were looked for");
    // The verbs of the help are those of the table.
    let usage = host.ced(&["--help"]).ok().out();
    let ced = share
        .programs
        .iter()
        .find(|p| p.name == "ced")
        .expect("ced");
    let verbs = usage.lines().skip_while(|l| *l != "Verbs:").skip(1);
    let verbs: Vec<&str> = verbs
        .take_while(|l| !l.is_empty())
        .filter_map(|l| l.split_whitespace().next())
        .collect();
    let table: Vec<&str> = ced.verbs.iter().map(|v| v.name).collect();
    assert_eq!(verbs, table);
}

fn there(program: &str) -> bool {
    Path::new("/usr/bin").join(program).exists() || Path::new("/bin").join(program).exists()
}

#[test]
fn whoever_sets_the_pages_finds_nothing_wrong() {
    let share = Share::new();
    let mut judges = 0;
    for program in &share.programs {
        let section = program.section;
        let page = share.path(&format!("man/man{section}/{}.{section}", program.name));
        if there("groff") {
            let set = run(Command::new("groff")
                .args(["-ww", "-man", "-Tutf8"])
                .arg(&page))
            .ok();
            assert_eq!(set.err(), "", "{}", program.name);
            assert!(set.out().contains(program.name));
            judges += 1;
        }
        if there("mandoc") {
            let lint = run(Command::new("mandoc")
                .args(["-T", "lint", "-W", "warning"])
                .arg(&page));
            // A date would make every build another one.
            let found = lint.out() + &lint.err();
            let wrong: Vec<&str> = found
                .lines()
                .filter(|l| !l.contains("missing date"))
                .collect();
            assert!(wrong.is_empty(), "{wrong:#?}");
            judges += 1;
        }
    }
    let text = share.read("man/man1/ced.1");
    assert!(text.starts_with(".TH CED 1 ") && text.contains("\n.SH VERBS\n"));
    assert!(
        judges > 0 || std::env::var_os("CI").is_none(),
        "neither groff nor mandoc is here, and in CI nothing may be left out"
    );
}

/// What bash proposes for these words, the last of which is being typed.
fn proposed(share: &Share, host: &Host, words: &[&str]) -> Vec<String> {
    const ASK: &str = r#"
        file=$1; shift
        . "$file" || exit 1
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        function=$(complete -p "$1") || exit 1
        function=${function#*-F }; function=${function%% *}
        "$function"
        [ ${#COMPREPLY[@]} -eq 0 ] || printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let mut command = Command::new("bash");
    let path = format!("{}:/usr/bin:/bin", host.links().display());
    command
        .args(["--norc", "-c", ASK, "bash"])
        .arg(share.path("completions/bash").join(words[0]))
        .args(words)
        .env_clear()
        .env("PATH", path)
        .env("CTRL_EXEC_ROOT", host.path("/"));
    let asked: Run = run(&mut command).ok();
    assert_eq!(asked.err(), "", "{words:?}");
    asked.out().lines().map(str::to_owned).collect()
}

#[test]
fn bash_proposes_verbs_options_values_and_hosts() {
    let share = Share::new();
    let fleet = Legacy::new(&["web1.test", "web2.test", "db.test"]);
    let ask = |words: &[&str]| proposed(&share, &fleet.dispatcher, words);
    let ced = share
        .programs
        .iter()
        .find(|p| p.name == "ced")
        .expect("ced");
    let verbs: Vec<&str> = ced.verbs.iter().map(|v| v.name).collect();
    assert_eq!(ask(&["ced", ""]), verbs);
    assert_eq!(ask(&["ctrl-exec-dispatcher", ""]), verbs);
    assert_eq!(ask(&["ced", "list-a"]), ["list-agents"]);
    assert_eq!(ask(&["ced", "run", "--jso"]), ["--json"]);
    assert_eq!(ask(&["ced", "run", "web"]), ["web1.test", "web2.test"]);
    assert_eq!(ask(&["ced", "ping", "--port", "7443", "d"]), ["db.test"]);
    assert_eq!(ask(&["ced", "run", "db.test", "--", ""]), [""; 0]);
    assert_eq!(
        ask(&["ced", "edit-agent", "db.test", "--lookup-by", ""]),
        ["ip", "hostname"]
    );
    assert_eq!(ask(&["ced", "pairing-mode", "sto"]), ["stop"]);
    // No host is called like a port.
    assert_eq!(ask(&["ced", "run", "--port", ""]), [""; 0]);
    assert_eq!(ask(&["cea", "serve", "--allow"]), ["--allowlist"]);
    let file = fleet
        .dispatcher
        .write("tmp/own.toml", "", 0o644)
        .display()
        .to_string();
    assert_eq!(
        ask(&["ced-api", "--config", &file[..file.len() - 3]]),
        [file]
    );
    // The binary's own name takes the words of everybody.
    assert_eq!(ask(&["ctrl-exec", "dem"]), ["demo"]);
    assert_eq!(ask(&["ctrl-exec", "list-l"]), ["list-locks"]);
    assert_eq!(ask(&["ctrl-exec", "run", "d"]), ["db.test"]);
    assert_eq!(ask(&["ctrl-exec", "cea", "self-p"]), ["self-ping"]);
    assert_eq!(ask(&["ctrl-exec", "container", "h"]), ["healthcheck"]);
}

#[test]
fn the_other_shells_can_read_theirs() {
    let share = Share::new();
    let fleet = Legacy::new(&["web1.test", "db.test"]);
    let zsh = share.path("completions/zsh/_ctrl-exec");
    let text = share.read("completions/zsh/_ctrl-exec");
    assert!(text.starts_with("#compdef ced ctrl-exec-dispatcher "));
    // Every quote is closed, whether the shell is here to say so or not.
    for line in text.lines() {
        assert_eq!(line.matches('\'').count() % 2, 0, "{line}");
    }
    if there("zsh") {
        run(Command::new("zsh").arg("-n").arg(&zsh)).ok();
    }
    for program in &share.programs {
        for name in std::iter::once(&program.name).chain(program.aliases) {
            let text = share.read(&format!("completions/fish/{name}.fish"));
            for line in text.lines().filter(|l| !l.starts_with('#')) {
                assert!(line.starts_with(&format!("complete -c {name} ")), "{line}");
                assert_eq!(line.matches(['\'', '"']).count() % 2, 0, "{line}");
            }
        }
    }
    if there("fish") {
        let path = format!("{}:/usr/bin:/bin", fleet.dispatcher.links().display());
        let ask = |typed: &str| -> Vec<String> {
            let file = share.path("completions/fish/ced.fish");
            let script = "source $argv[1]; complete -C $argv[2]";
            let asked = run(Command::new("fish")
                .args(["--no-config", "-c", script])
                .arg(&file)
                .arg(typed)
                .env_clear()
                .env("PATH", &path)
                .env("HOME", fleet.dispatcher.path("tmp"))
                .env("CTRL_EXEC_ROOT", fleet.dispatcher.path("/")))
            .ok();
            assert_eq!(asked.err(), "", "{typed}");
            let first = |line: &str| line.split('\t').next().unwrap_or_default().to_owned();
            asked.out().lines().map(first).collect()
        };
        assert_eq!(ask("ced list-a"), ["list-agents"]);
        assert_eq!(ask("ced run w"), ["web1.test"]);
        assert_eq!(ask("ced run --asy"), ["--async"]);
        assert_eq!(ask("ced edit-agent --lookup-by i"), ["ip"]);
    }
}
