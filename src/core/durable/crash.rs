//! Power cuts for tests. Whatever changes what a reader would find (a rename, a link, a removal, a message to another host) is an effect; a
//! test lets the first N happen and no more, then looks at what is left, as a host would after its restart.
//!
//! The power is that of a thread; work that is handed to another thread takes its [`Line`] along.

use std::io;

#[cfg(test)]
thread_local! {
    static LINE: std::cell::RefCell<Line> = const { std::cell::RefCell::new(Line { left: None }) };
}

/// What feeds a thread. Outside tests it is always there.
#[cfg(feature = "dispatcher")]
#[derive(Clone, Debug, Default)]
pub(crate) struct Line {
    /// Effects that may still happen; `None`: any number.
    #[cfg(test)]
    left: Option<std::sync::Arc<std::sync::atomic::AtomicU32>>,
}

#[cfg(test)]
impl Line {
    /// That of this thread.
    pub(crate) fn here() -> Self {
        LINE.with_borrow(Clone::clone)
    }

    /// Work on this thread with the power of another.
    pub(crate) fn feed<T>(self, work: impl FnOnce() -> T) -> T {
        let own = LINE.replace(self);
        let result = work();
        LINE.set(own);
        result
    }

    fn left(&self) -> Option<u32> {
        let left = self.left.as_ref()?;
        Some(left.load(std::sync::atomic::Ordering::SeqCst))
    }
}

#[cfg(all(not(test), feature = "dispatcher"))]
impl Line {
    /// That of this thread.
    pub(crate) fn here() -> Self {
        Self {}
    }

    /// Work on this thread with the power of another.
    #[expect(clippy::unused_self, reason = "its twin for tests needs it")]
    pub(crate) fn feed<T>(self, work: impl FnOnce() -> T) -> T {
        work()
    }
}

/// Call before each effect. Fails only in tests.
///
/// # Errors
/// The power is out: nothing may happen any more.
#[cfg(test)]
pub(crate) fn effect() -> io::Result<()> {
    use std::sync::atomic::Ordering::SeqCst;
    let Some(left) = Line::here().left else {
        return Ok(());
    };
    left.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1))
        .map(drop)
        .map_err(|_| io::Error::other("the power is out"))
}

#[cfg(not(test))]
#[expect(clippy::unnecessary_wraps, reason = "its twin for tests fails")]
pub(crate) fn effect() -> io::Result<()> {
    Ok(())
}

/// Whether no effect may happen any more.
pub(crate) fn is_out() -> bool {
    #[cfg(test)]
    return Line::here().left() == Some(0);
    #[cfg(not(test))]
    false
}

/// Runs `work` on this thread with only `effects` of its effects happening. The second value: were they used up? Then there may be more.
#[cfg(test)]
pub(crate) fn after<T>(effects: u32, work: impl FnOnce() -> T) -> (T, bool) {
    let line = Line {
        left: Some(std::sync::Arc::new(effects.into())),
    };
    let result = line.clone().feed(work);
    (result, line.left() == Some(0))
}
