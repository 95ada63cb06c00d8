//! What this executor can do, for the agent's `/capabilities`.

use super::house::House;

/// Features as JSON: the answer to [`crate::core::exec::frame::JobOrder::Hello`].
pub(super) fn features_json(_house: &House) -> Vec<u8> {
    todo!()
}
