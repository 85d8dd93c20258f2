//! Keeping what loading a graph needs from staying with the process.
#![cfg_attr(
    all(target_os = "linux", target_env = "gnu"),
    expect(unsafe_code, reason = "calls of the C library without a safe wrapper")
)]

/// Blocks of this many bytes and more are given back to the system as soon as they are freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE_BLOCK: i32 = 1 << 20;

/// So many freed bytes are kept for the next pictures and tensors, which come and go by the megabyte.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT: i32 = 64 << 20;

/// Returns memory that ONNX Runtime and its providers have freed but glibc keeps, some tens of megabytes after a graph was
/// compiled. Elsewhere the allocator does so by itself.
pub fn give_back_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: malloc_trim only touches memory that is free, and may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Fixes two bounds that glibc would move. With each large block that is freed it takes larger ones for small; soon weights and
/// activations lie between small blocks, and their memory is there to stay (with a graph of 18 MB, 50 to 90 MB). And it gives
/// back the pages of one picture that the next one faults in anew.
pub fn set_up_allocator() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt sets a number under malloc's own lock.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BLOCK);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}
