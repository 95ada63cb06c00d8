//! Finding the record of a run, and bringing it up to date.

use std::time::Duration;

use serde_json::json;

use crate::applets::ced::{common, dispatch};
use crate::applets::{AppError, Context, Exit};
use crate::core::config::DispatcherConfig;
use crate::core::config::diagnostics::printable;
use crate::core::dispatch::follow::Agents;
use crate::core::registry::Registry;
use crate::core::runs::{Record, Store};
use crate::core::types::ReqId;
use crate::say;

/// The record of the request that was typed.
///
/// # Errors
/// There is none, or it cannot be read; with `as_json` that is said on stdout.
pub(super) fn find(store: &Store, word: &str, as_json: bool) -> Result<Record, AppError> {
    let (error, told) = match ReqId::new(word).map(|reqid| store.load(&reqid)) {
        Ok(Ok(Some(record))) => return Ok(record),
        Ok(Err(error)) => {
            let error = error.to_string();
            (error.clone(), error)
        }
        Ok(Ok(None)) | Err(_) => (
            "not found".to_owned(),
            format!("No such request: {}", printable(word)),
        ),
    };
    if as_json {
        say!("{}", json!({"ok": 0, "error": error, "reqid": word}));
        return Err(AppError::silent(Exit::Failure));
    }
    Err(AppError::failed(told))
}

/// Who can be asked about a run.
pub(super) fn agents(context: &Context, config: &DispatcherConfig) -> Result<Agents, AppError> {
    Ok(Agents {
        client: common::client(context, config)?,
        registry: Registry::new(config.registry_dir.clone()),
        slots: dispatch::slots(config),
    })
}

/// Asks every pending host once and takes in what they say.
pub(super) async fn refresh(
    agents: &Agents,
    store: &Store,
    record: Record,
    limit: Option<Duration>,
) -> Record {
    let merged = agents.refresh(store, record, limit).await;
    if let Some(error) = merged.problem {
        common::warn_not_recorded(&error, &merged.record.reqid);
    }
    merged.record
}
