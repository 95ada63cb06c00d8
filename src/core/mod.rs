//! What the programs share. Knows no applet, prints nothing (but for the log), never exits.

pub mod authhook;
pub mod client;
pub mod clock;
pub mod config;
pub mod durable;
pub mod exec;
pub mod hostname;
pub mod jobs;
pub mod listen;
pub mod locks;
pub mod logging;
pub mod pairing;
pub mod paths;
pub mod pki;
pub mod profile;
pub mod ratelimit;
pub mod registry;
pub mod runs;
pub mod sandbox;
pub mod secure_open;
pub mod sys;
pub mod terminal;
pub mod tls;
pub mod trust;
pub mod types;
pub mod wire;
