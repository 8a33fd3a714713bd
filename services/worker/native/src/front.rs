//! The listener: TLS and HTTP/2, and for each call the one question whether Python has answered it before.

use std::future::poll_fn;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::header::{HeaderName, HeaderValue, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, Request, Response, StatusCode};
use pyo3::{Py, PyAny};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{watch, Semaphore};
use tokio::time::{interval, sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::failure::{fail, Failed};
use crate::guard::{Alarm, Guarded};
use crate::message::{answer, cut, Cut, Kind};
use crate::places::{Counters, Place};
use crate::relay::{relay, Begun, Reset, Upstream};
use crate::rope::Rope;
use crate::slots::{monotonic, Answer, Ask, Outcome, Part};
use crate::stats::Ran;
use crate::table::{key_of, Entry, Table, Ticket};
use crate::tls::Identity;
use crate::{runtime, STREAMS};

const HANDSHAKE: Duration = Duration::from_secs(5);
const IDLE: Duration = Duration::from_secs(300);
const AGE: Duration = Duration::from_secs(1800);
const AGE_GRACE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_secs(5);
const MAX_CONNECTIONS: usize = 1000;
/// Metadata of a call, as HPACK counts them; more is refused. What is far more ends the connection.
const HEAD_BYTES: usize = 16_384;
const FAR_MORE: u32 = 320 << 10;
/// What a stream and a connection may send ahead of being read.
const STREAM_WINDOW: u32 = 512 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
const FRAME_BYTES: u32 = 64 << 10;
/// Bodies that are read in here at the same time, and how large they are at most; others go to Python as they come.
const ARRIVING: usize = 128;
const BODY_BYTES: usize = 4 << 20;
/// Pieces of a body that are kept: who sends more of them sends nothing but overhead.
const PIECES: usize = 1024;
/// Flag and length of a message.
const FRAME_HEAD: usize = 5;
/// A call without a deadline gets this one, and none has a longer one.
const UNARY: Duration = Duration::from_secs(60);
/// Answers up to this size are handed over whole, whatever the client's window is.
const SMALL_ANSWER: usize = 64 << 10;

/// Metadata of a call that was looked at here, for Python alone: secret, ticket, whether it is to be traced.
static EXPRESS: HeaderName = HeaderName::from_static("x-sealane-express");
/// The client's connection, likewise.
static CONNECTION: HeaderName = HeaderName::from_static("x-sealane-connection");
static TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static STATUS: HeaderName = HeaderName::from_static("grpc-status");
static LOAD: HeaderName = HeaderName::from_static("x-sealane-load");
/// Metadata that no decision depends on, or that is looked at here.
const PLAIN: [&str; 10] = [
    "te",
    "content-type",
    "user-agent",
    "accept-encoding",
    "grpc-accept-encoding",
    "grpc-timeout",
    "authorization",
    "traceparent",
    "tracestate",
    "x-request-id",
];

/// Gives key and chain where they have changed since they were last asked for.
pub type Renewed = Box<dyn Fn() -> Option<(Vec<u8>, Vec<u8>)> + Send + Sync>;

pub struct Front {
    pub table: Arc<Table>,
    pub places: Arc<Counters>,
    pub identity: Arc<Identity>,
    pub acceptor: TlsAcceptor,
    pub renewed: Renewed,
    pub upstream: PathBuf,
    pub secret: String,
    /// Share of the calls without a trace that begin one.
    pub ratio: f64,
    /// Puts a failure in the words of the protocol, and into the log.
    pub fail: Py<PyAny>,
    pub arriving: Semaphore,
    pub connections: AtomicUsize,
    pub numbers: AtomicU64,
    pub dice: AtomicU64,
    pub draining: watch::Sender<bool>,
}

impl Front {
    pub fn arrivals() -> Semaphore {
        Semaphore::new(ARRIVING)
    }

    /// Take connections until draining begins.
    pub async fn run(self: Arc<Self>, listener: StdListener) {
        let mut draining = self.draining.subscribe();
        let Ok(listener) = TcpListener::from_std(listener) else { return };
        loop {
            let taken = tokio::select! {
                taken = listener.accept() => taken,
                _ = draining.wait_for(|draining| *draining) => return,
            };
            match taken {
                Ok((socket, _)) if self.connections.fetch_add(1, Ordering::AcqRel) < MAX_CONNECTIONS => {
                    runtime().spawn(Arc::clone(&self).connection(socket));
                }
                Ok(_) => {
                    self.connections.fetch_sub(1, Ordering::AcqRel);
                }
                // Out of descriptors, most likely: those who hold them come to their end.
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn connection(self: Arc<Self>, socket: TcpStream) {
        let _ = self.serve(socket).await; // a client that breaks off harms nobody else
        self.connections.fetch_sub(1, Ordering::AcqRel);
    }

    async fn serve(self: &Arc<Self>, socket: TcpStream) -> Option<()> {
        socket.set_nodelay(true).ok()?;
        let this = Arc::clone(self);
        // Looks at the disk, and where something has changed asks Python.
        tokio::task::spawn_blocking(move || {
            if let Some((key, chain)) = (this.renewed)() {
                let _ = this.identity.replace(&key, &chain); // the one before goes on
            }
        })
        .await
        .ok()?;
        let alarm = Arc::new(Alarm::default());
        let handshake = async {
            let stream = self.acceptor.accept(socket).await.ok()?;
            let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            let mut builder = h2::server::Builder::new();
            builder
                .max_concurrent_streams(STREAMS as u32)
                .max_header_list_size(FAR_MORE)
                .initial_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_frame_size(FRAME_BYTES)
                .max_concurrent_reset_streams(STREAMS);
            if http2 {
                builder.handshake::<_, Bytes>(Guarded::new(stream, Arc::clone(&alarm))).await.ok()
            } else {
                None
            }
        };
        let mut connection = timeout(HANDSHAKE, handshake).await.ok()??;
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let client =
            Arc::new(Client { number, upstream: Upstream::new(self.upstream.clone()), calls: AtomicUsize::new(0) });
        let (born, mut last_busy, mut closing) = (Instant::now(), Instant::now(), None);
        let mut look = interval(LOOK);
        let mut draining = self.draining.subscribe();
        loop {
            tokio::select! {
                call = connection.accept() => {
                    let (request, respond) = call?.ok()?;
                    client.calls.fetch_add(1, Ordering::AcqRel);
                    last_busy = Instant::now();
                    tokio::spawn(Arc::clone(self).call(Arc::clone(&client), request, respond));
                }
                _ = look.tick() => {
                    if client.calls.load(Ordering::Acquire) > 0 {
                        last_busy = Instant::now();
                    }
                    if closing.is_none() && (last_busy.elapsed() > IDLE || born.elapsed() > AGE) {
                        connection.graceful_shutdown();
                        closing = Some(Instant::now());
                    }
                    if closing.is_some_and(|since| since.elapsed() > AGE_GRACE) {
                        connection.abrupt_shutdown(Reason::NO_ERROR);
                    }
                }
                () = alarm.wait() => connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM),
                _ = draining.wait_for(|draining| *draining), if closing.is_none() => {
                    connection.graceful_shutdown();
                    closing = Some(Instant::now());
                }
            }
        }
    }

    async fn call(
        self: Arc<Self>,
        client: Arc<Client>,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) {
        if let Err(Reset(reason)) = self.answer(&client, request, &mut respond).await {
            respond.send_reset(reason);
        }
        client.calls.fetch_sub(1, Ordering::AcqRel);
    }

    async fn answer(
        self: &Arc<Self>,
        client: &Client,
        request: Request<RecvStream>,
        respond: &mut SendResponse<Bytes>,
    ) -> Result<(), Reset> {
        let started = Instant::now();
        let (mut parts, mut body) = request.into_parts();
        if size_of(&parts.headers) > HEAD_BYTES {
            return refuse(respond, "8", "the metadata are larger than 16 KiB; send less");
        }
        parts.headers.remove(&EXPRESS);
        parts.headers.remove(&CONNECTION);
        let (mut begun, mut ticket, mut sampled) = (Begun::default(), None, false);
        if let Some(head) = Head::of(parts.uri.path_and_query().map_or("", |path| path.as_str()), &parts.headers) {
            let credential = head.credential.as_bytes();
            // No byte of a body is read before Python has found its caller good.
            match self.table.caller(credential).and_then(|caller| Some((caller, self.arriving.try_acquire().ok()?))) {
                None => ticket = Some(self.table.begin(credential, None)),
                Some((caller, _arriving)) => {
                    begun = timeout(head.timeout.unwrap_or(UNARY), read(&mut body))
                        .await
                        .unwrap_or(Err(Reset(Reason::CANCEL)))?;
                    let message = Rope::new(&begun.chunks, FRAME_HEAD);
                    if let Some(found) = cut_whole(head.kind, &begun, &message) {
                        let key = key_of(caller, head.kind, &found.rest);
                        match self.table.entry(&key) {
                            Some(entry) => {
                                sampled = head.untraced && self.drawn();
                                if !sampled {
                                    let call = Express {
                                        front: self,
                                        entry,
                                        message: &message,
                                        found: &found,
                                        head: &head,
                                        started,
                                    };
                                    if call.run(respond).await? {
                                        return Ok(());
                                    }
                                }
                            }
                            None => ticket = Some(self.table.begin(credential, Some((key, found.contents)))),
                        }
                    }
                }
            }
            if !begun.chunks.is_empty() {
                shorten(&mut parts.headers, &head, started);
            }
        }
        self.mark(&mut parts.headers, client, ticket.as_ref(), sampled);
        relay(&client.upstream, Request::from_parts(parts, ()), begun, body, respond).await
    }

    fn mark(&self, headers: &mut HeaderMap, client: &Client, ticket: Option<&Ticket>, sampled: bool) {
        let number = ticket.map_or(0, |ticket| ticket.number);
        let told = format!("{}-{number}-{}", self.secret, u8::from(sampled));
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

/// The size of metadata by RFC 9113 section 6.5.2.
fn size_of(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum()
}

/// Answer with a status and nothing else.
fn refuse(respond: &mut SendResponse<Bytes>, status: &'static str, message: &'static str) -> Result<(), Reset> {
    let mut response = head();
    response.headers_mut().insert(&STATUS, HeaderValue::from_static(status));
    response.headers_mut().insert("grpc-message", HeaderValue::from_static(message));
    respond.send_response(response, true)?;
    Ok(())
}

struct Client {
    number: u64,
    upstream: Upstream,
    calls: AtomicUsize,
}

/// The head of a call that may have been answered before.
struct Head {
    kind: Kind,
    credential: HeaderValue,
    timeout: Option<Duration>,
    request_id: Option<HeaderValue>,
    /// Whether it is for this process to say whether the call is traced.
    untraced: bool,
}

impl Head {
    /// None where it is not a plain call of one of the two methods: with one credential, untraced, and no metadata that
    /// something may depend on.
    fn of(path: &str, headers: &HeaderMap) -> Option<Self> {
        let kind = match path {
            "/inference.GRPCInferenceService/ModelInfer" => Kind::OpenInference,
            "/tensorflow.serving.PredictionService/Predict" => Kind::TensorFlowServing,
            _ => return None,
        };
        if !headers.keys().all(|name| PLAIN.contains(&name.as_str())) {
            return None;
        }
        if !headers.get(CONTENT_TYPE)?.as_bytes().starts_with(b"application/grpc") {
            return None;
        }
        let mut credentials = headers.get_all(AUTHORIZATION).iter();
        let (credential, None) = (credentials.next()?.clone(), credentials.next()) else { return None };
        let timeout = match headers.get(&TIMEOUT) {
            Some(value) => Some(duration(value.as_bytes())?),
            None => None,
        };
        let traceparent = headers.get(&TRACEPARENT).map(HeaderValue::as_bytes);
        if traceparent.is_some_and(|value| !is_unsampled(value)) {
            return None;
        }
        let request_id = headers.get(&REQUEST_ID).cloned();
        Some(Self { kind, credential, timeout, request_id, untraced: traceparent.is_none() })
    }
}

/// A `traceparent` whose trace is not recorded; one that is malformed is Python's to look at.
fn is_unsampled(value: &[u8]) -> bool {
    value.len() == 55
        && value.iter().enumerate().all(|(at, byte)| {
            if matches!(at, 2 | 35 | 52) {
                *byte == b'-'
            } else {
                byte.is_ascii_hexdigit()
            }
        })
        && (value[54] as char).to_digit(16).is_some_and(|flags| flags & 1 == 0)
        && value[3..35].iter().any(|byte| *byte != b'0')
        && value[36..52].iter().any(|byte| *byte != b'0')
}

/// A `grpc-timeout`: at most eight digits and a unit.
fn duration(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Take the time that reading took off what Python is told.
fn shorten(headers: &mut HeaderMap, head: &Head, started: Instant) {
    let Some(timeout) = head.timeout else { return };
    let left = timeout.saturating_sub(started.elapsed()).min(UNARY);
    if let Ok(value) = HeaderValue::from_str(&format!("{}u", left.as_micros())) {
        headers.insert(&TIMEOUT, value);
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
            begun.chunks.push(chunk);
        }
    }
    Ok(begun)
}

/// The one message of a body that was read whole, uncompressed, and how it is cut.
fn cut_whole(kind: Kind, begun: &Begun, message: &Rope<'_>) -> Option<Cut> {
    let frame = Rope::new(&begun.chunks, 0);
    let head: Vec<u8> = (0..FRAME_HEAD).map_while(|at| frame.get(at)).collect();
    let size = u32::from_be_bytes(head.get(1..FRAME_HEAD)?.try_into().ok()?) as usize;
    if begun.ended && head[0] == 0 && message.len() == size {
        cut(kind, message)
    } else {
        None
    }
}

/// A call that Python has answered before.
struct Express<'a> {
    front: &'a Arc<Front>,
    entry: Arc<Entry>,
    message: &'a Rope<'a>,
    found: &'a Cut,
    head: &'a Head,
    started: Instant,
}

impl Express<'_> {
    /// Answer it; false where nothing ran and Python is to say why, or to help.
    async fn run(&self, respond: &mut SendResponse<Bytes>) -> Result<bool, Reset> {
        let Some(place) = self.front.places.enter(&self.entry.project) else { return Ok(false) };
        let left = self.head.timeout.unwrap_or(UNARY).min(UNARY).saturating_sub(self.started.elapsed());
        if left.is_zero() {
            return Ok(false);
        }
        let counted = Counted::new(&self.entry);
        let parts: Vec<Part<'_>> = self.entry.order.iter().map(|index| self.content(*index)).collect();
        let ask = Ask {
            priority: self.entry.priority,
            flow: self.entry.flow,
            deadline: monotonic() + left.as_secs_f64(),
            layout: &self.entry.layout,
            parts: &parts,
        };
        let outcome = tokio::select! {
            outcome = self.entry.slots.run(&ask) => Some(outcome),
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
                let Some(frame) = answer(self.entry.kind, &self.entry.head, id.as_bytes(), &ran.layout, &ran.body)
                else {
                    drop(counted);
                    return self.refuse(respond, place, Failed::Lied).await;
                };
                counted.ran(&ran, self.entry.rows, self.started);
                self.send(respond, place, frame).await.map(|()| true)
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
        let slices = self.message.slices(content.start, content.start + content.size).collect();
        Part { size: content.size, slices }
    }

    fn load(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(&self.entry.statistics.get().load_text(self.started.elapsed().as_secs_f64())).ok()
    }

    async fn send(&self, respond: &mut SendResponse<Bytes>, place: Place, frame: Bytes) -> Result<(), Reset> {
        let mut trailers = HeaderMap::with_capacity(2);
        trailers.insert(&STATUS, HeaderValue::from_static("0"));
        if let Some(load) = self.load() {
            trailers.insert(&LOAD, load);
        }
        let mut stream = respond.send_response(head(), false)?;
        if frame.len() <= SMALL_ANSWER {
            drop(place);
            stream.send_data(frame, false)?;
        } else {
            // A large one keeps its call's place until the client has taken it.
            let left = self.head.timeout.unwrap_or(UNARY).min(UNARY).saturating_sub(self.started.elapsed());
            let sent = timeout(left, send_all(&mut stream, frame)).await.unwrap_or(Err(Reset(Reason::CANCEL)));
            drop(place);
            sent?;
        }
        stream.send_trailers(trailers)?;
        Ok(())
    }

    async fn refuse(&self, respond: &mut SendResponse<Bytes>, place: Place, failed: Failed) -> Result<bool, Reset> {
        drop(place);
        let mut response = head();
        let headers = response.headers_mut();
        match self.fail(failed).await {
            Some(told) => told.into_iter().for_each(|(name, value)| {
                headers.insert(name, value);
            }),
            None => {
                headers.insert(&STATUS, HeaderValue::from_static("13"));
            }
        }
        if let Some(load) = self.load() {
            headers.insert(&LOAD, load);
        }
        respond.send_response(response, true)?;
        Ok(true)
    }

    async fn fail(&self, failed: Failed) -> Option<Vec<(HeaderName, HeaderValue)>> {
        let request_id = self.head.request_id.as_ref().and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
        fail(Arc::clone(self.front), Arc::clone(&self.entry), failed, request_id, self.started.elapsed()).await
    }
}

async fn send_all(stream: &mut h2::SendStream<Bytes>, mut frame: Bytes) -> Result<(), Reset> {
    while !frame.is_empty() {
        stream.reserve_capacity(frame.len());
        let room = poll_fn(|context| stream.poll_capacity(context)).await.ok_or(Reset(Reason::CANCEL))??;
        stream.send_data(frame.split_to(room.min(frame.len())), false)?;
    }
    Ok(())
}

fn head() -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
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
        Self { entry, begun: Instant::now(), before: entry.statistics.get().begin(), open: true }
    }

    fn ran(mut self, answer: &Answer, rows: u32, _started: Instant) {
        self.open = false;
        let waited = (self.begun.elapsed().as_secs_f64() - answer.seconds).max(0.0);
        self.entry.statistics.get().succeeded(&Ran {
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
        self.entry.statistics.get().end();
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if self.open {
            self.entry.statistics.get().failed(self.begun.elapsed().as_secs_f64());
        }
    }
}

pub fn bind(listen: &str) -> std::io::Result<(StdListener, SocketAddr)> {
    let listener = StdListener::bind(listen)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(more: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in [("te", "trailers"), ("content-type", "application/grpc")].iter().chain(more) {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";

    #[test]
    fn only_plain_calls_with_one_credential_are_looked_up() {
        let token = ("authorization", "Bearer x");
        assert!(Head::of(INFER, &headers(&[token])).is_some());
        assert!(Head::of("/inference.GRPCInferenceService/ModelReady", &headers(&[token])).is_none());
        assert!(Head::of(INFER, &headers(&[])).is_none());
        assert!(Head::of(INFER, &headers(&[token, token])).is_none());
        assert!(Head::of(INFER, &headers(&[token, ("dpop", "proof")])).is_none());
        assert!(Head::of(INFER, &headers(&[token, ("x-sealane-deployment", "other")])).is_none());
        assert!(Head::of(INFER, &headers(&[token, ("grpc-encoding", "gzip")])).is_none());
        assert!(Head::of(INFER, &headers(&[token, ("grpc-timeout", "1x")])).is_none());
    }

    #[test]
    fn a_trace_that_is_recorded_is_pythons() {
        let token = ("authorization", "Bearer x");
        let with = |flags: &str| {
            let value = format!("00-{}-{}-{flags}", "a".repeat(32), "b".repeat(16));
            Head::of(INFER, &headers(&[token, ("traceparent", &value)])).map(|head| head.untraced)
        };
        assert_eq!(with("00"), Some(false), "somebody has decided: no lot is drawn");
        assert_eq!(with("01"), None);
        assert_eq!(with("03"), None);
        assert_eq!(with("0"), None, "malformed");
    }

    #[test]
    fn timeouts_are_read() {
        assert_eq!(duration(b"5S"), Some(Duration::from_secs(5)));
        assert_eq!(duration(b"99999999n"), Some(Duration::from_nanos(99_999_999)));
        for wrong in ["", "S", "5", "5s", "-5S", "123456789S"] {
            assert_eq!(duration(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
