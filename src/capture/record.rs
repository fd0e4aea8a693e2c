//! What is told of a connection: the columns of a table, the keys of a JSON object.

use serde::Serialize;

use super::flows::Flow;
use super::layers::TCP;
use crate::base::text::printable as text;
use crate::inspect::inspector::{App, Inspector, Request, Shortfall};
use crate::inspect::tls::{Encrypted, HelloParser};
use crate::policy::catalogue::{Catalogue, Operation};

/// What a capture says of one connection. Text is as sent; bytes outside printable ASCII, and the
/// backslash, are written `\xNN`. `-` stands for what is known to be absent, nothing for what does
/// not apply.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FlowRecord {
    pub l4: &'static str,
    pub client_ip: String,
    pub client_port: u16,
    pub server_ip: String,
    pub server_port: u16,
    /// How many connections had the same ends before.
    pub seq: u32,
    pub encap: String,
    #[serde(flatten)]
    pub seen: Seen,
}

/// What was seen inside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Seen {
    pub app: &'static str,
    pub sni: String,
    pub alpn: String,
    pub tls_versions: String,
    pub ech: String,
    pub pq: String,
    pub quic_version: String,
    pub http_method: String,
    pub http_authority: String,
    pub http_path: String,
    pub http_requests: Option<u64>,
    pub ja4: String,
    /// Of the catalogue of LLM APIs: the class that suits it, who serves it, what is asked for.
    pub class: String,
    pub provider: String,
    pub operation: &'static str,
    /// Why it is unknown, or what is missing of what the client said first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// A name, a path or the protocols offered were longer than what is told of them.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// The client goes on with an earlier session.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub resumed: bool,
    /// It sends data before the server has answered: 0-RTT.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub early_data: bool,
    /// Copies of the same bytes differed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub conflicts: bool,
}

impl FlowRecord {
    pub(super) fn of(flow: &Flow, catalogue: &Catalogue) -> FlowRecord {
        let nothing = Seen { app: App::None.name(), ..Seen::default() };
        let mut seen = flow.seen.as_deref().cloned().unwrap_or(nothing);
        seen.look_up(catalogue);
        FlowRecord {
            l4: if flow.proto == TCP { "tcp" } else { "udp" },
            client_ip: flow.client.0.to_string(),
            client_port: flow.client.1,
            server_ip: flow.server.0.to_string(),
            server_port: flow.server.1,
            seq: flow.seq,
            encap: flow.encap.to_string(),
            seen,
        }
    }
}

impl Seen {
    pub(super) fn of(inspector: &Inspector) -> Seen {
        let mut seen = Seen { app: inspector.app().name(), ..Seen::default() };
        if let Some(unknown) = inspector.unknown() {
            seen.app = "unknown";
            seen.reason = Some(unknown.name());
        } else if let Some(shortfall) = inspector.shortfall() {
            seen.reason = Some(shortfall.name());
            if shortfall == Shortfall::HeadCut {
                seen.app = "unknown";
            }
        }
        seen.truncated = inspector.is_truncated();
        if let Some(hello) = inspector.client_hello() {
            seen.hello(hello);
        }
        if let Some(version) = inspector.quic_version() {
            seen.quic_version = format!("{version:08x}");
        }
        if let Some(ja4) = inspector.ja4() {
            ja4.as_str().clone_into(&mut seen.ja4);
        }
        if let Some(request) = inspector.request() {
            seen.request(request);
        }
        if !matches!(inspector.app(), App::None | App::Tls | App::Quic | App::QuicMaybe) {
            seen.http_requests = Some(inspector.requests());
        }
        seen
    }

    fn look_up(&mut self, catalogue: &Catalogue) {
        let some = |text: &str| !matches!(text, "" | "-");
        let host = [&self.sni, &self.http_authority].into_iter().find(|name| some(name));
        let path = Some(&self.http_path).filter(|path| some(path));
        let bytes = |text: &String| text.clone().into_bytes();
        let (host, path) = (host.map(bytes), path.map(bytes));
        if let Some(known) = catalogue.find(host.as_deref(), path.as_deref()) {
            known.provider.clone_into(&mut self.provider);
            known.class.clone_into(&mut self.class);
            self.operation = known.operation.map_or("", Operation::name);
        }
    }

    fn hello(&mut self, hello: &HelloParser) {
        self.sni = text_or_dash(hello.sni());
        self.alpn = joined(hello.alpn().iter().map(text));
        self.tls_versions = hex(hello.versions());
        let mut groups = hello.post_quantum_groups().to_vec();
        groups.sort_unstable();
        self.pq = hex(&groups);
        self.ech = match hello.encrypted() {
            Encrypted::No => "0",
            Encrypted::Ech => "1",
            Encrypted::Esni => "2",
        }
        .to_owned();
        (self.resumed, self.early_data) = (hello.resumed(), hello.early_data());
    }

    fn request(&mut self, request: Request<'_>) {
        self.http_method = text(request.method);
        self.http_authority = text_or_dash(request.authority);
        self.http_path = text_or_dash(request.path);
    }
}

fn hex(numbers: &[u16]) -> String {
    joined(numbers.iter().map(|number| format!("{number:04x}")))
}

fn joined(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(",")
}

fn text_or_dash(bytes: Option<&[u8]>) -> String {
    bytes.map_or("-".to_owned(), text)
}
