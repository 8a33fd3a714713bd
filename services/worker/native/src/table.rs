//! What Python decided, to be repeated: which callers are known, and what their requests come to.
//!
//! Nothing is decided here. A call that is not in the table goes through Python, all of it; when it ends well, Python
//! says under the call's **ticket** what it came to. Whatever may change an answer of Python's makes it forget all.
//!
//! What an entry holds may be the last of a model process, and Python's to end: no entry is dropped under the lock.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use pyo3::{Py, PyAny};

use crate::locked;
use crate::message::{Content, Cut, Kind};
use crate::monotonic;
use crate::seal::format::Lp;
use crate::seal::opening::Context;
use crate::slots::Inner as SlotsInner;
use crate::stats::Statistics;

const MAX_CALLERS: usize = 8192;
const MAX_ENTRIES: usize = 4096;
const MAX_OF_CALLER: usize = 512;
/// An answer is repeated for so long at most, whatever Python says.
const LONGEST_SECONDS: f64 = 60.0;

/// What Python says that a request comes to.
pub struct Told {
    pub project: String,
    pub statistics: Py<Statistics>,
    pub kind: Kind,
    /// Layout for the model process.
    pub layout: Vec<u8>,
    pub rows: u32,
    pub priority: u8,
    pub flow: u32,
    /// The answer without tensors and id.
    pub head: Vec<u8>,
    /// Python's own, for what it says about a call that failed.
    pub about: Py<PyAny>,
}

/// The same with what it is called, and what has to fit the request.
pub struct Lesson {
    pub told: Arc<Told>,
    pub slots: Arc<SlotsInner>,
    /// Name and bytes of each tensor, in the layout's order.
    pub tensors: Vec<(Vec<u8>, usize)>,
    /// Where the request came sealed.
    pub sealed: Option<Sealed>,
}

/// A request that came sealed.
pub struct Sealed {
    pub deployment: String,
    pub method: String,
    pub context: Arc<Context>,
    /// What was inside; none where that is not to be repeated.
    pub cut: Option<Cut>,
}

/// What requests of one caller with one rest come to.
pub struct Entry {
    until: f64,
    pub told: Arc<Told>,
    /// Whoever ends the process has the last word: what is repeated keeps none of its memory.
    pub slots: Weak<SlotsInner>,
    /// The tensors of the layout, as indices of the request's contents.
    pub order: Vec<usize>,
}

impl Entry {
    fn good(&self, now: f64) -> bool {
        now < self.until && self.slots.upgrade().is_some_and(|slots| !slots.closed())
    }
}

struct Caller {
    number: u64,
    until: f64,
    entries: usize,
}

/// A call that is on its way through Python.
struct Pending {
    generation: u64,
    credential: Vec<u8>,
    request: Option<(Vec<u8>, Vec<Content>)>,
}

#[derive(Default)]
struct State {
    callers: HashMap<Vec<u8>, Caller>,
    entries: HashMap<Vec<u8>, Arc<Entry>>,
    contexts: HashMap<Vec<u8>, (f64, Arc<Context>)>,
    pending: HashMap<u64, Pending>,
    numbers: u64,
}

#[derive(Default)]
pub struct Table {
    generation: AtomicU64,
    state: Mutex<State>,
}

/// Names a request of a known caller in the table.
pub fn key_of(caller: u64, kind: Kind, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(rest.len() + 9);
    key.extend(caller.to_le_bytes());
    key.push(kind as u8);
    key.extend(rest);
    key
}

/// Names what a known caller seals for a deployment and a method: by itself, or under a session.
pub fn key_of_context(caller: u64, deployment: &str, method: &str, alone: bool) -> Vec<u8> {
    let mut key = caller.to_le_bytes().to_vec();
    key.push(u8::from(alone));
    key.extend(Lp(Vec::new()).text(deployment).text(method).0);
    key
}

/// Names a request of a known caller that came sealed; however it was sealed, it means the same.
pub fn key_of_sealed(caller: u64, deployment: &str, method: &str, rest: &[u8]) -> Vec<u8> {
    const SEALED: u8 = 0x80;
    let mut key = key_of_context(caller, deployment, method, false);
    key[8] = SEALED;
    key.extend(rest);
    key
}

impl Table {
    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    /// The number of a caller whose credential Python has found good.
    pub fn caller(&self, credential: &[u8]) -> Option<u64> {
        let state = self.state();
        state.callers.get(credential).filter(|caller| monotonic() < caller.until).map(|caller| caller.number)
    }

    pub fn entry(&self, key: &[u8]) -> Option<Arc<Entry>> {
        let _over; // declared first, so that it is dropped behind the lock
        let mut state = self.state();
        let entry = state.entries.get(key)?;
        if entry.good(monotonic()) {
            return Some(Arc::clone(entry));
        }
        _over = state.entries.remove(key);
        None
    }

    /// What a caller's envelopes are bound to.
    pub fn context(&self, key: &[u8]) -> Option<Arc<Context>> {
        let state = self.state();
        let (_, context) = state.contexts.get(key).filter(|(until, _)| monotonic() < *until)?;
        Some(Arc::clone(context))
    }

    /// Forget everything; what is on its way through Python teaches nothing any more.
    pub fn forget(&self) {
        let _over; // declared first, so that it is dropped behind the lock
        let mut state = self.state();
        self.generation.fetch_add(1, Ordering::AcqRel);
        state.callers.clear();
        state.contexts.clear();
        _over = std::mem::take(&mut state.entries);
    }

    /// Let a call go through Python.
    pub fn begin(self: &Arc<Self>, credential: &[u8], request: Option<(Vec<u8>, Vec<Content>)>) -> Ticket {
        let mut state = self.state();
        state.numbers += 1;
        let number = state.numbers;
        let generation = self.generation.load(Ordering::Acquire);
        state.pending.insert(number, Pending { generation, credential: credential.to_vec(), request });
        Ticket { table: Arc::clone(self), number }
    }

    /// Take in what Python says: the caller is good until then, and so is the lesson, if there is one. False where that
    /// comes too late, or does not fit the request.
    pub fn learn(&self, ticket: u64, until: f64, lesson: Option<&Lesson>) -> bool {
        let mut over = Vec::new(); // declared first, so that it is dropped behind the lock
        let mut state = self.state();
        let Some(pending) = state.pending.remove(&ticket) else { return false };
        if pending.generation != self.generation.load(Ordering::Acquire) {
            return false;
        }
        let now = monotonic();
        let until = until.min(now + LONGEST_SECONDS);
        let number = state.caller(pending.credential.clone(), until, now).number;
        let Some(lesson) = lesson else { return true };
        let request = match &lesson.sealed {
            Some(sealed) => state.context(number, sealed, until, now),
            None => pending.request,
        };
        // Its caller may have been forgotten and learned anew meanwhile: then the key names nobody.
        let Some((key, contents)) = request else { return true };
        let Some(order) = lesson.order(&contents) else { return false };
        let caller = state.caller(pending.credential, until, now);
        caller.entries += 1;
        if caller.entries > MAX_OF_CALLER {
            // Who asks for something else each time loses his own, and nobody else's.
            caller.entries = 1;
            let mine = key[..8].to_vec();
            over.extend(state.entries.extract_if(|key, _| key.starts_with(&mine)));
        }
        if state.entries.len() >= MAX_ENTRIES {
            over.extend(state.entries.extract_if(|_, entry| !entry.good(now)));
            if state.entries.len() >= MAX_ENTRIES {
                over.extend(state.entries.drain());
            }
        }
        let entry = Entry { until, told: Arc::clone(&lesson.told), slots: Arc::downgrade(&lesson.slots), order };
        if let Some(before) = state.entries.insert(key.clone(), Arc::new(entry)) {
            over.push((key, before));
        }
        true
    }
}

impl State {
    /// The caller with a credential, who is good until then.
    fn caller(&mut self, credential: Vec<u8>, until: f64, now: f64) -> &mut Caller {
        if self.callers.len() >= MAX_CALLERS {
            self.callers.retain(|_, caller| now < caller.until);
            if self.callers.len() >= MAX_CALLERS {
                self.callers.clear(); // and with them all their entries: their numbers are no more
            }
        }
        self.numbers += 1;
        let number = self.numbers;
        let caller = self.callers.entry(credential).or_insert(Caller { number, until, entries: 0 });
        caller.until = until;
        caller
    }

    /// Keep what a caller's envelopes are bound to; gives the key and the contents of what was inside.
    fn context(&mut self, caller: u64, sealed: &Sealed, until: f64, now: f64) -> Option<(Vec<u8>, Vec<Content>)> {
        let cut = sealed.cut.as_ref()?;
        if self.contexts.len() >= MAX_ENTRIES {
            self.contexts.retain(|_, (until, _)| now < *until);
            if self.contexts.len() >= MAX_ENTRIES {
                self.contexts.clear();
            }
        }
        let alone = !sealed.context.sender.is_empty();
        let key = key_of_context(caller, &sealed.deployment, &sealed.method, alone);
        // One that is good stays, and knows how often it was of no use.
        let known = self.contexts.get(&key).is_some_and(|(until, known)| now < *until && known.same(&sealed.context));
        if !known {
            self.contexts.insert(key, (until, Arc::clone(&sealed.context)));
        }
        let key = key_of_sealed(caller, &sealed.deployment, &sealed.method, &cut.rest);
        Some((key, cut.contents.clone()))
    }
}

impl Lesson {
    /// Which content is which tensor; None where they do not correspond one to one.
    fn order(&self, contents: &[Content]) -> Option<Vec<usize>> {
        if contents.len() != self.tensors.len() {
            return None;
        }
        let place = |(index, (name, size)): (usize, &(Vec<u8>, usize))| {
            let place = match self.told.kind {
                Kind::OpenInference => index, // the raw contents stand in the order of the tensors
                Kind::TensorFlowServing => contents.iter().position(|content| content.name == *name)?,
            };
            (contents[place].size == *size).then_some(place)
        };
        self.tensors.iter().enumerate().map(place).collect()
    }
}

/// A call on its way through Python; when it is dropped, nothing is learned from it any more.
pub struct Ticket {
    table: Arc<Table>,
    pub number: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.table.state().pending.remove(&self.number);
    }
}
