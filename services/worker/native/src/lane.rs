//! Calls that come over a lane: Python has read them, looked at their tokens and counted them in; what came sealed and was
//! answered before is answered in here.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;
use tokio::sync::Notify;

use crate::answer::FRAME_HEAD;
use crate::failure::Failed;
use crate::front::Front;
use crate::rope::Rope;
use crate::run::Ended;
use crate::sealed::Inside;
use crate::table::Ticket;
use crate::{monotonic, runtime};

/// An answer, and how busy its model is: calls, and the seconds that one waits and takes.
type Answered<'py> = (Bound<'py, PyBytes>, (usize, f64, f64));

/// A call that came over a lane.
#[pyclass(frozen, module = "sealane_native")]
pub struct Carried {
    left: Arc<Notify>,
    credential: String,
    ticket: OnceLock<Ticket>,
    front: Arc<Front>,
}

impl Carried {
    pub fn new(front: &Arc<Front>, credential: String) -> Self {
        Self { left: Arc::default(), credential, ticket: OnceLock::new(), front: Arc::clone(front) }
    }
}

#[pymethods]
impl Carried {
    /// Under which Python says what it came to; as long as this object is there. It is to be had before Python decides.
    #[getter]
    fn ticket(&self) -> u64 {
        self.ticket.get_or_init(|| self.front.table.begin(self.credential.as_bytes(), None)).number
    }

    /// Nobody waits for the answer any more.
    fn leave(&self) {
        self.left.notify_one();
    }

    /// Answer a request that came sealed as it was answered before, and say how busy its model is; None where nothing ran
    /// and Python is to answer it.
    ///
    /// Args:
    ///     body: the serialized request.
    ///     deadline: monotonic time at which nobody waits any more.
    ///     request_id: for what is said of a failure.
    ///
    /// Raises:
    ///     RuntimeError: it ran and failed, and Python could not say how.
    fn answer<'py>(
        &self,
        py: Python<'py>,
        body: PyBackedBytes,
        deadline: f64,
        request_id: String,
    ) -> PyResult<Option<Answered<'py>>> {
        let ran = py.detach(|| {
            let caller = self.front.table.caller(self.credential.as_bytes())?;
            // Python has counted it in.
            let (inside, ()) = Inside::of(&self.front, caller, &Rope::of(&body), |_| Some(()))?;
            let left = Duration::try_from_secs_f64(deadline - monotonic()).unwrap_or_default();
            let message = inside.message();
            let run = inside.run(&self.front, &message);
            let frame = runtime().block_on(async {
                match run.run(left, self.left.notified()).await {
                    Ended::NotRun => None,
                    Ended::Answered(frame) => Some(Some(frame)),
                    Ended::Failed(failed) => Some(run.failed_inside(failed, request_id).await),
                    Ended::Gone(()) => Some(run.failed_inside(Failed::Left, request_id).await),
                }
            });
            Some((frame?, run.entry.told.statistics.get().load()))
        });
        let Some((frame, load)) = ran else { return Ok(None) };
        let frame = frame.ok_or_else(|| PyRuntimeError::new_err("a failure could not be put in words"))?;
        Ok(Some((PyBytes::new(py, &frame[FRAME_HEAD..]), load)))
    }
}
