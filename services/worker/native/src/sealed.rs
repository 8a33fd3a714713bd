//! A call that came sealed and that Python has answered before: opened, run and sealed without the interpreter.
//!
//! Python has said what the envelopes of this caller for this deployment are bound to, and what a request like the one
//! inside comes to. Whatever does not open by that, or was inside for the first time, is Python's as it came.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::front::Front;
use crate::head::kind_of;
use crate::locked;
use crate::message::{cut, Cut};
use crate::monotonic;
use crate::rope::Rope;
use crate::run::Run;
use crate::seal::opening::{Context, Opener, Right};
use crate::seal::request::Request;
use crate::table::{key_of_context, key_of_sealed, Entry};

/// First byte of the plaintext of an answer: what follows it.
pub const ANSWER: u8 = 0;
pub const STATUS: u8 = 1;

/// A request that has opened.
pub struct Inside {
    plaintext: Vec<u8>,
    found: Cut,
    entry: Arc<Entry>,
    request: Request,
    context: Arc<Context>,
    right: Mutex<Option<Right>>,
}

impl Inside {
    /// What is inside a caller's message, where it opens, and was answered before.
    ///
    /// `admit` counts a call of a project in, before anything costs time.
    pub fn of<P>(
        front: &Front,
        caller: u64,
        message: &Rope<'_>,
        admit: impl FnOnce(&str) -> Option<P>,
    ) -> Option<(Self, P)> {
        let request = Request::parse(message)?;
        let kind = kind_of(&request.method)?;
        let Request { deployment, method, .. } = &request;
        let context = front.table.context(&key_of_context(caller, deployment, method, request.session.is_none()))?;
        let place = context.pays().then(|| admit(&context.project)).flatten()?;
        let (plaintext, right) = front.opener.open(&request, message, &context)?;
        let known = cut(kind, &Rope::of(&plaintext)).and_then(|found| {
            let entry = front.table.entry(&key_of_sealed(caller, deployment, method, &found.rest))?;
            Some((found, entry))
        });
        let Some((found, entry)) = known else {
            context.misses.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        context.misses.store(0, Ordering::Relaxed);
        Some((Self { plaintext, found, entry, request, context, right: Mutex::new(Some(right)) }, place))
    }

    pub fn message(&self) -> Rope<'_> {
        Rope::of(&self.plaintext)
    }

    /// What it comes to.
    pub fn run<'a>(&'a self, front: &'a Arc<Front>, message: &'a Rope<'a>) -> Run<'a> {
        let right =
            Rights { opener: &front.opener, request: &self.request, context: &self.context, right: &self.right };
        Run { front, entry: Arc::clone(&self.entry), message, found: &self.found, right: Some(right) }
    }
}

/// The right to run a request once, and to answer it once.
pub struct Rights<'a> {
    opener: &'a Opener,
    request: &'a Request,
    context: &'a Context,
    right: &'a Mutex<Option<Right>>,
}

impl Rights<'_> {
    /// Use it up; false where somebody has done so before.
    pub fn take(&self) -> bool {
        locked(self.right)
            .as_ref()
            .is_some_and(|right| self.opener.take(right, self.request, self.context, monotonic()))
    }

    /// Give it back: nothing has run.
    pub fn take_back(&self) {
        if let Some(right) = locked(self.right).as_ref() {
            self.opener.take_back(right, self.context);
        }
    }

    /// Frame of the answer; once.
    pub fn seal(&self, plaintext: &[u8]) -> Option<Bytes> {
        let right = locked(self.right).take()?;
        self.opener.seal(right, plaintext)
    }
}
