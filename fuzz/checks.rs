//! What must hold for any bytes whatever. The fuzz targets call these, and `tests/fuzz_corpus.rs` replays every file of `corpus/`
//! through them.

// Each target uses its own.
#![allow(dead_code)]

use std::fmt::Debug;
use std::path::Path;

use ctrl_exec::core::config::{
    AgentConfig, Allowlist, ConfigError, Loaded, check_profiles, convert_agent, convert_allowlist,
    parse_agent, parse_allowlist,
};
use ctrl_exec::core::exec::frame;
use ctrl_exec::core::paths::{Paths, Platform};
use ctrl_exec::core::profile;

/// The longest text that one mistake comes to: 600 characters of message, 106 of the line, a caret, all of them escaped at worst.
const MAX_DIAGNOSTIC: usize = 12 * 1024;
/// What is said about one file, with the count of the rest.
const MAX_DIAGNOSTICS: usize = 201;

/// The body of a request, without its first four bytes (spec/executor.md 4.1).
pub fn request(body: &[u8]) {
    let request = match frame::decode_request(body) {
        Ok(request) => request,
        Err(error) => return bounded(&error.to_string()),
    };
    assert!(!request.script.is_empty());
    assert!(request.args.len() <= frame::MAX_ARGS);
    assert!(request.args.iter().all(|arg| !arg.contains(&0)));
    assert!(!request.reqid.contains('\0') && !request.dispatcher.contains('\0'));
    assert_eq!(
        request.script == frame::JOB_SCRIPT,
        request.extras.job.is_some()
    );
    // A replacement character is longer than the byte that it stands for.
    if !body.is_ascii() && std::str::from_utf8(body).is_err() && lossy(&request) {
        return;
    }
    let encoded = frame::encode_request(&request).expect("what was read is not too long to write");
    let (total, rest) = encoded.split_first_chunk::<4>().expect("a length");
    assert_eq!(
        frame::request_length(*total, frame::MAX_FRAME),
        Ok(rest.len())
    );
    assert_eq!(frame::decode_request(rest), Ok(request));
    if trailer_of_request(body).is_none() {
        assert_eq!(rest, body, "a frame of the original is written as it was");
    }
}

/// Whether a name of it held what is not UTF-8.
fn lossy(request: &frame::Request) -> bool {
    let extras = [&request.extras.username, &request.extras.peer_ip];
    let names = [&request.reqid, &request.dispatcher, &request.script];
    let all = names.into_iter().chain(extras.into_iter().flatten());
    all.into_iter().any(|text| text.contains('\u{fffd}'))
}

/// What follows the last argument of a request that can be decoded.
fn trailer_of_request(body: &[u8]) -> Option<&[u8]> {
    let mut rest = skip_field(skip_field(skip_field(skip_field(body))));
    let (argc, after) = rest.split_first_chunk::<4>().expect("argc");
    rest = after;
    for _ in 0..u32::from_be_bytes(*argc) {
        rest = skip_field(rest);
    }
    (!rest.is_empty()).then_some(rest)
}

fn skip_field(bytes: &[u8]) -> &[u8] {
    let (length, rest) = bytes.split_first_chunk::<4>().expect("a length");
    let length = usize::try_from(u32::from_be_bytes(*length)).expect("64 bits");
    &rest[length..]
}

/// A whole reply with or without trailer, and the same bytes as a trailer alone (spec/executor.md 4.2, 4.4).
pub fn reply(bytes: &[u8]) {
    if let Err(error) = frame::decode_reply_trailer(bytes) {
        bounded(&error.to_string());
    }
    let reply = match frame::decode_reply(bytes) {
        Ok(reply) => reply,
        Err(error) => return bounded(&error.to_string()),
    };
    let encoded = frame::encode_reply(&reply);
    assert_eq!(frame::decode_reply(&encoded).as_ref(), Ok(&reply));
    if reply.extras.is_none() {
        assert_eq!(
            encoded, bytes,
            "a reply of the original is written as it was"
        );
    }
}

/// `agent.conf` (spec/agent.md 3).
pub fn agent_conf(bytes: &[u8]) {
    agent("/etc/ctrl-exec-agent/agent.conf", bytes);
}

/// `agent.toml`
pub fn agent_toml(bytes: &[u8]) {
    agent("/etc/ctrl-exec-agent/agent.toml", bytes);
}

/// `scripts.conf` (spec/executor.md 6), under both baselines.
pub fn scripts_conf(bytes: &[u8]) {
    allowlists("/etc/ctrl-exec-agent/scripts.conf", bytes);
}

/// `scripts.toml`
pub fn scripts_toml(bytes: &[u8]) {
    allowlists("/etc/ctrl-exec-agent/scripts.toml", bytes);
}

/// The sidecar of a script (spec/agent.md 4.4).
pub fn sidecar(bytes: &[u8]) {
    if bytes.len() > 64 * 1024 {
        return;
    }
    match profile::schema::judge(bytes) {
        profile::schema::Sidecar::Skipped { reason } => bounded(&reason),
        judged => assert_eq!(judged, profile::schema::judge(bytes)),
    }
}

fn paths() -> Paths {
    Paths::new("/", Platform::Standard)
}

fn agent(path: &str, bytes: &[u8]) {
    let (paths, path) = (paths(), Path::new(path));
    let Some(config) = said(parse_agent(&paths, path, bytes)) else {
        return;
    };
    // Writing it the new way changes nothing of its meaning.
    let toml = convert_agent(&config, &paths);
    let back = parse_agent(&paths, Path::new("/etc/agent.toml"), toml.as_bytes());
    let mut back = back.unwrap_or_else(|e| panic!("{e}\n{toml}")).value;
    back.source.clone_from(&config.source);
    assert_eq!(back, config, "{toml}");
}

fn allowlists(path: &str, bytes: &[u8]) {
    const COMMON: &str = "script_dirs = /\n[profile default]\nrun_as = nobody\n";
    for baseline in ["compat", "strict"] {
        let text = format!(
            "port = 1\ncert = /c\nkey = /k\nca = /a\n{COMMON}[executor]\nbaseline = {baseline}\n"
        );
        let agent = parse_agent(&paths(), Path::new("/a.conf"), text.as_bytes());
        allowlist(path, bytes, &agent.expect("a sound configuration").value);
    }
}

fn allowlist(path: &str, bytes: &[u8], agent: &AgentConfig) {
    let (paths, path) = (paths(), Path::new(path));
    let Some(list) = said(parse_allowlist(&paths, path, bytes, agent)) else {
        return;
    };
    let undefined = check_profiles(&list, agent).err();
    for (name, entry) in &list.scripts {
        let missing = undefined.as_ref().is_some_and(|undefined| {
            let named = undefined.missing.iter();
            named.clone().any(|(script, _)| script == name)
        });
        match profile::resolve(name.as_str(), &list, agent) {
            Ok(resolved) => {
                assert!(!missing && resolved.profile == entry.profile);
                assert_eq!(resolved.path, entry.path);
            }
            Err(profile::Refusal::UndefinedProfile) => assert!(missing),
            // There is no such file.
            Err(profile::Refusal::NotInScriptDirs) => {}
            Err(profile::Refusal::NotPermitted) => panic!("'{name}' is on the list"),
        }
    }
    let toml = convert_allowlist(&list);
    let back = parse_allowlist(&paths, Path::new("/etc/s.toml"), toml.as_bytes(), agent);
    let back = back.unwrap_or_else(|e| panic!("{e}\n{toml}")).value;
    let scripts = |list: Allowlist| list.scripts;
    assert_eq!(scripts(back), scripts(list), "{toml}");
}

/// Whatever is said about a file is bounded and can be shown on a terminal; without an error there is a value, with one there is none.
fn said<T: Debug>(result: Result<Loaded<T>, ConfigError>) -> Option<T> {
    let (value, diagnostics) = match result {
        Ok(loaded) => (Some(loaded.value), loaded.warnings),
        Err(ConfigError::Invalid { diagnostics }) => (None, diagnostics),
        Err(other) => panic!("bytes in memory were opened: {other}"),
    };
    assert!(diagnostics.len() <= MAX_DIAGNOSTICS);
    assert_eq!(value.is_none(), diagnostics.iter().any(|d| d.is_error()));
    for diagnostic in &diagnostics {
        let text = diagnostic.to_string();
        bounded(&text);
        assert!(text.lines().count() <= 3, "{text}");
    }
    value
}

fn bounded(text: &str) {
    assert!(!text.is_empty() && text.len() <= MAX_DIAGNOSTIC, "{text}");
    assert!(
        text.chars().all(|c| c == '\n' || !c.is_control()),
        "{text:?}"
    );
}
