//! The `ocelli` command: arguments to configuration to run to exit code; nothing else.

use std::process::ExitCode;

/// Pictures and tensors come and go by the megabyte; glibc would give their pages back to the system and fault them in anew
/// each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    ocelli::cli::main()
}
