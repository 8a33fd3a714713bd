//! The sessions that a worker keeps. How many, whose, and which gives way is for Python to say
//! (`sealane.security.kept_sessions`); here are their keys, and which numbers were taken.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use pyo3::prelude::*;

use crate::locked;
use crate::seal::chunks::{Cipher, Direction};
use crate::seal::format::Key;

pub struct Session {
    pub requests: Cipher,
    pub answers: Cipher,
    /// Thumbprint of the key that opened it.
    pub sender: String,
    /// Requests that it takes.
    most: u32,
    until: f64,
    used: AtomicU64,
    taken: Mutex<Vec<u8>>,
}

impl Session {
    pub fn new(keys: (&Key, &Key), sender: String, most: u32, until: f64, now: f64) -> Self {
        Self {
            requests: Cipher::new(keys.0, Direction::Request),
            answers: Cipher::new(keys.1, Direction::Response),
            sender,
            most,
            until,
            used: AtomicU64::new(now.to_bits()),
            taken: Mutex::default(),
        }
    }

    /// Whether request `counter` was taken, or never can be.
    pub fn is_taken(&self, counter: u32) -> bool {
        let taken = locked(&self.taken).get(counter as usize >> 3).is_some_and(|bits| bits & 1u8 << (counter & 7) != 0);
        taken || counter >= self.most
    }

    /// Whether request `counter` may run: once.
    pub fn take(&self, counter: u32) -> bool {
        if counter >= self.most {
            return false;
        }
        let (mut taken, at, bit) = (locked(&self.taken), counter as usize >> 3, 1u8 << (counter & 7));
        if taken.len() <= at {
            taken.resize(at + 1, 0);
        }
        let free = taken[at] & bit == 0;
        taken[at] |= bit;
        free
    }

    /// Take a number back of which nothing has run.
    pub fn take_back(&self, counter: u32) {
        if let Some(taken) = locked(&self.taken).get_mut(counter as usize >> 3) {
            *taken &= !(1u8 << (counter & 7));
        }
    }
}

#[derive(Default)]
pub struct Sessions {
    kept: Mutex<HashMap<Vec<u8>, Arc<Session>>>,
}

impl Sessions {
    pub fn keep(&self, id: Vec<u8>, session: Arc<Session>) {
        locked(&self.kept).insert(id, session);
    }

    pub fn end(&self, id: &[u8]) {
        locked(&self.kept).remove(id);
    }

    pub fn find(&self, id: &[u8], now: f64) -> Option<Arc<Session>> {
        let session = locked(&self.kept).get(id).filter(|session| now < session.until).cloned()?;
        session.used.store(now.to_bits(), Ordering::Relaxed);
        Some(session)
    }
}

/// The numbers of a session, for Python.
#[pyclass(frozen, module = "sealane_native")]
pub struct Numbers {
    pub session: Arc<Session>,
}

#[pymethods]
impl Numbers {
    fn take(&self, counter: u32) -> bool {
        self.session.take(counter)
    }

    /// Monotonic time at which it was looked for last in here.
    #[getter]
    fn used(&self) -> f64 {
        f64::from_bits(self.session.used.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_taken_once() {
        let session = Session::new((&[1; 32], &[2; 32]), "sender".into(), 20, 10.0, 0.0);
        assert!(session.take(19) && session.take(0) && session.take(8));
        assert!(session.is_taken(19) && session.is_taken(20) && !session.is_taken(18) && !session.is_taken(7));
        assert!(!session.take(19) && !session.take(0) && !session.take(20) && !session.take(u32::MAX));
        session.take_back(8);
        session.take_back(4000);
        assert!(session.take(8) && !session.take(8));
    }

    #[test]
    fn sessions_end_in_time() {
        let sessions = Sessions::default();
        sessions.keep(vec![1], Arc::new(Session::new((&[1; 32], &[2; 32]), "sender".into(), 20, 10.0, 0.0)));
        assert!(sessions.find(&[1], 9.0).is_some_and(|session| session.used.load(Ordering::Relaxed) == 9f64.to_bits()));
        assert!(sessions.find(&[1], 10.0).is_none() && sessions.find(&[2], 1.0).is_none());
        sessions.end(&[1]);
        assert!(sessions.find(&[1], 1.0).is_none());
    }
}
