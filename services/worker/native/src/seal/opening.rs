//! The worker's half: opens requests with the key pair of this process start, and seals their answers.
//!
//! `sealane.security.opener` is the same in Python, and has the last word: what does not open here is opened there, and
//! said there what is wrong with it. Both take from one memory what may run once.

use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand;
use aws_lc_rs::signature::{UnparsedPublicKey, ED25519};
use bytes::{Bytes, BytesMut};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

use crate::answer::{framed, FRAME_HEAD};
use crate::rope::Rope;
use crate::seal::chunks::{size_of, Chunks, Cipher, Direction, ALONE};
use crate::seal::format::{
    envelope_hash, info, response_key, session_hash, Bound, Digest, Key, SessionBound, Turn, KEY_BYTES, NONCE_BYTES,
};
use crate::seal::request::{put_chunks, response_head, size_of_chunks, Place, Request, ANSWER_CHUNKS};
use crate::seal::seen::{Bounds, Id, Memory, Verdict};
use crate::seal::sessions::{Numbers, Session, Sessions};
use crate::seal::suite::Pair;
use crate::{locked, monotonic};

const WINDOW_MS: u64 = 60_000;

/// What Python has found the envelopes of a caller for one deployment and method to be bound to.
pub struct Context {
    pub project: String,
    pub token_id: String,
    /// Of the key that the token is bound to.
    pub thumbprint: String,
    /// That key, where it was in an envelope.
    pub sender: Vec<u8>,
    /// Digest of what the deployment serves.
    pub variant: String,
}

/// What a request leaves open when it has opened: its one run, and its one answer.
pub enum Right {
    Alone { id: Id, secret: Vec<u8>, digest: Digest },
    Session { session: Arc<Session>, counter: u32, digest: Digest },
}

/// A request whose keys are there.
pub struct Unwrapped {
    pub right: Right,
    /// Of a request by itself; a session has its own.
    data: Option<Cipher>,
}

impl Unwrapped {
    /// Decrypt it into a place of the size that `chunks::size_of` says; None where it was altered.
    pub fn decrypt(&self, message: &Rope<'_>, chunks: &Chunks, out: &mut [u8]) -> Option<()> {
        match (&self.right, &self.data) {
            (Right::Alone { digest, .. }, Some(cipher)) => cipher.open_into(digest, ALONE, message, chunks, out),
            (Right::Session { session, counter, digest }, _) => {
                session.requests.open_into(digest, counter.to_be_bytes(), message, chunks, out)
            }
            (Right::Alone { .. }, None) => None,
        }
    }
}

/// The time by both clocks.
pub struct Now {
    /// Milliseconds since 1970.
    pub wall_ms: u64,
    pub monotonic: f64,
}

impl Now {
    pub fn here() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { wall_ms: wall.as_millis() as u64, monotonic: monotonic() }
    }
}

pub struct Opener {
    pair: Pair,
    key_id: String,
    seen: Memory,
    sessions: Sessions,
}

impl Opener {
    /// Plaintext of a request, and the right to run it; None for whatever Python is to look at.
    pub fn open(&self, request: &Request, message: &Rope<'_>, context: &Context) -> Option<(Vec<u8>, Right)> {
        let unwrapped = self.unwrap(request, context, &Now::here())?;
        let mut plaintext = vec![0; size_of(&request.chunks)?];
        unwrapped.decrypt(message, &request.chunks, &mut plaintext)?;
        Some((plaintext, unwrapped.right))
    }

    fn unwrap(&self, request: &Request, context: &Context, now: &Now) -> Option<Unwrapped> {
        let fresh = now.wall_ms.abs_diff(request.issued_at_ms) <= WINDOW_MS;
        if request.suite != self.pair.suite || context.variant.is_empty() || !fresh {
            return None;
        }
        match &request.session {
            Some(place) => self.in_session(request, place, context, now),
            None => self.alone(request, context),
        }
    }

    fn in_session(&self, request: &Request, place: &Place, context: &Context, now: &Now) -> Option<Unwrapped> {
        if place.key_id != self.key_id || place.end || request.has_own() {
            return None;
        }
        let session = self.sessions.find(&place.session_id, now.monotonic)?;
        if session.sender != context.thumbprint {
            return None;
        }
        let bound = SessionBound {
            suite: request.suite,
            key_id: &self.key_id,
            project: &context.project,
            deployment: &request.deployment,
            variant: &context.variant,
            session_id: &place.session_id,
        };
        let turn = Turn {
            method: &request.method,
            counter: place.counter,
            end: false,
            token_id: &context.token_id,
            issued_at_ms: request.issued_at_ms,
            chunks: request.chunks.len(),
        };
        let digest = session_hash(&bound, &turn);
        Some(Unwrapped { right: Right::Session { session, counter: place.counter, digest }, data: None })
    }

    fn alone(&self, request: &Request, context: &Context) -> Option<Unwrapped> {
        let id = Id::try_from(&request.request_id[..]).ok()?;
        let recipient = request.recipients.iter().find(|recipient| recipient.key_id == self.key_id)?;
        let mut names: Vec<&str> = request.recipients.iter().map(|recipient| recipient.key_id.as_str()).collect();
        names.sort_unstable();
        if context.sender.is_empty()
            || request.sender != context.sender
            || names.windows(2).any(|pair| pair[0] == pair[1])
            || self.seen.knows(&id)
        {
            return None;
        }
        let bound = Bound {
            suite: request.suite,
            project: &context.project,
            deployment: &request.deployment,
            method: &request.method,
            request_id: &id,
            token_id: &context.token_id,
            issued_at_ms: request.issued_at_ms,
        };
        let digest = envelope_hash(&bound, &request.sender, request.chunks.len(), &request.recipients);
        UnparsedPublicKey::new(&ED25519, &request.sender).verify(&digest, &request.signature).ok()?;
        let mut keys = self.pair.unwrap(&recipient.wrapped, &info(&bound, &self.key_id, &context.variant))?;
        if keys.len() != 2 * KEY_BYTES {
            return None;
        }
        let secret = keys.split_off(KEY_BYTES);
        let data = Cipher::new(&Key::try_from(keys).ok()?, Direction::Request);
        Some(Unwrapped { right: Right::Alone { id, secret, digest }, data: Some(data) })
    }

    /// Use the right to run up; false where somebody has done so before, or there is no room to remember it.
    pub fn take(&self, right: &Right, request: &Request, context: &Context, now: f64) -> bool {
        match right {
            Right::Alone { id, .. } => self.seen.add(id, &context.project, request.issued_at_ms, now) == Verdict::New,
            Right::Session { session, counter, .. } => session.take(*counter),
        }
    }

    /// Give it back: nothing has run, and nothing was answered.
    pub fn take_back(&self, right: &Right, context: &Context) {
        match right {
            Right::Alone { id, .. } => self.seen.take_back(id, &context.project),
            Right::Session { session, counter, .. } => session.take_back(*counter),
        }
    }

    /// Frame and message of the answer; the right is used up by it.
    pub fn seal(&self, right: Right, plaintext: &[u8]) -> Option<Bytes> {
        let answer = self.answer(right);
        let mut out = BytesMut::zeroed(FRAME_HEAD + answer.size(plaintext));
        answer.put(&mut out[FRAME_HEAD..], plaintext);
        framed(out)
    }

    fn answer(&self, right: Right) -> Answer {
        match right {
            Right::Alone { secret, digest, .. } => {
                let mut nonce = [0; NONCE_BYTES];
                rand::fill(&mut nonce).expect("the system has random bytes");
                let key = response_key(&nonce, &secret, &self.key_id, &digest);
                let cipher = Keys::Own(Cipher::new(&key, Direction::Response));
                Answer { head: response_head(&self.key_id, &nonce), cipher, digest, prefix: ALONE }
            }
            Right::Session { session, counter, digest } => {
                let prefix = counter.to_be_bytes();
                Answer { head: response_head(&self.key_id, &[]), cipher: Keys::Session(session), digest, prefix }
            }
        }
    }
}

enum Keys {
    Own(Cipher),
    Session(Arc<Session>),
}

/// An answer that is still to be sealed.
struct Answer {
    head: Vec<u8>,
    cipher: Keys,
    digest: Digest,
    prefix: [u8; 4],
}

impl Answer {
    fn size(&self, plaintext: &[u8]) -> usize {
        self.head.len() + size_of_chunks(plaintext.len())
    }

    fn put(&self, out: &mut [u8], plaintext: &[u8]) {
        let (head, chunks) = out.split_at_mut(self.head.len());
        head.copy_from_slice(&self.head);
        let cipher = match &self.cipher {
            Keys::Own(cipher) => cipher,
            Keys::Session(session) => &session.answers,
        };
        put_chunks(chunks, ANSWER_CHUNKS, cipher, &self.digest, self.prefix, plaintext);
    }
}

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
        Ok(Self { opener: Arc::new(Opener { pair, key_id, seen, sessions: Sessions::default() }) })
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
        let context = Context { project, token_id, thumbprint, sender: sender.to_vec(), variant };
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
