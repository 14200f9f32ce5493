//! The `duckpipe` program.

fn main() {
    duckpipe::cli::main()
}
