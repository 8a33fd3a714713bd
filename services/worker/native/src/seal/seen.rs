//! Which sealed requests a worker has seen, as `sealane.security.seen` has it in Python: each runs at most once, and none
//! is forgotten while it could still open.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard};

use crate::locked;
use crate::seal::format::NONCE_BYTES;

pub type Id = [u8; NONCE_BYTES];

/// How much is kept, and for how long.
#[derive(Clone, Copy)]
pub struct Bounds {
    pub capacity: usize,
    /// Of one project.
    pub of_project: usize,
    pub keep_seconds: f64,
    /// Ids are forgotten by this, all of one such time at once.
    pub bucket_seconds: f64,
}

#[derive(Debug, PartialEq)]
pub enum Verdict {
    New,
    /// It was there already, or may have been.
    Seen,
    /// Too many of the project or in all; how long until there is room.
    Full(f64),
}

struct Bucket {
    until: f64,
    latest_ms: u64,
    ids: HashSet<Id>,
    counts: HashMap<String, usize>,
}

#[derive(Default)]
struct State {
    buckets: VecDeque<Bucket>,
    size: usize,
    forgotten_ms: u64,
    counts: HashMap<String, usize>,
}

pub struct Memory {
    bounds: Bounds,
    state: Mutex<State>,
}

impl Memory {
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    pub fn len(&self) -> usize {
        self.state().size
    }

    /// What [`Memory::add`] would say.
    pub fn look(&self, id: &Id, project: &str, issued_at_ms: u64, now: f64) -> Verdict {
        let mut state = self.state();
        state.forget(now);
        state.look(&self.bounds, id, project, issued_at_ms, now)
    }

    /// Remember an id. What is no later than a request that is forgotten may have been here too: a clock was set back.
    pub fn add(&self, id: &Id, project: &str, issued_at_ms: u64, now: f64) -> Verdict {
        let mut state = self.state();
        state.forget(now);
        let verdict = state.look(&self.bounds, id, project, issued_at_ms, now);
        if verdict != Verdict::New {
            return verdict;
        }
        if state.buckets.back().is_none_or(|bucket| bucket.until < now + self.bounds.keep_seconds) {
            state.buckets.push_back(Bucket {
                until: now + self.bounds.keep_seconds + self.bounds.bucket_seconds,
                latest_ms: 0,
                ids: HashSet::new(),
                counts: HashMap::new(),
            });
        }
        let bucket = state.buckets.back_mut().expect("there is one by now");
        bucket.ids.insert(*id);
        bucket.latest_ms = bucket.latest_ms.max(issued_at_ms);
        *bucket.counts.entry(project.to_owned()).or_default() += 1;
        *state.counts.entry(project.to_owned()).or_default() += 1;
        state.size += 1;
        Verdict::New
    }

    /// Take an id back that was added for a request of which nothing has run.
    pub fn take_back(&self, id: &Id, project: &str) {
        let mut state = self.state();
        let Some(bucket) = state.buckets.iter_mut().find(|bucket| bucket.ids.contains(id)) else { return };
        bucket.ids.remove(id);
        part(&mut bucket.counts, project, 1);
        part(&mut state.counts, project, 1);
        state.size -= 1;
    }
}

impl State {
    fn look(&self, bounds: &Bounds, id: &Id, project: &str, issued_at_ms: u64, now: f64) -> Verdict {
        if issued_at_ms <= self.forgotten_ms || self.buckets.iter().any(|bucket| bucket.ids.contains(id)) {
            return Verdict::Seen;
        }
        let mine = self.counts.get(project).copied().unwrap_or(0);
        if self.size >= bounds.capacity || mine >= bounds.of_project {
            return Verdict::Full(self.buckets.front().map_or(0.0, |bucket| bucket.until - now));
        }
        Verdict::New
    }

    fn forget(&mut self, now: f64) {
        while self.buckets.front().is_some_and(|bucket| bucket.until < now) {
            let Some(over) = self.buckets.pop_front() else { return };
            self.size -= over.ids.len();
            self.forgotten_ms = self.forgotten_ms.max(over.latest_ms);
            for (project, count) in over.counts {
                part(&mut self.counts, &project, count);
            }
        }
    }
}

fn part(counts: &mut HashMap<String, usize>, project: &str, count: usize) {
    if let Some(mine) = counts.get_mut(project) {
        *mine -= count.min(*mine);
        if *mine == 0 {
            counts.remove(project);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { capacity: 3, of_project: 2, keep_seconds: 120.0, bucket_seconds: 12.0 };

    fn id(number: u8) -> Id {
        [number; NONCE_BYTES]
    }

    #[test]
    fn what_was_taken_back_may_come_again() {
        let memory = Memory::new(BOUNDS);
        assert_eq!(memory.add(&id(1), "p", 5, 0.0), Verdict::New);
        assert_eq!(memory.add(&id(1), "p", 5, 1.0), Verdict::Seen);
        memory.take_back(&id(1), "p");
        memory.take_back(&id(1), "p");
        assert_eq!(memory.look(&id(1), "p", 5, 1.5), Verdict::New);
        assert_eq!((memory.len(), memory.add(&id(1), "p", 5, 2.0), memory.len()), (0, Verdict::New, 1));
        assert_eq!(memory.look(&id(1), "p", 5, 2.5), Verdict::Seen);
    }

    #[test]
    fn it_is_bounded_and_forgets_late() {
        let memory = Memory::new(BOUNDS);
        assert_eq!(memory.add(&id(1), "p", 5, 0.0), Verdict::New);
        assert_eq!(memory.add(&id(2), "p", 6, 1.0), Verdict::New);
        assert_eq!(memory.add(&id(3), "p", 6, 2.0), Verdict::Full(130.0));
        assert_eq!(memory.add(&id(3), "q", 6, 2.0), Verdict::New);
        assert_eq!(memory.add(&id(4), "q", 6, 2.0), Verdict::Full(130.0));
        assert_eq!(memory.add(&id(1), "p", 5, 132.0), Verdict::Seen);
        assert_eq!(memory.add(&id(1), "p", 7, 132.1), Verdict::New, "forgotten by now, and issued later");
        assert_eq!(memory.add(&id(9), "p", 6, 132.2), Verdict::Seen, "may have been here");
        assert_eq!(memory.len(), 1);
    }
}
