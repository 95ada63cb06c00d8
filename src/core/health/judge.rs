//! From what was found to what it means. Pure.

use super::{Check, Limits, Probes, Status};
use crate::core::clock;
use crate::core::maintenance::CA_WARNING_DAYS;
use crate::core::metrics::{AgentState, FleetState, What};
use crate::core::registry::SerialStatus;

const DAY: i64 = 86_400;
/// Names that one sentence tells.
const MAX_NAMES: usize = 5;

/// Everything that is looked at, in the order in which it is shown.
pub fn judge(fleet: &FleetState, probes: &Probes, limits: Limits) -> Vec<Check> {
    let mut checks = vec![certificate(fleet, limits), authorities(fleet, limits)];
    checks.extend(api_certificate(fleet, limits));
    checks.extend([
        rotation(fleet),
        ca_change(fleet),
        registry(fleet),
        trust(fleet),
        agent_certificates(fleet, limits),
        pairing(fleet),
        revocations(fleet),
        runs(fleet),
        clock_of(fleet),
    ]);
    for (name, usable) in &probes.directories {
        checks.push(match usable {
            Ok(()) => Check::new(name, Status::Ok, "can be written"),
            Err(reason) => Check::new(name, Status::Critical, reason),
        });
    }
    checks.extend(probes.hook.as_ref().map(|usable| match usable {
        Ok(()) => Check::new("hook", Status::Ok, "can be started"),
        Err(reason) => {
            let detail = format!("{reason}; every request is refused until then");
            Check::new("hook", Status::Critical, detail)
        }
    }));
    checks.extend(probes.api.as_ref().map(|said| match said {
        Ok(said) => Check::new("api", Status::Ok, said),
        Err(reason) => Check::new("api", Status::Critical, reason),
    }));
    checks
}

/// Whole days until `end`, and what that means.
fn days(end: i64, now: i64, limits: Limits) -> (Status, String) {
    let left = (end - now) / DAY;
    if end <= now {
        return (Status::Critical, format!("expired at {}", clock::iso(end)));
    }
    let status = if left < limits.critical {
        Status::Critical
    } else if left < limits.warning {
        Status::Warning
    } else {
        Status::Ok
    };
    (
        status,
        format!("{left} days left, until {}", clock::iso(end)),
    )
}

fn certificate(fleet: &FleetState, limits: Limits) -> Check {
    let name = "certificate";
    let Some(end) = fleet.certificate else {
        let reason = fleet.problem(What::Certificate).unwrap_or("there is none");
        return Check::new(name, Status::Critical, reason);
    };
    let (status, mut detail) = days(end, fleet.now, limits);
    if status != Status::Ok {
        detail.push_str(
            "; it should have been rotated: does 'ced maintain' run? 'ced rotate-cert' does it now",
        );
    }
    Check::new(name, status, detail)
}

/// A CA takes the whole fleet with it, and replacing it takes as long as the agent that is away longest.
fn authorities(fleet: &FleetState, limits: Limits) -> Check {
    let name = "ca";
    let Some(end) = fleet.cas.iter().min().copied() else {
        let reason = fleet.problem(What::Ca).unwrap_or("there is none");
        return Check::new(name, Status::Critical, reason);
    };
    let limits = Limits {
        warning: CA_WARNING_DAYS,
        critical: limits.warning,
    };
    match days(end, fleet.now, limits) {
        (Status::Ok, detail) => Check::new(name, Status::Ok, detail),
        (Status::Warning, detail) if fleet.ca_change.is_some() => {
            let detail = format!("{detail}; it is being replaced");
            Check::new(name, Status::Ok, detail)
        }
        (status, detail) => {
            let detail = format!("{detail}; replace it with 'ced rotate-ca start'");
            Check::new(name, status, detail)
        }
    }
}

fn api_certificate(fleet: &FleetState, limits: Limits) -> Option<Check> {
    let name = "api-certificate";
    if let Some(reason) = fleet.problem(What::ApiCertificate) {
        return Some(Check::new(name, Status::Critical, reason));
    }
    let (status, detail) = days(fleet.api_certificate?, fleet.now, limits);
    Some(Check::new(name, status, detail))
}

fn rotation(fleet: &FleetState) -> Check {
    let name = "rotation";
    if let Some(reason) = fleet.problem(What::Rotation) {
        return Check::new(name, Status::Critical, reason);
    }
    let state = &fleet.rotation;
    let pending = fleet.agents_with(SerialStatus::Pending);
    let over = state.overlap_expires.is_some_and(|end| fleet.now > end);
    match (state.active, over) {
        (true, true) if pending > 0 => {
            let names = names(fleet, |a| a.serial_status == SerialStatus::Pending);
            let detail = format!(
                "the overlap is over and {pending} agent(s) have not confirmed the new serial: {names}; does 'ced maintain' run?"
            );
            Check::new(name, Status::Warning, detail)
        }
        (true, _) => {
            let detail = format!("under way, {pending} agent(s) have not confirmed yet");
            Check::new(name, Status::Ok, detail)
        }
        (false, _) => Check::new(name, Status::Ok, "none under way"),
    }
}

fn ca_change(fleet: &FleetState) -> Check {
    let name = "ca-change";
    if let Some(reason) = fleet.problem(What::CaChange) {
        return Check::new(name, Status::Critical, reason);
    }
    let detail = fleet
        .ca_change
        .map_or("none under way".to_owned(), |p| format!("under way: {p}"));
    Check::new(name, Status::Ok, detail)
}

fn registry(fleet: &FleetState) -> Check {
    let name = "registry";
    let count = fleet.agents.len();
    match fleet.problem(What::Registry) {
        // A record alone hides nobody else.
        Some(reason) if count > 0 => Check::new(name, Status::Warning, reason),
        Some(reason) => Check::new(name, Status::Critical, reason),
        None => Check::new(name, Status::Ok, format!("{count} agent(s)")),
    }
}

fn trust(fleet: &FleetState) -> Check {
    let name = "agents";
    let stale = fleet.agents_with(SerialStatus::Stale);
    if stale > 0 {
        let names = names(fleet, |a| a.serial_status == SerialStatus::Stale);
        let detail = format!(
            "{stale} agent(s) have missed a rotation: {names}; pair them again if they do not come back"
        );
        return Check::new(name, Status::Warning, detail);
    }
    Check::new(name, Status::Ok, "none has missed a rotation")
}

fn agent_certificates(fleet: &FleetState, limits: Limits) -> Check {
    let name = "agent-certificates";
    let judged = |agent: &AgentState| Some(days(agent.not_after?, fleet.now, limits).0);
    let worst = fleet.agents.iter().filter_map(judged).max();
    let Some(status) = worst.filter(|status| *status != Status::Ok) else {
        let first = fleet.agents.iter().filter_map(|a| a.not_after).min();
        let detail = first.map_or("none is known".to_owned(), |end| {
            format!("the first has {}", days(end, fleet.now, limits).1)
        });
        return Check::new(name, Status::Ok, detail);
    };
    let bad = |agent: &AgentState| judged(agent).is_some_and(|status| status != Status::Ok);
    let names = names(fleet, bad);
    let count = fleet.agents.iter().filter(|a| bad(a)).count();
    let staged = fleet.agents.iter().any(|a| bad(a) && a.staged);
    let advice = if staged {
        "; those that have a new one adopt it when they are restarted"
    } else {
        "; they are renewed at the next contact: do they answer 'ced ping'?"
    };
    let detail = format!(
        "{count} agent(s) have fewer than {} days left: {names}{advice}",
        limits.warning
    );
    Check::new(name, status, detail)
}

/// For information: whoever waits there is waiting for a person.
fn pairing(fleet: &FleetState) -> Check {
    let name = "pairing";
    if let Some(reason) = fleet.problem(What::Pairing) {
        return Check::new(name, Status::Warning, reason);
    }
    let detail = match fleet.waiting.as_deref() {
        None => "this user may not look at the queue".to_owned(),
        Some([]) => "nobody waits".to_owned(),
        Some(all @ [first, ..]) => format!(
            "{} request(s) wait, the first from {}: 'ced list-requests' shows them",
            all.len(),
            first.hostname
        ),
    };
    Check::new(name, Status::Ok, detail)
}

fn revocations(fleet: &FleetState) -> Check {
    let name = "revocations";
    match fleet.problem(What::Revocations) {
        Some(reason) => Check::new(name, Status::Critical, reason),
        None => Check::new(name, Status::Ok, format!("{} revoked", fleet.revocations)),
    }
}

fn runs(fleet: &FleetState) -> Check {
    let name = "runs";
    if let Some(reason) = fleet.problem(What::Runs) {
        return Check::new(name, Status::Warning, reason);
    }
    let runs = &fleet.runs;
    let all = runs.running + runs.done + runs.failed + runs.expired + runs.unread;
    let detail = format!("{all} on record, {} running", runs.running);
    Check::new(name, Status::Ok, detail)
}

fn clock_of(fleet: &FleetState) -> Check {
    let name = "clock";
    if fleet.clock_behind {
        let detail = "the clock of the system is behind the newest of our own files: set it, or certificates are judged by the wrong time";
        return Check::new(name, Status::Warning, detail);
    }
    Check::new(name, Status::Ok, clock::iso(fleet.now))
}

/// The names of some agents, bounded.
fn names(fleet: &FleetState, which: impl Fn(&AgentState) -> bool) -> String {
    let meant = || fleet.agents.iter().filter(|a| which(a));
    let shown: Vec<&str> = meant().take(MAX_NAMES).map(|a| a.name.as_str()).collect();
    let more = meant().count().saturating_sub(shown.len());
    let shown = shown.join(", ");
    if more > 0 {
        format!("{shown} and {more} more")
    } else {
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::super::worst;
    use super::*;
    use crate::core::metrics::{RotationState, Waiting};
    use crate::core::types::AgentName;

    const NOW: i64 = 1_800_000_000;
    const LIMITS: Limits = Limits {
        warning: 30,
        critical: 7,
    };

    fn agent(name: &str, status: SerialStatus, days: i64) -> AgentState {
        AgentState {
            name: AgentName::new(name).unwrap(),
            serial_status: status,
            not_after: Some(NOW + days * DAY),
            staged: false,
        }
    }

    fn well() -> FleetState {
        FleetState {
            now: NOW,
            certificate: Some(NOW + 800 * DAY),
            cas: vec![NOW + 3000 * DAY],
            agents: vec![agent("web1", SerialStatus::Current, 400)],
            waiting: Some(Vec::new()),
            ..FleetState::default()
        }
    }

    fn probes() -> Probes {
        Probes {
            directories: vec![("runs-directory", Ok(()))],
            hook: None,
            api: None,
        }
    }

    /// Status and text of one check, after a change to a fleet that is well.
    fn after(name: &str, change: impl FnOnce(&mut FleetState)) -> (Status, String) {
        let mut fleet = well();
        change(&mut fleet);
        let checks = judge(&fleet, &probes(), LIMITS);
        for other in &checks {
            assert!(
                other.name == name || other.status == Status::Ok,
                "{other:?}"
            );
        }
        let check = checks.into_iter().find(|c| c.name == name).unwrap();
        (check.status, check.detail)
    }

    #[test]
    fn a_fleet_that_is_well_is_ok() {
        let checks = judge(&well(), &probes(), LIMITS);
        assert_eq!(worst(&checks), Status::Ok, "{checks:#?}");
        assert_eq!(worst(&[]), Status::Unknown);
    }

    #[test]
    fn certificates_are_judged_by_the_days_that_are_left() {
        for (seconds, expected) in [
            (30 * DAY, Status::Ok),
            (30 * DAY - 1, Status::Warning),
            (7 * DAY, Status::Warning),
            (7 * DAY - 1, Status::Critical),
            (1, Status::Critical),
            (0, Status::Critical),
            (-DAY, Status::Critical),
        ] {
            let said = after("certificate", |f| f.certificate = Some(NOW + seconds));
            assert_eq!(said.0, expected, "{seconds} {}", said.1);
            assert_eq!(said.1.contains("expired"), seconds <= 0);
            let api = after("api-certificate", |f| {
                f.api_certificate = Some(NOW + seconds);
            });
            assert_eq!(api.0, expected, "{seconds}");
            let agent = after("agent-certificates", |f| {
                f.agents[0].not_after = Some(NOW + seconds);
            });
            assert_eq!(agent.0, expected, "{seconds}");
        }
        assert_eq!(
            after("certificate", |f| f.certificate = None).0,
            Status::Critical
        );
    }

    #[test]
    fn a_ca_is_told_of_early_unless_it_is_being_replaced() {
        let ca = |days| move |f: &mut FleetState| f.cas.push(NOW + days * DAY);
        assert_eq!(after("ca", ca(400)).0, Status::Ok);
        assert_eq!(after("ca", ca(399)).0, Status::Warning);
        assert_eq!(after("ca", ca(29)).0, Status::Critical);
        let replaced = after("ca", |f| {
            ca(399)(f);
            f.ca_change = Some("announcing");
        });
        assert_eq!(replaced.0, Status::Ok);
    }

    #[test]
    fn a_rotation_is_a_problem_only_when_it_is_stuck() {
        let rotate = |end: i64, pending: bool| {
            after("rotation", |f| {
                f.rotation = RotationState {
                    active: true,
                    overlap_expires: Some(NOW + end),
                };
                if pending {
                    f.agents[0].serial_status = SerialStatus::Pending;
                }
            })
        };
        assert_eq!(rotate(1, true).0, Status::Ok);
        assert_eq!(rotate(-1, false).0, Status::Ok);
        let stuck = rotate(-1, true);
        assert_eq!(stuck.0, Status::Warning);
        assert!(stuck.1.contains("web1"));
    }

    #[test]
    fn agents_that_are_stale_are_named_but_not_all_of_them() {
        let (status, detail) = after("agents", |f| {
            let all = (1..=7).map(|n| agent(&format!("h{n}"), SerialStatus::Stale, 400));
            f.agents = all.collect();
        });
        assert_eq!(status, Status::Warning);
        assert!(
            detail.contains("7 agent(s)") && detail.contains("h5 and 2 more"),
            "{detail}"
        );
    }

    #[test]
    fn what_cannot_be_read_is_as_bad_as_what_it_is_needed_for() {
        let broken = |name, what, change: fn(&mut FleetState)| {
            after(name, |f| {
                f.unreadable.push((what, "it is broken".to_owned()));
                change(f);
            })
        };
        let none = |_: &mut FleetState| {};
        for (name, what, expected) in [
            ("rotation", What::Rotation, Status::Critical),
            ("ca-change", What::CaChange, Status::Critical),
            ("revocations", What::Revocations, Status::Critical),
            ("api-certificate", What::ApiCertificate, Status::Critical),
            ("registry", What::Registry, Status::Warning),
            ("pairing", What::Pairing, Status::Warning),
            ("runs", What::Runs, Status::Warning),
        ] {
            let (status, detail) = broken(name, what, none);
            assert_eq!((status, detail.as_str()), (expected, "it is broken"));
        }
        let empty = broken("registry", What::Registry, |f| f.agents.clear());
        assert_eq!(empty.0, Status::Critical);
    }

    #[test]
    fn the_rest_speaks_for_itself() {
        assert_eq!(after("clock", |f| f.clock_behind = true).0, Status::Warning);
        let (status, detail) = after("pairing", |f| {
            f.waiting = Some(vec![Waiting {
                hostname: AgentName::new("new1").unwrap(),
                received: None,
            }]);
        });
        assert_eq!(status, Status::Ok);
        assert!(detail.contains("1 request(s) wait, the first from new1"));
        let bad = Probes {
            directories: vec![("locks-directory", Err("full".to_owned()))],
            hook: Some(Err("gone".to_owned())),
            api: Some(Err("silent".to_owned())),
        };
        let checks = judge(&well(), &bad, LIMITS);
        let critical: Vec<&str> = checks
            .iter()
            .filter(|c| c.status == Status::Critical)
            .map(|c| c.name)
            .collect();
        assert_eq!(critical, ["locks-directory", "hook", "api"]);
    }
}
