//! The URL of a server: `http://HOST[:PORT]`, `https://HOST[:PORT]` or `unix:/PATH`, and nothing more.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

/// Where a server is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Endpoint {
    /// The host is a name or an address (without brackets).
    Http {
        host: String,
        port: u16,
    },
    Https {
        host: String,
        port: u16,
    },
    Unix(PathBuf),
}

/// Why a text is no such URL.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum EndpointError {
    #[error("use http://HOST[:PORT], https://HOST[:PORT] or unix:/PATH/OF/SOCKET")]
    Scheme,
    #[error(
        "user name and password do not belong into the URL: they would stand in logs and process lists"
    )]
    UserInfo,
    #[error("it must end with the host and the port: a path or a query does not belong there")]
    Rest,
    #[error(
        "the host is missing or not a name or address (an IPv6 address stands in brackets: http://[::1]:7445)"
    )]
    Host,
    #[error("the port must be a number from 1 to 65535")]
    Port,
    #[error("the path of the socket must be absolute, as in unix:/run/ctrl-exec/api.sock")]
    Socket,
}

impl Endpoint {
    /// # Errors
    /// Anything but the three forms; a `/` at the very end is let through.
    pub fn parse(text: &str) -> Result<Self, EndpointError> {
        let (scheme, rest) = text.split_once(':').ok_or(EndpointError::Scheme)?;
        match scheme.to_ascii_lowercase().as_str() {
            "unix" => socket(rest),
            "http" => authority(rest, 80).map(|(host, port)| Self::Http { host, port }),
            "https" => authority(rest, 443).map(|(host, port)| Self::Https { host, port }),
            _ => Err(EndpointError::Scheme),
        }
    }

    /// What goes into the header `Host`.
    pub fn authority(&self) -> String {
        match self {
            Self::Http { host, port } | Self::Https { host, port } if host.contains(':') => {
                format!("[{host}]:{port}")
            }
            Self::Http { host, port } | Self::Https { host, port } => format!("{host}:{port}"),
            Self::Unix(_) => "localhost".to_owned(),
        }
    }

    /// Whether what is sent can be read on the way: HTTP without TLS to anywhere but this host itself.
    pub fn is_exposed(&self) -> bool {
        match self {
            Self::Http { host, .. } => {
                let own_name = host.eq_ignore_ascii_case("localhost");
                !own_name
                    && !host
                        .parse::<IpAddr>()
                        .is_ok_and(|address| address.to_canonical().is_loopback())
            }
            Self::Https { .. } | Self::Unix(_) => false,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http { .. } => write!(f, "http://{}", self.authority()),
            Self::Https { .. } => write!(f, "https://{}", self.authority()),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

fn socket(rest: &str) -> Result<Endpoint, EndpointError> {
    // unix:///path is another way to write unix:/path; unix://path names a host.
    let path = match rest.strip_prefix("//") {
        Some(path) => path,
        None => rest,
    };
    if path.starts_with('/') && path.len() > 1 && !path.contains(char::is_control) {
        Ok(Endpoint::Unix(PathBuf::from(path)))
    } else {
        Err(EndpointError::Socket)
    }
}

fn authority(rest: &str, usual: u16) -> Result<(String, u16), EndpointError> {
    let rest = rest.strip_prefix("//").ok_or(EndpointError::Scheme)?;
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains('@') {
        return Err(EndpointError::UserInfo);
    }
    if rest.contains(['/', '?', '#']) {
        return Err(EndpointError::Rest);
    }
    let (host, port) = match rest.strip_prefix('[') {
        Some(bracketed) => {
            let (host, port) = bracketed.split_once(']').ok_or(EndpointError::Host)?;
            let address: Ipv6Addr = host.parse().map_err(|_| EndpointError::Host)?;
            let port = match port.strip_prefix(':') {
                Some(port) => Some(port),
                None if port.is_empty() => None,
                None => return Err(EndpointError::Host),
            };
            (address.to_string(), port)
        }
        None => {
            let (host, port) = match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            };
            let fits = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
            if host.is_empty() || host.len() > 253 || !host.bytes().all(fits) {
                return Err(EndpointError::Host);
            }
            (host.to_owned(), port)
        }
    };
    let port = match port {
        None => usual,
        Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
            match digits.parse() {
                Ok(port) if port > 0 => port,
                _ => return Err(EndpointError::Port),
            }
        }
        Some(_) => return Err(EndpointError::Port),
    };
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_forms() {
        for (text, shown) in [
            ("http://localhost:7445", "http://localhost:7445"),
            ("HTTP://h.example/", "http://h.example:80"),
            ("https://h.example", "https://h.example:443"),
            ("https://10.0.0.1:65535", "https://10.0.0.1:65535"),
            ("http://[::1]:7445", "http://[::1]:7445"),
            ("http://[0:0::1]", "http://[::1]:80"),
            ("unix:/run/a b.sock", "unix:/run/a b.sock"),
            ("unix:///run/a.sock", "unix:/run/a.sock"),
        ] {
            assert_eq!(Endpoint::parse(text).unwrap().to_string(), shown, "{text}");
        }
    }

    #[test]
    fn everything_else_is_refused_with_its_reason() {
        use EndpointError as E;
        for (text, why) in [
            ("", E::Scheme),
            ("localhost", E::Scheme),
            ("localhost:7445", E::Scheme),
            ("http:localhost", E::Scheme),
            ("ftp://h", E::Scheme),
            ("http://u@h", E::UserInfo),
            ("http://u:p@h:1", E::UserInfo),
            ("http://h/run", E::Rest),
            ("http://h//", E::Rest),
            ("http://h?x=1", E::Rest),
            ("http://h#x", E::Rest),
            ("http://", E::Host),
            ("http://:7445", E::Host),
            ("http://a b", E::Host),
            ("http://h\r\nX: y", E::Host),
            ("http://[::1", E::Host),
            ("http://[::1]7445", E::Host),
            ("http://[host]", E::Host),
            ("http://h:", E::Port),
            ("http://h:0", E::Port),
            ("http://h:65536", E::Port),
            ("http://h:+1", E::Port),
            ("http://::1", E::Host),
            ("unix:run", E::Socket),
            ("unix:", E::Socket),
            ("unix:/", E::Socket),
            ("unix://run/x", E::Socket),
        ] {
            assert_eq!(Endpoint::parse(text), Err(why), "{text:?}");
        }
    }

    #[test]
    fn only_plain_http_to_elsewhere_is_exposed() {
        for (url, exposed) in [
            ("http://localhost:1", false),
            ("http://LOCALHOST", false),
            ("http://127.9.9.9", false),
            ("http://[::1]", false),
            ("http://[::ffff:127.0.0.1]", false),
            ("https://h", false),
            ("unix:/x", false),
            ("http://h", true),
            ("http://localhost.example", true),
            ("http://127.0.0.1.example", true),
            ("http://10.0.0.1", true),
            ("http://0.0.0.0", true),
        ] {
            assert_eq!(Endpoint::parse(url).unwrap().is_exposed(), exposed, "{url}");
        }
    }
}
