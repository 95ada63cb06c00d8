//! Why a handshake failed, in the terms in which callers decide (rate limits, retries) and people act.

use std::io::{self, ErrorKind};

use rustls::{AlertDescription, CertificateError, Error};

use super::verifier::NotAnAgent;
use crate::core::pki::cert::CertError;

/// The outcome of a failed handshake. `Display` is one sentence: whose fault it is and what to do.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TlsFailure {
    /// The peer's certificate is ours, but its time has not come: most likely our clock is wrong.
    #[error("the peer's certificate is not valid yet: check the clock of this host")]
    ClockNotYetValid,
    /// The peer's certificate is ours, but its time is over.
    #[error(
        "the peer's certificate has expired: renew it on the peer (or check the clock of this host)"
    )]
    Expired,
    /// Somebody else's certificate.
    #[error(
        "the peer's certificate is not from our CA: it belongs to another installation, or the peer must be paired again"
    )]
    UnknownIssuer,
    /// A signature is false: that of a CA of the same name under the certificate, or that of the peer under the handshake.
    #[error("the peer could not prove that it holds its key")]
    BadSignature,
    /// A server that is known by its name has shown a certificate for another one.
    #[error("the certificate of the server does not fit its name: {0}")]
    WrongName(String),
    /// The peer, as a client, has shown no certificate.
    #[error("the peer has shown no certificate: only paired hosts may connect")]
    NoCertificate,
    /// What the peer sent is not TLS.
    #[error("the peer does not speak TLS: check address and port")]
    NotTls,
    /// The peer turned our certificate down because of its dates.
    #[error(
        "the peer refused our certificate (expired or not yet valid there): renew it, or check the clocks of both hosts"
    )]
    ExpiredThere,
    /// The peer turned our certificate down and told us so.
    #[error(
        "the peer refused our certificate ({0}): see the log of the peer, and check its clock and its CA"
    )]
    RefusedByPeer(String),
    /// The peer broke off without a word.
    #[error("the peer closed the connection during the TLS handshake: see its log")]
    Closed,
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl TlsFailure {
    /// Whether only the clock stands between the peer and us. Such failures must not count against the peer (spec/operations.md 16.1).
    pub fn is_about_time(&self) -> bool {
        matches!(
            self,
            Self::ClockNotYetValid | Self::Expired | Self::ExpiredThere
        )
    }
}

/// What a failed handshake means; takes the error of a `tokio_rustls` future or of rustls itself.
pub fn classify<'a, E>(error: &'a E) -> TlsFailure
where
    TlsFailure: From<&'a E>,
{
    TlsFailure::from(error)
}

impl From<&io::Error> for TlsFailure {
    fn from(error: &io::Error) -> Self {
        let inner = error.get_ref().and_then(|e| e.downcast_ref::<Error>());
        match inner {
            Some(tls) => Self::from(tls),
            None => match error.kind() {
                ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                    Self::Closed
                }
                _ => Self::Other(error.to_string()),
            },
        }
    }
}

impl From<&Error> for TlsFailure {
    fn from(error: &Error) -> Self {
        match error {
            Error::InvalidCertificate(reason) => of_certificate(reason),
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::InvalidMessage(_) => Self::NotTls,
            Error::AlertReceived(alert) => of_alert(*alert),
            Error::PeerIncompatible(_) => Self::Other(format!(
                "the peer has no TLS version or cipher suite in common with us ({error})"
            )),
            other => Self::Other(other.to_string()),
        }
    }
}

fn of_certificate(reason: &CertificateError) -> TlsFailure {
    use CertificateError as C;
    match reason {
        C::NotValidYet | C::NotValidYetContext { .. } => TlsFailure::ClockNotYetValid,
        C::Expired | C::ExpiredContext { .. } => TlsFailure::Expired,
        C::UnknownIssuer => TlsFailure::UnknownIssuer,
        C::NotValidForName | C::NotValidForNameContext { .. } => {
            TlsFailure::WrongName(reason.to_string())
        }
        C::BadSignature => TlsFailure::BadSignature,
        C::Other(other) => {
            let ours = other.0.is::<NotAnAgent>() || other.0.is::<CertError>();
            let told_by = if ours {
                ""
            } else {
                "the peer's certificate is unusable: "
            };
            TlsFailure::Other(format!("{told_by}{}", other.0))
        }
        other => TlsFailure::Other(format!("the peer's certificate is unusable: {other}")),
    }
}

fn of_alert(alert: AlertDescription) -> TlsFailure {
    use AlertDescription as A;
    let reason = match alert {
        A::CertificateExpired => return TlsFailure::ExpiredThere,
        A::UnknownCA => "not from its CA",
        A::CertificateRequired | A::NoCertificate => "none was sent",
        A::CertificateRevoked => "revoked",
        A::BadCertificate
        | A::UnsupportedCertificate
        | A::CertificateUnknown
        | A::AccessDenied
        | A::DecryptError => "not acceptable there",
        other => return TlsFailure::Other(format!("the peer broke off with TLS alert {other:?}")),
    };
    TlsFailure::RefusedByPeer(reason.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::InvalidMessage;

    #[test]
    fn errors_are_told_apart_also_inside_io_errors() {
        for (error, expected) in [
            (
                CertificateError::NotValidYet.into(),
                TlsFailure::ClockNotYetValid,
            ),
            (CertificateError::Expired.into(), TlsFailure::Expired),
            (
                CertificateError::UnknownIssuer.into(),
                TlsFailure::UnknownIssuer,
            ),
            (Error::NoCertificatesPresented, TlsFailure::NoCertificate),
            (
                Error::InvalidMessage(InvalidMessage::InvalidContentType),
                TlsFailure::NotTls,
            ),
            (
                Error::AlertReceived(AlertDescription::UnknownCA),
                TlsFailure::RefusedByPeer("not from its CA".to_owned()),
            ),
        ] {
            assert_eq!(classify(&error), expected);
            let wrapped = io::Error::new(ErrorKind::InvalidData, error);
            assert_eq!(classify(&wrapped), expected);
        }
    }

    #[test]
    fn sentences_say_what_to_do() {
        assert!(
            TlsFailure::ClockNotYetValid
                .to_string()
                .contains("check the clock of this host")
        );
        for kind in [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset] {
            assert_eq!(classify(&io::Error::from(kind)), TlsFailure::Closed);
        }
        let refused = io::Error::from_raw_os_error(libc::ECONNREFUSED);
        assert_eq!(classify(&refused), TlsFailure::Other(refused.to_string()));
        assert!(TlsFailure::Expired.is_about_time());
        assert!(!TlsFailure::UnknownIssuer.is_about_time());
    }
}
