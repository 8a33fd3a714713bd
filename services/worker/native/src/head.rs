//! The head of a call: whether its body may be read in here, and whether it may have been answered before.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use http::header::{HeaderName, HeaderValue, AUTHORIZATION, CONTENT_TYPE};
use http::HeaderMap;

use crate::message::Kind;

const SEALED: &str = "/sealane.inference.v1.SealedInferenceService/SealedInfer";
/// A longer credential is no token of ours.
const MAX_CREDENTIAL: usize = 4096 + 16;

static TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Metadata that no decision depends on, or that is looked at here.
const PLAIN: [&str; 10] = [
    "te",
    "content-type",
    "user-agent",
    "accept-encoding",
    "grpc-accept-encoding",
    "grpc-timeout",
    "authorization",
    "traceparent",
    "tracestate",
    "x-request-id",
];

/// The head of a call with one message each way and one credential.
pub struct Head<'a> {
    pub path: &'a str,
    /// Its message, where it may have been answered before: with no metadata that something may depend on, untraced.
    pub kind: Option<Kind>,
    /// The same of a message that came sealed.
    pub sealed: bool,
    pub credential: HeaderValue,
    pub timeout: Option<Duration>,
    pub request_id: Option<HeaderValue>,
    /// Whether it is for this process to say whether the call is traced.
    pub untraced: bool,
    /// A call without a deadline gets this one, and none has a longer one.
    most: Duration,
}

impl<'a> Head<'a> {
    /// None where it is anything else, or unusual.
    pub fn of(path: &'a str, headers: &HeaderMap, unary: &HashSet<String>, most: Duration) -> Option<Self> {
        if !unary.contains(path) || !headers.get(CONTENT_TYPE)?.as_bytes().starts_with(b"application/grpc") {
            return None;
        }
        let mut credentials = headers.get_all(AUTHORIZATION).iter();
        let (credential, None) = (credentials.next()?.clone(), credentials.next()) else { return None };
        if credential.len() > MAX_CREDENTIAL {
            return None; // Python does not look at it either
        }
        let timeout = match headers.get(&TIMEOUT) {
            Some(value) => Some(duration(value.as_bytes())?),
            None => None,
        };
        let traceparent = headers.get(&TRACEPARENT).map(HeaderValue::as_bytes);
        let plain = headers.keys().all(|name| PLAIN.contains(&name.as_str())) && traceparent.is_none_or(is_unsampled);
        Some(Self {
            path,
            kind: if plain { kind_of(path) } else { None },
            sealed: plain && path == SEALED,
            credential,
            timeout,
            request_id: headers.get(&REQUEST_ID).cloned(),
            untraced: traceparent.is_none(),
            most,
        })
    }

    /// What is left of the time that its caller gives it.
    pub fn left(&self, started: Instant) -> Duration {
        self.timeout.unwrap_or(self.most).min(self.most).saturating_sub(started.elapsed())
    }
}

/// The message of a method.
pub fn kind_of(path: &str) -> Option<Kind> {
    match path {
        "/inference.GRPCInferenceService/ModelInfer" => Some(Kind::OpenInference),
        "/tensorflow.serving.PredictionService/Predict" => Some(Kind::TensorFlowServing),
        _ => None,
    }
}

/// A `traceparent` whose trace is not recorded; one that is malformed is Python's to look at.
fn is_unsampled(value: &[u8]) -> bool {
    value.len() == 55
        && value.iter().enumerate().all(|(at, byte)| {
            if matches!(at, 2 | 35 | 52) {
                *byte == b'-'
            } else {
                byte.is_ascii_hexdigit()
            }
        })
        && (value[54] as char).to_digit(16).is_some_and(|flags| flags & 1 == 0)
        && value[3..35].iter().any(|byte| *byte != b'0')
        && value[36..52].iter().any(|byte| *byte != b'0')
}

/// A `grpc-timeout`: at most eight digits and a unit.
fn duration(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Take the time that reading took off what Python is told.
pub fn shorten(headers: &mut HeaderMap, left: Duration) {
    if let Ok(value) = HeaderValue::from_str(&format!("{}u", left.as_micros())) {
        headers.insert(&TIMEOUT, value);
    }
}

/// The size of metadata by RFC 9113 section 6.5.2.
pub fn size_of(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum()
}

/// Metadata as Python's server gives them: none of the transport's own, and no bytes.
pub fn metadata(headers: &HeaderMap) -> Vec<(String, String)> {
    let transports =
        |name: &str| name.starts_with("grpc-") || matches!(name, "te" | "content-type" | "accept-encoding");
    let told = headers.iter().filter(|(name, _)| !transports(name.as_str()));
    told.map(|(name, value)| {
        let binary = name.as_str().ends_with("-bin");
        let text = if binary { String::new() } else { String::from_utf8_lossy(value.as_bytes()).into_owned() };
        (name.as_str().to_owned(), text)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
    const READY: &str = "/inference.GRPCInferenceService/ModelReady";
    const TOKEN: (&str, &str) = ("authorization", "Bearer x");

    fn of(path: &'static str, more: &[(&'static str, &str)]) -> Option<Head<'static>> {
        let mut headers = HeaderMap::new();
        for (name, value) in [("te", "trailers"), ("content-type", "application/grpc")].iter().chain(more) {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        Head::of(path, &headers, &HashSet::from([INFER.to_owned(), READY.to_owned()]), Duration::from_secs(60))
    }

    fn kind(path: &'static str, more: &[(&'static str, &str)]) -> Option<Kind> {
        of(path, more).and_then(|head| head.kind)
    }

    #[test]
    fn only_calls_with_one_credential_are_read_here() {
        assert!(of(INFER, &[TOKEN]).is_some());
        assert!(of(READY, &[TOKEN]).is_some());
        assert!(of("/inference.GRPCInferenceService/ModelStreamInfer", &[TOKEN]).is_none());
        assert!(of(INFER, &[]).is_none());
        assert!(of(INFER, &[TOKEN, TOKEN]).is_none());
        assert!(of(INFER, &[TOKEN, ("grpc-timeout", "1x")]).is_none());
    }

    #[test]
    fn only_plain_calls_are_looked_up() {
        assert_eq!(kind(INFER, &[TOKEN]), Some(Kind::OpenInference));
        assert_eq!(kind(READY, &[TOKEN]), None);
        for odd in [("dpop", "proof"), ("x-sealane-deployment", "other"), ("grpc-encoding", "gzip")] {
            assert_eq!(kind(INFER, &[TOKEN, odd]), None, "{odd:?}");
        }
    }

    #[test]
    fn a_trace_that_is_recorded_is_pythons() {
        let with = |flags: &str| {
            let value = format!("00-{}-{}-{flags}", "a".repeat(32), "b".repeat(16));
            let head = of(INFER, &[TOKEN, ("traceparent", &value)]).unwrap();
            (head.kind.is_some(), head.untraced)
        };
        assert_eq!(with("00"), (true, false), "somebody has decided: no lot is drawn");
        assert_eq!(with("01"), (false, false));
        assert_eq!(with("03"), (false, false));
        assert_eq!(with("0"), (false, false), "malformed");
        assert!(of(INFER, &[TOKEN]).unwrap().untraced);
    }

    #[test]
    fn the_transports_metadata_are_not_told() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("te", "trailers"), ("grpc-timeout", "1S"), ("x-a", "1"), ("x-a", "2"), ("x-bin", "AA")] {
            headers.append(name, HeaderValue::from_static(value));
        }
        let told = metadata(&headers);
        let told: Vec<_> = told.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(told, [("x-a", "1"), ("x-a", "2"), ("x-bin", "")]);
    }

    #[test]
    fn timeouts_are_read() {
        assert_eq!(duration(b"5S"), Some(Duration::from_secs(5)));
        assert_eq!(duration(b"99999999n"), Some(Duration::from_nanos(99_999_999)));
        for wrong in ["", "S", "5", "5s", "-5S", "123456789S"] {
            assert_eq!(duration(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
