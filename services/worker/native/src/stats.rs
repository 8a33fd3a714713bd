//! What is known of the runs of one model: how busy it is, and the counts that metrics and statistics show.
//!
//! The calls that go through the interpreter share the busy part, so that what callers are told of the load counts
//! everybody (`sealane_worker/statistics.py`, whose names these are).

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::locked;

const WINDOW: usize = 512;
const MAX_BATCHES: usize = 64;
const WEIGHT: f64 = 0.2;

#[derive(Clone, Default)]
struct State {
    calls: usize,
    service: f64,
    each: Option<f64>,
    succeeded: u64,
    failed: u64,
    rows: u64,
    last_time: f64,
    failed_seconds: f64,
    queue_seconds: f64,
    run_seconds: f64,
    seconds: VecDeque<f64>,
    buckets: Vec<u64>,
    batches: HashMap<u32, (f64, f64)>,
}

impl State {
    fn took(&mut self, seconds: f64, waited: f64, before: usize) {
        self.calls -= 1;
        self.service = if self.service == 0.0 { seconds } else { self.service + WEIGHT * (seconds - self.service) };
        if before > 0 {
            let each = waited / before as f64;
            self.each = Some(self.each.map_or(each, |known| known + WEIGHT * (each - known)));
        }
    }

    fn load(&self) -> (usize, f64, f64) {
        (self.calls, self.calls as f64 * self.each.unwrap_or(self.service), self.service)
    }
}

/// One run that ended well, as the model process told it.
pub struct Ran {
    pub seconds: f64,
    pub queued: f64,
    pub batch_rows: u32,
    pub rows: u32,
    /// From the call's arrival to its answer, without the run.
    pub waited: f64,
    pub before: usize,
}

#[pyclass(frozen, module = "sealane_native")]
pub struct Statistics {
    bounds: Vec<f64>,
    state: Mutex<State>,
}

impl Statistics {
    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    pub fn succeeded(&self, ran: &Ran) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let mut state = self.state();
        state.took(ran.seconds, ran.waited, ran.before);
        if state.seconds.len() == WINDOW {
            state.seconds.pop_front();
        }
        state.seconds.push_back(ran.seconds);
        state.succeeded += 1;
        state.last_time = now;
        state.queue_seconds += ran.queued;
        state.run_seconds += ran.seconds;
        state.rows += u64::from(ran.rows);
        let bucket = self.bounds.partition_point(|bound| *bound < ran.seconds);
        state.buckets[bucket] += 1;
        if state.batches.len() < MAX_BATCHES || state.batches.contains_key(&ran.batch_rows) {
            // A run that several requests share is counted by each of them for its part.
            let part = if ran.batch_rows > ran.rows { f64::from(ran.rows) / f64::from(ran.batch_rows) } else { 1.0 };
            let batch = state.batches.entry(ran.batch_rows).or_default();
            batch.0 += part;
            batch.1 += ran.seconds * part;
        }
    }

    pub fn failed(&self, seconds: f64) {
        let mut state = self.state();
        state.calls -= 1;
        state.failed += 1;
        state.failed_seconds += seconds;
    }

    /// The value of `x-sealane-load` (`sealane.rpc.loads.Load.encode`) with an answer that took `spent` seconds.
    pub fn load_text(&self, spent: f64) -> String {
        let (calls, queue, service) = self.state().load();
        format!("{calls},{},{},{}", (queue * 1e6) as u64, (service * 1e6) as u64, (spent * 1e6) as u64)
    }
}

#[pymethods]
impl Statistics {
    /// `bounds`: upper bounds of the buckets, in seconds, ascending.
    #[new]
    fn new(bounds: Vec<f64>) -> Self {
        let state = State { buckets: vec![0; bounds.len() + 1], ..State::default() };
        Self { bounds, state: Mutex::new(state) }
    }

    /// An inference came; how many were there before it.
    pub fn begin(&self) -> usize {
        let mut state = self.state();
        state.calls += 1;
        state.calls - 1
    }

    /// It was answered after a run of so many seconds, and waited.
    fn took(&self, seconds: f64, waited: f64, before: usize) {
        self.state().took(seconds, waited, before);
    }

    /// It ended otherwise.
    pub fn end(&self) {
        self.state().calls -= 1;
    }

    /// Calls, seconds that a call which came now would wait, seconds that the model takes.
    pub fn load(&self) -> (usize, f64, f64) {
        self.state().load()
    }

    /// What came through the native front alone, by the names of `RunStatistics`.
    fn counts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        // Copied first: to make an object of Python's may run its garbage collector, and that anybody's code. Under the
        // lock it would stop all who come next, who wait for the lock and let nobody else compute.
        let state = self.state().clone();
        let counts = PyDict::new(py);
        counts.set_item("succeeded", state.succeeded)?;
        counts.set_item("failed", state.failed)?;
        counts.set_item("rows", state.rows)?;
        counts.set_item("last_time", state.last_time)?;
        counts.set_item("failed_seconds", state.failed_seconds)?;
        counts.set_item("queue_seconds", state.queue_seconds)?;
        counts.set_item("run_seconds", state.run_seconds)?;
        counts.set_item("seconds", Vec::from(state.seconds))?;
        counts.set_item("buckets", state.buckets)?;
        counts.set_item("batches", state.batches)?;
        Ok(counts)
    }
}
