//! A request that Python has answered before: from its contents to the model process and back, in its statistics.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::time::sleep;

use crate::answer::{answer, framed, Answered, FRAME_HEAD};
use crate::failure::{fail_inside, Failed};
use crate::front::Front;
use crate::message::Cut;
use crate::rope::Rope;
use crate::sealed::{Rights, ANSWER, STATUS};
use crate::slots::{Answer, Ask, Outcome, Part};
use crate::stats::Ran;
use crate::table::Entry;
use crate::{beside, monotonic};

pub struct Run<'a> {
    pub front: &'a Arc<Front>,
    pub entry: Arc<Entry>,
    /// The request, and how it is cut.
    pub message: &'a Rope<'a>,
    pub found: &'a Cut,
    /// Where it came sealed: the right to answer it.
    pub right: Option<Rights<'a>>,
}

pub enum Ended<G> {
    /// The model was not asked, and Python is to say why, or to help. Of what came unsealed also: its process was closed on
    /// purpose before it answered, and Python asks the one that is there now, as it does with its own calls.
    NotRun,
    /// Frame and message.
    Answered(Bytes),
    Failed(Failed),
    /// Nobody waits any more.
    Gone(G),
}

impl Run<'_> {
    /// Run it, unless that takes longer than is left, or somebody goes.
    pub async fn run<G>(&self, left: Duration, gone: impl Future<Output = G>) -> Ended<G> {
        let Some(slots) = self.entry.slots.upgrade() else { return Ended::NotRun };
        if left.is_zero() || !self.right.as_ref().is_none_or(Rights::take) {
            return Ended::NotRun;
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
            outcome = slots.run(&ask) => outcome,
            () = sleep(left) => return Ended::Failed(Failed::Late),
            gone = gone => return Ended::Gone(gone),
        };
        match outcome {
            // What came sealed runs once, and this may have run.
            Outcome::Gone { closing: true, asked: true } if self.right.is_some() => Ended::Failed(Failed::Closed),
            Outcome::Busy | Outcome::Gone { closing: true, .. } => {
                counted.never();
                if let Some(right) = &self.right {
                    right.take_back();
                }
                Ended::NotRun
            }
            Outcome::Answered(ran) => match self.frame(&ran) {
                Some(frame) => {
                    counted.ran(&ran, self.entry.told.rows);
                    Ended::Answered(frame)
                }
                None => Ended::Failed(Failed::Lied),
            },
            Outcome::Failed(told) => Ended::Failed(Failed::Told(told)),
            Outcome::Gone { closing: false, .. } => Ended::Failed(Failed::Crashed),
            Outcome::Lied => Ended::Failed(Failed::Lied),
        }
    }

    fn frame(&self, ran: &Answer) -> Option<Bytes> {
        let answered = Answered {
            kind: self.entry.told.kind,
            head: &self.entry.told.head,
            id: self.found.id.as_deref().unwrap_or("").as_bytes(),
            layout: &ran.layout,
            body: &ran.body,
        };
        match &self.right {
            Some(right) => {
                let plaintext = answer(&[ANSWER], &answered)?;
                beside(plaintext.len(), || right.seal(&plaintext))
            }
            None => framed(answer(&[0; FRAME_HEAD], &answered)?),
        }
    }

    fn content(&self, index: usize) -> Part<'_> {
        let content = &self.found.contents[index];
        let slices = self.message.slices(content.start, content.start + content.size).collect();
        Part { size: content.size, slices }
    }

    /// Frame of what is said inside the seal of one that failed; None where Python itself fails, or it was not sealed.
    pub async fn failed_inside(&self, failed: Failed, request_id: String) -> Option<Bytes> {
        let right = self.right.as_ref()?;
        let status = fail_inside(Arc::clone(self.front), Arc::clone(&self.entry), failed, request_id).await?;
        right.seal(&[&[STATUS], &status[..]].concat())
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
