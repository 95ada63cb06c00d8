//! The allocator of the program: the C library's, and in a process that serves one run at a time first a piece of memory that is handed out
//! from one end and goes with the process, or begins anew with the next run.
//!
//! A supervisor allocates some thousand small blocks within a few milliseconds, just after a fork: the C library's allocator maps and unmaps
//! a page for many of them and touches pages that the fork has made copy-on-write. From here they come at the price of an addition, out of
//! pages that were made by one call. What does not fit goes to the C library, so a run may last and allocate as it likes.

#![allow(
    unsafe_code,
    reason = "an allocator is an unsafe trait, and madvise(2) has no safe wrapper"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

/// Bytes to hand out.
const SIZE: usize = 256 * 1024;
/// Larger blocks are buffers for output, which come and go.
const LARGEST: usize = 16 * 1024;
/// Every block begins at a multiple of it, and takes one.
const ALIGN: usize = 16;
/// What a usual run takes; these pages are made at once.
const USUAL: usize = 40 * 1024;
/// [`NEXT`] in a process that has not begun.
const NEVER: usize = usize::MAX;

#[repr(C, align(4096))]
struct Room(UnsafeCell<[u8; SIZE]>);

// SAFETY: its bytes are only reached through blocks, and no two blocks that live at the same time overlap.
unsafe impl Sync for Room {}

static ROOM: Room = Room(UnsafeCell::new([0; SIZE]));
/// Where the next block begins; from `SIZE` on there is none.
static NEXT: AtomicUsize = AtomicUsize::new(NEVER);
/// Blocks that were handed out and not given back.
static LIVE: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

struct Allocator;

/// From now on small blocks come from the arena. For a process that has been forked for one run. A second call changes nothing.
pub fn begin() {
    const MADV_POPULATE_WRITE: libc::c_int = 23;
    if NEXT.compare_exchange(NEVER, 0, Relaxed, Relaxed).is_ok() {
        // SAFETY: makes pages of our own writable memory present, which changes none of its bytes; before 5.14 it is refused, and each page
        // comes with its first use.
        unsafe {
            libc::madvise(ROOM.0.get().cast(), USUAL, MADV_POPULATE_WRITE);
        }
    }
}

/// After a run: all of the arena is there again. False if that cannot be, because a block of it is still in use; then all goes on as before.
pub fn begin_again() -> bool {
    // From here on no block is handed out: one that comes too late finds no room, one that came before has been counted.
    let used = NEXT.swap(SIZE, SeqCst);
    let unused = LIVE.load(SeqCst) == 0;
    let next = if unused && used != NEVER { 0 } else { used };
    NEXT.store(next, SeqCst);
    unused
}

/// Where a block lies in the arena. `None`: it is the C library's.
fn offset(block: *mut u8) -> Option<usize> {
    let offset = block.addr().wrapping_sub(ROOM.0.get().addr());
    (offset < SIZE).then_some(offset)
}

/// What a block of that size takes.
fn taken(size: usize) -> usize {
    size.next_multiple_of(ALIGN)
}

fn take(layout: Layout) -> Option<*mut u8> {
    if layout.size() > LARGEST || layout.align() > ALIGN || NEXT.load(Relaxed) >= SIZE {
        return None;
    }
    let size = taken(layout.size());
    // Counted first, see `begin_again`.
    LIVE.fetch_add(1, SeqCst);
    let at = NEXT.fetch_add(size, SeqCst);
    if at + size > SIZE {
        LIVE.fetch_sub(1, SeqCst);
        return None;
    }
    // SAFETY: the block lies within the room.
    Some(unsafe { ROOM.0.get().cast::<u8>().add(at) })
}

/// Makes the last block, which begins at `at`, end there; false if it is not the last, or there is no room.
fn resize_last(at: usize, old: usize, new: usize) -> bool {
    at + new <= SIZE
        && NEXT
            .compare_exchange(at + old, at + new, Relaxed, Relaxed)
            .is_ok()
}

// SAFETY: blocks of the arena are handed out once, by one atomic addition, and again only after they were given back as the last one;
// everything else is the C library's, which gets back exactly what it has given, told apart by the address.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match take(layout) {
            Some(block) => block,
            // SAFETY: the caller's promises are those that are asked for.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match take(layout) {
            Some(block) => {
                // SAFETY: the block is new, ours, and as large as that. It may have been another before.
                unsafe { block.write_bytes(0, layout.size()) };
                block
            }
            // SAFETY: as above.
            None => unsafe { System.alloc_zeroed(layout) },
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match offset(block) {
            Some(at) => {
                resize_last(at, taken(layout.size()), 0);
                LIVE.fetch_sub(1, SeqCst);
            }
            // SAFETY: it is not of the arena, so the C library gave it; the rest is the caller's promise.
            None => unsafe { System.dealloc(block, layout) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new: usize) -> *mut u8 {
        let Some(at) = offset(block) else {
            // SAFETY: as in `dealloc`.
            return unsafe { System.realloc(block, layout, new) };
        };
        let old = taken(layout.size());
        if taken(new) <= old || (new <= LARGEST && resize_last(at, old, taken(new))) {
            return block;
        }
        // SAFETY: the new layout is valid by the caller's promise; a new block does not overlap the old one, which is smaller.
        unsafe {
            let moved = self.alloc(Layout::from_size_align_unchecked(new, layout.align()));
            if !moved.is_null() {
                moved.copy_from_nonoverlapping(block, layout.size());
                self.dealloc(block, layout);
            }
            moved
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::sys::wait::in_own_process;

    #[test]
    fn blocks_keep_what_is_in_them_wherever_they_come_from() {
        in_own_process(|| {
            let before = vec![7_u8; 100];
            assert_eq!(offset(before.as_ptr().cast_mut()), None);
            begin();
            let mut grown: Vec<u8> = Vec::new();
            let mut all: Vec<Box<[u8]>> = Vec::new();
            // Far more than there is room for.
            for n in 0..2000_usize {
                let byte = u8::try_from(n % 251).unwrap();
                all.push(vec![byte; n % 400].into_boxed_slice());
                grown.push(byte);
                let zeroed = vec![0_u8; 64].into_boxed_slice();
                assert!(zeroed.iter().all(|b| *b == 0));
            }
            for (n, block) in all.iter().enumerate() {
                let byte = u8::try_from(n % 251).unwrap();
                assert!(block.len() == n % 400 && block.iter().all(|b| *b == byte));
                assert_eq!(grown[n], byte);
            }
            let inside = all
                .iter()
                .filter(|b| offset(b.as_ptr().cast_mut()).is_some());
            assert!((100..all.len()).contains(&inside.count()));
            begin();
            assert!(NEXT.load(Relaxed) > 0, "begun once");
            assert_eq!(before, [7; 100]);
        });
    }

    #[test]
    fn it_begins_anew_when_nothing_of_it_is_in_use() {
        in_own_process(|| {
            assert!(begin_again());
            assert_eq!(NEXT.load(Relaxed), NEVER, "not before it has begun");
            begin();
            let first = vec![7_u8; 100];
            let second = vec![8_u8; 100];
            let place = offset(first.as_ptr().cast_mut());
            drop(first);
            assert!(!begin_again(), "the second is in use");
            assert_eq!(second, [8; 100]);
            assert!(NEXT.load(Relaxed) >= 100 && NEXT.load(Relaxed) < SIZE);
            drop(second);
            assert!(begin_again());
            let third: Vec<u8> = Vec::with_capacity(100);
            assert_eq!(offset(third.as_ptr().cast_mut()), place);
            drop(third);
            // What has no room is the C library's, and is not counted.
            let many: Vec<Vec<u8>> = (0..40).map(|_| vec![1; LARGEST]).collect();
            assert!(!begin_again());
            drop(many);
            assert!(begin_again());
        });
    }

    #[test]
    fn what_is_given_back_last_is_used_again_and_large_blocks_are_not_taken() {
        in_own_process(|| {
            begin();
            let at = |v: &Vec<u8>| offset(v.as_ptr().cast_mut());
            let first: Vec<u8> = Vec::with_capacity(40);
            let place = at(&first).unwrap();
            drop(first);
            let mut second: Vec<u8> = Vec::with_capacity(24);
            assert_eq!(at(&second), Some(place));
            second.reserve_exact(4000);
            assert_eq!(at(&second), Some(place), "the last one grows where it is");
            second.reserve_exact(LARGEST + 1);
            assert_eq!(at(&second), None);
            assert_eq!(at(&Vec::with_capacity(LARGEST + 1)), None);
        });
    }
}
