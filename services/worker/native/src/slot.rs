//! A packet socket to a model process, with one request under way at most.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::AtomicU64;
use std::sync::Mutex;

use bytes::Bytes;
use tokio::io::unix::AsyncFd;
use tokio::io::Interest;

use crate::locked;

/// A larger body lies in a ring.
pub const INLINE_BYTES: usize = 16 << 10;
const PACKET_BYTES: usize = 64 + (16 << 10) + INLINE_BYTES;

/// One of them.
pub struct Slot {
    /// Number of the slot in the process: its counter in the request ring.
    pub number: usize,
    socket: AsyncFd<OwnedFd>,
    pub last_id: AtomicU64,
    /// Deadline of the request that the process owes an answer to, as the bits of an f64; infinite without one.
    pub due: AtomicU64,
    packet: Mutex<Vec<u8>>,
}

impl Slot {
    /// Needs a runtime's context.
    pub fn new(number: usize, socket: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            number,
            // SAFETY: the descriptor is owned, and stays open as long as this is.
            socket: unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }.map_err(io::Error::from)?,
            last_id: AtomicU64::new(0),
            due: AtomicU64::new(f64::INFINITY.to_bits()),
            packet: Mutex::new(vec![0; PACKET_BYTES]),
        })
    }

    /// Hang up: who waits for an answer hears that there is none.
    pub fn close(&self) {
        // SAFETY: the descriptor is open as long as this is.
        unsafe { libc::shutdown(self.socket.as_raw_fd(), libc::SHUT_RDWR) };
    }

    pub fn send(&self, packet: &[u8]) -> io::Result<()> {
        let socket = self.socket.as_raw_fd();
        // SAFETY: the buffer is as long as is said.
        let sent = unsafe {
            libc::send(socket, packet.as_ptr().cast(), packet.len(), libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
        };
        if sent == packet.len() as isize {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// The next packet, without its unused end; empty where the other side is gone.
    pub async fn receive(&self) -> io::Result<Bytes> {
        loop {
            let mut ready = self.socket.readable().await?;
            let got = ready.try_io(|socket| {
                let mut packet = locked(&self.packet);
                // SAFETY: the buffer is as long as is said.
                let got = unsafe {
                    libc::recv(socket.as_raw_fd(), packet.as_mut_ptr().cast(), packet.len(), libc::MSG_DONTWAIT)
                };
                if got < 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(Bytes::copy_from_slice(&packet[..got as usize]))
            });
            if let Ok(packet) = got {
                return packet;
            }
        }
    }
}
