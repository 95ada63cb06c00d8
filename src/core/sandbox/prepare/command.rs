//! What is executed: path, arguments and environment (spec/executor.md 15.3).

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt as _;

use rustix::process::{Resource, getrlimit};

use super::RunOrder;
use crate::core::config::{Baseline, LimitKind};
use crate::core::sandbox::NotPrepared;
use crate::core::sys::process::Strings;

/// All that a script gets of the search path (spec/executor.md 9.2).
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Longest single argument or variable that the kernel takes, its NUL included (`MAX_ARG_STRLEN`).
const MOST_PER_STRING: usize = 131_072;
/// What the kernel allows for all of them at most: three quarters of 8 MiB.
const MOST_IN_ALL: u64 = 6 * 1024 * 1024;

/// The operands of `execve`.
#[derive(Debug)]
pub(in crate::core::sandbox) struct Command {
    pub(in crate::core::sandbox) path: CString,
    pub(in crate::core::sandbox) argv: Strings,
    pub(in crate::core::sandbox) environment: Strings,
}

/// # Errors
/// An argument is too long, or all of them together, or a value of the profile cannot be one.
pub(super) fn command(order: &RunOrder<'_>) -> Result<Command, NotPrepared> {
    let path = text(order.script.path.as_path().as_os_str(), "the script's path")?;
    let mut argv = vec![path.clone()];
    for (at, arg) in order.args.iter().enumerate() {
        let number = at + 1;
        if arg.len() >= MOST_PER_STRING {
            return Err(refused(format!(
                "argument {number} is {} bytes long; the system allows {}",
                arg.len(),
                MOST_PER_STRING - 1
            )));
        }
        argv.push(text(OsStr::from_bytes(arg), &format!("argument {number}"))?);
    }
    let mut variables = Vec::new();
    for (name, value) in environment(order) {
        let line = format!("{name}={value}");
        if line.len() >= MOST_PER_STRING {
            return Err(refused(format!("env {name} of the profile is too long")));
        }
        variables.push(text(
            OsStr::new(&line),
            &format!("env {name} of the profile"),
        )?);
    }
    let size = size_in_all(&argv) + size_in_all(&variables) + path.as_bytes_with_nul().len();
    let most = most_in_all(order);
    if u64::try_from(size).is_ok_and(|size| size > most) {
        return Err(refused(format!(
            "arguments and environment take {size} bytes together; the system allows {most}"
        )));
    }
    Ok(Command {
        path,
        argv: Strings::new(argv),
        environment: Strings::new(variables),
    })
}

fn environment(order: &RunOrder<'_>) -> Vec<(String, String)> {
    let mut variables = vec![("PATH".to_owned(), PATH.to_owned())];
    let mut set = |name: &str, value: &str| {
        match variables.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => value.clone_into(old),
            None => variables.push((name.to_owned(), value.to_owned())),
        };
    };
    if order.profile.baseline == Baseline::Strict {
        let user = order
            .identity
            .name
            .clone()
            .unwrap_or_else(|| order.identity.uid.to_string());
        set("HOME", &order.identity.home);
        set("USER", &user);
        set("LOGNAME", &user);
        set("SHELL", "/bin/sh");
        set("LANG", "C.UTF-8");
        set("TMPDIR", "/tmp");
        if !order.reqid.is_empty() {
            set("ENVEXEC_REQID", order.reqid);
        }
        set("ENVEXEC_SCRIPT", order.script.name.as_ref());
        set("ENVEXEC_PROFILE", order.script.profile.as_ref());
    }
    for (name, value) in &order.profile.env {
        set(name, value);
    }
    variables
}

/// Bytes of the strings and of the pointers to them.
fn size_in_all(texts: &[CString]) -> usize {
    texts
        .iter()
        .map(|text| text.as_bytes_with_nul().len() + size_of::<usize>())
        .sum::<usize>()
        + size_of::<usize>()
}

/// A quarter of the stack that the script will have, within the kernel's own bounds (`execve(2)`).
fn most_in_all(order: &RunOrder<'_>) -> u64 {
    let stack = match order.profile.limits.get(&LimitKind::Stack) {
        Some(limit) => *limit,
        None => getrlimit(Resource::Stack).current,
    };
    let least = u64::try_from(MOST_PER_STRING).unwrap_or(0);
    stack.map_or(MOST_IN_ALL, |stack| (stack / 4).clamp(least, MOST_IN_ALL))
}

fn text(bytes: &OsStr, what: &str) -> Result<CString, NotPrepared> {
    CString::new(bytes.as_bytes()).map_err(|_| refused(format!("{what} holds a NUL byte")))
}

fn refused(text: String) -> NotPrepared {
    NotPrepared::new("setup", text)
}
