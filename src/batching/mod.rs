//! Dynamic batching: a queue per graph, and workers that take batches from it. Knows no HTTP, no image, no runtime.

mod gate;
mod policy;
mod queue;
mod run_times;
mod solo_load;
mod worker;

pub use gate::{ClosedGate, RunGate};
pub use policy::{BatchPolicy, Role, session_sizes};
pub use queue::{Announcement, BatchQueue, Crew, Job, Permit};
pub use worker::{Straggler, Worker};

use std::time::Duration;

/// Something that answers a batch at a time.
pub trait Model: Send + 'static {
    /// One job's input.
    type Input: Send;
    /// One job's answer.
    type Output: Send;

    /// Answers `batch`: one output for each input, in their order.
    ///
    /// # Errors
    /// What went wrong, for the log; it fails this batch alone.
    fn run(&mut self, batch: &[Self::Input]) -> Result<Vec<Self::Output>, String>;

    /// Prepares for the thread that will run it, which calls this first. What goes wrong shows when a batch is run.
    fn warm_up(&mut self) {}
}

/// What a job's client gets.
#[derive(Debug)]
pub struct Answer<O> {
    /// The model's output.
    pub output: O,
    /// From the queue's door to the start of the run.
    pub queue: Duration,
    /// The run of the whole batch.
    pub inference: Duration,
}

/// Why a job was not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InferenceError {
    /// The queue holds as many jobs as it may.
    #[error("the queue is full")]
    QueueFull,
    /// At the present pace the job's turn would come after its deadline.
    #[error("the deadline cannot be met at the present load")]
    DeadlineUnreachable,
    /// The deadline passed while the job waited.
    #[error("the deadline passed while the work was queued or running")]
    DeadlineExceeded,
    /// The model broke and could not be rebuilt yet.
    #[error("the model broke, and could not be rebuilt yet")]
    Broken,
    /// The model is being unloaded, or the server stopped.
    #[error("the model no longer takes work")]
    Closed,
    /// The run failed or panicked; the text is for the log.
    #[error("inference failed: {0}")]
    Failed(String),
}
