//! One session of a graph as a model of the queue: how it takes items, and what it answers.

use std::sync::Arc;

use ndarray::{Array2, Axis};

use crate::batching::Model;
use crate::runtime::{Graph, Pinning, PixelTable, RuntimeError, Tensor, TensorSpec};

/// How a graph takes a batch of one kind of item. Made once a graph's inputs are known.
pub(super) trait Binding: Clone + Send + Sync + 'static {
    /// What the queue holds.
    type Item: Clone + Send + Sync + 'static;

    /// Finds the inputs that such items go to, and what fills those of the other encoder in a combined graph.
    fn bind(&self, inputs: &[TensorSpec]) -> Result<Self, String>;
    /// The batch size that the graph insists on, if it does.
    fn fixed_batch_size(&self) -> Option<usize>;
    /// `(smallest, largest)` shape of `input` without the batch dimension.
    fn shape_range(&self, input: &TensorSpec) -> (Vec<usize>, Vec<usize>);
    /// The shape of each item, where all have the same.
    fn item_shape(&self) -> Option<Vec<usize>>;
    /// The longest side of the pictures that the graph is given.
    fn largest_side(&self) -> usize;
    /// What becomes of each byte of a picture, if the graph can be given bytes.
    fn pixel_table(&self) -> Option<Arc<PixelTable>>;
    /// Puts batches together in such memory, where that is worth it.
    fn pinned(self, pinning: Pinning) -> Self;
    /// Fills batches up to `size`, if all items have the same shape.
    fn filled_up_to(self, size: usize) -> Self;
    /// Puts a batch together.
    fn stack<'a>(&'a mut self, batch: &'a [Self::Item]) -> Vec<(&'a str, Tensor<'a>)>;
    /// Items to warm up with: the shapes that the graph will meet.
    fn samples(&self) -> Vec<Self::Item>;
}

/// One session of a graph, ready to run, or a share in one.
#[derive(Clone)]
pub(super) struct GraphModel<B: Binding> {
    pub(super) graph: Graph,
    pub(super) binding: B,
    pub(super) output: String,
    /// Another session for fewer items, beside one that takes as long for them as for as many as it is for. It may have one in turn.
    pub(super) small: Option<Small<B>>,
}

/// A session for small batches.
#[derive(Clone)]
pub(super) struct Small<B: Binding> {
    /// Most items in one.
    pub(super) batch_size: usize,
    pub(super) model: Box<GraphModel<B>>,
}

impl<B: Binding> Model for GraphModel<B> {
    type Input = B::Item;
    type Output = Vec<f32>;

    fn run(&mut self, batch: &[B::Item]) -> Result<Vec<Vec<f32>>, String> {
        let rows = self.rows(batch).map_err(|error| error.to_string())?;
        Ok(rows.axis_iter(Axis(0)).take(batch.len()).map(|row| row.to_vec()).collect())
    }

    fn warm_up(&mut self) {
        if self.graph.prepares_for_each_thread() {
            for size in self.batch_sizes(vec![1]) {
                let _ = self.run_samples(size);
            }
        }
    }
}

impl<B: Binding> GraphModel<B> {
    pub(super) fn rows(&mut self, batch: &[B::Item]) -> Result<Array2<f32>, RuntimeError> {
        if let Some(small) = self.small.as_mut().filter(|small| batch.len() <= small.batch_size) {
            return small.model.rows(batch);
        }
        self.graph.run(&self.binding.stack(batch), &self.output)
    }

    /// The batch sizes `wanted`, or those that there can be.
    pub(super) fn batch_sizes(&self, wanted: Vec<usize>) -> Vec<usize> {
        let Some(size) = self.binding.fixed_batch_size() else { return wanted };
        let smaller = |small: &Small<B>| small.model.batch_sizes(vec![small.batch_size]);
        self.small.as_ref().map_or_else(Vec::new, smaller).into_iter().chain([size]).collect()
    }

    /// Runs a batch of `size` samples, and checks that it gives as many answers. Returns the length of one.
    pub(super) fn run_samples(&mut self, size: usize) -> Result<usize, RuntimeError> {
        let mut width = 0;
        for sample in self.binding.samples() {
            let rows = self.rows(&vec![sample; size])?;
            if rows.nrows() != size {
                return Err(RuntimeError::Graph(format!("a batch of {size} gave {} answers", rows.nrows())));
            }
            width = rows.ncols();
        }
        Ok(width)
    }
}
