//! Tasks of one kind. The runtime is compiled anew for each type of a future or closure that is handed to it, some kilobytes every time;
//! boxed, all of them are one type. What it costs is one allocation or two for each task.

use std::any::Any;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use tokio::runtime::Runtime;
use tokio::task::{JoinError, JoinHandle};

/// The result of a task, until whoever knows its type takes it back.
pub type Parcel = Box<dyn Any + Send>;
/// What a task does.
pub type Work<R> = Pin<Box<dyn Future<Output = R> + Send>>;

/// A task that has been started. Dropped, it goes on by itself.
#[derive(Debug)]
pub struct Task<T> {
    handle: JoinHandle<Parcel>,
    result: PhantomData<fn() -> T>,
}

/// Starts a task on the runtime, as `tokio::spawn` does.
pub fn spawn<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Task<T> {
    let work: Work<Parcel> = Box::pin(async move { pack(work.await) });
    Task::of(tokio::spawn(work))
}

/// Starts work that may wait for the disk, on a thread that nobody else waits for, as `tokio::task::spawn_blocking` does.
pub fn spawn_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Task<T> {
    let work: Box<dyn FnOnce() -> Parcel + Send> = Box::new(move || pack(work()));
    Task::of(tokio::task::spawn_blocking(work))
}

/// Runs a future to its end on this thread.
pub fn block_on<T>(runtime: &Runtime, work: impl Future<Output = T>) -> T {
    let mut result = None;
    drive(runtime, pin!(async { result = Some(work.await) }));
    match result {
        Some(result) => result,
        None => unreachable!("the work above has come to its end"),
    }
}

fn drive(runtime: &Runtime, work: Pin<&mut dyn Future<Output = ()>>) {
    runtime.block_on(work);
}

/// Packs a result up. No allocation for `()`.
pub fn pack<T: Send + 'static>(result: T) -> Parcel {
    Box::new(result)
}

/// The result out of a parcel that [`pack`] has made of the same type.
pub fn unpack<T: 'static>(parcel: Parcel) -> T {
    match parcel.downcast() {
        Ok(result) => *result,
        Err(_) => unreachable!("a parcel is opened as what was packed"),
    }
}

impl<T> Task<T> {
    fn of(handle: JoinHandle<Parcel>) -> Self {
        Self {
            handle,
            result: PhantomData,
        }
    }

    /// Ends the task where it next waits.
    pub fn abort(&self) {
        self.handle.abort();
    }
}

impl<T: 'static> Future for Task<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let ended = ready!(Pin::new(&mut self.handle).poll(cx));
        Poll::Ready(ended.map(unpack))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn results_come_back_as_what_they_were_and_a_panic_as_an_error() {
        assert_eq!(spawn(async { "text".to_owned() }).await.unwrap(), "text");
        assert_eq!(spawn_blocking(|| 7_u64).await.unwrap(), 7);
        spawn(async {}).await.unwrap();
        assert!(spawn(async { panic!("this task dies") }).await.is_err());
        let task = spawn(std::future::pending::<u8>());
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
    }
}
