//! `healthcheck`: 0 or 1 within three seconds, for the runtime of the container.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use hyper::Method;

use crate::applets::Context;
use crate::core::config;
use crate::core::http_client::{Endpoint, HttpClient};
use crate::core::{hostname, task};

/// Longest that the answer of the API may take.
const PATIENCE: Duration = Duration::from_millis(2500);
/// State of a listening socket in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// # Errors
/// A sentence: what is not as it should be.
pub(super) fn agent(context: &Context) -> Result<String, String> {
    let config = config::load_agent(&context.paths, None)
        .map_err(|e| e.to_string())?
        .value;
    // Not by a connection: those that are broken off count as probes, and the agent would shut us out.
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let is_served = tables
        .iter()
        .any(|table| std::fs::read_to_string(table).is_ok_and(|text| listens(&text, config.port)));
    if !is_served {
        let paired = config.cert.exists();
        let why = if paired { "" } else { ": not paired yet" };
        return Err(format!("nobody listens on port {}{why}", config.port));
    }
    if config.executor_socket.is_some() && !runs("ctrl-exec-exec") {
        return Err("the executor does not run: runs are refused".to_owned());
    }
    Ok(format!("the agent listens on port {}", config.port))
}

/// # Errors
/// As for [`agent`].
pub(super) fn dispatcher(context: &Context) -> Result<String, String> {
    let host = hostname::short(context.var("CTRL_EXEC_HOSTNAME"));
    let api = config::load_dispatcher(&context.paths, None, &host)
        .map_err(|e| e.to_string())?
        .value
        .api;
    let endpoint = match (&api.socket, &api.tls) {
        (Some(socket), _) => Endpoint::Unix(socket.clone()),
        (None, None) => Endpoint::Http {
            host: own(api.bind).to_string(),
            port: api.port,
        },
        // Its certificate is for a name that others know it by; that somebody accepts connections is what can be told.
        (None, Some(_)) => {
            let address = (own(api.bind), api.port).into();
            return std::net::TcpStream::connect_timeout(&address, PATIENCE)
                .map(|_| format!("the API accepts connections on port {}", api.port))
                .map_err(|e| format!("the API does not answer on {address}: {e}"));
        }
    };
    let client = HttpClient::new(endpoint, None, PATIENCE);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| e.to_string())?;
    let asked = task::block_on(&runtime, async {
        tokio::time::timeout(PATIENCE, client.send(Method::GET, "/health", None, None)).await
    });
    runtime.shutdown_background();
    match asked {
        // We bring no token: where the hook, or the lack of one, refuses us, the API does its work.
        Ok(Ok(reply)) if reply.status < 500 => {
            Ok(format!("the API answers on {}", client.endpoint()))
        }
        Ok(Ok(reply)) => Err(format!(
            "the API on {} answers with status {}",
            client.endpoint(),
            reply.status
        )),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!(
            "the API on {} does not answer in time",
            client.endpoint()
        )),
    }
}

/// The role of the container that we were called in: the words of its first process.
pub(super) fn role_of_first_process() -> Option<String> {
    let words = std::fs::read("/proc/1/cmdline").ok()?;
    let words = String::from_utf8(words).ok()?;
    let mut words = words.split('\0').skip_while(|word| *word != "container");
    words.nth(1).map(str::to_owned)
}

fn own(bind: IpAddr) -> IpAddr {
    match bind {
        IpAddr::V4(all) if all.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(all) if all.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    }
}

/// Whether the table of sockets has one that listens on that port.
fn listens(table: &str, port: u16) -> bool {
    let end = format!(":{port:04X}");
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next().is_some_and(|local| local.ends_with(&end)) && fields.nth(1) == Some(LISTEN)
    })
}

/// Whether the executor runs. Not by a connection either: it would have to refuse us, and say so in the log.
fn runs(program: &str) -> bool {
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return false;
    };
    processes.flatten().any(|process| {
        std::fs::read(process.path().join("cmdline"))
            .is_ok_and(|words| words.split(|b| *b == 0).next() == Some(program.as_bytes()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listening_socket_is_told_from_a_connection_to_it() {
        let table = "  sl  local_address rem_address   st tx_queue\n   \
             0: 00000000:1D13 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n   \
             1: 0100007F:1D14 0100007F:1D13 01 00000000:00000000 00:00000000 00000000     0\n";
        assert!(listens(table, 7443));
        assert!(!listens(table, 7444), "connected, not listening");
        assert!(!listens(table, 7445));
        assert!(!listens("", 7443));
    }
}
