//! What the API counts (spec/api.md 3, 4). One value for the whole program, shared by its handlers.

use std::sync::Arc;
use std::time::Duration;

use super::common::{LONG, RunMode, head, words};
use super::families as f;
use super::fleet::FleetState;
use super::series::{Counter, Gauge, Histogram, OTHER};
use super::text::Page;
use crate::core::types::ScriptName;

/// Upper bounds of a request's time and of a hook's, seconds.
const SHORT: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];
/// Methods that are told apart; a client can send any word.
const METHODS: [&str; 7] = ["GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"];

words! {
    /// Why the API turned somebody away before a route.
    ApiRefusal {
        /// The hook or the lack of one.
        Auth = "auth",
        /// Too many failures or requests of one client.
        Throttled = "throttled",
        /// Too many connections at once.
        Overload = "overload",
        TooLarge = "too_large",
        Headers = "headers",
        BadRequest = "bad_request",
        Timeout = "timeout",
        /// The handshake failed.
        Tls = "tls",
    }
}

words! {
    /// What became of a script on one host.
    Outcome {
        /// Exit 0, or taken over by the agent.
        Ok = "ok",
        /// Another exit.
        Failed = "failed",
        /// The agent did not run it: not on its allowlist, its hook, busy.
        Refused = "refused",
        Unreachable = "unreachable",
    }
}

/// The numbers of one API process.
#[derive(Debug)]
pub struct ApiMetrics {
    version: &'static str,
    program: &'static str,
    started: i64,
    requests: Counter,
    request_duration: Histogram,
    refusals: Counter,
    connections: Gauge,
    run_duration: Histogram,
    run_results: Counter,
    hook_duration: Histogram,
    pool_connections: Counter,
    pool_idle: Gauge,
}

impl ApiMetrics {
    /// `started`: seconds since 1970.
    pub fn new(program: &'static str, version: &'static str, started: i64) -> Self {
        let metrics = Self {
            version,
            program,
            started,
            requests: Counter::new(&f::API_REQUESTS),
            request_duration: Histogram::new(&f::API_REQUEST_DURATION, SHORT),
            refusals: Counter::new(&f::API_REFUSALS),
            connections: Gauge::new(&f::API_CONNECTIONS),
            run_duration: Histogram::new(&f::RUN_DURATION, LONG),
            run_results: Counter::new(&f::RUN_RESULTS),
            hook_duration: Histogram::new(&f::HOOK_DURATION, SHORT),
            pool_connections: Counter::new(&f::POOL_CONNECTIONS),
            pool_idle: Gauge::new(&f::POOL_IDLE),
        };
        for reason in ApiRefusal::ALL {
            metrics.refusals.expect(&[reason.as_str()]);
        }
        for mode in RunMode::ALL {
            metrics.run_duration.expect(&[mode.as_str()]);
        }
        for state in ["reused", "fresh"] {
            metrics.pool_connections.expect(&[state]);
        }
        metrics.hook_duration.expect(&[]);
        metrics
    }

    /// A request was answered. `route` is the template (`/status/{reqid}`), or `none` where no route fits.
    pub fn answered(&self, route: &'static str, method: &str, code: &str, took: Duration) {
        let method = METHODS
            .into_iter()
            .find(|known| *known == method)
            .unwrap_or(OTHER);
        self.requests.count(&[route, method, code]);
        self.request_duration.observe(&[route], took);
    }

    /// Somebody was turned away.
    pub fn refused(&self, reason: ApiRefusal) {
        self.refusals.count(&[reason.as_str()]);
    }

    /// A client has connected; it counts as long as the answer is kept.
    #[must_use]
    pub fn connection(self: &Arc<Self>) -> OpenConnection {
        self.connections.add(1);
        OpenConnection(self.clone())
    }

    /// A run over all its hosts (async: its submission) has taken so long.
    pub fn ran(&self, mode: RunMode, took: Duration) {
        self.run_duration.observe(&[mode.as_str()], took);
    }

    /// What became of a script on one host. A word that is no proper script name counts as `other`.
    pub fn result(&self, script: &str, outcome: Outcome) {
        let script = ScriptName::new(script).map_or(OTHER, |_| script);
        // All at once: a scraper sees a later failure as a step.
        for each in Outcome::ALL {
            self.run_results.expect(&[script, each.as_str()]);
        }
        self.run_results.count(&[script, outcome.as_str()]);
    }

    /// The auth hook has taken so long.
    pub fn hook(&self, took: Duration) {
        self.hook_duration.observe(&[], took);
    }

    /// Connections to agents: made, used again, and kept now.
    pub fn agent_connections(&self, fresh: u64, reused: u64, idle: u64) {
        self.pool_connections.put(&["fresh"], fresh);
        self.pool_connections.put(&["reused"], reused);
        self.pool_idle.set(i64::try_from(idle).unwrap_or(i64::MAX));
    }

    /// The page for a scraper. `fleet` comes from [`super::fleet`], which blocks on the disk.
    pub fn render(&self, fleet: &FleetState) -> String {
        let mut page = Page::new();
        head(&mut page, self.version, self.program, self.started);
        self.requests.render(&mut page);
        self.request_duration.render(&mut page);
        self.refusals.render(&mut page);
        self.connections.render(&mut page);
        self.run_duration.render(&mut page);
        self.run_results.render(&mut page);
        self.hook_duration.render(&mut page);
        self.pool_connections.render(&mut page);
        self.pool_idle.render(&mut page);
        fleet.render(&mut page);
        page.into_text()
    }
}

/// A connection of a client, counted until it is dropped.
#[derive(Debug)]
pub struct OpenConnection(Arc<ApiMetrics>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.connections.add(-1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_is_counted_and_what_clients_choose_is_bounded() {
        let metrics = Arc::new(ApiMetrics::new("ctrl-exec-api", "1.2.3", 1000));
        metrics.answered("/run", "POST", "200", Duration::from_millis(20));
        metrics.answered("none", "BREW", "404", Duration::ZERO);
        metrics.refused(ApiRefusal::Auth);
        metrics.result("backup", Outcome::Failed);
        metrics.result("no such\nname", Outcome::Refused);
        metrics.hook(Duration::from_millis(6));
        metrics.ran(RunMode::Async, Duration::from_secs(2));
        metrics.agent_connections(2, 1, 3);
        let open = metrics.connection();
        let gone = metrics.connection();
        drop(gone);
        let text = metrics.render(&FleetState::default());
        drop(open);
        for line in [
            "ctrl_exec_build_info{version=\"1.2.3\",program=\"ctrl-exec-api\"} 1",
            "ctrl_exec_process_start_time_seconds 1000",
            "ctrl_exec_api_requests_total{route=\"/run\",method=\"POST\",code=\"200\"} 1",
            "ctrl_exec_api_requests_total{route=\"none\",method=\"other\",code=\"404\"} 1",
            "ctrl_exec_api_request_duration_seconds_bucket{route=\"/run\",le=\"0.025\"} 1",
            "ctrl_exec_api_refusals_total{reason=\"auth\"} 1",
            "ctrl_exec_api_refusals_total{reason=\"tls\"} 0",
            "ctrl_exec_api_connections 1",
            "ctrl_exec_run_results_total{script=\"backup\",outcome=\"failed\"} 1",
            "ctrl_exec_run_results_total{script=\"backup\",outcome=\"unreachable\"} 0",
            "ctrl_exec_run_results_total{script=\"other\",outcome=\"refused\"} 1",
            "ctrl_exec_run_duration_seconds_count{mode=\"async\"} 1",
            "ctrl_exec_run_duration_seconds_count{mode=\"sync\"} 0",
            "ctrl_exec_hook_duration_seconds_count 1",
            "ctrl_exec_agent_connections_total{state=\"reused\"} 1",
            "ctrl_exec_agent_connections_idle 3",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} not in\n{text}");
        }
        assert!(
            metrics
                .render(&FleetState::default())
                .contains("connections 0\n")
        );
    }
}
