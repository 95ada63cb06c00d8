//! Rotation of the dispatcher's own certificate, so that no crash and no agent that is away ever loses the way (spec/dispatcher.md 16, 22.1).
//!
//! Agents trust serials. The new pair is made beside the old one and announced by calls that still present the old one; each agent is then
//! called with the pair that it is known to trust; the old serial is withdrawn, agent by agent and with confirmation, once the overlap
//! is over; and the old pair is kept until nobody needs it.
//!
//! ```text
//!          rotate-cert, or due                       at least one agent has confirmed,
//!               |                                    or there is none, or the overlap is over
//!   settled ----+---> announcing ----------------------------+---> settled, with the old serial under `retiring`
//!               |     new pair kept, `next_serial` written,  |     new pair at the configured paths
//!               |     agents: pending -> current             |     agents: pending (-> stale after the overlap) -> current
//!               |                                            |
//!               +--------------- one at a time               +---> overlap over: withdraw the old serial from every agent that is
//!                                                                  current; the last one has confirmed, or the old certificate has
//!                                                                  expired: the old pair goes
//! ```
//!
//! There is no program counter. [`decide`] looks at what is there (state file, pairs, registry, clock) and names the next step; a step can
//! be repeated without harm; [`Rotation::advance`] carries out steps until none is left that can succeed now. So resuming after a crash is the
//! same as going on, and every prefix of the effects is tested (`tests.rs`). Failure points:
//!
//! | after | what is there | what follows |
//! |---|---|---|
//! | the new pair is kept | a pair that nobody knows of | forgotten by the next pass, or used by the rotation that goes on |
//! | `next_serial` is written | nobody has been told | announcing begins |
//! | an agent has taken it, its answer is lost | the registry still says pending | it is told again; until then it is called with the old pair, which it trusts too |
//! | the new key is in place, the certificate not | two halves | the kept pairs are used; placing is repeated |
//! | both are in place, the state not | the state says announcing | the state follows |
//! | an agent has dropped the old serial, its answer is lost | it stands under `retiring` | it is told again, which it answers with success |
//!
//! What an agent must never be asked: to add a serial with a pair that it does not trust (it would refuse), or to drop the serial that the
//! call presents (it would lock us out).

mod decide;
mod drive;
mod state;

pub use decide::{Agent, Kept, Step, Tried, View, decide};
pub use drive::{Announced, Issuer, Report, Rotation, RotationError};
pub use state::{Retiring, State, StateError};

#[cfg(test)]
mod tests;
