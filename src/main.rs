//! The `ocelli` command: arguments to configuration to run to exit code; nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    ocelli::cli::main()
}
