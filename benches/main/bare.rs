//! The least that such a service costs: axum with the one route, hyper's HTTP/1 and tokio's one thread, as `ced-api` has them, and nothing
//! of what it does besides. An example, so that `dist/static.sh --example` can build it as the binary is built; the bench plays it itself
//! when it is not told where that one lies.

#![allow(clippy::print_stdout)]

use std::net::Ipv4Addr;

use axum::routing::get;
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;

/// Serves on the port that is the last word of the command line, until it is killed.
///
/// # Panics
/// It cannot.
pub fn main() {
    let port: u16 = std::env::args()
        .next_back()
        .and_then(|word| word.parse().ok())
        .expect("the last word is the port");
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(serve(port));
}

async fn serve(port: u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .await
        .expect("a free port");
    println!("ready");
    let router = Router::new().route("/health", get(health));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn health() -> Json<serde_json::Value> {
    Json(serde_json::json!({"ok": true, "version": env!("CARGO_PKG_VERSION")}))
}
