//! A connection of any kind. Boxed: what speaks HTTP over it is compiled once, and not for each kind of stream.

use std::any::Any;

use tokio::io::{AsyncRead, AsyncWrite};

/// A connection of any kind.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + Any {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + Any> Stream for T {}
pub type BoxedStream = Box<dyn Stream>;

/// The stream itself, for whoever knows what it was before it was boxed; `None` for any other.
pub fn unboxed<S: Stream>(stream: BoxedStream) -> Option<S> {
    let stream: Box<dyn Any> = stream;
    stream.downcast().ok().map(|stream| *stream)
}
