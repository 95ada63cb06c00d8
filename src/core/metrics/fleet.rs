//! The state of the fleet as values, and as families. Metrics and `ced health` judge by the same one.

use super::common::{certificates, number, words};
use super::families as f;
use super::text::{Family, Page};
use crate::core::registry::SerialStatus;
use crate::core::runs::Tally;
use crate::core::types::AgentName;

/// More agents than this are not told apart in metrics: only the one whose certificate ends first is shown.
const MAX_AGENTS: usize = 1000;

words! {
    /// A part of the state that may be unreadable.
    What {
        Certificate = "certificate",
        Ca = "ca",
        ApiCertificate = "api_certificate",
        Registry = "registry",
        Pairing = "pairing",
        Rotation = "rotation",
        CaChange = "ca_change",
        Runs = "runs",
        Revocations = "revocations",
    }
}

/// What the files of a dispatcher say at one time. Times are seconds since 1970. What cannot be read is empty here and named in `unreadable`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FleetState {
    pub now: i64,
    /// The clock of the system is behind the newest of our own files.
    pub clock_behind: bool,
    /// End of the dispatcher's certificate.
    pub certificate: Option<i64>,
    /// Ends of the CAs that are trusted, in the order of the file.
    pub cas: Vec<i64>,
    /// End of the API's certificate, where it has one.
    pub api_certificate: Option<i64>,
    /// In ascending order of names.
    pub agents: Vec<AgentState>,
    /// Pairing requests, oldest first; `None`: this user may not look.
    pub waiting: Option<Vec<Waiting>>,
    pub rotation: RotationState,
    /// How far a change of the CA has come; `None`: none goes on.
    pub ca_change: Option<&'static str>,
    pub runs: Tally,
    /// Entries of the revocation journal.
    pub revocations: u64,
    /// Parts that cannot be used, each with a sentence; a part may stand here more than once.
    pub unreadable: Vec<(What, String)>,
}

/// What the registry says of an agent.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentState {
    pub name: AgentName,
    pub serial_status: SerialStatus,
    /// End of its certificate, where that is known.
    pub not_after: Option<i64>,
    /// It has a renewed certificate that it adopts at its next start.
    pub staged: bool,
}

/// A pairing request that nobody has decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Waiting {
    pub hostname: AgentName,
    /// When it came in, if the record says so.
    pub received: Option<i64>,
}

/// The rotation of the dispatcher's own certificate.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RotationState {
    /// A new serial is announced, or an old one not yet withdrawn from everybody.
    pub active: bool,
    /// Until when the previous certificate is trusted too.
    pub overlap_expires: Option<i64>,
}

impl FleetState {
    /// Number of agents of a status.
    pub fn agents_with(&self, status: SerialStatus) -> usize {
        let same = |agent: &&AgentState| agent.serial_status == status;
        self.agents.iter().filter(same).count()
    }

    /// Why a part cannot be used; `None` if it can.
    pub fn problem(&self, what: What) -> Option<&str> {
        let found = self.unreadable.iter().find(|(which, _)| *which == what);
        found.map(|(_, reason)| reason.as_str())
    }

    pub(super) fn render(&self, page: &mut Page) {
        self.certificates(page);
        page.gauge(&f::CLOCK_BEHIND, self.clock_behind.into());
        if self.problem(What::Registry).is_none() || !self.agents.is_empty() {
            self.registry(page);
        }
        if let Some(waiting) = &self.waiting {
            page.gauge(&f::PAIRING_WAITING, number(waiting.len()));
        }
        if self.problem(What::Rotation).is_none() {
            page.gauge(&f::ROTATION_ACTIVE, self.rotation.active.into());
            if let Some(until) = self.rotation.overlap_expires {
                page.gauge(&f::ROTATION_OVERLAP, until);
            }
        }
        if self.problem(What::CaChange).is_none() {
            page.gauge(&f::CA_CHANGE_ACTIVE, self.ca_change.is_some().into());
        }
        let runs = &self.runs;
        let by_state = [
            ("running", runs.running),
            ("done", runs.done),
            ("failed", runs.failed),
            ("expired", runs.expired),
            ("unread", runs.unread),
        ];
        labelled(page, &f::RUNS, by_state);
        if self.problem(What::Revocations).is_none() {
            let count = i64::try_from(self.revocations).unwrap_or(i64::MAX);
            page.gauge(&f::REVOCATIONS, count);
        }
        let unreadable = What::ALL
            .iter()
            .map(|what| (what.as_str(), self.problem(*what).map_or(0, |_| 1)));
        labelled(page, &f::UNREADABLE, unreadable);
    }

    fn certificates(&self, page: &mut Page) {
        let ends = [
            ("dispatcher", self.certificate),
            ("ca", self.cas.iter().min().copied()),
            ("api", self.api_certificate),
        ];
        certificates(page, &ends);
    }

    fn registry(&self, page: &mut Page) {
        page.gauge(&f::AGENTS_REGISTERED, number(self.agents.len()));
        let statuses = [
            SerialStatus::Current,
            SerialStatus::Pending,
            SerialStatus::Stale,
            SerialStatus::Unknown,
        ];
        let counts = statuses.map(|status| (status.as_str(), self.agents_with(status)));
        labelled(page, &f::AGENTS, counts);
        let known = || {
            let end = |agent: &AgentState| agent.not_after;
            self.agents.iter().filter_map(move |a| Some((a, end(a)?)))
        };
        if let Some(first) = known().map(|(_, end)| end).min() {
            page.gauge(&f::AGENT_EXPIRY_FIRST, first);
            if self.agents.len() <= MAX_AGENTS {
                page.begin(&f::AGENT_EXPIRY);
                for (agent, end) in known() {
                    page.sample(&f::AGENT_EXPIRY, &[agent.name.as_str()], end);
                }
            }
        }
    }
}

fn labelled<'a>(
    page: &mut Page,
    family: &Family,
    counts: impl IntoIterator<Item = (&'a str, usize)>,
) {
    page.begin(family);
    for (value, count) in counts {
        page.sample(family, &[value], number(count));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(name: &str, not_after: Option<i64>) -> AgentState {
        AgentState {
            name: AgentName::new(name).unwrap(),
            serial_status: SerialStatus::Stale,
            not_after,
            staged: false,
        }
    }

    fn text(state: &FleetState) -> String {
        let mut page = Page::new();
        state.render(&mut page);
        page.into_text()
    }

    #[test]
    fn a_fleet_is_shown_with_what_is_known_of_it() {
        let state = FleetState {
            certificate: Some(2000),
            cas: vec![9000, 8000],
            agents: vec![agent("a", Some(70)), agent("b", None)],
            waiting: Some(Vec::new()),
            rotation: RotationState {
                active: true,
                overlap_expires: Some(50),
            },
            ca_change: Some("announcing"),
            revocations: 3,
            ..FleetState::default()
        };
        let text = text(&state);
        for line in [
            "ctrl_exec_certificate_expiry_seconds{kind=\"dispatcher\"} 2000",
            "ctrl_exec_certificate_expiry_seconds{kind=\"ca\"} 8000",
            "ctrl_exec_clock_behind 0",
            "ctrl_exec_agents_registered 2",
            "ctrl_exec_agents{serial_status=\"stale\"} 2",
            "ctrl_exec_agents{serial_status=\"current\"} 0",
            "ctrl_exec_agent_certificate_expiry_seconds{agent=\"a\"} 70",
            "ctrl_exec_agent_certificate_expiry_earliest_seconds 70",
            "ctrl_exec_pairing_requests_waiting 0",
            "ctrl_exec_rotation_active 1",
            "ctrl_exec_rotation_overlap_expiry_seconds 50",
            "ctrl_exec_ca_change_active 1",
            "ctrl_exec_runs{state=\"done\"} 0",
            "ctrl_exec_revocations 3",
            "ctrl_exec_state_unreadable{what=\"registry\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} not in\n{text}");
        }
        assert!(!text.contains("agent=\"b\"") && !text.contains("kind=\"api\""));
    }

    #[test]
    fn what_cannot_be_read_is_not_shown_as_nothing() {
        let state = FleetState {
            unreadable: [What::Registry, What::Rotation, What::Revocations]
                .map(|what| (what, "broken".to_owned()))
                .to_vec(),
            ..FleetState::default()
        };
        let text = text(&state);
        assert!(text.contains("ctrl_exec_state_unreadable{what=\"rotation\"} 1\n"));
        assert!(text.contains("ctrl_exec_state_unreadable{what=\"runs\"} 0\n"));
        for absent in ["registered", "rotation_active", "revocations ", "waiting"] {
            assert!(!text.contains(absent), "{absent} in\n{text}");
        }
    }

    #[test]
    fn very_many_agents_are_one_number() {
        let agents = |n| (0..n).map(|at| agent(&format!("h{at}"), Some(100 + at)));
        let mut state = FleetState {
            agents: agents(1000).collect(),
            ..FleetState::default()
        };
        assert!(text(&state).contains("agent=\"h999\""));
        state.agents = agents(1001).collect();
        let text = text(&state);
        assert!(!text.contains("agent=\""));
        assert!(text.contains("earliest_seconds 100\n"));
    }
}
