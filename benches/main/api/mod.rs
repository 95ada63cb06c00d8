//! The HTTP API: requests per second beside a bare server, runs per second beside a bare loop of fork and exec, and what it holds in memory:
//! at rest, for a thousand connections that wait, for answers that are long.

pub mod client;
mod memory;
mod rates;
pub mod stage;

use crate::Report;
use crate::common::fleet::new_dispatcher;
use stage::{QuietLog, Server};

/// More connections than are opened from this one address, which may have half of them.
const LIMITS: &str = "api_max_connections = 4096\n";

pub fn all(report: &mut Report) {
    {
        let dispatcher = new_dispatcher("ctl.test");
        let _log = QuietLog::of(&dispatcher);
        let api = Server::api(&dispatcher, LIMITS);
        memory::idle(report, &api);
        rates::health(report, &api);
        memory::connections(report, &api, "HTTP");
        drop(api);
        let tls = format!(
            "{LIMITS}api_cert = \"/etc/ctrl-exec/dispatcher.crt\"\napi_key = \"/etc/ctrl-exec/dispatcher.key\"\n"
        );
        memory::connections(report, &Server::api(&dispatcher, &tls), "TLS");
    }
    rates::runs(report);
    memory::long_answers(report);
}
