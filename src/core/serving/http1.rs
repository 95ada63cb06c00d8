//! HTTP/1 for every server of ours, compiled once: streams, services and bodies are boxed.

use std::convert::Infallible;
use std::pin::Pin;

use axum::response::Response;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1::{Builder, Connection};
use hyper::service::Service;
use hyper_util::rt::TokioIo;

use crate::core::stream::BoxedStream;

/// Longest request line and headers together. What comes in one piece with the end of a head may be longer by that piece: whoever means
/// the limit looks again.
pub const MAX_HEAD: usize = 64 * 1024;

/// An answer in the making.
pub type Answering = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;
/// What answers the requests of a connection.
pub type Answerer = Box<
    dyn Service<Request<Incoming>, Response = Response, Error = Infallible, Future = Answering>
        + Send,
>;
/// One connection that speaks HTTP.
pub type Http = Connection<TokioIo<BoxedStream>, Answerer>;

/// Speaks HTTP over the stream. Its deadlines are those of the stream.
pub fn speak(stream: BoxedStream, answerer: Answerer) -> Http {
    Builder::new()
        .keep_alive(true)
        // A peer that has said all it wants to say may still wait for the answer.
        .half_close(true)
        .auto_date_header(false)
        .header_read_timeout(None)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), answerer)
}
