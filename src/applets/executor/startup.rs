//! `serve`: everything before the first connection, in the order of spec/executor.md 2.4. Each failure is one sentence.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, Resource, Rlimit};

use super::house::{House, Unprivileged};
use super::listener::{Listener, Parts, SIGNALS};
use super::policy::Source;
use super::{IDENT, describe, operands, usage};
use crate::applets::{AppError, Context, Exit, notify};
use crate::complain;
use crate::core::activation::{self, Passed};
use crate::core::logging::{self, Action};
use crate::core::sandbox::cgroup::Hierarchy;
use crate::core::sandbox::features::Features;
use crate::core::sandbox::view::Mounts;
use crate::core::{sys, unix_socket};

/// Set (to anything) by the tests of the original.
const ALLOW_UNPRIVILEGED: &str = "CTRL_EXEC_EXEC_ALLOW_UNPRIV";

/// The words after the operands.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Options {
    unprivileged: Option<Unprivileged>,
    allow_root_peer: bool,
}

impl Options {
    fn parse(words: &[String]) -> Result<Self, AppError> {
        let mut options = Self::default();
        for word in words {
            match word.as_str() {
                "--unprivileged-test" => options.unprivileged = Some(Unprivileged::Careful),
                "--unprivileged-test=lax" => options.unprivileged = Some(Unprivileged::Lax),
                "--allow-root-peer" => options.allow_root_peer = true,
                _ => return Err(usage()),
            }
        }
        Ok(options)
    }
}

/// Whether a service manager has opened our socket.
fn is_passed(context: &Context) -> bool {
    let (pid, fds) = (context.var("LISTEN_PID"), context.var("LISTEN_FDS"));
    activation::count(std::process::id(), pid, fds) == 1
}

fn take_passed() -> Result<OwnedFd, String> {
    match activation::take(1)?.pop() {
        Some(Passed::Unix(socket)) => Ok(socket.into()),
        _ => {
            Err("the descriptor passed by LISTEN_FDS is not a listening unix stream socket".into())
        }
    }
}

/// # Errors
/// 1 for wrong words and for what the system refuses, 78 for what a restart would not mend.
pub(super) fn main(context: &Context, args: Vec<String>) -> Result<Exit, AppError> {
    let ([socket_path, config, allowlist, peer_user], options) = operands(args)?;
    let options = Options::parse(&options)?;
    // Before we leave the directory that they are relative to.
    let (socket_path, config, allowlist) = (
        absolute(socket_path)?,
        absolute(config)?,
        absolute(allowlist)?,
    );

    let passed = is_passed(context);
    sanitise(passed).map_err(|e| AppError::failed(format!("{IDENT}: cannot prepare: {e}")))?;
    logging::init(IDENT, context.log_sink());
    let by_environment = context.env.contains_key(ALLOW_UNPRIVILEGED);
    let unprivileged = rights(
        rustix::process::geteuid().is_root(),
        options,
        by_environment,
    )?;

    let mut source = Source::new(
        context.paths.clone(),
        config,
        allowlist,
        socket_path.clone(),
    );
    let cannot_read = |text| AppError::config(format!("{text}\n{IDENT}: cannot start"));
    let (policy, told) = source.load().map_err(cannot_read)?;
    for warning in told.warnings {
        complain!("{warning}");
    }
    let Some((uid, gid)) = sys::users::find_user(&peer_user) else {
        let text = format!("{IDENT}: unknown peer user '{}'", peer_user.escape_debug());
        return Err(AppError::config(text));
    };

    let failed = |text: String| AppError::failed(format!("{IDENT}: {text}"));
    let features = match unprivileged {
        None => Features::probe(),
        Some(_) => Features::unprivileged(),
    };
    if let (None, Err(why)) = (unprivileged, &features.mount_namespace) {
        let text = format!("scripts cannot be confined here: no mount namespace ({why})");
        return Err(failed(text));
    }
    let hierarchy = match unprivileged {
        None => Hierarchy::set_up(&policy.config.executor),
        Some(_) => Err("not used in the unprivileged test mode".to_owned()),
    };
    let directory = socket_path.parent().unwrap_or(Path::new("/"));
    let jobs = make_jobs(directory).map_err(failed)?;
    let mut mounts = Mounts::default();
    if unprivileged.is_none() {
        mounts.keep_views();
    }
    let house = House {
        protected: source.protected(&policy.config, &policy.allowlist),
        policy,
        features,
        hierarchy,
        mounts,
        unprivileged,
        jobs,
    };
    // From here on a signal waits until somebody listens to it.
    let signals = sys::wait::take_over_signals(&SIGNALS)
        .map_err(|e| failed(format!("cannot take over signals: {e}")))?;
    let (socket, place) = match passed {
        true => (take_passed().map_err(failed)?, None),
        false => {
            let access = unix_socket::Access {
                owner: Some((uid, gid)),
                mode: 0o600,
            };
            let (socket, place) = unix_socket::bind(&socket_path, access).map_err(failed)?;
            (socket, Some(place))
        }
    };

    Action::new("exec-start")
        .field("FEATURES", describe::feature_names(&house))
        .field("PEER_USER", &peer_user)
        .field("POLICY", &house.policy.hash)
        .field("SOCKET", socket_path.display())
        .info();
    describe::log_degraded(&house);
    let manager = context.var("NOTIFY_SOCKET");
    notify::tell(manager, "READY=1");
    Listener::new(Parts {
        socket,
        place,
        signals,
        peer_uid: uid,
        allow_root: options.allow_root_peer,
        source,
        house,
    })
    .run();
    notify::tell(manager, "STOPPING=1");
    Ok(Exit::Success)
}

pub(super) fn absolute(path: String) -> Result<PathBuf, AppError> {
    std::path::absolute(&path)
        .map_err(|e| AppError::failed(format!("{IDENT}: cannot use path '{path}': {e}")))
}

/// Whether we work without root, for tests.
fn rights(
    is_root: bool,
    options: Options,
    by_environment: bool,
) -> Result<Option<Unprivileged>, AppError> {
    match (is_root, options.unprivileged) {
        (true, None) => Ok(None),
        // It would run every script with all the rights that we have.
        (true, Some(_)) => Err(AppError::failed(format!(
            "{IDENT}: --unprivileged-test is not for root"
        ))),
        (false, Some(mode)) => Ok(Some(mode)),
        (false, None) if by_environment => Ok(Some(Unprivileged::Careful)),
        (false, None) => Err(AppError::failed(format!("{IDENT}: serve must run as root"))),
    }
}

/// Nothing of whoever started us reaches a script, or us (spec/executor.md 15.2).
fn sanitise(socket_passed: bool) -> io::Result<()> {
    sys::inherited::close_from(if socket_passed { 4 } else { 3 })?;
    sys::inherited::clear_environment();
    rustix::process::umask(Mode::from_raw_mode(0o077));
    std::env::set_current_dir("/")?;
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    rustix::process::setrlimit(Resource::Core, none)?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// Old results are removed by name, as root: whoever could put another directory in the place of ours would choose what is removed.
fn fixed(directory: &Path) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt as _;
    let ours = rustix::process::geteuid().as_raw();
    let real = std::fs::canonicalize(directory).map_err(|e| {
        format!(
            "no directory for the socket: '{}': {e}",
            directory.display()
        )
    })?;
    // Links on the way are somebody's too.
    for way in [directory, real.as_path()] {
        for dir in way.ancestors() {
            let meta = std::fs::symlink_metadata(dir)
                .map_err(|e| format!("cannot look at '{}': {e}", dir.display()))?;
            let open = !meta.is_symlink() && meta.mode() & 0o022 != 0 && meta.mode() & 0o1000 == 0;
            if open || ![0, ours].contains(&meta.uid()) {
                return Err(format!(
                    "others than root could replace '{}', above the socket: use a directory of root's (chown root, chmod go-w)",
                    dir.display()
                ));
            }
        }
    }
    Ok(())
}

/// Where detached runs keep their results: for us alone.
fn make_jobs(beside: &Path) -> Result<PathBuf, String> {
    use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
    let jobs = beside.join("jobs");
    fixed(beside)?;
    let made = std::fs::DirBuilder::new().mode(0o700).create(&jobs);
    if let Err(error) = made
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(format!("cannot make '{}': {error}", jobs.display()));
    }
    let meta = std::fs::symlink_metadata(&jobs)
        .map_err(|e| format!("cannot use '{}': {e}", jobs.display()))?;
    let ours = rustix::process::geteuid().as_raw();
    if !meta.is_dir() || meta.uid() != ours || meta.mode() & 0o077 != 0 {
        return Err(format!(
            "'{}' is not a directory of ours that is closed to others: move it away",
            jobs.display()
        ));
    }
    Ok(jobs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_follow_the_operands() {
        let parse = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
            Options::parse(&words)
        };
        assert_eq!(parse(&[]), Ok(Options::default()));
        let all = parse(&["--unprivileged-test=lax", "--allow-root-peer"]).unwrap();
        assert_eq!(all.unprivileged, Some(Unprivileged::Lax));
        assert!(all.allow_root_peer);
        assert_eq!(
            parse(&["--unprivileged-test=no"])
                .unwrap_err()
                .exit()
                .code(),
            1
        );
        assert!(parse(&["more"]).is_err());
    }

    #[test]
    fn results_are_kept_only_where_nobody_else_can_replace_the_directory() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("a/b");
        std::fs::create_dir_all(&inner).unwrap();
        let mode = |mode| {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(dir.path().join("a"), mode).unwrap();
        };
        mode(0o755);
        assert_eq!(make_jobs(&inner), Ok(inner.join("jobs")));
        mode(0o775);
        assert!(make_jobs(&inner).unwrap_err().contains("could replace"));
        mode(0o1777);
        assert_eq!(make_jobs(&inner), Ok(inner.join("jobs")));
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(dir.path().join("a"), Some(1234), None).unwrap();
            assert!(make_jobs(&inner).unwrap_err().contains("could replace"));
        }
    }

    #[test]
    fn who_is_not_root_needs_a_word_for_it() {
        let none = Options::default();
        let test = Options {
            unprivileged: Some(Unprivileged::Lax),
            ..none
        };
        assert_eq!(rights(true, none, true), Ok(None));
        assert_eq!(rights(false, test, false), Ok(Some(Unprivileged::Lax)));
        assert_eq!(rights(false, none, true), Ok(Some(Unprivileged::Careful)));
        let refused = rights(false, none, false).unwrap_err();
        assert_eq!(
            refused.message(),
            Some("ctrl-exec-exec: serve must run as root")
        );
        assert_eq!(refused.exit().code(), 1);
        assert!(rights(true, test, false).is_err());
    }
}
