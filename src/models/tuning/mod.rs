//! Tuning: how a graph is best run is measured while it is being served, chosen, and kept for later starts.

mod cache;
mod choice;
mod contest;
pub(super) mod probe;
pub(super) mod timing;
mod trial;
mod tuner;

pub(super) use self::cache::TuningCache;
pub use self::choice::{Candidate, Speed, Tuning};
pub(super) use self::choice::{Latitude, choose};
pub use self::trial::measure_for_server;
pub(super) use self::tuner::{Found, Judgement, Probabilities, Stage};
