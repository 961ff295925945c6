//! TLS by bare Ed25519 keys on both sides (RFC 7250): no certificate, no name, no authority.
//!
//! The client accepts exactly the gateway's key. The gateway accepts any key that proves itself;
//! who may use it is decided afterwards by what its key is allowed, so that an unknown key gets an
//! answer it can understand.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{
    CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, CipherSuite, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
};
use whimbrel_common::identity::{PublicKey, SecretKey};
use whimbrel_common::wire::ALPN;

/// The client's half: proves `own`, accepts only `gateway`.
///
/// # Errors
/// [`rustls::Error`] when the key cannot be used for signing.
pub fn client_tls(own: &SecretKey, gateway: PublicKey) -> Result<rustls::ClientConfig, Error> {
    let resolver = rustls::client::AlwaysResolvesClientRawPublicKeys::new(certified(own)?);
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Accepted::only(gateway)))
        .with_client_cert_resolver(Arc::new(resolver));
    tls.alpn_protocols = vec![ALPN.to_vec()];
    Ok(tls)
}

/// The gateway's half: proves `own`, accepts any key that proves itself.
///
/// # Errors
/// [`rustls::Error`] when the key cannot be used for signing.
pub fn gateway_tls(own: &SecretKey) -> Result<rustls::ServerConfig, Error> {
    let resolver = rustls::server::AlwaysResolvesServerRawPublicKeys::new(certified(own)?);
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(Accepted::any()))
        .with_cert_resolver(Arc::new(resolver));
    tls.alpn_protocols = vec![ALPN.to_vec()];
    // A client that was away for long proves its key again; nothing is gained by tickets.
    tls.send_tls13_tickets = 0;
    Ok(tls)
}

/// AES-128-GCM first: the cheapest per byte wherever the processor has AES instructions.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = ring::default_provider();
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}

fn certified(own: &SecretKey) -> Result<Arc<CertifiedKey>, Error> {
    let pkcs8 = PrivatePkcs8KeyDer::from(own.to_pkcs8().to_vec());
    let signer = ring::sign::any_eddsa_type(&pkcs8)?;
    let spki = CertificateDer::from(own.public().to_spki().to_vec());
    Ok(Arc::new(CertifiedKey::new(vec![spki], signer)))
}

#[derive(Debug)]
struct Accepted {
    only: Option<PublicKey>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Accepted {
    fn only(key: PublicKey) -> Self {
        Self { only: Some(key), ..Self::any() }
    }

    fn any() -> Self {
        Self { only: None, algorithms: ring::default_provider().signature_verification_algorithms }
    }

    fn check(&self, spki: &CertificateDer<'_>, rest: &[CertificateDer<'_>]) -> Result<(), Error> {
        match PublicKey::from_spki(spki) {
            Some(key) if rest.is_empty() && self.only.is_none_or(|only| only == key) => Ok(()),
            Some(_) | None => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify(
        &self,
        message: &[u8],
        spki: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let spki = SubjectPublicKeyInfoDer::from(spki.as_ref());
        verify_tls13_signature_with_raw_key(message, &spki, signed, &self.algorithms)
    }
}

fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::General("QUIC uses TLS 1.3 only".into()))
}

impl ServerCertVerifier for Accepted {
    fn verify_server_cert(
        &self,
        spki: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(spki, rest).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        spki: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, spki, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Accepted {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        spki: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(spki, rest).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        spki: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, spki, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
