//! Addresses and paths: relative ones become absolute, seen from the configuration file's folder.

use std::path::{Component, Path, PathBuf};

use crate::lake::CatalogLocation;
use crate::secret::Secret;

/// The parameters of a Postgres address that name files.
pub(super) const CERTIFICATES: &[&str] = &["sslrootcert", "sslcert", "sslkey"];

/// `path` seen from `base`, without `.` parts. `..` stays: taking it away would be wrong after a symbolic link.
pub(super) fn absolute(base: &Path, path: &Path) -> PathBuf {
    base.join(path).components().filter(|part| !matches!(part, Component::CurDir)).collect()
}

fn absolute_text(base: &Path, path: &str) -> Result<String, String> {
    let path = absolute(base, Path::new(path));
    path.into_os_string().into_string().map_err(|path| format!("the path {} is not UTF-8", path.display()))
}

/// Reads `lake.catalog`. The error says what is wrong, without the value: it may hold a password.
pub(super) fn catalog(text: &str, base: &Path) -> Result<CatalogLocation, String> {
    if text.starts_with("postgres://") || text.starts_with("postgresql://") {
        let (address, query) = text.split_once('?').unwrap_or((text, ""));
        let mut schema = None;
        let mut rest = Vec::new();
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            match parameter.split_once('=') {
                Some(("schema", name)) => schema = Some(percent_decoded(name)),
                _ => rest.push(parameter),
            }
        }
        if schema.as_deref() == Some("") {
            return Err("lake.catalog has an empty schema parameter".to_owned());
        }
        let query = if rest.is_empty() { String::new() } else { format!("?{}", rest.join("&")) };
        let url = absolute_certificates(&format!("{address}{query}"), base);
        return Ok(CatalogLocation::Postgres { url: Secret::new(url), schema });
    }
    if let Some((scheme, _)) = text.split_once("://") {
        return Err(format!(
            "lake.catalog is a {scheme}:// address, but must be a DuckDB file or a postgres:// address"
        ));
    }
    let path = absolute_text(base, text)?;
    if text.ends_with('/') || Path::new(&path).is_dir() {
        return Err(format!(
            "lake.catalog is {path}, a folder, but must be a file, such as {}/catalog.ducklake",
            path.trim_end_matches('/')
        ));
    }
    Ok(CatalogLocation::File(PathBuf::from(path)))
}

/// Reads `lake.data_path`.
pub(super) fn data_path(text: &str, base: &Path) -> Result<String, String> {
    if let Some(rest) = text.strip_prefix("s3://") {
        let rest = rest.trim_end_matches('/');
        if rest.is_empty() || rest.starts_with('/') {
            return Err("lake.data_path has no bucket; write it as \"s3://bucket/prefix\"".to_owned());
        }
        return Ok(format!("s3://{rest}"));
    }
    if let Some((scheme, _)) = text.split_once("://") {
        return Err(format!("lake.data_path is a {scheme}:// address, but must be a folder or an s3:// address"));
    }
    let path = absolute_text(base, text)?;
    if Path::new(&path).is_file() {
        return Err(format!("lake.data_path is {path}, a file, but must be a folder"));
    }
    match path.trim_end_matches('/') {
        "" => Err("lake.data_path must not be the root folder".to_owned()),
        path => Ok(path.to_owned()),
    }
}

/// `url` with one more parameter, its value percent-encoded.
pub(super) fn with_parameter(url: &str, key: &str, value: &str) -> String {
    let joint = if url.contains('?') { '&' } else { '?' };
    format!("{url}{joint}{key}={}", percent_encoded(value))
}

/// `url` with relative certificate paths made absolute. `sslrootcert=system` is a word, no path.
pub(super) fn absolute_certificates(url: &str, base: &Path) -> String {
    let Some((address, query)) = url.split_once('?') else { return url.to_owned() };
    let parameter = |parameter: &str| match parameter.split_once('=') {
        Some((key, value)) if CERTIFICATES.contains(&key) && value != "system" && !value.is_empty() => {
            let path = absolute(base, Path::new(&percent_decoded(value)));
            format!("{key}={}", percent_encoded(&path.to_string_lossy()))
        }
        _ => parameter.to_owned(),
    };
    let query: Vec<String> = query.split('&').map(parameter).collect();
    format!("{address}?{}", query.join("&"))
}

fn percent_encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(byte as char);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = bytes.get(at + 1..at + 3).and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) if bytes[at] == b'%' => {
                out.push(byte);
                at += 3;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_seen_from_the_file() {
        let base = Path::new("/etc/shop");
        let path = |text: &str| CatalogLocation::File(PathBuf::from(text));
        assert_eq!(catalog("lake/c.ducklake", base), Ok(path("/etc/shop/lake/c.ducklake")));
        assert_eq!(catalog("./c.ducklake", base), Ok(path("/etc/shop/c.ducklake")));
        assert_eq!(catalog("../c.ducklake", base), Ok(path("/etc/shop/../c.ducklake")));
        assert_eq!(catalog("/c.ducklake", base), Ok(path("/c.ducklake")));
        assert!(catalog("/tmp", base).unwrap_err().contains("a folder"));
        assert!(catalog("mysql://u:hidden@h/d", base).is_err_and(|message| !message.contains("hidden")));
        assert_eq!(data_path("lake/data/", base).as_deref(), Ok("/etc/shop/lake/data"));
        assert_eq!(data_path("s3://bucket/", base).as_deref(), Ok("s3://bucket"));
        assert_eq!(data_path("s3://bucket/a/b//", base).as_deref(), Ok("s3://bucket/a/b"));
        assert!(data_path("s3://", base).is_err());
        assert!(data_path("/", base).is_err());
        assert!(data_path("gs://bucket", base).is_err());
    }

    #[test]
    fn a_postgres_catalog_may_name_its_schema() {
        let base = Path::new("/x");
        let read = |text: &str| match catalog(text, base) {
            Ok(CatalogLocation::Postgres { url, schema }) => (url.expose().to_owned(), schema),
            other => panic!("{other:?}"),
        };
        assert_eq!(read("postgres://u:p@h/d"), ("postgres://u:p@h/d".into(), None));
        assert_eq!(read("postgres://h/d?schema=la%6Be"), ("postgres://h/d".into(), Some("lake".into())));
        assert_eq!(
            read("postgres://h/d?a=1&schema=lake&sslrootcert=c.pem"),
            ("postgres://h/d?a=1&sslrootcert=/x/c.pem".into(), Some("lake".into()))
        );
        let described = catalog("postgres://u:p%40@h:5432/d?schema=s", base).unwrap().describe();
        assert_eq!(described, "postgres://u@h:5432/d?schema=s");
    }

    #[test]
    fn certificates_become_absolute() {
        let base = Path::new("/my certs");
        assert_eq!(
            absolute_certificates("postgres://h/d?sslmode=verify-full&sslrootcert=ca.pem&sslkey=/k", base),
            "postgres://h/d?sslmode=verify-full&sslrootcert=/my%20certs/ca.pem&sslkey=/k"
        );
        assert_eq!(
            absolute_certificates("postgres://h/d?sslrootcert=system", base),
            "postgres://h/d?sslrootcert=system"
        );
        assert_eq!(with_parameter("postgres://h/d", "sslkey", "a b"), "postgres://h/d?sslkey=a%20b");
    }
}
