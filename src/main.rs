//! The `duckpipe` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    duckpipe::cli::main()
}
