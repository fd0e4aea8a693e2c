//! How engines' metrics are read, as configured.

use std::time::Duration;

/// Where and how often the engines of one pool tell what they have to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricsSpec {
    /// `None`: the backend's own.
    pub port: Option<u16>,
    pub path: String,
    /// Over TLS; certificates are not verified.
    pub tls: bool,
    /// From reading to reading.
    pub interval: Duration,
    /// A reading that takes longer has failed.
    pub timeout: Duration,
    /// What was read is not believed any longer than this.
    pub stale_after: Duration,
}
