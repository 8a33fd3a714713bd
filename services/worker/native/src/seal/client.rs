//! The client's half: envelopes, and the requests of a session.

use std::sync::{Arc, Mutex};

use aws_lc_rs::rand;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

use crate::locked;
use crate::rope::Rope;
use crate::seal::ahead::{self, Making};
use crate::seal::chunks::{self, size_of, Chunks, Cipher, Direction, ALONE};
use crate::seal::format::{
    envelope_hash, info, response_key, session_hash, session_keys, Bound, Digest, Key, Recipient, SessionBound, Turn,
    NONCE_BYTES,
};
use crate::seal::request::{put_chunks, put_request, size_of_chunks, Place, Request, Response};
use crate::seal::suite;

/// Field of a `SealedInferRequest`.
const CHUNKS: u8 = 8;

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).expect("the system has random bytes");
    bytes
}

fn wire<'py>(
    py: Python<'py>,
    head: &[u8],
    cipher: &Cipher,
    digest: &Digest,
    prefix: [u8; 4],
    plaintext: &[u8],
) -> PyResult<pyo3::Bound<'py, PyBytes>> {
    PyBytes::new_with(py, head.len() + size_of_chunks(plaintext.len()), |out| {
        let (start, rest) = out.split_at_mut(head.len());
        start.copy_from_slice(head);
        put_chunks(rest, CHUNKS, cipher, digest, prefix, plaintext);
        Ok(())
    })
}

fn opened<'py>(
    py: Python<'py>,
    cipher: &Cipher,
    digest: &Digest,
    prefix: [u8; 4],
    message: &Rope<'_>,
    chunks: &Chunks,
) -> Option<pyo3::Bound<'py, PyBytes>> {
    let plaintext = PyBytes::new_with(py, size_of(chunks)?, |out| {
        cipher.open_into(digest, prefix, message, chunks, out).ok_or_else(|| PyValueError::new_err("it was altered"))
    });
    plaintext.ok()
}

/// An envelope for a plaintext that is still to come: keys are wrapped and it is signed. It seals one plaintext.
#[pyclass(frozen, module = "sealane_native")]
pub struct Envelope {
    chunks: usize,
    made: Arc<Making<Made>>,
}

/// Suite, project, deployment, method, request id, token id and time.
type Said = (u32, String, String, String, PyBackedBytes, String, u64);
/// Key id, public key and variant's digest of a worker.
type Target = (String, PyBackedBytes, String);

/// What an envelope holds when it is made.
struct Made {
    head: Vec<u8>,
    digest: Digest,
    data_key: Mutex<Option<Key>>,
    /// By key id: how an answer of that worker is opened.
    secrets: Vec<(String, Key)>,
}

#[pymethods]
impl Envelope {
    /// Args:
    ///     chunks: that the plaintext must have: their number is signed.
    ///     bound: suite, project, deployment, method, request id, token id and time of the request.
    ///     targets: key id, public key and variant's digest of each worker that can open it.
    ///     sender: the client's private key.
    ///     ahead: make it in a thread of its own, and return at once.
    ///
    /// Raises:
    ///     ValueError: a key that cannot be sealed to. Where it is made ahead, `seal` says so.
    #[new]
    fn new(
        py: Python<'_>,
        chunks: usize,
        bound: Said,
        targets: Vec<Target>,
        sender: PyBackedBytes,
        ahead: bool,
    ) -> PyResult<Self> {
        let making = Arc::new(Making::default());
        let envelope = Self { chunks, made: Arc::clone(&making) };
        let make = move || making.make(|| Made::new(chunks, bound, targets, &sender));
        if ahead {
            ahead::ahead(Box::new(make));
        } else {
            py.detach(make);
            envelope.made(py)?;
        }
        Ok(envelope)
    }

    #[getter]
    fn digest(&self, py: Python<'_>) -> PyResult<Digest> {
        Ok(self.made(py)?.digest)
    }

    /// The serialized request; None for the second time, or for a plaintext with another number of chunks.
    fn seal<'py>(&self, py: Python<'py>, plaintext: &[u8]) -> PyResult<Option<pyo3::Bound<'py, PyBytes>>> {
        let made = self.made(py)?;
        let key = locked(&made.data_key).take();
        let Some(key) = key.filter(|_| chunks::count(plaintext.len()) == self.chunks) else { return Ok(None) };
        wire(py, &made.head, &Cipher::new(&key, Direction::Request), &made.digest, ALONE, plaintext).map(Some)
    }

    /// The plaintext of a serialized answer; None where no recipient of this request has made it.
    fn open<'py>(&self, py: Python<'py>, answer: &[u8]) -> PyResult<Option<pyo3::Bound<'py, PyBytes>>> {
        let made = self.made(py)?;
        Ok(made.open(py, answer))
    }
}

impl Envelope {
    fn made(&self, py: Python<'_>) -> PyResult<Arc<Made>> {
        let made = self.made.ready().or_else(|| py.detach(|| self.made.wait()));
        made.ok_or_else(|| PyValueError::new_err("the sealing key cannot be sealed to"))
    }
}

impl Made {
    fn new(chunks: usize, said: Said, targets: Vec<Target>, sender: &[u8]) -> Option<Self> {
        let (suite, project, deployment, method, request_id, token_id, issued_at_ms) = said;
        let sender = Ed25519KeyPair::from_seed_unchecked(sender).ok()?;
        let bound = Bound {
            suite,
            project: &project,
            deployment: &deployment,
            method: &method,
            request_id: &request_id,
            token_id: &token_id,
            issued_at_ms,
        };
        let data_key: Key = random();
        let (mut secrets, mut recipients) = (Vec::new(), Vec::new());
        for (key_id, public, variant) in targets {
            let secret: Key = random();
            let keys = [data_key, secret].concat();
            let wrapped = suite::wrap(suite, &public, &keys, &info(&bound, &key_id, &variant))?;
            secrets.push((key_id.clone(), secret));
            recipients.push(Recipient { key_id, variant, wrapped });
        }
        let public = sender.public_key().as_ref().to_vec();
        let digest = envelope_hash(&bound, &public, chunks, &recipients);
        let signature = sender.sign(&digest).as_ref().to_vec();
        let request = Request {
            suite,
            request_id: request_id.to_vec(),
            issued_at_ms,
            deployment,
            method,
            recipients,
            chunks: Vec::new(),
            sender: public,
            signature,
            session: None,
        };
        let mut head = Vec::with_capacity(2048);
        put_request(&mut head, &request);
        Some(Self { head, digest, data_key: Mutex::new(Some(data_key)), secrets })
    }

    fn open<'py>(&self, py: Python<'py>, answer: &[u8]) -> Option<pyo3::Bound<'py, PyBytes>> {
        let message = Rope::of(answer);
        let response = Response::parse(&message)?;
        let (key_id, secret) = self.secrets.iter().find(|(key_id, _)| *key_id == response.key_id)?;
        if response.nonce.len() != NONCE_BYTES {
            return None;
        }
        let key = response_key(&response.nonce, secret, key_id, &self.digest);
        let cipher = Cipher::new(&key, Direction::Response);
        opened(py, &cipher, &self.digest, ALONE, &message, &response.chunks)
    }
}

/// The client's half of a session.
#[pyclass(frozen, module = "sealane_native")]
pub struct SessionKeys {
    requests: Cipher,
    answers: Cipher,
    suite: u32,
    key_id: String,
    project: String,
    deployment: String,
    variant: String,
    session_id: Vec<u8>,
}

#[pymethods]
impl SessionKeys {
    /// Args:
    ///     secret: that was agreed on.
    ///     suite, key_id: of the worker's key.
    ///     project, deployment: of the requests.
    ///     variant: digest of what the worker is to be serving.
    ///     session_id: `request_id` of the envelope that opened it.
    #[new]
    fn new(
        secret: &[u8],
        suite: u32,
        key_id: String,
        project: String,
        deployment: String,
        variant: String,
        session_id: &[u8],
    ) -> Self {
        let (request, answer) = session_keys(secret, &key_id, session_id);
        let [requests, answers] =
            [Cipher::new(&request, Direction::Request), Cipher::new(&answer, Direction::Response)];
        Self { requests, answers, suite, key_id, project, deployment, variant, session_id: session_id.to_vec() }
    }

    /// A serialized request, and what it and its answer are bound to. Each number is for one request.
    ///
    /// Args:
    ///     plaintext: bytes.
    ///     said: its method, the id of the token that it goes with, and the time in milliseconds.
    ///     counter: its number.
    ///     end: whether it is the last.
    fn seal<'py>(
        &self,
        py: Python<'py>,
        plaintext: &[u8],
        said: (String, String, u64),
        counter: u32,
        end: bool,
    ) -> PyResult<(pyo3::Bound<'py, PyBytes>, Digest)> {
        let bound = SessionBound {
            suite: self.suite,
            key_id: &self.key_id,
            project: &self.project,
            deployment: &self.deployment,
            variant: &self.variant,
            session_id: &self.session_id,
        };
        let chunks = chunks::count(plaintext.len());
        let (method, token_id, issued_at_ms) = said;
        let turn = Turn { method: &method, counter, end, token_id: &token_id, issued_at_ms, chunks };
        let digest = session_hash(&bound, &turn);
        let (key_id, session_id) = (self.key_id.clone(), self.session_id.clone());
        let request = Request {
            suite: self.suite,
            issued_at_ms,
            deployment: self.deployment.clone(),
            method,
            session: Some(Place { key_id, session_id, counter, end }),
            ..Request::default()
        };
        let mut head = Vec::with_capacity(512);
        put_request(&mut head, &request);
        let wire = wire(py, &head, &self.requests, &digest, counter.to_be_bytes(), plaintext)?;
        Ok((wire, digest))
    }

    /// The plaintext of a serialized answer; None where it is not the worker's to this request.
    fn open<'py>(
        &self,
        py: Python<'py>,
        answer: &[u8],
        digest: &[u8],
        counter: u32,
    ) -> Option<pyo3::Bound<'py, PyBytes>> {
        let digest = Digest::try_from(digest).ok()?;
        let message = Rope::of(answer);
        let response = Response::parse(&message)?;
        if response.key_id != self.key_id || !response.nonce.is_empty() {
            return None;
        }
        opened(py, &self.answers, &digest, counter.to_be_bytes(), &message, &response.chunks)
    }
}
