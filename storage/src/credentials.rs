//! S3 credentials: those of the settings, or those of the AWS chain, refreshed before they expire.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;
use tokio::sync::Mutex;

use crate::error::{Result, StorageError};
use crate::settings::{S3Settings, SecretText};

/// Credentials are renewed this long before they expire. A request may be retried for minutes with the ones it began with.
const RENEW_BEFORE: Duration = Duration::from_secs(5 * 60);
/// Credentials without an expiry are asked for again this often: a person may have changed the profile.
const LOOK_AGAIN: Duration = Duration::from_secs(10 * 60);

/// A key to a bucket, as it is right now.
#[derive(Clone, PartialEq, Eq)]
pub struct S3Credentials {
    /// The key's id.
    pub key_id: String,
    /// The key.
    pub secret: SecretText,
    /// The token of temporary credentials.
    pub session_token: Option<SecretText>,
    /// When they end; `None`: never, as far as is known.
    pub expires: Option<SystemTime>,
}

impl fmt::Debug for S3Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Credentials").field("key_id", &self.key_id).field("expires", &self.expires).finish()
    }
}

/// Where credentials come from.
#[derive(Debug)]
pub(crate) enum CredentialSource {
    /// The settings.
    Fixed(S3Credentials),
    /// The AWS chain.
    Chain { provider: SharedCredentialsProvider, cached: Mutex<Option<Cached>> },
}

#[derive(Debug)]
pub(crate) struct Cached {
    credentials: S3Credentials,
    fetched: Instant,
}

impl CredentialSource {
    /// The source that the settings ask for, and the region.
    pub(crate) async fn resolve(settings: &S3Settings) -> Result<(CredentialSource, String)> {
        match (&settings.access_key_id, &settings.secret_access_key) {
            (Some(key_id), Some(secret)) => {
                let credentials = S3Credentials {
                    key_id: key_id.clone(),
                    secret: secret.clone(),
                    session_token: settings.session_token.clone(),
                    expires: None,
                };
                let region = settings.region.clone().unwrap_or_else(|| "us-east-1".to_string());
                Ok((CredentialSource::Fixed(credentials), region))
            }
            (None, None) => {
                let tls = tls::Provider::Rustls(CryptoMode::Ring);
                let client = aws_smithy_http_client::Builder::new().tls_provider(tls).build_https();
                let mut loader = aws_config::defaults(aws_config::BehaviorVersion::latest()).http_client(client);
                if let Some(region) = &settings.region {
                    loader = loader.region(aws_config::Region::new(region.clone()));
                }
                let config = loader.load().await;
                let provider = config
                    .credentials_provider()
                    .ok_or_else(|| StorageError::Credentials("the AWS chain has no provider".to_string()))?;
                let region = config.region().map_or_else(|| "us-east-1".to_string(), |r| r.as_ref().to_string());
                Ok((CredentialSource::Chain { provider, cached: Mutex::new(None) }, region))
            }
            _ => Err(StorageError::Settings(
                "access_key_id and secret_access_key go together; one is missing".to_string(),
            )),
        }
    }

    /// The credentials that hold now.
    pub(crate) async fn current(&self) -> Result<S3Credentials> {
        let (provider, cached) = match self {
            CredentialSource::Fixed(credentials) => return Ok(credentials.clone()),
            CredentialSource::Chain { provider, cached } => (provider, cached),
        };
        // Held while asking, so that many requests at once ask once.
        let mut cached = cached.lock().await;
        if let Some(known) = cached.as_ref()
            && !known.is_due()
        {
            return Ok(known.credentials.clone());
        }
        match provider.provide_credentials().await {
            Ok(found) => {
                let credentials = S3Credentials {
                    key_id: found.access_key_id().to_string(),
                    secret: SecretText::new(found.secret_access_key()),
                    session_token: found.session_token().map(SecretText::new),
                    expires: found.expiry(),
                };
                *cached = Some(Cached { credentials: credentials.clone(), fetched: Instant::now() });
                Ok(credentials)
            }
            Err(error) => match cached.as_ref() {
                Some(known) if !known.is_expired() => {
                    tracing::warn!(%error, "S3 credentials could not be renewed; the old ones still hold");
                    Ok(known.credentials.clone())
                }
                _ => Err(StorageError::Credentials(chain_text(&error))),
            },
        }
    }
}

impl Cached {
    fn is_due(&self) -> bool {
        match self.credentials.expires {
            Some(expires) => SystemTime::now() + RENEW_BEFORE >= expires,
            None => self.fetched.elapsed() >= LOOK_AGAIN,
        }
    }

    fn is_expired(&self) -> bool {
        self.credentials.expires.is_some_and(|expires| SystemTime::now() >= expires)
    }
}

/// The error and what underlies it: the AWS errors' own text says little.
fn chain_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}

/// [`CredentialSource`] as `object_store` asks for it.
#[derive(Debug)]
pub(crate) struct ForObjectStore(pub(crate) Arc<CredentialSource>);

#[async_trait]
impl CredentialProvider for ForObjectStore {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let current = self
            .0
            .current()
            .await
            .map_err(|error| object_store::Error::Unauthenticated { path: String::new(), source: Box::new(error) })?;
        Ok(Arc::new(AwsCredential {
            key_id: current.key_id,
            secret_key: current.secret.expose().to_string(),
            token: current.session_token.map(|token| token.expose().to_string()),
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use aws_credential_types::Credentials;
    use aws_credential_types::provider::error::CredentialsError;
    use aws_credential_types::provider::future;

    use super::*;

    /// Hands out key `n` at the n-th call, living for `lifetime`; fails from call `fail_from` on.
    #[derive(Debug)]
    struct Counting {
        calls: Arc<AtomicU32>,
        lifetime: Option<Duration>,
        fail_from: u32,
    }

    impl ProvideCredentials for Counting {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            let call = self.calls.fetch_add(1, Ordering::SeqCst);
            future::ProvideCredentials::ready(if call >= self.fail_from {
                Err(CredentialsError::not_loaded("gone"))
            } else {
                let expires = self.lifetime.map(|lifetime| SystemTime::now() + lifetime);
                Ok(Credentials::new(format!("key{call}"), "very secret", None, expires, "test"))
            })
        }
    }

    fn chain(lifetime: Option<Duration>, fail_from: u32) -> (CredentialSource, Arc<AtomicU32>) {
        let calls = Arc::new(AtomicU32::new(0));
        let provider = Counting { calls: Arc::clone(&calls), lifetime, fail_from };
        let source =
            CredentialSource::Chain { provider: SharedCredentialsProvider::new(provider), cached: Mutex::new(None) };
        (source, calls)
    }

    #[tokio::test]
    async fn credentials_are_kept_until_shortly_before_they_expire() {
        let (source, calls) = chain(Some(Duration::from_secs(3600)), u32::MAX);
        for _ in 0..3 {
            assert_eq!(source.current().await.unwrap().key_id, "key0");
        }
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        let (source, _) = chain(Some(RENEW_BEFORE - Duration::from_secs(1)), u32::MAX);
        assert_eq!(source.current().await.unwrap().key_id, "key0");
        assert_eq!(source.current().await.unwrap().key_id, "key1");
    }

    #[tokio::test]
    async fn credentials_that_still_hold_survive_a_failed_renewal() {
        let (source, _) = chain(Some(RENEW_BEFORE - Duration::from_secs(1)), 1);
        source.current().await.unwrap();
        assert_eq!(source.current().await.unwrap().key_id, "key0");
        let (source, _) = chain(Some(Duration::ZERO), 1);
        source.current().await.unwrap();
        assert!(source.current().await.unwrap_err().is_settings());
    }

    #[tokio::test]
    async fn half_a_key_is_refused_and_no_key_is_printed() {
        let settings = S3Settings { access_key_id: Some("id".into()), ..S3Settings::default() };
        assert!(CredentialSource::resolve(&settings).await.unwrap_err().is_settings());
        let settings = S3Settings { secret_access_key: Some(SecretText::new("very secret")), ..settings };
        let (source, region) = CredentialSource::resolve(&settings).await.unwrap();
        assert_eq!(region, "us-east-1");
        assert!(!format!("{settings:?} {source:?}").contains("very secret"));
    }
}
