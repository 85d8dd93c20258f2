//! Giving back to the system what loading a graph needed.
#![cfg_attr(
    all(target_os = "linux", target_env = "gnu"),
    expect(unsafe_code, reason = "a call of the C library without a safe wrapper")
)]

/// Returns memory that ONNX Runtime and its providers have freed but glibc keeps, some tens of megabytes after a graph was
/// compiled. Elsewhere the allocator does so by itself.
pub fn give_back_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: malloc_trim only touches memory that is free, and may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
