//! Whether a dispatcher is well: what `ced health` answers to a monitoring system (spec/operations.md 11.5). No agent is contacted.
//!
//! Judged by the same [`FleetState`] that the metrics show, so that both agree; what else has to be tried out is in [`Probes`].

mod judge;
mod probe;

pub use judge::judge;
pub use probe::{ask_api, probe};

use crate::core::config::DispatcherConfig;

/// The words and the order of monitoring plugins, but that a failure outweighs ignorance.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Status {
    Ok,
    /// Not known, because what it would be judged by cannot be read.
    Unknown,
    Warning,
    Critical,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Check {
    pub name: &'static str,
    pub status: Status,
    /// A sentence.
    pub detail: String,
}

impl Check {
    pub fn new(name: &'static str, status: Status, detail: impl Into<String>) -> Self {
        Self {
            name,
            status,
            detail: detail.into(),
        }
    }
}

/// The status of the whole.
pub fn worst(checks: &[Check]) -> Status {
    let statuses = checks.iter().map(|check| check.status);
    statuses.max().unwrap_or(Status::Unknown)
}

/// From how many days left a certificate is a problem.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Fewer days than this: it should have been renewed long ago.
    pub warning: i64,
    pub critical: i64,
}

impl Limits {
    /// 30 and 7 days; less where certificates are made for so short a time that a new one would be a problem at once.
    pub fn of(config: &DispatcherConfig) -> Self {
        let life = i64::from(config.cert_days);
        Self {
            warning: (life / 3).min(30),
            critical: (life / 10).min(7),
        }
    }
}

/// What has to be tried out.
#[derive(Clone, Debug)]
pub struct Probes {
    /// Whether records of runs and locks can be written, each with its directory.
    pub directories: Vec<(&'static str, Result<(), String>)>,
    /// Whether the auth hook can be started; `None`: there is none.
    pub hook: Option<Result<(), String>>,
    /// What the API has said; `None`: nobody wants to know.
    pub api: Option<Result<String, String>>,
}
