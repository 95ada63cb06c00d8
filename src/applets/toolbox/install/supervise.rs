//! The half of the plan that is about running services, and what the operator is told at the end.

use std::collections::BTreeSet;
use std::path::Path;

use super::look::What;
use super::plan::{Planner, Refusal};
use super::platform::{Init, System};
use super::services::{self, Needs, Order, Service};
use super::step::Step;
use super::table;

impl Planner<'_> {
    /// Enables what is new and starts it if it can work, restarts what runs and has changed; answers what is started and restarted.
    pub(super) fn services(&mut self) -> Result<BTreeSet<String>, Refusal> {
        let facts = self.facts;
        let mut pending = BTreeSet::new();
        let firewall = |step: &Step| matches!(step, Step::Write { path, .. } if path == Path::new(table::FIREWALL));
        if self.steps.iter().any(firewall) {
            pending.insert(table::FIREWALL.to_owned());
        }
        let mut last = Vec::new();
        let mut enabled = Vec::new();
        let interrupted = facts.init == Init::Systemd && !facts.manifest.pending.is_empty();
        if (self.reload || interrupted) && facts.live {
            self.steps.push(Step::run(&["systemctl", "daemon-reload"]));
        }
        for service in services::of(facts.init) {
            if !service.roles.meets(self.manifest.roles) || self.is_masked(service) {
                continue;
            }
            let now = facts
                .services
                .get(service.name)
                .copied()
                .unwrap_or_default();
            let order = |order| Step::Run {
                words: services::words(facts.init, order, service.name),
                fine: &[],
            };
            let new = service.roles.meets(self.request.roles) && !now.enabled;
            if new && facts.here {
                self.steps.push(order(Order::Enable));
                self.manifest.enabled.insert(service.name.to_owned());
                enabled.push(service.name);
            }
            let was_pending = facts.manifest.pending.contains(service.name);
            // A timer runs no program of ours itself.
            let new_program = service.needs != Needs::Nothing || self.reload;
            let changed = self.touched.meets(service.roles) && new_program || was_pending;
            let problem = facts.problems.get(service.name);
            if now.active && changed {
                if let Some(why) = problem {
                    return Err(Refusal::WouldNotStart {
                        service: service.name,
                        why: why.clone(),
                    });
                }
                last.push(order(Order::Restart));
                pending.insert(service.name.to_owned());
            } else if !now.active
                && (new || was_pending)
                && facts.live
                && facts.is_ready(service.needs)
            {
                match problem {
                    None => {
                        last.push(order(Order::Start));
                        pending.insert(service.name.to_owned());
                    }
                    Some(why) => self.notes.push(format!(
                        "Not started: {}, because of its configuration:\n{why}",
                        service.name
                    )),
                }
            }
        }
        self.steps.append(&mut last);
        if !enabled.is_empty() {
            self.notes.push(format!("Enabled: {}", enabled.join(", ")));
        }
        Ok(pending)
    }

    fn is_masked(&self, service: &Service) -> bool {
        let file = services::file(self.facts.init, service.name);
        matches!(self.facts.at(Path::new(&file)).what, What::Link(_))
    }

    pub(super) fn hints(&mut self) {
        let facts = self.facts;
        let roles = self.request.roles;
        let services: Vec<&str> = services::of(facts.init)
            .iter()
            .filter(|service| service.roles.meets(roles))
            .map(|service| service.name)
            .collect();
        if facts.init == Init::None {
            self.notes.push(
                "No service files: no service manager was found (--init names one)".to_owned(),
            );
        } else if !facts.here {
            self.notes.push(format!(
                "Not enabled, because this is not the running system: {}",
                services.join(", ")
            ));
        }
        if roles.meets(table::AGENT) && !facts.paired {
            let start = match facts.init {
                Init::Systemd => "systemctl start ctrl-exec-exec ctrl-exec-agent",
                Init::Openrc => {
                    "rc-service ctrl-exec-exec start && rc-service ctrl-exec-agent start"
                }
                Init::Procd => {
                    "/etc/init.d/ctrl-exec-exec start && /etc/init.d/ctrl-exec-agent start"
                }
                Init::None => "start ctrl-exec-exec and ctrl-exec-agent",
            };
            self.notes.push(format!(
                "Next: ctrl-exec-agent request-pairing --dispatcher HOST, then {start}"
            ));
        }
        if roles.meets(table::SENDING) && !facts.set_up {
            self.notes
                .push("Next: ced setup-ca, ced setup-ctrl-exec, then ced pairing-mode".to_owned());
        }
        if roles.meets(table::AGENT) && facts.system == System::OpenWrt && !self.request.open_port {
            self.notes.push(
                "Port 7443 is open to the zones that your firewall lets in; --open-port adds a rule for it".to_owned(),
            );
        }
    }
}
