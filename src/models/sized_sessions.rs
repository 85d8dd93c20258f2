//! Sessions of a plan for all the batch sizes that are to be measured.

use super::LoadError;
use super::graph_model::Binding;
use super::opener::{BatchSizes, Opener, Use, Warmed};
use super::plan::Plan;
use crate::batching::Role;

/// As many sessions as the plan has, for all sizes; or so many for each size, where a graph cannot be run with the number of items open:
/// OpenVINO gives up on Swin's.
pub(super) struct SizedSessions<B: Binding> {
    sets: Vec<Vec<Warmed<B>>>,
    sizes: Vec<usize>,
}

impl<B: Binding> SizedSessions<B> {
    /// Opens them for batches of the sizes `wanted`, which rise, in the way of `sizes` if that can be. Where each size needs sessions of
    /// its own, which takes a while and are in memory at once, they are opened for those that are `worth_it`.
    pub(super) fn open(
        opener: &Opener<B>,
        plan: &Plan,
        sizes: BatchSizes,
        mut wanted: Vec<usize>,
        worth_it: impl Fn(usize) -> bool,
    ) -> Result<Self, LoadError> {
        let open = |sizes| opener.open(plan, &Use { sizes, ..Use::of(plan, Role::Any) });
        let sets = match open(sizes) {
            Err(error)
                if !matches!(sizes, BatchSizes::Only(_))
                    && plan.provider.is_on_cpu()
                    && opener.can_fix_batch_size() =>
            {
                tracing::debug!(%error, "each batch size needs sessions of its own");
                wanted.retain(|&size| worth_it(size));
                wanted.iter().map(|&size| open(BatchSizes::Only(size))).collect::<Result<Vec<_>, _>>()?
            }
            outcome => {
                let set = outcome?;
                wanted = set.first().map(|session| session.model.batch_sizes(wanted)).unwrap_or_default();
                vec![set]
            }
        };
        Ok(Self { sets, sizes: wanted })
    }

    /// The sizes that they can be given.
    pub(super) fn sizes(&self) -> &[usize] {
        &self.sizes
    }

    /// Those for the size with this index.
    pub(super) fn of(&mut self, index: usize) -> &mut [Warmed<B>] {
        let last = self.sets.len().saturating_sub(1);
        self.sets.get_mut(index.min(last)).map_or(&mut [], Vec::as_mut_slice)
    }
}
