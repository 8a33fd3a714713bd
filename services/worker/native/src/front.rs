//! The listener: connections over TLS and HTTP/2, and for how long each of them stays.

use std::collections::HashSet;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::Reason;
use pyo3::{FromPyObject, Py, PyAny};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{interval, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;

use crate::arrivals::Arrivals;
use crate::desk::Desk;
use crate::guard::{Alarm, Guarded};
use crate::monotonic;
use crate::places::Counters;
use crate::relay::Upstream;
use crate::runtime;
use crate::seal::opening::Opener;
use crate::table::Table;
use crate::tls::Identity;

const LOOK: Duration = Duration::from_secs(5);
const CERTIFICATE_LOOK_MILLISECONDS: u64 = 100;
/// A connection that was told that it is over is closed so much later.
const PARTING: Duration = Duration::from_secs(1);
/// Metadata up to here are read, so that those above the limit are refused; what is more ends the connection.
const READ_HEAD_BYTES: u32 = 320 << 10;
/// What a stream and a connection may send ahead of being read: of anybody, and of clients that are known, who would wait
/// for room in the middle of an image.
const STREAM_WINDOW: u32 = 512 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
const KNOWN_STREAM_WINDOW: u32 = 1 << 20;
const KNOWN_CONNECTION_WINDOW: u32 = 4 << 20;
const FRAME_BYTES: u32 = 64 << 10;

/// Of the listener, as Python's own has them (`sealane.rpc.limits.of_front`).
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct Limits {
    pub connections: usize,
    pub streams: u32,
    pub head_bytes: usize,
    pub handshake_seconds: f64,
    pub idle_seconds: f64,
    pub age_seconds: f64,
    pub age_grace_seconds: f64,
    unary_seconds: f64,
}

impl Limits {
    pub fn unary(&self) -> Duration {
        Duration::from_secs_f64(self.unary_seconds)
    }
}

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
    /// The same inside a seal.
    pub fail_inside: Py<PyAny>,
    /// Opens what came sealed.
    pub opener: Arc<Opener>,
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
    pub limits: Limits,
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
                Ok((socket, _)) if self.connections.fetch_add(1, Ordering::AcqRel) < self.limits.connections => {
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
                .max_concurrent_streams(self.limits.streams)
                .max_header_list_size(READ_HEAD_BYTES)
                .initial_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_frame_size(FRAME_BYTES)
                .max_concurrent_reset_streams(self.limits.streams as usize);
            if http2 {
                builder.handshake::<_, Bytes>(Guarded::new(stream, Arc::clone(&alarm))).await.ok()
            } else {
                None
            }
        };
        let mut connection =
            timeout(Duration::from_secs_f64(self.limits.handshake_seconds), handshake).await.ok()??;
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let client = Arc::new(Client {
            number,
            upstream: Upstream::new(self.upstream.clone(), self.limits.streams),
            calls: AtomicUsize::new(0),
            known: AtomicBool::new(false),
        });
        let (born, mut last_busy, mut closing) = (Instant::now(), Instant::now(), None);
        let [idle, age, grace] = [self.limits.idle_seconds, self.limits.age_seconds, self.limits.age_grace_seconds]
            .map(Duration::from_secs_f64);
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
                    if closing.is_none() && (last_busy.elapsed() > idle || born.elapsed() > age) {
                        connection.graceful_shutdown();
                        closing = Some(Instant::now());
                    }
                    if over.is_none() && closing.is_some_and(|since| since.elapsed() > grace) {
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

    /// Whether it is time to look for a renewed certificate: connections that come at once look once.
    fn looks_again(&self) -> bool {
        let now = (monotonic() * 1000.0) as u64;
        let before = self.looked.load(Ordering::Acquire);
        now >= before + CERTIFICATE_LOOK_MILLISECONDS
            && self.looked.compare_exchange(before, now, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// Counts one out, whatever happens.
pub struct CountedOut<'a>(pub &'a AtomicUsize);

impl Drop for CountedOut<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// One connection.
pub struct Client {
    pub number: u64,
    pub upstream: Upstream,
    pub calls: AtomicUsize,
    /// Whether a caller that Python has found good has called over this connection.
    pub known: AtomicBool,
}

pub fn bind(listen: &str) -> std::io::Result<(StdListener, SocketAddr)> {
    let listener = StdListener::bind(listen)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}
