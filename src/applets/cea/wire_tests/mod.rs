//! The daemon in this process, on a loopback port, spoken to over real TLS (spec/agent.md 19.3, "Server" and "Run").

mod authorities;
mod connections;
mod lifecycle;
mod renewal;
mod requests;
mod revoking;
mod rotation;
mod running;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::applets::cea::Files;
use crate::applets::cea::serve::Daemon;
use crate::applets::cea::state::Agent;
use crate::applets::{Context, Exit};
use crate::core::clock::Clock;
use crate::core::paths::{Paths, Platform};
use crate::core::pki::{Authority, CertRequest, Certificate, KeyType, PrivateKey, csr};
use crate::core::tls::{self, Identity};
use crate::core::trust;
use crate::core::types::{AgentName, DispatcherId};

const PATIENCE: Duration = Duration::from_secs(20);

/// A paired agent in a folder of its own, with its CA and dispatcher.
struct Fleet {
    dir: tempfile::TempDir,
    authority: Authority,
    dispatcher: Identity,
}

impl Fleet {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca_dir = dir.path().join("ca");
        std::fs::create_dir(&ca_dir).unwrap();
        let authority =
            Authority::create(&ca_dir, KeyType::EcdsaP256, "test CA", 30, Clock::system(0))
                .unwrap();
        let dispatcher = dispatcher_of(&authority, "main");
        let fleet = Self {
            dir,
            authority,
            dispatcher,
        };
        let paths = fleet.context().paths;
        for folder in [paths.agent_etc(), paths.agent_state(), fleet.scripts()] {
            std::fs::create_dir_all(folder).unwrap();
        }
        let own = fleet.agent_identity("agent1");
        fleet.write("agent.crt", &own.certificate().to_pem(), 0o640);
        fleet.write("agent.key", own.key().to_pkcs8_pem().expose(), 0o640);
        fleet.write("ca.crt", &fleet.authority.certificate().to_pem(), 0o644);
        fleet.configure("");
        fleet.script("hello", "echo out; echo err >&2; exit 3");
        fleet.trust(&fleet.dispatcher, "main");
        fleet
    }

    fn context(&self) -> Context {
        Context {
            time: crate::core::clock::TimeSource::System,
            program: "cea",
            env: BTreeMap::from([
                ("CTRL_EXEC_HOSTNAME".to_owned(), "agent1.example".to_owned()),
                ("LD_PRELOAD".to_owned(), String::new()),
            ]),
            paths: Paths::new(self.dir.path(), Platform::Standard),
        }
    }

    fn scripts(&self) -> PathBuf {
        self.dir.path().join("scripts")
    }

    fn etc(&self, name: &str) -> PathBuf {
        self.context().paths.agent_etc().join(name)
    }

    fn write(&self, name: &str, text: &str, mode: u32) {
        let path = self.etc(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn configure(&self, more: &str) {
        let text = format!(
            "port = 0\nbind = 127.0.0.1\ncert = /etc/ctrl-exec-agent/agent.crt\nkey = /etc/ctrl-exec-agent/agent.key\nca = /etc/ctrl-exec-agent/ca.crt\n{more}\n[tags]\nrole = test\n[profile default]\nno_new_privileges = yes\n"
        );
        self.write("agent.conf", &text, 0o640);
    }

    /// Writes a script and puts it (alone with the earlier ones) on the allowlist.
    fn script(&self, name: &str, body: &str) {
        let path = self.scripts().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut list: Vec<_> = std::fs::read_dir(self.scripts())
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        list.sort();
        let lines: String = list
            .iter()
            .filter(|p| p.extension().is_none())
            .map(|p| {
                format!(
                    "{} = {}\n",
                    p.file_name().unwrap().to_str().unwrap(),
                    p.display()
                )
            })
            .collect();
        self.write("scripts.conf", &lines, 0o640);
    }

    fn trust(&self, who: &Identity, id: &str) {
        let map = self.context().paths.trust_map();
        trust::add(
            &map,
            &who.certificate().serial,
            &DispatcherId::new(id).unwrap(),
        )
        .unwrap();
    }

    fn agent_identity(&self, name: &str) -> Identity {
        let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
        let name = AgentName::new(name).unwrap();
        let request = CertRequest::parse_pem(&csr::create_pem(&key, &name).unwrap()).unwrap();
        let certificate = self.authority.issue_agent(&request, &name, 10).unwrap();
        Identity::new(vec![certificate], key).unwrap()
    }

    /// Starts the daemon, runs the test against it, stops it, and checks that it ended in peace.
    fn play<F: Future<Output = ()>>(&self, test: impl FnOnce(Stage) -> F) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let daemon = Daemon::start(&self.context(), &Files::default())
                .unwrap_or_else(|e| panic!("{:?}", e.message()));
            let stage = Stage {
                address: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), daemon.address.port()),
                agent: daemon.agent.clone(),
                cas: vec![self.authority.certificate().clone()],
                dispatcher: self.dispatcher.clone(),
            };
            let (stop, stopped) = oneshot::channel::<()>();
            let serving = tokio::spawn(daemon.serve(async move {
                let _ = stopped.await;
            }));
            timeout(Duration::from_secs(60), test(stage)).await.unwrap();
            assert!(!serving.is_finished(), "the daemon ended on its own");
            drop(stop);
            timeout(PATIENCE, serving).await.unwrap().unwrap();
            // What was sent before the end may still have to be read by the test's own tasks.
            sleep(Duration::from_millis(100)).await;
        });
    }

    /// The CA as it will be in so many seconds: what it issues is newer than what the fleet has.
    fn authority_in(&self, seconds: i64) -> Authority {
        let now = Clock::system(0).now();
        Authority::load(&self.dir.path().join("ca"), Clock::fixed(now + seconds)).unwrap()
    }

    /// Another CA of the same name.
    fn other_authority(&self, name: &str) -> Authority {
        let dir = self.dir.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        Authority::create(&dir, KeyType::EcdsaP256, "test CA", 30, Clock::system(0)).unwrap()
    }

    fn refused_start(&self) -> (Exit, String) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let result = runtime.block_on(async { Daemon::start(&self.context(), &Files::default()) });
        let Err(error) = result else {
            panic!("it started")
        };
        (error.exit(), error.message().unwrap_or_default().to_owned())
    }
}

fn dispatcher_of(authority: &Authority, id: &str) -> Identity {
    let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
    let id = DispatcherId::new(id).unwrap();
    let certificate = authority.issue_dispatcher(key.public(), &id, 10).unwrap();
    Identity::new(vec![certificate], key).unwrap()
}

#[derive(Clone)]
struct Stage {
    address: SocketAddr,
    agent: Arc<Agent>,
    cas: Vec<Certificate>,
    dispatcher: Identity,
}

impl Stage {
    async fn connect_as(&self, who: &Identity) -> std::io::Result<TlsStream<TcpStream>> {
        self.connect_over(TcpStream::connect(self.address).await?, who)
            .await
    }

    async fn connect_over(
        &self,
        stream: TcpStream,
        who: &Identity,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let config = tls::client_config(who, &self.cas, Clock::system(0)).unwrap();
        let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST).into());
        TlsConnector::from(config).connect(name, stream).await
    }

    /// Connects without looking at the agent's certificate.
    async fn dial_as(&self, who: &Identity) -> std::io::Result<TlsStream<TcpStream>> {
        let mut config = rustls::ClientConfig::clone(&tls::pairing_client_config().unwrap());
        let with_certificate = tls::client_config(who, &self.cas, Clock::system(0)).unwrap();
        config.client_auth_cert_resolver = with_certificate.client_auth_cert_resolver.clone();
        config.alpn_protocols.clear();
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST).into());
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
    }

    /// Sends bytes as they are and reads to the end of file.
    async fn raw_as(&self, who: &Identity, bytes: &[u8]) -> String {
        let exchange = async {
            let mut stream = self.connect_as(who).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            String::from_utf8(answer).unwrap()
        };
        timeout(PATIENCE, exchange).await.unwrap()
    }

    async fn raw(&self, bytes: &[u8]) -> String {
        self.raw_as(&self.dispatcher, bytes).await
    }

    async fn call_as(&self, who: &Identity, method: &str, path: &str, body: &[u8]) -> (u16, Value) {
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nHost: a\r\nTE: deflate,gzip;q=0.3\r\nConnection: TE, close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        parse(&self.raw_as(who, &request).await)
    }

    async fn call(&self, method: &str, path: &str, body: &[u8]) -> (u16, Value) {
        self.call_as(&self.dispatcher, method, path, body).await
    }

    async fn post(&self, path: &str, request: Value) -> (u16, Value) {
        self.post_as(&self.dispatcher, path, request).await
    }

    async fn post_as(&self, who: &Identity, path: &str, request: Value) -> (u16, Value) {
        self.call_as(who, "POST", path, request.to_string().as_bytes())
            .await
    }

    /// A request that is answered with 200 and an error.
    async fn refused(&self, path: &str, request: Value) -> String {
        let (status, answer) = self.post(path, request.clone()).await;
        assert_eq!(
            (status, &answer["status"]),
            (200, &json!("error")),
            "{request} {answer}"
        );
        answer["error"].as_str().unwrap().to_owned()
    }

    /// Serial of the certificate that a new connection is shown.
    async fn shown(&self) -> crate::core::types::Serial {
        let stream = self.connect_as(&self.dispatcher).await.unwrap();
        tls::peer_identity(stream.get_ref().1).unwrap().serial
    }

    async fn run(&self, request: Value) -> Value {
        let (status, answer) = self
            .call("POST", "/run", request.to_string().as_bytes())
            .await;
        assert_eq!(status, 200, "{answer}");
        answer
    }
}

fn parse(answer: &str) -> (u16, Value) {
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let length = head
        .lines()
        .find_map(|line| {
            line.to_ascii_lowercase()
                .strip_prefix("content-length: ")
                .map(str::to_owned)
        })
        .unwrap_or_else(|| panic!("no length: {head}"));
    assert_eq!(length, body.len().to_string());
    (status, serde_json::from_str(body).unwrap())
}
