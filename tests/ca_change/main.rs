//! Replacing the CA of a fleet end to end: `ced rotate-ca` with real agents, some of which are away, restored, confined or of an older
//! release, and power that goes at any moment (spec/swarm.md PKI-32).

// Helpers of tests stop as tests do; clippy's exceptions for tests reach only the test functions themselves.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod crash;
mod refused;
mod whole;

use std::path::{Path, PathBuf};

use serde_json::Value;

use common::fleet::{new_agent, pair, start_pairing};
use common::openssl::{Authority, openssl, try_openssl};
use common::tls::{Client, TLS13};
use common::{Agent, Host, free_port};

pub const CHANGE: &str = "var/lib/ctrl-exec/ca-change.json";
pub const NEXT: &str = "etc/ctrl-exec/ca-next";

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What `ced rotate-ca status --json` says.
#[track_caller]
pub fn status(ced: &Host) -> Value {
    ced.ced(&["rotate-ca", "status", "--json"]).ok().json()
}

/// `agent: what it lacks`, as the status shows them.
pub fn lagging(ced: &Host) -> Vec<String> {
    let status = status(ced);
    let Some(agents) = status["lagging"].as_array() else {
        return Vec::new();
    };
    let one = |a: &Value| {
        format!(
            "{}: {}",
            a["agent"].as_str().unwrap(),
            a["lacks"].as_str().unwrap()
        )
    };
    agents.iter().map(one).collect()
}

/// A copy of the CA as it is now, for whoever steals it.
pub fn stolen_ca(ced: &Host) -> Authority {
    for (file, mode) in [("ca.key", 0o600), ("ca.crt", 0o644)] {
        let content = ced.read(&format!("etc/ctrl-exec/{file}"));
        ced.write(&format!("tmp/stolen/{file}"), content, mode);
    }
    Authority::at(&ced.path("tmp/stolen"))
}

/// The certificate that an agent shows, as a PEM file.
pub fn shown(agent: &Agent, host: &Host) -> PathBuf {
    let der = host.path("tmp/shown.der");
    let client = Client::connect(agent.address(), None, TLS13).unwrap();
    std::fs::write(&der, client.peer_certificate()).unwrap();
    let pem = host.path("tmp/shown.pem");
    openssl(&[
        "x509",
        "-inform",
        "DER",
        "-in",
        text(&der),
        "-out",
        text(&pem),
    ]);
    pem
}

pub fn certificates(pem: &str) -> usize {
    pem.matches("BEGIN CERTIFICATE").count()
}

/// All is over: one CA everywhere, of which every certificate is; nothing is left of the change or of the old key.
#[track_caller]
pub fn assert_over(ced: &Host, old: &Authority, agents: &[(&Agent, &Host)]) {
    let ca = ced.path("etc/ctrl-exec/ca.crt");
    let pem = ced.read("etc/ctrl-exec/ca.crt");
    assert_eq!(certificates(&pem), 1);
    assert_ne!(pem, old.cert_pem());
    assert!(!ced.exists(CHANGE) && !ced.exists(NEXT));
    assert_eq!(status(ced)["phase"], Value::Null);
    assert!(common::openssl::key_matches(
        &ca,
        &ced.path("etc/ctrl-exec/ca.key")
    ));
    let body = old.key_pem();
    let secret = body.lines().nth(1).unwrap();
    for file in files(&ced.path("etc"))
        .into_iter()
        .chain(files(&ced.path("var")))
    {
        let content = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(
            !content.contains(secret),
            "the old key is in {}",
            file.display()
        );
    }
    let mut all = vec![ced.path("etc/ctrl-exec/dispatcher.crt")];
    for (agent, host) in agents {
        all.push(shown(agent, host));
        assert_eq!(
            host.read("etc/ctrl-exec-agent/ca.crt"),
            pem,
            "{}",
            host.name()
        );
    }
    for certificate in all {
        let (fine, said) = try_openssl(&[
            "verify",
            "-x509_strict",
            "-CAfile",
            text(&ca),
            text(&certificate),
        ]);
        assert!(fine, "{said}");
    }
    let names: Vec<&str> = agents.iter().map(|(_, host)| host.name()).collect();
    ced.ced(&[&["ping", "--check"], names.as_slice()].concat())
        .ok();
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.push(path);
        }
    }
    all
}

/// Pairs one more host.
#[track_caller]
pub fn paired(ced: &Host, name: &str) -> Host {
    let port = free_port();
    let pairing = start_pairing(ced, port, &[]);
    let agent = new_agent(name, free_port());
    pair(ced, &agent, port);
    drop(pairing);
    agent
}

/// Passes of maintenance until nobody lags; how many.
#[track_caller]
pub fn passes(ced: &Host) -> usize {
    for count in 0..6 {
        let status = status(ced);
        if status["phase"] == "changed" && status["lagging"] == serde_json::json!([]) {
            return count;
        }
        ced.ced(&["maintain"]).ok();
    }
    panic!("never ends: {}", status(ced));
}
