//! The listener: TLS and HTTP/2, and for each call the one question whether Python has answered it before.

use std::collections::HashSet;
use std::future::poll_fn;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::header::{HeaderName, HeaderValue, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use pyo3::{Py, PyAny};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{interval, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;

use crate::arrivals::{Arrival, Arrivals};
use crate::desk::{Desk, Headers, Letter, Reply};
use crate::failure::{fail, Failed};
use crate::guard::{Alarm, Guarded};
use crate::message::{answer, cut, Content, Cut, Kind};
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
/// A connection that was told that it is over is closed so much later.
const PARTING: Duration = Duration::from_secs(1);
const AGE_GRACE: Duration = Duration::from_secs(30);
const LOOK_MILLISECONDS: u64 = 100;
const LOOK: Duration = Duration::from_secs(5);
const MAX_CONNECTIONS: usize = 1000;
/// Metadata of a call, as HPACK counts them; more is refused. What is far more ends the connection.
const HEAD_BYTES: usize = 16_384;
const FAR_MORE: u32 = 320 << 10;
/// What a stream and a connection may send ahead of being read: of anybody, and of clients that are known. Who has to wait
/// for room in the middle of an image is answered a fifth later.
const STREAM_WINDOW: u32 = 512 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
const KNOWN_STREAM_WINDOW: u32 = 1 << 20;
const KNOWN_CONNECTION_WINDOW: u32 = 4 << 20;
const FRAME_BYTES: u32 = 64 << 10;
/// How large bodies are at most that are read in here; others go to Python as they come.
const BODY_BYTES: usize = 4 << 20;
/// Pieces of a body that are kept: who sends more of them sends nothing but overhead.
const PIECES: usize = 1024;
const SMALL_PIECE: usize = 4096;
/// A longer credential is no token of ours.
const MAX_CREDENTIAL: usize = 4096 + 16;
/// Flag and length of a message.
const FRAME_HEAD: usize = 5;
/// A call without a deadline gets this one, and none has a longer one.
const UNARY: Duration = Duration::from_secs(60);
/// Python says itself when a call's time is over; it is given so much longer to do so.
const GRACE: Duration = Duration::from_millis(20);
/// Answers up to this size are handed over whole, whatever the client's window is.
const SMALL_ANSWER: usize = 64 << 10;

/// Metadata of a call that is carried to Python, for Python alone: secret and ticket.
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
    pub arrivals: Arc<Arrivals>,
    pub connections: AtomicUsize,
    pub numbers: AtomicU64,
    pub dice: AtomicU64,
    /// When the certificate was last looked at, in milliseconds.
    pub looked: AtomicU64,
    pub draining: watch::Sender<bool>,
    /// Calls for Python.
    pub desk: Desk,
    /// Paths of the methods with one message each way.
    pub unary: HashSet<String>,
}

impl Front {
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
        let _counted = CountedOut(&self.connections);
        let _ = self.serve(socket).await; // a client that breaks off harms nobody else
    }

    async fn serve(self: &Arc<Self>, socket: TcpStream) -> Option<()> {
        socket.set_nodelay(true).ok()?;
        if self.looks_again() {
            let this = Arc::clone(self);
            // Looks at the disk, and where something has changed asks Python.
            let looked = tokio::task::spawn_blocking(move || {
                if let Some((key, chain)) = (this.renewed)() {
                    let _ = this.identity.replace(&key, &chain); // the one before goes on
                }
            });
            looked.await.ok()?;
        }
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
        let client = Arc::new(Client {
            number,
            upstream: Upstream::new(self.upstream.clone()),
            calls: AtomicUsize::new(0),
            known: AtomicBool::new(false),
        });
        let (born, mut last_busy, mut closing) = (Instant::now(), Instant::now(), None);
        let mut look = interval(LOOK);
        let mut draining = self.draining.subscribe();
        let (mut trusted, mut over) = (false, None);
        loop {
            tokio::select! {
                call = connection.accept() => {
                    let (request, respond) = call?.ok()?;
                    if !trusted && client.known.load(Ordering::Acquire) {
                        trusted = true;
                        connection.set_target_window_size(KNOWN_CONNECTION_WINDOW);
                        connection.set_initial_window_size(KNOWN_STREAM_WINDOW).ok()?;
                    }
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
                    if over.is_none() && closing.is_some_and(|since| since.elapsed() > AGE_GRACE) {
                        connection.abrupt_shutdown(Reason::NO_ERROR);
                        over = Some(Instant::now() + PARTING);
                    }
                }
                () = alarm.wait() => {
                    connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                    over = Some(Instant::now() + PARTING);
                }
                // One that reads nothing hears of no end.
                () = sleep_until(over.unwrap_or(born).into()), if over.is_some() => return None,
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
        if size_of(&parts.headers) > HEAD_BYTES {
            return refuse(respond, "8", "the metadata are larger than 16 KiB; send less");
        }
        parts.headers.remove(&EXPRESS);
        parts.headers.remove(&CONNECTION);
        let (mut begun, mut ticket) = (Begun::default(), None);
        let path = parts.uri.path_and_query().map_or("", |path| path.as_str());
        if let Some(head) = Head::of(path, &parts.headers, &self.unary).filter(|_| parts.method == Method::POST) {
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
                    shorten(&mut parts.headers, &head, started);
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

    /// Whether it is time to look for a renewed certificate: connections that come at once look once.
    fn looks_again(&self) -> bool {
        let now = (monotonic() * 1000.0) as u64;
        let before = self.looked.load(Ordering::Acquire);
        now >= before + LOOK_MILLISECONDS
            && self.looked.compare_exchange(before, now, Ordering::AcqRel, Ordering::Acquire).is_ok()
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

/// Counts one out, whatever happens.
struct CountedOut<'a>(&'a AtomicUsize);

impl Drop for CountedOut<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

struct Client {
    number: u64,
    upstream: Upstream,
    calls: AtomicUsize,
    /// Whether a caller that Python has found good has called over this connection.
    known: AtomicBool,
}

/// The head of a call with one message each way and one credential.
struct Head {
    path: String,
    /// Its message, where it may have been answered before: with no metadata that something may depend on, untraced.
    kind: Option<Kind>,
    credential: HeaderValue,
    timeout: Option<Duration>,
    request_id: Option<HeaderValue>,
    /// Whether it is for this process to say whether the call is traced.
    untraced: bool,
}

impl Head {
    /// None where it is anything else, or unusual.
    fn of(path: &str, headers: &HeaderMap, unary: &HashSet<String>) -> Option<Self> {
        if !unary.contains(path) || !headers.get(CONTENT_TYPE)?.as_bytes().starts_with(b"application/grpc") {
            return None;
        }
        let mut credentials = headers.get_all(AUTHORIZATION).iter();
        let (credential, None) = (credentials.next()?.clone(), credentials.next()) else { return None };
        if credential.len() > MAX_CREDENTIAL {
            return None; // Python does not look at it either
        }
        let timeout = match headers.get(&TIMEOUT) {
            Some(value) => Some(duration(value.as_bytes())?),
            None => None,
        };
        let traceparent = headers.get(&TRACEPARENT).map(HeaderValue::as_bytes);
        let plain = headers.keys().all(|name| PLAIN.contains(&name.as_str())) && traceparent.is_none_or(is_unsampled);
        Some(Self {
            path: path.to_owned(),
            kind: if plain { kind_of(path) } else { None },
            credential,
            timeout,
            request_id: headers.get(&REQUEST_ID).cloned(),
            untraced: traceparent.is_none(),
        })
    }

    /// What is left of the time that its caller gives it.
    fn left(&self, started: Instant) -> Duration {
        self.timeout.unwrap_or(UNARY).min(UNARY).saturating_sub(started.elapsed())
    }
}

fn kind_of(path: &str) -> Option<Kind> {
    match path {
        "/inference.GRPCInferenceService/ModelInfer" => Some(Kind::OpenInference),
        "/tensorflow.serving.PredictionService/Predict" => Some(Kind::TensorFlowServing),
        _ => None,
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
            // A small piece would keep the whole buffer that it came in.
            begun.chunks.push(if chunk.len() < SMALL_PIECE { Bytes::copy_from_slice(&chunk) } else { chunk });
        }
    }
    Ok(begun)
}

/// The one message of a body that was read whole, and is not compressed.
fn whole(begun: &Begun) -> Option<Rope<'_>> {
    let frame = Rope::new(&begun.chunks, 0);
    let head: Vec<u8> = (0..FRAME_HEAD).map_while(|at| frame.get(at)).collect();
    let size = u32::from_be_bytes(head.get(1..FRAME_HEAD)?.try_into().ok()?) as usize;
    let message = Rope::new(&begun.chunks, FRAME_HEAD);
    (begun.ended && head[0] == 0 && message.len() == size).then_some(message)
}

/// A call of a known caller, read whole.
struct Known<'a> {
    front: &'a Arc<Front>,
    head: &'a Head,
    caller: u64,
    message: &'a Rope<'a>,
    started: Instant,
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
        if let Some((kind, found)) = self.head.kind.and_then(|kind| Some((kind, cut(kind, self.message)?))) {
            let key = key_of(self.caller, kind, &found.rest);
            match self.front.table.entry(&key) {
                Some(entry) => {
                    sampled = self.head.untraced && self.front.drawn();
                    if !sampled && (Express { known: self, entry, found: &found }).run(respond).await? {
                        return Ok(());
                    }
                }
                None => ticket = Some(self.begin(Some((key, found.contents)))),
            }
        }
        let ticket = ticket.unwrap_or_else(|| self.begin(None));
        let letter = Letter {
            path: self.head.path.clone(),
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
            Ok(Reply::Refusal(told)) => {
                let mut response = head();
                told.into_iter().for_each(|(name, value)| {
                    response.headers_mut().append(name, value);
                });
                respond.send_response(response, true)?;
                Ok(())
            }
            Err(_) => refuse(respond, "14", "the worker is being stopped, or failed; try again"),
        }
    }
}

/// Metadata as Python's server gives them: none of the transport's own, and no bytes.
fn metadata(headers: &HeaderMap) -> Vec<(String, String)> {
    let transports =
        |name: &str| name.starts_with("grpc-") || matches!(name, "te" | "content-type" | "accept-encoding");
    let told = headers.iter().filter(|(name, _)| !transports(name.as_str()));
    told.map(|(name, value)| {
        let binary = name.as_str().ends_with("-bin");
        let text = if binary { String::new() } else { String::from_utf8_lossy(value.as_bytes()).into_owned() };
        (name.as_str().to_owned(), text)
    })
    .collect()
}

/// A call that Python has answered before.
struct Express<'a> {
    known: &'a Known<'a>,
    entry: Arc<Entry>,
    found: &'a Cut,
}

impl Express<'_> {
    /// Answer it; false where nothing ran and Python is to say why, or to help.
    async fn run(&self, respond: &mut SendResponse<Bytes>) -> Result<bool, Reset> {
        let Some(slots) = self.entry.slots.upgrade() else { return Ok(false) };
        let Some(place) = self.known.front.places.enter(&self.entry.project) else { return Ok(false) };
        let left = self.known.head.left(self.known.started);
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
                let Some(frame) = answer(self.entry.kind, &self.entry.head, id.as_bytes(), &ran.layout, &ran.body)
                else {
                    drop(counted);
                    return self.refuse(respond, place, Failed::Lied).await;
                };
                counted.ran(&ran, self.entry.rows);
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

    fn load(&self) -> Option<HeaderValue> {
        let spent = self.known.started.elapsed().as_secs_f64();
        HeaderValue::from_str(&self.entry.statistics.get().load_text(spent)).ok()
    }

    async fn send(&self, respond: &mut SendResponse<Bytes>, place: Place, frame: Bytes) -> Result<bool, Reset> {
        let large = frame.len() > SMALL_ANSWER;
        // A large one keeps its call's place until the client has taken it.
        let held = large.then_some(place);
        let trailers = self.load().map(|load| (LOAD.clone(), load)).into_iter().collect();
        send(respond, frame, trailers, self.known.head.left(self.known.started)).await?;
        drop(held);
        Ok(true)
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
        let Known { front, head, started, .. } = self.known;
        let request_id = head.request_id.as_ref().and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
        fail(Arc::clone(front), Arc::clone(&self.entry), failed, request_id, started.elapsed()).await
    }
}

/// Send an answer; a large one as the client takes it, for so long at most.
async fn send(respond: &mut SendResponse<Bytes>, frame: Bytes, told: Headers, left: Duration) -> Result<(), Reset> {
    let mut trailers = HeaderMap::with_capacity(1 + told.len());
    trailers.insert(&STATUS, HeaderValue::from_static("0"));
    trailers.extend(told);
    let mut stream = respond.send_response(head(), false)?;
    if frame.len() <= SMALL_ANSWER {
        stream.send_data(frame, false)?;
    } else {
        timeout(left, send_all(&mut stream, frame)).await.unwrap_or(Err(Reset(Reason::CANCEL)))?;
    }
    stream.send_trailers(trailers)?;
    Ok(())
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

    fn ran(mut self, answer: &Answer, rows: u32) {
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

    const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
    const READY: &str = "/inference.GRPCInferenceService/ModelReady";
    const TOKEN: (&str, &str) = ("authorization", "Bearer x");

    fn of(path: &str, more: &[(&'static str, &str)]) -> Option<Head> {
        let mut headers = HeaderMap::new();
        for (name, value) in [("te", "trailers"), ("content-type", "application/grpc")].iter().chain(more) {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        Head::of(path, &headers, &HashSet::from([INFER.to_owned(), READY.to_owned()]))
    }

    fn kind(path: &str, more: &[(&'static str, &str)]) -> Option<Kind> {
        of(path, more).and_then(|head| head.kind)
    }

    #[test]
    fn only_calls_with_one_credential_are_read_here() {
        assert!(of(INFER, &[TOKEN]).is_some());
        assert!(of(READY, &[TOKEN]).is_some());
        assert!(of("/inference.GRPCInferenceService/ModelStreamInfer", &[TOKEN]).is_none());
        assert!(of(INFER, &[]).is_none());
        assert!(of(INFER, &[TOKEN, TOKEN]).is_none());
        assert!(of(INFER, &[TOKEN, ("grpc-timeout", "1x")]).is_none());
    }

    #[test]
    fn only_plain_calls_are_looked_up() {
        assert_eq!(kind(INFER, &[TOKEN]), Some(Kind::OpenInference));
        assert_eq!(kind(READY, &[TOKEN]), None);
        for odd in [("dpop", "proof"), ("x-sealane-deployment", "other"), ("grpc-encoding", "gzip")] {
            assert_eq!(kind(INFER, &[TOKEN, odd]), None, "{odd:?}");
        }
    }

    #[test]
    fn a_trace_that_is_recorded_is_pythons() {
        let with = |flags: &str| {
            let value = format!("00-{}-{}-{flags}", "a".repeat(32), "b".repeat(16));
            let head = of(INFER, &[TOKEN, ("traceparent", &value)]).unwrap();
            (head.kind.is_some(), head.untraced)
        };
        assert_eq!(with("00"), (true, false), "somebody has decided: no lot is drawn");
        assert_eq!(with("01"), (false, false));
        assert_eq!(with("03"), (false, false));
        assert_eq!(with("0"), (false, false), "malformed");
        assert!(of(INFER, &[TOKEN]).unwrap().untraced);
    }

    #[test]
    fn the_transports_metadata_are_not_told() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("te", "trailers"), ("grpc-timeout", "1S"), ("x-a", "1"), ("x-a", "2"), ("x-bin", "AA")] {
            headers.append(name, HeaderValue::from_static(value));
        }
        let told = metadata(&headers);
        let told: Vec<_> = told.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(told, [("x-a", "1"), ("x-a", "2"), ("x-bin", "")]);
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
