//! Counts the frames of a connection that ask for work and bring none: PING, SETTINGS, empty DATA and the like.
//!
//! The HTTP/2 library answers each of them as fast as they come, for ever. Who sends many, and few calls, is told to
//! calm down and loses the connection (RFC 9113 section 10.5).

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

const PREFACE_BYTES: usize = 24;
const HEAD_BYTES: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
/// Frames without work that a connection may send at once, those that each frame with work allows, and each second.
const ALLOWANCE: f64 = 1000.0;
const BY_WORK: f64 = 4.0;
const BY_SECOND: f64 = 50.0;
/// Bytes sent that allow one more: no client takes more WINDOW_UPDATEs than two for the smallest frame that is usual.
const BYTES_BY_FRAME: f64 = 4096.0;

/// What the count says, for the task that has the connection.
#[derive(Default)]
pub struct Alarm {
    raised: AtomicBool,
    heard: Notify,
}

impl Alarm {
    fn raise(&self) {
        if !self.raised.swap(true, Ordering::AcqRel) {
            self.heard.notify_one();
        }
    }

    /// Returns when the client has to be told.
    pub async fn wait(&self) {
        self.heard.notified().await;
    }
}

struct Count {
    /// Bytes until the next frame begins.
    skip: usize,
    head: Vec<u8>,
    left: f64,
    filled: Instant,
}

impl Count {
    /// Who is sent much has to say that he has read it.
    fn wrote(&mut self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(size)) = written {
            self.left = (self.left + *size as f64 / BYTES_BY_FRAME).min(ALLOWANCE);
        }
    }

    fn new(now: Instant) -> Self {
        Self { skip: PREFACE_BYTES, head: Vec::with_capacity(HEAD_BYTES), left: ALLOWANCE, filled: now }
    }

    /// Look at what was read; false where it was too much.
    fn read(&mut self, mut bytes: &[u8], now: Instant) -> bool {
        let since = now.duration_since(self.filled).as_secs_f64();
        self.left = (self.left + since * BY_SECOND).min(ALLOWANCE);
        self.filled = now;
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = (HEAD_BYTES - self.head.len()).min(bytes.len());
            self.head.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if self.head.len() == HEAD_BYTES {
                self.skip =
                    usize::from(self.head[0]) << 16 | usize::from(self.head[1]) << 8 | usize::from(self.head[2]);
                let works = self.head[3] == HEADERS || (self.head[3] == DATA && self.skip > 0);
                self.left = if works { (self.left + BY_WORK).min(ALLOWANCE) } else { self.left - 1.0 };
                self.head.clear();
            }
        }
        self.left >= 0.0
    }
}

/// A stream whose frames are counted on their way in.
pub struct Guarded<S> {
    inner: S,
    count: Count,
    alarm: Arc<Alarm>,
}

impl<S> Guarded<S> {
    pub fn new(inner: S, alarm: Arc<Alarm>) -> Self {
        Self { inner, count: Count::new(Instant::now()), alarm }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.alarm.raised.load(Ordering::Acquire) {
            return Poll::Pending; // nothing more is read of it
        }
        let before = into.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(context, into);
        if read.is_ready() && !self.count.read(&into.filled()[before..], Instant::now()) {
            self.alarm.raise();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.count.wrote(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(context, parts);
        self.count.wrote(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, size: usize) -> Vec<u8> {
        let mut frame = vec![0, (size >> 8) as u8, size as u8, kind, 0, 0, 0, 0, 1];
        frame.resize(HEAD_BYTES + size, 7);
        frame
    }

    fn survives(frames: &[Vec<u8>], piece: usize) -> bool {
        let now = Instant::now();
        let mut count = Count::new(now);
        let bytes = [vec![0; PREFACE_BYTES], frames.concat()].concat();
        bytes.chunks(piece).all(|part| count.read(part, now))
    }

    #[test]
    fn pings_alone_are_too_much_however_they_come() {
        const PING: u8 = 6;
        for piece in [1, 5, 9, 17, 4096, 1 << 20] {
            assert!(survives(&vec![frame(PING, 8); 1000], piece));
            assert!(!survives(&vec![frame(PING, 8); 1001], piece));
        }
    }

    #[test]
    fn who_works_may_ask_as_well() {
        let call = [frame(HEADERS, 40), frame(DATA, 300), frame(6, 8), frame(8, 4)].concat();
        assert!(survives(&vec![call; 5000], 1000));
        assert!(!survives(&vec![frame(DATA, 0); 2000], 1000), "empty frames are no work");
    }

    #[test]
    fn who_reads_much_says_so() {
        let now = Instant::now();
        let mut count = Count::new(now);
        count.read(&[0; PREFACE_BYTES], now);
        for _ in 0..5000 {
            count.wrote(&Poll::Ready(Ok(16 << 10)));
            assert!(count.read(&[frame(8, 4), frame(8, 4)].concat(), now), "both windows, for each frame");
        }
    }
}
