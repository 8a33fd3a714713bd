//! The worker's half, for Python: the key, what was seen, and the numbers of sessions.

use std::sync::{Arc, Mutex};

use aws_lc_rs::signature::{UnparsedPublicKey, ED25519};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

use crate::rope::Rope;
use crate::seal::chunks::size_of;
use crate::seal::format::Key;
use crate::seal::opening::{Context, Now, Opener, Right};
use crate::seal::request::Request;
use crate::seal::seen::{Bounds, Id, Memory, Verdict};
use crate::seal::sessions::{Numbers, Session};
use crate::seal::suite::Pair;
use crate::{locked, monotonic};

/// A request, for Python.
#[pyclass(frozen, module = "sealane_native")]
pub struct Sent {
    body: PyBackedBytes,
    request: Request,
}

#[pymethods]
impl Sent {
    /// A serialized request; None where Python is to say what it means.
    #[staticmethod]
    fn parse(body: PyBackedBytes) -> Option<Self> {
        let request = Request::parse(&Rope::of(&body))?;
        Some(Self { body, request })
    }

    #[getter]
    fn deployment(&self) -> &str {
        &self.request.deployment
    }

    #[getter]
    fn method(&self) -> &str {
        &self.request.method
    }

    /// The sender's key; empty under a session.
    #[getter]
    fn sender<'py>(&self, py: Python<'py>) -> Bytes_<'py> {
        PyBytes::new(py, &self.request.sender)
    }
}

/// The right to answer a request, for Python.
#[pyclass(frozen, module = "sealane_native")]
pub struct Answering {
    opener: Arc<Opener>,
    right: Mutex<Option<Right>>,
}

#[pymethods]
impl Answering {
    /// The sealed answer, serialized; None for the second time.
    fn seal<'py>(&self, py: Python<'py>, plaintext: &[u8]) -> PyResult<Option<Bytes_<'py>>> {
        let Some(right) = locked(&self.right).take() else { return Ok(None) };
        let answer = self.opener.answer(right);
        let sealed = PyBytes::new_with(py, answer.size(plaintext), |out| {
            answer.put(out, plaintext);
            Ok(())
        });
        sealed.map(Some)
    }
}

/// The same for Python: the key, what was seen, and the numbers of sessions.
#[pyclass(frozen, module = "sealane_native")]
pub struct Opening {
    pub opener: Arc<Opener>,
}

#[pymethods]
impl Opening {
    /// Args:
    ///     suite: of the key pair.
    ///     private: the seed of the lattice key, where the suite has one, and the X25519 key.
    ///     key_id: of the public key.
    ///     bounds: of the memory of requests: ids in all and of one project, seconds that each is kept, and seconds of
    ///         which all are forgotten at once.
    ///
    /// Raises:
    ///     ValueError: no such key.
    #[new]
    fn new(suite: u32, private: &[u8], key_id: String, bounds: (usize, usize, f64, f64)) -> PyResult<Self> {
        let pair = Pair::new(suite, private).ok_or_else(|| PyValueError::new_err("no key pair of that suite"))?;
        let (capacity, of_project, keep_seconds, bucket_seconds) = bounds;
        let seen = Memory::new(Bounds { capacity, of_project, keep_seconds, bucket_seconds });
        Ok(Self { opener: Arc::new(Opener::new(pair, key_id, seen)) })
    }

    /// The plaintext of a request that may run now, and the right to answer it; None where it does not open, or was
    /// here before: Python says which.
    ///
    /// Args:
    ///     sent: the request.
    ///     context: project, id and thumbprint of the token, the sender's key, where that has this thumbprint, and the
    ///         digest of what the deployment serves.
    ///     now: milliseconds since 1970, and monotonic seconds.
    fn open<'py>(
        &self,
        py: Python<'py>,
        sent: &Sent,
        context: (String, String, String, PyBackedBytes, String),
        now: (u64, f64),
    ) -> Option<(Bytes_<'py>, Answering)> {
        let (project, token_id, thumbprint, sender, variant) = context;
        let context = Context::new((project, token_id, thumbprint), sender.to_vec(), variant);
        let now = Now { wall_ms: now.0, monotonic: now.1 };
        let unwrapped = py.detach(|| self.opener.unwrap(&sent.request, &context, &now))?;
        let (message, chunks) = (Rope::of(&sent.body), &sent.request.chunks);
        let plaintext = PyBytes::new_with(py, size_of(chunks)?, |out| {
            unwrapped.decrypt(&message, chunks, out).ok_or_else(|| PyValueError::new_err("it was altered"))
        });
        let (plaintext, right) = (plaintext.ok()?, unwrapped.right);
        let taken = self.opener.take(&right, &sent.request, &context, now.monotonic);
        let answering = Answering { opener: Arc::clone(&self.opener), right: Mutex::new(Some(right)) };
        taken.then_some((plaintext, answering))
    }

    /// What was wrapped to the key; None where it does not open.
    fn unwrap<'py>(&self, py: Python<'py>, wrapped: &[u8], info: &[u8]) -> Option<Bytes_<'py>> {
        let secret = py.detach(|| self.opener.pair.unwrap(wrapped, info));
        secret.map(|secret| PyBytes::new(py, &secret))
    }

    /// Ids that are remembered.
    #[getter]
    fn known(&self) -> usize {
        self.opener.seen.len()
    }

    /// Remember an id: whether it is new, and where there is no room for it, for how many seconds.
    ///
    /// Raises:
    ///     ValueError: it is no id.
    fn see(&self, request_id: &[u8], project: &str, issued_at_ms: u64, now: f64) -> PyResult<(bool, Option<f64>)> {
        let id = Id::try_from(request_id).map_err(|_| PyValueError::new_err("an id has 16 bytes"))?;
        Ok(match self.opener.seen.add(&id, project, issued_at_ms, now) {
            Verdict::New => (true, None),
            Verdict::Seen => (false, None),
            Verdict::Full(seconds) => (false, Some(seconds)),
        })
    }

    /// Keep a session whose requests may come in any order.
    ///
    /// Args:
    ///     session_id: its id.
    ///     keys: of requests and of answers.
    ///     sender: thumbprint of the key that opened it.
    ///     most: requests that it takes.
    ///     until: monotonic time at which it ends.
    fn keep(&self, session_id: Vec<u8>, keys: (Key, Key), sender: String, most: u32, until: f64) -> Numbers {
        let session = Arc::new(Session::new((&keys.0, &keys.1), sender, most, until, monotonic()));
        self.opener.sessions.keep(session_id, Arc::clone(&session));
        Numbers { session }
    }

    /// Forget a session.
    fn end(&self, session_id: &[u8]) {
        self.opener.sessions.end(session_id);
    }
}

type Bytes_<'py> = pyo3::Bound<'py, PyBytes>;

/// Whether an Ed25519 signature is right.
#[pyfunction]
pub fn verified(py: Python<'_>, key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    py.detach(|| UnparsedPublicKey::new(&ED25519, key).verify(message, signature).is_ok())
}
