//! The `duckpipe` program.

/// What threads free goes back to the system within seconds. glibc keeps it: a sorted rewrite within 512 MB peaked at 650 MB.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// One arena for each processor. jemalloc makes four, each of which keeps what was freed there: with them a sorted rewrite of files
/// with deletes peaked at 510 to 530 MB, with one at 440.
#[allow(unsafe_code, reason = "the name of the C string that jemalloc reads at its start")]
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static ALLOCATOR_OPTIONS: &[u8; 20] = b"percpu_arena:percpu\0";

fn main() {
    duckpipe::cli::main()
}
