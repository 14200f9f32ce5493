//! `duckpipe init`.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::arguments::InitArguments;
use crate::config::{DEFAULT_FILE, Known, name_from, template};
use crate::error::{Because, Error, ErrorKind, Result};

/// Writes the commented file. Only its owner may read it: it is where passwords come to lie.
pub(super) fn run(arguments: &InitArguments, config: Option<&Path>) -> Result<()> {
    let from_environment = std::env::var_os("DUCKPIPE_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
    let path = config.map(Path::to_owned).or(from_environment).unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
    write(arguments, &path)?;
    super::print(&format!("wrote {}\nnext: edit it, then run duckpipe check, then duckpipe sync\n", path.display()))
}

fn write(arguments: &InitArguments, path: &Path) -> Result<()> {
    let name = match &arguments.name {
        Some(name) => name.clone(),
        None => arguments.source_url.as_deref().and_then(database).map_or("main".to_owned(), name_from),
    };
    let known = Known {
        source_url: arguments.source_url.as_deref(),
        catalog: arguments.catalog.as_deref(),
        data_path: arguments.data_path.as_deref(),
        tables: &arguments.tables,
    };
    let text = template(&name, &known);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = match file {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Error::new(ErrorKind::Config, format!("{} exists, and init never overwrites", path.display()))
                .remedy("edit it, or write another by -c other.toml"));
        }
        file => file.because(ErrorKind::Config, || format!("{} can't be written", path.display()))?,
    };
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    written.because(ErrorKind::Config, || format!("{} can't be written", path.display()))
}

/// The database's name in a `postgres://` address.
fn database(url: &str) -> Option<&str> {
    let address = url.split_once("://")?.1.split('?').next()?;
    // A password may hold a slash; the host can't.
    let after_host = address.rsplit_once('@').map_or(address, |(_, host)| host);
    after_host.split_once('/').map(|(_, name)| name).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn writes_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.toml");
        let arguments = InitArguments {
            source_url: Some("postgres://u:p@h:1/Shop-2?sslmode=require".into()),
            name: None,
            catalog: None,
            data_path: None,
            tables: vec!["public.orders".into()],
        };
        write(&arguments, &path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("name = \"shop_2\"") && text.contains("source = \"public.orders\""), "{text}");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let error = write(&arguments, &path).unwrap_err();
        assert!(error.to_string().contains("never overwrites"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }
}
