//! The end of the process.

use std::io::Write;

/// Ends the process at once, without its exit handlers. All that must last is durable by then; and the handlers of the libraries
/// that DuckDB's extensions carry free what threads on their way out still use (seen as "double free or corruption" after
/// a run that had done its work).
pub(super) fn exit(code: u8) -> ! {
    // Nobody is left to be told that a reader has gone away.
    let _ = std::io::stdout().flush();
    let _ = std::io::stderr().flush();
    // SAFETY: `_exit` takes any number and touches no memory.
    #[allow(unsafe_code)]
    unsafe {
        libc::_exit(i32::from(code))
    }
}
