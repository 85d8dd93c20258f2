//! A session that several threads may run at once, so that its weights are in memory but once, or whose runs a GPU repeats.
#![expect(
    unsafe_code,
    reason = "`ort` lets no two threads run a session at once, out of caution about providers for GPUs"
)]

use std::ffi::CString;
use std::mem::ManuallyDrop;
use std::ptr::{self, NonNull};
use std::sync::{Mutex, PoisonError};

use ort::AsPointer;
use ort::session::{RunOptions, Session, SessionInputValue};
use ort::value::DynValue;

use super::batch_memory::Pinning;
use super::cuda_graph::{Captured, no_capture};
use super::mapped_files::may_map;

/// A session whose runs may overlap, unless they are captured. ONNX Runtime promises that of every session (`OrtApi::Run`, and its
/// documentation of thread safety); the caller lets it happen only with providers that have been seen to keep the promise, see
/// [`super::SessionOptions::shares_sessions`].
pub(super) struct SharedSession {
    session: ManuallyDrop<Session>,
    /// On which it computes.
    gpu: Option<Gpu>,
}

/// An NVIDIA GPU.
pub(super) struct Gpu {
    pub(super) device_id: u32,
    /// Where all runs have the same shapes, and the session was opened to be captured.
    pub(super) capture: Option<Capture>,
}

/// What becomes of a session's runs on a GPU.
pub(super) struct Capture {
    state: Mutex<State>,
    /// For a run that is neither captured nor a replay.
    not_captured: RunOptions,
}

enum State {
    /// The first run shows the shapes.
    NotYet,
    Captured(Box<Captured>),
    /// It does not work.
    Never,
}

impl Capture {
    pub(super) fn new() -> Result<Self, ort::Error> {
        let mut not_captured = RunOptions::new()?;
        not_captured.set("gpu_graph_id", "-1")?;
        Ok(Self { state: Mutex::new(State::NotYet), not_captured })
    }
}

impl State {
    fn failed(error: &ort::Error) -> Self {
        tracing::warn!(%error, "runs on the GPU cannot be captured; each is launched kernel by kernel");
        Self::Never
    }
}

impl Drop for SharedSession {
    fn drop(&mut self) {
        let gpu = self.gpu.take();
        let _no_capture = gpu.is_some().then(no_capture);
        let _may_map = may_map();
        drop(gpu);
        // SAFETY: nothing uses it any more.
        unsafe { ManuallyDrop::drop(&mut self.session) };
    }
}

impl SharedSession {
    pub(super) fn new(session: Session, gpu: Option<Gpu>) -> Self {
        Self { session: ManuallyDrop::new(session), gpu }
    }

    /// Memory that the GPU reads by itself, if the session computes on one.
    pub(super) fn pinning(&self) -> Pinning {
        self.gpu.as_ref().map_or_else(Pinning::default, |gpu| Pinning::of(&self.session, gpu.device_id))
    }

    /// Does it compute on a GPU?
    pub(super) fn is_on_gpu(&self) -> bool {
        self.gpu.is_some()
    }

    /// Runs `inputs`, by their names, and returns the output called `output`.
    pub(super) fn run(&self, inputs: &[(&str, SessionInputValue<'_>)], output: &str) -> Result<DynValue, ort::Error> {
        match &self.gpu {
            None => self.run_by_itself(inputs, output, None),
            Some(Gpu { capture: None, .. }) => {
                let _no_capture = no_capture();
                self.run_by_itself(inputs, output, None)
            }
            Some(Gpu { device_id, capture: Some(capture) }) => self.run_captured(inputs, output, *device_id, capture),
        }
    }

    fn run_captured(
        &self,
        inputs: &[(&str, SessionInputValue<'_>)],
        output: &str,
        device_id: u32,
        capture: &Capture,
    ) -> Result<DynValue, ort::Error> {
        let mut state = capture.state.lock().unwrap_or_else(PoisonError::into_inner);
        let failure = match &mut *state {
            State::Captured(captured) if captured.fits(inputs, output) => match captured.run(&self.session, inputs) {
                Ok(Some(answer)) => return Ok(answer),
                Ok(None) => None,
                Err(error) => Some(error),
            },
            _ => None,
        };
        let _no_capture = no_capture();
        if let Some(error) = failure {
            *state = State::failed(&error);
        }
        let answer = self.run_by_itself(inputs, output, Some(&capture.not_captured))?;
        if let State::NotYet = *state {
            let captured = Captured::like(&self.session, device_id, inputs, (output, &answer));
            *state = captured.map_or_else(|error| State::failed(&error), |it| State::Captured(Box::new(it)));
        }
        Ok(answer)
    }

    fn run_by_itself(
        &self,
        inputs: &[(&str, SessionInputValue<'_>)],
        output: &str,
        options: Option<&RunOptions>,
    ) -> Result<DynValue, ort::Error> {
        let name = |name: &str| CString::new(name).map_err(|error| ort::Error::new(error.to_string()));
        let names: Vec<CString> = inputs.iter().map(|(input, _)| name(input)).collect::<Result<_, _>>()?;
        let name_pointers: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
        let values: Vec<_> = inputs.iter().map(|(_, value)| value.ptr()).collect();
        let output_name = name(output)?;
        let mut answer = ptr::null_mut();
        // SAFETY: names, values and options live until the call returns, and the numbers of the first two are those of the slices.
        // `answer` is null, so ONNX Runtime makes the output and hands it over. The session lives as long as `self`.
        unsafe {
            let status = (ort::api().Run)(
                self.session.ptr().cast_mut(),
                options.map_or(ptr::null(), AsPointer::ptr),
                name_pointers.as_ptr(),
                values.as_ptr(),
                values.len(),
                &output_name.as_ptr(),
                1,
                &mut answer,
            );
            ort::Error::result_from_status(status)?;
            let answer = NonNull::new(answer).ok_or_else(|| ort::Error::new("the graph gave no output"))?;
            Ok(DynValue::from_ptr(answer, Some(self.session.allocator())))
        }
    }
}
