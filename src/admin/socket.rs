//! Where the socket is, how it is bound and how it is reached.

use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

use crate::error::{Because, Error, ErrorKind, Result};

/// The longest name that is used as it is. An address has 108 bytes, of which `/proc/self/fd/<number>/` and an end take some.
const LONGEST_NAME: usize = 80;

/// The control socket of a catalog file: the file's path with `.sock` after it, or a short name made from a long one.
pub fn socket_path(catalog: &Path) -> PathBuf {
    let mut name = OsString::from(catalog.file_name().unwrap_or_default());
    name.push(".sock");
    if name.as_bytes().len() > LONGEST_NAME {
        // The same in every run of the same program, which is all that is needed: both sides are one binary.
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        name = OsString::from(format!(".duckpipe-{:016x}.sock", hasher.finish()));
    }
    catalog.with_file_name(name)
}

/// A bound control socket; it is removed when dropped.
#[derive(Debug)]
pub struct ControlSocket {
    pub(super) listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Binds the socket of a catalog file, for this user only. One that a process left which died is replaced; where a process
    /// answers, another sync is running: that is an error, and nothing is touched.
    ///
    /// Call it while the catalog file is held open, so that no other process can be in the same place.
    pub async fn bind(catalog: &Path) -> Result<ControlSocket> {
        let path = socket_path(catalog);
        let describe = || format!("the control socket {}", path.display());
        match std::fs::symlink_metadata(&path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(Error::new(
                    ErrorKind::Precondition,
                    format!("{} is in the way: it is no socket", path.display()),
                )
                .remedy("move it away"));
            }
            Ok(_) if connect(&path).await.is_ok() => {
                return Err(Error::new(ErrorKind::Precondition, "another sync is running on this catalog")
                    .context(describe())
                    .remedy("stop it first; duckpipe status shows it"));
            }
            _ => {}
        }
        let listener = replace(&path).because(ErrorKind::Precondition, || format!("{} can't be made", describe()))?;
        Ok(ControlSocket { listener, path })
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // What is not removed here is replaced by the next sync.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Binds in a folder that nobody else may enter, and moves the socket to its place when its mode is right: so there is no
/// moment at which another user could connect, and a stale socket is replaced in one step.
fn replace(path: &Path) -> io::Result<UnixListener> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let private = tempfile::Builder::new()
        .prefix(".duckpipe-sock-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(folder)?;
    let listener = {
        let place = File::open(private.path())?;
        UnixListener::bind(below(&place, "s"))?
    };
    let made = private.path().join("s");
    std::fs::set_permissions(&made, Permissions::from_mode(0o600))?;
    std::fs::rename(&made, path)?;
    Ok(listener)
}

/// Connects to the socket at a path of any length.
pub(super) async fn connect(path: &Path) -> io::Result<UnixStream> {
    let folder = File::open(path.parent().unwrap_or(Path::new("/")))?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    UnixStream::connect(below(&folder, name)).await
}

/// A short path to a name in an open folder: socket addresses end after 107 bytes, paths do not.
fn below(folder: &File, name: impl AsRef<Path>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name)
}
