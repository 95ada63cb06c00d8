//! `ced api` against a server that says what the API says (spec/api.md), and what it does not.

#[path = "../common/mod.rs"]
mod common;

mod faults;
mod runs;
mod settings;
mod stub;
mod tls;
mod verbs;
