//! The place where a lake's files lie: a folder or a bucket.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, GetOptions, GetRange, ObjectStore, ObjectStoreExt, RetryConfig};
use parquet::arrow::async_reader::ParquetObjectReader;
use uuid::Uuid;

use crate::credentials::{CredentialSource, ForObjectStore, S3Credentials};
use crate::error::{Result, StorageError};
use crate::local::{self, LocalFile, PARTIAL_SUFFIX};
use crate::settings::S3Settings;

/// A folder or a bucket. Cheap to clone.
///
/// Paths are relative to it and `/`-separated; the absolute form that [`Store::url`] makes is understood too.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// What every path begins with in messages and in the lake: `/folder` or `s3://bucket/prefix`.
    root: String,
    /// The same as `objects` sees it.
    base: Path,
    objects: Arc<dyn ObjectStore>,
    place: Place,
}

#[derive(Debug)]
pub(crate) enum Place {
    Folder(PathBuf),
    Bucket(Arc<CredentialSource>),
}

/// What [`Store::list`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredObject {
    /// The path, relative to the store.
    pub path: String,
    /// The size in bytes.
    pub size: u64,
    /// When it was written.
    pub last_modified: SystemTime,
}

impl Store {
    /// Opens `/an/absolute/folder` or `s3://bucket/prefix`. Nothing is read or written yet, and a folder need not exist:
    /// [`Store::probe`] shows whether it works.
    pub async fn open(data_path: &str, s3: Option<&S3Settings>) -> Result<Store> {
        let inner = match data_path.strip_prefix("s3://") {
            Some(rest) => open_bucket(rest, s3.unwrap_or(&S3Settings::default())).await?,
            None => open_folder(data_path)?,
        };
        Ok(Store { inner: Arc::new(inner) })
    }

    /// Where the store is: `/folder` or `s3://bucket/prefix`, without a slash at the end.
    pub fn root(&self) -> &str {
        &self.inner.root
    }

    /// How many files are well read at once: a folder answers at once, and decoding is the cost; a bucket answers late.
    pub fn reads_at_once(&self) -> usize {
        match self.inner.place {
            Place::Folder(_) => 2,
            Place::Bucket(_) => 4,
        }
    }

    /// The absolute form of a path: what a reader elsewhere opens.
    pub fn url(&self, path: &str) -> String {
        format!("{}/{}", self.inner.root, self.relative(path).unwrap_or(path))
    }

    /// Writes a small object whole, replacing one of that name. Durable when it returns.
    pub async fn put(&self, path: &str, bytes: Bytes) -> Result<()> {
        match self.local_path(path)? {
            Some(path) => {
                blocking(move || {
                    let mut file = LocalFile::replace(path)?;
                    file.write(&bytes)?;
                    file.finish()
                })
                .await
            }
            None => {
                let location = self.location(path)?;
                self.inner.objects.put(&location, bytes.into()).await.map_err(self.failed("write", path)).map(|_| ())
            }
        }
    }

    /// Reads a small object whole.
    pub async fn get(&self, path: &str) -> Result<Bytes> {
        let location = self.location(path)?;
        let found = self.inner.objects.get(&location).await.map_err(self.failed("read", path))?;
        found.bytes().await.map_err(self.failed("read", path))
    }

    /// Removes an object, and in a folder what an interrupted write may have left of it. One that is not there is no error.
    pub async fn delete(&self, path: &str) -> Result<()> {
        if let Some(path) = self.local_path(path)? {
            return blocking(move || local::remove(&path)).await;
        }
        let location = self.location(path)?;
        match self.inner.objects.delete(&location).await {
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            result => result.map_err(self.failed("delete", path)),
        }
    }

    /// Whether an object is there, whole.
    pub async fn exists(&self, path: &str) -> Result<bool> {
        Ok(self.size(path).await?.is_some())
    }

    /// An object's size in bytes; `None` where it is not there.
    pub async fn size(&self, path: &str) -> Result<Option<u64>> {
        let location = self.location(path)?;
        match self.inner.objects.head(&location).await {
            Ok(found) => Ok(Some(found.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed("look at", path)(error)),
        }
    }

    /// All objects below a folder (`""`: all), without those that are not whole yet.
    pub async fn list(&self, prefix: &str) -> Result<Vec<StoredObject>> {
        let location = self.location(prefix)?;
        let skip = self.inner.base.as_ref().len();
        self.inner
            .objects
            .list(Some(&location))
            .map_ok(|found| StoredObject {
                path: found.location.as_ref()[skip..].trim_start_matches('/').to_string(),
                size: found.size,
                last_modified: found.last_modified.into(),
            })
            .try_filter(|found| std::future::ready(!found.path.ends_with(PARTIAL_SUFFIX)))
            .try_collect()
            .await
            .map_err(self.failed("list", prefix))
    }

    /// Shows that the store can be written, read and deleted from, and leaves it as it was.
    pub async fn probe(&self) -> Result<()> {
        let path = format!(".duckpipe-probe-{}", Uuid::now_v7());
        let text = Bytes::from_static(b"duckpipe was here");
        let created = match &self.inner.place {
            Place::Folder(folder) => local::missing_folders(folder),
            Place::Bucket(_) => Vec::new(),
        };
        self.put(&path, text.clone()).await?;
        let read = self.get(&path).await;
        self.delete(&path).await?;
        for folder in created {
            // Best effort: somebody else may use the folder by now.
            let _ = std::fs::remove_dir(folder);
        }
        match read? == text {
            true => Ok(()),
            false => Err(StorageError::invalid(self.url(&path), "what was read is not what was written")),
        }
    }

    /// The bucket's credentials as they are now, from the settings or the AWS chain; `None` for a folder.
    pub async fn credentials(&self) -> Result<Option<S3Credentials>> {
        match &self.inner.place {
            Place::Folder(_) => Ok(None),
            Place::Bucket(source) => source.current().await.map(Some),
        }
    }

    /// A Parquet file's bytes as the Parquet library asks for them.
    pub(crate) fn parquet(&self, path: &str) -> Result<ParquetObjectReader> {
        Ok(ParquetObjectReader::new(Arc::clone(&self.inner.objects), self.location(path)?))
    }

    /// An object's size, and its last `most` bytes.
    pub(crate) async fn tail(&self, path: &str, most: u64) -> Result<(u64, Bytes)> {
        let location = self.location(path)?;
        let options = GetOptions { range: Some(GetRange::Suffix(most)), ..GetOptions::default() };
        let found = self.inner.objects.get_opts(&location, options).await.map_err(self.failed("read", path))?;
        let size = found.meta.size;
        Ok((size, found.bytes().await.map_err(self.failed("read", path))?))
    }

    /// A part of an object.
    pub(crate) async fn range(&self, path: &str, range: Range<u64>) -> Result<Bytes> {
        let location = self.location(path)?;
        self.inner.objects.get_range(&location, range).await.map_err(self.failed("read", path))
    }

    pub(crate) fn objects(&self) -> &Arc<dyn ObjectStore> {
        &self.inner.objects
    }

    /// The file's own path where the store is a folder.
    pub(crate) fn local_path(&self, path: &str) -> Result<Option<PathBuf>> {
        match &self.inner.place {
            // Checked by `location`: no `..` leads out of the folder.
            Place::Folder(folder) => self.location(path).and_then(|_| Ok(Some(folder.join(self.relative(path)?)))),
            Place::Bucket(_) => Ok(None),
        }
    }

    pub(crate) fn location(&self, path: &str) -> Result<Path> {
        let path = self.relative(path)?;
        let whole = match (self.inner.base.as_ref(), path) {
            (base, "") => base.to_string(),
            ("", path) => path.to_string(),
            (base, path) => format!("{base}/{path}"),
        };
        Path::parse(whole).map_err(|error| StorageError::invalid(path, error.to_string()))
    }

    pub(crate) fn failed(
        &self,
        operation: &'static str,
        path: &str,
    ) -> impl FnOnce(object_store::Error) -> StorageError {
        let url = self.url(path);
        move |cause| StorageError::Store { operation, url, cause }
    }

    /// The path below the root, whichever form it came in.
    fn relative<'a>(&self, path: &'a str) -> Result<&'a str> {
        if !path.starts_with('/') && !path.starts_with("s3://") {
            return Ok(path);
        }
        path.strip_prefix(self.inner.root.as_str())
            .and_then(|rest| rest.strip_prefix('/'))
            .ok_or_else(|| StorageError::invalid(path, format!("the file is not below {}", self.inner.root)))
    }
}

fn open_folder(data_path: &str) -> Result<Inner> {
    if !data_path.starts_with('/') {
        return Err(StorageError::Settings(format!(
            "data_path {data_path:?} is neither absolute nor s3://bucket/prefix"
        )));
    }
    let root = data_path.trim_end_matches('/').to_string();
    if root.is_empty() {
        return Err(StorageError::Settings("data_path can't be the root folder".to_string()));
    }
    let base =
        Path::parse(&root[1..]).map_err(|error| StorageError::Settings(format!("data_path {root:?}: {error}")))?;
    let place = Place::Folder(PathBuf::from(&root));
    Ok(Inner { root, base, objects: Arc::new(LocalFileSystem::new()), place })
}

async fn open_bucket(rest: &str, settings: &S3Settings) -> Result<Inner> {
    let (bucket, prefix) = rest.trim_end_matches('/').split_once('/').unwrap_or((rest.trim_end_matches('/'), ""));
    if bucket.is_empty() {
        return Err(StorageError::Settings(format!("s3://{rest} names no bucket")));
    }
    let base =
        Path::parse(prefix).map_err(|error| StorageError::Settings(format!("data_path s3://{rest}: {error}")))?;
    let (source, region) = CredentialSource::resolve(settings).await?;
    let source = Arc::new(source);
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(region)
        .with_credentials(Arc::new(ForObjectStore(Arc::clone(&source))))
        .with_virtual_hosted_style_request(!settings.path_style)
        .with_retry(RetryConfig {
            backoff: BackoffConfig { max_backoff: Duration::from_secs(5), ..BackoffConfig::default() },
            max_retries: 8,
            retry_timeout: Duration::from_secs(60),
        })
        .with_client_options(
            ClientOptions::new()
                .with_allow_http(true)
                .with_connect_timeout(Duration::from_secs(5))
                // One part of 8 MiB over a slow line.
                .with_timeout(Duration::from_secs(60)),
        );
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_endpoint(endpoint_of_bucket(endpoint, bucket, settings.path_style)?);
    }
    let objects = builder.build().map_err(|error| StorageError::Settings(format!("s3://{rest}: {error}")))?;
    let root = match prefix {
        "" => format!("s3://{bucket}"),
        prefix => format!("s3://{bucket}/{prefix}"),
    };
    Ok(Inner { root, base, objects: Arc::new(objects), place: Place::Bucket(source) })
}

/// `object_store` takes an endpoint as it is: in virtual-hosted style the bucket must be part of it already.
fn endpoint_of_bucket(endpoint: &str, bucket: &str, path_style: bool) -> Result<String> {
    let url = url::Url::parse(endpoint).map_err(|error| {
        StorageError::Settings(format!("[s3] endpoint {endpoint:?}: {error}; say http://host:port"))
    })?;
    let host = url.host_str().unwrap_or_default();
    if !matches!(url.scheme(), "http" | "https") || host.is_empty() {
        return Err(StorageError::Settings(format!(
            "[s3] endpoint {endpoint:?}: say http://host:port or https://host"
        )));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(StorageError::Settings("[s3] endpoint holds a user or a password; say access_key_id".to_string()));
    }
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let folder = url.path().trim_end_matches('/');
    let bucket = if path_style { String::new() } else { format!("{bucket}.") };
    Ok(format!("{}://{bucket}{host}{port}{folder}", url.scheme()))
}

/// Runs file system calls where they may block.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    ended(tokio::task::spawn_blocking(work).await)
}

/// What came of a call that may have panicked.
pub(crate) fn ended<T>(joined: std::result::Result<Result<T>, tokio::task::JoinError>) -> Result<T> {
    match joined {
        Ok(result) => result,
        Err(error) => Err(StorageError::invalid("file system", format!("the call did not end: {error}"))),
    }
}
