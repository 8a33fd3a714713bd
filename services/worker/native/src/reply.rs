//! Answers to calls, and refusals, as HTTP/2 carries them.

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use http::header::{HeaderName, HeaderValue, CONTENT_TYPE};
use http::{HeaderMap, Response, StatusCode};
use tokio::time::timeout;

use crate::relay::Reset;

pub type Headers = Vec<(HeaderName, HeaderValue)>;

/// Answers up to this size are handed over whole, whatever the client's window is.
pub const SMALL_ANSWER: usize = 64 << 10;

static STATUS: HeaderName = HeaderName::from_static("grpc-status");
static MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// What Python told as text.
pub fn headers(told: Vec<(String, String)>) -> Headers {
    told.into_iter().filter_map(|(name, value)| Some((name.parse().ok()?, value.parse().ok()?))).collect()
}

/// Answer with a status and nothing else.
pub fn refuse(respond: &mut SendResponse<Bytes>, status: &'static str, message: &'static str) -> Result<(), Reset> {
    let message = (MESSAGE.clone(), HeaderValue::from_static(message));
    refuse_with(respond, vec![(STATUS.clone(), HeaderValue::from_static(status)), message])
}

/// Answer with a refusal that Python has put in words.
pub fn refuse_with(respond: &mut SendResponse<Bytes>, told: Headers) -> Result<(), Reset> {
    let mut response = head();
    told.into_iter().for_each(|(name, value)| {
        response.headers_mut().append(name, value);
    });
    respond.send_response(response, true)?;
    Ok(())
}

/// Send an answer; a large one as the client takes it, for so long at most.
pub async fn send(respond: &mut SendResponse<Bytes>, frame: Bytes, told: Headers, left: Duration) -> Result<(), Reset> {
    let mut trailers = HeaderMap::with_capacity(1 + told.len());
    trailers.insert(&STATUS, HeaderValue::from_static("0"));
    trailers.extend(told);
    let mut stream = respond.send_response(head(), false)?;
    if frame.len() <= SMALL_ANSWER {
        stream.send_data(frame, false)?;
    } else {
        timeout(left, send_all(&mut stream, frame)).await.unwrap_or(Err(Reset(Reason::CANCEL)))?;
    }
    stream.send_trailers(trailers)?;
    Ok(())
}

async fn send_all(stream: &mut SendStream<Bytes>, mut frame: Bytes) -> Result<(), Reset> {
    while !frame.is_empty() {
        stream.reserve_capacity(frame.len());
        let room = poll_fn(|context| stream.poll_capacity(context)).await.ok_or(Reset(Reason::CANCEL))??;
        stream.send_data(frame.split_to(room.min(frame.len())), false)?;
    }
    Ok(())
}

fn head() -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}
