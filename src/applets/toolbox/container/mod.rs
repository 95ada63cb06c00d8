//! `ctrl-exec container`: one process that is a whole container, without a shell, an entry script or a second init
//! (spec/operations.md 8, 16.4).

mod accounts;
mod health;
mod restart;
mod roles;
mod seed;
mod supervisor;

use self::supervisor::Supervisor;
use crate::applets::{AppError, Context, Exit};
use crate::core::logging;
use crate::{complain, say};

/// Name in the log.
const IDENT: &str = "ctrl-exec-container";

const USAGE: &str = "\
Usage: ctrl-exec container agent|dispatcher
       ctrl-exec container healthcheck [agent|dispatcher]

agent       pair if need be (DISPATCHER_HOST), then serve: the agent, and the executor beside it
dispatcher  set up what is missing, then serve: the API, and the maintenance of the fleet beside it
healthcheck 0: the container does its work; 1: it does not, with the reason

Variables, at the first start only (later the files on the volumes count):
  dispatcher  API_BIND (127.0.0.1), API_PORT (7445), API_AUTH_DEFAULT (deny), READ_TIMEOUT (60)
  agent       AGENT_ENV, AGENT_ROLE: tags
Variables, as long as the agent is not paired:
  DISPATCHER_HOST, DISPATCHER_FINGERPRINT (as 'ced pairing-mode' shows it; without it nobody vouches for the dispatcher)
Volumes: /etc/ctrl-exec and /var/lib/ctrl-exec; /etc/ctrl-exec-agent, /var/lib/ctrl-exec-agent and /opt/ctrl-exec-scripts";

pub(super) fn main(context: &Context, args: Vec<String>) -> Result<Exit, AppError> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["--help" | "-h", ..] | [_, "--help" | "-h"] => Err(AppError::help(USAGE)),
        ["agent"] => run(context, roles::agent),
        ["dispatcher"] => run(context, roles::dispatcher),
        ["healthcheck"] => {
            let role = health::role_of_first_process();
            Ok(healthcheck(context, role.as_deref().unwrap_or_default()))
        }
        ["healthcheck", role] => Ok(healthcheck(context, role)),
        _ => Err(AppError::usage(USAGE)),
    }
}

type Role = fn(&Context, &Supervisor<'_>) -> Result<Exit, AppError>;

fn run(context: &Context, role: Role) -> Result<Exit, AppError> {
    // Before anything else: the kernel forgets signals that the first process of a container does not want to know of.
    let supervisor = Supervisor::new(context)?;
    logging::init(IDENT, supervisor.sink());
    role(context, &supervisor)
}

fn healthcheck(context: &Context, role: &str) -> Exit {
    let found = match role {
        "agent" => health::agent(context),
        "dispatcher" => health::dispatcher(context),
        _ => Err("say which: healthcheck agent or healthcheck dispatcher".to_owned()),
    };
    match found {
        Ok(text) => {
            say!("{text}");
            Exit::Success
        }
        Err(why) => {
            complain!("{why}");
            Exit::Failure
        }
    }
}
