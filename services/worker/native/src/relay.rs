//! The way through Python: a call, as it is, to the interpreter's own gRPC server behind a Unix socket, and its answer.
//!
//! Each connection of a client has one of its own behind it, so what the server allows a connection holds as before.

use std::future::poll_fn;
use std::path::PathBuf;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use tokio::net::UnixStream;
use tokio::sync::Mutex;

const WINDOW_BYTES: u32 = 1 << 20;

/// A call ends early with this towards the client.
pub struct Reset(pub Reason);

impl From<h2::Error> for Reset {
    fn from(error: h2::Error) -> Self {
        Self(error.reason().unwrap_or(Reason::INTERNAL_ERROR))
    }
}

/// The connection to Python behind one client's; made with the first call that needs it.
pub struct Upstream {
    path: PathBuf,
    streams: u32,
    sender: Mutex<Option<SendRequest<Bytes>>>,
}

impl Upstream {
    pub fn new(path: PathBuf, streams: u32) -> Self {
        Self { path, streams, sender: Mutex::new(None) }
    }

    async fn sender(&self) -> Result<SendRequest<Bytes>, Reset> {
        let mut kept = self.sender.lock().await;
        if let Some(sender) = kept.as_ref() {
            if let Ok(ready) = sender.clone().ready().await {
                return Ok(ready);
            }
        }
        let socket = UnixStream::connect(&self.path).await.map_err(|_| Reset(Reason::REFUSED_STREAM))?;
        let (sender, connection) = h2::client::Builder::new()
            .initial_window_size(WINDOW_BYTES)
            .initial_connection_window_size(4 * WINDOW_BYTES)
            .max_concurrent_streams(self.streams)
            .enable_push(false)
            .handshake::<_, Bytes>(socket)
            .await?;
        tokio::spawn(async move {
            let _ = connection.await; // its calls hear of it
        });
        *kept = Some(sender.clone());
        Ok(sender.ready().await?)
    }
}

/// What of a body was read already, and whether that was all.
#[derive(Default)]
pub struct Begun {
    pub chunks: Vec<Bytes>,
    pub ended: bool,
}

/// Carry one call to its end.
pub async fn relay(
    upstream: &Upstream,
    head: Request<()>,
    begun: Begun,
    body: RecvStream,
    respond: &mut SendResponse<Bytes>,
) -> Result<(), Reset> {
    let mut sender = upstream.sender().await?;
    let bodiless = begun.chunks.is_empty() && (begun.ended || body.is_end_stream());
    let (response, up) = sender.send_request(head, bodiless)?;
    let upward = async move {
        if bodiless {
            Ok(())
        } else {
            send_up(begun, body, up).await
        }
    };
    let downward = send_down(response, respond);
    tokio::pin!(upward, downward);
    let mut sent = false;
    loop {
        tokio::select! {
            ended = &mut downward => return ended,
            ended = &mut upward, if !sent => {
                sent = true;
                ended?;
            }
        }
    }
}

async fn send_up(begun: Begun, mut body: RecvStream, mut up: SendStream<Bytes>) -> Result<(), Reset> {
    let last = begun.chunks.len();
    for (index, chunk) in begun.chunks.into_iter().enumerate() {
        if !send(&mut up, chunk, begun.ended && index + 1 == last).await? {
            return Ok(());
        }
    }
    if begun.ended {
        return Ok(());
    }
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        let size = chunk.len();
        let all = body.is_end_stream();
        let taken = send(&mut up, chunk, all).await?;
        let _ = body.flow_control().release_capacity(size); // fails only where the stream has ended
        if all || !taken {
            return Ok(());
        }
    }
    match body.trailers().await? {
        Some(trailers) => up.send_trailers(trailers)?,
        None => up.send_data(Bytes::new(), true)?,
    }
    Ok(())
}

/// Send a chunk as the other side takes it; false where it wants no more, which is no failure of the call.
async fn send(to: &mut SendStream<Bytes>, mut chunk: Bytes, end: bool) -> Result<bool, Reset> {
    while !chunk.is_empty() {
        to.reserve_capacity(chunk.len());
        let Some(Ok(room)) = poll_fn(|context| to.poll_capacity(context)).await else { return Ok(false) };
        let part = chunk.split_to(room.min(chunk.len()));
        if to.send_data(part, end && chunk.is_empty()).is_err() {
            return Ok(false);
        }
        if end && chunk.is_empty() {
            return Ok(true);
        }
    }
    if end {
        return Ok(to.send_data(Bytes::new(), true).is_ok());
    }
    Ok(true)
}

async fn send_down(response: ResponseFuture, respond: &mut SendResponse<Bytes>) -> Result<(), Reset> {
    let response = tokio::select! {
        response = response => response?,
        left = poll_fn(|context| respond.poll_reset(context)) => return Err(Reset(left.unwrap_or(Reason::CANCEL))),
    };
    let (parts, mut body) = response.into_parts();
    let ended = body.is_end_stream();
    let mut down = respond.send_response(Response::from_parts(parts, ()), ended)?;
    if ended {
        return Ok(());
    }
    loop {
        let chunk = tokio::select! {
            chunk = body.data() => chunk,
            left = poll_fn(|context| down.poll_reset(context)) => return Err(Reset(left.unwrap_or(Reason::CANCEL))),
        };
        let Some(chunk) = chunk else { break };
        let chunk = chunk?;
        let size = chunk.len();
        if !send(&mut down, chunk, false).await? {
            return Err(Reset(Reason::CANCEL));
        }
        let _ = body.flow_control().release_capacity(size); // fails only where the stream has ended
    }
    down.send_trailers(body.trailers().await?.unwrap_or_else(HeaderMap::new))?;
    Ok(())
}
