//! Every family that one of the programs can show. Base units (seconds, bytes); times of day are seconds since 1970.

use super::text::{Family, Kind};

const fn family(
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
) -> Family {
    Family {
        name,
        kind,
        help,
        labels,
    }
}

macro_rules! families {
    ($($id:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(pub(super) static $id: Family = family($name, Kind::$kind, &[$($label),*], $help);)*
        /// All of them: what documentation and alert rules may name.
        pub static FAMILIES: &[&Family] = &[$(&$id),*];
    };
}

families! {
    // Every program.
    BUILD_INFO = Gauge "ctrl_exec_build_info" ["version", "program"] "Always 1; the labels say what runs.";
    START_TIME = Gauge "ctrl_exec_process_start_time_seconds" [] "When the program started, seconds since 1970.";
    CERTIFICATE_EXPIRY = Gauge "ctrl_exec_certificate_expiry_seconds" ["kind"] "End of a certificate of this host, seconds since 1970; of several CAs the one that ends first.";
    CLOCK_BEHIND = Gauge "ctrl_exec_clock_behind" [] "1 if the clock of the system is behind what is known to have passed.";

    // The API.
    API_REQUESTS = Counter "ctrl_exec_api_requests_total" ["route", "method", "code"] "Requests that were answered.";
    API_REQUEST_DURATION = Histogram "ctrl_exec_api_request_duration_seconds" ["route"] "Time from a request's head to its answer.";
    API_REFUSALS = Counter "ctrl_exec_api_refusals_total" ["reason"] "Requests and connections that were turned away before they reached a route.";
    API_CONNECTIONS = Gauge "ctrl_exec_api_connections" [] "Open connections of clients.";
    RUN_DURATION = Histogram "ctrl_exec_run_duration_seconds" ["mode"] "Time of a run over all its hosts; async: of its submission.";
    RUN_RESULTS = Counter "ctrl_exec_run_results_total" ["script", "outcome"] "What became of a script on a host.";
    HOOK_DURATION = Histogram "ctrl_exec_hook_duration_seconds" [] "Time that the auth hook took.";
    POOL_CONNECTIONS = Counter "ctrl_exec_agent_connections_total" ["state"] "Connections to agents that were used, by whether they were open already.";
    POOL_IDLE = Gauge "ctrl_exec_agent_connections_idle" [] "Connections to agents that are kept open for later use.";

    // The state of the fleet, as it lies in the dispatcher's files.
    AGENTS_REGISTERED = Gauge "ctrl_exec_agents_registered" [] "Agents in the registry.";
    AGENTS = Gauge "ctrl_exec_agents" ["serial_status"] "Agents by how far they are known to trust the present certificate of the dispatcher.";
    AGENT_EXPIRY = Gauge "ctrl_exec_agent_certificate_expiry_seconds" ["agent"] "End of an agent's certificate, seconds since 1970; left out with more than 1000 agents.";
    AGENT_EXPIRY_FIRST = Gauge "ctrl_exec_agent_certificate_expiry_earliest_seconds" [] "End of the agents' certificate that ends first, seconds since 1970.";
    PAIRING_WAITING = Gauge "ctrl_exec_pairing_requests_waiting" [] "Pairing requests that nobody has decided.";
    ROTATION_ACTIVE = Gauge "ctrl_exec_rotation_active" [] "1 while the dispatcher's certificate is being rotated or an old one withdrawn.";
    ROTATION_OVERLAP = Gauge "ctrl_exec_rotation_overlap_expiry_seconds" [] "Until when agents trust the previous certificate too, seconds since 1970.";
    CA_CHANGE_ACTIVE = Gauge "ctrl_exec_ca_change_active" [] "1 while the CA is being replaced.";
    RUNS = Gauge "ctrl_exec_runs" ["state"] "Runs on record; unread: more than are looked at for one answer.";
    REVOCATIONS = Gauge "ctrl_exec_revocations" [] "Entries in the journal of revoked certificates.";
    UNREADABLE = Gauge "ctrl_exec_state_unreadable" ["what"] "1 if a part of the state cannot be read or is damaged; ced health says why.";

    // The agent.
    AGENT_REQUESTS = Counter "ctrl_exec_agent_requests_total" ["route", "code"] "Requests that were answered.";
    AGENT_REFUSALS = Counter "ctrl_exec_agent_refusals_total" ["reason"] "Connections and requests that were turned away.";
    AGENT_RUN_RESULTS = Counter "ctrl_exec_agent_run_results_total" ["script", "outcome"] "Runs of allowlisted scripts that have ended, or were refused.";
    AGENT_RUN_DURATION = Histogram "ctrl_exec_agent_run_duration_seconds" ["mode"] "Time from the start of a script to its end.";
    AGENT_JOBS = Gauge "ctrl_exec_agent_jobs_running" [] "Asynchronous runs under way.";
    AGENT_CONNECTIONS = Gauge "ctrl_exec_agent_connections_open" [] "Open connections of peers.";
    AGENT_TRUSTED = Gauge "ctrl_exec_agent_trusted_dispatchers" [] "Dispatchers that this agent trusts.";
    AGENT_REVOKED = Gauge "ctrl_exec_agent_revoked_serials" [] "Serials that this agent knows to be revoked.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_house() {
        let mut seen = std::collections::BTreeSet::new();
        for family in FAMILIES {
            let Family { name, kind, .. } = family;
            assert!(seen.insert(name), "{name} twice");
            assert!(name.starts_with("ctrl_exec_"), "{name}");
            let plain = |c: char| c.is_ascii_lowercase() || c == '_';
            assert!(name.chars().all(plain), "{name}");
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
            if *kind == Kind::Histogram {
                assert!(name.ends_with("_seconds"), "{name}");
            }
            assert!(!family.help.contains(['\n', '\\']), "{name}");
            assert!(family.labels.iter().all(|l| l.chars().all(plain)));
            assert!(!family.labels.contains(&"le"), "{name}");
        }
    }
}
