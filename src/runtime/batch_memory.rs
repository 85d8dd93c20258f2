//! The memory in which a batch of images is put together, for a provider to read.
#![expect(unsafe_code, reason = "pinned memory comes as a pointer")]

use std::fmt::Debug;
use std::mem::MaybeUninit;
use std::slice;
use std::sync::{Arc, Mutex, PoisonError};

use ndarray::{Array4, ArrayView4, ArrayViewMut4, s};
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::Session;
use ort::value::{PrimitiveTensorElementType, Tensor};

use super::cuda_graph::no_capture;

/// How a session's batches come by their memory. For NVIDIA GPUs it is pinned: such memory they read themselves, while other is copied
/// by the driver first.
#[derive(Clone, Default)]
pub struct Pinning(Option<Arc<Mutex<Allocator>>>);

impl Pinning {
    /// For the GPU `device_id`, on which `session` computes.
    pub(super) fn of(session: &Session, device_id: u32) -> Self {
        let (device, id) = (AllocationDevice::CUDA_PINNED, i32::try_from(device_id).unwrap_or_default());
        let memory = MemoryInfo::new(device, id, AllocatorType::Device, MemoryType::CPUInput);
        let allocator = pinned_or_warn(memory.and_then(|memory| Allocator::new(session, memory)));
        Self(allocator.map(|allocator| Arc::new(Mutex::new(allocator))))
    }
}

/// What a batch may consist of.
pub trait Element: PrimitiveTensorElementType + Debug + Copy + Default + Send + Sync + 'static {}

impl Element for f32 {}
impl Element for u8 {}

/// As large as the largest batch so far, so that memory is not fetched anew for each. A clone is another one, empty.
#[derive(Default)]
pub struct BatchMemory<T: Element> {
    pinning: Pinning,
    batch: Batch<T>,
}

enum Batch<T: Element> {
    Pageable(Array4<T>),
    /// With its shape.
    Pinned(Tensor<T>, [usize; 4]),
}

impl<T: Element> Clone for BatchMemory<T> {
    fn clone(&self) -> Self {
        Self::new(self.pinning.clone())
    }
}

impl<T: Element> Drop for BatchMemory<T> {
    fn drop(&mut self) {
        let _no_capture = self.pinning.0.is_some().then(no_capture);
        self.batch = Batch::default();
        self.pinning = Pinning(None);
    }
}

impl<T: Element> BatchMemory<T> {
    /// Empty.
    pub fn new(pinning: Pinning) -> Self {
        Self { pinning, batch: Batch::default() }
    }

    /// Has a batch of this shape, whose first dimension are its items, written, over what an earlier one left behind.
    pub fn put_together(&mut self, shape: [usize; 4], write: impl FnOnce(ArrayViewMut4<'_, T>)) -> ArrayView4<'_, T> {
        let present = self.batch.shape();
        if present[0] < shape[0] || present[1..] != shape[1..] {
            self.batch = self.allocate(shape);
        }
        let place = s![..shape[0], .., .., ..];
        write(self.batch.view_mut().slice_move(place));
        self.batch.view().slice_move(place)
    }

    fn allocate(&self, shape: [usize; 4]) -> Batch<T> {
        let pinned = self.pinning.0.as_ref().and_then(|allocator| {
            let _no_capture = no_capture();
            let allocator = allocator.lock().unwrap_or_else(PoisonError::into_inner);
            let mut tensor = pinned_or_warn(Tensor::<T>::new(&allocator, shape))?;
            // SAFETY: the tensor has so many values of its own, which nobody has written yet.
            let values = unsafe {
                slice::from_raw_parts_mut(tensor.data_ptr_mut().cast::<MaybeUninit<T>>(), shape.iter().product())
            };
            values.fill(MaybeUninit::new(T::default()));
            Some(Batch::Pinned(tensor, shape))
        });
        pinned.unwrap_or_else(|| Batch::Pageable(Array4::default(shape)))
    }
}

/// What goes on without it goes on more slowly.
fn pinned_or_warn<T>(outcome: Result<T, ort::Error>) -> Option<T> {
    let warn =
        |error: &ort::Error| tracing::warn!(%error, "no pinned memory can be had; batches take longer to the GPU");
    outcome.inspect_err(warn).ok()
}

impl<T: Element> Default for Batch<T> {
    fn default() -> Self {
        Self::Pageable(Array4::default((0, 0, 0, 0)))
    }
}

impl<T: Element> Batch<T> {
    fn shape(&self) -> [usize; 4] {
        match self {
            Self::Pageable(array) => array.dim().into(),
            Self::Pinned(_, shape) => *shape,
        }
    }

    fn view(&self) -> ArrayView4<'_, T> {
        match self {
            Self::Pageable(array) => array.view(),
            // SAFETY: as in `view_mut`.
            Self::Pinned(tensor, shape) => unsafe { ArrayView4::from_shape_ptr(*shape, tensor.data_ptr().cast()) },
        }
    }

    fn view_mut(&mut self) -> ArrayViewMut4<'_, T> {
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
        let mut memory = BatchMemory::<f32>::default();
        assert_eq!(memory.put_together([2, 3, 4, 5], |mut batch| batch.fill(1.0)).sum(), 120.0);
        assert_eq!(memory.put_together([1, 3, 4, 5], |mut batch| batch.fill(2.0)).sum(), 120.0);
        assert_eq!(memory.put_together([2, 3, 4, 5], |_| {}).sum(), 180.0);
        assert_eq!(memory.put_together([3, 3, 4, 5], |_| {}).dim(), (3, 3, 4, 5));
        assert_eq!(memory.put_together([1, 3, 5, 4], |_| {}).dim(), (1, 3, 5, 4), "images of another shape");
        assert_eq!(memory.clone().batch.shape(), [0; 4]);
    }
}
