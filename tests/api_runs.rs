//! Runs through the API, from the request to the record (spec/api.md 5.4, 5.6, 9, 16): results of both kinds, who sees them, what happens to
//! records that are damaged, old or cannot be written, many hosts, much output, clients that go away, and the locks shared with `ced`.

mod common;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant, SystemTime};

use common::fleet::{allow, old_agent, register};
use common::syslog::WARNING;
use common::web::{self, HOOKED, OPEN};
use common::{Agent, ApiServer, Host, PATIENCE, Paired, Request, wait_until};
use serde_json::{Value, json};

const RUNS: &str = "var/lib/ctrl-exec/runs";

/// Agents whose script `slow` says `begun`, waits for the file `go` of its host and says `ended`; `talk N` writes N bytes to both streams.
struct Stage {
    fleet: Paired,
    api: ApiServer,
    _agents: Vec<Agent>,
}

impl Stage {
    fn new(names: &[&str], lines: &str) -> Self {
        let fleet = Paired::new(names);
        for host in &fleet.agents {
            let slow = format!(
                "echo begun; i=0; while [ ! -e {} ] && [ $i -lt 1200 ]; do sleep 0.05; i=$((i+1)); done; echo ended",
                host.path("tmp/go").display()
            );
            allow(host, "slow", &slow);
            allow(
                host,
                "talk",
                "yes 0123456789abcde | head -c $1; yes fedcba987654321 | head -c $1 >&2",
            );
        }
        let agents = fleet.start();
        let api = ApiServer::start(&fleet.dispatcher, lines);
        Self {
            fleet,
            api,
            _agents: agents,
        }
    }

    fn host(&self) -> &Host {
        &self.fleet.dispatcher
    }

    fn go(&self) {
        for host in &self.fleet.agents {
            host.write("tmp/go", "", 0o644);
        }
    }

    #[track_caller]
    fn reqid(&self, request: &Request, status: u16) -> String {
        let answer = self.api.send(request).expect(status).json();
        answer["reqid"].as_str().expect("an id").to_owned()
    }

    #[track_caller]
    fn status(&self, reqid: &str) -> Value {
        self.api.get(&format!("/status/{reqid}")).expect(200).json()
    }

    fn record(&self, reqid: &str) -> Value {
        self.host().json(&format!("{RUNS}/{reqid}.json"))
    }

    /// Waits until somebody holds the lock of `slow`.
    fn wait_for_lock(&self) {
        wait_until("the lock is held", PATIENCE, || {
            let held = self.fleet.ced(&["list-locks", "--json"]).ok().json();
            (held["locks"] != json!([])).then_some(())
        });
    }
}

fn run(body: Value) -> Request {
    Request::new("POST", "/run").json(&body)
}

#[test]
fn runs_of_the_api_and_of_the_command_line_are_told_alike() {
    let stage = Stage::new(&["web1.test", "web2.test"], OPEN);
    let hosts = json!(["web2.test", "web1.test"]);
    let body = json!({"hosts": hosts, "script": "fail", "username": "alice", "token": "t0k3n"});
    let answer = stage.api.post("/run", &body).expect(200).json();
    let reqid = answer["reqid"].as_str().expect("an id").to_owned();
    // The order is that of the request.
    let names: Vec<&Value> = answer["results"]
        .as_array()
        .expect("results")
        .iter()
        .map(|r| &r["host"])
        .collect();
    assert_eq!(names, ["web2.test", "web1.test"]);
    let told = stage.status(&reqid);
    assert_eq!(told["results"], answer["results"]);
    assert_eq!(
        (&told["hosts"], &told["mode"], &told["complete"]),
        (&hosts, &json!("sync"), &json!(true))
    );
    let kept = stage.record(&reqid);
    assert_eq!(
        kept["submitter"],
        json!({"username": "alice", "source_ip": "127.0.0.1"})
    );
    assert!(
        kept["owner"]
            .as_str()
            .is_some_and(|owner| owner.starts_with("token:")),
        "{kept}"
    );
    assert_eq!(stage.host().mode(&format!("{RUNS}/{reqid}.json")), 0o640);
    stage.fleet.ced(&["status", &reqid]).ok().out_has("exit:42");

    let later = stage.reqid(
        &run(json!({"hosts": hosts, "script": "slow", "async": true, "username": "alice", "token": "t0k3n"})),
        202,
    );
    let told = stage.status(&later);
    assert_eq!(told["pending"], json!(["web1.test", "web2.test"]));
    assert_eq!(told["complete"], false);
    stage.go();
    wait_until("it has ended", PATIENCE, || {
        (stage.status(&later)["complete"] == true).then_some(())
    });
    let told = stage.status(&later);
    let done = json!({"status": "done", "exit": 0, "stdout": "begun\nended\n", "stderr": ""});
    for name in ["web1.test", "web2.test"] {
        for (member, value) in done.as_object().expect("an object") {
            assert_eq!(&told["hosts"][name][member], value, "{told}");
        }
    }
    assert_eq!(told["pending"], json!([]));
    stage.fleet.ced(&["status", &later]).ok();

    // The other way round.
    let by_hand = stage
        .fleet
        .ced(&["run", "--json", "web1.test", "hello"])
        .ok()
        .json();
    let reqid = by_hand["results"][0]["reqid"].as_str().expect("an id");
    assert_eq!(stage.status(reqid)["results"], by_hand["results"]);
    let by_hand = stage
        .fleet
        .ced(&["run", "--async", "--json", "web1.test", "true"])
        .ok()
        .json();
    let reqid = by_hand["reqid"].as_str().expect("an id");
    wait_until("it has ended", PATIENCE, || {
        (stage.status(reqid)["hosts"]["web1.test"]["exit"] == 0).then_some(())
    });

    let mut answers = stage.api.get("/runs").expect(200).text() + &told.to_string();
    for request in [
        Request::new("GET", "/runs").bearer("t0k3n"),
        Request::new("DELETE", &format!("/runs/{later}")).bearer("t0k3n"),
        Request::new("GET", &format!("/status/{later}")).header("Accept", "application/x-ndjson"),
    ] {
        answers += &stage.api.send(&request).expect(200).text();
    }
    for word in ["submitter", "owner", "token:", "source_ip", "alice"] {
        assert!(!answers.contains(word), "{word}: {answers}");
    }
    assert!(answers.contains(&later));
}

#[test]
fn a_refusal_is_told_like_an_absence() {
    let stage = Stage::new(&["web1.test"], HOOKED);
    web::hook(stage.host(), "exit 0");
    let there = stage.reqid(&run(json!({"hosts": ["web1.test"], "script": "true"})), 200);
    let pending = stage.reqid(
        &run(json!({"hosts": ["web1.test"], "script": "slow", "async": true})),
        202,
    );
    let damaged = "00000000000000dd";
    stage
        .host()
        .write(&format!("{RUNS}/{damaged}.json"), "{", 0o640);
    let absent = "00000000000000ff";
    let ask = |method: &str, path: &str, reqid: &str, accept: &str| {
        let request = Request::new(method, &format!("{path}/{reqid}")).header("Accept", accept);
        let (status, headers, body) = stage.api.send(&request).without_date();
        let body = String::from_utf8(body).expect("text").replace(reqid, "ID");
        (status, headers, body)
    };
    // By an owner's rule, and by one that denies all; the absent one is told by a hook that allows.
    let real = ask("GET", "/status", absent, "*/*");
    assert_eq!(
        (real.0, real.2.as_str()),
        (
            404,
            r#"{"detail":"no result for reqid ID","error":"not found","ok":false}"#
        )
    );
    web::hook(
        stage.host(),
        "[ $ENVEXEC_ACTION = api ] || [ \"$ENVEXEC_SUBMITTER\" = root ]",
    );
    for reqid in [&there, &pending, damaged, absent] {
        for accept in ["*/*", "text/event-stream", "application/x-ndjson"] {
            assert_eq!(
                ask("GET", "/status", reqid, accept),
                real,
                "{reqid} {accept}"
            );
        }
        assert_eq!(ask("DELETE", "/runs", reqid, "*/*"), real, "{reqid}");
    }
    stage.go();
}

#[test]
fn everybody_sees_and_ends_only_own_runs() {
    let stage = Stage::new(&["web1.test", "web2.test"], OPEN);
    let (_old_host, _old) = old_agent(stage.host(), "old.test");
    let mut own = BTreeSet::new();
    let quick = |token: &str| json!({"hosts": ["web1.test"], "script": "true", "token": token});
    let later =
        json!({"hosts": ["web1.test", "web2.test", "old.test"], "script": "slow", "async": true});
    // One token, in header or body, is one owner.
    own.insert(stage.reqid(&run(quick("")).bearer("mine"), 200));
    own.insert(stage.reqid(&run(quick("mine")), 200));
    let running = stage.reqid(&run(later).bearer("mine"), 202);
    own.insert(running.clone());
    let theirs = stage.reqid(&run(quick("theirs")), 200);
    let nobodys = stage.reqid(&run(quick("")), 200);
    stage.fleet.ced(&["run", "web1.test", "true"]).ok();
    stage
        .fleet
        .ced(&["run", "--async", "web1.test", "true"])
        .ok();

    let page = |token: &str, query: &str| {
        let mut request = Request::new("GET", &format!("/runs{query}"));
        if !token.is_empty() {
            request = request.bearer(token);
        }
        stage.api.send(&request)
    };
    let listed = |token: &str| -> BTreeSet<String> {
        let answer = page(token, "").expect(200).json();
        assert_eq!((&answer["ok"], answer.get("next")), (&json!(true), None));
        let runs = answer["runs"].as_array().expect("an array");
        runs.iter()
            .map(|run| run["reqid"].as_str().expect("an id").to_owned())
            .collect()
    };
    assert_eq!(listed("mine"), own);
    assert_eq!(listed("theirs"), BTreeSet::from([theirs.clone()]));
    assert_eq!(listed(""), BTreeSet::from([nobodys.clone()]));
    assert_eq!(listed("another"), BTreeSet::new());

    // Page by page, newest first.
    let (mut seen, mut after, mut last) = (Vec::new(), String::new(), i64::MAX);
    let mut nexts = Vec::new();
    for n in 0..3 {
        let answer = page("mine", &format!("?limit=1{after}")).expect(200).json();
        let runs = answer["runs"].as_array().expect("an array");
        assert_eq!(runs.len(), 1);
        let time = runs[0]["time"].as_i64().expect("a time");
        assert!(time <= last, "newest first");
        last = time;
        seen.push(runs[0]["reqid"].as_str().expect("an id").to_owned());
        assert_eq!(answer.get("next").is_some(), n < 2, "{answer}");
        // `next`, or the reqid of the last one: as clients had it before `next` said more.
        after = format!("&after={}", seen[n]);
        if let Some(next) = answer["next"].as_str() {
            let by_next = page("mine", &format!("?limit=1&after={next}"))
                .expect(200)
                .json();
            let by_reqid = page("mine", &format!("?limit=1{after}")).expect(200).json();
            assert_eq!(by_next, by_reqid);
            nexts.push(next.to_owned());
        }
    }
    assert_eq!(seen.iter().cloned().collect::<BTreeSet<_>>(), own);
    let answer = page("mine", &format!("?limit=1{after}")).expect(200).json();
    assert_eq!(answer, json!({"ok": true, "runs": []}));
    for bad in [
        "?limit=0",
        "?limit=501",
        "?limit=x",
        "?limit=",
        "?after=00000000000000ee",
        &format!("?after={theirs}"),
    ] {
        page("mine", bad).expect(400);
    }
    let shown = page("mine", "").json()["runs"]
        .as_array()
        .expect("an array")
        .iter()
        .find(|r| r["reqid"] == running.as_str())
        .cloned();
    let shown = shown.expect("it is listed");
    assert_eq!(
        (
            &shown["script"],
            &shown["mode"],
            &shown["complete"],
            &shown["state"],
            &shown["count"],
            &shown["hosts"]
        ),
        (
            &json!("slow"),
            &json!("async"),
            &json!(false),
            &json!("running"),
            &json!(3),
            &json!(3)
        )
    );

    // Ending them.
    let end = |token: &str, reqid: &str| {
        stage
            .api
            .send(&Request::new("DELETE", &format!("/runs/{reqid}")).bearer(token))
    };
    for other in ["theirs", "another", ""] {
        let absent = end(other, "00000000000000ee")
            .expect(404)
            .text()
            .replace("00000000000000ee", &running);
        assert_eq!(end(other, &running).expect(404).text(), absent);
    }
    stage
        .api
        .send(&Request::new("DELETE", &format!("/runs/{running}")))
        .expect(404);
    assert_eq!(
        stage.status(&running)["complete"],
        false,
        "nobody else has ended it"
    );
    let ended = end("mine", &running).expect(200).json();
    assert_eq!(
        ended["cancel"]["web1.test"],
        json!({"status": "cancelling"})
    );
    assert_eq!(
        ended["cancel"]["web2.test"],
        json!({"status": "cancelling"})
    );
    assert_eq!(
        ended["cancel"]["old.test"]["status"], "unsupported",
        "{ended}"
    );
    assert!(ended["cancel"]["old.test"]["error"].is_string(), "{ended}");
    for name in ["web1.test", "web2.test"] {
        assert_eq!(ended["hosts"][name]["status"], "done", "{ended}");
        assert_ne!(ended["hosts"][name]["exit"], 0, "{ended}");
    }
    assert_eq!(ended["pending"], json!(["old.test"]));
    // What has ended can be ended again.
    let again = end("mine", &running).expect(200).json();
    assert_eq!(
        again["cancel"].as_object().map(|hosts| hosts.len()),
        Some(1),
        "{again}"
    );
    let sync = own
        .iter()
        .find(|reqid| **reqid != running)
        .expect("two more");
    let nothing = end("mine", sync).expect(200).json();
    assert_eq!(
        (&nothing["cancel"], &nothing["complete"]),
        (&json!({}), &json!(true))
    );
    end("mine", "NOT-HEX").expect(404);

    // Whoever has come to a run that is purged then goes on from there.
    let at = usize::from(seen[0] == running);
    std::fs::remove_file(stage.host().path(&format!("{RUNS}/{}.json", seen[at]))).expect("removed");
    let rest = page("mine", &format!("?after={}", nexts[at]))
        .expect(200)
        .json();
    assert_eq!(rest["runs"][0]["reqid"], seen[at + 1].as_str(), "{rest}");
    page("mine", &format!("?after={}", seen[at])).expect(400);
}

#[test]
fn records_that_cannot_be_written_or_read() {
    let stage = Stage::new(&["web1.test"], OPEN);
    let host = stage.host();
    let good = stage.reqid(
        &run(json!({"hosts": ["web1.test"], "script": "hello"})),
        200,
    );
    let file = |reqid: &str| host.path(&format!("{RUNS}/{reqid}.json"));

    // Read: damaged ones are told as such, without the path, and hide no others.
    let bytes = std::fs::read(file(&good)).expect("the record");
    let text = String::from_utf8(bytes).expect("JSON");
    let elsewhere = host.write(
        "tmp/elsewhere.json",
        text.replace(&good, "00000000000000a1"),
        0o640,
    );
    symlink(elsewhere, file("00000000000000a1")).expect("a link");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        file("00000000000000a2"),
        rustix::fs::FileType::Fifo,
        0o644.into(),
        0,
    )
    .expect("a FIFO");
    std::fs::create_dir(file("00000000000000a3")).expect("a directory");
    std::fs::write(file("00000000000000a4"), &text).expect("another's record");
    std::fs::write(file("00000000000000a5"), "").expect("an empty record");
    std::fs::write(
        file("00000000000000a6"),
        text.get(..text.len() / 2).expect("half"),
    )
    .expect("half a record");
    let huge = File::create(file("00000000000000a7")).expect("a file");
    huge.set_len(1 << 40).expect("a hole");
    std::fs::write(file("00000000000000a8"), "[".repeat(1 << 20)).expect("nested");
    std::fs::write(
        file("00000000000000a9"),
        r#"{"reqid":"00000000000000a9","mode":"async","hosts":7}"#,
    )
    .expect("nonsense");
    for n in 1..=9 {
        let reqid = format!("00000000000000a{n}");
        host.clear_log();
        for accept in ["*/*", "text/event-stream"] {
            let request = Request::new("GET", &format!("/status/{reqid}")).header("Accept", accept);
            let answer = stage.api.send(&request).expect(500).json();
            assert_eq!(
                answer,
                json!({"ok": false, "error": "server error", "detail": "cannot read result"}),
                "{reqid}"
            );
        }
        let line = host.wait_for_log(&["ACTION=run-store-fail", &reqid]);
        assert_eq!(line.priority, WARNING);
        assert!(
            line.field("ERROR")
                .is_some_and(|error| error.contains(RUNS)),
            "{}",
            line.text
        );
        stage
            .api
            .send(&Request::new("DELETE", &format!("/runs/{reqid}")))
            .expect(500);
    }
    let runs = stage.api.get("/runs").expect(200).json();
    assert_eq!(runs["runs"].as_array().map(Vec::len), Some(1), "{runs}");
    stage.api.get("/metrics").expect(200);
    stage.status(&good);

    // Written: the run goes on, and the log says why nobody will find it.
    std::fs::rename(host.path(RUNS), host.path("tmp/runs")).expect("away");
    host.write(RUNS, "", 0o600);
    host.clear_log();
    let lost = stage
        .api
        .post("/run", &json!({"hosts": ["web1.test"], "script": "hello"}))
        .expect(200)
        .json();
    assert_eq!(lost["results"][0]["exit"], 0);
    let reqid = lost["reqid"].as_str().expect("an id");
    let line = host.wait_for_log(&["ACTION=run-store-fail", reqid]);
    assert_eq!(line.priority, WARNING);
    let later = stage
        .api
        .post(
            "/run",
            &json!({"hosts": ["web1.test"], "script": "true", "async": true}),
        )
        .expect(202)
        .json();
    assert_eq!(later["results"][0]["status"], "accepted");
    let events = stage.api.send(
        &run(json!({"hosts": ["web1.test"], "script": "hello"}))
            .header("Accept", "application/x-ndjson"),
    );
    assert!(
        events.text().contains("\"recorded\":false"),
        "{}",
        events.text()
    );
    // A server that begins like this works, too.
    let other = ApiServer::start_beside(host, "blocked", OPEN);
    other
        .post("/run", &json!({"hosts": ["web1.test"], "script": "hello"}))
        .expect(200);
    other.get("/runs").expect(500);
    std::fs::remove_file(host.path(RUNS)).expect("the file");
    std::fs::rename(host.path("tmp/runs"), host.path(RUNS)).expect("back");
    stage.status(&good);
}

#[test]
fn records_go_when_they_are_old_whoever_looks() {
    let stage = Stage::new(&["web1.test"], &format!("{OPEN}run_retention = 3600\n"));
    let old = |reqid: &str, age: u64| {
        let path = stage.host().path(&format!("{RUNS}/{reqid}.json"));
        let file = File::options().append(true).open(path).expect("the record");
        let then = SystemTime::now() - Duration::from_secs(age);
        file.set_modified(then).expect("its time");
    };
    let changed = |reqid: &str| {
        let path = stage.host().path(&format!("{RUNS}/{reqid}.json"));
        std::fs::metadata(path)
            .and_then(|about| about.modified())
            .ok()
    };
    // No request yet that would look for old ones: the first one does.
    let by_hand = |words: &[&str]| {
        let told = stage
            .fleet
            .ced(&[&["run", "--json"], words].concat())
            .ok()
            .json();
        let reqid = told.get("reqid").unwrap_or(&told["results"][0]["reqid"]);
        reqid.as_str().expect("an id").to_owned()
    };
    let (gone, kept) = (
        by_hand(&["web1.test", "true"]),
        by_hand(&["--async", "web1.test", "true"]),
    );
    old(&gone, 3700);
    old(&kept, 3500);
    stage.api.get(&format!("/status/{gone}")).expect(404);
    assert_eq!(changed(&gone), None, "it is gone");
    wait_until("it is done", PATIENCE, || {
        (stage.status(&kept)["complete"] == true).then_some(())
    });
    old(&kept, 3500);
    let before = changed(&kept);
    for _ in 0..3 {
        stage.status(&kept);
    }
    assert_eq!(changed(&kept), before, "looking keeps nothing alive");
}

#[test]
fn nobody_ever_sees_a_run_go_backwards() {
    let stage = Stage::new(&["web1.test", "web2.test"], OPEN);
    let body = json!({"hosts": ["web1.test", "web2.test"], "script": "slow", "async": true});
    let reqid = stage.reqid(&run(body), 202);
    let rank = |told: &Value, host: &str| match told["hosts"][host]["status"].as_str() {
        Some("accepted") => 0,
        Some("running") => 1,
        Some("done") => 2,
        other => panic!("{other:?}: {told}"),
    };
    let ended = std::thread::scope(|scope| {
        let polls: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let (mut ranks, mut polls) = ([0, 0], 0);
                    let begun = Instant::now();
                    while ranks != [2, 2] {
                        assert!(begun.elapsed() < PATIENCE, "{ranks:?}");
                        let told = stage.status(&reqid);
                        for (host, rank_before) in ["web1.test", "web2.test"].iter().zip(&mut ranks)
                        {
                            let now = rank(&told, host);
                            assert!(now >= *rank_before, "{told}");
                            *rank_before = now;
                        }
                        let pending = told["pending"].as_array().expect("an array").len();
                        assert_eq!(told["complete"], pending == 0);
                        polls += 1;
                    }
                    polls
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(500));
        stage.fleet.agents[0].write("tmp/go", "", 0o644);
        std::thread::sleep(Duration::from_millis(500));
        stage.go();
        polls
            .into_iter()
            .map(|poll| poll.join().expect("a poll"))
            .sum::<usize>()
    });
    assert!(ended > 8, "{ended} polls");
    let kept = stage.record(&reqid);
    assert_eq!(kept["complete"], true);
}

#[test]
fn one_host_and_five_hundred() {
    let stage = Stage::new(&["web1.test"], OPEN);
    let mut template = stage.host().json("var/lib/ctrl-exec/agents/web1.test.json");
    template["cert_cn"] = json!("web1.test");
    let names: Vec<String> = (0..500).map(|n| format!("h{n:03}.test")).collect();
    for name in &names {
        let mut record = template.clone();
        record["hostname"] = json!(name);
        register(stage.host(), &record);
    }
    for many in [1, 64, 65, 500] {
        let body = json!({"hosts": names[..many], "script": "hello", "args": ["x"]});
        let answer = stage.api.post("/run", &body).expect(200).json();
        let results = answer["results"].as_array().expect("an array");
        assert_eq!(results.len(), many);
        for (name, result) in names.iter().zip(results) {
            assert_eq!(
                (result["host"].as_str(), &result["exit"]),
                (Some(name.as_str()), &json!(0)),
                "{result}"
            );
        }
        let told = stage.status(answer["reqid"].as_str().expect("an id"));
        assert_eq!(told["results"], answer["results"]);
        let pings = stage
            .api
            .post("/ping", &json!({"hosts": names[..many]}))
            .expect(200)
            .json();
        let pings = pings["results"].as_array().expect("an array");
        assert_eq!(
            pings
                .iter()
                .filter(|result| result["status"] == "ok")
                .count(),
            many
        );
    }
    let mut too_many = names.clone();
    too_many.push("web1.test".to_owned());
    stage
        .api
        .post("/run", &json!({"hosts": too_many, "script": "hello"}))
        .expect(400);
    // Twice the same host is two results; an asynchronous run has one for each host, so two ports are a mistake.
    let port = stage.fleet.ports[0];
    let twice = json!(["h000.test", format!("h000.test:{port}"), "h000.test"]);
    let answer = stage
        .api
        .post("/run", &json!({"hosts": twice, "script": "hello"}))
        .expect(200)
        .json();
    assert_eq!(
        answer["results"].as_array().map(Vec::len),
        Some(3),
        "{answer}"
    );
    let body = json!({"hosts": twice, "script": "true", "async": true});
    let answer = stage.api.post("/run", &body).expect(202).json();
    assert_eq!(
        answer["results"].as_array().map(Vec::len),
        Some(1),
        "{answer}"
    );
    let body = json!({"hosts": ["h000.test", "h000.test:1"], "script": "true", "async": true});
    stage.api.post("/run", &body).expect(400);
    // No name leads out of the registry, and no answer says what lies there.
    stage.host().write(
        "var/lib/ctrl-exec/pairing/0123456789ab.json",
        template.to_string(),
        0o600,
    );
    for name in [
        "../pairing/0123456789ab",
        "..",
        "/etc/passwd",
        "a/../h000.test",
        "",
        ".",
        "h000.test\u{0}",
        "h000.test/",
        "h000.test:0",
        "h000.test:x",
    ] {
        let answer = stage
            .api
            .post("/run", &json!({"hosts": [name], "script": "true"}))
            .expect(404)
            .json();
        assert_eq!(answer["detail"], format!("not a registered agent: {name}"));
    }
    let locks = stage.fleet.ced(&["list-locks", "--json"]).ok().json();
    assert_eq!(locks["locks"], json!([]), "all are free");
}

#[test]
fn much_output_comes_whole() {
    let stage = Stage::new(&["web1.test"], OPEN);
    for size in [0, 100_000, 8 * 1024 * 1024] {
        let text = |line: &str| {
            let mut text = format!("{line}\n").repeat(size / 16 + 1);
            text.truncate(size);
            text
        };
        let (out, err) = (text("0123456789abcde"), text("fedcba987654321"));
        let body = json!({"hosts": ["web1.test"], "script": "talk", "args": [size.to_string()]});
        let answer = stage.api.post("/run", &body).expect(200).json();
        let result = &answer["results"][0];
        assert!(
            result["stdout"] == out.as_str() && result["stderr"] == err.as_str(),
            "{size}"
        );
        assert_eq!(result.get("truncated"), None);
        let told = stage.status(answer["reqid"].as_str().expect("an id"));
        assert!(
            told["results"][0]["stdout"] == out.as_str(),
            "{size} in the record"
        );

        let body = json!({"hosts": ["web1.test"], "script": "talk", "args": [size.to_string()], "async": true});
        let reqid = stage.reqid(&run(body), 202);
        let told = wait_until("it has ended", PATIENCE, || {
            let told = stage.status(&reqid);
            (told["complete"] == true).then_some(told)
        });
        let entry = &told["hosts"]["web1.test"];
        assert!(
            entry["stdout"] == out.as_str() && entry["stderr"] == err.as_str(),
            "{size}, asynchronous"
        );
    }
}

#[test]
fn a_client_that_goes_away_ends_no_run() {
    let stage = Stage::new(&["web1.test"], OPEN);
    for accept in ["application/json", "text/event-stream"] {
        let request = run(json!({"hosts": ["web1.test"], "script": "slow"}))
            .bearer(accept)
            .header("Accept", accept);
        let mut connection = stage.api.connect();
        connection.send(&request.bytes());
        stage.wait_for_lock();
        drop(connection);
        std::thread::sleep(Duration::from_millis(200));
        stage.go();
        let listed = wait_until("the record is there", PATIENCE, || {
            let runs = stage.api.get_as(accept, "/runs").expect(200).json();
            runs["runs"].as_array()?.first().cloned()
        });
        let told = stage.status(listed["reqid"].as_str().expect("an id"));
        assert_eq!(told["results"][0]["stdout"], "begun\nended\n", "{accept}");
        std::fs::remove_file(stage.fleet.agents[0].path("tmp/go")).expect("the file");
    }
    // Nothing is left behind.
    let locks = stage.fleet.ced(&["list-locks", "--json"]).ok().json();
    assert_eq!(locks["locks"], json!([]));
}

#[test]
fn api_and_command_line_keep_out_of_each_others_way() {
    let stage = Stage::new(&["web1.test", "web2.test"], OPEN);
    let slow = json!({"hosts": ["web2.test", "web1.test"], "script": "slow"});
    let locked = |conflicts: Value| json!({"ok": false, "error": "locked", "code": 4, "conflicts": conflicts});
    // The command line has it.
    let mut by_hand = stage.host().start("ced", &["run", "web1.test", "slow"]);
    stage.wait_for_lock();
    let answer = stage.api.post("/run", &slow).expect(409).json();
    assert_eq!(answer, locked(json!(["web1.test:slow"])));
    for more in [
        json!({"async": true}),
        json!({"hosts": [format!("web1.test:{}", stage.fleet.ports[0])]}),
    ] {
        let mut body = slow.clone();
        for (name, value) in more.as_object().expect("an object") {
            body[name] = value.clone();
        }
        assert_eq!(
            stage.api.post("/run", &body).expect(409).json(),
            locked(json!(["web1.test:slow"]))
        );
    }
    let streamed = stage
        .api
        .send(&run(slow.clone()).header("Accept", "text/event-stream"))
        .expect(409);
    assert_eq!(streamed.json(), locked(json!(["web1.test:slow"])));
    // Others are free, and so is the host that was not locked.
    stage
        .api
        .post("/run", &json!({"hosts": ["web1.test"], "script": "true"}))
        .expect(200);
    stage.go();
    assert!(by_hand.wait(PATIENCE).success());
    stage.api.post("/run", &slow).expect(200);

    // The API has it.
    for host in &stage.fleet.agents {
        std::fs::remove_file(host.path("tmp/go")).expect("the file");
    }
    std::thread::scope(|scope| {
        let running = scope.spawn(|| stage.api.post("/run", &slow).expect(200).json());
        stage.wait_for_lock();
        stage
            .fleet
            .ced(&["run", "web2.test", "web1.test", "slow"])
            .expect_code(1)
            .err_has("web2.test:slow");
        assert_eq!(
            stage.api.post("/run", &slow).expect(409).json(),
            locked(json!(["web2.test:slow", "web1.test:slow"]))
        );
        stage
            .host()
            .wait_for_log(&["ACTION=lock-conflict", "web2.test:slow,web1.test:slow"]);
        stage.go();
        let answer = running.join().expect("the run");
        assert_eq!(answer["results"][0]["stdout"], "begun\nended\n");
    });
    // Free the moment that the answer is there.
    for _ in 0..5 {
        stage.api.post("/run", &slow).expect(200);
        stage
            .fleet
            .ced(&["run", "web1.test", "web2.test", "slow"])
            .ok();
    }
    // An asynchronous run holds nothing: the agent itself says that it is busy.
    for host in &stage.fleet.agents {
        std::fs::remove_file(host.path("tmp/go")).expect("the file");
    }
    let mut later = slow.clone();
    later["async"] = json!(true);
    stage.api.post("/run", &later).expect(202);
    let busy = stage.api.post("/run", &later).expect(202).json();
    assert_eq!(busy["results"][0]["status"], "busy", "{busy}");
    stage.go();
}
