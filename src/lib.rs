//! One binary, several programs: a dispatcher CLI, an agent daemon and what they share.
//!
//! Arrows point down only: `main -> applets -> core -> core::sys`. `docs/architecture.md` is the tour.

pub mod applets;
pub mod core;
pub mod manual;
