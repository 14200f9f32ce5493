//! A new file that grows while it is sent.

use bytes::{Bytes, BytesMut};
use object_store::{ObjectStoreExt, WriteMultipart};
use tokio::task::JoinHandle;

use crate::error::{Result, StorageError};
use crate::local::LocalFile;
use crate::store::{Store, blocking, ended};

/// The parts of a multipart upload: S3 allows 10,000 of them, at least 5 MiB each.
const PART_BYTES: usize = 8 * 1024 * 1024;
/// How many parts are on the way at once.
const PARTS_AT_ONCE: usize = 2;

/// A file on its way into the store. Dropped before [`Upload::finish`], it is given up: nothing bears its name, and the parts
/// that were sent are removed as far as the store can be reached.
pub(crate) struct Upload {
    store: Store,
    path: String,
    state: State,
}

enum State {
    /// The bytes that were taken last are written while the next ones are made.
    Folder(Option<Writing>),
    /// Less than a part: sent by one request at the end.
    Small(BytesMut),
    Parts(Option<WriteMultipart>),
}

/// A local file with a write under way.
struct Writing {
    file: JoinHandle<Result<LocalFile>>,
    bytes: usize,
}

impl Writing {
    fn start(bytes: Bytes, mut file: LocalFile) -> Writing {
        let length = bytes.len();
        let write = move || {
            file.write(&bytes)?;
            Ok(file)
        };
        Writing { file: tokio::task::spawn_blocking(write), bytes: length }
    }

    async fn end(self) -> Result<LocalFile> {
        ended(self.file.await)
    }
}

impl Upload {
    pub(crate) async fn begin(store: &Store, path: &str) -> Result<Upload> {
        let state = match store.local_path(path)? {
            Some(local) => {
                let file = blocking(move || LocalFile::create(local)).await?;
                State::Folder(Some(Writing::start(Bytes::new(), file)))
            }
            None => State::Small(BytesMut::new()),
        };
        Ok(Upload { store: store.clone(), path: path.to_string(), state })
    }

    pub(crate) async fn write(&mut self, mut bytes: Bytes) -> Result<()> {
        if let State::Small(buffer) = &mut self.state {
            if buffer.len() + bytes.len() < PART_BYTES {
                buffer.extend_from_slice(&bytes);
                return Ok(());
            }
            let location = self.store.location(&self.path)?;
            let begun = self.store.objects().put_multipart(&location).await;
            let begun = begun.map_err(self.store.failed("begin the upload of", &self.path))?;
            let mut parts = WriteMultipart::new_with_chunk_size(begun, PART_BYTES);
            parts.put(std::mem::take(buffer).freeze());
            self.state = State::Parts(Some(parts));
        }
        match &mut self.state {
            State::Folder(writing) => {
                let before = writing.take().ok_or_else(|| given_up(&self.path))?;
                *writing = Some(Writing::start(bytes, before.end().await?));
            }
            State::Parts(parts) => {
                // In small steps, so that no more than the allowed parts are on the way.
                while !bytes.is_empty() {
                    let step = bytes.split_to(bytes.len().min(PART_BYTES));
                    let open = parts.as_mut().ok_or_else(|| given_up(&self.path))?;
                    if let Err(error) = open.wait_for_capacity(PARTS_AT_ONCE).await {
                        give_up(parts.take()).await;
                        return Err(self.store.failed("upload", &self.path)(error));
                    }
                    open.put(step);
                }
            }
            State::Small(_) => {}
        }
        Ok(())
    }

    /// Makes the file whole and durable.
    pub(crate) async fn finish(mut self) -> Result<()> {
        match &mut self.state {
            State::Folder(writing) => {
                let last = writing.take().ok_or_else(|| given_up(&self.path))?;
                let file = last.end().await?;
                blocking(move || file.finish()).await
            }
            State::Small(buffer) => {
                let bytes = std::mem::take(buffer).freeze();
                self.store.put(&self.path, bytes).await
            }
            State::Parts(parts) => {
                let mut open = parts.take().ok_or_else(|| given_up(&self.path))?;
                // What `finish` itself would wait for; but where a part failed it would leave the others behind.
                if let Err(error) = open.wait_for_capacity(0).await {
                    give_up(Some(open)).await;
                    return Err(self.store.failed("upload", &self.path)(error));
                }
                open.finish().await.map_err(self.store.failed("end the upload of", &self.path)).map(|_| ())
            }
        }
    }

    /// Gives the file up, and returns when nothing of it is left, as far as the store can be reached.
    pub(crate) async fn abort(mut self) {
        match &mut self.state {
            State::Parts(parts) => give_up(parts.take()).await,
            State::Folder(writing) => {
                if let Some(last) = writing.take() {
                    // The file goes either way.
                    let _ = last.end().await;
                }
            }
            State::Small(_) => {}
        }
    }

    /// Memory in use, in bytes.
    pub(crate) fn memory(&self) -> usize {
        match &self.state {
            State::Folder(writing) => writing.as_ref().map_or(0, |writing| writing.bytes),
            State::Small(buffer) => buffer.capacity(),
            State::Parts(_) => PART_BYTES * (PARTS_AT_ONCE + 1),
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let State::Parts(parts) = &mut self.state
            && let Some(open) = parts.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(give_up(Some(open)));
        }
    }
}

/// Best effort: a bucket's lifecycle rule removes what stays behind, and nothing of it bears the file's name.
async fn give_up(parts: Option<WriteMultipart>) {
    if let Some(parts) = parts
        && let Err(error) = parts.abort().await
    {
        tracing::warn!(%error, "the parts of an upload that was given up could not be removed");
    }
}

fn given_up(path: &str) -> StorageError {
    StorageError::invalid(path, "the upload was given up")
}
