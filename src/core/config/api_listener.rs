//! Where the API listens, who may show a certificate there, and how many connections it keeps (spec/api.md 1, 13).

use super::reader::Reader;
use super::{ApiClients, ApiSettings};
use crate::core::paths::Paths;

/// Reads the keys of the listeners; `api.tls` must have been read before.
pub(super) fn read(r: &mut Reader<'_>, api: &mut ApiSettings, paths: &Paths) {
    let most = 1..=65_535;
    api.max_connections = r.size("api_max_connections", most, api.max_connections);
    let mode_span = r.value_span("api_socket_mode");
    api.socket = r.path("api_socket", paths);
    api.socket_mode = r.octal("api_socket_mode", 0o777).unwrap_or(api.socket_mode);
    if let (None, Some(span)) = (&api.socket, mode_span) {
        r.warn(&span, "'api_socket_mode' does nothing without 'api_socket'");
    }
    let tcp_span = r.value_span("api_tcp");
    api.tcp = r.boolean("api_tcp", api.tcp);
    if let (false, None, Some(span)) = (api.tcp, &api.socket, tcp_span) {
        let message = "'api_tcp = off' needs 'api_socket': otherwise nobody could reach the API";
        r.error(&span, message);
    }
    clients(r, api, paths);
}

fn clients(r: &mut Reader<'_>, api: &mut ApiSettings, paths: &Paths) {
    let ca_span = r.value_span("api_client_ca");
    let word_span = r.value_span("api_client_cert");
    let ca = r.path("api_client_ca", paths);
    let required = r.word(
        "api_client_cert",
        &[("optional", false), ("required", true)],
    );
    if let (Some(span), None) = (&ca_span, &api.tls) {
        let message =
            "'api_client_ca' needs 'api_cert' and 'api_key': certificates are shown in TLS only";
        r.error(span, message);
    }
    if let (None, Some(true), Some(span)) = (&ca_span, required, word_span) {
        let message =
            "'api_client_cert = required' needs 'api_client_ca': no certificate could be verified";
        r.error(&span, message);
    }
    api.clients = ca.map(|ca| ApiClients {
        ca,
        required: required.unwrap_or(false),
    });
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use std::path::Path;

    const REQUIRED: &str = "cert = /c\nkey = /k\nca = /a\n";

    #[test]
    fn the_listeners_are_read_and_what_excludes_each_other_is_refused() {
        let lines = |text: &str| dispatcher_conf(&format!("{REQUIRED}{text}\n"));
        let text = "api_cert=/c\napi_key=/k\napi_client_ca=/cc\napi_socket=/run/api.sock\napi_socket_mode=0666\napi_tcp=no\napi_max_connections=7";
        let loaded = lines(text).unwrap();
        assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
        let api = loaded.value.api;
        assert_eq!(
            (api.tcp, api.max_connections, api.socket_mode),
            (false, 7, 0o666)
        );
        assert!(api.socket.unwrap().ends_with("run/api.sock"));
        let clients = api.clients.unwrap();
        assert!(clients.ca.ends_with(Path::new("cc")) && !clients.required);

        for (bad, said) in [
            ("api_tcp = off", "'api_tcp = off' needs 'api_socket'"),
            ("api_client_cert = required", "needs 'api_client_ca'"),
            ("api_client_ca = /cc", "needs 'api_cert' and 'api_key'"),
            ("api_client_cert = maybe", "'api_client_cert' must be"),
            ("api_max_connections = 0", "'api_max_connections' must be"),
            (
                "api_socket = relative",
                "'api_socket' must be an absolute path",
            ),
            (
                "api_socket = /s\napi_socket_mode = 1777",
                "'api_socket_mode' must be",
            ),
        ] {
            let text = errors(lines(bad)).join("\n");
            assert!(text.contains(said), "{bad}: {text}");
        }
        let loaded = lines("api_socket_mode = 0600").unwrap();
        assert!(warnings(&loaded)[0].contains("does nothing without 'api_socket'"));
    }
}
