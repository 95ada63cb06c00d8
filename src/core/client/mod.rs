//! The dispatcher's side of port 7443: one exchange with one agent (`exchange`), over a connection of its own or one that is kept (`connection`,
//! `pool`), what goes wrong and how it is told (`error`), many exchanges at once (`fanout`), and how much memory answers may take (`budget`).

pub(crate) mod answer;
pub mod budget;
mod connection;
pub mod error;
pub mod exchange;
pub mod fanout;
pub mod fleet;
pub mod open;
pub mod peer;
pub mod pool;
