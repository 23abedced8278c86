//! TLS: whom a registry's certificate has to be from, and what is shown to it. rustls with ring; the roots are the host's.

use crate::error::{Context, Error, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::rustls;

/// Where distributions keep the roots in one file (Go: crypto/x509/root_linux.go).
const BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Names the file of roots instead, as for OpenSSL and Go.
const BUNDLE_VARIABLE: &str = "SSL_CERT_FILE";
/// Bytes of a file of certificates, at most; a system's roots are 200 KiB.
const MAX_FILE: u64 = 8 << 20;

/// What hosts.toml says about an endpoint's TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct TlsOptions {
    /// Roots beside the host's.
    pub ca: Vec<PathBuf>,
    /// Certificate and key; may be one file.
    pub client: Vec<(PathBuf, PathBuf)>,
    /// Believe any certificate.
    pub skip_verify: bool,
}

impl TlsOptions {
    /// The same for where an endpoint leads: believed as before, but shown no certificate of ours.
    #[must_use]
    pub fn elsewhere(&self) -> TlsOptions {
        TlsOptions { client: Vec::new(), ..self.clone() }
    }
}

/// What a handshake needs. Reads files: a system's roots take a millisecond or two.
///
/// # Errors
/// `FailedPrecondition` naming the file.
pub fn config(options: &TlsOptions) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::internal(format!("set up TLS: {e}")))?;
    let builder = match options.skip_verify {
        true => builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider))),
        false => builder.with_root_certificates(roots(&options.ca)?),
    };
    // rustls shows one certificate; the first that is given is that.
    match options.client.first() {
        None => Ok(Arc::new(builder.with_no_client_auth())),
        Some((certificate, key)) => {
            let chain = certificates(certificate)?;
            let private = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|e| unusable(key, "a private key", &e))?;
            let config = builder
                .with_client_auth_cert(chain, private)
                .map_err(|e| Error::precondition(format!("client certificate {}: {e}", certificate.display())))?;
            Ok(Arc::new(config))
        }
    }
}

fn roots(more: &[PathBuf]) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let named = std::env::var_os(BUNDLE_VARIABLE).map(PathBuf::from);
    let bundle = named.or_else(|| BUNDLES.iter().map(PathBuf::from).find(|path| path.exists()));
    // A host without any may still have what hosts.toml names, or plain http.
    if let Some(bundle) = bundle {
        roots.add_parsable_certificates(certificates(&bundle)?);
    }
    for path in more {
        for certificate in certificates(path)? {
            roots.add(certificate).map_err(|e| unusable(path, "a root certificate", &e))?;
        }
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let bytes = read(path)?;
    let all: Vec<_> = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|e| unusable(path, "certificates", &e))?;
    if all.is_empty() {
        Err(Error::precondition(format!("{} has no certificate in PEM", path.display())))
    } else {
        Ok(all)
    }
}

fn unusable(path: &Path, what: &str, e: &dyn std::fmt::Display) -> Error {
    Error::precondition(format!("{} is not usable as {what}: {e}", path.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    use io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes))
        .context(|| format!("read {}", path.display()))?;
    Ok(bytes)
}

/// The name that a certificate has to be for.
///
/// # Errors
/// `InvalidArgument` for a host that can have none.
pub fn server_name(name: &str) -> Result<ServerName<'static>> {
    ServerName::try_from(name.to_owned())
        .map_err(|e| Error::invalid(format!("host {name:?} can have no certificate: {e}")))
}

/// Whether a handshake failed because the other side does not speak TLS at all, and not for a certificate.
pub fn is_not_tls(error: &io::Error) -> bool {
    let rustls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match rustls {
        Some(error) => matches!(error, rustls::Error::InvalidMessage(_)),
        None => matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset),
    }
}

/// What people are told of a handshake that failed.
pub fn explain(error: &io::Error) -> String {
    let rustls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match rustls {
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)) => {
            "its certificate is from an authority that this host does not know; give its CA by `ca` in hosts.toml"
                .to_owned()
        }
        Some(rustls::Error::InvalidMessage(_)) => {
            "it does not speak TLS; say http://... in hosts.toml if it is to be used without".to_owned()
        }
        Some(other) => other.to_string(),
        None => crate::error::describe_io(error),
    }
}

/// Believes every certificate, but not that somebody has its key: signatures are checked.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_certificate_is_named() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("ca.crt");
        std::fs::write(&path, "-----BEGIN NONSENSE-----\n").expect("write");
        let options = TlsOptions { ca: vec![path], ..TlsOptions::default() };
        assert!(config(&options).expect_err("no certificate").to_string().contains("ca.crt"));
        let absent =
            TlsOptions { client: vec![("/nonexistent".into(), "/nonexistent".into())], ..TlsOptions::default() };
        assert!(config(&absent).expect_err("absent").to_string().contains("/nonexistent"));
    }
}
