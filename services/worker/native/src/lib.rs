//! The native front of a Sealane worker: a Python extension that keeps the interpreter out of the daily call.
//!
//! It holds the client port. A call that Python has answered before, for the same caller and the same request but for
//! the contents of its tensors, goes from the socket to the model process and back in here (`front`, `table`,
//! `message`, `run`, `slots`). Every other call is Python's: threads of it take what was read of callers that are known
//! (`desk`), and the rest is carried to its own server as it comes (`relay`). See `docs/adr/0025-native-front.md`.
//!
//! What comes sealed is opened and answered in the same way (`sealed`, and `lane` for what a gateway has carried), by what
//! `seal` knows of the protocol, which clients use as well. See `docs/adr/0026-sealed-past-the-interpreter.md`.

mod answer;
mod arrivals;
mod call;
mod desk;
mod express;
mod failure;
mod front;
mod guard;
mod head;
mod lane;
mod layout;
mod message;
mod places;
mod relay;
mod reply;
mod rings;
mod rope;
mod run;
mod seal;
mod sealed;
mod slot;
mod slots;
mod stats;
mod table;
mod tls;

use std::net::TcpListener;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::desk::{Asked, Desk};
use crate::lane::Carried;
use crate::message::{cut, Kind};
use crate::places::Places;
use crate::rope::Rope;
use crate::seal::client::{Envelope, SessionKeys};
use crate::seal::opening::Context;
use crate::seal::sessions::Numbers;
use crate::seal::suite::wrapped;
use crate::seal::worker::{verified, Answering, Opening, Sent};
use crate::slots::Slots;
use crate::stats::Statistics;
use crate::table::{Lesson, Sealed, Table, Told};

/// What a mutex guards; one that was held in a panic as well, for no state here is left half changed.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Seconds of `CLOCK_MONOTONIC`, the clock of `time.monotonic()` and of the model process.
pub fn monotonic() -> f64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes the one struct.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// The threads of this module; they live as long as the process.
fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let processors = std::thread::available_parallelism().map_or(1, |count| count.get());
        Builder::new_multi_thread()
            // Half of the machine is the models'.
            .worker_threads((processors / 2).max(1))
            .max_blocking_threads(8)
            .thread_name("native-front")
            .enable_all()
            .build()
            .expect("threads can be started")
    })
}

/// Do work over so many bytes; where they are many the calls that wait for this thread go on in another one.
fn beside<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    const MANY: usize = 512 << 10;
    if bytes > MANY {
        tokio::task::block_in_place(work)
    } else {
        work()
    }
}

/// What Python says that a call came to, to be repeated.
#[pyclass(frozen, module = "sealane_native")]
struct Repeat {
    lesson: Lesson,
}

#[pymethods]
impl Repeat {
    /// Args:
    ///     project: of the caller.
    ///     model: the slots of the model's process, and its statistics.
    ///     tfserving: whether the messages are TensorFlow Serving's; the Open Inference Protocol's otherwise.
    ///     layout: of the request, for the model process.
    ///     tensors: name and bytes of each, in the layout's order.
    ///     how: rows, priority and flow of the request.
    ///     head: the answer without tensors and id, serialized.
    ///     about: comes back where a call fails.
    ///     sealed: what the request came sealed to: deployment, method, digest of what is served, id and thumbprint of
    ///         the token, the sender's key where it came by itself; and what was inside.
    #[new]
    #[allow(clippy::too_many_arguments)] // keyword arguments in Python
    fn new(
        py: Python<'_>,
        project: String,
        model: (Py<Slots>, Py<Statistics>),
        tfserving: bool,
        layout: Vec<u8>,
        tensors: Vec<(String, usize)>,
        how: (u32, u8, u32),
        head: Vec<u8>,
        about: Py<PyAny>,
        sealed: Option<CameSealed>,
    ) -> Self {
        let kind = if tfserving { Kind::TensorFlowServing } else { Kind::OpenInference };
        let ((slots, statistics), (rows, priority, flow)) = (model, how);
        let sealed = sealed.map(|came| {
            let (deployment, method, variant, token_id, thumbprint, sender, plaintext) = came;
            let context = Arc::new(Context::new((project.clone(), token_id, thumbprint), sender.to_vec(), variant));
            Sealed { deployment, method, context, cut: cut(kind, &Rope::of(&plaintext)) }
        });
        let told = Told { project, statistics, kind, layout, rows, priority, flow, head, about };
        let tensors = tensors.into_iter().map(|(name, size)| (name.into_bytes(), size)).collect();
        let slots = Arc::clone(&slots.borrow(py).inner);
        Self { lesson: Lesson { told: Arc::new(told), slots, tensors, sealed } }
    }
}

type CameSealed = (String, String, String, String, String, PyBackedBytes, PyBackedBytes);

/// The listener of a worker.
#[pyclass(frozen, module = "sealane_native")]
struct Front {
    front: Arc<front::Front>,
    listener: Mutex<Option<TcpListener>>,
    #[pyo3(get)]
    port: u16,
}

#[pymethods]
impl Front {
    /// Bound to its port; takes no connection before it is started.
    ///
    /// Args:
    ///     listen: host and port.
    ///     upstream: Unix socket of Python's server, and the secret by which it knows this front.
    ///     identity: key and certificate chain (PEM); `renewed` gives new ones, or None where they are as they were.
    ///     unary: paths of the methods with one message each way.
    ///     limits: of the listener, by the names of `front::Limits`.
    ///     places: the worker's admission.
    ///     ratio: share of calls without a trace that begin one.
    ///     fail: gets `about`, what happened, what the model said (JSON), the request id and the seconds spent; gives
    ///         the headers of the answer. And another that gets the same but the seconds, and gives what is said inside
    ///         a seal.
    ///     opening: opens what came sealed.
    ///
    /// Raises:
    ///     OSError: the port cannot be had.
    ///     ValueError: the certificate cannot be used.
    #[new]
    #[allow(clippy::too_many_arguments)] // keyword arguments in Python
    fn new(
        listen: &str,
        upstream: (String, String),
        identity: (Vec<u8>, Vec<u8>),
        renewed: Py<PyAny>,
        unary: Vec<String>,
        limits: front::Limits,
        places: &Places,
        ratio: f64,
        fail: (Py<PyAny>, Py<PyAny>),
        opening: &Opening,
    ) -> PyResult<Self> {
        let identity = Arc::new(tls::Identity::new(&identity.0, &identity.1).map_err(PyValueError::new_err)?);
        let config = tls::config(Arc::clone(&identity)).map_err(PyValueError::new_err)?;
        let (listener, address) =
            front::bind(listen).map_err(|error| PyOSError::new_err(format!("{listen} cannot be bound: {error}")))?;
        let seed = Instant::now().elapsed().as_nanos() as u64 ^ monotonic().to_bits();
        let renewed = Box::new(move || {
            Python::attach(|py| renewed.call0(py)?.extract::<Option<(Vec<u8>, Vec<u8>)>>(py)).unwrap_or(None)
        });
        let front = front::Front {
            table: Arc::new(Table::default()),
            places: Arc::clone(&places.counters),
            identity,
            acceptor: TlsAcceptor::from(config),
            renewed,
            upstream: upstream.0.into(),
            secret: upstream.1,
            ratio,
            fail: fail.0,
            fail_inside: fail.1,
            opener: Arc::clone(&opening.opener),
            arrivals: Arc::default(),
            connections: AtomicUsize::new(0),
            numbers: AtomicU64::new(1),
            dice: AtomicU64::new(seed),
            looked: AtomicU64::new(0),
            draining: watch::Sender::new(false),
            desk: Desk::default(),
            unary: unary.into_iter().collect(),
            limits,
        };
        Ok(Self { front: Arc::new(front), listener: Mutex::new(Some(listener)), port: address.port() })
    }

    /// Take connections.
    fn start(&self) -> PyResult<()> {
        let listener = locked(&self.listener).take();
        let listener = listener.ok_or_else(|| PyRuntimeError::new_err("it was started already"))?;
        runtime().spawn(Arc::clone(&self.front).run(listener));
        Ok(())
    }

    /// Take no more, and wait so many seconds for the connections to end.
    fn stop(&self, py: Python<'_>, grace: f64) {
        locked(&self.listener).take();
        self.front.draining.send_replace(true);
        let until = Instant::now() + Duration::from_secs_f64(grace);
        py.detach(|| {
            while self.front.connections.load(Ordering::Acquire) > 0 && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
        });
    }

    /// The next call for Python, and whether no other thread waits for one; None when there will be none.
    fn take(&self, py: Python<'_>) -> Option<(Asked, bool)> {
        py.detach(|| self.front.desk.take())
    }

    /// A call with a credential that came over a lane, and that Python has looked at.
    fn carried(&self, credential: String) -> Carried {
        Carried::new(&self.front, credential)
    }

    /// Have the threads that take calls end.
    fn close(&self) {
        self.front.desk.close();
    }

    /// Repeat nothing any more until it is learned anew.
    fn forget(&self) {
        self.front.table.forget();
    }

    /// What the call of a ticket came to: its caller is good until then (monotonic seconds), and so is `repeat`.
    /// False where that came too late, or does not fit what was asked.
    fn learn(&self, ticket: u64, until: f64, repeat: Option<&Repeat>) -> bool {
        self.front.table.learn(ticket, until, repeat.map(|repeat| &repeat.lesson))
    }
}

#[pymodule]
fn sealane_native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    // Of what Python expects (`sealane.native`): another one where something that is there changes.
    module.add("INTERFACE", 2)?;
    module.add_class::<Places>()?;
    module.add_class::<Slots>()?;
    module.add_class::<Statistics>()?;
    module.add_class::<Repeat>()?;
    module.add_class::<Asked>()?;
    module.add_class::<Front>()?;
    module.add_class::<Opening>()?;
    module.add_class::<Carried>()?;
    module.add_class::<Sent>()?;
    module.add_class::<Answering>()?;
    module.add_class::<Numbers>()?;
    module.add_class::<Envelope>()?;
    module.add_class::<SessionKeys>()?;
    module.add_function(wrap_pyfunction!(verified, module)?)?;
    module.add_function(wrap_pyfunction!(wrapped, module)?)?;
    Ok(())
}
