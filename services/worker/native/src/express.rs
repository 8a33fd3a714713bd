//! A call that Python has answered before: from its message to the model process and back.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::Reason;
use http::header::{HeaderName, HeaderValue};
use tokio::time::sleep;

use crate::answer::answer;
use crate::call::Known;
use crate::failure::{fail, Failed};
use crate::message::Cut;
use crate::monotonic;
use crate::places::Place;
use crate::relay::Reset;
use crate::reply::{refuse, refuse_with, send, Headers, SMALL_ANSWER};
use crate::slots::{Answer, Ask, Outcome, Part};
use crate::stats::Ran;
use crate::table::Entry;

static LOAD: HeaderName = HeaderName::from_static("x-sealane-load");

/// A call that Python has answered before.
pub struct Express<'a> {
    pub known: &'a Known<'a>,
    pub entry: Arc<Entry>,
    pub found: &'a Cut,
}

impl Express<'_> {
    /// Answer it; false where nothing ran and Python is to say why, or to help.
    pub async fn run(&self, respond: &mut SendResponse<Bytes>) -> Result<bool, Reset> {
        let Some(slots) = self.entry.slots.upgrade() else { return Ok(false) };
        let Some(place) = self.known.front.places.enter(&self.entry.told.project) else { return Ok(false) };
        let left = self.known.head.left(self.known.started);
        if left.is_zero() {
            return Ok(false);
        }
        let counted = Counted::new(&self.entry);
        let parts: Vec<Part<'_>> = self.entry.order.iter().map(|index| self.content(*index)).collect();
        let ask = Ask {
            priority: self.entry.told.priority,
            flow: self.entry.told.flow,
            deadline: monotonic() + left.as_secs_f64(),
            layout: &self.entry.told.layout,
            parts: &parts,
        };
        let outcome = tokio::select! {
            outcome = slots.run(&ask) => Some(outcome),
            () = sleep(left) => None,
            reset = poll_fn(|context| respond.poll_reset(context)) => {
                drop((counted, place));
                self.fail(Failed::Left).await;
                return Err(Reset(reset.unwrap_or(Reason::CANCEL)));
            }
        };
        match outcome {
            Some(Outcome::Busy | Outcome::Gone { closing: true }) => {
                counted.never();
                Ok(false)
            }
            Some(Outcome::Answered(ran)) => {
                let id = self.found.id.as_deref().unwrap_or("");
                let Some(frame) =
                    answer(self.entry.told.kind, &self.entry.told.head, id.as_bytes(), &ran.layout, &ran.body)
                else {
                    drop(counted);
                    return self.refuse(respond, place, Failed::Lied).await;
                };
                counted.ran(&ran, self.entry.told.rows);
                self.send(respond, place, frame).await
            }
            Some(Outcome::Failed(told)) => {
                drop(counted);
                self.refuse(respond, place, Failed::Told(told)).await
            }
            Some(Outcome::Gone { closing: false }) => {
                drop(counted);
                self.refuse(respond, place, Failed::Crashed).await
            }
            Some(Outcome::Lied) => {
                drop(counted);
                self.refuse(respond, place, Failed::Lied).await
            }
            None => {
                drop(counted);
                self.refuse(respond, place, Failed::Late).await
            }
        }
    }

    fn content(&self, index: usize) -> Part<'_> {
        let content = &self.found.contents[index];
        let slices = self.known.message.slices(content.start, content.start + content.size).collect();
        Part { size: content.size, slices }
    }

    fn load(&self) -> Option<(HeaderName, HeaderValue)> {
        let spent = self.known.started.elapsed().as_secs_f64();
        let value = HeaderValue::from_str(&self.entry.told.statistics.get().load_text(spent)).ok()?;
        Some((LOAD.clone(), value))
    }

    async fn send(&self, respond: &mut SendResponse<Bytes>, place: Place, frame: Bytes) -> Result<bool, Reset> {
        // A large one keeps its call's place until the client has taken it.
        let held = (frame.len() > SMALL_ANSWER).then_some(place);
        send(respond, frame, self.load().into_iter().collect(), self.known.head.left(self.known.started)).await?;
        drop(held);
        Ok(true)
    }

    async fn refuse(&self, respond: &mut SendResponse<Bytes>, place: Place, failed: Failed) -> Result<bool, Reset> {
        drop(place);
        match self.fail(failed).await {
            Some(mut told) => {
                told.extend(self.load());
                refuse_with(respond, told)?;
            }
            None => refuse(respond, "13", "the worker failed; its log says why")?,
        }
        Ok(true)
    }

    async fn fail(&self, failed: Failed) -> Option<Headers> {
        let Known { front, head, started, .. } = self.known;
        let request_id = head.request_id.as_ref().and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
        fail(Arc::clone(front), Arc::clone(&self.entry), failed, request_id, started.elapsed()).await
    }
}

/// A call in its model's statistics; dropping it counts a failure.
struct Counted<'a> {
    entry: &'a Entry,
    begun: Instant,
    before: usize,
    open: bool,
}

impl<'a> Counted<'a> {
    fn new(entry: &'a Entry) -> Self {
        Self { entry, begun: Instant::now(), before: entry.told.statistics.get().begin(), open: true }
    }

    fn ran(mut self, answer: &Answer, rows: u32) {
        self.open = false;
        let waited = (self.begun.elapsed().as_secs_f64() - answer.seconds).max(0.0);
        self.entry.told.statistics.get().succeeded(&Ran {
            seconds: answer.seconds,
            queued: answer.queued,
            batch_rows: answer.rows,
            rows,
            waited,
            before: self.before,
        });
    }

    fn never(mut self) {
        self.open = false;
        self.entry.told.statistics.get().end();
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if self.open {
            self.entry.told.statistics.get().failed(self.begun.elapsed().as_secs_f64());
        }
    }
}
