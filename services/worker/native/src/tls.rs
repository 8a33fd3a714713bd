//! The listener's TLS: version 1.3 alone, and the certificate that is on disk.

use std::fmt;
use std::sync::{Arc, Mutex};

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{version, ServerConfig};

use crate::locked;

/// The certificate of the moment.
pub struct Identity {
    current: Mutex<Arc<CertifiedKey>>,
}

impl Identity {
    pub fn new(key: &[u8], chain: &[u8]) -> Result<Self, String> {
        Ok(Self { current: Mutex::new(certified(key, chain)?) })
    }

    pub fn replace(&self, key: &[u8], chain: &[u8]) -> Result<(), String> {
        *locked(&self.current) = certified(key, chain)?;
        Ok(())
    }
}

fn certified(key: &[u8], chain: &[u8]) -> Result<Arc<CertifiedKey>, String> {
    let told = |error: &dyn fmt::Display| format!("the certificate cannot be used: {error}");
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>().map_err(|error| told(&error))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| told(&error))?;
    let signer = aws_lc_rs::sign::any_supported_type(&key).map_err(|error| told(&error))?;
    Ok(Arc::new(CertifiedKey::new(certificates, signer)))
}

impl fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Identity")
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&locked(&self.current)))
    }
}

pub fn config(identity: Arc<Identity>) -> Result<Arc<ServerConfig>, String> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&version::TLS13])
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_cert_resolver(identity);
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}
