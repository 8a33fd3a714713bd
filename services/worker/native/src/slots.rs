//! The slots of one model process that belong to the native front: a socket each, one request under way.
//!
//! The wire is that of `docs/worker.md`, "The seam between front and model process".

use std::collections::HashMap;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::layout::{padding, Layout};
use crate::rings::{Regions, Rings};
use crate::slot::{Slot, INLINE_BYTES};
use crate::{locked, monotonic, runtime};

const RUN: u8 = 1;
const CANCEL: u8 = 2;
const OK: u8 = 1;
const REQUEST_BYTES: usize = 40;
const REPLY_BYTES: usize = 48;
const INLINE: u64 = u64::MAX;
const KEPT_LAYOUTS: usize = 256;

pub struct Inner {
    slots: Vec<Slot>,
    free: Mutex<Vec<usize>>,
    regions: Mutex<Regions>,
    rings: Rings,
    layouts: Mutex<HashMap<Vec<u8>, Arc<Layout>>>,
    closed: AtomicBool,
    /// Whether the process is being ended on purpose.
    planned: AtomicBool,
    lied: AtomicBool,
    last_used: AtomicU64,
}

/// What is asked of the model.
pub struct Ask<'a> {
    pub priority: u8,
    pub flow: u32,
    pub deadline: f64,
    pub layout: &'a [u8],
    /// The tensors in the layout's order.
    pub parts: &'a [Part<'a>],
}

/// The contents of one tensor, in the pieces in which they came.
pub struct Part<'a> {
    pub size: usize,
    pub slices: Vec<&'a [u8]>,
}

pub struct Answer {
    pub layout: Arc<Layout>,
    pub body: Bytes,
    pub rows: u32,
    pub seconds: f64,
    pub queued: f64,
}

pub enum Outcome {
    Answered(Answer),
    /// The JSON of a failure.
    Failed(Vec<u8>),
    /// No slot, no room in the ring, or the process is being ended: nothing ran.
    Busy,
    /// The process ended: whether it was meant to, and whether it was asked before.
    Gone {
        closing: bool,
        asked: bool,
    },
    /// It sent what cannot be read and is to be ended.
    Lied,
}

impl Inner {
    pub fn closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// One request and its answer. Dropping the future strikes the request off where it was not begun.
    pub async fn run(self: &Arc<Self>, ask: &Ask<'_>) -> Outcome {
        let sizes = ask.parts.iter().map(|part| part.size + padding(part.size)).sum::<usize>();
        let Some(mut held) = Held::take(self, sizes) else { return Outcome::Busy };
        match held.send(ask, sizes) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Outcome::Busy,
            Err(_) => return self.gone(false),
        }
        let packet = match held.slot().receive().await {
            Ok(packet) if packet.is_empty() => return self.gone(true),
            Ok(packet) => packet,
            Err(_) => return self.gone(true),
        };
        held.answered = true;
        held.read(&packet).unwrap_or_else(|| {
            self.lied.store(true, Ordering::Release);
            Outcome::Lied
        })
    }

    fn gone(&self, asked: bool) -> Outcome {
        Outcome::Gone { closing: self.planned.load(Ordering::Acquire), asked }
    }

    fn layout(&self, encoded: &[u8]) -> Option<Arc<Layout>> {
        let mut known = locked(&self.layouts);
        if let Some(layout) = known.get(encoded) {
            return Some(Arc::clone(layout));
        }
        let layout = Arc::new(Layout::parse(encoded)?);
        if known.len() >= KEPT_LAYOUTS {
            known.clear();
        }
        known.insert(encoded.to_vec(), Arc::clone(&layout));
        Some(layout)
    }
}

/// A slot, and the region in the ring, that are in use.
struct Held {
    inner: Arc<Inner>,
    index: usize,
    id: u64,
    offset: Option<usize>,
    sent: bool,
    answered: bool,
}

impl Held {
    fn take(inner: &Arc<Inner>, size: usize) -> Option<Self> {
        if inner.closed() {
            return None;
        }
        let offset = if size > INLINE_BYTES { Some(locked(&inner.regions).take(size)?) } else { None };
        let Some(index) = locked(&inner.free).pop() else {
            if let Some(offset) = offset {
                locked(&inner.regions).give(offset);
            }
            return None;
        };
        let id = inner.slots[index].last_id.fetch_add(1, Ordering::Relaxed) + 1;
        Some(Self { inner: Arc::clone(inner), index, id, offset, sent: false, answered: false })
    }

    fn slot(&self) -> &Slot {
        &self.inner.slots[self.index]
    }

    fn send(&mut self, ask: &Ask<'_>, size: usize) -> io::Result<()> {
        let mut packet =
            Vec::with_capacity(REQUEST_BYTES + ask.layout.len() + if self.offset.is_none() { size } else { 0 });
        packet.extend([RUN, ask.priority]);
        packet.extend((ask.layout.len() as u16).to_le_bytes());
        packet.extend(ask.flow.to_le_bytes());
        packet.extend(self.id.to_le_bytes());
        packet.extend(ask.deadline.to_le_bytes());
        packet.extend(self.offset.map_or(INLINE, |offset| offset as u64).to_le_bytes());
        packet.extend((size as u64).to_le_bytes());
        packet.extend(ask.layout);
        match self.offset {
            Some(offset) => {
                let mut at = offset;
                for part in ask.parts {
                    self.inner.rings.write(at, &part.slices, padding(part.size));
                    at += part.size + padding(part.size);
                }
            }
            None => {
                for part in ask.parts {
                    part.slices.iter().for_each(|slice| packet.extend_from_slice(slice));
                    packet.resize(packet.len() + padding(part.size), 0);
                }
            }
        }
        self.inner.last_used.store(monotonic().to_bits(), Ordering::Relaxed);
        self.slot().due.store(ask.deadline.to_bits(), Ordering::Release);
        let sent = self.slot().send(&packet);
        self.sent = sent.is_ok();
        sent
    }

    fn read(&self, packet: &Bytes) -> Option<Outcome> {
        let head = packet.get(..REPLY_BYTES)?;
        let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
        let float = |at: usize| f64::from_bits(number(at));
        if number(8) != self.id {
            return None;
        }
        let told = usize::from(u16::from_le_bytes([head[2], head[3]]));
        let start = REPLY_BYTES + told;
        let text = packet.get(REPLY_BYTES..start)?;
        if head[0] != OK {
            return Some(Outcome::Failed(text.to_vec()));
        }
        let layout = self.inner.layout(text)?;
        let (offset, size) = (number(16), usize::try_from(number(24)).ok()?);
        if layout.size > size {
            return None;
        }
        let body = if offset == INLINE {
            (packet.len() >= start + layout.size).then(|| packet.slice(start..start + layout.size))?
        } else {
            let body = self.inner.rings.read(usize::try_from(offset).ok()?, layout.size)?;
            self.inner.rings.mark_read(self.slot().number, self.id);
            body
        };
        let rows = u32::from_le_bytes(head[4..8].try_into().expect("four bytes"));
        Some(Outcome::Answered(Answer { layout, body, rows, seconds: float(32), queued: float(40) }))
    }

    fn give(&mut self) {
        if let Some(offset) = self.offset.take() {
            locked(&self.inner.regions).give(offset);
        }
        self.slot().due.store(f64::INFINITY.to_bits(), Ordering::Release);
        locked(&self.inner.free).push(self.index);
    }
}

impl Drop for Held {
    /// A slot comes back when the model has answered: until then it may still read the request's memory.
    fn drop(&mut self) {
        if self.answered || !self.sent {
            self.give();
            return;
        }
        let mut head = [0u8; REQUEST_BYTES];
        head[0] = CANCEL;
        head[8..16].copy_from_slice(&self.id.to_le_bytes());
        head[24..32].copy_from_slice(&INLINE.to_le_bytes());
        // Gone, or closed by now: nothing is left to cancel.
        let _ = self.slot().send(&head);
        let left = Held {
            inner: Arc::clone(&self.inner),
            index: self.index,
            id: self.id,
            offset: self.offset.take(),
            sent: true,
            answered: true,
        };
        runtime().spawn(async move {
            match left.slot().receive().await {
                Ok(packet) if !packet.is_empty() => {
                    if packet.get(8..16).is_some_and(|id| id == left.id.to_le_bytes()) {
                        left.inner.rings.mark_read(left.slot().number, left.id);
                    } else {
                        left.inner.lied.store(true, Ordering::Release);
                    }
                }
                _ => left.inner.closed.store(true, Ordering::Release),
            }
            // Dropped here: where the process is gone its memory may as well be given back.
        });
    }
}

/// The same for Python, which makes it with the process and ends it with it.
#[pyclass(frozen, module = "sealane_native")]
pub struct Slots {
    pub inner: Arc<Inner>,
}

#[pymethods]
impl Slots {
    /// `sockets`: descriptors, which become this object's own; `first`: the number of the first slot.
    /// `requests`, `replies`: both rings; `start`: where this object's part of the request ring begins.
    #[new]
    fn new(
        sockets: Vec<RawFd>,
        first: usize,
        requests: &Bound<'_, PyAny>,
        replies: &Bound<'_, PyAny>,
        start: usize,
    ) -> PyResult<Self> {
        // SAFETY: the caller gave the descriptors away.
        let sockets: Vec<_> =
            sockets.into_iter().map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) }).collect();
        let rings = Rings::new(requests, replies)?;
        if start > rings.request_bytes() {
            return Err(PyValueError::new_err("the part of the ring begins behind its end"));
        }
        let _context = runtime().enter();
        let mut slots = Vec::with_capacity(sockets.len());
        for (index, owned) in sockets.into_iter().enumerate() {
            slots.push(Slot::new(first + index, owned)?);
        }
        let inner = Inner {
            // The last one given back is taken first: its memory is warm.
            free: Mutex::new((0..slots.len()).rev().collect()),
            slots,
            regions: Mutex::new(Regions::new(start, rings.request_bytes())),
            rings,
            layouts: Mutex::default(),
            closed: AtomicBool::new(false),
            planned: AtomicBool::new(false),
            lied: AtomicBool::new(false),
            last_used: AtomicU64::new(monotonic().to_bits()),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The process is about to be ended on purpose: take no more requests; those under way go on.
    fn shut(&self) {
        self.inner.planned.store(true, Ordering::Release);
        self.inner.closed.store(true, Ordering::Release);
    }

    /// Hang up: those who wait for an answer hear that the process is gone.
    fn close(&self) {
        self.inner.closed.store(true, Ordering::Release);
        for slot in &self.inner.slots {
            slot.close();
        }
    }

    /// Requests that the process owes an answer to.
    #[getter]
    fn in_flight(&self) -> usize {
        self.inner.slots.len() - locked(&self.inner.free).len()
    }

    /// How long after its caller's deadline the process still owes its oldest answer; negative before it.
    fn overdue_seconds(&self, now: f64) -> f64 {
        let due = |slot: &Slot| f64::from_bits(slot.due.load(Ordering::Acquire));
        now - self.inner.slots.iter().map(due).fold(f64::INFINITY, f64::min)
    }

    /// Whether the process sent what it cannot have been asked for; it is to be ended.
    #[getter]
    fn lied(&self) -> bool {
        self.inner.lied.load(Ordering::Acquire)
    }

    /// When a request was last sent, on the monotonic clock.
    #[getter]
    fn last_used(&self) -> f64 {
        f64::from_bits(self.inner.last_used.load(Ordering::Relaxed))
    }
}
