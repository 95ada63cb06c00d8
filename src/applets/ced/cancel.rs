//! `ced cancel REQID`: ends an asynchronous run on every host where it still goes on. Ours.

use std::collections::BTreeMap;
use std::path::PathBuf;

use argh::FromArgs;
use serde_json::{Value, json};

use crate::applets::ced::{Call, common, follow, show};
use crate::applets::{AppError, Context, Exit};
use crate::core::config::diagnostics::printable;
use crate::core::dispatch::cancel::{Reply, cancel};
use crate::core::terminal;
use crate::say;

/// End an asynchronous run on every host where it still goes on, then show it: ced cancel REQID
#[derive(FromArgs)]
#[argh(help_triggers("-h", "--help"))]
struct CancelArgs {
    /// configuration file (default /etc/ctrl-exec/ctrl-exec.toml, else ctrl-exec.conf)
    #[argh(option)]
    config: Option<PathBuf>,
    /// print the record as one JSON object, with what each host said to it under "cancel"
    #[argh(switch)]
    json: bool,
    /// request id, as 'ced run' and 'ced jobs' show it
    #[argh(positional)]
    reqid: String,
}

fn told(reply: &Reply) -> String {
    match (reply, reply.error()) {
        (Reply::Ended, _) => "had ended already".to_owned(),
        (_, None) => "being cancelled".to_owned(),
        (_, Some(error)) => format!("NOT CANCELLED: {}", printable(error)),
    }
}

pub(super) fn main(context: &Context, call: &Call) -> Result<Exit, AppError> {
    let args: CancelArgs = call.parse()?;
    let config = common::load_config(context, args.config.as_deref())?;
    let store = common::run_store(&config);
    let mut record = follow::find(&store, &args.reqid, args.json)?;
    let mut replies = BTreeMap::new();
    if !record.is_complete() {
        let agents = follow::agents(context, &config)?;
        let mut show = |host: &str, reply: &Reply| {
            if !args.json {
                say!("==> {}  [{}]", printable(host), told(reply));
            }
        };
        let cancelled = common::block_on(cancel(&agents, &store, record, &mut show))?;
        if let Some(error) = &cancelled.problem {
            common::warn_not_recorded(error, &cancelled.record.reqid);
        }
        (replies, record) = (cancelled.replies, cancelled.record);
    } else if !args.json {
        say!("Nothing to cancel: the run has ended on every host.");
    }
    if args.json {
        let mut shown = show::record_json(&record);
        let replies = replies.iter().map(|(host, reply)| {
            let mut object = json!({"status": reply.word()});
            if let Some(error) = reply.error() {
                object["error"] = error.into();
            }
            (host.clone(), object)
        });
        shown["cancel"] = Value::Object(replies.collect());
        say!("{shown}");
    } else {
        terminal::stdout_bytes(show::record(&record).as_bytes());
    }
    Ok(if replies.values().all(Reply::is_good) {
        Exit::Success
    } else {
        Exit::Failure
    })
}
