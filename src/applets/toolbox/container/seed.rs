//! The configuration that a container writes at its first start, from its environment (spec/operations.md 8.1). Pure: from variables to text.

use std::fmt::Write as _;
use std::net::IpAddr;

use crate::core::types::DispatcherId;

/// Variables of the two roles that count at the first start only.
pub(super) const DISPATCHER_VARIABLES: &[&str] =
    &["API_BIND", "API_PORT", "API_AUTH_DEFAULT", "READ_TIMEOUT"];
pub(super) const AGENT_VARIABLES: &[&str] = &["AGENT_ENV", "AGENT_ROLE"];

/// Scripts of the host; a volume in the original's images.
pub(super) const SCRIPTS_DIR: &str = "/opt/ctrl-exec-scripts";

/// `ctrl-exec.toml`. `var` answers variables that are set and not empty; `host` becomes the id, which must not change when the
/// container is made anew under another host name.
///
/// # Errors
/// A sentence with the variable that makes no sense: nothing is guessed.
pub(super) fn dispatcher<'a>(
    var: impl Fn(&str) -> Option<&'a str>,
    host: &str,
    has_hook: bool,
) -> Result<String, String> {
    let bind = var("API_BIND").unwrap_or("127.0.0.1");
    if bind.parse::<IpAddr>().is_err() {
        return Err(wrong("API_BIND", bind, "an IP address (0.0.0.0: all)"));
    }
    let port = var("API_PORT").unwrap_or("7445");
    if !port.parse::<u16>().is_ok_and(|port| port > 0) {
        return Err(wrong("API_PORT", port, "a number from 1 to 65535"));
    }
    let default = var("API_AUTH_DEFAULT").unwrap_or("deny");
    if !["deny", "allow"].contains(&default) {
        return Err(wrong("API_AUTH_DEFAULT", default, "deny or allow"));
    }
    let mut text = String::from(HEAD);
    let id = DispatcherId::sanitise(host);
    let _ = write!(
        text,
        "cert = \"/etc/ctrl-exec/dispatcher.crt\"\nkey = \"/etc/ctrl-exec/dispatcher.key\"\nca = \"/etc/ctrl-exec/ca.crt\"\n\
         dispatcher_id = {}\napi_bind = \"{bind}\"\napi_port = {}\napi_auth_default = \"{default}\"\n",
        quoted(id.as_str()),
        port.trim_start_matches('0'),
    );
    if let Some(seconds) = var("READ_TIMEOUT") {
        if !seconds
            .parse::<u32>()
            .is_ok_and(|n| (1..=86_400).contains(&n))
        {
            return Err(wrong("READ_TIMEOUT", seconds, "seconds, from 1 to 86400"));
        }
        let _ = writeln!(text, "read_timeout = {}", seconds.trim_start_matches('0'));
    }
    if has_hook {
        text.push_str("auth_hook = \"/etc/ctrl-exec/auth-hook\"\n");
    }
    Ok(text)
}

/// `agent.toml`.
///
/// # Errors
/// As for [`dispatcher`].
pub(super) fn agent<'a>(var: impl Fn(&str) -> Option<&'a str>) -> Result<String, String> {
    let mut text = String::from(HEAD);
    let _ = write!(
        text,
        "script_dirs = [\"{SCRIPTS_DIR}\"]\n\n\
         # Scripts run as nobody, by the executor. It needs root and CAP_SYS_ADMIN; without it: executor_socket = \"0\",\n\
         # and scripts run as the agent's own user, without profiles.\n\
         executor_socket = \"/run/ctrl-exec-agent/exec.sock\"\n\n\
         [profile.default]\nrun_as = \"nobody\"\n"
    );
    let tags = [("AGENT_ENV", "env"), ("AGENT_ROLE", "role")];
    let mut given = tags
        .iter()
        .filter_map(|(variable, tag)| Some((variable, tag, var(variable)?)))
        .peekable();
    if given.peek().is_some() {
        text.push_str("\n[tags]\n");
    }
    for (variable, tag, value) in given {
        if value.chars().any(char::is_control) {
            return Err(wrong(variable, value, "a text without control characters"));
        }
        let _ = writeln!(text, "{tag} = {}", quoted(value));
    }
    Ok(text)
}

/// `scripts.toml`: nothing may run yet.
pub(super) const ALLOWLIST: &str = "# What dispatchers may run here; send the container a HUP after a change.\n\
     # [scripts.NAME]\n# path = \"/opt/ctrl-exec-scripts/NAME\"\n";

const HEAD: &str = "# Written at the first start of the container from its environment; it is not written again.\n";

fn wrong(variable: &str, value: &str, wanted: &str) -> String {
    format!(
        "the variable {variable} is '{}': it must be {wanted}",
        value.escape_debug()
    )
}

/// A TOML string. Control characters are refused before.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn vars(pairs: &[(&'static str, &'static str)]) -> impl Fn(&str) -> Option<&'static str> {
        let map: BTreeMap<_, _> = pairs.iter().copied().collect();
        move |name| map.get(name).copied()
    }

    #[test]
    fn the_defaults_are_those_of_the_original() {
        let text = dispatcher(vars(&[]), "ctl.example.org", false).unwrap();
        let file: toml::Table = text.parse().unwrap();
        assert_eq!(file["api_bind"].as_str(), Some("127.0.0.1"));
        assert_eq!(file["api_port"].as_integer(), Some(7445));
        assert_eq!(file["api_auth_default"].as_str(), Some("deny"));
        assert!(!file.contains_key("read_timeout") && !file.contains_key("auth_hook"));
        assert_eq!(file["dispatcher_id"].as_str(), Some("ctl.example.org"));
    }

    #[test]
    fn every_variable_has_its_key() {
        let given = [
            ("API_BIND", "::"),
            ("API_PORT", "08080"),
            ("API_AUTH_DEFAULT", "allow"),
            ("READ_TIMEOUT", "90"),
        ];
        let text = dispatcher(vars(&given), "ctl", true).unwrap();
        let file: toml::Table = text.parse().unwrap();
        assert_eq!(file["api_bind"].as_str(), Some("::"));
        assert_eq!(file["api_port"].as_integer(), Some(8080));
        assert_eq!(file["api_auth_default"].as_str(), Some("allow"));
        assert_eq!(file["read_timeout"].as_integer(), Some(90));
        assert_eq!(file["auth_hook"].as_str(), Some("/etc/ctrl-exec/auth-hook"));
    }

    #[test]
    fn nonsense_is_refused_by_the_name_of_its_variable() {
        for pair in [
            ("API_BIND", "everywhere"),
            ("API_BIND", "0.0.0.0\"\nauth_hook=\"/x"),
            ("API_PORT", "0"),
            ("API_PORT", "70000"),
            ("API_AUTH_DEFAULT", "Allow all"),
            ("READ_TIMEOUT", "1m"),
        ] {
            let error = dispatcher(vars(&[pair]), "ctl", false).unwrap_err();
            assert!(error.contains(pair.0) && !error.contains('\n'), "{error}");
        }
        assert!(agent(vars(&[("AGENT_ENV", "a\nb")])).is_err());
    }

    #[test]
    fn tags_cannot_break_out_of_their_strings() {
        let given = [("AGENT_ENV", "a\"b\\"), ("AGENT_ROLE", "web server")];
        let file: toml::Table = agent(vars(&given)).unwrap().parse().unwrap();
        assert_eq!(file["tags"]["env"].as_str(), Some("a\"b\\"));
        assert_eq!(file["tags"]["role"].as_str(), Some("web server"));
        let file: toml::Table = agent(vars(&[])).unwrap().parse().unwrap();
        assert!(!file.contains_key("tags"));
        assert_eq!(
            file["profile"]["default"]["run_as"].as_str(),
            Some("nobody")
        );
        assert!(ALLOWLIST.parse::<toml::Table>().unwrap().is_empty());
    }
}
