//! Candidates with clocks that run at different speeds and show any date, requests that are lost, late or answered to
//! nobody, processes that are stopped for a while or killed: never two lead, and when all is well again one does.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn held_by(holder: &str, lease: u64) -> Record {
    Record {
        holder: Some(holder.to_owned()),
        lease: seconds(lease),
        acquired: None,
        renewed: None,
        transitions: 3,
    }
}

fn election(me: &str) -> Election {
    Election::new(me.to_owned())
}

#[test]
fn the_first_one_leads_at_once_and_only_as_long_as_it_promised() {
    let (mut me, start) = (election("me"), Instant::now());
    assert!(me.has_to_read(start) && !me.leads(start));
    me.read(None, start + seconds(1));
    let claim = me.claim(start + seconds(1), Timestamp::UNIX_EPOCH).unwrap();
    assert_eq!((claim.version.as_deref(), claim.record.holder.as_deref()), (None, Some("me")));
    me.wrote(claim, "1".to_owned(), start + seconds(1));
    // Counted from before it asked, not from the answer.
    assert!(me.leads(start + seconds(1) + RENEW_DEADLINE - Duration::from_millis(1)));
    assert!(!me.leads(start + seconds(1) + RENEW_DEADLINE));
    assert!(!me.has_to_read(start + seconds(3)), "a leader renews without looking");
}

#[test]
fn another_follows_when_a_record_has_not_changed_for_its_time_whatever_dates_are_in_it() {
    let start = Instant::now();
    for date in [Timestamp::MIN, Timestamp::UNIX_EPOCH, Timestamp::MAX] {
        let mut me = election("me");
        let record = Record { acquired: Some(date), renewed: Some(date), ..held_by("other", 15) };
        me.read(Some((record.clone(), "1".to_owned())), start);
        me.read(Some((record.clone(), "1".to_owned())), start + seconds(14));
        assert_eq!(me.claim(start + seconds(14), date), None);
        // It was renewed in the last moment.
        me.read(Some((record.clone(), "2".to_owned())), start + seconds(15));
        assert_eq!(me.claim(start + seconds(29), date), None);
        let claim = me.claim(start + seconds(30), date).unwrap();
        assert_eq!((claim.version.as_deref(), claim.record.transitions), (Some("2"), 4));
    }
}

#[test]
fn a_holder_that_promised_itself_more_time_has_it_and_none_has_less_than_ours() {
    let start = Instant::now();
    for (written, honoured) in [(60, 60), (0, 15)] {
        let mut me = election("me");
        me.read(Some((held_by("other", written), "1".to_owned())), start);
        let end = start + seconds(honoured);
        assert_eq!(me.claim(end - Duration::from_millis(1), Timestamp::UNIX_EPOCH), None);
        assert!(me.claim(end, Timestamp::UNIX_EPOCH).is_some());
    }
}

#[test]
fn what_was_released_is_taken_at_once() {
    let start = Instant::now();
    let (mut one, mut other) = (election("one"), election("other"));
    one.read(None, start);
    let claim = one.claim(start, Timestamp::UNIX_EPOCH).unwrap();
    one.wrote(claim, "1".to_owned(), start);
    let released = one.resign(Timestamp::UNIX_EPOCH).unwrap();
    assert!(!one.leads(start), "leads on after it was released");
    other.read(Some((released.record, "2".to_owned())), start + seconds(1));
    let claim = other.claim(start + seconds(1), Timestamp::UNIX_EPOCH).unwrap();
    assert_eq!(claim.version.as_deref(), Some("2"));
}

#[test]
fn nobody_releases_what_another_has_or_what_may_have_changed() {
    let start = Instant::now();
    let mut me = election("me");
    assert_eq!(me.resign(Timestamp::UNIX_EPOCH), None);
    me.read(Some((held_by("other", 15), "1".to_owned())), start);
    assert_eq!(me.resign(Timestamp::UNIX_EPOCH), None);
    me.read(Some((held_by("me", 15), "2".to_owned())), start);
    assert!(me.resign(Timestamp::UNIX_EPOCH).is_some());
    me.failed();
    assert_eq!(me.resign(Timestamp::UNIX_EPOCH), None);
}

#[test]
fn a_leader_that_sees_another_holder_is_none_at_once() {
    let (mut me, start) = (election("me"), Instant::now());
    me.read(Some((held_by("me", 15), "1".to_owned())), start);
    assert!(!me.leads(start), "our name in the record is no right");
    let claim = me.claim(start, Timestamp::UNIX_EPOCH).unwrap();
    assert_eq!(claim.record.transitions, 3, "nothing changed hands");
    me.wrote(claim, "2".to_owned(), start);
    assert!(me.leads(start + seconds(1)));
    me.read(Some((held_by("other", 15), "3".to_owned())), start + seconds(1));
    assert!(!me.leads(start + seconds(1)));
    assert_eq!(me.claim(start + seconds(2), Timestamp::UNIX_EPOCH), None);
}

#[test]
fn a_deleted_object_is_made_anew_by_its_holder_or_when_the_holders_time_is_up() {
    let start = Instant::now();
    let (mut leader, mut other) = (election("leader"), election("other"));
    leader.read(None, start);
    let claim = leader.claim(start, Timestamp::UNIX_EPOCH).unwrap();
    other.read(Some((claim.record.clone(), "1".to_owned())), start + seconds(1));
    leader.wrote(claim, "1".to_owned(), start);
    for candidate in [&mut leader, &mut other] {
        candidate.read(None, start + seconds(2));
    }
    assert!(leader.leads(start + seconds(2)));
    assert_eq!(leader.claim(start + seconds(2), Timestamp::UNIX_EPOCH).unwrap().version, None);
    assert_eq!(other.claim(start + seconds(2), Timestamp::UNIX_EPOCH), None);
    assert_eq!(other.claim(start + seconds(16), Timestamp::UNIX_EPOCH).unwrap().version, None);
}

/// One step of the simulated world.
const TICK: Duration = Duration::from_millis(50);
const TICKS_PER_SECOND: u64 = 20;
/// How long the world goes wrong, and how long it is watched afterwards.
const TROUBLE: u64 = 120 * TICKS_PER_SECOND;
const PEACE: u64 = 40 * TICKS_PER_SECOND;
/// How long a candidate waits for an answer, on its own clock.
const PATIENCE: Duration = Duration::from_secs(4);

/// What goes wrong for one candidate.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// Nothing it sends arrives, and no answer does.
    CutOff,
    /// What it sends arrives, and no answer does.
    Unheard,
    /// Both ways take up to twenty seconds.
    Slow,
    /// The process stands still; its clock does not.
    Stopped,
    /// Killed at the beginning; another process starts at the end.
    Dead,
}

#[derive(Clone, Debug)]
struct Fault {
    who: usize,
    what: Trouble,
    from: u64,
    ticks: u64,
}

/// A candidate's clocks: speed against the true time in percent, and what it showed at the beginning.
#[derive(Clone, Copy, Debug)]
struct Clock {
    speed: u32,
    ahead: u64,
}

#[derive(Clone, Debug)]
enum Request {
    Read,
    Write(Claim),
}

#[derive(Clone, Debug)]
enum Answer {
    Object(Option<(Record, String)>),
    Written(Claim, String),
    Conflict,
}

struct Candidate {
    election: Election,
    clock: Clock,
    /// Which process it is. Answers to an earlier one reach nobody.
    life: usize,
    /// When it acts next, or gives up waiting for an answer.
    acts_at: Instant,
    /// The number of the request under way, and when it was sent.
    asking: Option<(u64, Instant)>,
}

/// An API server with one object, a network, and candidates.
struct World {
    start: Instant,
    tick: u64,
    object: Option<(Record, u64)>,
    version: u64,
    requests: u64,
    candidates: Vec<Candidate>,
    faults: Vec<Fault>,
    chance: fastrand::Rng,
    to_server: VecDeque<(u64, usize, usize, u64, Request)>,
    to_candidate: VecDeque<(u64, usize, usize, u64, Answer)>,
    terms: usize,
}

impl World {
    fn new(clocks: &[Clock], faults: Vec<Fault>, seed: u64) -> Self {
        let start = Instant::now();
        let candidate = |(number, clock): (usize, &Clock)| Candidate {
            election: election(&format!("{number}-0")),
            clock: *clock,
            life: 0,
            acts_at: start,
            asking: None,
        };
        Self {
            start,
            tick: 0,
            object: None,
            version: 0,
            requests: 0,
            candidates: clocks.iter().enumerate().map(candidate).collect(),
            faults,
            chance: fastrand::Rng::with_seed(seed),
            to_server: VecDeque::new(),
            to_candidate: VecDeque::new(),
            terms: 0,
        }
    }

    fn suffers(&self, who: usize, test: impl Fn(Trouble) -> bool) -> bool {
        let now = |fault: &Fault| (fault.from..fault.from + fault.ticks).contains(&self.tick);
        self.faults.iter().any(|fault| fault.who == who && now(fault) && test(fault.what))
    }

    fn local(&self, who: usize) -> Instant {
        let Clock { speed, ahead } = self.candidates[who].clock;
        let passed = TICK * u32::try_from(self.tick).unwrap();
        self.start + seconds(ahead) + passed * speed / 100
    }

    fn delay(&mut self, who: usize) -> u64 {
        let slow = self.suffers(who, |what| matches!(what, Trouble::Slow));
        self.tick + self.chance.u64(0..if slow { 20 * TICKS_PER_SECOND } else { 4 })
    }

    /// Any date at all: the wall clock is stepped all the time.
    fn date(&mut self) -> Timestamp {
        Timestamp::from_second(self.chance.i64(0..4_000_000_000)).unwrap()
    }

    fn serve(&mut self) {
        for _ in 0..self.to_server.len() {
            let (at, who, life, number, request) = self.to_server.pop_front().unwrap();
            if at > self.tick {
                self.to_server.push_back((at, who, life, number, request));
                continue;
            }
            let answer = match request {
                Request::Read => {
                    Answer::Object(self.object.clone().map(|(record, version)| (record, version.to_string())))
                }
                Request::Write(claim) => {
                    let there = self.object.as_ref().map(|(_, version)| version.to_string());
                    if there == claim.version {
                        self.version += 1;
                        self.object = Some((claim.record.clone(), self.version));
                        Answer::Written(claim, self.version.to_string())
                    } else {
                        Answer::Conflict
                    }
                }
            };
            let arrives = self.delay(who);
            self.to_candidate.push_back((arrives, who, life, number, answer));
        }
    }

    fn send(&mut self, who: usize, request: Request) {
        self.requests += 1;
        let (number, now, arrives) = (self.requests, self.local(who), self.delay(who));
        let candidate = &mut self.candidates[who];
        candidate.asking = Some((number, now));
        candidate.acts_at = now + PATIENCE;
        if matches!(request, Request::Write(_)) {
            candidate.election.failed(); // until the answer says otherwise
        }
        let life = candidate.life;
        if !self.suffers(who, |what| matches!(what, Trouble::CutOff)) {
            self.to_server.push_back((arrives, who, life, number, request));
        }
    }

    fn rest(&mut self, who: usize) {
        let pause = RETRY + Duration::from_millis(self.chance.u64(0..2400));
        let now = self.local(who);
        let candidate = &mut self.candidates[who];
        (candidate.asking, candidate.acts_at) = (None, now + pause);
    }

    fn hear(&mut self) {
        for _ in 0..self.to_candidate.len() {
            let (at, who, life, number, answer) = self.to_candidate.pop_front().unwrap();
            if at > self.tick || self.suffers(who, |what| matches!(what, Trouble::Stopped)) {
                self.to_candidate.push_back((at, who, life, number, answer));
                continue;
            }
            let lost = self.suffers(who, |what| matches!(what, Trouble::CutOff | Trouble::Unheard));
            let asked = self.candidates[who].asking.filter(|(asked, _)| *asked == number);
            let Some((_, sent)) = asked.filter(|_| !lost && life == self.candidates[who].life) else {
                continue;
            };
            let (now, date) = (self.local(who), self.date());
            let election = &mut self.candidates[who].election;
            match answer {
                Answer::Object(object) => {
                    election.read(object, now);
                    match election.claim(now, date) {
                        Some(claim) => self.send(who, Request::Write(claim)),
                        None => self.rest(who),
                    }
                }
                Answer::Written(claim, version) => {
                    self.terms += usize::from(!election.leads(now));
                    election.wrote(claim, version, sent);
                    self.rest(who);
                }
                Answer::Conflict => self.rest(who),
            }
        }
    }

    fn act(&mut self) {
        for who in 0..self.candidates.len() {
            let (now, date) = (self.local(who), self.date());
            if self.suffers(who, |what| matches!(what, Trouble::Stopped)) {
                continue;
            }
            if self.suffers(who, |what| matches!(what, Trouble::Dead)) {
                let candidate = &mut self.candidates[who];
                candidate.life += 1;
                candidate.election = election(&format!("{who}-{}", candidate.life));
                (candidate.asking, candidate.acts_at) = (None, now);
                continue;
            }
            let candidate = &mut self.candidates[who];
            if now < candidate.acts_at {
                continue;
            }
            if candidate.asking.is_some() {
                self.rest(who);
                continue;
            }
            let claim = (!candidate.election.has_to_read(now)).then(|| candidate.election.claim(now, date));
            match claim {
                None => self.send(who, Request::Read),
                Some(Some(claim)) => self.send(who, Request::Write(claim)),
                Some(None) => self.rest(who),
            }
        }
    }

    fn leaders(&self) -> Vec<usize> {
        let leads = |who: &usize| self.candidates[*who].election.leads(self.local(*who));
        (0..self.candidates.len()).filter(leads).collect()
    }

    fn run(&mut self, ticks: u64) -> Result<(), TestCaseError> {
        for _ in 0..ticks {
            self.serve();
            self.hear();
            self.act();
            let leaders = self.leaders();
            prop_assert!(
                leaders.len() < 2,
                "{leaders:?} lead at {:?}",
                TICK * u32::try_from(self.tick).unwrap()
            );
            self.tick += 1;
        }
        Ok(())
    }
}

fn fault(candidates: usize) -> impl Strategy<Value = Fault> {
    let what = prop_oneof![
        Just(Trouble::CutOff),
        Just(Trouble::Unheard),
        Just(Trouble::Slow),
        Just(Trouble::Stopped),
        Just(Trouble::Dead),
    ];
    (0..candidates, what, 0..TROUBLE, 1..30 * TICKS_PER_SECOND).prop_map(|(who, what, from, ticks)| Fault {
        who,
        what,
        from,
        ticks: ticks.min(TROUBLE - from),
    })
}

proptest! {
    #[test]
    fn never_two_lead_and_when_all_is_well_one_does(
        clocks in prop::collection::vec((88_u32..=112, 0_u64..1_000_000), 3),
        faults in prop::collection::vec(fault(3), 0..12),
        seed in any::<u64>(),
    ) {
        let clocks: Vec<_> = clocks.into_iter().map(|(speed, ahead)| Clock { speed, ahead }).collect();
        let mut world = World::new(&clocks, faults, seed);
        world.run(TROUBLE + PEACE)?;
        prop_assert_eq!(world.leaders().len(), 1);
        prop_assert!(world.terms > 0);
    }
}
