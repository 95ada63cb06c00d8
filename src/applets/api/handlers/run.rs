//! In the making.

use axum::response::Response;

use crate::applets::api::call::Call;
use crate::applets::api::reply;

pub(in crate::applets::api) async fn run(_: Call) -> Response {
    reply::not_found("")
}
