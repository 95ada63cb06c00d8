//! Agent, executor and check decide the same about every script, also where the original's two parsers disagreed (spec/executor.md 7.5,
//! 8): files are made up with those quirks, and what is decided is compared with each other and with what the rules say.

// Helpers of tests stop as tests do; clippy's exceptions for tests reach only the test functions themselves.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;

use common::Host;
use ctrl_exec::core::config::{AgentConfig, Allowlist, check_profiles, load_agent, load_allowlist};
use ctrl_exec::core::paths::{Paths, Platform};
use ctrl_exec::core::profile::{self, Refusal};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

const CASES: u32 = 160;

const CONFIG: &str = "etc/ctrl-exec-agent/agent.conf";
const SCRIPTS: &str = "etc/ctrl-exec-agent/scripts.conf";

const DEFINED: [&str; 4] = ["default", "web", "Web", "p.1"];

/// Each makes the whole of an `agent.conf` unusable, wherever it stands.
const UNUSABLE: [&str; 17] = [
    "[profile = x",
    "[profile a b]",
    "[profile x] # why",
    "[profile]",
    "[open",
    "[my-sect]",
    "[execturo]",
    "no equals sign",
    "key =",
    "[other]\na\0b = c",
    "[profile z]\nrun_as = 4294967295",
    "[profile z]\nrun_as = ",
    "[profile z]\nno_new_privileges = ture",
    "[profile z]\ncaps = CAP_NOSUCH",
    "[profile z]\ncaps = CAP_CHOWN\u{b}CAP_KILL",
    "[profile z]\nwritable = /a:/b # note",
    "[profile z]\nwritable = relative",
];

/// Each makes the whole of a `scripts.conf` unusable, the first four only if they are not there twice: then the name is refused anyway.
const UNUSABLE_LINES: [&str; 6] = [
    "z1 = /bin/true profile=",
    "z2 = /bin/true profile=a/b",
    "z3 = /bin/true timeout=0",
    "z4 = /bin/true digest=sha256:12",
    "z5 = /bin/true sha256=12",
    "z6 = /bin/\0true",
];

/// Where a path of [`PATHS`] leads once links are resolved.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Leads {
    Approved,
    Elsewhere,
    Nowhere,
}

/// Paths below the host's root.
const PATHS: [(&str, Leads); 8] = [
    ("opt/scripts/good", Leads::Approved),
    ("opt/alias/good", Leads::Approved),
    ("opt/elsewhere/in", Leads::Approved),
    ("opt/elsewhere/../scripts/good", Leads::Approved),
    ("opt/scripts/out", Leads::Elsewhere),
    ("opt/scripts/../elsewhere/other", Leads::Elsewhere),
    ("opt/scriptsother", Leads::Elsewhere),
    ("opt/scripts/absent", Leads::Nowhere),
];

/// Values of `script_dirs`, `@` for the host's root, and whether they approve of `opt/scripts` and of everything.
const DIRS: [(&str, bool, bool); 7] = [
    ("@opt/scripts", true, false),
    ("@opt/alias", true, false),
    ("@opt/scripts/:@opt/absent", true, false),
    ("@opt/absent", false, false),
    ("@opt/scripts/good", false, false),
    ("/", true, true),
    ("::@opt/alias:", true, false),
];
/// The one of [`DIRS`] that is a file: only that file is approved.
const ONE_FILE: usize = 4;

const NAMES: [&str; 8] = ["a", "b", "c-1", "D_2", "7", "_", "-x", "--json"];
/// Names that break the rule, though a line of the allowlist may have them.
const NO_NAMES: [&str; 6] = ["a.b", "../a", "x y", "é", "a;b", "[a]"];

#[derive(Clone, Debug)]
enum Section {
    Profile {
        word: &'static str,
        name: &'static str,
        run_as: Option<&'static str>,
        misspelt: bool,
    },
    /// Their keys look like those of the top level or of a profile.
    Decoy(&'static str),
    Unusable(&'static str),
}

#[derive(Clone, Debug)]
enum Line {
    Script {
        name: &'static str,
        path: usize,
        profile: Option<&'static str>,
        profile_first: bool,
    },
    /// A valid name with a value that no run can come from.
    Useless(&'static str, &'static str),
    /// Has a note that `compat` passes over.
    Noted(&'static str, usize),
    NoName(&'static str, usize),
    Noise(&'static str),
    /// Makes the whole file unusable.
    Unusable(&'static str),
}

#[derive(Clone, Debug)]
struct Files {
    strict: bool,
    /// Several: the last wins.
    dirs: Vec<usize>,
    sections: Vec<Section>,
    lines: Vec<Line>,
    crlf: bool,
}

fn one<T: Clone + std::fmt::Debug + 'static>(of: &[T]) -> impl Strategy<Value = T> + use<T> {
    proptest::sample::select(of.to_vec())
}

fn section() -> impl Strategy<Value = Section> {
    let word = one(&["profile", "profile", "profile", "Profile", "PROFILE"]);
    let run_as = prop_oneof![
        9 => one(&["nobody", "root", "1000"]).prop_map(Some),
        1 => Just(None),
    ];
    let profile = (word, one(&DEFINED), run_as, proptest::bool::weighted(0.05));
    let profile = profile.prop_map(|(word, name, run_as, misspelt)| Section::Profile {
        word,
        name,
        run_as,
        misspelt,
    });
    let decoys = [
        "[tags]\nscript_dirs = /",
        "[tags more]\nscript_dirs = /nowhere\nrun_as = root",
        "[TAGS]\nprofile = x",
        "[other]\nscript_dirs = /\nbaseline = strict",
        "# [profile default]\n  # script_dirs = /",
    ];
    prop_oneof![
        40 => profile,
        8 => one(&decoys).prop_map(Section::Decoy),
        1 => one(&UNUSABLE).prop_map(Section::Unusable),
    ]
}

fn line() -> impl Strategy<Value = Line> {
    let path = 0..PATHS.len();
    let profiles = [
        None,
        None,
        None,
        None,
        None,
        Some("default"),
        Some("web"),
        Some("Web"),
        Some("p.1"),
        Some("nosuch"),
        Some("DEFAULT"),
    ];
    let script = (one(&NAMES), path.clone(), one(&profiles), any::<bool>());
    let script = script.prop_map(|(name, path, profile, profile_first)| Line::Script {
        name,
        path,
        profile,
        profile_first,
    });
    let useless = [
        "",
        "relative/path",
        "/bin/true /bin/false",
        "/bin/true # note",
        "profile=web",
        "# /bin/true",
        "/bin/\u{1b}true",
    ];
    let noise = [
        "",
        "  # a = /bin/true",
        "no equals sign",
        "= /bin/true",
        "[a]",
        "\t",
    ];
    prop_oneof![
        40 => script,
        3 => (one(&NAMES), one(&useless)).prop_map(|(name, value)| Line::Useless(name, value)),
        1 => (one(&NAMES), path.clone()).prop_map(|(name, path)| Line::Noted(name, path)),
        3 => (one(&NO_NAMES), path).prop_map(|(name, path)| Line::NoName(name, path)),
        4 => one(&noise).prop_map(Line::Noise),
        1 => one(&UNUSABLE_LINES).prop_map(Line::Unusable),
    ]
}

fn files() -> impl Strategy<Value = Files> {
    let dirs = prop_oneof![
        2 => Just(Vec::new()),
        8 => proptest::collection::vec(0..DIRS.len(), 1..=2),
    ];
    let sections = proptest::collection::vec(section(), 1..7);
    let lines = proptest::collection::vec(line(), 0..9);
    let strict = proptest::bool::weighted(0.25);
    let crlf = proptest::bool::weighted(0.2);
    (strict, dirs, sections, lines, crlf).prop_map(|(strict, dirs, sections, lines, crlf)| Files {
        strict,
        dirs,
        sections,
        lines,
        crlf,
    })
}

impl Files {
    fn config(&self, root: &str) -> String {
        let mut text = "port = 7443\ncert = /c\nkey = /k\nca = /a\n".to_owned();
        for dirs in &self.dirs {
            text += &format!("script_dirs = {}\n", DIRS[*dirs].0.replace('@', root));
        }
        let baseline = if self.strict { "strict" } else { "compat" };
        text += &format!("[executor]\nbaseline = {baseline}\n");
        for section in &self.sections {
            match section {
                Section::Profile {
                    word,
                    name,
                    run_as,
                    misspelt,
                } => {
                    text += &format!("[{word} {name}]\n");
                    if let Some(user) = run_as {
                        text += &format!("run_as = {user}\n");
                    }
                    if *misspelt {
                        text += "run-as = root\n";
                    }
                }
                Section::Decoy(lines) | Section::Unusable(lines) => text += &format!("{lines}\n"),
            }
        }
        self.ends(text)
    }

    fn allowlist(&self, root: &str) -> String {
        let mut text = String::new();
        for line in &self.lines {
            let path = |index: &usize| format!("{root}{}", PATHS[*index].0);
            text += &match line {
                Line::Script {
                    name,
                    path: at,
                    profile,
                    profile_first,
                } => {
                    let path = path(at);
                    match (profile, profile_first) {
                        (None, _) => format!("{name} = {path}"),
                        (Some(profile), false) => format!("{name}={path} profile={profile}"),
                        (Some(profile), true) => {
                            format!("  {name} = profile=x profile={profile}\t{path} ")
                        }
                    }
                }
                Line::Useless(name, value) => format!("{name} = {value}"),
                Line::Noted(name, at) => format!("{name} = {} colour=blue", path(at)),
                Line::NoName(name, at) => format!("{name} = {}", path(at)),
                Line::Noise(text) | Line::Unusable(text) => (*text).to_owned(),
            };
            text.push('\n');
        }
        self.ends(text)
    }

    fn ends(&self, text: String) -> String {
        if self.crlf {
            text.replace('\n', "\r\n")
        } else {
            text
        }
    }

    /// What the rules say of `agent.conf`: unusable, or the profiles that it defines.
    fn profiles(&self) -> Option<Vec<&'static str>> {
        let mut users: BTreeMap<&str, bool> = BTreeMap::new();
        for section in &self.sections {
            match section {
                Section::Profile {
                    name,
                    run_as,
                    misspelt,
                    ..
                } => {
                    if *misspelt && self.strict {
                        return None;
                    }
                    *users.entry(name).or_default() |= run_as.is_some();
                }
                Section::Decoy(_) => {}
                Section::Unusable(_) => return None,
            }
        }
        let loose = self.dirs.is_empty() || users.values().any(|set| !set);
        (!self.strict || !loose).then(|| {
            DEFINED
                .into_iter()
                .filter(|p| users.contains_key(p))
                .collect()
        })
    }

    /// What the rules say of `scripts.conf`: unusable, or path and profile of each script that is on it.
    fn scripts(&self) -> Option<BTreeMap<&'static str, (usize, &'static str)>> {
        let mut times: BTreeMap<&str, u32> = BTreeMap::new();
        let mut scripts = BTreeMap::new();
        let mut unusable = Vec::new();
        for line in &self.lines {
            let name = match line {
                Line::Script {
                    name,
                    path,
                    profile,
                    ..
                } => {
                    scripts.insert(*name, (*path, profile.unwrap_or("default")));
                    name
                }
                Line::Noted(_, _) if self.strict => return None,
                Line::Noted(name, path) => {
                    scripts.insert(*name, (*path, "default"));
                    name
                }
                Line::Useless(name, _) => name,
                Line::Unusable(line) => {
                    let (name, _) = line.split_once(' ').unwrap();
                    unusable.push(name);
                    times.entry(name).and_modify(|n| *n += 1).or_insert(1);
                    continue;
                }
                Line::NoName(_, _) | Line::Noise(_) => continue,
            };
            *times.entry(name).or_default() += 1;
        }
        let twice = |name: &str| times.get(name).is_some_and(|n| *n > 1);
        let fatal = |name: &&str| !twice(name) || matches!(*name, "z5" | "z6");
        if unusable.iter().any(fatal) || self.strict && times.keys().any(|name| twice(name)) {
            return None;
        }
        scripts.retain(|name, _| !twice(name));
        Some(scripts)
    }

    /// Whether `script_dirs` approves of a path.
    fn approved(&self, path: usize) -> bool {
        let Some(dirs) = self.dirs.last() else {
            return true;
        };
        let (_, scripts, all) = DIRS[*dirs];
        match PATHS[path].1 {
            Leads::Approved => scripts || *dirs == ONE_FILE,
            Leads::Elsewhere => all,
            Leads::Nowhere => false,
        }
    }

    /// What the rules say of a script.
    fn verdict(&self, name: &str) -> Result<(usize, &'static str), Refusal> {
        let (Some(profiles), Some(scripts)) = (self.profiles(), self.scripts()) else {
            return Err(Refusal::NotPermitted);
        };
        let (path, profile) = *scripts.get(name).ok_or(Refusal::NotPermitted)?;
        if !self.approved(path) {
            return Err(Refusal::NotInScriptDirs);
        }
        if !profiles.contains(&profile) {
            return Err(Refusal::UndefinedProfile);
        }
        Ok((path, profile))
    }
}

/// What the agent makes of the files.
struct Agent {
    config: Option<AgentConfig>,
    allowlist: Option<Allowlist>,
}

impl Agent {
    fn load(host: &Host) -> Self {
        let paths = Paths::new(host.path(""), Platform::Standard);
        let config = load_agent(&paths, Some(&host.path(CONFIG)));
        let config = config.ok().map(|loaded| loaded.value);
        let allowlist = config.as_ref().and_then(|config| {
            let allowlist = load_allowlist(&paths, Some(&host.path(SCRIPTS)), config);
            allowlist.ok().map(|loaded| loaded.value)
        });
        Self { config, allowlist }
    }
}

/// The directories, links and scripts that [`PATHS`] and [`DIRS`] speak of.
fn lay_down(host: &Host) {
    host.script("good", "exit 0");
    for file in ["opt/elsewhere/other", "opt/scriptsother"] {
        host.write(file, "#!/bin/sh\n", 0o755);
    }
    symlink(host.path("opt/scripts"), host.path("opt/alias")).unwrap();
    symlink(host.path("opt/scripts/good"), host.path("opt/elsewhere/in")).unwrap();
    symlink(
        host.path("opt/elsewhere/other"),
        host.path("opt/scripts/out"),
    )
    .unwrap();
}

/// How often something of interest came up: a generator that never allows anything would prove nothing.
#[derive(Debug, Default)]
struct Seen {
    allowed: u32,
    denied: BTreeMap<&'static str, u32>,
    config_refused: u32,
    allowlist_refused: u32,
    checked: u32,
}

fn examine(host: &Host, files: &Files, seen: &mut Seen) {
    let root = format!(
        "{}/",
        host.path("").display().to_string().trim_end_matches('/')
    );
    let (config_text, allowlist_text) = (files.config(&root), files.allowlist(&root));
    let config_path = host
        .write(CONFIG, &config_text, 0o640)
        .display()
        .to_string();
    let allowlist_path = host
        .write(SCRIPTS, &allowlist_text, 0o640)
        .display()
        .to_string();
    let story =
        format!("{files:?}\n--- agent.conf\n{config_text}\n--- scripts.conf\n{allowlist_text}");

    let agent = Agent::load(host);
    let whole = (files.profiles().is_some(), files.scripts().is_some());
    assert_eq!(
        agent.config.is_some(),
        whole.0,
        "the agent on agent.conf\n{story}"
    );
    if whole.0 {
        assert_eq!(
            agent.allowlist.is_some(),
            whole.1,
            "the agent on scripts.conf\n{story}"
        );
    }

    // A list that cannot be used allows nothing.
    let empty = Allowlist::default();
    let allowlist = agent.allowlist.as_ref().unwrap_or(&empty);
    let odd = ["", "nosuch", "A", " a", "a\n"];
    let names = NAMES.into_iter().chain(NO_NAMES).chain(odd);
    for name in names {
        let run = host.run(
            "ctrl-exec-exec",
            &["resolve", &config_path, &allowlist_path, name],
        );
        let Some(config) = &agent.config else {
            seen.config_refused += 1;
            let run = run.expect_code(2);
            assert_eq!(run.out(), "", "{name:?}\n{story}");
            continue;
        };
        let said = run.ok().out();
        let decided = profile::resolve(name, allowlist, config);
        let line = match &decided {
            Ok(resolved) => profile::ok_line(resolved, &config.profiles[&resolved.profile]),
            Err(refusal) => format!("DENY {}", refusal.deny_word()),
        };
        assert_eq!(
            said,
            format!("{line}\n"),
            "resolve and the agent on {name:?}\n{story}"
        );
        let verdict = decided
            .as_ref()
            .map(|resolved| (resolved.path.to_string(), resolved.profile.to_string()));
        let expected = files.verdict(name);
        let expected = expected
            .as_ref()
            .map(|(path, profile)| (format!("{root}{}", PATHS[*path].0), (*profile).to_owned()));
        assert_eq!(verdict, expected, "the rules on {name:?}\n{story}");
        match decided {
            Ok(_) => seen.allowed += 1,
            Err(refusal) => *seen.denied.entry(refusal.deny_word()).or_default() += 1,
        }
    }

    let run = host.run(
        "ctrl-exec-exec",
        &["check", &config_path, &allowlist_path, "--json"],
    );
    let (Some(config), Some(allowlist)) = (&agent.config, &agent.allowlist) else {
        seen.allowlist_refused += u32::from(agent.config.is_some());
        assert_eq!(run.expect_code(78).out(), "", "{story}");
        return;
    };
    if files.strict && run.stdout.is_empty() {
        // The test's tree lies where everybody may write: strict says so instead of answering.
        run.expect_code(78).err_has("can be replaced by others");
        return;
    }
    seen.checked += 1;
    let told = run.json();
    let scripts = told["scripts"].as_array().unwrap();
    assert_eq!(scripts.len(), allowlist.scripts.len(), "{story}");
    let undefined = check_profiles(allowlist, config).err();
    for script in scripts {
        let name = script["name"].as_str().unwrap();
        let (name, entry) = allowlist
            .scripts
            .iter()
            .find(|(n, _)| n.as_str() == name)
            .unwrap();
        assert_eq!(script["path"], entry.path.to_string(), "{name}\n{story}");
        assert_eq!(script["profile"], entry.profile.as_str(), "{name}\n{story}");
        let errors: Vec<&str> = script["errors"]
            .as_array()
            .unwrap()
            .iter()
            .map(|e| e.as_str().unwrap())
            .collect();
        // What a profile cannot give here is another matter than what the files allow.
        let refusals = [
            Refusal::NotPermitted,
            Refusal::NotInScriptDirs,
            Refusal::UndefinedProfile,
        ];
        let refused = refusals
            .into_iter()
            .find(|r| errors.contains(&r.to_string().as_str()));
        let decided = profile::resolve(name.as_str(), allowlist, config).err();
        assert_eq!(
            refused, decided,
            "check and the agent on '{name}': {errors:?}\n{story}"
        );
        if decided.is_some() {
            assert_eq!(errors.len(), 1, "{name}\n{story}");
            assert_ne!(run.code(), 0, "{story}");
        }
        // The agent does not even start with a script whose profile is not defined.
        let missing = undefined
            .as_ref()
            .is_some_and(|u| u.missing.iter().any(|(n, _)| n == name));
        assert_eq!(
            missing,
            !config.profiles.contains_key(&entry.profile),
            "{name}\n{story}"
        );
        if decided == Some(Refusal::UndefinedProfile) {
            assert!(missing, "{name}\n{story}");
        }
    }
}

#[test]
fn agent_executor_and_check_decide_the_same_about_every_script() {
    let host = Host::new("h.test");
    lay_down(&host);
    // The same cases everywhere and always.
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let config = Config {
        cases: CASES,
        max_shrink_iters: 200,
        failure_persistence: None,
        ..Config::default()
    };
    let seen = std::cell::RefCell::new(Seen::default());
    let mut runner = TestRunner::new_with_rng(config, rng);
    let result = runner.run(&files(), |files| {
        examine(&host, &files, &mut seen.borrow_mut());
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    let seen = seen.into_inner();
    println!("{seen:?}");
    assert!(seen.allowed >= 30 && seen.checked >= 40, "{seen:?}");
    assert!(
        seen.config_refused >= 10 && seen.allowlist_refused >= 5,
        "{seen:?}"
    );
    assert!(
        seen.denied.len() == 3 && seen.denied.values().all(|n| *n >= 20),
        "{seen:?}"
    );
}
