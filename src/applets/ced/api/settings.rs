//! Which server is asked, and as whom: option, else environment, else file, else default (spec/integrations.md 3).

use std::path::PathBuf;

use crate::applets::AppError;
use crate::applets::ced::api::file::FileKeys;
use crate::core::config::diagnostics::printable;
use crate::core::http_client::{Endpoint, EndpointError};
use crate::core::types::Secret;

const DEFAULT_URL: &str = "http://localhost:7445";

/// What the command line says.
#[derive(Default)]
pub(super) struct Given {
    pub(super) url: Option<String>,
    pub(super) token: Option<String>,
    pub(super) username: Option<String>,
    pub(super) ca: Option<PathBuf>,
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    pub(super) allow_plain_http: bool,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) endpoint: Endpoint,
    /// Empty: none.
    pub(super) token: Secret<String>,
    /// Empty: none.
    pub(super) username: String,
    /// `None`: the CAs of the system.
    pub(super) ca: Option<PathBuf>,
    /// Client certificate and its key.
    pub(super) identity: Option<(PathBuf, PathBuf)>,
    /// The token can be read on the way, which was allowed.
    pub(super) exposed: bool,
}

/// Puts the sources together. `var` answers variables that are set and not empty.
///
/// # Errors
/// No URL of ours, a token that cannot be sent or must not be sent in clear, half a client certificate, a relative path in the file.
pub(super) fn settle<'a>(
    given: Given,
    var: impl Fn(&str) -> Option<&'a str>,
    file: FileKeys,
) -> Result<Settings, AppError> {
    let of_file = format!("'{}'", file.path.display());
    let (url, source) = match (given.url, var("CTRL_EXEC_API_URL"), file.url) {
        (Some(url), ..) => (url, "--url".to_owned()),
        (_, Some(url), _) => (url.to_owned(), "CTRL_EXEC_API_URL".to_owned()),
        (_, _, Some(url)) => (url, of_file.clone()),
        _ => (DEFAULT_URL.to_owned(), String::new()),
    };
    let endpoint = Endpoint::parse(&url).map_err(|why| {
        // What stands before the '@' may be a password.
        let shown = match why {
            EndpointError::UserInfo => "the URL".to_owned(),
            _ => format!("'{}'", printable(&url)),
        };
        AppError::usage(format!("{source}: {shown} cannot be used: {why}"))
    })?;
    let token = given
        .token
        .or_else(|| var("CTRL_EXEC_TOKEN").map(str::to_owned))
        .map(Secret::new)
        .or(file.token)
        .unwrap_or_default();
    if !token.expose().bytes().all(|b| b.is_ascii_graphic()) {
        return Err(AppError::usage(
            "the token holds blanks or other characters that an Authorization header cannot carry",
        ));
    }
    let username = given
        .username
        .or_else(|| var("CTRL_EXEC_USERNAME").map(str::to_owned))
        .or_else(|| var("USER").map(str::to_owned))
        .or(file.username)
        .unwrap_or_default();

    let exposed = endpoint.is_exposed() && !token.expose().is_empty();
    if exposed && !given.allow_plain_http {
        return Err(AppError::usage(format!(
            "{endpoint}: the token would travel in clear, where everybody on the way can read it - use https://, or allow it with \
             --allow-plain-http"
        )));
    }
    let asked_for_tls = given.ca.is_some() || given.cert.is_some() || given.key.is_some();
    if asked_for_tls && !matches!(endpoint, Endpoint::Https { .. }) {
        return Err(AppError::usage(format!(
            "{endpoint}: --ca, --cert and --key are for https:// URLs"
        )));
    }
    // Nobody knows what a relative path in a file would be relative to.
    let absolute = |key: &str, value: Option<String>| match value.map(PathBuf::from) {
        Some(path) if !path.is_absolute() => Err(AppError::config(format!(
            "{of_file}: the path of '{key}' must be absolute"
        ))),
        other => Ok(other),
    };
    let ca = match given.ca {
        None => absolute("ca", file.ca)?,
        given => given,
    };
    // A pair comes from one place, or a key would be tried with the certificate of another.
    let (cert, key) = if given.cert.is_some() || given.key.is_some() {
        (given.cert, given.key)
    } else {
        (absolute("cert", file.cert)?, absolute("key", file.key)?)
    };
    let identity = match (cert, key) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        _ => {
            return Err(AppError::usage(
                "a client certificate needs both its file (cert) and that of its key (key)",
            ));
        }
    };
    Ok(Settings {
        endpoint,
        token,
        username,
        ca,
        identity,
        exposed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::applets::Exit;

    fn file() -> FileKeys {
        FileKeys {
            path: "/home/x/file".into(),
            url: Some("http://127.0.0.1:3".to_owned()),
            token: Some(Secret::new("of-file".to_owned())),
            username: Some("of-file".to_owned()),
            ..FileKeys::default()
        }
    }

    fn text(value: &str) -> Option<String> {
        Some(value.to_owned())
    }

    fn said(settings: &Settings) -> (String, &str, &str) {
        (
            settings.endpoint.to_string(),
            settings.token.expose(),
            &settings.username,
        )
    }

    #[test]
    fn option_before_environment_before_file_before_default() {
        let none = |_: &str| None;
        let all = |name: &str| match name {
            "CTRL_EXEC_API_URL" => Some("http://127.0.0.1:2"),
            "CTRL_EXEC_TOKEN" => Some("of-env"),
            "CTRL_EXEC_USERNAME" => Some("of-env"),
            "USER" => Some("of-user"),
            _ => None,
        };
        let settled = settle(Given::default(), none, FileKeys::default()).unwrap();
        assert_eq!(said(&settled), ("http://localhost:7445".to_owned(), "", ""));
        let settled = settle(Given::default(), none, file()).unwrap();
        let url = |port| format!("http://127.0.0.1:{port}");
        assert_eq!(said(&settled), (url(3), "of-file", "of-file"));
        let settled = settle(Given::default(), all, file()).unwrap();
        assert_eq!(said(&settled), (url(2), "of-env", "of-env"));
        let user = |name: &str| all(name).filter(|_| name == "USER");
        let settled = settle(Given::default(), user, file()).unwrap();
        assert_eq!(said(&settled), (url(3), "of-file", "of-user"));
        let given = Given {
            url: text("http://127.0.0.1:1"),
            token: text("given"),
            username: text("given"),
            ..Given::default()
        };
        let settled = settle(given, all, file()).unwrap();
        assert_eq!(said(&settled), (url(1), "given", "given"));
        // Nothing is something too.
        let given = Given {
            token: text(""),
            ..Given::default()
        };
        assert_eq!(said(&settle(given, all, file()).unwrap()).1, "");
    }

    #[test]
    fn a_token_goes_in_clear_to_this_host_only() {
        let to = |url: &str, token: &str, allow_plain_http| {
            let given = Given {
                url: text(url),
                token: text(token),
                allow_plain_http,
                ..Given::default()
            };
            settle(given, |_| None, FileKeys::default())
        };
        let refused = to("http://h:1", "t0k", false).unwrap_err();
        assert_eq!(refused.exit(), Exit::Usage);
        assert!(!refused.message().unwrap().contains("t0k"));
        assert!(to("http://h:1", "t0k", true).unwrap().exposed);
        assert!(!to("http://h:1", "", false).unwrap().exposed);
        for url in ["http://localhost", "https://h", "unix:/x"] {
            assert!(!to(url, "t0k", false).unwrap().exposed, "{url}");
        }
        assert!(to("unix:/x", "t 0k", false).is_err());
        assert!(to("unix:/x", "t\r\nX: y", false).is_err());
    }

    #[test]
    fn certificates_need_tls_both_halves_and_a_clear_path() {
        let with = |url: &str, ca: Option<&str>, cert: Option<&str>, file: FileKeys| {
            let given = Given {
                url: text(url),
                ca: ca.map(PathBuf::from),
                cert: cert.map(PathBuf::from),
                ..Given::default()
            };
            settle(given, |_| None, file)
        };
        assert!(with("http://h", Some("ca"), None, FileKeys::default()).is_err());
        assert!(with("https://h", None, Some("c"), FileKeys::default()).is_err());
        let pair = |ca: &str| FileKeys {
            ca: text(ca),
            cert: text("/c"),
            key: text("/k"),
            ..FileKeys::default()
        };
        // Half of one pair is not completed by the other.
        assert!(with("https://h", None, Some("c"), pair("/ca")).is_err());
        assert!(with("https://h", None, None, pair("ca")).is_err());
        let settled = with("https://h", Some("mine"), None, pair("ca")).unwrap();
        assert_eq!(settled.ca, Some("mine".into()));
        assert_eq!(settled.identity, Some(("/c".into(), "/k".into())));
        assert!(with("http://h", None, None, pair("/ca")).is_ok());
    }

    #[test]
    fn a_wrong_url_is_named_with_its_source_but_not_with_its_password() {
        let env = |name: &str| Some("http://u:pass@h").filter(|_| name == "CTRL_EXEC_API_URL");
        let error = settle(Given::default(), env, FileKeys::default()).unwrap_err();
        let told = error.message().unwrap();
        assert!(told.starts_with("CTRL_EXEC_API_URL: the URL cannot be used"));
        assert!(!told.contains("pass@"), "{told}");
        let mut wrong = file();
        wrong.url = text("h:1");
        let error = settle(Given::default(), |_| None, wrong).unwrap_err();
        assert!(
            error
                .message()
                .unwrap()
                .starts_with("'/home/x/file': 'h:1'")
        );
    }
}
