//! The shared memory between front and model process, as `sealane_worker/rings.py` describes it.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

const ALIGNMENT: usize = 4096;

/// First-fit allocation within `[start, end)`.
pub struct Regions {
    start: usize,
    end: usize,
    taken: Vec<(usize, usize)>,
}

impl Regions {
    pub fn new(start: usize, end: usize) -> Self {
        Self { start, end, taken: Vec::new() }
    }

    /// Offset of a free region; none where no gap is large enough.
    pub fn take(&mut self, size: usize) -> Option<usize> {
        let size = size.div_ceil(ALIGNMENT) * ALIGNMENT;
        let mut at = self.start;
        for index in 0..self.taken.len() {
            let (start, end) = self.taken[index];
            if start - at >= size {
                self.taken.insert(index, (at, at + size));
                return Some(at);
            }
            at = end;
        }
        if self.end - at < size {
            return None;
        }
        self.taken.push((at, at + size));
        Some(at)
    }

    pub fn give(&mut self, offset: usize) {
        self.taken.retain(|region| region.0 != offset);
    }
}

/// Both rings, as Python mapped them: the exported buffers keep the mappings where they are.
pub struct Rings {
    requests: PyBuffer<u8>,
    replies: PyBuffer<u8>,
}

impl Rings {
    pub fn new(requests: &Bound<'_, PyAny>, replies: &Bound<'_, PyAny>) -> PyResult<Self> {
        let rings = Self { requests: PyBuffer::get(requests)?, replies: PyBuffer::get(replies)? };
        let whole = |buffer: &PyBuffer<u8>| buffer.is_c_contiguous() && buffer.item_size() == 1;
        if rings.requests.readonly() || !whole(&rings.requests) || !whole(&rings.replies) {
            return Err(PyValueError::new_err("the request ring must be writable bytes, the reply ring bytes"));
        }
        Ok(rings)
    }

    pub fn request_bytes(&self) -> usize {
        self.requests.len_bytes()
    }

    /// Write the pieces of a tensor one after another, and its padding.
    ///
    /// The region is the caller's own (`Regions::take`), and the model process only reads.
    pub fn write(&self, offset: usize, pieces: &[&[u8]], padding: usize) {
        let size: usize = pieces.iter().map(|piece| piece.len()).sum();
        assert!(offset + size + padding <= self.requests.len_bytes());
        // SAFETY: in bounds by the assertion; nobody else writes this region.
        unsafe {
            let mut target = (self.requests.buf_ptr() as *mut u8).add(offset);
            for piece in pieces {
                std::ptr::copy_nonoverlapping(piece.as_ptr(), target, piece.len());
                target = target.add(piece.len());
            }
            std::ptr::write_bytes(target, 0, padding);
        }
    }

    /// A copy of a reply's body: the model could change the original under our hands. None where it lies outside.
    pub fn read(&self, offset: usize, size: usize) -> Option<Bytes> {
        if offset.checked_add(size)? > self.replies.len_bytes() {
            return None;
        }
        let mut copy = Vec::<u8>::with_capacity(size);
        // SAFETY: in bounds by the check; raw copying reads whatever is there, even while the model writes.
        unsafe {
            std::ptr::copy_nonoverlapping((self.replies.buf_ptr() as *const u8).add(offset), copy.as_mut_ptr(), size);
            copy.set_len(size);
        }
        Some(copy.into())
    }

    /// Tell the model that the reply to a request was read.
    pub fn mark_read(&self, slot: usize, id: u64) {
        assert!((slot + 1) * 8 <= ALIGNMENT);
        // SAFETY: the first page holds a counter for each slot, aligned, written by the slot's holder alone.
        let counter = unsafe { &*(self.requests.buf_ptr() as *const AtomicU64).add(slot) };
        counter.store(id, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_taken_first_fit_and_given_back() {
        let mut regions = Regions::new(4096, 4096 * 5);
        assert_eq!(regions.take(1), Some(4096));
        assert_eq!(regions.take(4097), Some(4096 * 2));
        assert_eq!(regions.take(4097), None);
        regions.give(4096);
        assert_eq!(regions.take(4096), Some(4096));
        assert_eq!(regions.take(4096), Some(4096 * 4));
        assert_eq!(regions.take(1), None);
    }
}
