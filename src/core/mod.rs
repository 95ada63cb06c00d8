//! What the programs share. Knows no applet, prints nothing (but for the log), never exits.

pub mod authhook;
pub mod ca_change;
pub mod client;
pub mod clock;
pub mod config;
pub mod durable;
pub mod exec;
pub mod hostname;
pub mod http_client;
pub mod jobs;
pub mod keyring;
pub mod listen;
pub mod locks;
pub mod logging;
pub mod maintenance;
pub mod pairing;
pub mod paths;
pub mod pki;
pub mod profile;
pub mod ratelimit;
pub mod registry;
pub mod renewal;
pub mod revocation;
pub mod rotation;
pub mod runs;
pub mod sandbox;
pub mod secure_open;
pub mod sys;
pub mod terminal;
#[cfg(test)]
pub(crate) mod testing;
pub mod tls;
pub mod trust;
pub mod types;
pub mod wire;
