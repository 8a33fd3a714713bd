//! A call over HTTP/2 that Python has answered before.

use std::future::poll_fn;
use std::sync::Arc;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::Reason;
use http::header::{HeaderName, HeaderValue};

use crate::call::{Known, GRACE};
use crate::failure::{fail, Failed};
use crate::places::Place;
use crate::relay::Reset;
use crate::reply::{refuse, refuse_with, send, Headers, SMALL_ANSWER};
use crate::run::{Ended, Run};

static LOAD: HeaderName = HeaderName::from_static("x-sealane-load");

pub struct Express<'a> {
    pub known: &'a Known<'a>,
    pub run: Run<'a>,
}

impl Express<'_> {
    /// Answer it; false where nothing ran and Python is to say why, or to help.
    pub async fn answer(&self, place: Place, respond: &mut SendResponse<Bytes>) -> Result<bool, Reset> {
        let left = self.known.head.left(self.known.started);
        match self.run.run(left, poll_fn(|context| respond.poll_reset(context))).await {
            Ended::NotRun => Ok(false),
            Ended::Answered(frame) => self.send(respond, place, frame).await,
            Ended::Failed(failed) => {
                drop(place);
                if self.run.right.is_some() {
                    self.refuse_inside(respond, failed).await
                } else {
                    self.refuse(respond, failed).await
                }
            }
            Ended::Gone(reset) => {
                drop(place);
                if self.run.right.is_none() {
                    self.fail(Failed::Left).await;
                }
                Err(Reset(reset.unwrap_or(Reason::CANCEL)))
            }
        }
    }

    fn load(&self) -> Option<(HeaderName, HeaderValue)> {
        let spent = self.known.started.elapsed().as_secs_f64();
        let value = HeaderValue::from_str(&self.run.entry.told.statistics.get().load_text(spent)).ok()?;
        Some((LOAD.clone(), value))
    }

    async fn send(&self, respond: &mut SendResponse<Bytes>, place: Place, frame: Bytes) -> Result<bool, Reset> {
        // A large one keeps its call's place until the client has taken it.
        let held = (frame.len() > SMALL_ANSWER).then_some(place);
        send(respond, frame, self.load().into_iter().collect(), self.known.head.left(self.known.started)).await?;
        drop(held);
        Ok(true)
    }

    async fn refuse(&self, respond: &mut SendResponse<Bytes>, failed: Failed) -> Result<bool, Reset> {
        match self.fail(failed).await {
            Some(mut told) => {
                told.extend(self.load());
                refuse_with(respond, told)?;
            }
            None => refuse(respond, "13", "the worker failed; its log says why")?,
        }
        Ok(true)
    }

    /// What goes wrong after opening is sealed too.
    async fn refuse_inside(&self, respond: &mut SendResponse<Bytes>, failed: Failed) -> Result<bool, Reset> {
        match self.run.failed_inside(failed, self.request_id()).await {
            Some(frame) => {
                let left = self.known.head.left(self.known.started) + GRACE;
                send(respond, frame, self.load().into_iter().collect(), left).await?;
            }
            None => refuse(respond, "13", "the worker failed; its log says why")?,
        }
        Ok(true)
    }

    async fn fail(&self, failed: Failed) -> Option<Headers> {
        let Known { front, started, .. } = self.known;
        fail(Arc::clone(front), Arc::clone(&self.run.entry), failed, self.request_id(), started.elapsed()).await
    }

    fn request_id(&self) -> String {
        self.known.head.request_id.as_ref().and_then(|value| value.to_str().ok()).unwrap_or("").to_owned()
    }
}
