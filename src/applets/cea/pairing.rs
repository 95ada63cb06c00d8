//! `cea request-pairing` (spec/agent.md 17).

use std::path::PathBuf;

use crate::applets::{AppError, Context, Exit};

/// The options of the mode as they were typed; none is checked yet.
#[derive(Clone, Debug, Default)]
#[allow(dead_code, reason = "the pairing client reads them")]
pub(super) struct Options {
    pub(super) config: Option<PathBuf>,
    pub(super) dispatcher: Option<String>,
    pub(super) port: Option<String>,
    pub(super) background: bool,
    pub(super) timeout: Option<String>,
    pub(super) lookup_by: Option<String>,
}

/// Asks a dispatcher to pair this host.
///
/// # Errors
/// Pairing is not possible or was refused.
pub(super) fn request(_context: &Context, options: &Options) -> Result<Exit, AppError> {
    Err(AppError::failed(format!(
        "Pairing failed: this build cannot pair with '{}'",
        options.dispatcher.as_deref().unwrap_or_default()
    )))
}
