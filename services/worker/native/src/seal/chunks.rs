//! AES-256-GCM over chunks of 1 MiB (docs/sealed-protocol.md, "A request by itself").

use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce, UnboundKey, AES_256_GCM};

use crate::rope::Rope;
use crate::seal::format::{Digest, Key, Lp};

pub const CHUNK_BYTES: usize = 1 << 20;
pub const TAG_BYTES: usize = 16;
/// No message that a server takes holds more of them.
pub const MAX_CHUNKS: usize = 65;
/// How nonces of a key begin that seals one thing alone.
pub const ALONE: [u8; 4] = [0; 4];

/// Chunks as ranges of a message.
pub type Chunks = [(usize, usize)];

#[derive(Clone, Copy)]
pub enum Direction {
    Request,
    Response,
}

pub struct Cipher {
    key: LessSafeKey,
    direction: Direction,
}

/// Chunks that a plaintext takes; an empty one takes one.
pub fn count(size: usize) -> usize {
    size.div_ceil(CHUNK_BYTES).max(1)
}

impl Cipher {
    pub fn new(key: &Key, direction: Direction) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, key).expect("a key of 32 bytes");
        Self { key: LessSafeKey::new(key), direction }
    }

    fn aad(&self, digest: &Digest, index: usize) -> Aad<Vec<u8>> {
        let direction = match self.direction {
            Direction::Request => "request",
            Direction::Response => "response",
        };
        Aad::from(Lp::of(direction).bytes(digest).number(index as u64).0)
    }

    /// Seal chunk `index` of `total` into a place that is longer by the tag.
    ///
    /// `prefix` begins the nonce: it tells uses of the key apart.
    pub fn seal(&self, digest: &Digest, prefix: [u8; 4], place: (usize, usize), plaintext: &[u8], out: &mut [u8]) {
        let (ciphertext, tag) = out.split_at_mut(plaintext.len());
        let sealed = self.key.seal_out_of_place_scatter(
            nonce(prefix, place),
            self.aad(digest, place.0),
            plaintext,
            ciphertext,
            &[],
            tag,
        );
        sealed.expect("chunks are far below what AES-GCM can seal");
    }

    /// The plaintext of chunks that lie in a message; None where anything at all is not as it was sealed.
    pub fn open(&self, digest: &Digest, prefix: [u8; 4], message: &Rope<'_>, chunks: &Chunks) -> Option<Vec<u8>> {
        let mut plaintext = vec![0; size_of(chunks)?];
        self.open_into(digest, prefix, message, chunks, &mut plaintext)?;
        Some(plaintext)
    }

    /// The same into a place of the size that [`size_of`] says.
    pub fn open_into(
        &self,
        digest: &Digest,
        prefix: [u8; 4],
        message: &Rope<'_>,
        chunks: &Chunks,
        mut out: &mut [u8],
    ) -> Option<()> {
        for (index, (start, end)) in chunks.iter().enumerate() {
            let nonce = nonce(prefix, (index, chunks.len()));
            let (part, rest) = out.split_at_mut_checked((end - start).checked_sub(TAG_BYTES)?)?;
            let first = message.slices(*start, *end).next()?;
            if first.len() == end - start {
                let (ciphertext, tag) = first.split_at(part.len());
                self.key.open_separate_gather(nonce, self.aad(digest, index), ciphertext, tag, part).ok()?;
            } else {
                let mut whole = message.to_vec(*start, *end);
                let tag = whole.split_off(part.len());
                self.key.open_separate_gather(nonce, self.aad(digest, index), &whole, &tag, part).ok()?;
            }
            out = rest;
        }
        Some(())
    }
}

/// Bytes of the plaintext of chunks; None where they cannot be those of one.
pub fn size_of(chunks: &Chunks) -> Option<usize> {
    // All but the last are full, and even an empty plaintext has one: without any, nothing would be authentic.
    let ((start, end), full) = chunks.split_last()?;
    let last = (end - start).checked_sub(TAG_BYTES).filter(|size| *size <= CHUNK_BYTES)?;
    let whole = full.iter().all(|(start, end)| end - start == CHUNK_BYTES + TAG_BYTES);
    whole.then_some(full.len() * CHUNK_BYTES + last)
}

fn nonce(prefix: [u8; 4], (index, total): (usize, usize)) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(&prefix);
    nonce[4..8].copy_from_slice(&(index as u32).to_be_bytes());
    nonce[11] = u8::from(index + 1 == total);
    Nonce::assume_unique_for_key(nonce)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn sealed(cipher: &Cipher, plaintext: &[u8]) -> (Vec<u8>, Vec<(usize, usize)>) {
        let total = count(plaintext.len());
        let (mut out, mut chunks) = (Vec::new(), Vec::new());
        for index in 0..total {
            let part = &plaintext[index * CHUNK_BYTES..plaintext.len().min((index + 1) * CHUNK_BYTES)];
            let start = out.len();
            out.resize(start + part.len() + TAG_BYTES, 0);
            cipher.seal(&[7; 32], [0, 0, 0, 3], (index, total), part, &mut out[start..]);
            chunks.push((start, out.len()));
        }
        (out, chunks)
    }

    #[test]
    fn what_is_sealed_opens_whatever_pieces_it_comes_in() {
        let cipher = Cipher::new(&[1; 32], Direction::Request);
        for size in [0, 1, 1000, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES] {
            let plaintext: Vec<u8> = (0..size).map(|at| at as u8).collect();
            let (wire, chunks) = sealed(&cipher, &plaintext);
            for piece in [wire.len().max(1), 700] {
                let pieces: Vec<Bytes> = wire.chunks(piece).map(Bytes::copy_from_slice).collect();
                let opened = cipher.open(&[7; 32], [0, 0, 0, 3], &Rope::new(&pieces, 0), &chunks);
                assert_eq!(opened.as_deref(), Some(&plaintext[..]), "{size} bytes in pieces of {piece}");
            }
        }
    }

    #[test]
    fn what_was_altered_does_not_open() {
        let cipher = Cipher::new(&[1; 32], Direction::Request);
        let (wire, chunks) = sealed(&cipher, &vec![5; CHUNK_BYTES + 9]);
        let open = |wire: &[u8], digest: u8, prefix: u8, chunks: &[(usize, usize)]| {
            let pieces = [Bytes::copy_from_slice(wire)];
            cipher.open(&[digest; 32], [0, 0, 0, prefix], &Rope::new(&pieces, 0), chunks)
        };
        assert!(open(&wire, 7, 3, &chunks).is_some());
        for at in [0, CHUNK_BYTES, CHUNK_BYTES + 15, CHUNK_BYTES + 16, wire.len() - 1] {
            let mut altered = wire.clone();
            altered[at] ^= 1;
            assert!(open(&altered, 7, 3, &chunks).is_none(), "byte {at}");
        }
        assert!(open(&wire, 8, 3, &chunks).is_none(), "bound to something else");
        assert!(open(&wire, 7, 4, &chunks).is_none(), "of another number");
        assert!(open(&wire, 7, 3, &chunks[..1]).is_none(), "the last one is missing");
        assert!(open(&wire, 7, 3, &[]).is_none(), "none at all");
        assert!(open(&wire, 7, 3, &[chunks[1], chunks[0]]).is_none(), "in another order");
        assert!(open(&wire, 7, 3, &[(0, 15)]).is_none(), "shorter than its tag");
        let other = Cipher::new(&[1; 32], Direction::Response);
        let pieces = [Bytes::copy_from_slice(&wire)];
        assert!(
            other.open(&[7; 32], [0, 0, 0, 3], &Rope::new(&pieces, 0), &chunks).is_none(),
            "an answer is no request"
        );
    }
}
