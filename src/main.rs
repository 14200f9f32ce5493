//! The `duckpipe` program.

/// What threads free goes back to the system within seconds. glibc keeps it: a sorted rewrite within 512 MB peaked at 650 MB, with
/// this one at 430.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    duckpipe::cli::main()
}
