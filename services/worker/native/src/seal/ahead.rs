//! What is made ahead, by a thread of its own.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{channel, Sender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::locked;

/// Something that is being made; whoever wants it waits until it is made, or until it is known that it will not be.
pub struct Making<T> {
    made: Mutex<Option<Option<Arc<T>>>>,
    done: Condvar,
}

impl<T> Default for Making<T> {
    fn default() -> Self {
        Self { made: Mutex::new(None), done: Condvar::new() }
    }
}

impl<T> Making<T> {
    /// Make it here and now.
    pub fn make(&self, make: impl FnOnce() -> Option<T>) {
        let made = catch_unwind(AssertUnwindSafe(make)).unwrap_or(None);
        *locked(&self.made) = Some(made.map(Arc::new));
        self.done.notify_all();
    }

    /// It, where it is made.
    pub fn ready(&self) -> Option<Arc<T>> {
        locked(&self.made).clone().flatten()
    }

    /// It, when it is made; None where it cannot be.
    pub fn wait(&self) -> Option<Arc<T>> {
        let mut made = locked(&self.made);
        loop {
            if let Some(made) = made.as_ref() {
                return made.clone();
            }
            made = self.done.wait(made).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

pub type Work = Box<dyn FnOnce() + Send>;

/// Have work done by the thread that makes things ahead: this process's own, for a fork has none. Where much waits for it
/// already, the work is done here.
pub fn ahead(work: Work) {
    const MOST: usize = 16;
    static WAITING: AtomicUsize = AtomicUsize::new(0);
    if WAITING.fetch_add(1, Ordering::AcqRel) >= MOST {
        WAITING.fetch_sub(1, Ordering::AcqRel);
        return work();
    }
    let work: Work = Box::new(move || {
        WAITING.fetch_sub(1, Ordering::AcqRel);
        work();
    });
    static MAKER: Mutex<Option<(u32, Sender<Work>)>> = Mutex::new(None);
    let (process, mut maker) = (std::process::id(), locked(&MAKER));
    if maker.as_ref().is_none_or(|(owner, _)| *owner != process) {
        let (sender, jobs) = channel::<Work>();
        let thread = std::thread::Builder::new().name("seal-ahead".into());
        if thread.spawn(move || jobs.into_iter().for_each(|work| work())).is_err() {
            drop(maker);
            return work(); // there are no more threads to be had
        }
        // That of the process which this one was forked off may be in use there, in the middle of something.
        std::mem::forget(maker.replace((process, sender)));
    }
    let Some((_, sender)) = maker.as_ref() else { return work() };
    if let Err(left) = sender.send(work) {
        (left.0)(); // its thread is gone
    }
}
