//! Numbers for monitoring systems: the reader that the tests judge pages by, and pages of ours judged by it.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::prometheus::Metrics;
use ctrl_exec::core::metrics::{
    ApiMetrics, ApiRefusal, CONTENT_TYPE, Counter, FAMILIES, Family, FleetState, Histogram, Kind,
    Outcome, Page, RunMode,
};

const HEAD: &str = "# HELP x_total An x.\n# TYPE x_total counter\n";
const HISTOGRAM: &str = "# HELP h An h.\n# TYPE h histogram\n";

fn refused(text: &str, reason: &str) {
    match Metrics::parse(text) {
        Ok(_) => panic!("taken although {reason}:\n{text}"),
        Err(said) => assert!(said.contains(reason), "{said}, not {reason}, for\n{text}"),
    }
}

#[test]
fn the_reader_takes_what_is_right() {
    let text = format!(
        "{HEAD}x_total{{a=\"q\\\"b\\\\s\\n\",b=\"\"}} 1\nx_total 2.5e3\n{HISTOGRAM}h_bucket{{le=\"0.5\"}} 1\nh_bucket{{le=\"+Inf\"}} 3\nh_sum 4.5\nh_count 3\n# HELP g A \\\\ g.\n# TYPE g gauge\ng -1\n"
    );
    let page = Metrics::read(&text);
    assert_eq!(page.value("x_total"), 2500.0);
    assert_eq!(page.value("g"), -1.0);
    assert!(page.has("x_total{a=\"q\\\"b\\\\s\\n\",b=\"\"}"));
    assert_eq!(page.families().collect::<Vec<_>>(), ["g", "h", "x_total"]);
    assert!(Metrics::parse("").is_ok());
}

#[test]
fn the_reader_refuses_wrong_lines() {
    for (lines, reason) in [
        ("x_total 1", "last line has no end"),
        ("x_total\n", "no value"),
        ("x_total one\n", "no number"),
        ("x_total inf\n", "no number"),
        ("x_total  1\n", "no number"),
        ("x_total 1 1700000000\n", "no number"),
        ("x_total{a=\"b\"}1\n", "no blank"),
        ("x_total{a=b} 1\n", "without a value"),
        ("x_total{a=\"b} 1\n", "label without an end"),
        ("x_total{a=\"\\t\"} 1\n", "bad escape"),
        ("x_total{a=\"b\"c=\"d\"} 1\n", "no comma"),
        ("x_total{a=\"b\",} 1\n", "comma without a label"),
        ("x_total{1a=\"b\"} 1\n", "no name of a label"),
        ("x_total{__a=\"b\"} 1\n", "no name of a label"),
        ("x_total{a=\"b\",a=\"c\"} 1\n", "a label twice"),
        ("x-total 1\n", "no name of a metric"),
        ("x_total -1\n", "negative"),
        ("x_total 1\n\n", "an empty line"),
        ("# something\nx_total 1\n", "no known kind"),
        ("x_total 1\nx_total 2\n", "there before"),
        (
            "x_total{a=\"1\",b=\"2\"} 1\nx_total{b=\"2\",a=\"1\"} 2\n",
            "there before",
        ),
        ("y_total 1\n", "does not belong"),
        ("x_total_sum 1\n", "does not belong"),
        ("x_total{le=\"1\"} 1\n", "'le' is for histograms"),
        ("", "no sample"),
    ] {
        refused(&format!("{HEAD}{lines}"), reason);
    }
}

#[test]
fn the_reader_refuses_families_that_are_out_of_order() {
    refused("x_total 1\n", "before any family");
    refused("# TYPE x_total counter\nx_total 1\n", "does not belong");
    refused("# HELP x_total An x.\nx_total 1\n", "before its TYPE");
    refused(
        "# HELP x_total \n# TYPE x_total counter\n",
        "without a text",
    );
    refused("# HELP x_total a\\q\n", "bad escape");
    refused(&format!("{HEAD}# TYPE x_total counter\n"), "TYPE twice");
    refused(&format!("{HEAD}# HELP x_total An x.\n"), "HELP twice");
    refused(
        "# HELP x_total An x.\n# TYPE x_total meter\n",
        "unknown type",
    );
    refused("# HELP x An x.\n# TYPE x counter\nx 1\n", "ends in _total");
    refused(
        "# HELP x_total An x.\n# TYPE x_total gauge\nx_total 1\n",
        "ends in _total",
    );
    let other = "# HELP y A y.\n# TYPE y gauge\ny 1\n";
    let split = format!("{HEAD}x_total 1\n{other}x_total{{a=\"b\"}} 1\n");
    refused(&split, "does not belong");
    let again = format!("{HEAD}x_total 1\n{other}{HEAD}x_total{{a=\"b\"}} 1\n");
    refused(&again, "begun before");
}

#[test]
fn the_reader_refuses_histograms_that_do_not_add_up() {
    for (lines, reason) in [
        ("h_sum 1\nh_count 1\n", "no bucket"),
        ("h_bucket 1\nh_sum 1\nh_count 1\n", "without 'le'"),
        ("h_bucket{le=\"1\"} 1\nh_sum 1\nh_count 1\n", "not +Inf"),
        (
            "h_bucket{le=\"+Inf\"} 2\nh_sum 1\nh_count 1\n",
            "not _count",
        ),
        ("h_bucket{le=\"+Inf\"} 1\nh_sum 1\n", "no _count"),
        ("h_bucket{le=\"+Inf\"} 1\nh_count 1\n", "no _sum"),
        (
            "h_bucket{le=\"1\"} 2\nh_bucket{le=\"2\"} 1\nh_bucket{le=\"+Inf\"} 2\nh_sum 1\nh_count 2\n",
            "not cumulative",
        ),
        (
            "h_bucket{le=\"2\"} 1\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 2\nh_sum 1\nh_count 2\n",
            "do not ascend",
        ),
        (
            "h_bucket{a=\"1\",le=\"+Inf\"} 1\nh_sum{a=\"1\"} 1\nh_count{a=\"2\"} 1\n",
            "no _",
        ),
        ("h 1\n", "does not belong"),
    ] {
        refused(&format!("{HISTOGRAM}{lines}"), reason);
    }
}

#[test]
fn the_page_of_the_api_is_right_whatever_clients_send() {
    let metrics = Arc::new(ApiMetrics::new("ctrl-exec-api", "1.0 \"x\\\n", 1));
    Metrics::read(&metrics.render(&FleetState::default()));
    let _open = metrics.connection();
    for at in 0..300 {
        metrics.answered("/run", "P\"O\nST", "200", Duration::from_millis(at));
        metrics.result(&format!("script{at}"), Outcome::Ok);
        metrics.result("\"}\n1", Outcome::Refused);
    }
    metrics.refused(ApiRefusal::Throttled);
    metrics.ran(RunMode::Sync, Duration::from_secs(9999));
    metrics.agent_connections(1, 0, 2);
    metrics.hook(Duration::from_secs(1));
    let page = Metrics::read(&metrics.render(&FleetState::default()));
    assert_eq!(
        page.value("ctrl_exec_run_results_total{script=\"other\",outcome=\"ok\"}"),
        101.0
    );
    assert_eq!(
        page.value("ctrl_exec_api_requests_total{route=\"/run\",method=\"other\",code=\"200\"}"),
        300.0
    );
    assert_eq!(page.value("ctrl_exec_api_connections"), 1.0);
    let known: Vec<&str> = FAMILIES.iter().map(|family| family.name).collect();
    for family in page.families() {
        assert!(known.contains(&family), "{family} is not documented");
    }
    assert!(CONTENT_TYPE.starts_with("text/plain; version=0.0.4"));
}

#[test]
fn labels_of_any_bytes_come_back_as_they_were() {
    static COUNTED: Family = Family {
        name: "x_total",
        kind: Kind::Counter,
        help: "An x.",
        labels: &["a", "b"],
    };
    static TIMED: Family = Family {
        name: "t_seconds",
        kind: Kind::Histogram,
        help: "A t.",
        labels: &["a"],
    };
    let counter = Counter::new(&COUNTED);
    let histogram = Histogram::new(&TIMED, &[0.001, 1.0]);
    let odd = [
        "",
        "\\",
        "\"",
        "\n",
        "\\n",
        "},le=\"+Inf\"",
        "\u{0}\r\t",
        "\u{e4}\u{1f600}",
    ];
    for value in odd {
        counter.count(&[value, value]);
        histogram.observe(&[value], Duration::from_micros(1));
    }
    let mut page = Page::new();
    counter.render(&mut page);
    histogram.render(&mut page);
    let text = page.into_text();
    let read = Metrics::read(&text);
    assert_eq!(read.value("x_total{a=\"\\\\n\",b=\"\\\\n\"}"), 1.0);
    assert_eq!(
        text.lines().filter(|l| l.starts_with("x_total{")).count(),
        odd.len()
    );
}
