//! What monitoring systems can be told in numbers: families of series in Prometheus' text format 0.0.4 (spec/operations.md 11.5 has the events
//! that they stand for).
//!
//! Every name is in [`FAMILIES`]. What a program counts while it runs lives in one plain struct per program ([`ApiMetrics`],
//! [`AgentMetrics`]); what lies in files is read when somebody asks ([`fleet`]), so nothing costs anything while nobody scrapes but an
//! addition under a lock of its own family.
//!
//! The number of series is bounded whatever peers send: labels are words of an enum, or names of scripts or agents with a bound on how
//! many different ones a family takes (see [`MAX_VALUES`]).

mod agent;
#[cfg(feature = "dispatcher")]
mod api;
mod common;
mod families;
#[cfg(feature = "dispatcher")]
mod fleet;
#[cfg(feature = "dispatcher")]
mod gather;
mod series;
mod text;

pub use agent::{AgentConnection, AgentMetrics, AgentNow, AgentRefusal, RunEnd};
#[cfg(feature = "dispatcher")]
pub use api::{ApiMetrics, ApiRefusal, OpenConnection, Outcome};
pub use common::RunMode;
pub use families::FAMILIES;
#[cfg(feature = "dispatcher")]
pub use fleet::{AgentState, FleetState, RotationState, Waiting, What};
#[cfg(feature = "dispatcher")]
pub use gather::fleet;
pub use series::{Counter, Gauge, Histogram, MAX_VALUES};
pub use text::{Family, Kind, Page};

/// `Content-Type` of the answer to a scrape.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
