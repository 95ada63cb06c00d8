//! Requests to agents that behave in every way that agents behave.

mod world;

use tokio::task::JoinSet;

use super::*;
use crate::core::client::pool::{Counters, Limits};
use crate::core::pki::fixtures::agent;
use crate::core::pki::keys;
use crate::core::revocation;
use world::{Act, KEPT, Manner, World, counts, eventually, identity, keeps, pool};

#[tokio::test]
async fn with_a_pool_one_connection_serves_many_requests_and_without_one_each_has_its_own() {
    let world = World::new(keeps).await;
    let (counters, pool) = pool();
    let client = world.client().with_pool(pool);
    for _ in 0..3 {
        let answer = world.run(&client).await.unwrap();
        assert_eq!((answer.status, &answer.body["exit"]), (200, &0.into()));
        assert_eq!(answer.peer.serial, world.agent.certificate().serial);
    }
    assert_eq!((world.connections(), counts(&counters)), (1, [2, 1, 1]));
    let said_close = |at: usize| {
        let requests = world.seen.requests.lock().unwrap();
        requests[at]
            .to_ascii_lowercase()
            .contains("connection: close")
    };
    assert!(!said_close(0) && !said_close(2));

    // The client is loaded anew: what it kept is closed.
    drop(client);
    world.until_open(0).await;
    assert_eq!(counts(&counters), [2, 1, 0]);

    for _ in 0..2 {
        world.run(&world.client()).await.unwrap();
    }
    assert_eq!(world.connections(), 3);
    assert!(said_close(3) && said_close(4));
    world.until_open(0).await;
}

#[tokio::test]
async fn agents_that_close_are_taken_at_their_word() {
    let manners: [Manner; 2] = [
        |_, _| Act::Last("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}".to_owned()),
        |_, _| {
            let head = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: TE, Close\r\n\r\n{}";
            Act::Last(head.to_owned())
        },
    ];
    for manner in manners {
        let world = World::new(manner).await;
        let (counters, pool) = pool();
        let client = world.client().with_pool(pool);
        for _ in 0..2 {
            world.run(&client).await.unwrap();
            assert_eq!(counts(&counters)[2], 0);
        }
        assert_eq!(counts(&counters), [0, 2, 0]);
    }
}

#[tokio::test]
async fn an_agent_that_closes_unasked_after_its_answer_costs_nobody_a_request() {
    let world = World::new(|_, _| Act::Last(KEPT.to_owned())).await;
    let (counters, pool) = pool();
    let client = world.client().with_pool(pool);
    for _ in 0..3 {
        world.run(&client).await.unwrap();
        eventually(|| counts(&counters)[2] == 0).await;
    }
    assert_eq!(counts(&counters), [0, 3, 0]);
}

#[tokio::test]
async fn what_may_have_arrived_is_not_sent_twice() {
    let world = World::new(|turn, _| match turn {
        0 => Act::Say(KEPT.to_owned()),
        _ => Act::Die,
    })
    .await;
    let (counters, pool) = pool();
    let client = world.client().with_pool(pool);
    world.run(&client).await.unwrap();
    assert_eq!(world.run(&client).await.unwrap_err(), ExchangeError::Closed);
    assert_eq!(world.requests(), ["POST /run HTTP/1.1"; 2]);
    assert_eq!(counts(&counters), [1, 1, 0]);

    // What changes nothing is asked for once more.
    world.run(&client).await.unwrap();
    world.result(&client).await.unwrap();
    let requests = world.requests();
    assert_eq!(
        requests[2..],
        [
            "POST /run HTTP/1.1",
            "GET /result/1 HTTP/1.1",
            "GET /result/1 HTTP/1.1"
        ]
    );
    assert_eq!(counts(&counters), [2, 3, 1]);
    let target = world.target();
    let ping = client.exchange(&target, Method::POST, "/ping", Some(b"{}".to_vec()));
    ping.await.unwrap();
    assert_eq!(world.requests().len(), 7);
}

#[tokio::test]
async fn a_fresh_connection_is_the_last_try() {
    let world = World::new(|_, _| Act::Die).await;
    let client = world.client().with_pool(pool().1);
    assert_eq!(
        world.result(&client).await.unwrap_err(),
        ExchangeError::Closed
    );
    assert_eq!(world.requests().len(), 1);
}

#[tokio::test]
async fn a_request_that_has_not_left_is_told_from_one_that_may_have() {
    let world = World::new(|turn, _| match turn {
        0 => Act::Last(KEPT.to_owned()),
        _ => Act::Die,
    })
    .await;
    let client = world.client();
    let target = world.target();
    let call = Call::new(&target, Method::GET, "/x", None);
    let mut connection = client.connect(&target, &client.presented[0]).await.unwrap();
    assert!(
        connection
            .send("h", call.request(0, true).unwrap())
            .await
            .is_ok()
    );
    eventually(|| connection.is_closed()).await;
    let again = connection.send("h", call.request(0, true).unwrap()).await;
    assert!(matches!(again, Err(SendError::Unsent(_))));
    assert_eq!(world.requests().len(), 1);
}

#[tokio::test]
async fn silence_on_a_kept_connection_is_silence() {
    let world = World::new(|turn, _| match turn {
        0 => Act::Say(KEPT.to_owned()),
        _ => Act::Hang,
    })
    .await;
    let mut client = world.client().with_pool(pool().1);
    world.result(&client).await.unwrap();
    client.read_timeout = Duration::from_millis(50);
    let silent = ExchangeError::ReadTimeout(client.read_timeout);
    assert_eq!(world.result(&client).await.unwrap_err(), silent);
    assert_eq!(world.requests().len(), 2);
}

#[tokio::test]
async fn who_was_revoked_renamed_or_has_expired_meanwhile_is_not_asked_again() {
    let world = World::new(keeps).await;
    let (counters, pool) = pool();
    let client = world.client().with_pool(pool.clone());
    world.run(&client).await.unwrap();

    let journal = world.home.path().join("revoked.jsonl");
    let certificate = world.agent.certificate();
    let entry = Entry {
        serial: certificate.serial.to_string(),
        spki: Some(keys::spki_sha256(&certificate.spki)),
        agent: None,
        time: "2026-01-01T00:00:00Z".to_owned(),
        reason: None,
    };
    revocation::append(&journal, &entry).unwrap();
    let revoked = Revocations::load(&journal).unwrap();
    let knowing = world
        .client_at(revoked, Clock::system(0))
        .with_pool(pool.clone());
    let refused = world.run(&knowing).await.unwrap_err();
    assert!(matches!(refused, ExchangeError::Revoked(_)), "{refused}");
    assert_eq!((world.requests().len(), counts(&counters)), (1, [0, 1, 0]));

    world.run(&client).await.unwrap();
    let mut other = world.target();
    other.record.cert_cn = Some("db1".to_owned());
    let refused = client.exchange(&other, Method::POST, "/run", None).await;
    assert!(matches!(refused, Err(ExchangeError::WrongPeer(_))));
    assert_eq!(world.requests().len(), 2);

    world.run(&client).await.unwrap();
    let later = Clock::fixed(world.agent.certificate().not_after + 1);
    let late = world
        .client_at(Revocations::default(), later)
        .with_pool(pool);
    let refused = world.run(&late).await.unwrap_err();
    assert!(matches!(refused, ExchangeError::Tls { .. }), "{refused}");
    assert_eq!((world.requests().len(), counts(&counters)), (3, [0, 3, 0]));
}

#[tokio::test]
async fn a_connection_belongs_to_one_agent_one_address_and_one_identity() {
    let world = World::new(keeps).await;
    let (counters, pool) = pool();
    let client = world.client().with_pool(pool.clone());
    world.run(&client).await.unwrap();
    let mut namesake = world.target();
    namesake.name = agent("web2");
    namesake.record.name = agent("web2");
    namesake.record.cert_cn = Some("web1".to_owned());
    client
        .exchange(&namesake, Method::GET, "/x", None)
        .await
        .unwrap();
    let mut elsewhere = world.target();
    elsewhere.address = "localhost".to_owned();
    client
        .exchange(&elsewhere, Method::GET, "/x", None)
        .await
        .unwrap();
    let mut renewed = World {
        dispatcher: identity(&world.ca, "dispatcher"),
        ..world
    };
    let other = renewed.client().with_pool(pool);
    renewed.run(&other).await.unwrap();
    assert_eq!(counts(&counters), [0, 4, 4]);
    renewed.port = 1;
    assert!(renewed.run(&client).await.is_err());
}

#[tokio::test]
async fn few_connections_are_kept_and_not_for_long() {
    let world = World::new(keeps).await;
    let counters = Arc::new(Counters::default());
    let limits = |idle| Limits {
        all: 3,
        per_agent: 2,
        idle,
    };
    let pool = Pool::with_limits(counters.clone(), limits(Duration::from_secs(25)));
    let client = world.client().with_pool(pool);
    let ask = async |name: &str, times: usize| {
        let mut target = world.target();
        target.name = agent(name);
        target.record.cert_cn = Some("web1".to_owned());
        let mut all = JoinSet::new();
        for _ in 0..times {
            let (client, target) = (client.clone(), target.clone());
            all.spawn(async move { client.exchange(&target, Method::GET, "/x", None).await });
        }
        for answer in all.join_all().await {
            answer.unwrap();
        }
    };
    ask("a", 5).await;
    assert_eq!(counts(&counters)[2], 2);
    ask("b", 5).await;
    assert_eq!(counts(&counters)[2], 3);
    world.until_open(3).await;
    // The newest is used, so the oldest is that of `a`, and makes room.
    let fresh = counts(&counters)[1];
    ask("c", 1).await;
    ask("b", 2).await;
    assert_eq!((counts(&counters)[1], counts(&counters)[2]), (fresh + 1, 3));

    let short = Pool::with_limits(Arc::default(), limits(Duration::from_millis(30)));
    drop(client);
    world.until_open(0).await;
    let client = world.client().with_pool(short);
    world.run(&client).await.unwrap();
    world.until_open(0).await;
    world.run(&client).await.unwrap();
}

#[tokio::test]
async fn an_exchange_that_is_given_up_takes_its_connection_along() {
    let world = World::new(|_, _| Act::Hang).await;
    let client = world.client().with_pool(pool().1);
    let given_up = timeout(Duration::from_millis(200), world.run(&client)).await;
    assert!(given_up.is_err());
    eventually(|| world.requests().len() == 1).await;
    world.until_open(0).await;
}

const MIB: usize = 1024 * 1024;

fn large(chunked: bool) -> String {
    let text = "x".repeat(MIB - 100);
    let body = format!("{{\"stdout\":\"{text}\"}}");
    if chunked {
        let halves = body.split_at(600_000);
        let chunk = |part: &str| format!("{:x}\r\n{part}\r\n", part.len());
        let (first, second) = (chunk(halves.0), chunk(halves.1));
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{first}{second}0\r\n\r\n")
    } else {
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }
}

#[tokio::test]
async fn large_answers_take_turns_in_the_memory_there_is() {
    let manners: [Manner; 2] = [|_, _| Act::Say(large(false)), |_, _| Act::Say(large(true))];
    for manner in manners {
        let world = World::new(manner).await;
        let client = world.client().with_pool(pool().1);
        let client = client.with_budget(Budget::impatient(7 * MIB));
        let first = world.run(&client).await.unwrap();
        let second = world.run(&client).await.unwrap();
        assert!(first.held.is_some() && second.held.is_some());
        let third = world.run(&client).await.unwrap_err();
        assert_eq!(third, ExchangeError::NoRoom);
        assert!(
            third
                .to_string()
                .contains("a script that was run has ended")
        );
        drop(first);
        let again = world.run(&client).await.unwrap();
        assert_eq!(again.body["stdout"].as_str().map(str::len), Some(MIB - 100));

        let tiny = world.client().with_budget(Budget::new(MIB));
        let refused = world.run(&tiny).await.unwrap_err();
        assert!(
            matches!(refused, ExchangeError::ReplyTooLarge(_)),
            "{refused}"
        );
    }
    let small = World::new(keeps).await;
    let client = small.client().with_budget(Budget::new(0));
    assert!(small.run(&client).await.unwrap().held.is_none());
}
