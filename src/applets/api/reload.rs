//! SIGHUP: everything is read anew, and counts only if all of it is usable.

use std::time::Instant;

use crate::applets::api::state::{Api, LoadError, Snapshot};
use crate::complain;
use crate::core::config::DispatcherConfig;
use crate::core::logging::Action;

impl Api {
    /// Reads everything anew and, if all of it is usable, puts it in force for the requests that come; otherwise nothing changes.
    pub(super) fn reload(&self) {
        let old = self.snapshot();
        let loaded = Snapshot::load(&self.context, self.file.as_ref()).and_then(|loaded| {
            // Tokens would travel in clear from one request to the next.
            match (old.tls.is_some(), loaded.0.tls.is_some()) {
                (true, false) => Err(LoadError::Config(
                    "'api_cert' and 'api_key' are gone: only a restart turns TLS off".to_owned(),
                )),
                _ => Ok(loaded),
            }
        });
        let (fresh, warnings) = match loaded {
            Ok(loaded) => loaded,
            Err(LoadError::Config(reason) | LoadError::Material(reason)) => {
                complain!("reload failed, the old configuration stays in force: {reason}");
                Action::new("config-reload").field("ERROR", reason).err();
                return;
            }
        };
        for warning in warnings {
            complain!("{warning}");
        }
        for key in needs_restart(&old.config, &fresh.config) {
            Action::new("config-reload")
                .field("KEY", key)
                .field("MSG", "changes only with a restart")
                .warning();
        }
        fresh.clock.raise(old.clock.floor());
        self.throttle()
            .follow(fresh.config.api.refusal_limit, Instant::now());
        let tls = if fresh.tls.is_some() { "yes" } else { "no" };
        self.put_in_force(fresh);
        complain!("configuration reloaded");
        Action::new("config-reload").field("TLS", tls).info();
    }
}

/// The changed keys that count at the start only.
fn needs_restart(old: &DispatcherConfig, fresh: &DispatcherConfig) -> Vec<&'static str> {
    let (a, b) = (&old.api, &fresh.api);
    [
        ("api_bind, api_port", (a.bind, a.port) != (b.bind, b.port)),
        ("api_tcp", a.tcp != b.tcp),
        ("api_socket", a.socket != b.socket),
        ("api_socket_mode", a.socket_mode != b.socket_mode),
        ("api_max_children", a.max_children != b.max_children),
        (
            "api_max_connections",
            a.max_connections != b.max_connections,
        ),
        ("api_answer_memory", a.answer_memory != b.answer_memory),
        ("max_parallel", old.max_parallel != fresh.max_parallel),
    ]
    .into_iter()
    .filter_map(|(key, changed)| changed.then_some(key))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::paths::{Paths, Platform};
    use std::path::Path;

    #[test]
    fn what_was_opened_or_sized_at_the_start_stays_until_a_restart() {
        let paths = Paths::new("/", Platform::Standard);
        let old = DispatcherConfig::defaults(&paths, Path::new("/f"), "host");
        let mut fresh = old.clone();
        assert!(needs_restart(&old, &fresh).is_empty());
        fresh.api.auth_deny_generic = true;
        assert!(needs_restart(&old, &fresh).is_empty());
        fresh.api.port += 1;
        fresh.api.socket = Some("/s".into());
        fresh.max_parallel += 1;
        let keys = needs_restart(&old, &fresh);
        assert_eq!(keys, ["api_bind, api_port", "api_socket", "max_parallel"]);
    }
}
