//! What is to be done next. Pure.

use std::collections::HashSet;

use super::state::State;
use crate::core::clock;
use crate::core::keyring::names_serial;
use crate::core::registry::{AgentRecord, SerialStatus};
use crate::core::types::{AgentName, Serial};

/// Everything that the decision depends on.
#[derive(Clone, Debug, Default)]
pub struct View {
    pub state: State,
    /// Serial of the certificate at the configured path; `None`: there is none.
    pub main: Option<Serial>,
    /// The configured key fits that certificate.
    pub main_fits: bool,
    pub kept: Vec<Kept>,
    pub agents: Vec<Agent>,
    /// Seconds since 1970.
    pub now: i64,
    /// Seconds for which old and new serial are both trusted.
    pub overlap: i64,
    /// A rotation is due or wanted, and this pass has not begun one yet.
    pub wanted: bool,
}

/// A pair beside the configured one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Kept {
    pub serial: Serial,
    /// Seconds since 1970.
    pub not_after: i64,
}

/// An agent, as far as rotation goes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Agent {
    pub name: AgentName,
    /// Names that it had before.
    pub formerly: Vec<AgentName>,
    /// Our serial that it is known to trust, as the registry has it.
    pub trusts: String,
    pub status: SerialStatus,
    /// It can verify the certificate that is announced: it trusts the CA that issued it.
    pub can_follow: bool,
}

impl Agent {
    pub fn of(record: &AgentRecord, can_follow: bool) -> Self {
        Self {
            name: record.name.clone(),
            formerly: record.formerly.clone(),
            trusts: record.dispatcher_serial.clone(),
            status: record.serial_status,
            can_follow,
        }
    }

    /// Every name under which something may have been written down about it.
    pub fn names(&self) -> impl Iterator<Item = &AgentName> {
        std::iter::once(&self.name).chain(&self.formerly)
    }

    /// Whether it is known to trust this serial.
    pub fn is_current(&self, serial: &Serial) -> bool {
        self.status == SerialStatus::Current && names_serial(&self.trusts, serial)
    }
}

/// What this pass has tried already: nothing is tried twice, whatever came of it.
#[derive(Clone, Debug, Default)]
pub struct Tried {
    pub marked: bool,
    pub announced: HashSet<AgentName>,
    pub retired: HashSet<(String, AgentName)>,
    /// Only these are called; `None`: everybody.
    pub only: Option<HashSet<AgentName>>,
    pub stale: bool,
}

impl Tried {
    fn may_announce(&self, name: &AgentName) -> bool {
        self.concerns(name) && !self.announced.contains(name)
    }

    fn may_withdraw(&self, old: &str, name: &AgentName) -> bool {
        self.concerns(name) && !self.retired.contains(&(old.to_owned(), name.clone()))
    }

    fn concerns(&self, name: &AgentName) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(name))
    }
}

/// One step. Each can be repeated.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Step {
    /// Make a new pair, keep it and the present one, write down its serial as the one to be announced.
    Begin,
    /// Write down as pending who does not trust the announced serial yet.
    MarkPending(Vec<AgentName>),
    /// Tell these agents to trust the serial, calling each with the pair that it trusts.
    Announce {
        serial: Serial,
        agents: Vec<AgentName>,
    },
    /// Put the pair of the announced serial at the configured paths (unless it is there), then write down that it is the present one.
    Promote { serial: Serial },
    /// The configured key and certificate do not fit: put the kept pair of the certificate there again.
    Repair { serial: Serial },
    /// The overlap is over for these: write down that they are stale.
    MarkStale(Vec<AgentName>),
    /// Tell these agents to drop an old serial, calling with the present pair.
    Withdraw {
        /// As it stands in the state.
        old: String,
        present: Serial,
        agents: Vec<AgentName>,
    },
    /// Nobody has to drop this serial any more: strike it off the state.
    Settle { old: String },
    /// A pair that nobody needs.
    Forget { serial: Serial },
}

/// The next step, or `None` when nothing is left that has not been tried.
pub fn decide(view: &View, tried: &Tried) -> Option<Step> {
    repair(view)
        .or_else(|| announce(view, tried))
        .or_else(|| promote(view))
        .or_else(|| begin(view))
        .or_else(|| mark_stale(view, tried))
        .or_else(|| withdraw(view, tried))
        .or_else(|| settle(view))
        .or_else(|| forget(view))
}

fn next(view: &View) -> Option<Serial> {
    let serial = Serial::parse_hex(view.state.next_serial.as_deref()?).ok()?;
    // Without its pair there is nothing to announce; a new rotation replaces it.
    let there = view.main.as_ref() == Some(&serial) || view.kept.iter().any(|k| k.serial == serial);
    there.then_some(serial)
}

/// The serial that agents are to trust: the announced one, else the present one if a rotation has ever been.
fn wanted(view: &View) -> Option<Serial> {
    next(view).or_else(|| {
        let main = view.main.clone()?;
        names_serial(&view.state.current_serial, &main).then_some(main)
    })
}

fn repair(view: &View) -> Option<Step> {
    let main = view.main.as_ref().filter(|_| !view.main_fits)?;
    // While a new pair is announced, promoting puts both halves right.
    if next(view).is_some() {
        return None;
    }
    let kept = view.kept.iter().find(|k| k.serial == *main)?;
    Some(Step::Repair {
        serial: kept.serial.clone(),
    })
}

fn begin(view: &View) -> Option<Step> {
    (view.wanted && view.main.is_some() && next(view).is_none()).then_some(Step::Begin)
}

fn announce(view: &View, tried: &Tried) -> Option<Step> {
    let serial = wanted(view)?;
    let lacking: Vec<&Agent> = view
        .agents
        .iter()
        .filter(|a| !a.is_current(&serial))
        .collect();
    let unmarked: Vec<AgentName> = lacking
        .iter()
        .filter(|a| !matches!(a.status, SerialStatus::Pending | SerialStatus::Stale))
        .map(|a| a.name.clone())
        .collect();
    if !tried.marked && !unmarked.is_empty() {
        return Some(Step::MarkPending(unmarked));
    }
    let agents: Vec<AgentName> = lacking
        .into_iter()
        .filter(|a| a.can_follow && tried.may_announce(&a.name))
        .map(|a| a.name.clone())
        .collect();
    (!agents.is_empty()).then_some(Step::Announce { serial, agents })
}

/// Programs that know only the configured pair (the API of the original) lose every agent that has not heard of it. So it changes when
/// somebody has; at the latest when the overlap, counted from the beginning of the announcement, is over.
fn promote(view: &View) -> Option<Step> {
    let serial = next(view)?;
    let begun = view.main.as_ref() == Some(&serial) || !view.main_fits;
    let known = view.agents.is_empty() || view.agents.iter().any(|a| a.is_current(&serial));
    (begun || known || overlap_is_over(view)).then_some(Step::Promote { serial })
}

fn overlap_is_over(view: &View) -> bool {
    view.state
        .next_since
        .as_deref()
        .and_then(clock::parse_iso)
        .is_none_or(|since| view.now > since.saturating_add(view.overlap))
}

fn mark_stale(view: &View, tried: &Tried) -> Option<Step> {
    if tried.stale || next(view).is_some() {
        return None;
    }
    let until = clock::parse_iso(&view.state.overlap_expires)?;
    if view.now <= until {
        return None;
    }
    let late: Vec<AgentName> = view
        .agents
        .iter()
        .filter(|a| a.status == SerialStatus::Pending)
        .map(|a| a.name.clone())
        .collect();
    (!late.is_empty()).then_some(Step::MarkStale(late))
}

fn withdraw(view: &View, tried: &Tried) -> Option<Step> {
    // Only with the present pair, and only once it is the one that everybody is to trust.
    if next(view).is_some() {
        return None;
    }
    let present = wanted(view)?;
    for retiring in &view.state.retiring {
        if !retiring.is_over(view.now) || expired(view, &retiring.serial) {
            continue;
        }
        let pending: HashSet<&AgentName> = retiring.pending.iter().collect();
        let agents: Vec<AgentName> = view
            .agents
            .iter()
            .filter(|a| a.is_current(&present) && a.names().any(|name| pending.contains(name)))
            .filter(|a| tried.may_withdraw(&retiring.serial, &a.name))
            .map(|a| a.name.clone())
            .collect();
        if !agents.is_empty() {
            return Some(Step::Withdraw {
                old: retiring.serial.clone(),
                present,
                agents,
            });
        }
    }
    None
}

/// Whether the certificate of an old serial has run out: then no agent accepts it, whatever its map says.
fn expired(view: &View, old: &str) -> bool {
    Serial::parse_hex(old).is_ok_and(|serial| {
        view.kept
            .iter()
            .any(|k| k.serial == serial && view.now > k.not_after)
    })
}

fn settle(view: &View) -> Option<Step> {
    let registered: HashSet<&AgentName> = view.agents.iter().flat_map(Agent::names).collect();
    let done = view.state.retiring.iter().find(|r| {
        let over = r.is_over(view.now);
        over && (expired(view, &r.serial)
            || !r.pending.iter().any(|name| registered.contains(name)))
    })?;
    Some(Step::Settle {
        old: done.serial.clone(),
    })
}

fn forget(view: &View) -> Option<Step> {
    let needed = |kept: &Kept| {
        let serial = &kept.serial;
        let announced = next(view).as_ref() == Some(serial);
        let retiring = view
            .state
            .retiring
            .iter()
            .any(|r| Serial::parse_hex(&r.serial).is_ok_and(|s| s == *serial));
        let trusted = view.now <= kept.not_after
            && view.agents.iter().any(|a| names_serial(&a.trusts, serial));
        // The pair of the present certificate is kept as long as a rotation goes on: it is what puts the two files right after a crash.
        let present = view.main.as_ref() == Some(serial) && next(view).is_some();
        announced || retiring || trusted && view.main.as_ref() != Some(serial) || present
    };
    let doomed = view.kept.iter().find(|k| !needed(k))?;
    // A configured pair of two halves can be mended only from what is kept.
    view.main_fits.then(|| Step::Forget {
        serial: doomed.serial.clone(),
    })
}
