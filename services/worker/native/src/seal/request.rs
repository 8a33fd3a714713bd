//! `SealedInferRequest` and `SealedInferResponse` on the wire.
//!
//! A request in which something is written twice, unknown or odd is not read here: Python says what it means, or what is
//! wrong with it.

use bytes::BufMut;

use crate::answer::{field_size, put_field, put_head, put_varint};
use crate::message::Reader;
use crate::rope::Rope;
use crate::seal::chunks::{self, Cipher, CHUNK_BYTES, MAX_CHUNKS, TAG_BYTES};
use crate::seal::format::{Digest, Recipient, VERSION};

/// All but the chunks; a request that holds more is nobody's daily call.
const MAX_HEAD: usize = 16 << 10;
const MAX_RECIPIENTS: usize = 8;
const CHUNKS: u64 = 8;

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub key_id: String,
    pub session_id: Vec<u8>,
    pub counter: u32,
    pub end: bool,
}

#[derive(Default)]
pub struct Request {
    pub suite: u32,
    pub request_id: Vec<u8>,
    pub issued_at_ms: u64,
    pub deployment: String,
    pub method: String,
    pub recipients: Vec<Recipient>,
    /// As ranges of the message.
    pub chunks: Vec<(usize, usize)>,
    pub sender: Vec<u8>,
    pub signature: Vec<u8>,
    pub session: Option<Place>,
}

impl Request {
    /// None where it is not one of version 1, plainly written.
    pub fn parse(message: &Rope<'_>) -> Option<Self> {
        let mut reader = Reader::new(message, 0, message.len());
        let (mut request, mut seen, mut head) = (Self::default(), 0u32, 0);
        while let Some((number, value)) = reader.next()? {
            if number == 0 || number > 11 {
                return None;
            }
            if number == CHUNKS {
                request.chunks.push(value.range()?);
                if request.chunks.len() > MAX_CHUNKS {
                    return None;
                }
                continue;
            }
            head += value.range().map_or(8, |(start, end)| end - start);
            let again = seen & (1 << number) != 0;
            seen |= 1 << number;
            if head > MAX_HEAD || (again && number != 7) {
                return None;
            }
            match number {
                1 => (value.number()? == VERSION).then_some(())?,
                2 => request.suite = u32::try_from(value.number()?).ok()?,
                3 => request.request_id = value.bytes(message)?,
                4 => request.issued_at_ms = value.number().filter(|time| i64::try_from(*time).is_ok())?,
                5 => request.deployment = value.text(message)?,
                6 => request.method = value.text(message)?,
                7 => request.recipients.push(recipient(message, value.range()?)?),
                9 => request.sender = value.bytes(message)?,
                10 => request.signature = value.bytes(message)?,
                _ => request.session = Some(place(message, value.range()?)?),
            }
        }
        let versioned = seen & (1 << 1) != 0;
        (versioned && request.recipients.len() <= MAX_RECIPIENTS).then_some(request)
    }

    /// Whether it holds anything that belongs to a request by itself.
    pub fn has_own(&self) -> bool {
        !(self.recipients.is_empty()
            && self.request_id.is_empty()
            && self.sender.is_empty()
            && self.signature.is_empty())
    }
}

fn recipient(message: &Rope<'_>, (start, end): (usize, usize)) -> Option<Recipient> {
    let mut reader = Reader::new(message, start, end);
    let (mut key_id, mut variant, mut wrapped) = (None, None, None);
    while let Some((number, value)) = reader.next()? {
        let again = match number {
            1 => key_id.replace(value.text(message)?).is_some(),
            2 => variant.replace(value.text(message)?).is_some(),
            3 => wrapped.replace(value.bytes(message)?).is_some(),
            _ => true,
        };
        if again {
            return None;
        }
    }
    Some(Recipient { key_id: key_id?, variant: variant?, wrapped: wrapped? })
}

fn place(message: &Rope<'_>, (start, end): (usize, usize)) -> Option<Place> {
    let mut reader = Reader::new(message, start, end);
    let (mut place, mut seen) = (Place::default(), 0u32);
    while let Some((number, value)) = reader.next()? {
        if !(1..=4).contains(&number) || seen & (1 << number) != 0 {
            return None;
        }
        seen |= 1 << number;
        match number {
            1 => place.key_id = value.text(message)?,
            2 => place.session_id = value.bytes(message)?,
            3 => place.counter = u32::try_from(value.number()?).ok()?,
            _ => place.end = value.number()? != 0,
        }
    }
    Some(place)
}

/// A number that is 0 is not written.
fn put_number(out: &mut impl BufMut, number: u8, value: u64) {
    if value != 0 {
        out.put_u8(number << 3);
        put_varint(out, value);
    }
}

fn put_bytes(out: &mut impl BufMut, number: u8, value: &[u8]) {
    if !value.is_empty() {
        put_field(out, number, value);
    }
}

/// A request without its chunks.
pub fn put_request(out: &mut Vec<u8>, request: &Request) {
    put_number(out, 1, VERSION);
    put_number(out, 2, request.suite.into());
    put_bytes(out, 3, &request.request_id);
    put_number(out, 4, request.issued_at_ms);
    put_bytes(out, 5, request.deployment.as_bytes());
    put_bytes(out, 6, request.method.as_bytes());
    for recipient in &request.recipients {
        let mut inner = Vec::with_capacity(recipient.wrapped.len() + 160);
        put_bytes(&mut inner, 1, recipient.key_id.as_bytes());
        put_bytes(&mut inner, 2, recipient.variant.as_bytes());
        put_bytes(&mut inner, 3, &recipient.wrapped);
        put_field(out, 7, &inner);
    }
    put_bytes(out, 9, &request.sender);
    put_bytes(out, 10, &request.signature);
    if let Some(place) = &request.session {
        let mut inner = Vec::with_capacity(96);
        put_bytes(&mut inner, 1, place.key_id.as_bytes());
        put_bytes(&mut inner, 2, &place.session_id);
        put_number(&mut inner, 3, place.counter.into());
        put_number(&mut inner, 4, place.end.into());
        put_field(out, 11, &inner);
    }
}

/// Bytes of the chunks of a plaintext, with what stands before each.
pub fn size_of_chunks(size: usize) -> usize {
    (0..chunks::count(size)).map(|index| field_size((size - index * CHUNK_BYTES).min(CHUNK_BYTES) + TAG_BYTES)).sum()
}

/// Seal a plaintext into the field `number` of a message, of which `out` is the end.
pub fn put_chunks(out: &mut [u8], number: u8, cipher: &Cipher, digest: &Digest, prefix: [u8; 4], plaintext: &[u8]) {
    let (total, mut rest) = (chunks::count(plaintext.len()), out);
    for index in 0..total {
        let part = &plaintext[index * CHUNK_BYTES..plaintext.len().min((index + 1) * CHUNK_BYTES)];
        put_head(&mut rest, number, part.len() + TAG_BYTES);
        let (chunk, next) = rest.split_at_mut(part.len() + TAG_BYTES);
        cipher.seal(digest, prefix, (index, total), part, chunk);
        rest = next;
    }
}

/// What stands before the chunks of a sealed answer.
pub fn response_head(key_id: &str, nonce: &[u8]) -> Vec<u8> {
    let mut head = Vec::with_capacity(key_id.len() + nonce.len() + 8);
    put_bytes(&mut head, 1, key_id.as_bytes());
    put_bytes(&mut head, 2, nonce);
    head
}

/// Field of a `SealedInferResponse`.
pub const ANSWER_CHUNKS: u8 = 3;

/// Key id, nonce and chunks of a sealed answer.
pub struct Response {
    pub key_id: String,
    pub nonce: Vec<u8>,
    pub chunks: Vec<(usize, usize)>,
}

impl Response {
    /// As protobuf reads it: of a field that comes twice the last counts, and unknown ones are passed over. None where it
    /// is malformed, or has too many chunks.
    pub fn parse(message: &Rope<'_>) -> Option<Self> {
        let mut reader = Reader::new(message, 0, message.len());
        let mut response = Self { key_id: String::new(), nonce: Vec::new(), chunks: Vec::new() };
        while let Some((number, value)) = reader.next()? {
            let Some(range) = value.range() else { continue };
            match number {
                1 => response.key_id = value.text(message)?,
                2 => response.nonce = value.bytes(message)?,
                3 if response.chunks.len() == MAX_CHUNKS => return None,
                3 => response.chunks.push(range),
                _ => {}
            }
        }
        Some(response)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn whole() -> Request {
        Request {
            suite: 1,
            request_id: vec![3; 16],
            issued_at_ms: 1_800_000_000_000,
            deployment: "projects/p/deployments/d".into(),
            method: "/m".into(),
            recipients: vec![Recipient { key_id: "k".into(), variant: "v".into(), wrapped: vec![5; 1200] }],
            chunks: vec![],
            sender: vec![6; 32],
            signature: vec![7; 64],
            session: Some(Place { key_id: "k".into(), session_id: vec![8; 16], counter: 300, end: false }),
        }
    }

    fn parsed(wire: &[u8]) -> Option<Request> {
        let pieces: Vec<Bytes> = wire.chunks(7).map(Bytes::copy_from_slice).collect();
        Request::parse(&Rope::new(&pieces, 0))
    }

    #[test]
    fn a_request_is_read_as_it_was_written() {
        let mut wire = Vec::new();
        put_request(&mut wire, &whole());
        let start = wire.len();
        put_field(&mut wire, 8, &[9; 30]);
        let read = parsed(&wire).unwrap();
        assert_eq!((read.suite, read.issued_at_ms), (1, 1_800_000_000_000));
        assert_eq!((read.deployment.as_str(), read.method.as_str()), ("projects/p/deployments/d", "/m"));
        assert_eq!((read.request_id.len(), read.sender.len(), read.signature.len()), (16, 32, 64));
        assert_eq!(read.recipients[0].wrapped, vec![5; 1200]);
        assert_eq!(read.session, whole().session);
        assert_eq!(read.chunks, [(start + 2, start + 32)]);
    }

    #[test]
    fn what_is_odd_is_left_to_python() {
        let mut wire = Vec::new();
        put_request(&mut wire, &whole());
        assert!(parsed(&wire).is_some());
        let with = |more: &[u8]| parsed(&[&wire[..], more].concat()).is_none();
        assert!(with(&[8, 1]), "the version twice");
        assert!(with(&[3 << 3 | 2, 0]), "the id twice");
        assert!(with(&[12 << 3 | 2, 0]), "an unknown field");
        assert!(with(&[3 << 3, 1]), "an id that is a number");
        assert!(with(&[8 << 3 | 2, 200]), "cut off");
        assert!(parsed(&wire[2..]).is_none(), "no version");
        assert!(parsed(&[&[8, 2][..], &wire[2..]].concat()).is_none(), "another version");
        assert!(parsed(&[8, 1, 4 << 3, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1]).is_none(), "before 1970");
        assert!(parsed(&[&[8, 1][..], &[7 << 3 | 2, 0]].concat()).is_none(), "a recipient of nothing");
        let nine = [&[8, 1][..], &[7 << 3 | 2, 6, 10, 0, 18, 0, 26, 0].repeat(9)].concat();
        assert!(parsed(&nine).is_none(), "too many recipients");
        assert!(parsed(&nine[..nine.len() - 8]).is_some());
        assert!(parsed(&[&[8, 1][..], &[8 << 3 | 2, 0].repeat(66)].concat()).is_none(), "too many chunks");
    }

    #[test]
    fn sizes_of_chunks_are_what_they_take() {
        for size in [0, 1, 200, CHUNK_BYTES, CHUNK_BYTES + 1] {
            let cipher = Cipher::new(&[1; 32], crate::seal::chunks::Direction::Response);
            let mut wire = response_head("key", &[2; 16]);
            let start = wire.len();
            wire.resize(start + size_of_chunks(size), 0);
            put_chunks(&mut wire[start..], ANSWER_CHUNKS, &cipher, &[3; 32], [0; 4], &vec![4; size]);
            wire.extend([15 << 3 | 2, 1, b'?', 14 << 3, 9]); // fields of a later version
            let message = Rope::of(&wire);
            let read = Response::parse(&message).unwrap();
            assert_eq!((read.key_id.as_str(), read.nonce.as_slice()), ("key", &[2; 16][..]));
            assert_eq!(cipher.open(&[3; 32], [0; 4], &message, &read.chunks), Some(vec![4; size]), "{size}");
        }
    }
}
