//! Health checks as configured.

use std::ops::RangeInclusive;
use std::time::Duration;

/// What of a pool's backends is looked after.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolHealth {
    /// `None`: its backends are taken to be well.
    pub check: Option<HealthSpec>,
    /// While fewer backends than this share of those with a weight are well, all get new flows.
    /// 0: only where none is.
    pub panic_percent: u8,
    /// Flows of a backend that goes down are cut.
    pub cuts_on_down: bool,
}

/// How the backends of one pool are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthSpec {
    pub check: Check,
    /// Where it asks; `None`: at the backend's own port.
    pub port: Option<u16>,
    /// From the beginning of one check to that of the next.
    pub interval: Duration,
    /// A check that takes longer has failed.
    pub timeout: Duration,
    /// Checks in a row that must succeed for a backend to come back.
    pub rise: u32,
    /// Checks in a row that must fail for it to be taken out.
    pub fall: u32,
    /// The interval varies by as much in either direction.
    pub jitter_percent: u8,
    /// For how long after its return a backend's weight grows; zero: it has all of it at once.
    pub slow_start: Duration,
    /// A backend that falls again within this time after its return needs twice the `rise`, and so
    /// on.
    pub flap_window: Duration,
}

/// What a check asks, and what must be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// A connection is accepted.
    Tcp,
    /// A TLS handshake is completed.
    Tls(TlsCheck),
    /// A GET over HTTP/1.1 or HTTP/2 is answered.
    Http(HttpCheck),
    /// The service says that it is serving (`grpc.health.v1`).
    Grpc {
        /// Whose health is asked; empty: the server's.
        service: String,
        tls: Option<TlsCheck>,
    },
}

/// TLS within a check. Certificates are not verified: clients do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsCheck {
    /// The name asked for; `None`: none.
    pub sni: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpCheck {
    /// HTTP/2, without TLS by prior knowledge.
    pub http2: bool,
    pub tls: Option<TlsCheck>,
    /// The authority asked for; `None`: the backend's address and port.
    pub host: Option<String>,
    pub path: String,
    /// Any of these is well.
    pub status: Vec<RangeInclusive<u16>>,
    /// What the answer's first [`BODY_BYTES_MAX`] bytes must hold.
    pub body: Option<String>,
}

/// Bytes of an answer that are looked at.
pub const BODY_BYTES_MAX: usize = 64 << 10;
