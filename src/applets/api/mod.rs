//! `ced-api`: the dispatcher as an HTTP service (spec/api.md). Same registry, records, locks and hook as the command line.
//!
//! ```text
//! listener    TCP, TLS or a unix socket; handshakes in tasks of their own, each with a deadline
//! connection  HTTP/1.1 or HTTP/2; a connection above the cap is only told so
//! gate        headers, size, body, who asks (throttle), gate 1, route              refuses in the order of spec/api.md 3
//! handlers    fields, gate 2, registry, locks, agents, record, answer
//! ```
//!
//! A request that is being worked on has a task of its own: a client that goes away does not end a run, and its record is kept.

mod answer;
mod call;
mod connection;
mod fields;
mod gate;
mod handlers;
mod house;
mod http2;
mod identities;
mod listener;
mod material;
mod openapi;
mod owner;
mod path;
mod peer;
mod places;
mod rarely;
mod raw;
mod reload;
mod reply;
mod routes;
mod serve;
mod sockets;
mod state;
mod stream;
mod throttle;
mod untold;
mod wire;

use std::path::PathBuf;

use argh::FromArgs;

use crate::applets::{AppError, Context, Exit, VERSION, cli};
use crate::core::logging;
use crate::say;

/// Name in the log and in the index.
pub(crate) const IDENT: &str = "ctrl-exec-api";

/// Serve the dispatcher's HTTP API: ping, run, status and discovery of paired hosts
#[derive(FromArgs)]
#[argh(help_triggers("-h", "--help"))]
struct ApiArgs {
    /// configuration file (default /etc/ctrl-exec/ctrl-exec.toml, else ctrl-exec.conf)
    #[argh(option)]
    config: Option<PathBuf>,
}

/// Entry of the applet; `args` are the words after the program's name.
///
/// # Errors
/// Status 78 for what a restart would not mend, 1 when an address cannot be had.
pub fn main(context: &Context, args: Vec<String>) -> Result<Exit, AppError> {
    const COMMAND: &[&str] = &["ced-api"];
    let words = cli::normalise(args, &[cli::value("config")])?;
    if words.help {
        return Err(cli::help::<ApiArgs>(COMMAND));
    }
    if words.version {
        say!("{IDENT} {VERSION}");
        return Ok(Exit::Success);
    }
    let args: ApiArgs = cli::parse(COMMAND, &words.for_argh(&["config"]).0)?;
    logging::init_in_background(IDENT, context.log_sink())
        .map_err(|e| AppError::failed(format!("Cannot start a thread for the log: {e}")))?;
    let done = serve::serve(context, args.config);
    logging::flush();
    done
}
