//! Calls that were read in here and are Python's to answer: they wait at a desk, and its threads take them.
//!
//! That is for callers whose credential Python has found good a moment ago: it looks at it again all the same, but a
//! body may be read ahead of that. All others are carried as they come (`relay`).

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use tokio::sync::oneshot;

use crate::arrivals::Arrival;
use crate::locked;
use crate::reply::{headers, Headers};
use crate::rope::Rope;

/// What Python says.
pub enum Reply {
    Answer {
        message: Bytes,
        trailers: Headers,
    },
    /// Status, message and all else.
    Refusal(Headers),
}

/// Who wants to hear that nobody waits for the answer any more; none once that is so.
type Watchers = Mutex<Option<Vec<Py<PyAny>>>>;

/// A call for Python.
#[pyclass(frozen, module = "sealane_native")]
pub struct Asked {
    #[pyo3(get)]
    path: String,
    #[pyo3(get)]
    metadata: Vec<(String, String)>,
    /// On the monotonic clock.
    #[pyo3(get)]
    deadline: f64,
    #[pyo3(get)]
    ticket: u64,
    #[pyo3(get)]
    sampled: bool,
    chunks: Mutex<Vec<Bytes>>,
    /// Bytes in front of the message.
    without: usize,
    watchers: Arc<Watchers>,
    reply: Mutex<Option<oneshot::Sender<Reply>>>,
    /// For the memory of its body, as long as Python has it.
    _arrival: Arrival,
}

#[pymethods]
impl Asked {
    /// The message; it can be had once.
    fn take_body<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let chunks = std::mem::take(&mut *locked(&self.chunks));
        let message = Rope::new(&chunks, self.without);
        PyBytes::new_with(py, message.len(), |target| {
            let mut at = 0;
            for part in message.slices(0, message.len()) {
                target[at..at + part.len()].copy_from_slice(part);
                at += part.len();
            }
            Ok(())
        })
    }

    /// Have `callback` called when nobody waits any more; false, and it is not, where nobody waits already.
    fn watch(&self, callback: Py<PyAny>) -> bool {
        match locked(&self.watchers).as_mut() {
            Some(watchers) => {
                watchers.push(callback);
                true
            }
            None => false,
        }
    }

    /// The serialized answer, and trailing metadata.
    fn answer(&self, message: &[u8], trailers: Vec<(String, String)>) {
        let message = frame(message);
        self.say(Reply::Answer { message, trailers: headers(trailers) });
    }

    /// A refusal: status, message and all else as headers.
    fn refuse(&self, told: Vec<(String, String)>) {
        self.say(Reply::Refusal(headers(told)));
    }
}

impl Asked {
    fn say(&self, reply: Reply) {
        if let Some(waiting) = locked(&self.reply).take() {
            let _ = waiting.send(reply); // whoever has left hears nothing
        }
    }
}

fn frame(message: &[u8]) -> Bytes {
    let mut frame = Vec::with_capacity(5 + message.len());
    frame.push(0);
    frame.extend((message.len() as u32).to_be_bytes());
    frame.extend_from_slice(message);
    frame.into()
}

/// What is known of a call before its body.
pub struct Letter {
    pub path: String,
    pub metadata: Vec<(String, String)>,
    pub deadline: f64,
    pub ticket: u64,
    pub sampled: bool,
    pub chunks: Vec<Bytes>,
    pub without: usize,
    pub arrival: Arrival,
}

/// The caller's end of a call at the desk.
pub struct Waiting {
    pub reply: oneshot::Receiver<Reply>,
    watchers: Arc<Watchers>,
}

impl Waiting {
    /// Nobody waits any more: the call leaves the desk, and if it was taken those who want to hear of it are told.
    pub fn leave(self, desk: &Desk) {
        let mut state = desk.state();
        let at = state.waiting.iter().position(|asked| Arc::ptr_eq(&asked.watchers, &self.watchers));
        let left = at.and_then(|at| state.waiting.remove(at));
        drop(state);
        drop(left);
        let watchers = locked(&self.watchers).take().unwrap_or_default();
        if !watchers.is_empty() {
            tokio::task::spawn_blocking(move || {
                Python::attach(|py| {
                    for watcher in watchers {
                        let _ = watcher.call0(py); // says what it has to say to Python's own log
                    }
                });
            });
        }
    }
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Asked>,
    idle: usize,
    closed: bool,
}

#[derive(Default)]
pub struct Desk {
    state: Mutex<State>,
    come: Condvar,
}

impl Desk {
    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    /// Hand a call in.
    pub fn ask(&self, letter: Letter) -> Waiting {
        let (sender, reply) = oneshot::channel();
        let watchers = Arc::new(Mutex::new(Some(Vec::new())));
        let asked = Asked {
            path: letter.path,
            metadata: letter.metadata,
            deadline: letter.deadline,
            ticket: letter.ticket,
            sampled: letter.sampled,
            chunks: Mutex::new(letter.chunks),
            without: letter.without,
            watchers: Arc::clone(&watchers),
            reply: Mutex::new(Some(sender)),
            _arrival: letter.arrival,
        };
        let mut state = self.state();
        if !state.closed {
            state.waiting.push_back(asked);
            self.come.notify_one();
        }
        Waiting { reply, watchers }
    }

    /// The next call, and whether no other thread waits for one; none once the desk is closed.
    pub fn take(&self) -> Option<(Asked, bool)> {
        let mut state = self.state();
        state.idle += 1;
        while state.waiting.is_empty() && !state.closed {
            state = self.come.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.idle -= 1;
        let alone = state.idle == 0;
        state.waiting.pop_front().map(|asked| (asked, alone))
    }

    /// Take no more; those who wait for an answer that was not begun hear that there is none.
    pub fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        let left = std::mem::take(&mut state.waiting);
        drop(state);
        drop(left);
        self.come.notify_all();
    }
}
