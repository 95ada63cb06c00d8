//! What the agent counts (spec/agent.md 7-12). One value for the whole program.

use std::sync::Arc;
use std::time::Duration;

use super::common::{LONG, RunMode, certificates, head, number, words};
use super::families as f;
use super::series::{Counter, Gauge, Histogram, OTHER};
use super::text::Page;
use crate::core::types::ScriptName;

words! {
    /// Why the agent turned somebody away.
    AgentRefusal {
        /// A certificate of our CA whose serial is not trusted.
        Untrusted = "untrusted",
        Revoked = "revoked",
        /// Too many connections, handshakes that failed, or requests.
        Rate = "rate",
        /// Not in `allowed_ips`.
        Ip = "ip",
        /// More than `max_children`.
        Overload = "overload",
        /// The host's own hook says no.
        Hook = "hook",
        /// A script that is not on the allowlist, or must not be run as it lies there.
        NotPermitted = "not_permitted",
        /// The handshake failed.
        Tls = "tls",
    }
}

words! {
    /// What became of a run.
    RunEnd {
        /// Exit 0.
        Ok = "ok",
        /// Another exit, or an end by a signal.
        Failed = "failed",
        /// It was not run.
        Refused = "refused",
        /// It runs already.
        Busy = "busy",
    }
}

impl RunEnd {
    /// Of the exit that a peer is told: -1 means that nothing was run.
    pub fn of(exit: i32) -> Self {
        match exit {
            0 => Self::Ok,
            ..0 => Self::Refused,
            _ => Self::Failed,
        }
    }
}

/// What is known only now.
#[derive(Clone, Debug)]
pub struct AgentNow {
    /// End of the certificate in use, seconds since 1970.
    pub certificate: i64,
    /// Ends of the CAs in force.
    pub cas: Vec<i64>,
    pub jobs_running: usize,
    pub trusted_dispatchers: usize,
    pub revoked_serials: usize,
    pub clock_behind: bool,
}

/// The numbers of one agent process.
#[derive(Debug)]
pub struct AgentMetrics {
    version: &'static str,
    started: i64,
    requests: Counter,
    refusals: Counter,
    run_results: Counter,
    run_duration: Histogram,
    connections: Gauge,
}

impl AgentMetrics {
    /// `started`: seconds since 1970.
    pub fn new(version: &'static str, started: i64) -> Self {
        let metrics = Self {
            version,
            started,
            requests: Counter::new(&f::AGENT_REQUESTS),
            refusals: Counter::new(&f::AGENT_REFUSALS),
            run_results: Counter::new(&f::AGENT_RUN_RESULTS),
            run_duration: Histogram::new(&f::AGENT_RUN_DURATION, LONG),
            connections: Gauge::new(&f::AGENT_CONNECTIONS),
        };
        for reason in AgentRefusal::ALL {
            metrics.refusals.expect(&[reason.as_str()]);
        }
        for mode in RunMode::ALL {
            metrics.run_duration.expect(&[mode.as_str()]);
        }
        metrics
    }

    /// A request was answered. `route` is the template (`/result/{reqid}`), or `none` where no route fits.
    pub fn answered(&self, route: &'static str, code: u16) {
        self.requests.count(&[route, &code.to_string()]);
    }

    /// Somebody was turned away.
    pub fn refused(&self, reason: AgentRefusal) {
        self.refusals.count(&[reason.as_str()]);
    }

    /// What became of a run. `script` is one of the allowlist; `None`: a name that is not there.
    pub fn run(&self, script: Option<&ScriptName>, end: RunEnd) {
        let script = script.map_or(OTHER, ScriptName::as_str);
        self.run_results.count(&[script, end.as_str()]);
    }

    /// These are on the allowlist: their series are shown before their first run, so that a scraper sees a first failure as a step.
    pub fn allow<'a>(&self, scripts: impl IntoIterator<Item = &'a ScriptName>) {
        for script in scripts {
            for end in [RunEnd::Ok, RunEnd::Failed] {
                self.run_results.expect(&[script.as_str(), end.as_str()]);
            }
        }
    }

    /// A script that was started has ended.
    pub fn took(&self, mode: RunMode, time: Duration) {
        self.run_duration.observe(&[mode.as_str()], time);
    }

    /// A peer has connected; it counts as long as the answer is kept.
    #[must_use]
    pub fn connection(self: &Arc<Self>) -> AgentConnection {
        self.connections.add(1);
        AgentConnection(self.clone())
    }

    /// The page for a scraper.
    pub fn render(&self, now: &AgentNow) -> String {
        let mut page = Page::new();
        head(&mut page, self.version, "ctrl-exec-agent", self.started);
        let ends = [
            ("agent", Some(now.certificate)),
            ("ca", now.cas.iter().min().copied()),
        ];
        certificates(&mut page, &ends);
        page.gauge(&f::CLOCK_BEHIND, now.clock_behind.into());
        self.requests.render(&mut page);
        self.refusals.render(&mut page);
        self.run_results.render(&mut page);
        self.run_duration.render(&mut page);
        page.gauge(&f::AGENT_JOBS, number(now.jobs_running));
        self.connections.render(&mut page);
        page.gauge(&f::AGENT_TRUSTED, number(now.trusted_dispatchers));
        page.gauge(&f::AGENT_REVOKED, number(now.revoked_serials));
        page.into_text()
    }
}

/// A connection of a peer, counted until it is dropped.
#[derive(Debug)]
pub struct AgentConnection(Arc<AgentMetrics>);

impl Drop for AgentConnection {
    fn drop(&mut self) {
        self.0.connections.add(-1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_is_counted() {
        let metrics = Arc::new(AgentMetrics::new("1.2.3", 1000));
        let backup = ScriptName::new("backup").unwrap();
        metrics.allow([&ScriptName::new("idle").unwrap()]);
        metrics.answered("/run", 200);
        metrics.refused(AgentRefusal::Hook);
        for exit in [0, 3, 126, -1] {
            metrics.run(Some(&backup), RunEnd::of(exit));
        }
        metrics.run(None, RunEnd::Refused);
        metrics.took(RunMode::Sync, Duration::from_millis(70));
        let open = metrics.connection();
        drop(metrics.connection());
        let text = metrics.render(&AgentNow {
            certificate: 70,
            cas: vec![90, 80],
            jobs_running: 2,
            trusted_dispatchers: 1,
            revoked_serials: 4,
            clock_behind: true,
        });
        drop(open);
        for line in [
            "ctrl_exec_build_info{version=\"1.2.3\",program=\"ctrl-exec-agent\"} 1",
            "ctrl_exec_certificate_expiry_seconds{kind=\"agent\"} 70",
            "ctrl_exec_certificate_expiry_seconds{kind=\"ca\"} 80",
            "ctrl_exec_clock_behind 1",
            "ctrl_exec_agent_requests_total{route=\"/run\",code=\"200\"} 1",
            "ctrl_exec_agent_refusals_total{reason=\"hook\"} 1",
            "ctrl_exec_agent_refusals_total{reason=\"not_permitted\"} 0",
            "ctrl_exec_agent_run_results_total{script=\"idle\",outcome=\"failed\"} 0",
            "ctrl_exec_agent_run_results_total{script=\"backup\",outcome=\"ok\"} 1",
            "ctrl_exec_agent_run_results_total{script=\"backup\",outcome=\"failed\"} 2",
            "ctrl_exec_agent_run_results_total{script=\"backup\",outcome=\"refused\"} 1",
            "ctrl_exec_agent_run_results_total{script=\"other\",outcome=\"refused\"} 1",
            "ctrl_exec_agent_run_duration_seconds_bucket{mode=\"sync\",le=\"0.1\"} 1",
            "ctrl_exec_agent_jobs_running 2",
            "ctrl_exec_agent_connections_open 1",
            "ctrl_exec_agent_trusted_dispatchers 1",
            "ctrl_exec_agent_revoked_serials 4",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} not in\n{text}");
        }
    }
}
