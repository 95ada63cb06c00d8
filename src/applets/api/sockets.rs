//! The sockets that we listen on: those of the configuration, or those that a service manager has opened.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

use tokio::net::{TcpListener, UnixListener};

use crate::applets::api::listener::Listening;
use crate::applets::{AppError, Context};
use crate::core::activation::{self, Passed};
use crate::core::config::ApiSettings;
use crate::core::listen;
use crate::core::logging::Action;
use crate::core::unix_socket::{self, Access, Place};

/// Everything that we listen on.
pub(super) struct Sockets {
    pub(super) listening: Vec<Listening>,
    addresses: Vec<Address>,
    /// Our socket in the file system; `None`: there is none, or it is not ours to remove.
    pub(super) place: Option<Place>,
}

enum Address {
    Tcp(SocketAddr),
    Unix(String),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.fmt(f),
        }
    }
}

/// What a service manager has opened for us. To be called before anything else opens a file.
///
/// # Errors
/// A sentence: what was passed is not what it should be.
pub(super) fn passed(context: &Context) -> Result<Vec<Passed>, AppError> {
    let (pid, fds) = (context.var("LISTEN_PID"), context.var("LISTEN_FDS"));
    let count = activation::count(std::process::id(), pid, fds);
    activation::take(count).map_err(AppError::failed)
}

impl Sockets {
    /// Opens them, unless some were passed: then the addresses of the configuration mean nothing.
    ///
    /// # Errors
    /// A sentence with the address.
    pub(super) fn open(passed: Vec<Passed>, settings: &ApiSettings) -> Result<Self, AppError> {
        let mut sockets = Self {
            listening: Vec::new(),
            addresses: Vec::new(),
            place: None,
        };
        if !passed.is_empty() {
            for socket in passed {
                match socket {
                    Passed::Tcp(socket) => sockets.add_tcp(socket),
                    Passed::Unix(socket) => sockets.add_unix(socket, None),
                }
                .map_err(|e| AppError::failed(format!("cannot use a passed socket: {e}")))?;
            }
            return Ok(sockets);
        }
        if settings.tcp {
            let (bind, port) = (settings.bind, settings.port);
            listen::listen(Some(bind), port)
                .and_then(|socket| sockets.add_tcp(socket))
                .map_err(|e| {
                    let address = SocketAddr::new(bind, port);
                    AppError::failed(format!("Cannot listen on {address}: {e}"))
                })?;
        }
        if let Some(path) = &settings.socket {
            let access = Access {
                owner: None,
                mode: settings.socket_mode,
            };
            let (socket, place) = unix_socket::bind(path, access).map_err(AppError::failed)?;
            sockets.place = Some(place);
            sockets
                .add_unix(socket.into(), Some(path))
                .map_err(|e| AppError::failed(format!("cannot use '{}': {e}", path.display())))?;
        }
        Ok(sockets)
    }

    fn add_tcp(&mut self, socket: std::net::TcpListener) -> io::Result<()> {
        self.addresses.push(Address::Tcp(socket.local_addr()?));
        let socket = TcpListener::from_std(socket)?;
        self.listening.push(Listening::Tcp(socket));
        Ok(())
    }

    /// `path`: where it lies by now.
    fn add_unix(
        &mut self,
        socket: std::os::unix::net::UnixListener,
        path: Option<&Path>,
    ) -> io::Result<()> {
        let address = socket.local_addr()?;
        let path = path.or(address.as_pathname());
        let text = path.map_or_else(|| "(no path)".to_owned(), |p| p.display().to_string());
        self.addresses.push(Address::Unix(text));
        let socket = UnixListener::from_std(socket)?;
        self.listening.push(Listening::Unix(socket));
        Ok(())
    }

    /// One log line for each; the answers are for a person.
    pub(super) fn announce(&self, tls: bool) -> Vec<String> {
        let word = |tls| if tls { "yes" } else { "no" };
        self.addresses
            .iter()
            .map(|address| {
                let (line, tls) = match address {
                    Address::Tcp(address) => {
                        let line = Action::new("api-start")
                            .field("BIND", address.ip())
                            .field("PORT", address.port());
                        (line, tls)
                    }
                    Address::Unix(path) => (Action::new("api-start").field("SOCKET", path), false),
                };
                line.field("TLS", word(tls)).info();
                format!("listening on {address} (TLS: {})", word(tls))
            })
            .collect()
    }
}
