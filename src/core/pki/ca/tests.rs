use super::*;
use crate::core::pki::fixtures::{LeafVersion, OpenSsl, agent, new_ca, request};
use std::os::unix::fs::MetadataExt as _;

fn system() -> Clock {
    Clock::system(0)
}

#[test]
fn a_new_ca_is_three_files_that_load_again() {
    let openssl = OpenSsl::new();
    let made = new_ca(openssl.dir());
    for (name, mode) in [("ca.key", 0o600), ("ca.crt", 0o644), ("ca.serial", 0o600)] {
        let meta = std::fs::metadata(openssl.path(name)).unwrap();
        assert_eq!(meta.mode() & 0o7777, mode, "{name}");
    }
    assert_eq!(openssl.read("ca.serial"), "01");
    assert_eq!(std::fs::read_dir(openssl.dir()).unwrap().count(), 3);
    let loaded = Authority::load(openssl.dir(), system()).unwrap();
    assert_eq!(loaded.certificate(), made.certificate());
    let text = openssl.run_text("x509 -in ca.crt -noout -text");
    for expected in [
        "CN = ctrl-exec CA",
        "CA:TRUE, pathlen:0",
        "Certificate Sign, CRL Sign",
        "Subject Key Identifier",
        "Authority Key Identifier",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    openssl.run("verify -x509_strict -CAfile ca.crt ca.crt");
}

#[test]
fn a_ca_is_never_made_over_another() {
    for present in [KEY_FILE, CERT_FILE] {
        let openssl = OpenSsl::new();
        openssl.write(present, "precious");
        let error = Authority::create(
            openssl.dir(),
            KeyType::EcdsaP256,
            DEFAULT_CN,
            DEFAULT_CA_DAYS,
            system(),
        )
        .unwrap_err();
        assert!(matches!(error, CaError::Exists(_)), "{error}");
        assert_eq!(openssl.read(present), "precious");
        assert_eq!(std::fs::read_dir(openssl.dir()).unwrap().count(), 1);
    }
}

#[test]
fn of_two_that_start_at_once_one_makes_the_ca() {
    let openssl = OpenSsl::new();
    let made: Vec<_> = std::thread::scope(|scope| {
        let make = || {
            Authority::create(
                openssl.dir(),
                KeyType::EcdsaP256,
                DEFAULT_CN,
                DEFAULT_CA_DAYS,
                system(),
            )
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(make)).collect();
        threads
            .into_iter()
            .filter_map(|t| t.join().unwrap().ok())
            .collect()
    });
    assert_eq!(made.len(), 1);
    let loaded = Authority::load(openssl.dir(), system()).unwrap();
    assert_eq!(loaded.certificate(), made[0].certificate());
}

#[test]
fn bad_names_and_days_are_refused_before_anything_is_written() {
    let openssl = OpenSsl::new();
    let create = |cn: &str, days| {
        Authority::create(openssl.dir(), KeyType::EcdsaP256, cn, days, system()).unwrap_err()
    };
    for cn in ["", "a/b", "a=b", "a\0b", " a", "é", &"a".repeat(65)] {
        assert!(matches!(create(cn, 1), CaError::InvalidCn(_)), "{cn:?}");
    }
    for days in [0, 36_501, u32::MAX] {
        assert!(matches!(create("x", days), CaError::Days));
    }
    assert_eq!(std::fs::read_dir(openssl.dir()).unwrap().count(), 0);
}

#[test]
fn a_missing_or_foreign_half_is_named() {
    let openssl = OpenSsl::new();
    let load = || {
        Authority::load(openssl.dir(), system())
            .unwrap_err()
            .to_string()
    };
    assert!(
        load().contains("ca.key' - run setup-ca first"),
        "{}",
        load()
    );
    new_ca(openssl.dir());
    openssl.make_key("other", "ec");
    openssl.write("ca.key", &openssl.read("other.key"));
    assert!(load().contains("does not belong"), "{}", load());
    std::fs::remove_file(openssl.path("ca.crt")).unwrap();
    assert!(
        load().contains("ca.crt' - run setup-ca first"),
        "{}",
        load()
    );
}

#[test]
fn of_several_certificates_the_one_of_the_key_signs() {
    let openssl = OpenSsl::new();
    let one = new_ca(openssl.dir());
    std::fs::create_dir(openssl.path("next")).unwrap();
    let two = new_ca(&openssl.path("next"));
    let (first, second) = (one.certificate().to_pem(), two.certificate().to_pem());
    openssl.write("ca.crt", &format!("{second}{first}"));
    let signing = || Authority::load(openssl.dir(), system()).map(|a| a.certificate().clone());
    assert_eq!(signing().unwrap(), *one.certificate());
    // A CA change is one rename.
    openssl.write("ca.key", &openssl.read("next/ca.key"));
    assert_eq!(signing().unwrap(), *two.certificate());
    openssl.write("ca.crt", &first);
    assert!(matches!(signing(), Err(CaError::Mismatch { .. })));
}

#[test]
fn a_host_keeps_its_id_and_no_other_text_gets_into_the_role() {
    let openssl = OpenSsl::new();
    let ca = new_ca(openssl.dir());
    let request = request(KeyType::EcdsaP256, "web1");
    let first = ca.issue_agent(&request, &agent("web1"), 30).unwrap();
    let renew = |of: &Certificate| ca.renew_agent(&request, &agent("web1"), of, 30);
    let again = renew(&first).unwrap();
    assert_eq!(again.role_id, first.role_id);
    assert_eq!(
        again.not_before,
        first.not_before + 1,
        "newer, though made in the same second"
    );
    let mut other = first.clone();
    other.role_id = None;
    assert_ne!(renew(&other).unwrap().role_id, first.role_id);
    for bad in ["", "a/b", "../x", "a b", "A"] {
        other.role_id = Some(bad.to_owned());
        assert!(renew(&other).is_err(), "{bad:?}");
    }
    // Certificates of the original begin when they are made; what replaces one must not begin earlier, nor in the future.
    let now = system().now();
    other.role_id = None;
    for (begins, expected) in [(now - 3600, now - 3599), (now + 500, now)] {
        other.not_before = begins;
        assert!((renew(&other).unwrap().not_before - expected).abs() < 5);
    }
}

#[test]
fn a_name_that_would_be_written_differently_is_refused_on_loading() {
    let openssl = OpenSsl::new();
    openssl.make_ca("ca", "ec", "/DC=com/DC=example/CN=ca");
    let error = Authority::load(openssl.dir(), system()).unwrap_err();
    assert!(matches!(error, CaError::Name(_)), "{error}");
    openssl.make_leaf("x", "ec", "/CN=x", "ca", LeafVersion::V3);
    openssl.write("ca.crt", &openssl.read("x.crt"));
    openssl.write("ca.key", &openssl.read("x.key"));
    let error = Authority::load(openssl.dir(), system()).unwrap_err();
    assert!(matches!(error, CaError::NotACa(_)), "{error}");
}

#[test]
fn dates_are_back_dated_a_day_and_end_exactly() {
    let openssl = OpenSsl::new();
    let now = 1_900_000_000;
    let ca = Authority::create(
        openssl.dir(),
        KeyType::EcdsaP256,
        DEFAULT_CN,
        100,
        Clock::fixed(now),
    )
    .unwrap();
    let request = request(KeyType::EcdsaP256, "x");
    let issued = ca.issue_agent(&request, &agent("x"), 1).unwrap();
    assert_eq!(
        (issued.not_before, issued.not_after),
        (now - 86_400, now + 86_400)
    );
    assert!(matches!(
        ca.issue_agent(&request, &agent("x"), 0),
        Err(CaError::Days)
    ));
    let late = Authority::load(openssl.dir(), Clock::fixed(now + 101 * 86_400)).unwrap();
    let error = late.issue_agent(&request, &agent("x"), 1).unwrap_err();
    assert!(
        error.to_string().contains("CA certificate expired"),
        "{error}"
    );
}

#[test]
fn many_may_sign_at_once() {
    let openssl = OpenSsl::new();
    new_ca(openssl.dir());
    let request = request(KeyType::EcdsaP256, "web1");
    let serials: Vec<Serial> = std::thread::scope(|scope| {
        let sign = || {
            let ca = Authority::load(openssl.dir(), system()).unwrap();
            let issue = |_| ca.issue_agent(&request, &agent("web1"), 30).unwrap().serial;
            (0..10).map(issue).collect::<Vec<_>>()
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(sign)).collect();
        threads
            .into_iter()
            .flat_map(|t| t.join().unwrap())
            .collect()
    });
    let distinct: std::collections::HashSet<_> = serials.iter().collect();
    assert_eq!(distinct.len(), 40);
    let highest = serials.iter().map(Serial::two_digit_hex).max().unwrap();
    assert_eq!(
        openssl.read("ca.serial"),
        format!("{}\n", highest.to_ascii_uppercase())
    );
    openssl.run("req -new -newkey rsa:2048 -nodes -keyout k.pem -subj /CN=perl -out r.csr");
    openssl.run("x509 -req -in r.csr -CA ca.crt -CAkey ca.key -CAserial ca.serial -out p.crt");
    let next = openssl.certificate("p.crt").serial.two_digit_hex();
    assert_eq!(
        u128::from_str_radix(&next, 16),
        u128::from_str_radix(&highest, 16).map(|n| n + 1)
    );
}
