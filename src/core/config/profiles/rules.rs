//! What keys of one profile mean together (spec/executor.md 7.5, 11.3, 15.1): errors in `strict`; in `compat` warnings, because the
//! files of older installations rely on the old meaning.

use std::ops::Range;

use crate::core::config::reader::Reader;
use crate::core::config::{Baseline, ProfileConfig};
use crate::core::profile::lint;

/// Where the keys stand that the rules are about; taken before they are read.
pub(super) struct Places {
    profile: Range<usize>,
    run_as: Option<Range<usize>>,
    caps: Option<Range<usize>>,
    no_new_privileges: Option<Range<usize>>,
}

impl Places {
    pub(super) fn of(r: &Reader<'_>, profile: &Range<usize>) -> Self {
        Self {
            profile: profile.clone(),
            run_as: r.value_span("run_as"),
            caps: r.value_span("caps"),
            no_new_privileges: r.value_span("no_new_privileges"),
        }
    }
}

/// Reports what a profile must not be.
pub(super) fn judge(r: &mut Reader<'_>, profile: &ProfileConfig, places: &Places) {
    let strict = profile.baseline == Baseline::Strict;
    let mut say = |span: &Range<usize>, message: &str| {
        if strict {
            r.error(span, message);
        } else {
            r.warn(span, message);
        }
    };
    if places.run_as.is_none() {
        let what = if strict {
            "name the user"
        } else {
            "under the executor its scripts run as root"
        };
        let message = format!("run_as is not set: {what}; write run_as = root if that is meant");
        say(&places.profile, &message);
    }
    if let (Some(span), false) = (&places.no_new_privileges, profile.no_new_privileges) {
        // A bad run_as has its own error; only what was understood is judged.
        let as_root = profile.run_as.is_some() && profile.runs_as_root();
        if as_root {
            say(
                span,
                "no_new_privileges = no under run_as = root gives back what the profile takes away: leave it on, or name another user",
            );
        } else if !profile.allow_setuid {
            say(
                span,
                "no_new_privileges = no lets set-uid programs raise the rights of the script: write allow_setuid = yes too if that is meant",
            );
        }
    }
    if let (Some(span), false) = (&places.caps, profile.i_understand_unconfined) {
        for name in lint::unconfining(&profile.caps) {
            let message = format!(
                "{name} voids the confinement of the profile: take it away, or write i_understand_unconfined = yes"
            );
            say(span, &message);
        }
    }
}
