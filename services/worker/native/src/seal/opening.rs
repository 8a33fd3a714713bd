//! The worker's half: opens requests with the key pair of this process start, and seals their answers.
//!
//! `sealane.security.opener` is the same in Python, and has the last word: what does not open here is opened there, and
//! said there what is wrong with it. Both take from one memory what may run once.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand;
use aws_lc_rs::signature::{UnparsedPublicKey, ED25519};
use bytes::{Bytes, BytesMut};

use crate::answer::{framed, FRAME_HEAD};
use crate::monotonic;
use crate::rope::Rope;
use crate::seal::chunks::{size_of, Chunks, Cipher, Direction, ALONE};
use crate::seal::format::{
    envelope_hash, info, response_key, session_hash, Bound, Digest, Key, SessionBound, Turn, KEY_BYTES, NONCE_BYTES,
};
use crate::seal::request::{put_chunks, response_head, size_of_chunks, Place, Request, ANSWER_CHUNKS};
use crate::seal::seen::{Id, Memory, Verdict};
use crate::seal::sessions::{Session, Sessions};
use crate::seal::suite::Pair;

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
    /// How many requests in a row have opened by it and were none to repeat.
    pub misses: AtomicU32,
}

impl Context {
    /// Args: project, id and thumbprint of the token; the sender's key; digest of what is served.
    pub fn new(token: (String, String, String), sender: Vec<u8>, variant: String) -> Self {
        let (project, token_id, thumbprint) = token;
        Self { project, token_id, thumbprint, sender, variant, misses: AtomicU32::new(0) }
    }

    /// Whether it is worth to open by it: who always asks for something else is opened for in Python, once.
    pub fn pays(&self) -> bool {
        const MISSES: u32 = 8;
        self.misses.load(Ordering::Relaxed) < MISSES
    }

    pub fn same(&self, other: &Self) -> bool {
        self.project == other.project
            && self.token_id == other.token_id
            && self.thumbprint == other.thumbprint
            && self.sender == other.sender
            && self.variant == other.variant
    }
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
    pub pair: Pair,
    pub seen: Memory,
    pub sessions: Sessions,
    key_id: String,
}

impl Opener {
    pub fn new(pair: Pair, key_id: String, seen: Memory) -> Self {
        Self { pair, seen, sessions: Sessions::default(), key_id }
    }

    /// Plaintext of a request, and the right to run it; None for whatever Python is to look at.
    pub fn open(&self, request: &Request, message: &Rope<'_>, context: &Context) -> Option<(Vec<u8>, Right)> {
        let unwrapped = self.unwrap(request, context, &Now::here())?;
        let mut plaintext = vec![0; size_of(&request.chunks)?];
        unwrapped.decrypt(message, &request.chunks, &mut plaintext)?;
        Some((plaintext, unwrapped.right))
    }

    /// The keys of a request; None for whatever Python is to look at.
    pub fn unwrap(&self, request: &Request, context: &Context, now: &Now) -> Option<Unwrapped> {
        let fresh = now.wall_ms.abs_diff(request.issued_at_ms) <= WINDOW_MS;
        if request.suite != self.pair.suite || context.variant.is_empty() || !fresh {
            return None;
        }
        match &request.session {
            Some(place) => self.in_session(request, place, context, now),
            None => self.alone(request, context, now),
        }
    }

    fn in_session(&self, request: &Request, place: &Place, context: &Context, now: &Now) -> Option<Unwrapped> {
        if place.key_id != self.key_id || place.end || request.has_own() {
            return None;
        }
        let session = self.sessions.find(&place.session_id, now.monotonic)?;
        // Before it costs anything: a copy is no reason to decrypt.
        if session.sender != context.thumbprint || session.is_taken(place.counter) {
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

    fn alone(&self, request: &Request, context: &Context, now: &Now) -> Option<Unwrapped> {
        let id = Id::try_from(&request.request_id[..]).ok()?;
        let recipient = request.recipients.iter().find(|recipient| recipient.key_id == self.key_id)?;
        let mut names: Vec<&str> = request.recipients.iter().map(|recipient| recipient.key_id.as_str()).collect();
        names.sort_unstable();
        if context.sender.is_empty()
            || request.sender != context.sender
            || names.windows(2).any(|pair| pair[0] == pair[1])
            || self.seen.look(&id, &context.project, request.issued_at_ms, now.monotonic) != Verdict::New
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

    pub fn answer(&self, right: Right) -> Answer {
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
pub struct Answer {
    head: Vec<u8>,
    cipher: Keys,
    digest: Digest,
    prefix: [u8; 4],
}

impl Answer {
    pub fn size(&self, plaintext: &[u8]) -> usize {
        self.head.len() + size_of_chunks(plaintext.len())
    }

    pub fn put(&self, out: &mut [u8], plaintext: &[u8]) {
        let (head, chunks) = out.split_at_mut(self.head.len());
        head.copy_from_slice(&self.head);
        let cipher = match &self.cipher {
            Keys::Own(cipher) => cipher,
            Keys::Session(session) => &session.answers,
        };
        put_chunks(chunks, ANSWER_CHUNKS, cipher, &self.digest, self.prefix, plaintext);
    }
}
