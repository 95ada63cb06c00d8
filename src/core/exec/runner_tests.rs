//! Real scripts in a temporary folder (spec/agent.md 19.3, "Run").

use super::*;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn script(&self, body: &str) -> RunSpec {
        let path = self.dir.path().join("script");
        let staged = self.dir.path().join("staged");
        std::fs::write(&staged, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&staged, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(&staged, &path).unwrap();
        spec(&path)
    }
}

fn spec(path: &Path) -> RunSpec {
    RunSpec {
        path: path.to_owned(),
        args: Vec::new(),
        env: script_environment(&BTreeMap::new()),
        context_json: b"{}".to_vec(),
        stdin_timeout: Duration::from_secs(10),
        run_timeout: Duration::from_secs(30),
        max_output: 1 << 20,
    }
}

fn go(spec: RunSpec) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    // Another test thread may be between fork and exec while it still holds our script open for writing.
    for _ in 0..50 {
        let outcome = runtime.block_on(run_script(spec.clone()));
        if outcome.exit == 127 && String::from_utf8_lossy(&outcome.stderr).contains("busy") {
            std::thread::sleep(Duration::from_millis(10));
            continue;
        }
        return outcome;
    }
    panic!("text file busy for half a second");
}

#[test]
fn the_streams_stay_apart_and_the_exit_code_is_the_scripts() {
    let outcome = go(Bench::new().script("echo out; echo err >&2; exit 42"));
    assert_eq!(outcome.exit, 42);
    assert_eq!(outcome.stdout, b"out\n");
    assert_eq!(outcome.stderr, b"err\n");
    assert!(!outcome.truncated && !outcome.timed_out && outcome.stdin_unsent.is_none());
}

#[test]
fn arguments_arrive_literally_and_argv0_is_the_path() {
    let bench = Bench::new();
    let mut spec = bench.script("printf '[%s]' \"$0\" \"$@\"");
    spec.args = ["a b", "$(id)", "", "grün 日本", "-x; rm"]
        .map(String::from)
        .to_vec();
    let path = spec.path.display().to_string();
    let outcome = go(spec);
    assert_eq!(
        String::from_utf8(outcome.stdout).unwrap(),
        format!("[{path}][a b][$(id)][][grün 日本][-x; rm]")
    );
}

#[test]
fn the_environment_is_the_whitelist_and_nothing_else() {
    let agent: BTreeMap<String, String> = [
        ("LD_PRELOAD", "/evil.so"),
        ("BASH_ENV", "/evil.sh"),
        ("IFS", "x"),
        ("ENVEXEC_TOKEN", "secret"),
        ("HOME", "/home/a"),
        ("LANG", "C"),
        ("PATH", "/evil"),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .into();
    let mut spec = spec(Path::new("/usr/bin/env"));
    spec.env = script_environment(&agent);
    let outcome = go(spec);
    let mut lines: Vec<_> = std::str::from_utf8(&outcome.stdout)
        .unwrap()
        .lines()
        .collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        ["HOME=/home/a", "LANG=C", &format!("PATH={SCRIPT_PATH}")]
    );
}

#[test]
fn the_context_arrives_whole_and_no_context_is_an_empty_stdin() {
    let bench = Bench::new();
    let mut spec = bench.script("cat");
    spec.context_json = vec![b'x'; 300 * 1024];
    assert_eq!(go(spec.clone()).stdout.len(), 300 * 1024);
    spec.context_json.clear();
    assert_eq!(go(spec).stdout, b"");
}

#[test]
fn a_script_that_does_not_read_its_context_is_no_accident() {
    let bench = Bench::new();
    let mut spec = bench.script("exec 0<&-; echo fine");
    spec.context_json = vec![b'x'; 200 * 1024];
    for _ in 0..100 {
        let outcome = go(spec.clone());
        assert_eq!(
            (outcome.exit, outcome.stdout.as_slice()),
            (0, b"fine\n".as_slice())
        );
    }
}

#[test]
fn a_script_that_never_reads_meets_the_stdin_deadline_and_goes_on() {
    let bench = Bench::new();
    let mut spec = bench.script("sleep 0.5; echo fine");
    spec.context_json = vec![b'x'; 200 * 1024];
    spec.stdin_timeout = Duration::from_millis(100);
    let outcome = go(spec);
    assert_eq!(outcome.stdout, b"fine\n");
    let unsent = outcome.stdin_unsent.unwrap();
    assert!(unsent > 0 && unsent < 200 * 1024, "{unsent}");
}

#[test]
fn much_output_on_stderr_first_does_not_hang() {
    let outcome = go(Bench::new().script("head -c 200000 /dev/zero >&2; echo done"));
    assert_eq!(outcome.stderr.len(), 200_000);
    assert_eq!(outcome.stdout, b"done\n");
    let lines =
        go(Bench::new().script("i=0; while [ $i -lt 10000 ]; do echo $i; i=$((i+1)); done"));
    assert_eq!(lines.stdout.iter().filter(|&&b| b == b'\n').count(), 10_000);
}

#[test]
fn output_beyond_the_limit_is_dropped_and_said() {
    let bench = Bench::new();
    let mut spec = bench.script("head -c 100000 /dev/zero; echo e >&2");
    spec.max_output = 1000;
    let outcome = go(spec.clone());
    assert!(outcome.truncated);
    assert_eq!(outcome.stdout.len(), 1000 + TRUNCATED_MARK.len());
    assert!(outcome.stdout.ends_with(TRUNCATED_MARK));
    assert_eq!(outcome.stderr, b"e\n");
    assert_eq!(outcome.exit, 0);
    spec.max_output = 100_000;
    assert!(!go(spec).truncated);
}

#[test]
fn what_cannot_be_executed_is_127_with_path_and_reason() {
    let bench = Bench::new();
    let missing = go(spec(Path::new("/nonexistent/script")));
    assert_eq!(missing.exit, 127);
    let text = String::from_utf8(missing.stderr).unwrap();
    assert!(
        text.contains("/nonexistent/script") && text.contains("No such file"),
        "{text}"
    );

    let plain = bench.dir.path().join("plain");
    std::fs::write(&plain, "#!/bin/sh\n").unwrap();
    let refused = go(spec(&plain));
    assert_eq!(refused.exit, 127);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("Permission denied"));

    let odd = bench.dir.path().join("odd");
    std::fs::write(&odd, "#!/nonexistent/interpreter\n").unwrap();
    std::fs::set_permissions(&odd, std::fs::Permissions::from_mode(0o755)).unwrap();
    let orphan = go(spec(&odd));
    assert_eq!(orphan.exit, 127);
    assert!(String::from_utf8_lossy(&orphan.stderr).contains("interpreter is missing"));
}

#[test]
fn an_argument_with_nul_is_refused() {
    let bench = Bench::new();
    let mut spec = bench.script("echo ran");
    spec.args = vec!["a\0b".to_owned()];
    let outcome = go(spec);
    assert_eq!((outcome.exit, outcome.stdout.len()), (127, 0));
    assert!(String::from_utf8_lossy(&outcome.stderr).contains("NUL"));
}

#[test]
fn death_by_signal_is_126_and_the_signal_is_told() {
    let outcome = go(Bench::new().script("kill -9 $$"));
    assert_eq!((outcome.exit, outcome.signal), (126, Some(9)));
    assert!(!outcome.timed_out);
}

#[test]
fn a_run_ends_at_its_deadline_with_all_of_its_group() {
    let bench = Bench::new();
    let marker = bench.dir.path().join("late");
    let mut spec = bench.script(&format!("(sleep 3; touch {}) & sleep 60", marker.display()));
    spec.run_timeout = Duration::from_millis(200);
    let outcome = go(spec);
    assert_eq!((outcome.exit, outcome.signal), (126, Some(15)));
    assert!(outcome.timed_out);
    assert!(outcome.stderr.ends_with(b"timed out after 0.2s\n"));
    std::thread::sleep(Duration::from_millis(3300));
    assert!(
        !marker.exists(),
        "a child of the ended script went on working"
    );
}

#[test]
fn a_script_that_ignores_sigterm_is_killed_and_one_that_exits_0_on_it_did_not_succeed() {
    let bench = Bench::new();
    let mut stubborn = bench.script("trap '' TERM; while :; do sleep 1; done");
    stubborn.run_timeout = Duration::from_millis(200);
    let outcome = go(stubborn);
    assert_eq!((outcome.exit, outcome.signal), (126, Some(9)));

    let mut polite = bench.script("trap 'exit 0' TERM; while :; do sleep 0.1; done");
    polite.run_timeout = Duration::from_millis(200);
    let outcome = go(polite);
    assert_eq!((outcome.exit, outcome.signal), (126, None));
    assert!(outcome.timed_out);
}

#[test]
fn a_background_child_that_holds_the_output_does_not_hold_the_run() {
    let outcome = go(Bench::new().script("echo before; sleep 30 & exit 3"));
    assert_eq!(
        (outcome.exit, outcome.stdout.as_slice()),
        (3, b"before\n".as_slice())
    );
    assert!(!outcome.timed_out);
}

#[test]
fn a_script_outlives_the_client_that_asked_for_it() {
    let bench = Bench::new();
    let marker = bench.dir.path().join("done");
    let spec = bench.script(&format!("sleep 0.3; touch {}", marker.display()));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        assert!(
            timeout(Duration::from_millis(100), run_script(spec))
                .await
                .is_err()
        );
        for _ in 0..100 {
            if marker.exists() {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
        panic!("the script was stopped");
    });
}

#[test]
fn our_descriptors_stay_with_us_and_the_script_has_a_group_of_its_own() {
    let bench = Bench::new();
    let secret = bench.dir.path().join("held-open");
    let _held = std::fs::File::create(&secret).unwrap();
    let outcome = go(bench.script("ls -l /proc/$$/fd; cut -d' ' -f5 /proc/$$/stat; echo $$"));
    let text = String::from_utf8(outcome.stdout).unwrap();
    assert!(
        text.contains(" 0 -> pipe:") && text.contains(" 2 -> pipe:"),
        "{text}"
    );
    assert!(!text.contains("held-open"), "{text}");
    let mut words = text.split_whitespace().rev();
    assert_eq!(words.next(), words.next(), "{text}");
}
