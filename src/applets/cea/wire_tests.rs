//! The daemon in this process, on a loopback port, spoken to over real TLS (spec/agent.md 19.3, "Server" and "Run").

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
        let config = tls::client_config(who, &self.cas, Clock::system(0)).unwrap();
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST).into());
        TlsConnector::from(config).connect(name, stream).await
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

#[test]
fn a_trusted_dispatcher_runs_a_script() {
    let fleet = Fleet::new();
    fleet.script("echo-args", "printf '[%s]' \"$@\"; cat >&2");
    fleet.play(|stage| async move {
        let answer = stage
            .run(json!({"script": "hello", "args": [], "reqid": "r1"}))
            .await;
        assert_eq!(
            answer,
            json!({"script": "hello", "exit": 3, "stdout": "out\n", "stderr": "err\n", "reqid": "r1"})
        );
        let answer = stage
            .run(json!({"script": "echo-args", "args": ["a b", "$(id)", 7, null, "grün"], "reqid": "r2", "username": "eve", "token": "t0k"}))
            .await;
        assert_eq!(answer["stdout"], "[a b][$(id)][7][][grün]");
        let context: Value = serde_json::from_str(answer["stderr"].as_str().unwrap()).unwrap();
        let keys: Vec<_> = context.as_object().unwrap().keys().cloned().collect();
        assert_eq!(
            keys,
            ["args", "dispatcher", "peer_ip", "reqid", "script", "timestamp", "token", "username"]
        );
        assert_eq!(context["dispatcher"], "main");
        assert_eq!(context["peer_ip"], "127.0.0.1");
        assert_eq!(context["token"], "t0k");
        assert_eq!(context["timestamp"].as_str().unwrap().len(), 20);
    });
}

#[test]
fn refusals_of_a_run_are_answers_with_status_200() {
    let fleet = Fleet::new();
    fleet.play(|stage| async move {
        let refusal = |error: &str| json!({"exit": -1, "error": error});
        for body in [
            "",
            "nonsense",
            "[]",
            "\"x\"",
            "5",
            "[{\"script\":\"hello\"}]",
        ] {
            let (status, answer) = stage.call("POST", "/run", body.as_bytes()).await;
            assert_eq!((status, answer), (200, refusal("invalid JSON")), "{body}");
        }
        for body in ["null", "{}"] {
            let (status, answer) = stage.call("POST", "/run", body.as_bytes()).await;
            assert_eq!(status, 200);
            assert_eq!(
                answer,
                json!({"script": "", "exit": -1, "error": "script not permitted", "reqid": ""})
            );
        }
        for name in ["../hello", "a;b", "a b", "a/b", "unknown", "HELLO"] {
            let answer = stage.run(json!({"script": name, "reqid": "r"})).await;
            assert_eq!(answer["error"], "script not permitted");
            assert_eq!(answer["script"], *name);
        }
        let answer = stage
            .run(json!({"script": "hello", "args": "x", "reqid": "r"}))
            .await;
        assert_eq!(
            answer,
            json!({"exit": -1, "error": "args must be an array", "reqid": "r"})
        );
        let answer = stage.run(json!({"script": "hello", "args": [["x"]]})).await;
        assert!(
            answer["error"]
                .as_str()
                .unwrap()
                .starts_with("args must be an array")
        );
        let answer = stage
            .run(json!({"script": "hello", "async": true, "reqid": "r"}))
            .await;
        assert_eq!(
            (&answer["exit"], &answer["reqid"]),
            (&json!(-1), &json!("r"))
        );
        assert!(
            answer["error"]
                .as_str()
                .unwrap()
                .starts_with("async runs are not yet supported")
        );
    });
}

#[test]
fn ping_and_capabilities_say_what_the_specification_says() {
    let fleet = Fleet::new();
    let sidecar = fleet.scripts().join("hello.schema.json");
    std::fs::write(&sidecar, "{\"version\":\"2\",\"arguments\":[]}").unwrap();
    fleet.play(|stage| async move {
        let (status, answer) = stage.call("POST", "/ping", b"{\"reqid\":\"p1\"}").await;
        assert_eq!(status, 200);
        assert_eq!(answer["status"], "ok");
        assert_eq!(answer["host"], "agent1.example");
        assert_eq!(answer["staged"], json!(false));
        assert_eq!(answer["reqid"], "p1");
        assert!(answer["expiry"].as_str().unwrap().ends_with(" GMT"));
        for body in ["", "[]", "nonsense"] {
            let (status, answer) = stage.call("POST", "/ping", body.as_bytes()).await;
            assert_eq!((status, &answer["reqid"]), (200, &json!("")));
        }
        let (status, answer) = stage.call("GET", "/capabilities", b"").await;
        assert_eq!(status, 200);
        assert_eq!(answer["tags"], json!({"role": "test"}));
        let script = &answer["scripts"][0];
        assert_eq!(script["name"], "hello");
        assert_eq!(script["executable"], json!(true));
        assert_eq!(script["profile"], "default");
        assert_eq!(script["schema_version"], "2");
        assert_eq!(script["schema"]["arguments"], json!([]));
    });
}

#[test]
fn what_does_not_exist_is_404_whoever_asks_and_a_result_is_unknown() {
    let fleet = Fleet::new();
    let stranger = fleet.agent_identity("agent2");
    fleet.play(|stage| async move {
        for (method, path) in [
            ("GET", "/"),
            ("GET", "/run"),
            ("run", "/run"),
            ("post", "/run"),
            ("POST", "/run/"),
            ("POST", "/RUN"),
            ("POST", "/run?x=1"),
            ("POST", "/capabilities"),
            ("POST", "/rotate-serial"),
            ("POST", "/renew"),
            ("POST", "/renew-complete"),
            ("GET", "/result/"),
            ("GET", "/result/a.b"),
            ("GET", "/result/%61"),
            ("GET", "/result/a/b"),
        ] {
            let (status, answer) = stage.call(method, path, b"{}").await;
            assert_eq!(
                (status, answer),
                (404, json!({"error": "not found"})),
                "{method} {path}"
            );
        }
        let (status, _) = stage.call_as(&stranger, "GET", "/result/a.b", b"").await;
        assert_eq!(status, 404);
        let (status, answer) = stage.call("GET", "/result/abc-1", b"").await;
        assert_eq!(
            (status, answer),
            (404, json!({"status": "unknown", "reqid": "abc-1"}))
        );
    });
}

#[test]
fn who_is_not_a_trusted_dispatcher_gets_403_and_nothing_else() {
    let fleet = Fleet::new();
    let agent = fleet.agent_identity("agent2");
    let other = dispatcher_of(&fleet.authority, "other");
    // An agent whose serial somebody put into the map is still an agent.
    fleet.trust(&agent, "agent2");
    fleet.play(|stage| async move {
        let mismatch = json!({"error": "serial mismatch", "status": "forbidden"});
        for who in [&agent, &other] {
            for (method, path) in [("POST", "/run"), ("POST", "/ping"), ("GET", "/result/r")] {
                let (status, answer) = stage.call_as(who, method, path, b"{}").await;
                assert_eq!((status, &answer), (403, &mismatch), "{path}");
            }
            let (status, answer) = stage.call_as(who, "GET", "/capabilities", b"").await;
            assert_eq!((status, answer), (403, json!({"error": "forbidden"})));
        }
        // A refusal arrives whole although the request is large and unread.
        let body = vec![b' '; 900_000];
        let (status, answer) = stage.call_as(&other, "POST", "/run", &body).await;
        assert_eq!((status, &answer), (403, &mismatch));
    });
}

#[test]
fn a_revoked_certificate_is_refused_before_all_else() {
    let fleet = Fleet::new();
    let serial = fleet.dispatcher.certificate().serial.to_string();
    fleet.write(
        "revoked-serials",
        &format!("# lost\n{serial} # stolen\n"),
        0o644,
    );
    fleet.play(|stage| async move {
        for path in ["/ping", "/nonsense"] {
            let (status, answer) = stage.call("POST", path, b"{}").await;
            assert_eq!(
                (status, answer),
                (403, json!({"error": "certificate revoked"}))
            );
        }
    });
}

#[test]
fn framing_follows_the_limits_of_the_specification() {
    let fleet = Fleet::new();
    fleet.play(|stage| async move {
        // Nothing at all.
        let mut stream = stage.connect_as(&stage.dispatcher.clone()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(parse(&answer), (400, json!({"error": "empty request"})));

        let with_headers = |n: usize| {
            let mut request = "POST /ping HTTP/1.0\r\nContent-Length: 2\r\n".to_owned();
            for i in 1..n {
                request.push_str(&format!("X-{i}: y\r\n"));
            }
            request + "\r\n{}"
        };
        assert_eq!(parse(&stage.raw(with_headers(32).as_bytes()).await).0, 200);
        assert_eq!(
            parse(&stage.raw(with_headers(33).as_bytes()).await),
            (431, json!({"error": "too many headers"}))
        );

        let body = |n: usize| {
            let mut body = br#"{"reqid":"x"}"#.to_vec();
            body.resize(n, b' ');
            body
        };
        assert_eq!(stage.call("POST", "/ping", &body(1_048_576)).await.1["reqid"], "x");
        assert_eq!(
            stage.call("POST", "/ping", &body(1_048_577)).await,
            (413, json!({"error": "request too large"}))
        );
        let mut chunked = b"POST /ping HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n".to_vec();
        for _ in 0..20 {
            chunked.extend_from_slice(b"10000\r\n");
            chunked.extend_from_slice(&[b' '; 0x10000]);
            chunked.extend_from_slice(b"\r\n");
        }
        chunked.extend_from_slice(b"0\r\n\r\n");
        assert_eq!(parse(&stage.raw(&chunked).await).0, 413);

        let lines = stage
            .raw(b"POST /ping HTTP/1.0\nContent-Length: 13\n\n{\"reqid\":\"y\"}")
            .await;
        assert!(lines.starts_with("HTTP/1.0 200 OK\r\n"), "{lines}");
        assert_eq!(parse(&lines).1["reqid"], "y");
    });
}

#[test]
fn a_body_may_come_in_pieces_and_a_connection_may_serve_several_requests() {
    let fleet = Fleet::new();
    fleet.play(|stage| async move {
        let mut stream = stage.connect_as(&stage.dispatcher.clone()).await.unwrap();
        for round in 0..3 {
            let body = format!("{{\"reqid\":\"k{round}\"}}");
            let head = format!(
                "POST /ping HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            for byte in body.as_bytes() {
                sleep(Duration::from_millis(2)).await;
                stream.write_all(&[*byte]).await.unwrap();
            }
            let mut answer = Vec::new();
            let wanted = format!("\"k{round}\"");
            while !String::from_utf8_lossy(&answer).contains(&wanted) {
                let mut chunk = [0; 1024];
                let n = timeout(PATIENCE, stream.read(&mut chunk))
                    .await
                    .unwrap()
                    .unwrap();
                assert!(n > 0, "closed after {round} requests");
                answer.extend_from_slice(&chunk[..n]);
            }
            assert!(answer.starts_with(b"HTTP/1.1 200 OK"));
        }
    });
}

#[test]
fn nothing_that_happens_before_a_request_ends_or_holds_up_the_daemon() {
    let fleet = Fleet::new();
    fleet.configure("rate_limit_disable = 1");
    let foreign_dir = fleet.dir.path().join("foreign");
    std::fs::create_dir(&foreign_dir).unwrap();
    let foreign_ca = Authority::create(
        &foreign_dir,
        KeyType::EcdsaP256,
        "foreign",
        30,
        Clock::system(0),
    )
    .unwrap();
    let foreign = dispatcher_of(&foreign_ca, "main");
    fleet.play(|stage| async move {
        let mut silent = Vec::new();
        for _ in 0..20 {
            silent.push(TcpStream::connect(stage.address).await.unwrap());
            drop(TcpStream::connect(stage.address).await.unwrap());
            let mut noise = TcpStream::connect(stage.address).await.unwrap();
            let _ = noise.write_all(b"GET / HTTP/1.0\r\n\r\n").await;
            // With TLS 1.3 the client learns of its refusal only when it reads.
            if let Ok(mut stream) = stage.connect_as(&foreign).await {
                let mut answer = Vec::new();
                let _ = timeout(PATIENCE, stream.read_to_end(&mut answer))
                    .await
                    .unwrap();
                assert!(answer.is_empty());
            }
            stage.agent.reload();
        }
        let (status, _) = stage.call("POST", "/ping", b"{}").await;
        assert_eq!(status, 200);
    });
}

#[test]
fn a_client_without_a_certificate_reaches_nothing() {
    let fleet = Fleet::new();
    fleet.play(|stage| async move {
        let config = tls::pairing_client_config().unwrap();
        let stream = TcpStream::connect(stage.address).await.unwrap();
        let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST).into());
        if let Ok(mut stream) = TlsConnector::from(config).connect(name, stream).await {
            let _ = stream.write_all(b"POST /ping HTTP/1.0\r\n\r\n").await;
            let mut answer = Vec::new();
            let _ = timeout(PATIENCE, stream.read_to_end(&mut answer))
                .await
                .unwrap();
            assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
        }
    });
}

#[test]
fn a_reload_takes_all_or_nothing() {
    let fleet = Fleet::new();
    let second = dispatcher_of(&fleet.authority, "second");
    let this = &fleet;
    fleet.play(|stage| async move {
        assert_eq!(stage.call_as(&second, "POST", "/ping", b"{}").await.0, 403);
        this.trust(&second, "second");
        this.script("later", "echo later");
        this.configure("allowed_ips = 127.0.0.0/8");
        stage.agent.reload();
        assert_eq!(stage.call_as(&second, "POST", "/ping", b"{}").await.0, 200);
        assert_eq!(
            stage.run(json!({"script": "later"})).await["stdout"],
            "later\n"
        );

        // A broken file changes nothing, not even the parts that are in order.
        this.script("latest", "echo latest");
        this.configure("this line is broken");
        stage.agent.reload();
        assert_eq!(
            stage.run(json!({"script": "latest"})).await["error"],
            "script not permitted"
        );
        assert_eq!(stage.run(json!({"script": "later"})).await["exit"], 0);

        this.configure("");
        std::fs::write(this.etc("agent.key"), "no key").unwrap();
        stage.agent.reload();
        assert_eq!(stage.run(json!({"script": "later"})).await["exit"], 0);

        // A new certificate is in force without a restart.
        let renewed = this.agent_identity("agent1");
        let serial = renewed.certificate().serial.clone();
        this.write("agent.crt", &renewed.certificate().to_pem(), 0o640);
        this.write("agent.key", renewed.key().to_pkcs8_pem().expose(), 0o640);
        stage.agent.reload();
        let stream = stage.connect_as(&second).await.unwrap();
        assert_eq!(
            tls::peer_identity(stream.get_ref().1).unwrap().serial,
            serial
        );
    });
}

#[test]
fn an_address_outside_the_list_is_not_even_shaken_hands_with() {
    let fleet = Fleet::new();
    fleet.configure("allowed_ips = 192.0.2.0/24");
    fleet.play(|stage| async move {
        assert!(stage.connect_as(&stage.dispatcher.clone()).await.is_err());
    });
}

#[test]
fn over_the_limit_of_connections_a_client_is_told_so() {
    let fleet = Fleet::new();
    fleet.configure("max_children = 1");
    fleet.script("slow", "sleep 1; echo slow");
    fleet.play(|stage| async move {
        let first = tokio::spawn({
            let stage = stage.clone();
            async move { stage.run(json!({"script": "slow"})).await }
        });
        sleep(Duration::from_millis(300)).await;
        assert_eq!(
            stage.call("POST", "/ping", b"{}").await,
            (503, json!({"error": "agent overloaded"}))
        );
        assert_eq!(first.await.unwrap()["stdout"], "slow\n");
        assert_eq!(stage.call("POST", "/ping", b"{}").await.0, 200);
    });
}

#[test]
fn a_dispatcher_over_its_budget_is_told_so_and_strangers_are_cut_off() {
    let fleet = Fleet::new();
    fleet.configure("rate_limit_dispatcher = 15/60/60\nrate_limit_volume = 4/60/60");
    let stranger = fleet.agent_identity("agent2");
    fleet.play(|stage| async move {
        for _ in 0..15 {
            assert_eq!(stage.call("POST", "/ping", b"{}").await.0, 200);
        }
        assert_eq!(
            stage.call("POST", "/ping", b"{}").await,
            (429, json!({"error": "rate limit exceeded"}))
        );
        for _ in 0..4 {
            assert_eq!(
                stage.call_as(&stranger, "POST", "/ping", b"{}").await.0,
                403
            );
        }
        assert!(stage.connect_as(&stranger).await.is_err());
    });
}

#[test]
fn probes_block_their_address() {
    let fleet = Fleet::new();
    fleet.play(|stage| async move {
        for _ in 0..3 {
            let mut noise = TcpStream::connect(stage.address).await.unwrap();
            noise.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
            let mut answer = Vec::new();
            let _ = timeout(PATIENCE, noise.read_to_end(&mut answer))
                .await
                .unwrap();
        }
        assert!(stage.connect_as(&stage.dispatcher.clone()).await.is_err());
        stage.agent.reload();
        assert_eq!(stage.call("POST", "/ping", b"{}").await.0, 200);
    });
}

#[test]
fn a_stop_waits_for_the_request_in_flight_and_a_client_that_left_does_not_stop_its_script() {
    let fleet = Fleet::new();
    let marker = fleet.dir.path().join("finished");
    fleet.script("slow", "sleep 1; echo slow");
    fleet.script("mark", &format!("sleep 0.5; touch {}", marker.display()));
    let answer = Arc::new(std::sync::Mutex::new(None));
    let keep = answer.clone();
    fleet.play(|stage| async move {
        let mut gone = stage.connect_as(&stage.dispatcher.clone()).await.unwrap();
        gone.write_all(b"POST /run HTTP/1.0\r\nContent-Length: 17\r\n\r\n{\"script\":\"mark\"}")
            .await
            .unwrap();
        sleep(Duration::from_millis(200)).await;
        drop(gone);
        sleep(Duration::from_millis(800)).await;
        assert!(marker.exists());
        tokio::spawn(async move {
            let reply = stage.run(json!({"script": "slow"})).await;
            *keep.lock().unwrap() = Some(reply);
        });
        sleep(Duration::from_millis(300)).await;
    });
    let answer = answer.lock().unwrap().take();
    assert_eq!(
        answer.expect("the request in flight got no answer")["stdout"],
        "slow\n"
    );
}

#[test]
fn a_start_that_cannot_be_is_status_78_and_says_why() {
    let fleet = Fleet::new();
    for (file, word) in [
        ("agent.crt", "certificate"),
        ("agent.key", "key"),
        ("ca.crt", "CA"),
    ] {
        let path = fleet.etc(file);
        let saved = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let (exit, message) = fleet.refused_start();
        assert_eq!(exit, Exit::Config);
        assert!(message.contains("not been paired yet"), "{message}");
        assert!(
            message.contains(word) && message.contains(file),
            "{message}"
        );
        assert!(message.contains("request-pairing"), "{message}");
        std::fs::write(&path, saved).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    }
    fleet.configure("nonsense");
    let (exit, message) = fleet.refused_start();
    assert_eq!(exit, Exit::Config);
    assert!(
        message.contains("cannot start - configuration error"),
        "{message}"
    );
    assert!(
        message.contains("inline '#' comments are not supported"),
        "{message}"
    );
    assert!(
        message.contains("scripts.conf") && message.contains("agent.conf"),
        "{message}"
    );

    fleet.configure("");
    let hello = fleet.scripts().join("hello");
    fleet.write(
        "scripts.conf",
        &format!("hello = {} profile=none\n", hello.display()),
        0o640,
    );
    let (exit, message) = fleet.refused_start();
    assert_eq!(exit, Exit::Config);
    assert!(message.contains("hello -> none"), "{message}");

    fleet.script("hello", "true");
    let other = fleet.agent_identity("agent1");
    fleet.write("agent.key", other.key().to_pkcs8_pem().expose(), 0o640);
    assert_eq!(fleet.refused_start().0, Exit::Config);
    fleet.write("agent.key", other.key().to_pkcs8_pem().expose(), 0o644);
    let (exit, message) = fleet.refused_start();
    assert_eq!(exit, Exit::Config);
    assert!(message.contains("agent.key"), "{message}");
}

#[test]
fn the_hook_has_the_last_word_and_a_generic_denial_hides_the_script() {
    let fleet = Fleet::new();
    let hook = fleet.etc("hook");
    std::fs::write(
        &hook,
        "#!/bin/sh\n[ \"$ENVEXEC_ACTION/$ENVEXEC_USERNAME/$ENVEXEC_DISPATCHER\" = run/alice/main ] || exit 3\n[ \"$ENVEXEC_TOKEN\" != kill ] || kill -9 $$\n",
    )
    .unwrap();
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
    fleet.configure("auth_hook = /etc/ctrl-exec-agent/hook");
    let this = &fleet;
    fleet.play(|stage| async move {
        let ask = |user: &str, token: &str| {
            json!({"script": "hello", "reqid": "r", "username": user, "token": token})
        };
        assert_eq!(stage.run(ask("alice", "")).await["exit"], 3);
        let denied = stage.run(ask("bob", "")).await;
        assert_eq!(
            denied,
            json!({"script": "hello", "exit": -1, "error": "not authorised: insufficient privilege", "reqid": "r"})
        );
        let killed = stage.run(ask("alice", "kill")).await;
        assert!(
            killed["error"].as_str().unwrap().starts_with("not authorised: "),
            "{killed}"
        );
        // An unknown script is refused without asking the hook.
        let unknown = stage.run(json!({"script": "unknown", "username": "bob"})).await;
        assert_eq!(unknown["error"], "script not permitted");
        assert_eq!(
            stage.call("GET", "/capabilities", b"").await,
            (403, json!({"error": "not authorised"}))
        );
        assert_eq!(stage.call("POST", "/ping", b"{}").await.0, 200);

        this.configure("auth_hook = /etc/ctrl-exec-agent/hook\nauth_deny_generic = yes");
        stage.agent.reload();
        let hidden = stage.run(ask("bob", "")).await;
        assert_eq!(hidden["error"], "script not permitted");
    });
}

#[test]
fn with_an_executor_the_script_is_never_run_by_the_agent_itself() {
    let fleet = Fleet::new();
    fleet.configure("executor_socket = /run/exec.sock");
    let socket = fleet.context().paths.resolve("/run/exec.sock");
    std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
    fleet.play(|stage| async move {
        let answer = stage.run(json!({"script": "hello", "reqid": "r"})).await;
        assert_eq!(
            (&answer["exit"], &answer["stdout"]),
            (&json!(-1), &json!(""))
        );
        let reason = answer["stderr"].as_str().unwrap();
        assert!(reason.starts_with("executor unreachable: "), "{reason}");

        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let executor = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let total = stream.read_u32().await.unwrap();
            let mut frame = vec![0; usize::try_from(total).unwrap()];
            stream.read_exact(&mut frame).await.unwrap();
            stream
                .write_all(b"\0\0\0\x05\0\0\0\x02o\xff\0\0\0\0")
                .await
                .unwrap();
            frame
        });
        let answer = stage
            .run(json!({"script": "hello", "args": ["x"], "reqid": "r2"}))
            .await;
        assert_eq!(answer["exit"], 5);
        assert_eq!(answer["stdout"], "o\u{fffd}");
        let frame = executor.await.unwrap();
        assert!(frame.starts_with(b"\0\0\0\x02r2\0\0\0\x04main\0\0\0\x05hello"));
        assert!(frame.ends_with(b"\0\0\0\x01\0\0\0\x01x"));
    });
}

#[test]
fn the_root_prefix_holds_a_whole_agent() {
    let fleet = Fleet::new();
    let root: &Path = fleet.dir.path();
    fleet.play(|stage| async move {
        assert!(stage.agent.snapshot().config.cert.starts_with(root));
    });
}
