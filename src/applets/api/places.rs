//! How many connections are open and how many requests are under way, and who must leave when there is no place left.
//!
//! A connection that rests between two requests costs a descriptor and little memory; it counts as open and no more. From the first
//! byte of a request to the end of its answer it takes one of the places for requests (`api_max_children`). Whoever dawdles over the
//! headers or the body of a request loses its place to whoever comes next.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Requests beyond the cap that are told so at the same time; further ones are closed without a word.
const MAX_APOLOGIES: usize = 16;
/// The headers of a request may take this long even when others wait for its place.
const HASTE: Duration = Duration::from_millis(500);
/// The same for its body, from the first time that we had to wait for it.
const BODY_HASTE: Duration = Duration::from_secs(2);

/// All connections of the server.
#[derive(Debug)]
pub(super) struct Places {
    most: usize,
    cap: usize,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    guests: HashMap<u64, Guest>,
    /// Those who rest, the longest first: turn to guest.
    resting: BTreeMap<u64, u64>,
    /// Open connections of each source.
    sources: HashMap<IpAddr, usize>,
    /// Requests under way, the oldest first.
    requests: BTreeMap<u64, Dawdling>,
    apologies: usize,
}

#[derive(Debug)]
struct Guest {
    source: Option<IpAddr>,
    resting: Option<u64>,
    leave: Arc<Notify>,
}

/// A request that is not complete: from when on it may be ended for whoever comes, and who sends it. `None` while nothing of it is
/// waited for.
type Dawdling = Option<(Instant, Sender)>;

/// Who sends a request, and how to end the connection that it comes over.
#[derive(Clone, Debug)]
struct Sender {
    source: Option<IpAddr>,
    leave: Arc<Notify>,
}

/// One open connection; its place is free when this is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    places: Arc<Places>,
    id: u64,
    sender: Sender,
}

/// One request under way; its place is free when this is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    places: Arc<Places>,
    id: u64,
    apology: bool,
    sender: Option<Sender>,
}

/// What becomes of a request.
#[derive(Debug)]
pub(super) enum Admission {
    Welcome(Turn),
    /// To be told that there are too many: `live` are under way.
    Overloaded {
        turn: Turn,
        live: usize,
    },
    /// To be closed without a word.
    Crowded {
        live: usize,
    },
}

impl Places {
    /// For `most` connections and `cap` requests.
    pub(super) fn new(most: usize, cap: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            cap,
            table: Mutex::default(),
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a new connection; the one that has rested longest makes room. `source` is `None` for those who are not counted by
    /// where they come from. `None`: everybody is busy.
    pub(super) fn enter(self: &Arc<Self>, source: Option<IpAddr>) -> Option<Seat> {
        let source = source.map(network);
        let mut table = self.table();
        if let Some(source) = source {
            let share = (self.most / 2).max(1);
            let taken = table.sources.get(&source).copied().unwrap_or(0);
            if taken >= share && !table.dismiss(Some(source)) {
                return None;
            }
        }
        if table.guests.len() >= self.most && !table.dismiss(None) {
            return None;
        }
        if let Some(source) = source {
            *table.sources.entry(source).or_insert(0) += 1;
        }
        let leave = Arc::new(Notify::new());
        let id = table.turn();
        let guest = Guest {
            source,
            resting: None,
            leave: leave.clone(),
        };
        table.guests.insert(id, guest);
        Some(Seat {
            places: self.clone(),
            id,
            sender: Sender { source, leave },
        })
    }

    /// Number of open connections.
    pub(super) fn open(&self) -> usize {
        self.table().guests.len()
    }

    /// A place for a request. With a `seat` its headers are not complete yet: the connection is told to leave when others need the place
    /// and they take too long.
    pub(super) fn begin(self: &Arc<Self>, seat: Option<&Seat>, now: Instant) -> Admission {
        let mut table = self.table();
        let live = table.requests.len();
        let turn = |id, apology| Turn {
            places: self.clone(),
            id,
            apology,
            sender: seat.map(|seat| seat.sender.clone()),
        };
        let id = table.turn();
        let room = live < self.cap
            || table.dismiss_dawdler(now)
            || table.dismiss_greedy(seat.and_then(|seat| seat.sender.source), self.cap);
        if room {
            let dawdling = seat.map(|seat| (now + HASTE, seat.sender.clone()));
            table.requests.insert(id, dawdling);
            return Admission::Welcome(turn(id, false));
        }
        if table.apologies < MAX_APOLOGIES {
            table.apologies += 1;
            let turn = turn(id, true);
            return Admission::Overloaded { turn, live };
        }
        Admission::Crowded { live }
    }
}

/// What is counted as one source: an IPv6 host has a whole network of addresses.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

impl Table {
    fn turn(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Sends away the connection (of a source) that has rested longest; false: none rests.
    fn dismiss(&mut self, source: Option<IpAddr>) -> bool {
        let fits =
            |id: &u64| source.is_none() || self.guests.get(id).is_some_and(|g| g.source == source);
        let Some(id) = self.resting.values().copied().find(|id| fits(id)) else {
            return false;
        };
        if let Some(leave) = self.remove(id) {
            leave.notify_one();
        }
        true
    }

    /// Ends the oldest request of which something has been waited for too long.
    fn dismiss_dawdler(&mut self, now: Instant) -> bool {
        let slow = |dawdling: &Dawdling| dawdling.as_ref().is_some_and(|(end, _)| *end <= now);
        let found = self
            .requests
            .iter()
            .find(|(_, d)| slow(d))
            .map(|(id, _)| *id);
        self.end(found)
    }

    /// Ends the oldest incomplete request of a source that has more than half of all places with such, for somebody from elsewhere: one
    /// host that begins requests faster than [`HASTE`] ends them would have all places for ever.
    fn dismiss_greedy(&mut self, newcomer: Option<IpAddr>, cap: usize) -> bool {
        let share = (cap / 2).max(1);
        let mut counts: HashMap<IpAddr, (usize, u64)> = HashMap::new();
        for (id, dawdling) in &self.requests {
            if let Some(source) = dawdling.as_ref().and_then(|(_, sender)| sender.source)
                && Some(source) != newcomer
            {
                counts.entry(source).or_insert((0, *id)).0 += 1;
            }
        }
        let greedy = counts.into_values().find(|(count, _)| *count > share);
        self.end(greedy.map(|(_, oldest)| oldest))
    }

    /// Ends a request that is not complete.
    fn end(&mut self, request: Option<u64>) -> bool {
        let Some(Some((_, sender))) = request.and_then(|id| self.requests.remove(&id)) else {
            return false;
        };
        sender.leave.notify_one();
        true
    }

    fn remove(&mut self, id: u64) -> Option<Arc<Notify>> {
        let guest = self.guests.remove(&id)?;
        if let Some(turn) = guest.resting {
            self.resting.remove(&turn);
        }
        if let Some(source) = guest.source
            && let Some(count) = self.sources.get_mut(&source)
        {
            *count -= 1;
            if *count == 0 {
                self.sources.remove(&source);
            }
        }
        Some(guest.leave)
    }
}

impl Seat {
    /// Nothing is under way: the connection may be ended for others.
    pub(super) fn rest(&self) {
        let mut table = self.places.table();
        let turn = table.turn();
        if let Some(guest) = table.guests.get_mut(&self.id)
            && guest.resting.is_none()
        {
            guest.resting = Some(turn);
            table.resting.insert(turn, self.id);
        }
    }

    /// Something is under way.
    pub(super) fn wake(&self) {
        let mut table = self.places.table();
        if let Some(turn) = table
            .guests
            .get_mut(&self.id)
            .and_then(|g| g.resting.take())
        {
            table.resting.remove(&turn);
        }
    }

    /// Returns when the place is needed for another.
    pub(super) async fn told_to_leave(&self) {
        self.sender.leave.notified().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.places.table().remove(self.id);
    }
}

impl Turn {
    /// It waits for nothing from the peer: it takes as long as it takes.
    pub(super) fn is_busy(&self) {
        self.set(None);
    }

    /// It has waited for its body, on and off, since then.
    pub(super) fn waits_for_body(&self, since: Instant) {
        let sender = self.sender.clone();
        self.set(sender.map(|sender| (since + BODY_HASTE, sender)));
    }

    fn set(&self, fresh: Dawdling) {
        if let Some(dawdling) = self.places.table().requests.get_mut(&self.id) {
            *dawdling = fresh;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut table = self.places.table();
        if self.apology {
            table.apologies -= 1;
        } else {
            table.requests.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn source(last: u8) -> Option<IpAddr> {
        Some(Ipv4Addr::new(192, 0, 2, last).into())
    }

    /// Whether somebody has told the connection to leave.
    fn is_dismissed(seat: &Seat) -> bool {
        let mut leave = std::pin::pin!(seat.told_to_leave());
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        leave.as_mut().poll(&mut cx).is_ready()
    }

    #[test]
    fn the_longest_resting_connection_makes_room_and_a_busy_one_never() {
        let places = Places::new(3, 1);
        let seats: Vec<Seat> = (0..3).map(|_| places.enter(None).unwrap()).collect();
        assert!(places.enter(None).is_none(), "all are busy");
        seats[1].rest();
        seats[0].rest();
        // Again at rest, it waits at the end of the queue.
        seats[1].wake();
        seats[1].rest();
        let fourth = places.enter(None).unwrap();
        assert_eq!(
            seats.iter().map(is_dismissed).collect::<Vec<_>>(),
            [true, false, false]
        );
        assert_eq!(places.open(), 3);
        drop(seats);
        assert_eq!(places.open(), 1);
        drop(fourth);
        assert_eq!(places.open(), 0);
        assert!(places.table().sources.is_empty() && places.table().resting.is_empty());
    }

    #[test]
    fn one_source_has_half_of_the_places_and_pushes_out_only_itself() {
        let places = Places::new(4, 1);
        let other = places.enter(source(9)).unwrap();
        other.rest();
        let one = places.enter(source(1)).unwrap();
        let two = places.enter(source(1)).unwrap();
        assert!(places.enter(source(1)).is_none());
        two.rest();
        let three = places.enter(source(1)).unwrap();
        assert!(is_dismissed(&two) && !is_dismissed(&other) && !is_dismissed(&one));
        drop((one, three));
        assert!(places.enter(source(1)).is_some());
        // A network of IPv6 is one source.
        let six = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        let _first = places.enter(six("2001:db8::1")).unwrap();
        let _second = places.enter(six("2001:db8::ffff:1")).unwrap();
        assert!(places.enter(six("2001:db8::2")).is_none());
    }

    #[test]
    fn requests_beyond_the_cap_are_told_so_and_then_not_even_that() {
        let places = Places::new(100, 2);
        let now = Instant::now();
        let first = places.begin(None, now);
        let _second = places.begin(None, now);
        assert!(matches!(first, Admission::Welcome(_)));
        let apologies: Vec<Admission> = (0..MAX_APOLOGIES)
            .map(|_| places.begin(None, now))
            .collect();
        for apology in &apologies {
            assert!(matches!(apology, Admission::Overloaded { live: 2, .. }));
        }
        assert!(matches!(
            places.begin(None, now),
            Admission::Crowded { live: 2 }
        ));
        drop(apologies);
        assert!(matches!(
            places.begin(None, now),
            Admission::Overloaded { .. }
        ));
        drop(first);
        assert!(matches!(places.begin(None, now), Admission::Welcome(_)));
    }

    #[test]
    fn one_source_cannot_hold_all_places_with_requests_that_it_does_not_complete() {
        let places = Places::new(100, 4);
        let now = Instant::now();
        let seat = |last| places.enter(source(last)).unwrap();
        let many: Vec<Seat> = (0..4).map(|_| seat(1)).collect();
        let turns: Vec<Admission> = many.iter().map(|s| places.begin(Some(s), now)).collect();
        // It pushes out nobody itself, not even its own.
        let more = seat(1);
        let refused = places.begin(Some(&more), now);
        assert!(matches!(refused, Admission::Overloaded { .. }));
        // Others get half of the places, at once.
        let others = [seat(2), seat(3), seat(4)];
        let begun = [0, 1, 2].map(|n| places.begin(Some(&others[n]), now));
        let welcome = begun.each_ref().map(|b| matches!(b, Admission::Welcome(_)));
        assert_eq!(welcome, [true, true, false]);
        assert_eq!(
            many.iter().map(is_dismissed).collect::<Vec<_>>(),
            [true, true, false, false]
        );
        assert!(!others.iter().any(is_dismissed));
        // Complete requests are nobody's fault.
        drop((turns, refused, begun));
        let busy: Vec<Admission> = many.iter().map(|s| places.begin(Some(s), now)).collect();
        for admission in &busy {
            let Admission::Welcome(turn) = admission else {
                panic!("there is a place");
            };
            turn.is_busy();
        }
        let late = places.begin(Some(&others[0]), now);
        assert!(matches!(late, Admission::Overloaded { .. }));
    }

    #[test]
    fn who_dawdles_over_headers_loses_its_place_to_who_comes() {
        let places = Places::new(100, 2);
        let (slow, done) = (places.enter(None).unwrap(), places.enter(None).unwrap());
        let now = Instant::now();
        let Admission::Welcome(complete) = places.begin(Some(&done), now) else {
            panic!("there is a place");
        };
        complete.is_busy();
        let dawdler = places.begin(Some(&slow), now);
        let soon = now + HASTE / 2;
        assert!(matches!(
            places.begin(None, soon),
            Admission::Overloaded { .. }
        ));
        let next = places.begin(None, now + HASTE);
        assert!(matches!(next, Admission::Welcome(_)));
        assert!(is_dismissed(&slow) && !is_dismissed(&done));
        // So does who dawdles over a body, but not at once.
        complete.waits_for_body(now);
        let full = places.begin(None, now + BODY_HASTE / 2);
        assert!(matches!(full, Admission::Overloaded { .. }));
        complete.is_busy();
        // Its end frees no second place.
        drop(dawdler);
        let later = now + 2 * HASTE;
        assert!(matches!(
            places.begin(None, later),
            Admission::Overloaded { .. }
        ));
        complete.waits_for_body(now);
        let last = places.begin(None, now + BODY_HASTE);
        assert!(matches!(last, Admission::Welcome(_)) && is_dismissed(&done));
        drop((complete, next, last));
        assert!(places.table().requests.is_empty());
    }
}
