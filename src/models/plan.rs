//! How a graph may be run: providers, arithmetic, sessions, threads and batch sizes.

use serde::{Deserialize, Serialize};

use super::LoadContext;
use crate::batching::Role;
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
    /// A further session, which runs lone items and what is too few for a batch, while half of the others are idle.
    pub(super) solo: Option<Solo>,
}

/// The session of a solo worker, or two: one for lone items, and one for a few at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Solo {
    pub(super) threads: usize,
    pub(super) max_batch_size: usize,
}

impl Plan {
    /// Which jobs its workers take, a solo one apart.
    pub(super) fn role(&self) -> Role {
        if self.solo.is_some() { Role::Full } else { Role::Any }
    }
}

/// The plan that measuring starts from on `provider`: the reference's arithmetic where a request for another does not say
/// otherwise, and one session with all threads.
pub(super) fn first_plan(settings: &ModelSettings, provider: ExecutionProvider) -> Plan {
    let instances = settings.instances.unwrap_or(1);
    Plan {
        provider,
        precision: settings.precision.unwrap_or(Precision::F32),
        instances,
        threads: settings.threads_for(instances),
        max_batch_size: settings.batch_policy.max_batch_size,
        solo: settings.solo_threads.map(|threads| Solo {
            threads,
            max_batch_size: settings.solo_max_batch_size.unwrap_or(1).min(settings.batch_policy.max_batch_size),
        }),
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
