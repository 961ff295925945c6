//! How the engine is set up at either end.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use noq_proto::congestion::{Bbr3Config, ControllerFactory, CubicConfig};
use noq_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use noq_proto::crypto::{CryptoError, HmacKey};
use noq_proto::{
    AckFrequencyConfig, ClientConfig, ConnectionId, ConnectionIdGenerator, EndpointConfig,
    InvalidCid, MtuDiscoveryConfig, ServerConfig, TransportConfig, VarInt,
};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use whimbrel_common::cid::{self, ServerId};
use whimbrel_common::identity::{PublicKey, SecretKey};

use crate::credentials::{client_tls, gateway_tls};
use crate::observed::ObservedFactory;

/// Which end of a connection this process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Connects, and opens paths.
    Client {
        /// The one gateway key it accepts.
        gateway: PublicKey,
    },
    /// Accepts connections.
    Gateway {
        /// What its connection IDs name.
        server: ServerId,
    },
}

/// This end's key and role.
#[derive(Debug)]
pub struct Identity {
    /// The key it proves.
    pub key: SecretKey,
    /// Its role.
    pub role: Role,
}

/// The key cannot be used for TLS.
#[derive(Debug, thiserror::Error)]
#[error("the key cannot be used for TLS: {0}")]
pub struct IdentityError(String);

/// What may be tuned without a change of protocol.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    /// Paths of one connection at the same time, those being closed included.
    pub paths: u32,
    /// A connection without any packet for this long is dead.
    pub idle_timeout: Duration,
    /// Assumed round trip of a path before its first sample (RFC 9002 §6.2.2 says 333 ms; a lost
    /// first packet of a new path costs three of these, and radio paths answer within 100 ms).
    pub initial_rtt: Duration,
    /// Largest UDP payload MTU discovery tries, in bytes: 1,500 less IPv6 and UDP headers.
    pub mtu_limit: u16,
    /// Datagrams one send call may carry with segmentation offload.
    pub segments: usize,
    /// Peers that are not admitted yet before newcomers must first prove their address (RFC 9000
    /// §8.1.2); one costs about 70 KiB. At twice as many newcomers are not answered.
    pub half_open: usize,
    /// What the engine draws its own choices from, for runs that can be repeated; they use CUBIC, as
    /// BBR3 cannot be told. Guessable choices weaken the engine: `None`, which asks the system, is
    /// for everything else.
    pub seed: Option<[u8; 32]>,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            paths: 8,
            idle_timeout: Duration::from_secs(600),
            initial_rtt: Duration::from_millis(100),
            mtu_limit: 1452,
            segments: 32,
            half_open: 1000,
            seed: None,
        }
    }
}

/// What a stranger may send before it is admitted, on the connection in all, in bytes.
const STRANGER_WINDOW: u32 = 4096;

/// Our own credit bounds every flow, so the engine's window of a stream must never bind: it leaves
/// room for a whole window of credit and the frames before it.
const STREAM_WINDOW: u32 = 9 * 1024 * 1024;

/// What an admitted client may have unread at the gateway, in bytes. The credit of 16,000 flows
/// whose destinations read nothing fits; a client that ignores its credit is stopped here.
pub(crate) const CLIENT_WINDOW: u32 = 1024 * 1024 * 1024;

/// Datagrams that came and that their owner has not taken yet, in bytes: what arrives at 1 Gbit/s in
/// the 4 ms its turn may take. Beyond that the oldest are lost. No datagram can be larger.
const DATAGRAMS_IN: usize = 512 * 1024;

/// Datagrams handed to the engine and not sent yet, in bytes: two bursts of 32 datagrams. It keeps
/// them in their order whatever becomes of the path, so more wait outside, in the outbox.
pub(crate) const DATAGRAMS_OUT: usize = 96 * 1024;

/// What an end may have unacknowledged over all streams, in bytes. It must never bind, or flows with
/// much to send would keep a keystroke from being sent at all: what is sent is kept by its flow
/// anyway, which our own credit and the gateway's limits bound, and the engine shares it.
const SEND_WINDOW: u64 = 4 * 1024 * 1024 * 1024;

/// `asked` is set whenever the engine asks whether a path's window has room.
pub(crate) fn transport(tuning: &Tuning, role: &Role, asked: Arc<AtomicBool>) -> TransportConfig {
    let mut transport = TransportConfig::default();
    let idle = VarInt::from_u64(u64::try_from(tuning.idle_timeout.as_millis()).unwrap_or(600_000))
        .unwrap_or(VarInt::MAX);
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(tuning.mtu_limit);
    transport
        .max_concurrent_multipath_paths(tuning.paths)
        // Each end would abandon on a timer of its own and could keep another last path than its
        // peer: only our own decisions close a path.
        .default_path_max_idle_timeout(None)
        .max_idle_timeout(Some(idle.into()))
        .initial_rtt(tuning.initial_rtt)
        .send_window(SEND_WINDOW)
        .stream_receive_window(STREAM_WINDOW.into())
        .max_concurrent_uni_streams(0_u32.into())
        .mtu_discovery_config(Some(mtu))
        .datagram_receive_buffer_size(Some(DATAGRAMS_IN))
        .datagram_send_buffer_size(DATAGRAMS_OUT)
        .ack_frequency_config(Some(acknowledgements()))
        .congestion_controller_factory(Arc::new(ObservedFactory {
            inner: congestion(tuning),
            initial_rtt: tuning.initial_rtt,
            asked,
        }));
    match role {
        Role::Client { .. } => {
            transport.max_concurrent_bidi_streams(0_u32.into()).receive_window(VarInt::MAX);
        }
        Role::Gateway { .. } => {
            transport
                .max_concurrent_bidi_streams(1_u32.into())
                .receive_window(STRANGER_WINDOW.into());
        }
    }
    transport
}

fn congestion(tuning: &Tuning) -> Arc<dyn ControllerFactory + Send + Sync> {
    match tuning.seed {
        None => Arc::new(Bbr3Config::default()),
        Some(_) => Arc::new(CubicConfig::default()),
    }
}

/// How the peer is asked to acknowledge (draft-ietf-quic-ack-frequency). A lone packet within 5 ms,
/// so that silence on a healthy path stays short; every eighth of many, which halves the work of
/// acknowledging and still spaces them closer than any round trip.
fn acknowledgements() -> AckFrequencyConfig {
    let mut config = AckFrequencyConfig::default();
    config.ack_eliciting_threshold(7_u32.into()).max_ack_delay(Some(Duration::from_millis(5)));
    config
}

pub(crate) fn client_config(
    key: &SecretKey,
    gateway: PublicKey,
    transport: Arc<TransportConfig>,
) -> Result<ClientConfig, IdentityError> {
    let tls = client_tls(key, gateway).map_err(|error| IdentityError(error.to_string()))?;
    let crypto =
        QuicClientConfig::try_from(tls).map_err(|error| IdentityError(error.to_string()))?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport);
    config.initial_dst_cid_provider(Arc::new(|| ConnectionId::new(&cid::unroutable(random()))));
    Ok(config)
}

pub(crate) fn server_config(
    key: &SecretKey,
    transport: Arc<TransportConfig>,
) -> Result<ServerConfig, IdentityError> {
    let tls = gateway_tls(key).map_err(|error| IdentityError(error.to_string()))?;
    let crypto =
        QuicServerConfig::try_from(tls).map_err(|error| IdentityError(error.to_string()))?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(transport);
    Ok(config)
}

pub(crate) fn endpoint_config(identity: &Identity, tuning: &Tuning) -> EndpointConfig {
    let mut config = EndpointConfig::new(Arc::new(ResetKeys::of(identity)));
    config.rng_seed(tuning.seed);
    // A restarted gateway answers the first packet of every old connection with a stateless
    // reset; at the engine's 20 ms a thousand clients would wait for seconds.
    config.min_reset_interval(Duration::from_micros(100));
    match identity.role {
        Role::Client { .. } => {
            config.cid_generator(Arc::new(|| Box::new(ClientCids)));
        }
        Role::Gateway { server } => {
            config.cid_generator(Arc::new(move || Box::new(GatewayCids(server))));
        }
    }
    config
}

/// Stateless resets are keyed by the identity, so they outlive the process (RFC 9000 §10.3.2), and
/// by what the connection ID names, so that whoever receives a packet that no living connection
/// knows can answer it in the name of the one it was sent to.
struct ResetKeys(hmac::Key);

impl ResetKeys {
    fn of(identity: &Identity) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, identity.key.seed()))
    }

    fn key_for(&self, cid: &[u8]) -> hmac::Key {
        let named = ServerId::decode(cid).unwrap_or_default();
        let server = [named.node, named.slot];
        let derived = hmac::sign(&self.0, &[b"stateless reset".as_slice(), &server].concat());
        hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref())
    }
}

impl HmacKey for ResetKeys {
    fn sign(&self, cid: &[u8], signature: &mut [u8]) {
        HmacKey::sign(&self.key_for(cid), cid, signature);
    }

    fn signature_len(&self) -> usize {
        HmacKey::signature_len(&self.0)
    }

    fn verify(&self, cid: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        HmacKey::verify(&self.key_for(cid), cid, signature)
    }
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the system's random source works once it has");
    bytes
}

struct ClientCids;

impl ConnectionIdGenerator for ClientCids {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&random::<{ cid::CLIENT_CID }>())
    }

    fn cid_len(&self) -> usize {
        cid::CLIENT_CID
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

struct GatewayCids(ServerId);

impl ConnectionIdGenerator for GatewayCids {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&self.0.encode(random()))
    }

    fn validate(&self, cid: ConnectionId) -> Result<(), InvalidCid> {
        // Of any slot: one of a process before may have had more of them.
        let ours = ServerId::decode(&cid).is_some_and(|server| server.node == self.0.node);
        if ours { Ok(()) } else { Err(InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        cid::GATEWAY_CID
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
