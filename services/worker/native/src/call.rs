//! One call: whether its body may be read in here, whether it was answered before, and who answers it.

use std::future::poll_fn;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request};
use tokio::time::{sleep, timeout};

use crate::answer::FRAME_HEAD;
use crate::arrivals::Arrival;
use crate::desk::{Letter, Reply};
use crate::express::Express;
use crate::front::{Client, CountedOut, Front};
use crate::head::{metadata, shorten, size_of, Head};
use crate::message::{cut, Content};
use crate::places::Place;
use crate::relay::{relay, Begun, Reset};
use crate::reply::{refuse, refuse_with, send};
use crate::rope::Rope;
use crate::run::Run;
use crate::sealed::Inside;
use crate::table::{key_of, Ticket};
use crate::{beside, monotonic};

/// How large bodies are at most that are read in here; others go to Python as they come.
const BODY_BYTES: usize = 4 << 20;
/// Pieces of a body that are kept: who sends more of them sends nothing but overhead.
const PIECES: usize = 1024;
const SMALL_PIECE: usize = 4096;
/// Python says itself when a call's time is over; it is given so much longer to do so.
pub const GRACE: Duration = Duration::from_millis(20);

/// Metadata of a call that is carried to Python, for Python alone: secret and ticket.
static EXPRESS: HeaderName = HeaderName::from_static("x-sealane-express");
/// The client's connection, likewise.
static CONNECTION: HeaderName = HeaderName::from_static("x-sealane-connection");

impl Front {
    /// One call, whatever comes of it.
    pub async fn call(
        self: Arc<Self>,
        client: Arc<Client>,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) {
        let _counted = CountedOut(&client.calls);
        if let Err(Reset(reason)) = self.answer(&client, request, &mut respond).await {
            respond.send_reset(reason);
        }
    }

    async fn answer(
        self: &Arc<Self>,
        client: &Client,
        request: Request<RecvStream>,
        respond: &mut SendResponse<Bytes>,
    ) -> Result<(), Reset> {
        let started = Instant::now();
        let (mut parts, mut body) = request.into_parts();
        if size_of(&parts.headers) > self.limits.head_bytes {
            return refuse(respond, "8", "the metadata are larger than 16 KiB; send less");
        }
        parts.headers.remove(&EXPRESS);
        parts.headers.remove(&CONNECTION);
        let (mut begun, mut ticket) = (Begun::default(), None);
        let path = parts.uri.path_and_query().map_or("", |path| path.as_str());
        if let Some(head) =
            Head::of(path, &parts.headers, &self.unary, self.limits.unary()).filter(|_| parts.method == Method::POST)
        {
            let credential = head.credential.as_bytes();
            // No byte of a body is read before Python has found its caller good.
            match self.table.caller(credential).and_then(|caller| Some((caller, self.arrivals.enter(caller)?))) {
                None => ticket = Some(self.table.begin(credential, None)),
                Some((caller, arrival)) => {
                    client.known.store(true, Ordering::Release);
                    begun = match timeout(head.left(started), read(&mut body)).await {
                        Ok(read) => read?,
                        Err(_) => return refuse(respond, "4", "the request was not here by the deadline"),
                    };
                    if let Some(message) = whole(&begun) {
                        let call = Known { front: self, head: &head, caller, message: &message, started };
                        return call.run(&parts.headers, &begun.chunks, arrival, respond).await;
                    }
                    if head.timeout.is_some() {
                        shorten(&mut parts.headers, head.left(started));
                    }
                }
            }
        }
        self.mark(&mut parts.headers, client, ticket.as_ref());
        relay(&client.upstream, Request::from_parts(parts, ()), begun, body, respond).await
    }

    fn mark(&self, headers: &mut HeaderMap, client: &Client, ticket: Option<&Ticket>) {
        let told = format!("{}-{}", self.secret, ticket.map_or(0, |ticket| ticket.number));
        for (name, value) in [(&EXPRESS, told), (&CONNECTION, client.number.to_string())] {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(name, value);
            }
        }
    }

    /// Whether the lot falls on this call to be traced (splitmix64, Steele et al. 2014).
    fn drawn(&self) -> bool {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut value = self.dice.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((value ^ (value >> 31)) >> 11) as f64) / ((1u64 << 53) as f64) < self.ratio
    }
}

/// Read a body to its end; the rest of one that is larger is left where it is.
async fn read(body: &mut RecvStream) -> Result<Begun, Reset> {
    let mut begun = Begun { chunks: Vec::new(), ended: body.is_end_stream() };
    let mut size = 0;
    while !begun.ended && size <= BODY_BYTES && begun.chunks.len() < PIECES {
        let Some(chunk) = body.data().await else {
            begun.ended = body.trailers().await?.is_none();
            break;
        };
        let chunk = chunk?;
        let _ = body.flow_control().release_capacity(chunk.len()); // fails only where the stream has ended
        begun.ended = body.is_end_stream();
        size += chunk.len();
        if !chunk.is_empty() {
            // A small piece would keep the whole buffer that it came in.
            begun.chunks.push(if chunk.len() < SMALL_PIECE { Bytes::copy_from_slice(&chunk) } else { chunk });
        }
    }
    Ok(begun)
}

/// The one message of a body that was read whole, and is not compressed.
fn whole(begun: &Begun) -> Option<Rope<'_>> {
    let mut bytes = begun.chunks.iter().flatten();
    let compressed = *bytes.next()? != 0;
    let size = (1..FRAME_HEAD).try_fold(0usize, |size, _| Some(size << 8 | usize::from(*bytes.next()?)))?;
    let message = Rope::new(&begun.chunks, FRAME_HEAD);
    (begun.ended && !compressed && message.len() == size).then_some(message)
}

/// A call of a known caller, read whole.
pub struct Known<'a> {
    pub front: &'a Arc<Front>,
    pub head: &'a Head<'a>,
    pub caller: u64,
    pub message: &'a Rope<'a>,
    pub started: Instant,
}

impl Known<'_> {
    /// Answer it as it was answered before, or have Python answer it.
    async fn run(
        &self,
        headers: &HeaderMap,
        chunks: &[Bytes],
        arrival: Arrival,
        respond: &mut SendResponse<Bytes>,
    ) -> Result<(), Reset> {
        let (mut ticket, mut sampled) = (None, false);
        if let Some((inside, place)) = self.opened() {
            sampled = self.head.untraced && self.front.drawn();
            let message = inside.message();
            let express = Express { known: self, run: inside.run(self.front, &message) };
            if !sampled && express.answer(place, respond).await? {
                return Ok(());
            }
        } else if let Some((kind, found)) = self.head.kind.and_then(|kind| Some((kind, cut(kind, self.message)?))) {
            let key = key_of(self.caller, kind, &found.rest);
            match self.front.table.entry(&key) {
                Some(entry) => {
                    sampled = self.head.untraced && self.front.drawn();
                    let run = Run { front: self.front, entry, message: self.message, found: &found, right: None };
                    let place = (!sampled).then(|| self.front.places.enter(&run.entry.told.project)).flatten();
                    if let Some(place) = place {
                        if (Express { known: self, run }).answer(place, respond).await? {
                            return Ok(());
                        }
                    }
                }
                None => ticket = Some(self.begin(Some((key, found.contents)))),
            }
        }
        let ticket = ticket.unwrap_or_else(|| self.begin(None));
        let letter = Letter {
            path: self.head.path.to_owned(),
            metadata: metadata(headers),
            deadline: monotonic() + self.head.left(self.started).as_secs_f64(),
            ticket: ticket.number,
            sampled,
            chunks: chunks.to_vec(),
            without: FRAME_HEAD,
            arrival,
        };
        self.ask(letter, respond).await
    }

    /// What is inside, where it came sealed, opens, and was answered before; and a place to run it.
    fn opened(&self) -> Option<(Inside, Place)> {
        if !self.head.sealed {
            return None;
        }
        let open = || Inside::of(self.front, self.caller, self.message, |project| self.front.places.enter(project));
        beside(self.message.len(), open)
    }

    fn begin(&self, request: Option<(Vec<u8>, Vec<Content>)>) -> Ticket {
        self.front.table.begin(self.head.credential.as_bytes(), request)
    }

    async fn ask(&self, letter: Letter, respond: &mut SendResponse<Bytes>) -> Result<(), Reset> {
        let mut waiting = self.front.desk.ask(letter);
        let reply = tokio::select! {
            reply = &mut waiting.reply => reply,
            () = sleep(self.head.left(self.started) + GRACE) => {
                waiting.leave(&self.front.desk);
                return refuse(respond, "4", "no answer by the deadline; allow more time");
            }
            reset = poll_fn(|context| respond.poll_reset(context)) => {
                waiting.leave(&self.front.desk);
                return Err(Reset(reset.unwrap_or(Reason::CANCEL)));
            }
        };
        match reply {
            Ok(Reply::Answer { message, trailers }) => {
                send(respond, message, trailers, self.head.left(self.started) + GRACE).await
            }
            Ok(Reply::Refusal(told)) => refuse_with(respond, told),
            Err(_) => refuse(respond, "14", "the worker is being stopped, or failed; try again"),
        }
    }
}
