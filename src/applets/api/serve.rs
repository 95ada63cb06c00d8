//! Start, signals, end.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::applets::api::gate;
use crate::applets::api::peer::{Origin, Peer};
use crate::applets::api::state::{Api, LoadError, Snapshot};
use crate::applets::{AppError, Context, Exit};
use crate::core::listen;
use crate::{complain, say};

pub(super) fn serve(context: &Context, file: Option<PathBuf>) -> Result<Exit, AppError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| AppError::failed(format!("Cannot start the runtime: {e}")))?;
    let done = runtime.block_on(run(context, file));
    runtime.shutdown_background();
    done
}

async fn run(context: &Context, file: Option<PathBuf>) -> Result<Exit, AppError> {
    let (snapshot, warnings) = Snapshot::load(context, file.as_ref()).map_err(|e| match e {
        LoadError::Config(text) | LoadError::Material(text) => AppError::config(text),
    })?;
    for warning in warnings {
        complain!("{warning}");
    }
    let settings = snapshot.config.api.clone();
    let cannot = |e: std::io::Error| {
        AppError::failed(format!(
            "Cannot listen on {}:{}: {e}",
            settings.bind, settings.port
        ))
    };
    let listener = listen::listen(Some(settings.bind), settings.port)
        .and_then(TcpListener::from_std)
        .map_err(cannot)?;
    say!("listening on {}", listener.local_addr().map_err(cannot)?);
    let api = Arc::new(Api::new(context.clone(), file, snapshot).map_err(AppError::failed)?);
    loop {
        let (stream, address) = listener.accept().await.map_err(cannot)?;
        let api = api.clone();
        let peer = Peer {
            origin: Origin::Inet(address.ip()),
            certificate: None,
        };
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let (api, peer) = (api.clone(), peer.clone());
                async move { Ok::<_, Infallible>(gate::answer(&api, peer, request).await) }
            });
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}
