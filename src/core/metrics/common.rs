//! What pages of several programs have in common.

use super::families as f;
use super::text::Page;

/// Upper bounds of a run's time, seconds.
pub(super) const LONG: &[f64] = &[
    0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0,
];

/// Words of a label.
macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        pub enum $name { $($(#[$doc])* $variant),* }

        impl $name {
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }
        }
    };
}
pub(super) use words;

words! {
    /// Whether a run is waited for.
    RunMode { Sync = "sync", Async = "async" }
}

/// What every program shows first.
pub(super) fn head(page: &mut Page, version: &str, program: &str, started: i64) {
    page.begin(&f::BUILD_INFO);
    page.sample(&f::BUILD_INFO, &[version, program], 1);
    page.gauge(&f::START_TIME, started);
}

/// The ends of the certificates that are known.
pub(super) fn certificates(page: &mut Page, ends: &[(&str, Option<i64>)]) {
    if ends.iter().any(|(_, end)| end.is_some()) {
        page.begin(&f::CERTIFICATE_EXPIRY);
    }
    for (kind, end) in ends {
        if let Some(end) = end {
            page.sample(&f::CERTIFICATE_EXPIRY, &[kind], *end);
        }
    }
}

pub(super) fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
