//! Admission: how many calls are inside, and the share that each project has of them.
//!
//! The interpreter's middleware counts its calls in here too (`sealane.rpc.middleware.Limits`,
//! `sealane.rpc.fairness.FairShare`), so both ways into the worker share one limit.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use pyo3::prelude::*;

use crate::locked;

#[derive(Default)]
struct State {
    in_flight: usize,
    peak: usize,
    ended: usize,
    projects: HashMap<String, usize>,
}

pub struct Counters {
    capacity: usize,
    state: Mutex<State>,
}

impl Counters {
    pub fn new(capacity: usize) -> Self {
        Self { capacity, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    /// Count a call in for the worker and for its project, or in neither.
    pub fn enter(self: &Arc<Self>, project: &str) -> Option<Place> {
        let mut state = self.state();
        if state.in_flight >= self.capacity || state.join(self.capacity, project).is_err() {
            return None;
        }
        state.enter();
        Some(Place { counters: Arc::clone(self), project: project.to_owned() })
    }
}

impl State {
    fn enter(&mut self) {
        self.in_flight += 1;
        self.peak = self.peak.max(self.in_flight);
    }

    fn leave(&mut self) {
        self.in_flight -= 1;
        self.ended += 1;
    }

    /// Projects with a call inside get the same share; one that is alone all but a twelfth.
    fn join(&mut self, capacity: usize, project: &str) -> Result<(), usize> {
        let mine = self.projects.get(project).copied().unwrap_or(0);
        let share = match self.projects.len() + usize::from(mine == 0) {
            1 => capacity - capacity / 12,
            projects => (capacity / projects).max(1),
        };
        if mine >= share {
            return Err(mine);
        }
        self.projects.insert(project.to_owned(), mine + 1);
        Ok(())
    }

    fn part(&mut self, project: &str) {
        match self.projects.get_mut(project) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                self.projects.remove(project);
            }
        }
    }
}

/// A call that is inside; dropping it counts the call out.
pub struct Place {
    counters: Arc<Counters>,
    project: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.counters.state();
        state.part(&self.project);
        state.leave();
    }
}

/// The same for Python.
#[pyclass(frozen, module = "sealane_native")]
pub struct Places {
    pub counters: Arc<Counters>,
}

#[pymethods]
impl Places {
    #[new]
    fn new(capacity: usize) -> Self {
        Self { counters: Arc::new(Counters::new(capacity)) }
    }

    /// Count a call in; false where no place is free. With `force` it is counted in all the same.
    fn enter(&self, force: bool) -> bool {
        let mut state = self.counters.state();
        if state.in_flight >= self.counters.capacity && !force {
            return false;
        }
        state.enter();
        true
    }

    /// Count it out.
    fn leave(&self) {
        self.counters.state().leave();
    }

    /// Count a call of a project in; the calls that it has inside where these are its share already, else -1.
    fn join(&self, project: &str) -> i64 {
        match self.counters.state().join(self.counters.capacity, project) {
            Ok(()) => -1,
            Err(mine) => mine as i64,
        }
    }

    /// Count it out.
    fn part(&self, project: &str) {
        self.counters.state().part(project);
    }

    /// Most calls at the same time, and calls that ended, since this was last asked.
    fn take_counts(&self) -> (usize, usize) {
        let mut state = self.counters.state();
        let counts = (state.peak, state.ended);
        state.peak = state.in_flight;
        state.ended = 0;
        counts
    }

    #[getter]
    fn in_flight(&self) -> usize {
        self.counters.state().in_flight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_that_is_alone_leaves_a_twelfth() {
        let counters = Arc::new(Counters::new(48));
        let inside: Vec<_> = (0..48).map_while(|_| counters.enter("a")).collect();
        assert_eq!(inside.len(), 44);
        let other: Vec<_> = (0..48).map_while(|_| counters.enter("b")).collect();
        assert_eq!(other.len(), 4, "what is left of the worker");
        drop(inside);
        assert_eq!((0..48).map_while(|_| counters.enter("b")).collect::<Vec<_>>().len(), 40);
    }

    #[test]
    fn a_call_that_ends_gives_its_place_back() {
        let counters = Arc::new(Counters::new(2));
        drop((counters.enter("a"), counters.enter("b")));
        let state = counters.state();
        assert_eq!((state.in_flight, state.peak, state.ended, state.projects.len()), (0, 2, 2, 0));
    }
}
