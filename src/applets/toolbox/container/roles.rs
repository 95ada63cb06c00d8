//! What a container of each role consists of, and what it prepares at its start (spec/operations.md 8.1, 16.4).

use std::path::{Path, PathBuf};

use rustix::thread::CapabilitySet;

use super::supervisor::{Service, Supervisor};
use super::{accounts, seed};
use crate::applets::{AppError, Context, Exit, NO_EXECUTOR};
use crate::complain;
use crate::core::config::{self, AgentConfig, DispatcherConfig};
use crate::core::durable::{self, Owner};
use crate::core::hostname;
use crate::core::logging::Action;
use crate::core::sandbox::features::Features;
use crate::core::trust::TrustMap;

/// What the executor cannot do without, with the names that container runtimes take.
const EXECUTOR_NEEDS: [(CapabilitySet, &str); 6] = [
    (CapabilitySet::SYS_ADMIN, "SYS_ADMIN"),
    (CapabilitySet::SETUID, "SETUID"),
    (CapabilitySet::SETGID, "SETGID"),
    (CapabilitySet::SETPCAP, "SETPCAP"),
    (CapabilitySet::CHOWN, "CHOWN"),
    (CapabilitySet::KILL, "KILL"),
];

/// `ced-api`, and `ced maintain` beside it.
pub(super) fn dispatcher(context: &Context, supervisor: &Supervisor<'_>) -> Result<Exit, AppError> {
    syslog_host(context);
    let api = accounts::service(context, "ctrl-exec")?;
    let group = api.map(|(_, gid)| gid);
    let paths = &context.paths;
    let etc = paths.dispatcher_etc();
    make_dir(&etc, 0o750, group)?;
    let host = hostname::short(context.var("CTRL_EXEC_HOSTNAME"));
    let (toml, conf) = (paths.dispatcher_toml(), paths.dispatcher_conf());
    if toml.exists() || conf.exists() {
        not_read_again(context, seed::DISPATCHER_VARIABLES);
    } else {
        let hook = paths.resolve("/etc/ctrl-exec/auth-hook").exists();
        let text = seed::dispatcher(|name| context.var(name), &host, hook);
        write(&toml, text, group)?;
    }
    for file in [&toml, &conf] {
        share(file, group);
    }
    let config = config::load_dispatcher(paths, None, &host)
        .map_err(|e| AppError::config(e.to_string()))?
        .value;
    make_dir(&paths.dispatcher_state(), 0o2770, group)?;
    for dir in [
        &config.registry_dir,
        &config.pairing_dir,
        &config.locks_dir,
        &config.runs_dir,
    ] {
        durable::create_shared_dir(dir).map_err(failed)?;
    }
    for words in set_up(&config) {
        supervisor.run(&helper("ced", words))?;
    }
    if let Some(owner) = api {
        accounts::give(&config.key, owner);
    }
    let mut maintenance = helper("ced", &["maintain", "--daemon"]);
    maintenance.is_main = false;
    supervisor.supervise(&[
        maintenance,
        Service {
            user: api,
            is_main: true,
            ..helper("ced-api", &[])
        },
    ])
}

/// What is not there is made; what is there is never replaced.
fn set_up(config: &DispatcherConfig) -> Vec<&'static [&'static str]> {
    let mut steps: Vec<&[&str]> = Vec::new();
    if !config.ca_dir.join("ca.crt").exists() && !config.ca.exists() {
        steps.push(&["setup-ca"]);
    }
    if !config.cert.exists() || !config.key.exists() {
        steps.push(&["setup-ctrl-exec"]);
    }
    steps
}

/// `cea serve`, and the executor beside it where the configuration wants one.
pub(super) fn agent(context: &Context, supervisor: &Supervisor<'_>) -> Result<Exit, AppError> {
    syslog_host(context);
    let front = accounts::service(context, "ctrl-exec-agent")?;
    let group = front.map(|(_, gid)| gid);
    let paths = &context.paths;
    let (toml, conf) = (paths.agent_toml(), paths.agent_conf());
    make_dir(&paths.agent_etc(), 0o750, group)?;
    if toml.exists() || conf.exists() {
        not_read_again(context, seed::AGENT_VARIABLES);
    } else {
        let text = seed::agent(|name| context.var(name));
        write(&toml, text, group)?;
        let scripts = paths.resolve(seed::SCRIPTS_DIR);
        make_dir(&scripts, 0o755, group)?;
    }
    let (list, old_list) = (paths.scripts_toml(), paths.scripts_conf());
    if !list.exists() && !old_list.exists() {
        write(&list, Ok(seed::ALLOWLIST.to_owned()), group)?;
    }
    let config = config::load_agent(paths, None)
        .map_err(|e| AppError::config(e.to_string()))?
        .value;
    make_dir(&paths.agent_state(), 0o750, None)?;
    for file in [&toml, &conf, &list, &old_list] {
        share(file, group);
    }
    let paired = config.cert.exists() && config.key.exists() && config.ca.exists();
    if !paired {
        pair(context, supervisor)?;
    }
    for file in [&config.cert, &config.key, &config.ca] {
        share(file, group);
    }
    trusts_somebody(&config);
    if let Some(owner) = front {
        accounts::give_tree(&paths.agent_state(), owner);
    }
    // A certificate that was renewed while the last container ran: only root can put it into place.
    supervisor.run(&helper("cea", &["promote-cert"]))?;

    let mut services = Vec::new();
    let mut env = Vec::new();
    if let Some(socket) = &config.executor_socket {
        match executor_is_possible() {
            Ok(()) => services.push(executor(&config, socket, first(list, old_list))?),
            Err(why) => {
                complain!(
                    "container: no executor can work here, so every run is refused: {why}. Or write executor_socket = \"0\" into '{}': scripts \
                     then run as the agent's own user, without profiles",
                    config.source.display()
                );
                Action::new("no-executor").field("REASON", &why).err();
                env.push((NO_EXECUTOR, why));
            }
        }
    }
    services.push(Service {
        user: front,
        env,
        is_main: true,
        ..helper("cea", &["serve"])
    });
    supervisor.supervise(&services)
}

/// Asks to be paired and waits for the answer; then the agent goes on to serve.
fn pair(context: &Context, supervisor: &Supervisor<'_>) -> Result<(), AppError> {
    let Some(dispatcher) = context.var("DISPATCHER_HOST") else {
        return Err(AppError::failed(
            "container: this agent is not paired, and the variable DISPATCHER_HOST does not say with whom it should be: set it to the name \
             or address of the dispatcher (-e DISPATCHER_HOST=NAME). If it was paired before, its volumes are missing: /etc/ctrl-exec-agent \
             and /var/lib/ctrl-exec-agent",
        ));
    };
    let mut request = helper("cea", &["request-pairing", "--dispatcher", dispatcher]);
    if let Some(fingerprint) = context.var("DISPATCHER_FINGERPRINT") {
        let option = ["--dispatcher-fingerprint", fingerprint];
        request.words.extend(option.map(str::to_owned));
    }
    complain!(
        "container: not paired; asking '{dispatcher}'. There: ced list-requests, ced approve ID"
    );
    supervisor.run(&request)
}

/// The certificate alone is worth nothing: the map says which dispatchers count.
fn trusts_somebody(config: &AgentConfig) {
    let map = &config.trusted_dispatchers_path;
    // What cannot be read is told of by the agent itself.
    if TrustMap::load(map).is_ok_and(|map| map.is_empty()) {
        complain!(
            "container: paired but trusts nobody: '{}' names no dispatcher, so every request will be refused. Was its volume lost? Keep the \
             directory on one, and pair again: remove '{}' and start the container",
            map.display(),
            config.cert.display()
        );
        Action::new("trust-empty")
            .field("PATH", map.display())
            .err();
    }
}

fn executor(config: &AgentConfig, socket: &Path, list: PathBuf) -> Result<Service, AppError> {
    if let Some(dir) = socket.parent() {
        durable::create_dir(dir, 0o755).map_err(failed)?;
    }
    let text = |path: &Path| path.display().to_string();
    let words = [
        "serve".to_owned(),
        text(socket),
        text(&config.source),
        text(&list),
        "ctrl-exec-agent".to_owned(),
    ];
    Ok(Service {
        words: words.into(),
        is_main: false,
        ..helper("ctrl-exec-exec", &[])
    })
}

/// Root with its capabilities, in a place where it may mount.
fn executor_is_possible() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("the executor needs root, and this container runs as another user".to_owned());
    }
    let held =
        rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    let missing: Vec<&str> = EXECUTOR_NEEDS
        .iter()
        .filter(|(needed, _)| !held.contains(*needed))
        .map(|(_, name)| *name)
        .collect();
    if !missing.is_empty() {
        return Err(format!(
            "this container lacks {} (cap_add: {})",
            missing
                .iter()
                .map(|name| format!("CAP_{name}"))
                .collect::<Vec<_>>()
                .join(", "),
            missing.join(", ")
        ));
    }
    Features::probe().mount_namespace.map_err(|why| {
        format!(
            "scripts cannot be confined here: no mount namespace ({why}); the seccomp or AppArmor profile of the container forbids it \
             (security_opt: apparmor=unconfined)"
        )
    })
}

/// Nothing that somebody has asked for is silently not done.
fn syslog_host(context: &Context) {
    if let Some(host) = context.var("SYSLOG_HOST") {
        complain!(
            "container: SYSLOG_HOST is '{}', but this program forwards no log lines to a collector: they go to stdout, for the log driver of \
             the container runtime (SYSLOG_PORT is not used either)",
            host.escape_debug()
        );
        Action::new("syslog-unsupported")
            .field("SYSLOG_HOST", host)
            .warning();
    }
}

fn not_read_again(context: &Context, variables: &[&str]) {
    let set: Vec<&str> = variables
        .iter()
        .copied()
        .filter(|name| context.var(name).is_some())
        .collect();
    if !set.is_empty() {
        complain!(
            "container: the configuration is there already, so {} counts no more: edit the file instead",
            set.join(", ")
        );
    }
}

/// A program of ours as whoever we are, without anything of its own.
fn helper(applet: &'static str, words: &[&str]) -> Service {
    Service {
        applet,
        words: words.iter().map(|word| (*word).to_owned()).collect(),
        user: None,
        env: Vec::new(),
        is_main: true,
    }
}

fn write(path: &Path, text: Result<String, String>, group: Option<u32>) -> Result<(), AppError> {
    let text = text.map_err(|why| AppError::config(format!("container: {why}")))?;
    let owner = Owner {
        uid: None,
        gid: group,
    };
    durable::prepare(path, text.as_bytes(), 0o640, owner)
        .and_then(|file| file.commit())
        .map_err(failed)?;
    complain!("container: wrote {}", path.display());
    Ok(())
}

fn make_dir(path: &Path, mode: u32, group: Option<u32>) -> Result<(), AppError> {
    durable::create_dir(path, mode).map_err(failed)?;
    share(path, group);
    Ok(())
}

fn share(path: &Path, group: Option<u32>) {
    if let Some(gid) = group {
        accounts::share(path, gid);
    }
}

fn first(toml: PathBuf, conf: PathBuf) -> PathBuf {
    if toml.exists() { toml } else { conf }
}

fn failed(error: impl std::fmt::Display) -> AppError {
    AppError::failed(format!("container: {error}"))
}
