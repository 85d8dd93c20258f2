//! How a graph may be run: providers, arithmetic, sessions, threads and batch sizes.

use serde::{Deserialize, Serialize};

use super::LoadContext;
use crate::config::ModelSettings;
use crate::runtime::{ExecutionProvider, Precision};

/// How a graph is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) provider: ExecutionProvider,
    pub(super) precision: Precision,
    /// Batches run at once, each by a worker of its own; providers on the CPU share one session for them.
    pub(super) instances: usize,
    /// Inference threads per instance.
    pub(super) threads: usize,
    pub(super) max_batch_size: usize,
    /// The smallest size that an instance has a session of its own for, see [`crate::batching::session_sizes`]; `None`: it has one session for as
    /// many items as there are.
    pub(super) small_batch_size: Option<usize>,
    /// Threads of a further session, which runs lone items while no instance runs.
    pub(super) solo_threads: Option<usize>,
}

/// The plan that measuring starts from on `provider`: the reference's arithmetic where a request for another does not say
/// otherwise, and one session with all threads, for all sizes and without a solo one.
pub(super) fn first_plan(settings: &ModelSettings, provider: ExecutionProvider) -> Plan {
    let instances = settings.instances.unwrap_or(1);
    Plan {
        provider,
        precision: settings.precision.unwrap_or(Precision::F32),
        instances,
        threads: settings.threads_for(instances),
        max_batch_size: settings.batch_policy.max_batch_size,
        small_batch_size: None,
        solo_threads: None,
    }
}

/// The provider that was named, or those that `auto` tries, in the order in which they usually turn out. TensorRT is not
/// among them: it compiles for minutes, which nobody should meet without having asked for it.
pub(super) fn providers(context: &LoadContext, settings: &ModelSettings) -> Vec<ExecutionProvider> {
    if let Some(named) = settings.device {
        return vec![named];
    }
    [ExecutionProvider::Cuda, ExecutionProvider::OpenVino, ExecutionProvider::Cpu]
        .into_iter()
        .filter(|provider| context.runtime.providers.contains(provider))
        .filter(|provider| settings.precision.is_none_or(|precision| provider.refuses(precision).is_none()))
        .collect()
}
