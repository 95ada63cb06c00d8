//! The text format itself: one `# HELP` and one `# TYPE` per family, then its samples, one a line.

use std::fmt::Write as _;

/// What a family is, as `# TYPE` says it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Only ever grows; its name ends in `_total`.
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A family of series: what all of them have in common.
#[derive(Debug)]
pub struct Family {
    pub name: &'static str,
    pub kind: Kind,
    /// One sentence, without a line end.
    pub help: &'static str,
    /// Names of the labels, in the order in which values are given.
    pub labels: &'static [&'static str],
}

/// A page for a scraper under construction. Each family must be begun once; its samples follow at once.
#[derive(Debug, Default)]
pub struct Page {
    text: String,
}

impl Page {
    pub fn new() -> Self {
        Self::default()
    }

    /// The whole page.
    pub fn into_text(self) -> String {
        self.text
    }

    /// A gauge whose value is known only now, without labels.
    pub fn gauge(&mut self, family: &Family, value: i64) {
        self.begin(family);
        self.sample(family, &[], value);
    }

    /// Begins a family.
    pub fn begin(&mut self, family: &Family) {
        let Family {
            name, kind, help, ..
        } = family;
        let kind = kind.as_str();
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// A sample of the family that was begun last.
    pub fn sample(&mut self, family: &Family, values: &[&str], value: i64) {
        let mut rendered = String::new();
        labels(family.labels, values, &mut rendered);
        self.line(family.name, "", &rendered, &value.to_string());
    }

    /// A line with labels that are rendered already.
    pub(super) fn line(&mut self, name: &str, suffix: &str, labels: &str, value: &str) {
        let _ = if labels.is_empty() {
            writeln!(self.text, "{name}{suffix} {value}")
        } else {
            writeln!(self.text, "{name}{suffix}{{{labels}}} {value}")
        };
    }
}

/// `name="value",...` with the three characters escaped that the format asks for. A value too few is empty, one too many is left out.
pub(super) fn labels(names: &[&str], values: &[&str], text: &mut String) {
    for (at, name) in names.iter().enumerate() {
        if at > 0 {
            text.push(',');
        }
        text.push_str(name);
        text.push_str("=\"");
        let value = values.get(at).copied().unwrap_or_default();
        match value.bytes().any(|b| matches!(b, b'\\' | b'"' | b'\n')) {
            false => text.push_str(value),
            true => value.chars().for_each(|c| match c {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                c => text.push(c),
            }),
        }
        text.push('"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_escaped_and_nothing_else_is() {
        let labels = |names: &[&str], values: &[&str]| {
            let mut text = String::new();
            labels(names, values, &mut text);
            text
        };
        let text = labels(&["a", "b"], &["x\\y\"z\n\u{e4}\t", "plain"]);
        assert_eq!(text, "a=\"x\\\\y\\\"z\\n\u{e4}\t\",b=\"plain\"");
        assert_eq!(labels(&[], &["lost"]), "");
        assert_eq!(labels(&["a"], &[]), "a=\"\"");
    }

    #[test]
    fn a_page_has_help_type_and_samples() {
        static FAMILY: Family = Family {
            name: "ctrl_exec_x",
            kind: Kind::Gauge,
            help: "An x.",
            labels: &["a"],
        };
        let mut page = Page::new();
        page.begin(&FAMILY);
        page.sample(&FAMILY, &["1"], -3);
        assert_eq!(
            page.into_text(),
            "# HELP ctrl_exec_x An x.\n# TYPE ctrl_exec_x gauge\nctrl_exec_x{a=\"1\"} -3\n"
        );
    }
}
