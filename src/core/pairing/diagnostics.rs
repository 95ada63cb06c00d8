//! What the operator is told about who asks (spec/pairing.md 8). The lines are for people; nothing parses them.

use super::code::CodeKind;
use super::record::Record;

/// Name, addresses, reverse name: one line each.
pub fn identity_lines(record: &Record) -> Vec<String> {
    let source = record
        .source
        .map_or_else(|| "unknown".to_owned(), |ip| ip.to_string());
    let mut lines = vec![
        format!(
            "Reported name: {} (will be the name in the registry)",
            record.hostname
        ),
        format!("Source IP:     {source}"),
    ];
    if let Some(ip) = record.differing_ip() {
        lines.push(format!(
            "Reported IP:   {ip} (differs from the source: NAT, or another interface)"
        ));
    }
    lines.push(match &record.reverse {
        Some(reverse) if reverse.confirmed => {
            format!("Reverse DNS:   {} (forward-confirmed)", reverse.name)
        }
        Some(reverse) => format!("Reverse DNS:   {} (unconfirmed)", reverse.name),
        None => "Reverse DNS:   none".to_owned(),
    });
    lines
}

/// What to do about the name after the approval.
pub fn recommendation(record: &Record) -> String {
    let name = &record.hostname;
    match &record.reverse {
        Some(reverse) if reverse.confirmed && reverse.name.eq_ignore_ascii_case(name.as_str()) => {
            "Look-up by host name should work.".to_owned()
        }
        Some(reverse) if reverse.confirmed => format!(
            "If '{name}' does not resolve here: ced edit-agent {name} --rename {}",
            reverse.name
        ),
        _ => match record.source {
            Some(ip) => format!(
                "If '{name}' does not resolve here: ced edit-agent {name} --lookup-by ip --ip {ip}"
            ),
            None => {
                format!("If '{name}' does not resolve here: ced edit-agent {name} --lookup-by ip")
            }
        },
    }
}

/// How to use the code, and what it cannot do.
pub fn code_advice(kind: CodeKind) -> &'static str {
    match kind {
        CodeKind::Bound => {
            "Approve only if the agent shows the same code, and calls it 'bound' too."
        }
        CodeKind::Basic => {
            "Approve only if the agent shows the same code. It is an older release (code: basic), whose code does not protect against an active \
             attacker. If the agent calls its code 'bound', somebody is in between: deny."
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::pairing::message::parse_ip;
    use crate::core::pairing::record::{ReverseName, tests::sample};

    #[test]
    fn the_recommendation_follows_the_reverse_name() {
        let mut record = sample("0a", "web01", false);
        assert!(recommendation(&record).ends_with("--lookup-by ip --ip 192.0.2.7"));
        let reverse = |name: &str, confirmed| {
            Some(ReverseName {
                name: name.to_owned(),
                confirmed,
            })
        };
        record.reverse = reverse("web01.example.org", false);
        assert!(recommendation(&record).contains("--lookup-by ip"));
        record.reverse = reverse("web01.example.org", true);
        assert!(recommendation(&record).ends_with("--rename web01.example.org"));
        record.reverse = reverse("WEB01", true);
        assert_eq!(recommendation(&record), "Look-up by host name should work.");
    }

    #[test]
    fn a_reported_address_is_shown_when_it_differs() {
        let mut record = sample("0a", "web01", false);
        assert_eq!(identity_lines(&record).len(), 3);
        record.ip = parse_ip("10.1.2.3");
        assert!(identity_lines(&record)[2].contains("10.1.2.3"));
    }
}
