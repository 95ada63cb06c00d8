//! Replacing the CA of a fleet without pairing anybody again (spec/swarm.md PKI-32).
//!
//! Both CAs are trusted while the change goes on. An agent believes in the new CA because the old one has endorsed it, in a certificate that is
//! made once, at the start; after that the old key is not needed any more.
//!
//! ```text
//!           start                        our certificate is of the new CA          finish: everybody shows
//!             |                          and in use (core/rotation)                a certificate of the new CA
//!   none -----+---> announcing --------------------+---> changed -----------------------+---> withdrawing ---> none
//!                   both CAs trusted here          |     the new CA signs                     the old CA is not trusted
//!                   agents: told of the new CA     |     agents: told, then renewed           here any more; agents are
//!                   our next certificate: signed   |                                          told to drop it
//!                   by the new CA, announced       |
//!                   |
//!                   +--- abort ---> aborting ---> none: agents are told to drop the new CA
//! ```
//!
//! Nobody is waited for: an agent that is away is called with the older certificate that it trusts (it is kept as long as somebody needs
//! it), and told of the new CA, then of the new serial, then renewed, whenever it comes back. Only `finish` insists on everybody.
//!
//! As in a rotation there is no program counter: [`Change::advance`] does what the state and the registry show to be missing. Failure points:
//!
//! | after | what is there | what follows |
//! |---|---|---|
//! | the new CA's files are made | a directory that nobody refers to | `start` makes them anew |
//! | the state is written | one CA trusted here | the next pass adds the other |
//! | an agent trusts the new CA, its answer is lost | the registry does not know | it is told again, which changes nothing |
//! | `ca.key` is the new one, `ca.crt` in the old order | both are in `ca.crt`; who signs is told by the key | the next pass puts it in order |
//! | the old CA is struck off `ca.crt`, agents not told | agents trust both | they are told by every pass |

mod drive;
mod state;
mod tell;

pub use drive::{Change, ChangeError, Lagging, Outcome, why_not};
pub use state::{Phase, State};

#[cfg(test)]
mod tests;
