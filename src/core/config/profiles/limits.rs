//! What a script may use up (`memory_max` ... `io_max`, `limit_...`) and its environment.

use crate::core::config::raw::{Located, RawValue, Style};
use crate::core::config::reader::{Reader, split};
use crate::core::config::values::{Unit, bytes, digits};
use crate::core::config::{LimitKind, ProfileConfig};

/// The kernel's default period of `cpu.max`, in microseconds.
const PERIOD: u64 = 100_000;
/// Largest value that is not "infinity" to the kernel and fits a TOML integer.
const MOST: u64 = i64::MAX.unsigned_abs();

/// The keys for cgroup v2, as the texts that the kernel's files take.
pub(super) fn cgroup(r: &mut Reader<'_>, p: &mut ProfileConfig) {
    if let Some(want) = r.want("cgroup") {
        p.cgroup = want;
    }
    let mut put = |file: &'static str, value: Option<String>| {
        if let Some(value) = value {
            p.cgroup_limits.insert(file, value);
        }
    };
    let number = |value: Option<u64>| value.map_or("max".to_owned(), |n| n.to_string());
    for (key, file) in [("memory_max", "memory.max"), ("memory_high", "memory.high")] {
        let value = r.amount_or(key, Unit::Bytes, 1 << 20..=1 << 50, "max");
        put(file, value.map(number));
    }
    let value = r.amount_or("pids_max", Unit::Count, 1..=4_194_304, "max");
    put("pids.max", value.map(number));
    put("cpu.max", cpu(r));
    put("io.max", io(r));
}

fn cpu(r: &mut Reader<'_>) -> Option<String> {
    const WHAT: &str = "'max', a share such as 50%, or microseconds 'quota period' (quota from 1000, period from 1000 to 1000000)";
    r.read("cpu_max", |r, value| {
        let text = r.as_text("cpu_max", value)?;
        cpu_max(&text.value).or_else(|| r.not("cpu_max", &text, WHAT))
    })
}

/// `max`, `quota period`, `max period` or `N%` of one processor, as `cpu.max` takes it.
fn cpu_max(text: &str) -> Option<String> {
    if text == "max" {
        return Some(text.to_owned());
    }
    if let Some(percent) = text.strip_suffix('%') {
        let percent = digits(percent).filter(|n| (1..=1_000_000).contains(n))?;
        return Some(format!("{} {PERIOD}", percent * (PERIOD / 100)));
    }
    let mut words = text.split([' ', '\t']).filter(|word| !word.is_empty());
    let (quota, period) = (words.next()?, words.next()?);
    let quota_fits =
        quota == "max" || digits(quota).is_some_and(|n| (1000..=1_000_000_000_000).contains(&n));
    let period_fits = digits(period).is_some_and(|n| (1000..=1_000_000).contains(&n));
    let fits = quota_fits && period_fits && words.next().is_none();
    fits.then(|| format!("{quota} {period}"))
}

fn io(r: &mut Reader<'_>) -> Option<String> {
    const WHAT: &str = "a device and its limits such as '8:0 rbps=10M wiops=100' (rbps, wbps, riops, wiops; a number or max)";
    r.read("io_max", |r, value| {
        let items = match &value.value {
            RawValue::List(items) => items
                .iter()
                .filter_map(|item| r.as_text("io_max", item))
                .collect(),
            RawValue::Text(text) if r.style == Style::Conf => {
                split(text, value.span.start, |c| c == ',')
            }
            _ => vec![r.as_text("io_max", value)?],
        };
        let mut lines: Vec<String> = Vec::new();
        for item in &items {
            match io_line(&item.value) {
                Some(line) => lines.push(line),
                None => return r.not("io_max", item, WHAT),
            }
        }
        if lines.is_empty() {
            r.error(&value.span, "'io_max' names no device");
            return None;
        }
        Some(lines.join("\n"))
    })
}

/// One line of `io.max`: `MAJOR:MINOR`, then at least one limit, each once.
fn io_line(text: &str) -> Option<String> {
    let mut words = text.split([' ', '\t']).filter(|word| !word.is_empty());
    let device = words.next()?;
    let (major, minor) = device.split_once(':')?;
    let number = |text: &str| digits(text).filter(|n| *n <= u64::from(u32::MAX));
    let mut line = format!("{}:{}", number(major)?, number(minor)?);
    let mut seen = Vec::new();
    for word in words {
        let (key, limit) = word.split_once('=')?;
        let number = match key {
            _ if seen.contains(&key) => return None,
            "rbps" | "wbps" => bytes(limit),
            "riops" | "wiops" => digits(limit),
            _ => return None,
        };
        let limit = match (limit, number) {
            ("max", _) => "max".to_owned(),
            (_, Some(number)) if number > 0 => number.to_string(),
            _ => return None,
        };
        seen.push(key);
        line.push_str(&format!(" {key}={limit}"));
    }
    (!seen.is_empty()).then_some(line)
}

/// The `limit_...` keys.
pub(super) fn rlimits(r: &mut Reader<'_>, p: &mut ProfileConfig) {
    for kind in LimitKind::ALL {
        let unit = match kind {
            LimitKind::Nofile | LimitKind::Nproc | LimitKind::Cpu => Unit::Count,
            _ => Unit::Bytes,
        };
        // With fewer descriptors not even the standard streams are there; no processor time is no run.
        let least = match kind {
            LimitKind::Nofile => 8,
            LimitKind::Nproc | LimitKind::Cpu => 1,
            _ => 0,
        };
        if let Some(limit) = r.amount_or(kind.key(), unit, least..=MOST, "unlimited") {
            p.limits.insert(kind, limit);
        }
    }
}

/// `NAME=value`: with blanks between them in `.conf`, so that a value holds none there; an array in TOML.
pub(super) fn env(r: &mut Reader<'_>) -> Option<Vec<(String, String)>> {
    r.list(
        "env",
        |c| c == ' ' || c == '\t',
        |r, items| {
            let mut list: Vec<(String, String)> = Vec::new();
            for item in &items.value {
                let Some((name, value)) = variable(r, item) else {
                    continue;
                };
                if list.iter().any(|(earlier, _)| *earlier == name) {
                    let message = format!("'env' sets {name} twice");
                    r.error(&item.span, &message);
                } else {
                    list.push((name, value));
                }
            }
            Some(list)
        },
    )
}

fn variable(r: &mut Reader<'_>, item: &Located<String>) -> Option<(String, String)> {
    const WHAT: &str = "NAME=value pairs (a name of letters, digits and '_')";
    let Some((name, value)) = item.value.split_once('=') else {
        return r.not("env", item, WHAT);
    };
    let rest = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let named = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(rest)
        && name.len() <= 127;
    if !named || value.chars().any(char::is_control) {
        return r.not("env", item, WHAT);
    }
    if name == "PATH" || name.starts_with("ENVEXEC_") {
        let message = format!("'env' cannot set {name}: the executor sets it");
        r.error(&item.span, &message);
        return None;
    }
    Some((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_the_processor() {
        for (text, written) in [
            ("max", Some("max")),
            ("50%", Some("50000 100000")),
            ("1%", Some("1000 100000")),
            ("250%", Some("250000 100000")),
            ("20000  100000", Some("20000 100000")),
            ("max 50000", Some("max 50000")),
            ("0%", None),
            ("%", None),
            ("-1%", None),
            ("20000", None),
            ("999 100000", None),
            ("20000 999", None),
            ("20000 1000001", None),
            ("1 2 3", None),
            ("", None),
        ] {
            assert_eq!(cpu_max(text).as_deref(), written, "{text}");
        }
    }

    #[test]
    fn lines_of_io_max() {
        for (text, written) in [
            ("8:0 rbps=10M", Some("8:0 rbps=10485760")),
            (
                "259:1\triops=100 wiops=max",
                Some("259:1 riops=100 wiops=max"),
            ),
            ("8:0", None),
            ("sda rbps=1", None),
            ("8:0 rbps=0", None),
            ("8:0 rbps=1 rbps=2", None),
            ("8:0 speed=1", None),
            ("8:0 rbps", None),
            ("8:0 riops=1M", None),
            ("8:4294967296 riops=1", None),
            ("8:0\n9:0 riops=1", None),
        ] {
            assert_eq!(io_line(text).as_deref(), written, "{text}");
        }
    }
}
