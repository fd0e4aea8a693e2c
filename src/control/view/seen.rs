//! What `show flows` tells of a flow's inside.

use serde::{Deserialize, Serialize};

/// What was seen inside a flow. Text of strangers: bytes outside printable ASCII, and the
/// backslash, are written `\xNN`; long ones are cut.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SeenView {
    /// As `tidegate inspect` names protocols.
    pub app: Option<String>,
    /// Why the protocol is not known.
    pub unknown: Option<String>,
    /// Protocols that the ClientHello offers.
    pub alpn: Vec<String>,
    /// The one that the server chose, where it says so in the clear.
    pub alpn_chosen: Option<String>,
    /// Version of TLS that the server chose, in hexadecimal: `0304` is 1.3.
    pub tls_version: Option<String>,
    /// Those that the ClientHello offers, in order.
    pub tls_versions: Vec<String>,
    pub ja4: Option<String>,
    /// Of a ClientHello: `1` where it has ECH, `2` ESNI, so that `sni` is the outer name; `0` where
    /// it has neither.
    pub ech: Option<String>,
    /// Post-quantum and hybrid groups that it has key shares for, in hexadecimal.
    pub pq: Vec<String>,
    /// Version of QUIC, in hexadecimal.
    pub quic_version: Option<String>,
    /// The client goes on with an earlier session.
    pub resumed: bool,
    /// It sends data before the server has answered: 0-RTT.
    pub early_data: bool,
    /// Copies of the same bytes differed.
    pub conflicts: bool,
    /// Of the last request: its host, method, and path without query.
    pub authority: Option<String>,
    pub method: Option<String>,
    pub path: Option<String>,
    /// Requests seen.
    pub requests: Option<u32>,
    /// Of the last answer.
    pub status: Option<u16>,
    pub grpc_status: Option<u32>,
    /// The last answer comes as server-sent events.
    pub event_stream: bool,
    /// As the catalogue of LLM APIs has it.
    pub provider: Option<String>,
    pub operation: Option<String>,
    pub tenant: Option<String>,
    /// Code point that a rule has packets leave with.
    pub set_dscp: Option<u8>,
    /// Port that a rule has copies of packets leave by, or the host that they go to.
    pub mirror: Option<String>,
}
