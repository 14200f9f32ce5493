//! Encryption of connections: libpq's `sslmode`s by rustls.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, InconsistentKeys, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use super::settings::{RootCertificates, SslMode, TlsSettings};
use crate::error::{Because, Error, ErrorKind, Result};

/// The TLS configuration for connections of these settings. Reads the certificate files.
pub(crate) fn client_config(settings: &TlsSettings) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Verifier { trust: trust(settings)?, provider: provider.clone() };
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .because(ErrorKind::Internal, || "TLS could not be set up".into())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let config = match (&settings.certificate, &settings.key) {
        (Some(certificate), Some(key)) => {
            let chain = certificates(certificate, "sslcert")?;
            let key = PrivateKeyDer::from_pem_file(key)
                .because(ErrorKind::Config, || format!("sslkey {} could not be read", key.display()))
                .map_err(|error| error.remedy("It must be a PEM file with an unencrypted private key."))?;
            let key = provider.key_provider.load_private_key(key);
            let key = key.because(ErrorKind::Config, || "The private key in sslkey can't be used".into())?;
            let certified = CertifiedKey::new(chain, key);
            match certified.keys_match() {
                Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
                    return Err(Error::new(
                        ErrorKind::Config,
                        "The private key in sslkey is not that of the certificate in sslcert",
                    ));
                }
                // Certificates of X.509 version 1, which `openssl x509 -req` makes, can't be read here; the server can.
                _ => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified))),
            }
        }
        _ => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

/// Whom a connection trusts.
#[derive(Debug)]
enum Trust {
    /// Encryption only: whoever answers is believed, as libpq does up to `require`.
    Anybody,
    /// A certificate that one of these roots signed; with `name`, for the host that was dialled.
    Roots { roots: RootCertStore, certificates: Vec<CertificateDer<'static>>, name: bool },
}

fn trust(settings: &TlsSettings) -> Result<Trust> {
    let file = match &settings.root_certificates {
        RootCertificates::File(path) => Some(path),
        RootCertificates::System => None,
    };
    let name = match settings.mode {
        SslMode::VerifyFull => true,
        SslMode::VerifyCa => false,
        // As in libpq, `require` with a root certificate is `verify-ca`.
        SslMode::Require if file.is_some() => false,
        _ => return Ok(Trust::Anybody),
    };
    let certificates = match file {
        Some(path) => certificates(path, "sslrootcert")?,
        None => rustls_native_certs::load_native_certs().certs,
    };
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(certificates.iter().cloned());
    if added == 0 {
        return Err(Error::new(ErrorKind::Config, "No root certificate was found to verify the source with").remedy(
            "Set sslrootcert in the source's url to the PEM file of the authority that signed its certificate.",
        ));
    }
    Ok(Trust::Roots { roots, certificates, name })
}

fn certificates(path: &Path, parameter: &str) -> Result<Vec<CertificateDer<'static>>> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    let certificates =
        read().because(ErrorKind::Config, || format!("{parameter} {} could not be read", path.display()))?;
    if certificates.is_empty() {
        return Err(Error::new(ErrorKind::Config, format!("{parameter} {} holds no certificate", path.display()))
            .remedy("It must be a PEM file."));
    }
    Ok(certificates)
}

#[derive(Debug)]
struct Verifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Trust::Roots { roots, certificates, name } = &self.trust else {
            return Ok(ServerCertVerified::assertion());
        };
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let signed = verify_server_cert_signed_by_trust_anchor(
            &certificate,
            roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        );
        // Many servers have one self-signed certificate, which users hand out as its own root. OpenSSL takes that, webpki
        // does not, for it is marked as an authority; being trusted byte for byte, it needs no chain. An expired one stays
        // refused.
        let expired = matches!(
            signed,
            Err(rustls::Error::InvalidCertificate(
                CertificateError::Expired
                    | CertificateError::ExpiredContext { .. }
                    | CertificateError::NotValidYet
                    | CertificateError::NotValidYetContext { .. }
            ))
        );
        if signed.is_err() && (expired || !certificates.iter().any(|trusted| trusted == end_entity)) {
            signed?;
        }
        if *name {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        match self.trust {
            // Where any certificate will do, its signature proves nothing; and old forms that webpki can't read stay usable.
            Trust::Anybody => Ok(HandshakeSignatureValid::assertion()),
            Trust::Roots { .. } => verify_tls12_signature(
                message,
                certificate,
                signature,
                &self.provider.signature_verification_algorithms,
            ),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        match self.trust {
            Trust::Anybody => Ok(HandshakeSignatureValid::assertion()),
            Trust::Roots { .. } => verify_tls13_signature(
                message,
                certificate,
                signature,
                &self.provider.signature_verification_algorithms,
            ),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
