//! How to reach a bucket.

use std::fmt;

/// A key that must not be printed: it shows as `***`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SecretText(String);

impl SecretText {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        SecretText(text.into())
    }

    /// The text itself. Never log it, never put it into an error.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// How to reach an S3 bucket. What is `None` the AWS chain decides: environment, profile, SSO, web identity, IMDS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct S3Settings {
    /// An S3-compatible server, like `http://127.0.0.1:9000`; `None`: AWS.
    pub endpoint: Option<String>,
    /// The region. Where neither this nor the AWS chain says one: `us-east-1`.
    pub region: Option<String>,
    /// The key's id; goes with `secret_access_key`.
    pub access_key_id: Option<String>,
    /// The key.
    pub secret_access_key: Option<SecretText>,
    /// The token of temporary credentials.
    pub session_token: Option<SecretText>,
    /// `endpoint/bucket/key` instead of `bucket.endpoint/key`: what MinIO wants.
    pub path_style: bool,
}
