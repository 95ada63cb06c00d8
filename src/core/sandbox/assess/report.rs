//! An assessment in words, for 80 columns, and as JSON.

use serde_json::{Map, Value, json};

use super::Assessment;
use crate::core::sandbox::Level;

/// Width of a terminal that everybody has.
const WIDTH: usize = 80;
/// Where values begin.
const INDENT: usize = 16;

/// A label and its value, broken at blanks so that lines stay within 80 columns where words allow it.
pub fn wrapped(label: &str, value: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = format!("  {label:<width$}", width = INDENT - 2);
    let mut empty = true;
    for word in value.split_whitespace() {
        let more = word.chars().count() + usize::from(!empty);
        if !empty && line.chars().count() + more > WIDTH {
            lines.push(line);
            line = " ".repeat(INDENT);
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    lines.push(line.trim_end().to_owned());
    lines
}

impl Assessment {
    /// For people.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("{}  {}", self.name, self.path)];
        let mut add = |label: &str, value: &str| lines.extend(wrapped(label, value));
        let baseline = match self.baseline {
            "" => "not defined",
            word => word,
        };
        add("profile", &format!("{} ({baseline})", self.profile));
        if let Some(who) = &self.identity {
            let name = who.name.as_deref().unwrap_or("no account");
            let groups: Vec<String> = who.groups.iter().map(ToString::to_string).collect();
            let groups = match groups.is_empty() {
                true => "no groups".to_owned(),
                false => format!("groups {}", groups.join(", ")),
            };
            add(
                "runs as",
                &format!("{name} (uid {}, gid {}), {groups}", who.uid, who.gid),
            );
        }
        if !self.baseline.is_empty() {
            let caps = match self.caps.is_empty() {
                true => "none".to_owned(),
                false => self.caps.join(", "),
            };
            add("capabilities", &caps);
        }
        add("digest", if self.digest { "pinned" } else { "not pinned" });
        if self.identity.is_some() {
            let trust = match self.trust.as_slice() {
                [] => "only root can change it".to_owned(),
                [one] => one.clone(),
                [first, rest @ ..] => format!("{first} (and {} more)", rest.len()),
            };
            add("trust", &trust);
        }
        match &self.executable {
            Some(Ok(())) => add("executable", "yes"),
            Some(Err(why)) => add("executable", &format!("NO: {why}")),
            None => {}
        }
        for (label, wanted) in [("enforced", Level::Enforced), ("off", Level::Off)] {
            let all = self.protections.0.iter();
            let names: Vec<_> = all
                .filter(|(_, level)| **level == wanted)
                .map(|(protection, _)| protection.name())
                .collect();
            if !names.is_empty() {
                add(label, &names.join(", "));
            }
        }
        for (protection, why) in self.protections.degraded() {
            add("degraded", &format!("{}: {why}", protection.name()));
        }
        for text in &self.warnings {
            // Degraded protections stand above.
            if !text.contains(" is degraded: ") {
                add("warning", text);
            }
        }
        for text in &self.errors {
            add("ERROR", text);
        }
        lines
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let protections: Map<String, Value> = self
            .protections
            .0
            .iter()
            .map(|(protection, level)| {
                let level = match level {
                    Level::Enforced => json!({"level": "enforced"}),
                    Level::Degraded(why) => json!({"level": "degraded", "reason": why}),
                    Level::Off => json!({"level": "off"}),
                };
                (protection.name().to_owned(), level)
            })
            .collect();
        let identity = self.identity.as_ref().map(
            |who| json!({"uid": who.uid, "gid": who.gid, "groups": who.groups, "name": who.name}),
        );
        let executable = self.executable.as_ref().map(|result| match result {
            Ok(()) => json!({"ok": true}),
            Err(why) => json!({"ok": false, "reason": why}),
        });
        json!({
            "name": self.name.as_str(),
            "path": self.path,
            "profile": self.profile,
            "baseline": self.baseline,
            "identity": identity,
            "capabilities": self.caps,
            "digest": self.digest,
            "trust": self.trust,
            "executable": executable,
            "protections": protections,
            "errors": self.errors,
            "warnings": self.warnings,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_are_broken_at_blanks_and_stay_together_otherwise() {
        let text = "word ".repeat(40);
        let lines = wrapped("label", &text);
        assert!(lines.len() > 2 && lines.iter().all(|l| l.chars().count() <= WIDTH));
        assert!(lines[0].starts_with("  label         word"));
        assert!(lines[1].starts_with(&" ".repeat(INDENT)));
        let long = "x".repeat(200);
        assert_eq!(wrapped("l", &long).len(), 1);
        assert_eq!(wrapped("l", ""), ["  l"]);
    }
}
