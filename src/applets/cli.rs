//! Reading command lines: first the spelling rules of the original (spec/dispatcher.md 1.3), then argh.
//!
//! The original takes options anywhere before `--`, with `=` or a blank, by any unique prefix, in any case, with one dash or two.
//! argh takes `--option value` only. [`normalise`] turns the former into the latter, so that every program of this binary
//! accepts both; unlike the original, an unknown option is an error and never becomes a host name.

use std::path::PathBuf;

use crate::applets::{AppError, Exit};

/// One option that a program knows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Opt {
    /// Without the dashes.
    pub name: &'static str,
    pub takes_value: bool,
}

/// An option with a value.
pub const fn value(name: &'static str) -> Opt {
    Opt {
        name,
        takes_value: true,
    }
}

/// An option without one.
pub const fn flag(name: &'static str) -> Opt {
    Opt {
        name,
        takes_value: false,
    }
}

/// A command line after [`normalise`].
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Words {
    /// `(name, value)`; the value of a flag is `None`.
    pub options: Vec<(&'static str, Option<String>)>,
    pub positional: Vec<String>,
    /// What stands after the first `--`; `None` when there is no `--`.
    pub after_dashes: Option<Vec<String>>,
    /// `-h` or `--help` was given.
    pub help: bool,
    /// `--version` was given.
    pub version: bool,
}

/// Splits a command line by the original's spelling rules.
///
/// # Errors
/// An unknown or ambiguous option, a missing value, a value for a flag.
pub fn normalise(args: Vec<String>, known: &[Opt]) -> Result<Words, AppError> {
    let mut words = Words::default();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        if arg == "--" {
            words.after_dashes = Some(args.collect());
            break;
        }
        let Some(spelt) = arg.strip_prefix('-').filter(|s| !s.is_empty()) else {
            words.positional.push(arg);
            continue;
        };
        let spelt = spelt.strip_prefix('-').unwrap_or(spelt);
        let (name, inline) = match spelt.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (spelt, None),
        };
        let lower = name.to_ascii_lowercase();
        match lower.as_str() {
            "h" | "help" => {
                words.help = true;
                continue;
            }
            "version" => {
                words.version = true;
                continue;
            }
            _ => {}
        }
        let opt = look_up(&lower, known)
            .map_err(|why| AppError::usage(format!("{why} '{}'", arg.escape_debug())))?;
        let value = match (opt.takes_value, inline) {
            (false, None) => None,
            (false, Some(_)) => {
                return Err(AppError::usage(format!(
                    "option '--{}' takes no value",
                    opt.name
                )));
            }
            (true, Some(value)) => Some(value),
            (true, None) => Some(args.next().filter(|v| v != "--").ok_or_else(|| {
                AppError::usage(format!("option '--{}' needs a value", opt.name))
            })?),
        };
        words.options.push((opt.name, value));
    }
    Ok(words)
}

fn look_up(name: &str, known: &[Opt]) -> Result<Opt, &'static str> {
    if let Some(exact) = known.iter().find(|o| o.name == name) {
        return Ok(*exact);
    }
    let mut matching = known
        .iter()
        .filter(|o| !name.is_empty() && o.name.starts_with(name));
    match (matching.next(), matching.next()) {
        (Some(only), None) => Ok(*only),
        (Some(_), Some(_)) => Err("ambiguous option"),
        _ => Err("unknown option"),
    }
}

impl Words {
    /// Rebuilds a command line that argh understands: the options that `accepted` lists, then the positional words after `--`.
    /// Options that the program knows but this verb does not are left out and named.
    pub fn for_argh(&self, accepted: &[&str]) -> (Vec<String>, Vec<&'static str>) {
        let mut args = Vec::new();
        let mut ignored = Vec::new();
        for (name, value) in &self.options {
            if accepted.contains(name) {
                args.push(format!("--{name}"));
                args.extend(value.clone());
            } else {
                ignored.push(*name);
            }
        }
        args.push("--".to_owned());
        args.extend(self.positional.iter().cloned());
        (args, ignored)
    }
}

/// Parses words that [`Words::for_argh`] made into an argh struct.
///
/// # Errors
/// argh's own text, as a usage error; a repeated option, a value of the wrong kind, a missing or surplus word.
pub fn parse<T: argh::FromArgs>(command: &[&str], args: &[String]) -> Result<T, AppError> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    T::from_args(command, &args).map_err(|early| match early.status {
        Ok(()) => AppError::help(early.output.trim_end()),
        Err(()) => AppError::usage(format!(
            "{}\nTry: {} --help",
            early.output.trim_end(),
            command.join(" ")
        )),
    })
}

/// The help that argh makes of a struct: the caller returns it as the error that it is not.
pub fn help<T: argh::FromArgs>(command: &[&str]) -> AppError {
    match T::from_args(command, &["--help"]) {
        Err(early) => AppError::help(early.output.trim_end()),
        Ok(_) => AppError::silent(Exit::Success),
    }
}

/// Takes `--root DIR` out of a command line; it means the same to every program.
///
/// # Errors
/// `--root` without a value, or given twice.
pub fn take_root(args: Vec<String>) -> Result<(Option<PathBuf>, Vec<String>), AppError> {
    let mut root = None;
    let mut rest = Vec::with_capacity(args.len());
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        if arg == "--" {
            rest.push(arg);
            rest.extend(args);
            break;
        }
        let given = if arg == "--root" {
            Some(args.next().unwrap_or_default())
        } else {
            arg.strip_prefix("--root=").map(str::to_owned)
        };
        match given {
            None => rest.push(arg),
            Some(dir) if dir.is_empty() => {
                return Err(AppError::usage("option '--root' needs a directory"));
            }
            Some(_) if root.is_some() => {
                return Err(AppError::usage("option '--root' was given twice"));
            }
            Some(dir) => root = Some(PathBuf::from(dir)),
        }
    }
    Ok((root, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[Opt] = &[
        flag("json"),
        value("port"),
        value("timeout"),
        value("token"),
        value("tags"),
    ];

    fn words(args: &[&str]) -> Result<Words, AppError> {
        normalise(args.iter().map(|s| (*s).to_owned()).collect(), KNOWN)
    }

    #[test]
    fn options_may_stand_anywhere_before_the_dashes() {
        let w = words(&[
            "run",
            "h",
            "--json",
            "s",
            "--port=7450",
            "--",
            "--json",
            "--",
            "x",
        ])
        .unwrap();
        assert_eq!(w.positional, ["run", "h", "s"]);
        assert_eq!(
            w.options,
            [("json", None), ("port", Some("7450".to_owned()))]
        );
        assert_eq!(w.after_dashes.unwrap(), ["--json", "--", "x"]);
    }

    #[test]
    fn names_may_be_shortened_in_any_case_with_one_dash() {
        let w = words(&["-JSON", "--po", "1", "-tim=3"]).unwrap();
        assert_eq!(
            w.options,
            [
                ("json", None),
                ("port", Some("1".to_owned())),
                ("timeout", Some("3".to_owned()))
            ]
        );
    }

    #[test]
    fn what_is_not_known_is_an_error_not_a_host() {
        for bad in [
            &["--nonsense"][..],
            &["--t", "x"],
            &["--port"],
            &["--json=1"],
            &["--port", "--"],
        ] {
            let error = words(bad).unwrap_err();
            assert_eq!(error.exit(), Exit::Usage, "{bad:?}");
        }
        assert_eq!(words(&["-"]).unwrap().positional, ["-"]);
    }

    #[test]
    fn a_value_may_begin_with_a_dash() {
        let w = words(&["--token", "-secret"]).unwrap();
        assert_eq!(w.options, [("token", Some("-secret".to_owned()))]);
    }

    #[test]
    fn root_is_taken_out_but_not_behind_the_dashes() {
        let args = |a: &[&str]| a.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let (root, rest) =
            take_root(args(&["run", "--root", "/r", "h", "--", "--root", "/x"])).unwrap();
        assert_eq!(root, Some(PathBuf::from("/r")));
        assert_eq!(rest, ["run", "h", "--", "--root", "/x"]);
        assert!(take_root(args(&["--root"])).is_err());
        assert!(take_root(args(&["--root=/a", "--root=/b"])).is_err());
    }
}
