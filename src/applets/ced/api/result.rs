//! What became of one host, whichever of the server's shapes it comes in (spec/api.md 6.2, 6.3, 6.5).

use serde_json::{Map, Value};

use crate::applets::ced::api::text;
use crate::applets::ced::show;
use crate::core::config::diagnostics::printable;
use crate::core::terminal;

/// One host of a run.
pub(super) struct HostOutcome<'a> {
    name: String,
    fields: &'a Map<String, Value>,
}

impl<'a> HostOutcome<'a> {
    /// From an entry of `results`, which names its host.
    pub(super) fn of_result(fields: &'a Map<String, Value>) -> Self {
        Self {
            name: label(fields),
            fields,
        }
    }

    /// From an entry of `hosts`, which stands under its name.
    pub(super) fn of_entry(name: &str, fields: &'a Map<String, Value>) -> Self {
        Self {
            name: printable(name),
            fields,
        }
    }

    fn text(&self, name: &str) -> &'a str {
        text(self.fields, name)
    }

    fn exit(&self) -> Option<i64> {
        self.fields.get("exit").and_then(Value::as_i64)
    }

    /// `ok`, `exit:N`, `error`, or the word for a run that has not ended.
    fn verdict(&self) -> String {
        match (self.exit(), self.text("status")) {
            (Some(exit), _) if exit < 0 || !self.text("error").is_empty() => "error".to_owned(),
            (Some(0), _) => "ok".to_owned(),
            (Some(exit), _) => format!("exit:{exit}"),
            (None, "" | "done") => "error".to_owned(),
            (None, status) => printable(status),
        }
    }

    /// The script ended well, or nothing is known against it yet.
    pub(super) fn is_good(&self) -> bool {
        matches!(self.verdict().as_str(), "ok" | "accepted" | "running")
    }

    /// Heading, error, output and notes; the script's stderr goes to ours.
    pub(super) fn print(&self) {
        let rtt = match printable(self.text("rtt")) {
            rtt if rtt.is_empty() => rtt,
            rtt => format!(" {rtt}"),
        };
        let mut out = format!("==> {} [{}{rtt}]\n", self.name, self.verdict());
        out.push_str(&show::error(self.text("error")));
        match (self.text("fetch_error"), self.text("status")) {
            ("", "expired") if self.text("error").is_empty() => out.push_str(
                "    the agent has no record of this run (any more): its result is gone\n",
            ),
            ("", _) => {}
            (error, _) => out.push_str(&format!("    (fetch pending: {})\n", printable(error))),
        }
        out.push_str(&ended_line(self.text("stdout")));
        out.push_str(&show::notes(self.fields));
        terminal::stdout_bytes(out.as_bytes());
        terminal::stderr_bytes(ended_line(self.text("stderr")).as_bytes());
    }
}

/// The name of a host as results give it, with its own name for itself.
pub(super) fn label(fields: &Map<String, Value>) -> String {
    let host = printable(text(fields, "host"));
    match printable(text(fields, "reported_hostname")) {
        reported if reported.is_empty() => host,
        reported => format!("{host} ({reported})"),
    }
}

/// The objects of an array in an answer.
pub(super) fn objects<'a>(
    object: &'a Map<String, Value>,
    name: &str,
) -> impl Iterator<Item = &'a Map<String, Value>> {
    let array = object.get(name).and_then(Value::as_array);
    array.into_iter().flatten().filter_map(Value::as_object)
}

/// Output as the script wrote it, with an end of line.
fn ended_line(text: &str) -> String {
    let mut text = text.to_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn one_word_for_every_shape() {
        for (fields, verdict, good) in [
            (json!({"exit": 0, "stdout": ""}), "ok", true),
            (json!({"status": "done", "exit": 0}), "ok", true),
            (json!({"exit": 7}), "exit:7", false),
            (json!({"exit": -1, "error": "no"}), "error", false),
            (json!({"exit": 0, "error": "no"}), "error", false),
            (json!({"status": "accepted"}), "accepted", true),
            (json!({"status": "running"}), "running", true),
            (json!({"status": "busy", "error": "b"}), "busy", false),
            (json!({"status": "error", "error": "e"}), "error", false),
            (json!({"status": "expired"}), "expired", false),
            (json!({"status": "new\u{1b}"}), "new\\u{1b}", false),
            (json!({"status": "done"}), "error", false),
            (json!({}), "error", false),
        ] {
            let fields = fields.as_object().unwrap();
            let outcome = HostOutcome::of_entry("h", fields);
            assert_eq!(outcome.verdict(), verdict, "{fields:?}");
            assert_eq!(outcome.is_good(), good, "{fields:?}");
        }
    }
}
