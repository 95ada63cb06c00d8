//! Why there is no answer, and the sentence for it.

use std::io;
use std::time::Duration;

use super::transport::TransportError;
use crate::core::tls::TlsFailure;

/// A request without a whole answer. `Display` names the URL and what to do.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{url}: {fault}")]
pub struct HttpError {
    pub url: String,
    pub fault: Fault,
}

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Fault {
    #[error("the name of the host does not resolve - check the URL")]
    Unresolved,
    #[error(
        "connection refused - nothing listens there: is the API started, and is it this port? (ced-api listens on 7445)"
    )]
    Refused,
    #[error("unreachable - no route to the host, or the network is down")]
    Unreachable,
    #[error("no connection within {}s - host down, a firewall in between, or https:// to a port without TLS?", .0.as_secs())]
    ConnectTimeout(Duration),
    #[error("{}", of_socket(*.0, .1))]
    Socket(io::ErrorKind, String),
    #[error("a certificate cannot be made out for this host name - use another name for it")]
    NoTlsName,
    #[error("TLS failed - {}", of_tls(.0))]
    Tls(TlsFailure),
    #[error("the token holds characters that cannot be sent")]
    Token,
    #[error("no word for {}s - the time for this can be raised (timeout)", .0.as_secs())]
    Silence(Duration),
    #[error("the answer is larger than {0} bytes - ask for fewer hosts, or for less output")]
    TooLarge(usize),
    #[error("the connection was closed before the answer was complete - see the log of the API")]
    Closed,
    #[error(
        "what answers there does not speak HTTP - https:// instead of http://, or another port?"
    )]
    NotHttp,
    #[error("the connection was lost ({0}) - try again")]
    Lost(String),
}

impl Fault {
    /// The request had gone out when it happened: the server may have acted on it.
    pub fn may_have_acted(&self) -> bool {
        matches!(
            self,
            Self::Silence(_) | Self::TooLarge(_) | Self::Closed | Self::NotHttp | Self::Lost(_)
        )
    }

    pub(super) fn of_connect(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown => Self::Unreachable,
            _ => Self::Lost(error.to_string()),
        }
    }
}

impl From<TransportError> for Fault {
    fn from(error: TransportError) -> Self {
        match error {
            TransportError::Silence(time) => Self::Silence(time),
            TransportError::TooLarge(limit) => Self::TooLarge(limit),
            TransportError::Tls(failure) => Self::Tls(failure),
            TransportError::Closed => Self::Closed,
            TransportError::NotHttp(_) => Self::NotHttp,
            TransportError::Lost(why) => Self::Lost(why),
        }
    }
}

fn of_socket(kind: io::ErrorKind, text: &str) -> String {
    match kind {
        io::ErrorKind::NotFound => {
            "there is no such socket - is the API started, and is it this path?".to_owned()
        }
        io::ErrorKind::ConnectionRefused => {
            "nothing listens at this socket - is the API started?".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            "this user may not use the socket - see its mode and group".to_owned()
        }
        _ => format!("the socket cannot be used ({text})"),
    }
}

/// The failures of handshakes in the words of a web server's client: there is no pairing here, and any CA may be trusted.
fn of_tls(failure: &TlsFailure) -> String {
    match failure {
        // CAs of different installations often have the same name: then it is the signature that does not fit.
        TlsFailure::UnknownIssuer | TlsFailure::BadSignature => {
            "the certificate of the server is not from a CA that is trusted here: name the file of its CA (ca)"
                .to_owned()
        }
        TlsFailure::WrongName(_) => {
            format!("{failure}: use a name in the URL that the certificate is made out for")
        }
        TlsFailure::Expired => {
            "the certificate of the server has expired: renew it there (or check the clock of this host)".to_owned()
        }
        TlsFailure::NotTls => {
            "the server does not speak TLS: http:// instead of https://, or another port?".to_owned()
        }
        TlsFailure::RefusedByPeer(why) => format!(
            "the server refused our certificate ({why}): name one that it accepts (cert and key)"
        ),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sentence_names_the_url() {
        let error = HttpError {
            url: "http://h:1".to_owned(),
            fault: Fault::Refused,
        };
        assert!(
            error
                .to_string()
                .starts_with("http://h:1: connection refused")
        );
        let kind = io::ErrorKind::PermissionDenied;
        let denied = Fault::Socket(kind, "x".to_owned()).to_string();
        assert!(denied.contains("may not use"), "{denied}");
        assert_eq!(
            Fault::of_connect(&io::Error::from(io::ErrorKind::NetworkUnreachable)),
            Fault::Unreachable
        );
    }

    #[test]
    fn what_was_never_sent_was_not_acted_on() {
        assert!(!Fault::Refused.may_have_acted());
        assert!(!Fault::Tls(TlsFailure::UnknownIssuer).may_have_acted());
        assert!(Fault::Closed.may_have_acted());
        assert!(Fault::Silence(Duration::from_secs(1)).may_have_acted());
    }

    #[test]
    fn tls_is_told_in_terms_of_files_and_names() {
        for failure in [TlsFailure::UnknownIssuer, TlsFailure::BadSignature] {
            let told = of_tls(&failure);
            assert!(told.contains("(ca)") && !told.contains("paired"), "{told}");
        }
        assert!(of_tls(&TlsFailure::NotTls).contains("http://"));
    }
}
