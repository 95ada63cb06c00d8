//! The dispatcher's side of port 7443: one exchange with one agent (`exchange`), what goes wrong and how it is told (`error`), and many
//! exchanges at once (`fanout`).

pub mod error;
pub mod exchange;
pub mod fanout;
pub mod fleet;
pub mod open;
pub mod peer;
