//! Pairing end to end: real listeners, agents and operators' commands over loopback, with strangers and attackers in between
//! (spec/pairing.md 5-7, 10-13, 16, 18, 19).

#[path = "../common/mod.rs"]
mod common;

mod again;
mod attacks;
mod background;
mod faults;
mod kit;
mod requests;
mod session;
mod wire;
