//! From a profile to a table of verdicts: what `syscalls`, `userns` and the missing network namespace come to, call by call.

use std::collections::BTreeMap;

use caps::Capability;
use libc::c_long;

use super::numbers::{self, modern};
use crate::core::config::{ProfileConfig, Syscalls};

/// What a call gets.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    Allow,
    Errno(u16),
    /// The first clause that fits decides, else the last word.
    Check(Vec<Clause>, Box<Self>),
}

/// About the low 32 bits of one argument. Its verdict is never a check again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Clause {
    /// 0..=5
    pub(super) argument: u8,
    pub(super) test: Test,
    pub(super) verdict: Verdict,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Test {
    Is(u32),
    IsNot(u32),
    AnyOf(u32),
}

/// Every call's verdict.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) calls: BTreeMap<u32, Verdict>,
    /// Numbers up to `last_known` that are not in `calls`.
    pub(super) unnamed: Verdict,
    pub(super) last_known: u32,
    /// Numbers beyond.
    pub(super) unknown: Verdict,
}

/// Namespace flags of `clone` and `unshare`: mount, cgroup, UTS, IPC, user, PID, network.
const NAMESPACES: u32 = 0x7e02_0000;
const NEW_USER: u32 = 0x1000_0000;
/// Time namespaces: only `unshare` and `clone3` know the flag; in `clone` it is part of the signal number.
const NEW_TIME: u32 = 0x80;

/// `personality(2)` that only asks.
const QUERY: u32 = 0xffff_ffff;

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small positive constants"
)]
const EPERM: Verdict = Verdict::Errno(libc::EPERM as u16);
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small positive constants"
)]
const ENOSYS: Verdict = Verdict::Errno(libc::ENOSYS as u16);

/// Whether the profile grants a capability.
pub(super) fn holds(profile: &ProfileConfig, capability: Capability) -> bool {
    profile.caps.contains(&capability)
}

/// The groups of calls that a capability unlocks (any one of those named).
type Guarded = (&'static [&'static [c_long]], &'static [Capability]);

/// What `default` refuses and `strict` allows only with the capability.
const GUARDED: &[Guarded] = &[
    (numbers::MOUNTS, &[Capability::CAP_SYS_ADMIN]),
    (numbers::TRACING, &[Capability::CAP_SYS_PTRACE]),
    (numbers::KEYS, &[Capability::CAP_SYS_ADMIN]),
    // No capability stands for these.
    (numbers::IO_URING, &[]),
    (numbers::BOOT, &[Capability::CAP_SYS_BOOT]),
    (numbers::MODULES, &[Capability::CAP_SYS_MODULE]),
    (numbers::RAW_IO, &[Capability::CAP_SYS_RAWIO]),
    (&[&[libc::SYS_chroot]], &[Capability::CAP_SYS_CHROOT]),
    (&[&[libc::SYS_acct]], &[Capability::CAP_SYS_PACCT]),
    (
        &[&[libc::SYS_syslog]],
        &[Capability::CAP_SYSLOG, Capability::CAP_SYS_ADMIN],
    ),
    (
        &[&[libc::SYS_open_by_handle_at]],
        &[Capability::CAP_DAC_READ_SEARCH],
    ),
    (
        &[&[libc::SYS_bpf]],
        &[Capability::CAP_BPF, Capability::CAP_SYS_ADMIN],
    ),
    (
        &[&[libc::SYS_perf_event_open]],
        &[Capability::CAP_PERFMON, Capability::CAP_SYS_ADMIN],
    ),
];

/// What only `strict` refuses without the capability: the kernel asks for it anyway.
const PRIVILEGED: &[Guarded] = &[
    (numbers::CLOCK, &[Capability::CAP_SYS_TIME]),
    (
        numbers::IDENTITY,
        &[Capability::CAP_SETUID, Capability::CAP_SETGID],
    ),
    (
        numbers::HOST,
        &[Capability::CAP_SYS_ADMIN, Capability::CAP_SYS_TTY_CONFIG],
    ),
    (numbers::WATCHING, &[Capability::CAP_SYS_ADMIN]),
    (
        &[&[libc::SYS_name_to_handle_at]],
        &[Capability::CAP_DAC_READ_SEARCH],
    ),
];

/// The table of a profile.
pub(super) fn table(profile: &ProfileConfig, deny_inet: bool) -> Table {
    let list = profile.syscalls.value;
    let mut calls = BTreeMap::new();
    if list == Syscalls::Strict {
        put(&mut calls, numbers::SERVICE, &Verdict::Allow);
        // Not in systemd's set, but tar, cp and install as root give every file to whom it belongs already; the kernel asks for the
        // capability where it matters.
        put(&mut calls, numbers::OWNERS, &Verdict::Allow);
        for (group, by) in PRIVILEGED {
            if by.iter().any(|c| holds(profile, *c)) {
                put(&mut calls, group, &Verdict::Allow);
            }
        }
        if !profile.no_new_privileges {
            // The filter is installed early then: becoming the user comes after it.
            put(&mut calls, numbers::IDENTITY, &Verdict::Allow);
        }
    }
    if list != Syscalls::Off {
        for (group, by) in GUARDED {
            let held = by.iter().any(|c| holds(profile, *c));
            let verdict = if held { Verdict::Allow } else { EPERM };
            put(&mut calls, group, &verdict);
        }
        arguments(profile, &mut calls);
    }
    namespaces(profile, &mut calls);
    sockets(profile, deny_inet, &mut calls);
    if cfg!(target_arch = "mips") && !calls.is_empty() {
        // The call that makes other calls.
        calls.insert(4000, ENOSYS);
    }
    let strict = list == Syscalls::Strict;
    Table {
        calls,
        unnamed: if strict { EPERM } else { Verdict::Allow },
        last_known: number(numbers::LAST_KNOWN).unwrap_or(u32::MAX),
        unknown: if strict { ENOSYS } else { Verdict::Allow },
    }
}

fn number(call: c_long) -> Option<u32> {
    u32::try_from(call).ok()
}

fn put(calls: &mut BTreeMap<u32, Verdict>, group: &[&[c_long]], verdict: &Verdict) {
    for call in group.iter().copied().flatten() {
        set(calls, *call, verdict.clone());
    }
}

fn set(calls: &mut BTreeMap<u32, Verdict>, call: c_long, verdict: Verdict) {
    if let Some(number) = number(call) {
        calls.insert(number, verdict);
    }
}

fn check(clauses: impl IntoIterator<Item = (u8, Test, Verdict)>, last: Verdict) -> Verdict {
    let clauses: Vec<_> = clauses
        .into_iter()
        .map(|(argument, test, verdict)| Clause {
            argument,
            test,
            verdict,
        })
        .collect();
    if clauses.is_empty() {
        return last;
    }
    Verdict::Check(clauses, Box::new(last))
}

/// `personality` and `ioctl`.
fn arguments(profile: &ProfileConfig, calls: &mut BTreeMap<u32, Verdict>) {
    let admin = holds(profile, Capability::CAP_SYS_ADMIN);
    if !admin {
        let asks = check([(0, Test::Is(QUERY), Verdict::Allow)], EPERM);
        set(calls, libc::SYS_personality, asks);
        // Typing into the terminal of whoever started us. The kernel reads 32 bits of the request: so do we, or a bit in the upper
        // half would carry it past.
        const TIOCLINUX: u32 = 0x541c;
        let mut refused = vec![(1, Test::Is(TIOCSTI), EPERM)];
        if !holds(profile, Capability::CAP_SYS_TTY_CONFIG) {
            refused.push((1, Test::Is(TIOCLINUX), EPERM));
        }
        set(calls, libc::SYS_ioctl, check(refused, Verdict::Allow));
    } else {
        for call in [libc::SYS_personality, libc::SYS_ioctl] {
            set(calls, call, Verdict::Allow);
        }
    }
}

#[cfg(any(target_arch = "mips", target_arch = "mips64"))]
const TIOCSTI: u32 = 0x5472;
#[cfg(not(any(target_arch = "mips", target_arch = "mips64")))]
const TIOCSTI: u32 = 0x5412;

/// `unshare`, `clone`, `clone3`, `setns`.
fn namespaces(profile: &ProfileConfig, calls: &mut BTreeMap<u32, Verdict>) {
    let admin = holds(profile, Capability::CAP_SYS_ADMIN);
    let all = profile.syscalls.value != Syscalls::Off && !admin;
    let user = profile.deny_userns.value;
    let refused = match (all, user) {
        (true, _) => NAMESPACES,
        (false, true) => NEW_USER,
        (false, false) => {
            if profile.syscalls.value == Syscalls::Strict {
                set(calls, modern(435), Verdict::Allow);
                set(calls, libc::SYS_setns, Verdict::Allow);
            } else if profile.syscalls.value == Syscalls::Default {
                set(calls, libc::SYS_setns, Verdict::Allow);
            }
            return;
        }
    };
    let time = if all { NEW_TIME } else { 0 };
    let flags = |bits| check([(0, Test::AnyOf(bits), EPERM)], Verdict::Allow);
    set(calls, libc::SYS_unshare, flags(refused | time));
    set(calls, libc::SYS_clone, flags(refused));
    // Its flags are in memory, where a filter cannot look. Every C library goes back to clone.
    set(calls, modern(435), ENOSYS);
    let join = if all {
        EPERM
    } else {
        // 0 means whatever the descriptor is.
        check(
            [(1, Test::Is(0), EPERM), (1, Test::AnyOf(NEW_USER), EPERM)],
            Verdict::Allow,
        )
    };
    set(calls, libc::SYS_setns, join);
}

/// `socket`, and what gets around it.
fn sockets(profile: &ProfileConfig, deny_inet: bool, calls: &mut BTreeMap<u32, Verdict>) {
    const UNIX: u32 = 1;
    const INET: u32 = 2;
    const INET6: u32 = 10;
    const NETLINK: u32 = 16;
    const PACKET: u32 = 17;
    const ROUTE: u32 = 0;
    const AUDIT: u32 = 9;
    let listed = profile.syscalls.value != Syscalls::Off;
    if !listed && !deny_inet {
        return;
    }
    let has = |capability| holds(profile, capability);
    let is = |family| (0, Test::Is(family), Verdict::Allow);
    let mut clauses = vec![is(UNIX)];
    let verdict = if deny_inet {
        // A ring makes sockets without the call.
        put(calls, numbers::IO_URING, &EPERM);
        check(clauses, EPERM)
    } else if has(Capability::CAP_SYS_ADMIN) {
        Verdict::Allow
    } else {
        clauses.extend([is(INET), is(INET6)]);
        if has(Capability::CAP_NET_RAW) {
            clauses.push(is(PACKET));
        }
        if has(Capability::CAP_NET_ADMIN) {
            clauses.push(is(NETLINK));
        }
        clauses.push((0, Test::IsNot(NETLINK), EPERM));
        clauses.push((2, Test::Is(ROUTE), Verdict::Allow));
        let audit = [
            Capability::CAP_AUDIT_WRITE,
            Capability::CAP_AUDIT_CONTROL,
            Capability::CAP_AUDIT_READ,
        ];
        if audit.into_iter().any(has) {
            clauses.push((2, Test::Is(AUDIT), Verdict::Allow));
        }
        check(clauses, EPERM)
    };
    #[cfg(any(target_arch = "x86", target_arch = "mips"))]
    let all = verdict == Verdict::Allow;
    set(calls, libc::SYS_socket, verdict);
    // Takes its arguments from memory. Its first one says which call it is: 1 = socket.
    #[cfg(any(target_arch = "x86", target_arch = "mips"))]
    set(
        calls,
        libc::SYS_socketcall,
        if all {
            Verdict::Allow
        } else {
            check([(0, Test::Is(1), ENOSYS)], Verdict::Allow)
        },
    );
}
