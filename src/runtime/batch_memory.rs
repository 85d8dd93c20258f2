//! The memory in which a batch of images is put together, for a provider to read.
#![expect(unsafe_code, reason = "pinned memory comes as a pointer")]

use std::sync::{Arc, Mutex, PoisonError};

use ndarray::{Array4, ArrayView4, ArrayViewMut4, s};
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::Session;
use ort::value::Tensor;

use super::cuda_graph::no_capture;

/// As large as the largest batch so far, so that memory is not fetched anew for each. A clone is another one, empty.
///
/// For NVIDIA GPUs it is pinned: such memory they read themselves, while other is copied by the driver first.
#[derive(Default)]
pub struct BatchMemory {
    /// What gives pinned memory, where that is wanted.
    pinned: Option<Arc<Mutex<Allocator>>>,
    batch: Batch,
}

enum Batch {
    Pageable(Array4<f32>),
    /// With its shape.
    Pinned(Tensor<f32>, [usize; 4]),
}

impl Clone for BatchMemory {
    fn clone(&self) -> Self {
        Self { pinned: self.pinned.clone(), batch: Batch::default() }
    }
}

impl Drop for BatchMemory {
    fn drop(&mut self) {
        let _no_capture = self.pinned.is_some().then(no_capture);
        self.batch = Batch::default();
        self.pinned = None;
    }
}

impl BatchMemory {
    /// For the GPU `device_id`, on which `session` computes.
    pub(super) fn pinned(session: &Session, device_id: u32) -> Self {
        let (device, id) = (AllocationDevice::CUDA_PINNED, i32::try_from(device_id).unwrap_or_default());
        let memory = MemoryInfo::new(device, id, AllocatorType::Device, MemoryType::CPUInput);
        let allocator = pinned_or_warn(memory.and_then(|memory| Allocator::new(session, memory)));
        Self { pinned: allocator.map(|allocator| Arc::new(Mutex::new(allocator))), batch: Batch::default() }
    }

    /// Has a batch of the shape `[images, channels, height, width]` written, over what an earlier one left behind.
    pub fn put_together(
        &mut self,
        shape: [usize; 4],
        write: impl FnOnce(ArrayViewMut4<'_, f32>),
    ) -> ArrayView4<'_, f32> {
        let present = self.batch.shape();
        if present[0] < shape[0] || present[1..] != shape[1..] {
            self.batch = self.allocate(shape);
        }
        let place = s![..shape[0], .., .., ..];
        write(self.batch.view_mut().slice_move(place));
        self.batch.view().slice_move(place)
    }

    fn allocate(&self, shape: [usize; 4]) -> Batch {
        let pinned = self.pinned.as_ref().and_then(|allocator| {
            let _no_capture = no_capture();
            let allocator = allocator.lock().unwrap_or_else(PoisonError::into_inner);
            let mut tensor = pinned_or_warn(Tensor::<f32>::new(&allocator, shape))?;
            // SAFETY: the tensor has so many values of its own, which nobody has written yet; all bits 0 is 0.0.
            unsafe { tensor.data_ptr_mut().cast::<f32>().write_bytes(0, shape.iter().product()) };
            Some(Batch::Pinned(tensor, shape))
        });
        pinned.unwrap_or_else(|| Batch::Pageable(Array4::zeros(shape)))
    }
}

/// What goes on without it goes on more slowly.
fn pinned_or_warn<T>(outcome: Result<T, ort::Error>) -> Option<T> {
    let warn =
        |error: &ort::Error| tracing::warn!(%error, "no pinned memory can be had; batches take longer to the GPU");
    outcome.inspect_err(warn).ok()
}

impl Default for Batch {
    fn default() -> Self {
        Self::Pageable(Array4::zeros((0, 0, 0, 0)))
    }
}

impl Batch {
    fn shape(&self) -> [usize; 4] {
        match self {
            Self::Pageable(array) => array.dim().into(),
            Self::Pinned(_, shape) => *shape,
        }
    }

    fn view(&self) -> ArrayView4<'_, f32> {
        match self {
            Self::Pageable(array) => array.view(),
            // SAFETY: as in `view_mut`.
            Self::Pinned(tensor, shape) => unsafe { ArrayView4::from_shape_ptr(*shape, tensor.data_ptr().cast()) },
        }
    }

    fn view_mut(&mut self) -> ArrayViewMut4<'_, f32> {
        match self {
            Self::Pageable(array) => array.view_mut(),
            // SAFETY: the tensor was made with this shape, in memory that the processor can reach, and is borrowed as long as the view.
            Self::Pinned(tensor, shape) => unsafe {
                ArrayViewMut4::from_shape_ptr(*shape, tensor.data_ptr_mut().cast())
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_grows_with_the_largest_batch_and_is_used_again() {
        let mut memory = BatchMemory::default();
        assert_eq!(memory.put_together([2, 3, 4, 5], |mut batch| batch.fill(1.0)).sum(), 120.0);
        assert_eq!(memory.put_together([1, 3, 4, 5], |mut batch| batch.fill(2.0)).sum(), 120.0);
        assert_eq!(memory.put_together([2, 3, 4, 5], |_| {}).sum(), 180.0);
        assert_eq!(memory.put_together([3, 3, 4, 5], |_| {}).dim(), (3, 3, 4, 5));
        assert_eq!(memory.put_together([1, 3, 5, 4], |_| {}).dim(), (1, 3, 5, 4), "images of another shape");
        assert_eq!(memory.clone().batch.shape(), [0; 4]);
    }
}
