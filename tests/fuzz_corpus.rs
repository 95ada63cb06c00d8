//! Every file of `fuzz/corpus/` through the function that its fuzz target calls: what was found once stays found where there is no fuzzer.

// Helpers of tests stop as tests do; clippy's exceptions for tests reach only the test functions themselves.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

#[path = "../fuzz/checks.rs"]
mod checks;

type Target = (&'static str, fn(&[u8]));

/// The targets of `fuzz/`.
const TARGETS: [Target; 7] = [
    ("request", checks::request),
    ("reply", checks::reply),
    ("agent_conf", checks::agent_conf),
    ("agent_toml", checks::agent_toml),
    ("scripts_conf", checks::scripts_conf),
    ("scripts_toml", checks::scripts_toml),
    ("sidecar", checks::sidecar),
];

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn every_file_of_the_corpus_keeps_the_promises() {
    for (target, check) in TARGETS {
        let folder = fuzz().join("corpus").join(target);
        let files = names(&folder);
        assert!(files.len() >= 8, "{target}: no corpus");
        for file in files {
            let bytes = std::fs::read(folder.join(&file)).unwrap();
            // Shown only if the check fails.
            println!("{target}/{file}");
            check(&bytes);
        }
    }
}

#[test]
fn every_target_has_a_corpus_and_is_replayed_here() {
    let mut here: Vec<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    here.sort();
    assert_eq!(names(&fuzz().join("corpus")), here);
    let sources = names(&fuzz().join("fuzz_targets"));
    assert_eq!(
        sources,
        here.iter().map(|n| format!("{n}.rs")).collect::<Vec<_>>()
    );
}

#[test]
fn the_examples_of_the_specification_are_read_as_it_says() {
    use ctrl_exec::core::exec::frame;
    let corpus = fuzz().join("corpus");
    let read = |file: &str| std::fs::read(corpus.join(file)).unwrap();
    let request = frame::decode_request(&read("request/example")).unwrap();
    assert_eq!(
        (request.reqid.as_str(), request.script.as_str()),
        ("r1", "echo")
    );
    assert_eq!(
        (request.stdin.as_slice(), request.args),
        (&b"hi\n"[..], vec![b"a".to_vec()])
    );
    let reply = frame::decode_reply(&read("reply/exit-7")).unwrap();
    assert_eq!((reply.exit, reply.stdout.as_slice()), (7, &b"ok\n"[..]));
    for file in [
        "left-over",
        "field-beyond",
        "too-many-arguments",
        "nul-in-script",
        "empty-script",
    ] {
        let body = read(&format!("request/{file}"));
        assert!(
            matches!(
                frame::decode_request(&body),
                Err(frame::FrameError::Malformed(_))
            ),
            "{file}"
        );
    }
}
