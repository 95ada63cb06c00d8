//! What can go wrong between dispatcher and agent, and the sentence for it (spec/dispatcher.md 9).

use std::io;
use std::time::Duration;

use crate::core::tls::TlsFailure;
use crate::core::wire;

/// An agent closes connections of addresses that it has blocked before they could ask anything.
fn more_of(failure: &TlsFailure) -> &'static str {
    match failure {
        TlsFailure::Closed => ", it may have blocked this address for a while",
        _ => "",
    }
}

/// Why an exchange gave no usable answer. Every variant ends with what the operator can do.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ExchangeError {
    #[error("host '{host}' did not resolve - check the name or use an IP address")]
    Unresolved { host: String },
    #[error(
        "host '{host}' did not respond on port {port} - connection refused (agent not running, or wrong port?)"
    )]
    Refused { host: String, port: u16 },
    #[error("host '{host}' is unreachable - no route to host or network down")]
    Unreachable { host: String },
    #[error("host '{host}' did not respond - connection timed out")]
    ConnectTimeout { host: String },
    #[error(
        "TLS handshake with '{host}' failed - certificate or trust mismatch ({failure}{})",
        more_of(failure)
    )]
    Tls { host: String, failure: TlsFailure },
    /// The address answered with a certificate that is not the agent's (docs/security.md).
    #[error("{0}")]
    WrongPeer(String),
    /// The certificate that answered is the agent's, but revoked.
    #[error("{0}")]
    Revoked(String),
    #[error("read timeout after {}s", .0.as_secs())]
    ReadTimeout(Duration),
    #[error(
        "agent closed the connection without an answer (blocked by its rate limit or allowed_ips, or an older agent that crashed?)"
    )]
    Closed,
    #[error("connection to the agent was lost: {0}")]
    Lost(String),
    /// 403 with the agent's words.
    #[error("forbidden: {0}")]
    Forbidden(String),
    #[error("request too large")]
    TooLarge,
    #[error("answer of the agent is larger than {0} bytes")]
    ReplyTooLarge(usize),
    /// Of a program that bounds the memory for answers.
    #[error(
        "no room for the answer: this server holds too many large answers at the moment - a script that was run has ended, only its output is lost; ask fewer hosts at a time"
    )]
    NoRoom,
    /// 404, with the agent's words, or none.
    #[error("{}", worded("404 Not Found", .words))]
    NotFound {
        words: String,
        /// The agent answered about a run, and knows none of that name; otherwise it knows no such path.
        no_run: bool,
    },
    /// 409, with the agent's words, or none.
    #[error("{}", worded("409 Conflict", .0))]
    Busy(String),
    /// Another status that is not 2xx.
    #[error("{0}")]
    Status(String),
    #[error("invalid JSON response")]
    InvalidJson,
}

impl ExchangeError {
    /// Whether the agent turned down who we are, before it looked at what we want: then another identity may be tried without doing
    /// anything twice. The words are the original's (spec/agent.md 9.1).
    pub fn is_about_our_identity(&self) -> bool {
        match self {
            Self::Forbidden(words) => {
                words == wire::errors::SERIAL_MISMATCH || words == wire::errors::FORBIDDEN
            }
            Self::Tls { failure, .. } => matches!(
                failure,
                TlsFailure::RefusedByPeer(_) | TlsFailure::ExpiredThere
            ),
            _ => false,
        }
    }
}

fn worded(line: &str, words: &str) -> String {
    if words.is_empty() {
        line.to_owned()
    } else {
        format!("{line}: {words}")
    }
}

/// Sorts the failure of a TCP connect by cause.
pub(crate) fn of_connect(host: &str, port: u16, error: &io::Error) -> ExchangeError {
    let host = host.to_owned();
    match error.kind() {
        io::ErrorKind::ConnectionRefused => ExchangeError::Refused { host, port },
        io::ErrorKind::TimedOut => ExchangeError::ConnectTimeout { host },
        io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::NetworkDown => ExchangeError::Unreachable { host },
        _ => ExchangeError::Lost(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_those_that_scripts_match() {
        let refused = of_connect(
            "h",
            7443,
            &io::Error::from(io::ErrorKind::ConnectionRefused),
        );
        assert_eq!(
            refused.to_string(),
            "host 'h' did not respond on port 7443 - connection refused (agent not running, or wrong port?)"
        );
        let unreachable = of_connect("h", 1, &io::Error::from(io::ErrorKind::NetworkUnreachable));
        assert_eq!(
            unreachable.to_string(),
            "host 'h' is unreachable - no route to host or network down"
        );
        let closed = ExchangeError::Tls {
            host: "h".to_owned(),
            failure: TlsFailure::Closed,
        };
        assert_eq!(
            closed.to_string(),
            "TLS handshake with 'h' failed - certificate or trust mismatch (the peer closed the connection during the TLS handshake: see its log, it may have blocked this address for a while)"
        );
        assert_eq!(
            ExchangeError::ReadTimeout(Duration::from_secs(60)).to_string(),
            "read timeout after 60s"
        );
        assert_eq!(
            ExchangeError::Forbidden("serial mismatch".into()).to_string(),
            "forbidden: serial mismatch"
        );
    }
}
