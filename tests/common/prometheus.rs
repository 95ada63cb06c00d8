//! A strict reader of Prometheus' text format 0.0.4: the grammar, and what `promtool check metrics` insists on.

use std::collections::{BTreeMap, BTreeSet};

/// A page that has been found right.
#[derive(Debug, Default)]
pub struct Metrics {
    samples: BTreeMap<String, f64>,
    families: BTreeMap<String, String>,
}

impl Metrics {
    /// Reads a page.
    ///
    /// # Errors
    /// The first line that is wrong, and why.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut reader = Reader::default();
        if !text.is_empty() && !text.ends_with('\n') {
            return Err("the last line has no end".to_owned());
        }
        for (at, line) in text.lines().enumerate() {
            let wrong = |reason: String| format!("line {}: {reason}: {line:?}", at + 1);
            reader.line(line).map_err(wrong)?;
        }
        reader.close()?;
        Ok(reader.page)
    }

    /// Reads a page that must be right.
    pub fn read(text: &str) -> Self {
        Self::parse(text).unwrap_or_else(|reason| panic!("{reason}\n{text}"))
    }

    /// The value of a series as a line names it, labels in the order of the page: `name{a="b"}`.
    pub fn value(&self, series: &str) -> f64 {
        let found = self.samples.get(series).copied();
        found.unwrap_or_else(|| panic!("no {series} in {:#?}", self.samples))
    }

    pub fn has(&self, series: &str) -> bool {
        self.samples.contains_key(series)
    }

    /// Whether a family is on the page.
    pub fn has_family(&self, name: &str) -> bool {
        self.families.contains_key(name)
    }

    /// Names of all families.
    pub fn families(&self) -> impl Iterator<Item = &str> {
        self.families.keys().map(String::as_str)
    }
}

type Labels = Vec<(String, String)>;

#[derive(Default)]
struct Reader {
    page: Metrics,
    /// The family whose lines are being read.
    family: Option<Open>,
    /// Sets of labels that are taken, sorted, with their metric's name.
    seen: BTreeSet<(String, Labels)>,
}

struct Open {
    name: String,
    help: bool,
    kind: Option<String>,
    samples: Vec<Sample>,
}

struct Sample {
    name: String,
    labels: Labels,
    value: f64,
}

type Check = Result<(), String>;

fn ensure(right: bool, reason: impl Into<String>) -> Check {
    if right { Ok(()) } else { Err(reason.into()) }
}

impl Reader {
    fn line(&mut self, line: &str) -> Check {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').ok_or("HELP without a text")?;
            ensure(!help.trim().is_empty(), "HELP without a text")?;
            check_help(help)?;
            self.open(name)?;
            let open = self.current(name)?;
            ensure(!open.help, "HELP twice")?;
            ensure(open.kind.is_none(), "HELP after TYPE")?;
            open.help = true;
            return Ok(());
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').ok_or("TYPE without a type")?;
            let known = ["counter", "gauge", "histogram", "summary", "untyped"];
            ensure(known.contains(&kind), "unknown type")?;
            let open = self.current(name)?;
            ensure(open.kind.is_none(), "TYPE twice")?;
            ensure(open.samples.is_empty(), "TYPE after samples")?;
            open.kind = Some(kind.to_owned());
            return Ok(());
        }
        ensure(!line.is_empty(), "an empty line")?;
        ensure(!line.starts_with('#'), "a comment of no known kind")?;
        self.sample(line)
    }

    /// A new family begins; the one before is over for good.
    fn open(&mut self, name: &str) -> Check {
        if self.family.as_ref().is_some_and(|open| open.name == name) {
            return Ok(());
        }
        ensure(is_metric_name(name), "no name of a metric")?;
        self.close()?;
        ensure(
            !self.page.families.contains_key(name),
            "the family was begun before",
        )?;
        self.family = Some(Open {
            name: name.to_owned(),
            help: false,
            kind: None,
            samples: Vec::new(),
        });
        Ok(())
    }

    fn current(&mut self, name: &str) -> Result<&mut Open, String> {
        match &mut self.family {
            Some(open) if open.name == name => Ok(open),
            _ => Err("it does not belong to the family that was begun last".to_owned()),
        }
    }

    fn sample(&mut self, line: &str) -> Check {
        let (name, labels, value) = split_sample(line)?;
        let open = self.family.as_mut().ok_or("a sample before any family")?;
        let kind = open.kind.as_deref().ok_or("a sample before its TYPE")?;
        ensure(open.help, "a family without HELP")?;
        let suffixes: &[&str] = match kind {
            "histogram" => &["_bucket", "_sum", "_count"],
            "summary" => &["", "_sum", "_count"],
            _ => &[""],
        };
        let fits = |suffix: &str| name.strip_suffix(suffix) == Some(open.name.as_str());
        ensure(
            suffixes.iter().any(|s| fits(s)),
            "it does not belong to the family that was begun last",
        )?;
        if kind == "counter" || kind == "histogram" {
            ensure(value >= 0.0 || name.ends_with("_sum"), "a negative count")?;
        }
        let mut key = labels.clone();
        key.sort();
        ensure(
            key.windows(2).all(|pair| pair[0].0 != pair[1].0),
            "a label twice",
        )?;
        ensure(
            self.seen.insert((name.clone(), key)),
            "the series was there before",
        )?;
        let series = line.rsplit_once(' ').map_or(line, |(series, _)| series);
        self.page.samples.insert(series.to_owned(), value);
        open.samples.push(Sample {
            name,
            labels,
            value,
        });
        Ok(())
    }

    fn close(&mut self) -> Check {
        let Some(open) = self.family.take() else {
            return Ok(());
        };
        let wrong = |reason: &str| format!("family {}: {reason}", open.name);
        let kind = open.kind.clone().ok_or_else(|| wrong("it has no TYPE"))?;
        ensure(!open.samples.is_empty(), wrong("it has no sample"))?;
        ensure(
            (kind == "counter") == open.name.ends_with("_total"),
            wrong("a counter's name ends in _total, no other does"),
        )?;
        for reserved in ["_bucket", "_sum", "_count"] {
            ensure(
                !open.name.ends_with(reserved),
                wrong("the end of its name is taken"),
            )?;
        }
        let has_le = |s: &Sample| s.labels.iter().any(|(name, _)| name == "le");
        if kind == "histogram" {
            check_histogram(&open).map_err(|reason| wrong(&reason))?;
        } else {
            ensure(
                !open.samples.iter().any(has_le),
                wrong("'le' is for histograms"),
            )?;
        }
        self.page.families.insert(open.name, kind);
        Ok(())
    }
}

#[derive(Default)]
struct Parts {
    buckets: Vec<(String, f64)>,
    sum: Option<f64>,
    count: Option<f64>,
}

fn check_histogram(open: &Open) -> Check {
    // By the labels without `le`.
    let mut groups: BTreeMap<Labels, Parts> = BTreeMap::new();
    for sample in &open.samples {
        let mut labels = sample.labels.clone();
        labels.sort();
        let le = labels.iter().position(|(name, _)| name == "le");
        let le = le.map(|at| labels.remove(at).1);
        let parts = groups.entry(labels).or_default();
        match (sample.name.strip_prefix(open.name.as_str()), le) {
            (Some("_bucket"), Some(le)) => parts.buckets.push((le, sample.value)),
            (Some("_bucket"), None) => return Err("a bucket without 'le'".to_owned()),
            (_, Some(_)) => return Err("'le' is for buckets".to_owned()),
            (Some("_sum"), None) => parts.sum = Some(sample.value),
            (Some("_count"), None) => parts.count = Some(sample.value),
            (_, None) => return Err("a histogram has only _bucket, _sum and _count".to_owned()),
        }
    }
    for parts in groups.values() {
        ensure(parts.sum.is_some(), "no _sum")?;
        let count = parts.count.ok_or("no _count")?;
        let (last, all) = parts.buckets.last().ok_or("no bucket")?;
        ensure(last == "+Inf", "the last bucket is not +Inf")?;
        ensure(
            (all - count).abs() < f64::EPSILON,
            "the last bucket is not _count",
        )?;
        let mut before = (f64::NEG_INFINITY, 0.0);
        for (bound, value) in &parts.buckets {
            let bound = number(bound)?;
            ensure(bound > before.0, "bounds do not ascend")?;
            ensure(*value >= before.1, "buckets are not cumulative")?;
            before = (bound, *value);
        }
    }
    Ok(())
}

fn check_help(help: &str) -> Check {
    let mut rest = help.chars();
    while let Some(c) = rest.next() {
        if c == '\\' {
            let escaped = rest.next();
            ensure(
                matches!(escaped, Some('\\' | 'n')),
                "a bad escape in the help",
            )?;
        }
    }
    Ok(())
}

/// `name{a="b",...} value`; we send no time stamps, so none is taken.
fn split_sample(line: &str) -> Result<(String, Labels, f64), String> {
    let end = line.find(['{', ' ']).ok_or("no value")?;
    let (name, rest) = line.split_at(end);
    ensure(is_metric_name(name), "no name of a metric")?;
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inside) => read_labels(inside)?,
        None => (Vec::new(), rest),
    };
    let value = rest.strip_prefix(' ').ok_or("no blank before the value")?;
    Ok((name.to_owned(), labels, number(value)?))
}

fn read_labels(mut rest: &str) -> Result<(Labels, &str), String> {
    let mut labels = Vec::new();
    loop {
        if let Some(after) = rest.strip_prefix('}') {
            return Ok((labels, after));
        }
        let (name, after) = rest.split_once("=\"").ok_or("a label without a value")?;
        ensure(is_label_name(name), "no name of a label")?;
        let (value, after) = read_value(after)?;
        labels.push((name.to_owned(), value));
        rest = match after.strip_prefix(',') {
            Some(next) => {
                ensure(!next.starts_with('}'), "a comma without a label")?;
                next
            }
            None => after,
        };
        ensure(after.starts_with([',', '}']), "no comma between two labels")?;
    }
}

fn read_value(text: &str) -> Result<(String, &str), String> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => match chars.next() {
                Some((_, '\\')) => value.push('\\'),
                Some((_, '"')) => value.push('"'),
                Some((_, 'n')) => value.push('\n'),
                _ => return Err("a bad escape in a label".to_owned()),
            },
            c => value.push(c),
        }
    }
    Err("a label without an end".to_owned())
}

fn number(text: &str) -> Result<f64, String> {
    match text {
        "+Inf" => Ok(f64::INFINITY),
        "-Inf" => Ok(f64::NEG_INFINITY),
        "NaN" => Ok(f64::NAN),
        _ => {
            let plain = |c: char| c.is_ascii_digit() || "+-.eE".contains(c);
            ensure(text.chars().all(plain), "no number")?;
            text.parse().map_err(|_| "no number".to_owned())
        }
    }
}

fn is_metric_name(name: &str) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_' || c == ':';
    name.starts_with(first) && name.chars().all(|c| first(c) || c.is_ascii_digit())
}

fn is_label_name(name: &str) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_';
    name.starts_with(first)
        && !name.starts_with("__")
        && name.chars().all(|c| first(c) || c.is_ascii_digit())
}
