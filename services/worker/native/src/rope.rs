//! A message in the pieces in which it came: joining them would copy it once more.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

pub struct Rope<'a> {
    /// Each piece with the place at which it begins.
    pieces: Vec<(usize, &'a [u8])>,
    len: usize,
    /// The piece that was read last.
    last: AtomicUsize,
}

impl<'a> Rope<'a> {
    /// The bytes of some chunks, without the first few.
    pub fn new(chunks: &'a [Bytes], mut without: usize) -> Self {
        let (mut pieces, mut len) = (Vec::with_capacity(chunks.len()), 0);
        for chunk in chunks {
            let piece = &chunk[without.min(chunk.len())..];
            without -= without.min(chunk.len());
            if !piece.is_empty() {
                pieces.push((len, piece));
                len += piece.len();
            }
        }
        Self { pieces, len, last: AtomicUsize::new(0) }
    }

    /// A message that lies in one piece.
    pub fn of(piece: &'a [u8]) -> Self {
        Self { pieces: vec![(0, piece)], len: piece.len(), last: AtomicUsize::new(0) }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn get(&self, at: usize) -> Option<u8> {
        if at >= self.len {
            return None;
        }
        let index = self.piece(at);
        let (start, piece) = self.pieces[index];
        Some(piece[at - start])
    }

    /// A range, piece by piece; it must lie inside.
    pub fn slices(&self, start: usize, end: usize) -> impl Iterator<Item = &'a [u8]> + '_ {
        let mut at = start;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let (begin, piece) = self.pieces[self.piece(at)];
            let part = &piece[at - begin..piece.len().min(end - begin)];
            at += part.len();
            Some(part)
        })
    }

    pub fn copy(&self, start: usize, end: usize, into: &mut Vec<u8>) {
        self.slices(start, end).for_each(|part| into.extend_from_slice(part));
    }

    pub fn to_vec(&self, start: usize, end: usize) -> Vec<u8> {
        let mut copy = Vec::with_capacity(end - start);
        self.copy(start, end, &mut copy);
        copy
    }

    fn piece(&self, at: usize) -> usize {
        let within = |index: usize| {
            let (start, piece) = self.pieces[index];
            (start..start + piece.len()).contains(&at)
        };
        let mut index = self.last.load(Ordering::Relaxed);
        if !within(index) {
            index = self.pieces.partition_point(|(start, _)| *start <= at) - 1;
            self.last.store(index, Ordering::Relaxed);
        }
        index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_read_as_one() {
        let whole: Vec<u8> = (0..100).collect();
        for size in [1, 3, 7, 100] {
            let chunks: Vec<Bytes> = whole.chunks(size).map(Bytes::copy_from_slice).collect();
            let rope = Rope::new(&chunks, 5);
            assert_eq!(rope.len(), 95);
            assert_eq!((0..96).map_while(|at| rope.get(at)).collect::<Vec<_>>(), whole[5..]);
            assert_eq!(rope.to_vec(10, 90), whole[15..95]);
            assert_eq!(rope.get(0), Some(5), "back to the first");
            assert!(rope.to_vec(7, 7).is_empty());
        }
        assert_eq!(Rope::new(&[], 5).get(0), None);
    }
}
