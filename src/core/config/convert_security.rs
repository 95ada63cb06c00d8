//! `[executor]`, profiles and annotations as TOML: everything that differs from the default of the baseline.

use toml::Value;

use super::convert::{Writer, absolute};
use super::{
    Annotations, Baseline, Devices, ExecutorConfig, Groups, Leftovers, LimitKind, Network,
    OnDisconnect, Ports, ProfileConfig, Protected, Scope, ScriptTrust, Syscalls, Want,
};
use crate::core::types::{AbsolutePath, hex};

impl Writer {
    pub(super) fn executor(&mut self, e: &ExecutorConfig) {
        let d = ExecutorConfig::default();
        if *e == d {
            return;
        }
        self.section(&["executor"]);
        if e.baseline == Baseline::Strict {
            self.set("baseline", "strict");
        }
        self.count("max_runs", e.max_runs, d.max_runs);
        self.seconds("request_timeout", e.request_timeout, d.request_timeout);
        self.count("max_frame", e.max_frame, d.max_frame);
        self.count("max_output", e.max_output, d.max_output);
        self.seconds("drain_grace", e.drain_grace, d.drain_grace);
        self.unless("require_digest", &e.require_digest, &d.require_digest);
        if let Some(path) = &e.cgroup_parent {
            self.set("cgroup_parent", path.to_string_lossy().into_owned());
        }
        self.text_if("executor_peer_unit", e.executor_peer_unit.as_deref());
    }

    pub(super) fn annotations(&mut self, annotations: &Annotations) {
        if let Some(digest) = &annotations.digest {
            self.set("digest", format!("sha256:{}", hex(digest)));
        }
        if let Some(timeout) = annotations.timeout {
            self.number("timeout", timeout.as_secs());
        }
        if let Some(schema) = &annotations.schema {
            self.set("schema", schema.to_string());
        }
    }

    pub(super) fn profile(&mut self, p: &ProfileConfig) {
        let mut d = ProfileConfig::new(p.baseline);
        d.caps.clone_from(&p.caps);
        d.writable.clone_from(&p.writable);
        d.settle_defaults();
        self.identity(p);
        self.supervision(p, &d);
        self.view(p, &d);
        self.confinement(p, &d);
        self.limits(p, &d);
        self.surroundings(p, &d);
        self.trust(p, &d);
    }

    fn identity(&mut self, p: &ProfileConfig) {
        self.text_if("run_as", p.run_as.as_deref());
        self.text_if("group", p.group.as_deref());
        match &p.groups {
            Groups::User => {}
            Groups::None => self.set("groups", "none"),
            Groups::List(list) => self.set("groups", list.clone()),
        }
        if !p.caps.is_empty() {
            let caps: Vec<String> = p.caps.iter().map(ToString::to_string).collect();
            self.set("caps", caps);
        }
        self.paths("writable", &p.writable);
        self.set("no_new_privileges", p.no_new_privileges);
    }

    fn supervision(&mut self, p: &ProfileConfig, d: &ProfileConfig) {
        if p.timeout != d.timeout {
            self.number("timeout", p.timeout.map_or(0, |t| t.as_secs()));
        }
        self.seconds("kill_grace", p.kill_grace, d.kill_grace);
        if p.on_disconnect != d.on_disconnect {
            self.set(
                "on_disconnect",
                match p.on_disconnect {
                    OnDisconnect::Kill => "kill",
                    OnDisconnect::Continue => "continue",
                },
            );
        }
        if p.leftovers != d.leftovers {
            self.set(
                "leftovers",
                match p.leftovers {
                    Leftovers::Kill => "kill",
                    Leftovers::Keep => "keep",
                },
            );
        }
    }

    fn view(&mut self, p: &ProfileConfig, d: &ProfileConfig) {
        self.paths("hide", &p.hide);
        self.paths("read", &p.read);
        self.paths("execute", &p.execute);
        self.unless("private_tmp", &p.private_tmp, &d.private_tmp);
        if let (Some(size), true) = (p.tmp_size, p.tmp_size != d.tmp_size) {
            self.number("tmp_size", size);
        }
        if p.kernel_tunables_writable != d.kernel_tunables_writable {
            let word = if p.kernel_tunables_writable {
                "rw"
            } else {
                "ro"
            };
            self.set("kernel_tunables", word);
        }
        self.protected("devices", p.devices, d.devices, |devices| match devices {
            Devices::Host => "host",
            Devices::Minimal => "minimal",
        });
    }

    fn confinement(&mut self, p: &ProfileConfig, d: &ProfileConfig) {
        self.want("landlock", p.landlock, d.landlock);
        self.protected("network", p.network, d.network, |network| match network {
            Network::Host => "host",
            Network::None => "none",
            Network::Loopback => "loopback",
        });
        self.ports("tcp_connect", &p.tcp_connect);
        self.ports("tcp_bind", &p.tcp_bind);
        self.protected(
            "syscalls",
            p.syscalls,
            d.syscalls,
            |syscalls| match syscalls {
                Syscalls::Off => "off",
                Syscalls::Default => "default",
                Syscalls::Strict => "strict",
            },
        );
        let word = |deny| if deny { "deny" } else { "allow" };
        self.protected("userns", p.deny_userns, d.deny_userns, word);
        let word = |scope| match scope {
            Scope::Host => "host",
            Scope::Private => "private",
        };
        self.protected("processes", p.processes, d.processes, word);
        self.protected("ipc", p.ipc, d.ipc, word);
    }

    fn limits(&mut self, p: &ProfileConfig, d: &ProfileConfig) {
        self.want("cgroup", p.cgroup, d.cgroup);
        for (file, value) in &p.cgroup_limits {
            if d.cgroup_limits.get(file) == Some(value) {
                continue;
            }
            let key = file.replace('.', "_");
            if *file == "io.max" {
                let lines: Vec<String> = value.lines().map(str::to_owned).collect();
                self.set(&key, lines);
            } else {
                self.set(&key, value.as_str());
            }
        }
        for kind in LimitKind::ALL {
            match p.limits.get(&kind) {
                Some(value) if d.limits.get(&kind) != Some(value) => match value {
                    Some(number) => self.number(kind.key(), *number),
                    None => self.set(kind.key(), "unlimited"),
                },
                _ => {}
            }
        }
    }

    fn surroundings(&mut self, p: &ProfileConfig, d: &ProfileConfig) {
        if p.cwd != d.cwd {
            self.set("cwd", p.cwd.to_string());
        }
        if p.umask != d.umask {
            self.set("umask", format!("{:04o}", p.umask));
        }
        self.unless("nice", &p.nice, &d.nice);
        self.unless("oom_score_adj", &p.oom_score_adj, &d.oom_score_adj);
        if !p.env.is_empty() {
            let list: Vec<String> = p.env.iter().map(|(n, v)| format!("{n}={v}")).collect();
            self.set("env", list);
        }
    }

    fn trust(&mut self, p: &ProfileConfig, d: &ProfileConfig) {
        if p.script_trust != d.script_trust {
            self.set(
                "script_trust",
                match p.script_trust {
                    ScriptTrust::Enforce => "enforce",
                    ScriptTrust::Warn => "warn",
                    ScriptTrust::Off => "off",
                },
            );
        }
        self.text_if("apparmor", p.apparmor.as_deref());
        self.text_if("selinux", p.selinux.as_deref());
        self.unless("allow_setuid", &p.allow_setuid, &d.allow_setuid);
        self.unless("root_semantics", &p.root_semantics, &d.root_semantics);
        if let Some(copy) = p.verified_copy {
            self.set("verified_copy", copy);
        }
        self.unless(
            "i_understand_unconfined",
            &p.i_understand_unconfined,
            &d.i_understand_unconfined,
        );
    }

    fn number(&mut self, key: &str, value: u64) {
        self.set(key, i64::try_from(value).unwrap_or(i64::MAX));
    }

    fn text_if(&mut self, key: &str, text: Option<&str>) {
        if let Some(text) = text {
            self.set(key, text);
        }
    }

    fn paths(&mut self, key: &str, paths: &[AbsolutePath]) {
        if !paths.is_empty() {
            self.set(key, absolute(paths));
        }
    }

    fn want(&mut self, key: &str, want: Want, default: Want) {
        if want != default {
            self.set(
                key,
                match want {
                    Want::Require => "require",
                    Want::Try => "try",
                    Want::Off => "off",
                },
            );
        }
    }

    fn protected<T: Copy + PartialEq>(
        &mut self,
        key: &str,
        value: Protected<T>,
        default: Protected<T>,
        word: impl Fn(T) -> &'static str,
    ) {
        if value == default {
            return;
        }
        let word = word(value.value);
        if value.required {
            self.set(key, word);
        } else {
            self.set(key, format!("{word} try"));
        }
    }

    fn ports(&mut self, key: &str, ports: &Ports) {
        match ports {
            Ports::Any => {}
            Ports::Only(list) if list.is_empty() => self.set(key, "none"),
            Ports::Only(list) => {
                let list: Vec<Value> = list.iter().map(|n| Value::from(u32::from(*n))).collect();
                self.set(key, Value::Array(list));
            }
        }
    }
}
