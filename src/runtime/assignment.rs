//! Which provider really computes which nodes, as ONNX Runtime itself tells.
#![expect(unsafe_code, reason = "`ort` has no safe call for this part of ONNX Runtime's API yet")]

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char};

use ort::AsPointer;
use ort::session::Session;

use super::RuntimeError;

/// The session option that makes ONNX Runtime keep this record.
pub(super) const RECORD_KEY: &str = "session.record_ep_graph_assignment_info";

/// Nodes by ONNX Runtime's name of the provider that computes them. The session must have been built with [`RECORD_KEY`] on.
pub(super) fn nodes_by_provider(session: &Session) -> Result<BTreeMap<String, usize>, RuntimeError> {
    let api = ort::api();
    let mut counts = BTreeMap::new();
    // SAFETY: every pointer that ONNX Runtime fills in here points into the session, which is borrowed meanwhile, and is
    // read only after its call reported success. The lengths are those that came with the pointers.
    unsafe {
        let (mut subgraphs, mut length) = (std::ptr::null(), 0);
        check(|| (api.Session_GetEpGraphAssignmentInfo)(session.ptr(), &mut subgraphs, &mut length))?;
        for index in 0..length {
            let subgraph = *subgraphs.add(index);
            let mut name: *const c_char = std::ptr::null();
            check(|| (api.EpAssignedSubgraph_GetEpName)(subgraph, &mut name))?;
            let (mut nodes, mut count) = (std::ptr::null(), 0);
            check(|| (api.EpAssignedSubgraph_GetNodes)(subgraph, &mut nodes, &mut count))?;
            let name = CStr::from_ptr(name).to_string_lossy().into_owned();
            *counts.entry(name).or_default() += count;
        }
    }
    Ok(counts)
}

fn check(call: impl FnOnce() -> ort::sys::OrtStatusPtr) -> Result<(), RuntimeError> {
    // SAFETY: the status comes straight from the call and is handed over once.
    let result = unsafe { ort::Error::result_from_status(call()) };
    result.map_err(|error| RuntimeError::Graph(error.to_string()))
}
