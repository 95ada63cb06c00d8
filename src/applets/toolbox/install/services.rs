//! The services of each role, and what their manager is told.

use super::platform::Init;
use super::table::{AGENT, API, DISPATCHER, Roles};

/// What must be in order before a service can run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Needs {
    Nothing,
    Executor,
    Agent,
    Dispatcher,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Service {
    pub(super) roles: Roles,
    pub(super) name: &'static str,
    pub(super) needs: Needs,
}

const fn service(roles: Roles, name: &'static str, needs: Needs) -> Service {
    Service { roles, name, needs }
}

/// The executor before the agent: it answers when the agent begins to ask.
static OF_SYSTEMD: &[Service] = &[
    service(AGENT, "ctrl-exec-exec.service", Needs::Executor),
    service(AGENT, "ctrl-exec-agent.service", Needs::Agent),
    service(AGENT, "ctrl-exec-agent-renew.timer", Needs::Nothing),
    service(DISPATCHER, "ctrl-exec-maintenance.timer", Needs::Nothing),
    service(API, "ctrl-exec-api.service", Needs::Dispatcher),
];

static OF_SCRIPTS: &[Service] = &[
    service(AGENT, "ctrl-exec-exec", Needs::Executor),
    service(AGENT, "ctrl-exec-agent", Needs::Agent),
    service(DISPATCHER, "ctrl-exec-maintenance", Needs::Dispatcher),
    service(API, "ctrl-exec-api", Needs::Dispatcher),
];

pub(super) fn of(init: Init) -> &'static [Service] {
    match init {
        Init::Systemd => OF_SYSTEMD,
        Init::Openrc | Init::Procd => OF_SCRIPTS,
        Init::None => &[],
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Order {
    Enable,
    Disable,
    Start,
    Stop,
    Restart,
    IsEnabled,
    IsActive,
}

/// The file that makes it known to its manager.
pub(super) fn file(init: Init, name: &str) -> String {
    match init {
        Init::Systemd => format!("/etc/systemd/system/{name}"),
        _ => format!("/etc/init.d/{name}"),
    }
}

/// What shows why a service did not do as it was told, if that is what the words are about.
pub(super) fn log(words: &[String]) -> Option<String> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["systemctl", "start" | "stop" | "restart", name] => {
            Some(format!("journalctl -u {name} -n 20"))
        }
        ["rc-service", name, "start" | "stop" | "restart"] => {
            Some(format!("rc-service {name} status, and the system's log"))
        }
        [script, "start" | "stop" | "restart"] if script.starts_with("/etc/init.d/") => {
            Some("logread -e ctrl-exec".to_owned())
        }
        _ => None,
    }
}

pub(super) fn words(init: Init, order: Order, name: &str) -> Vec<String> {
    let script = file(init, name);
    let verb = match order {
        Order::Enable => "enable",
        Order::Disable => "disable",
        Order::Start => "start",
        Order::Stop => "stop",
        Order::Restart => "restart",
        Order::IsEnabled => "is-enabled",
        Order::IsActive => "is-active",
    };
    let words: &[&str] = match (init, order) {
        // Not `--quiet`: that would keep back why something fails.
        (Init::Systemd, _) => &["systemctl", verb, name],
        (Init::Openrc, Order::Enable) => &["rc-update", "add", name, "default"],
        (Init::Openrc, Order::Disable) => &["rc-update", "del", name, "default"],
        // Quick, and true without a running OpenRC too.
        (Init::Openrc, Order::IsEnabled) => {
            &["test", "-e", &format!("/etc/runlevels/default/{name}")]
        }
        (Init::Openrc, Order::IsActive) => &["rc-service", name, "status"],
        (Init::Openrc, _) => &["rc-service", name, verb],
        (_, Order::IsEnabled) => &[&script, "enabled"],
        (_, Order::IsActive) => &[&script, "running"],
        _ => &[&script, verb],
    };
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_fails_has_a_log() {
        let log = |init, order| log(&words(init, order, "ctrl-exec-agent")).unwrap_or_default();
        assert_eq!(
            log(Init::Systemd, Order::Restart),
            "journalctl -u ctrl-exec-agent -n 20"
        );
        assert!(log(Init::Openrc, Order::Start).starts_with("rc-service ctrl-exec-agent status"));
        assert_eq!(log(Init::Procd, Order::Stop), "logread -e ctrl-exec");
        for init in [Init::Systemd, Init::Openrc, Init::Procd] {
            assert_eq!(log(init, Order::Enable), "");
        }
    }
}
