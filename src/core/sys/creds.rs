//! What rustix lacks about identity and capabilities. Everything here concerns the calling thread alone.

#![allow(
    unsafe_code,
    reason = "getresuid(2) and PR_CAPBSET_* by number have no safe wrapper in rustix"
)]

use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use super::process::last_errno;

/// Real, effective and saved uid.
///
/// # Errors
/// None that a kernel is known to give.
pub fn user_ids() -> Result<[u32; 3], Errno> {
    let mut ids = [0; 3];
    let [real, effective, saved] = &mut ids;
    // SAFETY: three places for a uid each.
    let done = unsafe { libc::getresuid(real, effective, saved) };
    if done == 0 {
        Ok(ids)
    } else {
        Err(last_errno())
    }
}

/// Real, effective and saved gid.
///
/// # Errors
/// None that a kernel is known to give.
pub fn group_ids() -> Result<[u32; 3], Errno> {
    let mut ids = [0; 3];
    let [real, effective, saved] = &mut ids;
    // SAFETY: three places for a gid each.
    let done = unsafe { libc::getresgid(real, effective, saved) };
    if done == 0 {
        Ok(ids)
    } else {
        Err(last_errno())
    }
}

/// The bounding set: capabilities included that are newer than we are.
///
/// `last` is the number of the last capability that the kernel is known to have.
///
/// # Errors
/// The kernel does not know one of those up to `last`.
pub fn bounding(last: u8) -> Result<CapabilitySet, Errno> {
    let mut there = 0;
    for number in 0..=63_u8 {
        match bounds(number) {
            Ok(true) => there |= 1 << number,
            Ok(false) => {}
            Err(Errno::INVAL) if number > last => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(CapabilitySet::from_bits_retain(there))
}

/// Drops every capability but `kept` from the bounding set and reads each back. Answers what is left.
///
/// `there` is a bounding set that this process, or the one that it was forked from, once had. Nothing ever comes back into it, so what is
/// not in there need not be looked at: with that, a run asks the kernel 82 times for its two processes instead of 181 times.
///
/// # Errors
/// A capability cannot be dropped, or is still there afterwards.
pub fn bound(kept: CapabilitySet, there: CapabilitySet) -> Result<CapabilitySet, Errno> {
    let surplus = there.difference(kept).bits();
    for number in (0..=63_u8).filter(|number| surplus & (1 << number) != 0) {
        prctl(libc::PR_CAPBSET_DROP, number)?;
        if bounds(number)? {
            return Err(Errno::PERM);
        }
    }
    Ok(there.intersection(kept))
}

fn bounds(number: u8) -> Result<bool, Errno> {
    prctl(libc::PR_CAPBSET_READ, number).map(|there| there == 1)
}

fn prctl(option: libc::c_int, argument: u8) -> Result<libc::c_int, Errno> {
    let argument = libc::c_ulong::from(argument);
    let zero: libc::c_ulong = 0;
    // SAFETY: both options take one number and touch no memory.
    let answer = unsafe { libc::prctl(option, argument, zero, zero, zero) };
    if answer < 0 {
        Err(last_errno())
    } else {
        Ok(answer)
    }
}

/// Empties the ambient set and raises these in it. `there` is false on kernels before 4.3, which have none: then nothing may be raised.
///
/// # Errors
/// One of them is not both permitted and inheritable, or there is no ambient set.
pub fn make_ambient(raised: CapabilitySet, there: bool) -> Result<(), Errno> {
    if !there {
        return if raised.is_empty() {
            Ok(())
        } else {
            Err(Errno::NOSYS)
        };
    }
    rustix::thread::clear_ambient_capability_set()?;
    for number in 0..=63_u64 {
        if raised.bits() & (1 << number) != 0 {
            rustix::thread::configure_capability_in_ambient_set(
                CapabilitySet::from_bits_retain(1 << number),
                true,
            )?;
        }
    }
    Ok(())
}
