//! Runs on an NVIDIA GPU that are launched as a whole: what CUDA calls a graph.
//!
//! A small batch takes the processor longer to launch, kernel by kernel, than the GPU to compute. ONNX Runtime captures the launches of
//! one run, for each thread that runs the session, and replays them from then on, as long as inputs and outputs stay where they were in
//! the GPU's memory. A replay copies nothing there or back, so that is done here, by CUDA's driver.
#![expect(unsafe_code, reason = "neither `ort` nor ONNX Runtime copies between given places in memory")]

use std::ffi::{CString, c_int, c_void};
use std::ptr::{self, NonNull};
use std::sync::{LazyLock, PoisonError, RwLock, RwLockReadGuard};
use std::thread::{self, ThreadId};

use libloading::Library;
use ort::AsPointer;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, Session, SessionInputValue};
use ort::value::{DynTensor, DynValue, Shape, TensorElementType, ValueType};

/// While a thread captures, CUDA refuses what any other asks of it beyond launches, and the capture fails: so who captures is alone.
static CAPTURE: RwLock<()> = RwLock::new(());

/// Opening a session takes seconds, in which nobody can capture, but all others can run.
static OPENING: RwLock<()> = RwLock::new(());

/// Held while a GPU is used in any way, other than by [`Captured::run`], which holds it itself, and for opening a session.
pub(super) fn no_capture() -> RwLockReadGuard<'static, ()> {
    CAPTURE.read().unwrap_or_else(PoisonError::into_inner)
}

/// Held while a session is opened.
pub(super) fn opening() -> RwLockReadGuard<'static, ()> {
    OPENING.read().unwrap_or_else(PoisonError::into_inner)
}

/// A session's run with inputs and an output of certain shapes, in a place of their own in the GPU's memory.
pub(super) struct Captured {
    binding: IoBinding,
    inputs: Vec<Place>,
    output: Place,
    driver: &'static Driver,
    context: Context,
    /// Which captured it. Another has to do so anew.
    thread: Option<ThreadId>,
}

/// A tensor on the GPU.
struct Place {
    name: CString,
    tensor: DynTensor,
}

impl Captured {
    /// For runs like one that this thread has made, of these `inputs` and with this `answer`, on the GPU `device_id`.
    pub(super) fn like(
        session: &Session,
        device_id: u32,
        inputs: &[(&str, SessionInputValue<'_>)],
        (output, answer): (&str, &DynValue),
    ) -> Result<Self, ort::Error> {
        let driver = Driver::get()?;
        let device_id = i32::try_from(device_id).unwrap_or_default();
        let memory = MemoryInfo::new(AllocationDevice::CUDA, device_id, AllocatorType::Device, MemoryType::Default)?;
        let allocator = Allocator::new(session, memory)?;
        let place = |name: &str, value: &DynValue| {
            let (element_type, shape) = tensor_type(value)?;
            let name = CString::new(name).map_err(|error| ort::Error::new(error.to_string()))?;
            Ok::<_, ort::Error>(Place { name, tensor: DynTensor::new(&allocator, element_type, shape.clone())? })
        };
        let inputs = inputs.iter().map(|(name, value)| place(name, value)).collect::<Result<Vec<_>, _>>()?;
        let output = place(output, answer)?;
        let mut binding = session.create_binding()?;
        let to = binding.ptr_mut();
        // SAFETY: names and tensors live as long as the binding, in whose struct they are.
        unsafe {
            for Place { name, tensor } in &inputs {
                ort::Error::result_from_status((ort::api().BindInput)(to, name.as_ptr(), tensor.ptr()))?;
            }
            ort::Error::result_from_status((ort::api().BindOutput)(to, output.name.as_ptr(), output.tensor.ptr()))?;
        }
        Ok(Self { binding, inputs, output, driver, context: driver.current_context()?, thread: None })
    }

    /// Is it for inputs of these shapes, and for this output?
    pub(super) fn fits(&self, inputs: &[(&str, SessionInputValue<'_>)], output: &str) -> bool {
        let fits = |(place, (name, value)): (&Place, &(&str, SessionInputValue<'_>))| {
            place.name.as_bytes() == name.as_bytes() && tensor_type(&place.tensor).ok() == tensor_type(value).ok()
        };
        let alike = self.inputs.len() == inputs.len() && self.inputs.iter().zip(inputs).all(fits);
        alike && self.output.name.as_bytes() == output.as_bytes()
    }

    /// Runs what [`Self::fits`]; `None` if that cannot be captured now, because a session is being opened.
    pub(super) fn run(
        &mut self,
        session: &Session,
        inputs: &[(&str, SessionInputValue<'_>)],
    ) -> Result<Option<DynValue>, ort::Error> {
        let this = thread::current().id();
        if self.thread == Some(this) {
            let _no_capture = no_capture();
            return self.replay(session, inputs).map(Some);
        }
        let Ok(_nobody_opens) = OPENING.try_write() else { return Ok(None) };
        let _alone = CAPTURE.write().unwrap_or_else(PoisonError::into_inner);
        // The first such run of a thread captures.
        let answer = self.replay(session, inputs)?;
        self.thread = Some(this);
        Ok(Some(answer))
    }

    fn replay(&self, session: &Session, inputs: &[(&str, SessionInputValue<'_>)]) -> Result<DynValue, ort::Error> {
        self.driver.set_context(self.context)?;
        for (place, (_, value)) in self.inputs.iter().zip(inputs) {
            let (from, size) = contents(value)?;
            let (to, room) = contents(&place.tensor)?;
            // SAFETY: the value has so many bytes, and so has the place, which is on the GPU and of the same type and shape.
            unsafe { self.driver.copy_there(to, from, size.min(room))? };
        }
        self.driver.await_copies()?;
        // SAFETY: session and binding live until the call returns.
        unsafe {
            let run = (ort::api().RunWithBinding)(session.ptr().cast_mut(), ptr::null(), self.binding.ptr());
            ort::Error::result_from_status(run)?;
        }
        let (element_type, shape) = tensor_type(&self.output.tensor)?;
        let mut answer = DynTensor::new(&Allocator::default(), element_type, shape.clone())?;
        let (from, size) = contents(&self.output.tensor)?;
        // SAFETY: the answer is of the same type and shape as the place, which is on the GPU and has been written.
        unsafe { self.driver.copy_back(answer.data_ptr_mut(), from, size)? };
        Ok(answer.into_dyn())
    }
}

fn tensor_type<T: ort::value::ValueTypeMarker + ?Sized>(
    value: &ort::value::Value<T>,
) -> Result<(TensorElementType, &Shape), ort::Error> {
    match value.dtype() {
        ValueType::Tensor { ty, shape, .. } => Ok((*ty, shape)),
        other => Err(ort::Error::new(format!("{other} is no tensor"))),
    }
}

/// Where a tensor's values are, and how many bytes.
fn contents<T: ort::value::ValueTypeMarker + ?Sized>(
    value: &ort::value::Value<T>,
) -> Result<(*mut c_void, usize), ort::Error> {
    let (mut place, mut size) = (ptr::null_mut(), 0);
    // SAFETY: the value lives until the calls return.
    unsafe {
        ort::Error::result_from_status((ort::api().GetTensorMutableData)(value.ptr().cast_mut(), &mut place))?;
        ort::Error::result_from_status((ort::api().GetTensorSizeInBytes)(value.ptr(), &mut size))?;
    }
    Ok((place, size))
}

/// A `CUcontext`: what a process has on a GPU.
#[derive(Clone, Copy)]
struct Context(NonNull<c_void>);

// SAFETY: a context may be made the current one of any thread, and of several at once.
unsafe impl Send for Context {}

/// CUDA's driver, which is there wherever an NVIDIA GPU can be used.
struct Driver {
    current_context: unsafe extern "C" fn(*mut *mut c_void) -> c_int,
    set_context: unsafe extern "C" fn(*mut c_void) -> c_int,
    copy_there: unsafe extern "C" fn(u64, *const c_void, usize) -> c_int,
    copy_back: unsafe extern "C" fn(*mut c_void, u64, usize) -> c_int,
    await_stream: unsafe extern "C" fn(*mut c_void) -> c_int,
    /// Of which the functions are.
    _library: Library,
}

impl Driver {
    fn get() -> Result<&'static Self, ort::Error> {
        static DRIVER: LazyLock<Result<Driver, String>> =
            LazyLock::new(|| Driver::load().map_err(|error| error.to_string()));
        DRIVER.as_ref().map_err(ort::Error::new)
    }

    fn load() -> Result<Self, libloading::Error> {
        // SAFETY: the functions have these types since CUDA 4, and are kept with their library.
        unsafe {
            let library = Library::new("libcuda.so.1")?;
            Ok(Self {
                current_context: *library.get(b"cuCtxGetCurrent\0")?,
                set_context: *library.get(b"cuCtxSetCurrent\0")?,
                copy_there: *library.get(b"cuMemcpyHtoD_v2\0")?,
                copy_back: *library.get(b"cuMemcpyDtoH_v2\0")?,
                await_stream: *library.get(b"cuStreamSynchronize\0")?,
                _library: library,
            })
        }
    }

    /// This thread's.
    fn current_context(&self) -> Result<Context, ort::Error> {
        let mut context = ptr::null_mut();
        // SAFETY: it writes a pointer there.
        succeeded(unsafe { (self.current_context)(&mut context) })?;
        NonNull::new(context).map(Context).ok_or_else(|| ort::Error::new("the thread has not used the GPU"))
    }

    /// Makes `context` this thread's.
    fn set_context(&self, context: Context) -> Result<(), ort::Error> {
        // SAFETY: the GPU's primary context lives as long as the process.
        succeeded(unsafe { (self.set_context)(context.0.as_ptr()) })
    }

    /// # Safety
    /// `size` bytes can be read at `from`, and written at `to` on the GPU.
    unsafe fn copy_there(&self, to: *mut c_void, from: *const c_void, size: usize) -> Result<(), ort::Error> {
        // SAFETY: the caller's.
        succeeded(unsafe { (self.copy_there)(to.addr() as u64, from, size) })
    }

    /// What was copied there has arrived, also from memory that is not pinned, of which the driver makes a copy first.
    fn await_copies(&self) -> Result<(), ort::Error> {
        // SAFETY: copies are made on the default stream, whose handle is null.
        succeeded(unsafe { (self.await_stream)(ptr::null_mut()) })
    }

    /// # Safety
    /// `size` bytes can be read at `from` on the GPU, and written at `to`.
    unsafe fn copy_back(&self, to: *mut c_void, from: *const c_void, size: usize) -> Result<(), ort::Error> {
        // SAFETY: the caller's.
        succeeded(unsafe { (self.copy_back)(to, from.addr() as u64, size) })
    }
}

fn succeeded(code: c_int) -> Result<(), ort::Error> {
    match code {
        0 => Ok(()),
        code => Err(ort::Error::new(format!("CUDA's driver answers with error {code}"))),
    }
}
