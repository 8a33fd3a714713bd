//! What is hashed and bound (docs/sealed-protocol.md, "Notation", "A request by itself", "Sessions").

use aws_lc_rs::digest::{digest, SHA256};
use aws_lc_rs::hmac::{self, HMAC_SHA256};

pub const VERSION: u64 = 1;
pub const KEY_BYTES: usize = 32;
pub const NONCE_BYTES: usize = 16;

pub type Key = [u8; KEY_BYTES];
pub type Digest = [u8; 32];

/// Length-prefixed concatenation.
pub struct Lp(pub Vec<u8>);

impl Lp {
    pub fn of(label: &str) -> Self {
        Self(Vec::with_capacity(512)).text(label)
    }

    pub fn bytes(mut self, part: &[u8]) -> Self {
        self.0.extend((part.len() as u32).to_be_bytes());
        self.0.extend_from_slice(part);
        self
    }

    pub fn text(self, part: &str) -> Self {
        self.bytes(part.as_bytes())
    }

    pub fn number(self, part: u64) -> Self {
        self.bytes(&part.to_be_bytes())
    }
}

/// What every key of a request is bound to, beside the recipient's own key id and variant.
pub struct Bound<'a> {
    pub suite: u32,
    pub project: &'a str,
    pub deployment: &'a str,
    pub method: &'a str,
    pub request_id: &'a [u8],
    pub token_id: &'a str,
    pub issued_at_ms: u64,
}

/// The data key and a response secret, wrapped to one worker.
pub struct Recipient {
    pub key_id: String,
    pub variant: String,
    pub wrapped: Vec<u8>,
}

pub fn info(bound: &Bound<'_>, key_id: &str, variant: &str) -> Vec<u8> {
    Lp::of("sealane/seal/v1")
        .number(bound.suite.into())
        .text(key_id)
        .text(bound.project)
        .text(bound.deployment)
        .text(variant)
        .text(bound.method)
        .bytes(bound.request_id)
        .text(bound.token_id)
        .number(bound.issued_at_ms)
        .0
}

pub fn envelope_hash(bound: &Bound<'_>, sender: &[u8], chunks: usize, recipients: &[Recipient]) -> Digest {
    let mut hashed = Lp::of("sealane/envelope/v1")
        .number(VERSION)
        .number(bound.suite.into())
        .text(bound.project)
        .text(bound.deployment)
        .text(bound.method)
        .bytes(bound.request_id)
        .text(bound.token_id)
        .number(bound.issued_at_ms)
        .bytes(sender)
        .number(chunks as u64);
    for recipient in recipients {
        let wrap = Lp(Vec::new()).text(&recipient.key_id).text(&recipient.variant).bytes(&recipient.wrapped);
        hashed = hashed.bytes(&wrap.0);
    }
    sha256(&hashed.0)
}

/// Whom a session is with, and for what.
pub struct SessionBound<'a> {
    pub suite: u32,
    pub key_id: &'a str,
    pub project: &'a str,
    pub deployment: &'a str,
    pub variant: &'a str,
    pub session_id: &'a [u8],
}

/// One request of a session.
pub struct Turn<'a> {
    pub method: &'a str,
    pub counter: u32,
    pub end: bool,
    pub token_id: &'a str,
    pub issued_at_ms: u64,
    pub chunks: usize,
}

pub fn session_hash(bound: &SessionBound<'_>, turn: &Turn<'_>) -> Digest {
    let hashed = Lp::of("sealane/session-request/v1")
        .number(VERSION)
        .number(bound.suite.into())
        .text(bound.key_id)
        .text(bound.project)
        .text(bound.deployment)
        .text(bound.variant)
        .text(turn.method)
        .bytes(bound.session_id)
        .number(turn.counter.into())
        .number(turn.end.into())
        .text(turn.token_id)
        .number(turn.issued_at_ms)
        .number(turn.chunks as u64);
    sha256(&hashed.0)
}

/// Key of the answer to a request by itself: HKDF-SHA256, RFC 5869.
pub fn response_key(nonce: &[u8], secret: &[u8], key_id: &str, digest: &Digest) -> Key {
    expanded(&hmac(nonce, &[secret]), &Lp::of("sealane/response/v1").text(key_id).bytes(digest).0)
}

/// Keys of a session's requests and of its answers.
pub fn session_keys(secret: &[u8], key_id: &str, session_id: &[u8]) -> (Key, Key) {
    let info = Lp::of("sealane/session/v1").text(key_id).bytes(session_id).0;
    let first = expanded(secret, &info);
    (first, hmac(secret, &[&first, &info, &[2]]))
}

/// The first block of HKDF-Expand (RFC 5869 section 2.3).
pub fn expanded(secret: &[u8], info: &[u8]) -> Key {
    hmac(secret, &[info, &[1]])
}

pub fn hmac(key: &[u8], parts: &[&[u8]]) -> Key {
    let mut context = hmac::Context::with_key(&hmac::Key::new(HMAC_SHA256, key));
    parts.iter().for_each(|part| context.update(part));
    context.sign().as_ref().try_into().expect("32 bytes")
}

fn sha256(data: &[u8]) -> Digest {
    digest(&SHA256, data).as_ref().try_into().expect("32 bytes")
}
