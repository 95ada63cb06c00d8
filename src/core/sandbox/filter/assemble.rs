//! From a table of verdicts to classic BPF.
//!
//! The numbers become ranges of equal verdict, the ranges a binary tree of comparisons: a few dozen instructions per call instead of
//! hundreds. A conditional jump reaches 255 instructions; further ones go through an unconditional jump, which reaches anywhere.

use libc::sock_filter;

use super::rules::{Clause, Table, Test, Verdict};
use crate::core::sys::seccomp;

const LOAD_WORD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const JUMP_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

/// The second set of numbers of x86_64.
const X32_BIT: u32 = 0x4000_0000;

/// `AUDIT_ARCH_*` of this target; `None` where nobody has checked the numbers.
pub(super) const ARCHITECTURE: Option<u32> = architecture();

const fn architecture() -> Option<u32> {
    const WIDE: u32 = 0x8000_0000;
    const LITTLE: u32 = if cfg!(target_endian = "little") {
        0x4000_0000
    } else {
        0
    };
    if cfg!(all(target_arch = "x86_64", target_pointer_width = "64")) {
        Some(62 | WIDE | LITTLE)
    } else if cfg!(target_arch = "x86") {
        Some(3 | LITTLE)
    } else if cfg!(all(target_arch = "aarch64", target_pointer_width = "64")) {
        Some(183 | WIDE | LITTLE)
    } else if cfg!(target_arch = "arm") {
        Some(40 | LITTLE)
    } else if cfg!(target_arch = "mips") {
        Some(8 | LITTLE)
    } else if cfg!(target_arch = "riscv64") {
        Some(243 | WIDE | LITTLE)
    } else {
        None
    }
}

/// Where the half of an argument is that the kernel reads as an `int`. The other half is not looked at, as the kernel does not either.
pub(super) const fn low_half(argument: u8) -> u32 {
    let at = ARGUMENTS + 8 * argument as u32;
    if cfg!(target_endian = "big") {
        at + 4
    } else {
        at
    }
}

const fn op(code: u16, k: u32) -> sock_filter {
    jump(code, k, 0, 0)
}

const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// The whole program.
pub(super) fn assemble(table: &Table, architecture: u32, kill_process: bool) -> Vec<sock_filter> {
    let kill = op(
        RETURN,
        if kill_process {
            seccomp::KILL_PROCESS
        } else {
            seccomp::KILL_THREAD
        },
    );
    let mut code = vec![
        op(LOAD_WORD, ARCH),
        jump(JUMP_EQUAL, architecture, 1, 0),
        kill,
        op(LOAD_WORD, NUMBER),
    ];
    if cfg!(target_arch = "x86_64") {
        code.push(jump(JUMP_GREATER_EQUAL, X32_BIT, 0, 1));
        code.push(kill);
    }
    code.extend(tree(&ranges(table)));
    code
}

/// First numbers of the ranges of equal verdict, in ascending order, the first one 0.
fn ranges(table: &Table) -> Vec<(u32, &Verdict)> {
    let mut ranges: Vec<(u32, &Verdict)> = Vec::new();
    let mut push = |start, verdict| {
        if ranges.last().is_none_or(|(_, last)| *last != verdict) {
            ranges.push((start, verdict));
        }
    };
    let mut next = 0;
    for (number, verdict) in &table.calls {
        if *number > next {
            default_ranges(table, next, *number, &mut push);
        }
        push(*number, verdict);
        next = number.saturating_add(1);
    }
    default_ranges(table, next, u32::MAX, &mut push);
    ranges
}

/// What holds for numbers that the table does not name, from `start` to before `end`.
fn default_ranges<'a>(
    table: &'a Table,
    start: u32,
    end: u32,
    push: &mut impl FnMut(u32, &'a Verdict),
) {
    if start <= table.last_known {
        push(start, &table.unnamed);
    }
    let unknown = table.last_known.saturating_add(1);
    if end > unknown {
        push(start.max(unknown), &table.unknown);
    }
}

fn tree(ranges: &[(u32, &Verdict)]) -> Vec<sock_filter> {
    let [.., _] = ranges else {
        return vec![op(RETURN, seccomp::KILL_THREAD)];
    };
    if let [(_, verdict)] = ranges {
        return leaf(verdict);
    }
    let (below, above) = ranges.split_at(ranges.len() / 2);
    let (start, below, above) = (above[0].0, tree(below), tree(above));
    let mut code = Vec::with_capacity(below.len() + above.len() + 2);
    match u8::try_from(below.len()) {
        Ok(over) => code.push(jump(JUMP_GREATER_EQUAL, start, over, 0)),
        Err(_) => {
            code.push(jump(JUMP_GREATER_EQUAL, start, 0, 1));
            let over = u32::try_from(below.len()).unwrap_or(u32::MAX);
            code.push(op(JUMP, over));
        }
    }
    code.extend(below);
    code.extend(above);
    code
}

/// Always ends in a return.
fn leaf(verdict: &Verdict) -> Vec<sock_filter> {
    match verdict {
        Verdict::Allow => vec![op(RETURN, seccomp::ALLOW)],
        Verdict::Errno(errno) => vec![op(RETURN, seccomp::ERRNO | u32::from(*errno))],
        Verdict::Check(clauses, last) => {
            let mut code = Vec::new();
            for Clause {
                argument,
                test,
                verdict,
            } in clauses
            {
                code.push(op(LOAD_WORD, low_half(*argument)));
                let then = leaf(verdict);
                let over = u8::try_from(then.len()).unwrap_or(u8::MAX);
                code.push(match *test {
                    Test::Is(value) => jump(JUMP_EQUAL, value, 0, over),
                    Test::IsNot(value) => jump(JUMP_EQUAL, value, over, 0),
                    Test::AnyOf(bits) => jump(JUMP_ANY_BIT, bits, 0, over),
                });
                code.extend(then);
            }
            code.extend(leaf(last));
            code
        }
    }
}
