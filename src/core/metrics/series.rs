//! Counters, gauges and histograms: a map from rendered labels to a value, behind one lock per family.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::text::{Family, Page, labels};

/// Most different values of the first label of a family that are told apart; whatever comes later counts as [`OTHER`].
pub const MAX_VALUES: usize = 200;
/// The label of everything beyond the bound, or that is no proper name.
pub(super) const OTHER: &str = "other";

/// The series of a family by their labels. The first label may be one that peers choose; the others are words of an enum.
#[derive(Debug)]
struct Series<T> {
    by_labels: BTreeMap<String, T>,
    /// Values of the first label so far.
    known: BTreeSet<String>,
    /// Where labels are rendered: most events have a series already, and cost no allocation.
    scratch: String,
}

impl<T: Default> Series<T> {
    const fn new() -> Self {
        Self {
            by_labels: BTreeMap::new(),
            known: BTreeSet::new(),
            scratch: String::new(),
        }
    }

    fn change(&mut self, family: &Family, values: &[&str], change: impl FnOnce(&mut T)) {
        let mut rendered = std::mem::take(&mut self.scratch);
        rendered.clear();
        match values.split_first() {
            Some((first, rest)) if !self.admit(first) => {
                let mut bounded = vec![OTHER];
                bounded.extend_from_slice(rest);
                labels(family.labels, &bounded, &mut rendered);
            }
            _ => labels(family.labels, values, &mut rendered),
        }
        match self.by_labels.get_mut(&rendered) {
            Some(value) => change(value),
            None => change(self.by_labels.entry(rendered.clone()).or_default()),
        }
        self.scratch = rendered;
    }

    fn admit(&mut self, first: &str) -> bool {
        if self.known.contains(first) {
            return true;
        }
        let room = self.known.len() < MAX_VALUES;
        if room {
            self.known.insert(first.to_owned());
        }
        room
    }
}

/// A panic elsewhere leaves numbers that are still right: each is changed in one step.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Events since the start of the program.
#[derive(Debug)]
pub struct Counter {
    family: &'static Family,
    series: Mutex<Series<u64>>,
}

impl Counter {
    pub const fn new(family: &'static Family) -> Self {
        Self {
            family,
            series: Mutex::new(Series::new()),
        }
    }

    /// One more event.
    pub fn count(&self, values: &[&str]) {
        locked(&self.series).change(self.family, values, |value| {
            *value = value.saturating_add(1);
        });
    }

    /// The total so far, where somebody else counts.
    pub fn put(&self, values: &[&str], total: u64) {
        locked(&self.series).change(self.family, values, |value| *value = total);
    }

    /// Shows a series before its first event, so that a scraper sees the step from 0 to 1.
    pub fn expect(&self, values: &[&str]) {
        locked(&self.series).change(self.family, values, |_| ());
    }

    pub fn render(&self, page: &mut Page) {
        let series = locked(&self.series);
        if !series.by_labels.is_empty() {
            page.begin(self.family);
        }
        for (labels, value) in &series.by_labels {
            page.line(self.family.name, "", labels, &value.to_string());
        }
    }
}

/// A number without labels that goes up and down. Not an atomic: 32-bit MIPS has none of 64 bits.
#[derive(Debug)]
pub struct Gauge {
    family: &'static Family,
    value: Mutex<i64>,
}

impl Gauge {
    pub const fn new(family: &'static Family) -> Self {
        Self {
            family,
            value: Mutex::new(0),
        }
    }

    pub fn set(&self, value: i64) {
        *locked(&self.value) = value;
    }

    pub fn add(&self, difference: i64) {
        *locked(&self.value) += difference;
    }

    pub fn render(&self, page: &mut Page) {
        page.gauge(self.family, *locked(&self.value));
    }
}

/// How long things took, in seconds, by upper bounds.
#[derive(Debug)]
pub struct Histogram {
    family: &'static Family,
    /// Ascending, without the infinite one.
    bounds: &'static [f64],
    series: Mutex<Series<Distribution>>,
}

#[derive(Debug, Default)]
struct Distribution {
    /// How many fell into each bucket alone; those above every bound are only in `count`.
    buckets: Vec<u64>,
    sum: f64,
    count: u64,
}

impl Histogram {
    pub const fn new(family: &'static Family, bounds: &'static [f64]) -> Self {
        Self {
            family,
            bounds,
            series: Mutex::new(Series::new()),
        }
    }

    pub fn observe(&self, values: &[&str], took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = self.bounds.partition_point(|bound| *bound < seconds);
        locked(&self.series).change(self.family, values, |distribution| {
            distribution.buckets.resize(self.bounds.len(), 0);
            if let Some(bucket) = distribution.buckets.get_mut(bucket) {
                *bucket += 1;
            }
            distribution.sum += seconds;
            distribution.count += 1;
        });
    }

    /// Shows a series before its first event.
    pub fn expect(&self, values: &[&str]) {
        locked(&self.series).change(self.family, values, |_| ());
    }

    pub fn render(&self, page: &mut Page) {
        let series = locked(&self.series);
        if !series.by_labels.is_empty() {
            page.begin(self.family);
        }
        let name = self.family.name;
        for (labels, distribution) in &series.by_labels {
            let comma = if labels.is_empty() { "" } else { "," };
            let mut below = 0;
            for (at, bound) in self.bounds.iter().enumerate() {
                below += distribution.buckets.get(at).copied().unwrap_or(0);
                let labels = format!("{labels}{comma}le=\"{bound}\"");
                page.line(name, "_bucket", &labels, &below.to_string());
            }
            let count = distribution.count.to_string();
            let all = format!("{labels}{comma}le=\"+Inf\"");
            page.line(name, "_bucket", &all, &count);
            page.line(name, "_sum", labels, &distribution.sum.to_string());
            page.line(name, "_count", labels, &count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::text::Kind;
    use super::*;

    static COUNTED: Family = Family {
        name: "ctrl_exec_things_total",
        kind: Kind::Counter,
        help: "Things.",
        labels: &["script", "outcome"],
    };
    static TIMED: Family = Family {
        name: "ctrl_exec_wait_seconds",
        kind: Kind::Histogram,
        help: "Waits.",
        labels: &["mode"],
    };
    static PLAIN: Family = Family {
        name: "ctrl_exec_plain_seconds",
        kind: Kind::Histogram,
        help: "Waits.",
        labels: &[],
    };

    fn text(render: impl Fn(&mut Page)) -> String {
        let mut page = Page::new();
        render(&mut page);
        page.into_text()
    }

    #[test]
    fn counters_count_by_labels_and_show_what_is_expected() {
        let counter = Counter::new(&COUNTED);
        assert_eq!(text(|p| counter.render(p)), "", "nothing to say");
        counter.expect(&["a", "ok"]);
        counter.count(&["b", "failed"]);
        counter.count(&["b", "failed"]);
        let shown = text(|p| counter.render(p));
        assert!(shown.ends_with(
            "counter\nctrl_exec_things_total{script=\"a\",outcome=\"ok\"} 0\nctrl_exec_things_total{script=\"b\",outcome=\"failed\"} 2\n"
        ));
    }

    #[test]
    fn names_beyond_the_bound_are_one_series_and_known_ones_go_on() {
        let counter = Counter::new(&COUNTED);
        for n in 0..MAX_VALUES + 50 {
            counter.count(&[&format!("s{n}"), "ok"]);
            counter.count(&["s0", "failed"]);
        }
        let shown = text(|p| counter.render(p));
        assert!(shown.contains("{script=\"other\",outcome=\"ok\"} 50\n"));
        assert!(shown.contains("{script=\"s0\",outcome=\"failed\"} 250\n"));
        assert_eq!(shown.lines().count(), 2 + MAX_VALUES + 2);
    }

    #[test]
    fn a_histogram_is_cumulative_and_ends_with_everything() {
        let histogram = Histogram::new(&TIMED, &[0.5, 1.0, 2.5]);
        for millis in [100, 500, 501, 2500, 99_000] {
            histogram.observe(&["sync"], Duration::from_millis(millis));
        }
        let shown = text(|p| histogram.render(p));
        let expected = "\
ctrl_exec_wait_seconds_bucket{mode=\"sync\",le=\"0.5\"} 2
ctrl_exec_wait_seconds_bucket{mode=\"sync\",le=\"1\"} 3
ctrl_exec_wait_seconds_bucket{mode=\"sync\",le=\"2.5\"} 4
ctrl_exec_wait_seconds_bucket{mode=\"sync\",le=\"+Inf\"} 5
ctrl_exec_wait_seconds_sum{mode=\"sync\"} 102.601
ctrl_exec_wait_seconds_count{mode=\"sync\"} 5
";
        assert!(shown.ends_with(expected), "{shown}");
    }

    #[test]
    fn a_histogram_without_labels_or_events_is_whole() {
        let histogram = Histogram::new(&PLAIN, &[1.0]);
        histogram.expect(&[]);
        let shown = text(|p| histogram.render(p));
        assert!(shown.ends_with(
            "_bucket{le=\"1\"} 0\nctrl_exec_plain_seconds_bucket{le=\"+Inf\"} 0\nctrl_exec_plain_seconds_sum 0\nctrl_exec_plain_seconds_count 0\n"
        ), "{shown}");
    }

    #[test]
    fn many_threads_lose_nothing() {
        let counter = Counter::new(&COUNTED);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| counter.count(&["a", "ok"])));
            }
        });
        assert!(text(|p| counter.render(p)).ends_with(" 4000\n"));
    }
}
