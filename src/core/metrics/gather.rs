//! Reads the state of the fleet from the dispatcher's files. Writes nothing, logs nothing, contacts nobody; blocks on the disk.

use std::io;

use super::fleet::{AgentState, FleetState, RotationState, Waiting, What};
use crate::core::client::open;
use crate::core::clock::{self, Clock};
use crate::core::config::DispatcherConfig;
use crate::core::keyring;
use crate::core::pairing::APPROVAL_WINDOW;
use crate::core::pairing::queue::{self, Queue, QueueError};
use crate::core::pairing::record::Record;
use crate::core::pki::Certificate;
use crate::core::pki::expiry::parse_openssl_text;
use crate::core::registry::{AgentRecord, Registry, SerialStatus};
use crate::core::revocation::Revocations;
use crate::core::runs::{Store, Tally};
use crate::core::secure_open::{self, Trust};
use crate::core::{ca_change, registry, rotation};

/// Largest certificate file.
const MAX_PEM: u64 = 1024 * 1024;

/// What is there, part by part; a sentence where a part cannot be read.
struct Found {
    certificate: Result<Certificate, String>,
    cas: Result<Vec<Certificate>, String>,
    /// `None`: the API has none.
    api_certificate: Option<Result<Certificate, String>>,
    registry: Result<registry::Listing, String>,
    /// `None`: this user may not look.
    pairing: Option<Result<queue::Listing, String>>,
    rotation: Result<Option<rotation::State>, String>,
    ca_change: Result<Option<ca_change::State>, String>,
    runs: Result<Tally, String>,
    revocations: Result<u64, String>,
}

/// The state of the fleet at this moment. A part that is damaged is named in the answer and hides no other.
///
/// At most 16 MiB of records of runs are read; the registry is read whole.
pub fn fleet(config: &DispatcherConfig, clock: &Clock) -> FleetState {
    assemble(find(config), clock.now(), clock.is_behind())
}

fn find(config: &DispatcherConfig) -> Found {
    let store = Store::new(&config.runs_dir, config.run_retention);
    Found {
        certificate: keyring::configured_certificate(config),
        cas: said(open::load_cas(config)),
        api_certificate: config.api.tls.as_ref().map(|tls| {
            let pem = said(secure_open::read_trusted(&tls.cert, MAX_PEM, Trust::Public))?;
            said(Certificate::from_pem(&pem))
        }),
        registry: said(Registry::new(&config.registry_dir).list()),
        pairing: match Queue::at(&config.pairing_dir).listing() {
            // The queue is root's alone; the API's user has no business there.
            Err(QueueError::Io { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                None
            }
            other => Some(said(other)),
        },
        rotation: said(rotation::State::read(&config.rotation.file)),
        ca_change: said(ca_change::State::load(config)),
        runs: said(store.tally()),
        revocations: said(Revocations::load(&config.revoked_file)).map(|all| all.count()),
    }
}

fn said<T, E: ToString>(result: Result<T, E>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}

fn assemble(found: Found, now: i64, clock_behind: bool) -> FleetState {
    let mut state = FleetState {
        now,
        clock_behind,
        ..FleetState::default()
    };
    let mut unreadable = Vec::new();
    let mut problem = |what, reason: String| unreadable.push((what, reason));
    match found.certificate {
        Ok(certificate) => state.certificate = Some(certificate.not_after),
        Err(reason) => problem(What::Certificate, reason),
    }
    match found.cas {
        Ok(cas) => state.cas = cas.iter().map(|ca| ca.not_after).collect(),
        Err(reason) => problem(What::Ca, reason),
    }
    match found.api_certificate {
        Some(Ok(certificate)) => state.api_certificate = Some(certificate.not_after),
        Some(Err(reason)) => problem(What::ApiCertificate, reason),
        None => {}
    }
    match found.registry {
        Ok(listing) => {
            state.agents = listing.agents.iter().map(agent).collect();
            for error in listing.unreadable {
                problem(What::Registry, error.to_string());
            }
        }
        Err(reason) => problem(What::Registry, reason),
    }
    match found.pairing {
        Some(Ok(listing)) => {
            let waiting = |record: Record| Waiting {
                received: clock::parse_iso(&record.received),
                hostname: record.hostname,
            };
            let waiting = listing.pending.into_iter().map(waiting);
            // An older one can no longer be approved; it lies there until somebody opens a session.
            let open = |w: &Waiting| w.received.is_none_or(|at| now - at < window());
            state.waiting = Some(waiting.filter(open).collect());
            for (_, reason) in listing.unreadable {
                problem(What::Pairing, reason);
            }
        }
        Some(Err(reason)) => problem(What::Pairing, reason),
        None => {}
    }
    match found.rotation {
        Ok(rotation) => {
            let pending = state
                .agents
                .iter()
                .any(|agent| agent.serial_status == SerialStatus::Pending);
            state.rotation = rotation.map(|r| rotating(&r, pending)).unwrap_or_default();
        }
        Err(reason) => problem(What::Rotation, reason),
    }
    match found.ca_change {
        Ok(change) => state.ca_change = change.map(|change| change.phase.as_str()),
        Err(reason) => problem(What::CaChange, reason),
    }
    match found.runs {
        Ok(tally) => {
            if let Some(reason) = &tally.damaged {
                problem(What::Runs, reason.clone());
            }
            state.runs = tally;
        }
        Err(reason) => problem(What::Runs, reason),
    }
    match found.revocations {
        Ok(count) => state.revocations = count,
        Err(reason) => problem(What::Revocations, reason),
    }
    state.unreadable = unreadable;
    state
}

/// Seconds in which a pairing request can be approved.
fn window() -> i64 {
    i64::try_from(APPROVAL_WINDOW.as_secs()).unwrap_or(i64::MAX)
}

fn agent(record: &AgentRecord) -> AgentState {
    AgentState {
        name: record.name.clone(),
        serial_status: record.serial_status,
        not_after: parse_openssl_text(&record.expiry),
        staged: record.staged_expiry.is_some(),
    }
}

fn rotating(state: &rotation::State, pending: bool) -> RotationState {
    let previous = state.previous_serial.as_deref().unwrap_or_default();
    RotationState {
        active: state.next_serial.is_some()
            || !state.retiring.is_empty()
            || !previous.is_empty()
            || pending,
        overlap_expires: clock::parse_iso(&state.overlap_expires),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Page;
    use super::*;
    use crate::core::paths::{Paths, Platform};
    use crate::core::testing::World;
    use crate::core::types::AgentName;

    #[test]
    fn a_damaged_part_hides_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path(), Platform::Standard);
        let config = DispatcherConfig::defaults(&paths, &paths.dispatcher_toml(), "ctl");
        let agents = &config.registry_dir;
        std::fs::create_dir_all(agents).unwrap();
        std::fs::write(
            agents.join("web1.json"),
            r#"{"hostname":"web1","expiry":"Jun  7 16:28:00 2028 GMT","serial_status":"stale"}"#,
        )
        .unwrap();
        std::fs::write(agents.join("web2.json"), "{").unwrap();
        std::fs::write(&config.rotation.file, "{").unwrap();
        std::fs::create_dir_all(&config.runs_dir).unwrap();
        std::fs::write(config.runs_dir.join("0011223344556677.json"), "[]").unwrap();
        let state = fleet(&config, &Clock::fixed(5));
        assert_eq!(state.now, 5);
        assert_eq!(
            state.agents,
            [AgentState {
                name: AgentName::new("web1").unwrap(),
                serial_status: SerialStatus::Stale,
                not_after: Some(1_844_008_080),
                staged: false,
            }]
        );
        let broken: Vec<What> = state.unreadable.iter().map(|(what, _)| *what).collect();
        assert_eq!(
            broken,
            [
                What::Certificate,
                What::Ca,
                What::Registry,
                What::Rotation,
                What::Runs
            ]
        );
        assert!(state.problem(What::Registry).unwrap().contains("web2.json"));
        assert!(
            state
                .problem(What::Runs)
                .unwrap()
                .contains("0011223344556677")
        );
        assert_eq!(state.waiting.as_deref(), Some(&[][..]));
        let mut page = Page::new();
        state.render(&mut page);
        assert!(page.into_text().contains("{what=\"rotation\"} 1\n"));
    }

    #[test]
    fn a_fleet_that_is_well_has_no_problem() {
        let world = World::new(&["web1", "web2"]);
        let state = fleet(world.config(), &world.clock());
        assert_eq!(state.unreadable, []);
        assert_eq!(state.agents_with(SerialStatus::Current), 2);
        assert!(state.certificate.unwrap() > state.now && state.cas.len() == 1);
        assert!(!state.rotation.active && state.ca_change.is_none());
    }

    #[test]
    fn a_rotation_is_active_until_everybody_has_dropped_the_old_serial() {
        let settled = rotation::State {
            current_serial: "ab".to_owned(),
            overlap_expires: "2026-01-31T00:00:00Z".to_owned(),
            ..rotation::State::default()
        };
        assert!(!rotating(&settled, false).active);
        assert!(rotating(&settled, true).active);
        assert_eq!(
            rotating(&settled, false).overlap_expires,
            Some(1_769_817_600)
        );
        let next = rotation::State {
            next_serial: Some("ac".to_owned()),
            ..settled.clone()
        };
        assert!(rotating(&next, false).active);
        let old = rotation::State {
            previous_serial: Some("aa".to_owned()),
            ..settled
        };
        assert!(rotating(&old, false).active);
    }
}
