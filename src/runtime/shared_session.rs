//! A session that several threads may run at once, so that its weights are in memory but once.
#![expect(
    unsafe_code,
    reason = "`ort` lets no two threads run a session at once, out of caution about providers for GPUs"
)]

use std::ffi::CString;
use std::ptr::{self, NonNull};

use ort::AsPointer;
use ort::session::{Session, SessionInputValue};
use ort::value::DynValue;

use super::batch_memory::BatchMemory;

/// A session whose runs may overlap. ONNX Runtime promises that of every session (`OrtApi::Run`, and its documentation of thread
/// safety); the caller lets it happen only with providers that have been seen to keep the promise, see
/// [`super::SessionOptions::shares_sessions`].
pub(super) struct SharedSession(Session);

impl SharedSession {
    pub(super) fn new(session: Session) -> Self {
        Self(session)
    }

    /// Memory that the GPU `device_id`, on which the session computes, reads by itself.
    pub(super) fn batch_memory(&self, device_id: u32) -> BatchMemory {
        BatchMemory::pinned(&self.0, device_id)
    }

    /// Runs `inputs`, by their names, and returns the output called `output`.
    pub(super) fn run(&self, inputs: &[(&str, SessionInputValue<'_>)], output: &str) -> Result<DynValue, ort::Error> {
        let name = |name: &str| CString::new(name).map_err(|error| ort::Error::new(error.to_string()));
        let names: Vec<CString> = inputs.iter().map(|(input, _)| name(input)).collect::<Result<_, _>>()?;
        let name_pointers: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
        let values: Vec<_> = inputs.iter().map(|(_, value)| value.ptr()).collect();
        let output_name = name(output)?;
        let mut answer = ptr::null_mut();
        // SAFETY: names and values live until the call returns, and their numbers are those of the slices. `answer` is null, so
        // ONNX Runtime makes the output and hands it over. The session lives as long as `self`.
        unsafe {
            let status = (ort::api().Run)(
                self.0.ptr().cast_mut(),
                ptr::null(),
                name_pointers.as_ptr(),
                values.as_ptr(),
                values.len(),
                &output_name.as_ptr(),
                1,
                &mut answer,
            );
            ort::Error::result_from_status(status)?;
            let answer = NonNull::new(answer).ok_or_else(|| ort::Error::new("the graph gave no output"))?;
            Ok(DynValue::from_ptr(answer, Some(self.0.allocator())))
        }
    }
}
