//! Failures of calls that did not go through Python: it puts them in words, and writes their access line.

use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::front::Front;
use crate::reply::{headers, Headers};
use crate::table::Entry;

pub enum Failed {
    /// The model process said so: JSON.
    Told(Vec<u8>),
    /// It ended while it ran the request.
    Crashed,
    /// It was taken off this worker meanwhile.
    Closed,
    /// It sent what cannot be read.
    Lied,
    /// No answer by the deadline.
    Late,
    /// The caller went away; nobody hears what is said.
    Left,
}

impl Failed {
    fn told(self) -> (&'static str, Vec<u8>) {
        match self {
            Self::Told(told) => ("told", told),
            Self::Crashed => ("crashed", Vec::new()),
            Self::Closed => ("closed", Vec::new()),
            Self::Lied => ("lied", Vec::new()),
            Self::Late => ("late", Vec::new()),
            Self::Left => ("left", Vec::new()),
        }
    }
}

/// Headers of the answer to a call that failed; None where Python itself fails.
pub async fn fail(
    front: Arc<Front>,
    entry: Arc<Entry>,
    failed: Failed,
    request_id: String,
    spent: Duration,
) -> Option<Headers> {
    let asked = move || {
        Python::attach(|py| {
            let (kind, told) = failed.told();
            let about = entry.told.about.clone_ref(py);
            let arguments = (about, kind, PyBytes::new(py, &told), request_id, spent.as_secs_f64());
            front.fail.call1(py, arguments)?.extract::<Vec<(String, String)>>(py)
        })
    };
    Some(headers(tokio::task::spawn_blocking(asked).await.ok()?.ok()?))
}

/// What is said inside the seal of a call that failed: a serialized `google.rpc.Status`; None where Python itself fails.
pub async fn fail_inside(front: Arc<Front>, entry: Arc<Entry>, failed: Failed, request_id: String) -> Option<Vec<u8>> {
    let asked = move || {
        Python::attach(|py| {
            let (kind, told) = failed.told();
            let arguments = (entry.told.about.clone_ref(py), kind, PyBytes::new(py, &told), request_id);
            front.fail_inside.call1(py, arguments)?.extract::<Vec<u8>>(py)
        })
    };
    tokio::task::spawn_blocking(asked).await.ok()?.ok()
}
