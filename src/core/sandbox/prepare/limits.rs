//! Resource limits and the place in the order of the out-of-memory killer (spec/executor.md 15.8).

use rustix::process::{Resource, Rlimit, getrlimit};

use super::RunOrder;
use crate::core::config::LimitKind;
use crate::core::sandbox::{Level, Protection, Protections};
use crate::core::sys::small_files;

/// What the child sets, soft and hard alike.
pub(super) fn limits(order: &RunOrder<'_>, report: &mut Protections) -> Vec<(Resource, Rlimit)> {
    let mut limits = Vec::new();
    let mut state = Level::Off;
    for (kind, most) in &order.profile.limits {
        let resource = resource(*kind);
        let mut most = *most;
        if !order.features.privileged {
            // Without root a limit can only be lowered; a lower one that is there already keeps what the profile promises.
            let hard = getrlimit(resource).maximum;
            most = match (most, hard) {
                (Some(most), Some(hard)) => Some(most.min(hard)),
                (most, hard) => most.or(hard),
            };
        }
        if most.is_some() && state == Level::Off {
            state = Level::Enforced;
        }
        if *kind == LimitKind::Nproc && most.is_some() && order.identity.uid == 0 {
            state = Level::Degraded("limit_nproc does not bind uid 0".to_owned());
        }
        limits.push((
            resource,
            Rlimit {
                current: most,
                maximum: most,
            },
        ));
    }
    report.set(Protection::ResourceLimits, state);
    limits
}

fn resource(kind: LimitKind) -> Resource {
    match kind {
        LimitKind::Nofile => Resource::Nofile,
        LimitKind::Nproc => Resource::Nproc,
        LimitKind::Fsize => Resource::Fsize,
        LimitKind::As => Resource::As,
        LimitKind::Cpu => Resource::Cpu,
        LimitKind::Stack => Resource::Stack,
        LimitKind::Memlock => Resource::Memlock,
        LimitKind::Core => Resource::Core,
    }
}

/// `None` where nothing has to change, or where lowering it would need root.
pub(super) fn oom_score_adj(wanted: i32, privileged: bool) -> Option<String> {
    let now: i32 = small_files::text(c"/proc/self/oom_score_adj")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0);
    (wanted != now && (privileged || wanted > now)).then(|| wanted.to_string())
}
