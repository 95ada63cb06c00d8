//! The system call filter of a profile (spec/executor.md 15.9) as a classic BPF program.
//!
//! We build the program ourselves: the usual crate knows x86_64, aarch64 and riscv64 only, and the routers we run on are arm and mips.
//! It is small work, with three traps that every such filter must see: the architecture is looked at before the number (numbers mean
//! other calls elsewhere), x86_64 has a second set of numbers behind a bit, and arguments are 64 bits wide even where the kernel only
//! reads 32 of them.
//!
//! - `rules` turns a profile into a table from call to verdict. Pure.
//! - `assemble` turns the table into instructions. Pure.
//! - `numbers` are the calls by number and target.

mod assemble;
mod numbers;
mod rules;
#[cfg(test)]
mod tests;

use super::features::Features;
use super::{Level, NotPrepared, Protection, Protections};
use crate::core::config::{Network, ProfileConfig, Syscalls};
use crate::core::sys::seccomp;

/// A program that waits to be installed.
#[derive(Debug)]
pub struct Program(pub Vec<libc::sock_filter>);

/// What a filter is made from.
#[derive(Clone, Copy, Debug)]
pub struct FilterOrder<'a> {
    pub profile: &'a ProfileConfig,
    pub features: &'a Features,
    /// Sockets of other families than `AF_UNIX` are refused: in the place of a network namespace.
    pub deny_inet: bool,
}

/// Whether the filter has to stand in for a network namespace that this kernel does not give: only when the profile does not insist.
pub fn stands_in_for_network(profile: &ProfileConfig, features: &Features) -> bool {
    profile.network.value != Network::Host
        && !profile.network.required
        && features.net_namespace.is_err()
}

/// `None`: the profile asks for no filter, or it was tried and is not there.
///
/// # Errors
/// It is required and cannot be had.
pub fn program(
    profile: &ProfileConfig,
    features: &Features,
    report: &mut Protections,
) -> Result<Option<Program>, NotPrepared> {
    let order = FilterOrder {
        profile,
        features,
        deny_inet: stands_in_for_network(profile, features),
    };
    program_for(order, report)
}

/// [`program`] with everything named.
///
/// # Errors
/// It is required and cannot be had.
pub fn program_for(
    order: FilterOrder<'_>,
    report: &mut Protections,
) -> Result<Option<Program>, NotPrepared> {
    let FilterOrder {
        profile,
        features,
        deny_inet,
    } = order;
    let calls = profile.syscalls.value != Syscalls::Off;
    let userns = profile.deny_userns.value;
    // The lists refuse new user namespaces as well, to whoever may not make them anyway.
    let by_list = calls && !rules::holds(profile, caps::Capability::CAP_SYS_ADMIN);
    let settle = |report: &mut Protections, level: &Level| {
        let of = |wanted: bool| if wanted { level.clone() } else { Level::Off };
        report.set(Protection::Seccomp, of(calls));
        report.set(Protection::NoUserNamespaces, of(userns || by_list));
    };
    if !calls && !userns && !deny_inet {
        settle(report, &Level::Off);
        return Ok(None);
    }
    let why = match (&features.seccomp, assemble::ARCHITECTURE) {
        (Ok(()), Some(architecture)) => {
            let table = rules::table(profile, deny_inet);
            let code = assemble::assemble(&table, architecture, features.seccomp_kill_process);
            if code.len() > seccomp::MAX_INSTRUCTIONS {
                // Cannot be: the tests build the largest there is.
                return Err(NotPrepared::new(
                    "setup",
                    "the system call filter is too long",
                ));
            }
            settle(report, &Level::Enforced);
            if deny_inet {
                let why = "no network namespace: only sockets are refused".to_owned();
                report.set(Protection::Network, Level::Degraded(why));
            }
            return Ok(Some(Program(code)));
        }
        (Err(why), _) => why.as_str(),
        (Ok(()), None) => "not supported on this architecture",
    };
    let required = [
        (calls && profile.syscalls.required, "syscalls"),
        (userns && profile.deny_userns.required, "userns = deny"),
    ];
    if let Some((_, key)) = required.iter().find(|(required, _)| *required) {
        return Err(NotPrepared::new(
            "feature-missing",
            format!(
                "the profile requires '{key}', but system call filters are not to be had: {why} (add the word 'try' to run without)"
            ),
        ));
    }
    settle(report, &Level::Degraded(why.to_owned()));
    Ok(None)
}

impl Program {
    /// One system call, for the child. The filter holds from the next call on.
    ///
    /// # Errors
    /// The errno.
    pub fn install(&self) -> Result<(), i32> {
        seccomp::install(&self.0).map_err(|e| e.raw_os_error().unwrap_or(libc::EIO))
    }
}
