//! What this host is called, and what an address is called (spec/pairing.md 8, 11.3).

use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use crate::core::sys::resolver;

/// Longest name that fits into a certificate's CN.
const MAX_NAME: usize = 64;
/// How long the resolver may think about our own name.
const OWN_NAME_TIMEOUT: Duration = Duration::from_secs(5);
/// Look-ups that may hang in the resolver at one time; further ones find no name at once.
const MAX_PENDING: usize = 8;

/// The fully qualified name: CN of the agent's certificate, `hostname` of its pairing request, `host` of its replies.
///
/// `given` (the variable `CTRL_EXEC_HOSTNAME`) wins. Without a dot in the system's own name the resolver is asked; when it knows no better, the short name it is.
pub fn fqdn(given: Option<&str>) -> String {
    if let Some(name) = given {
        return clean(name);
    }
    let own = node_name();
    if own.contains('.') {
        return clean(&own);
    }
    let asked = own.clone();
    let canonical = bounded(OWN_NAME_TIMEOUT, move || resolver::canonical_name(&asked));
    qualified(&own, canonical.as_deref())
}

/// The name up to the first dot: default of `dispatcher_id`.
pub fn short(given: Option<&str>) -> String {
    let name = clean(&given.map_or_else(node_name, str::to_owned));
    name.split('.').next().unwrap_or_default().to_owned()
}

/// The reverse name of an address, and whether the name resolves back to it. Returns within the timeout, whatever the resolver does.
pub fn reverse(address: IpAddr, timeout: Duration) -> Option<(String, bool)> {
    bounded(timeout, move || {
        let name = resolver::name_of_address(address)?;
        let clean = clean(&name);
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        // Whoever owns the reverse zone writes this text; nothing but a name may reach a terminal.
        if clean.is_empty() || !name.bytes().all(plain) {
            return None;
        }
        let back = (name.as_str(), 0).to_socket_addrs();
        let confirmed =
            back.is_ok_and(|mut all| all.any(|a| a.ip().to_canonical() == address.to_canonical()));
        Some((clean, confirmed))
    })
}

/// The addresses of a host, which may be a literal; empty when there are none or the resolver takes longer than that.
pub fn addresses(host: &str, port: u16, timeout: Duration) -> Vec<SocketAddr> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return vec![SocketAddr::new(ip, port)];
    }
    let host = bare.to_owned();
    let found = bounded(timeout, move || {
        Some((host.as_str(), port).to_socket_addrs().ok()?.collect())
    });
    found.unwrap_or_default()
}

fn node_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// Without a trailing dot, and no longer than a CN holds: what is too long is cut at the last dot that fits, else at the limit.
fn clean(name: &str) -> String {
    let name = name.trim().trim_end_matches('.');
    if name.len() <= MAX_NAME {
        return name.to_owned();
    }
    let cut: String = name
        .chars()
        .take_while(char::is_ascii)
        .take(MAX_NAME)
        .collect();
    match cut.rsplit_once('.') {
        Some((head, _)) if !head.is_empty() => head.to_owned(),
        _ => cut,
    }
}

/// The rule of the original: the resolver's name counts only when it has a dot. A name of localhost is nobody's.
fn qualified(own: &str, canonical: Option<&str>) -> String {
    canonical
        .map(clean)
        .filter(|name| name.contains('.') && !name.starts_with("localhost"))
        .filter(|name| name.parse::<IpAddr>().is_err())
        .unwrap_or_else(|| clean(own))
}

/// Runs a look-up in a thread of its own and waits no longer than that. A thread that hangs is left behind, so their number is bounded.
fn bounded<T: Send + 'static>(
    timeout: Duration,
    work: impl FnOnce() -> Option<T> + Send + 'static,
) -> Option<T> {
    static PENDING: AtomicUsize = AtomicUsize::new(0);
    struct Place;
    impl Drop for Place {
        fn drop(&mut self) {
            PENDING.fetch_sub(1, Ordering::Relaxed);
        }
    }
    let taken = PENDING.fetch_add(1, Ordering::Relaxed);
    let place = Place;
    if taken >= MAX_PENDING {
        return None;
    }
    let (sender, receiver) = mpsc::channel();
    let spawned = std::thread::Builder::new()
        .name("resolver".to_owned())
        .spawn(move || {
            let _place = place;
            let _ = sender.send(work());
        });
    spawned.ok()?;
    receiver.recv_timeout(timeout).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_given_name_wins_and_loses_its_trailing_dot() {
        assert_eq!(fqdn(Some("web01.example.org.")), "web01.example.org");
        assert_eq!(short(Some("web01.example.org.")), "web01");
        assert_eq!(short(Some("web01")), "web01");
    }

    #[test]
    fn the_resolver_counts_only_with_a_dot() {
        assert_eq!(
            qualified("web01", Some("web01.example.org.")),
            "web01.example.org"
        );
        for useless in [
            None,
            Some("web01"),
            Some(""),
            Some("localhost.localdomain"),
            Some("192.0.2.1"),
        ] {
            assert_eq!(qualified("web01", useless), "web01");
        }
    }

    #[test]
    fn no_name_is_longer_than_a_common_name() {
        assert_eq!(clean(&"a".repeat(65)).len(), 64);
        let long = format!("web01.{}.example.org", "x".repeat(50));
        assert!(long.len() > 64);
        assert_eq!(clean(&long), format!("web01.{}", "x".repeat(50)));
    }

    #[test]
    fn a_hanging_resolver_does_not_hold_us_up() {
        let (release, hang) = mpsc::channel::<()>();
        let start = std::time::Instant::now();
        let answer = bounded(Duration::from_millis(20), move || hang.recv().ok());
        assert_eq!(answer, None);
        assert!(start.elapsed() < Duration::from_secs(20));
        drop(release);
        assert_eq!(bounded(Duration::from_secs(20), || Some(1)), Some(1));
    }

    #[test]
    fn literals_need_no_resolver() {
        let of = |host| addresses(host, 7444, Duration::ZERO);
        assert_eq!(of("192.0.2.1"), ["192.0.2.1:7444".parse().unwrap()]);
        assert_eq!(of("[2001:db8::1]"), ["[2001:db8::1]:7444".parse().unwrap()]);
        assert_eq!(of("::1"), ["[::1]:7444".parse().unwrap()]);
        assert!(!addresses("localhost", 7444, OWN_NAME_TIMEOUT).is_empty());
    }

    #[test]
    fn this_host_has_a_name() {
        assert!(!fqdn(None).is_empty());
        assert!(!short(None).contains('.'));
    }
}
