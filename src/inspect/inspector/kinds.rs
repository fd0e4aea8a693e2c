//! What may be known of a connection.

/// What a connection speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum App {
    /// Nothing that is known, or nothing yet.
    #[default]
    None,
    Tls,
    Quic,
    /// Headers of QUIC that nothing could be decrypted behind.
    QuicMaybe,
    Http1,
    /// HTTP/2 without TLS, with prior knowledge.
    H2c,
    /// HTTP/2 without TLS that HTTP/1 was upgraded to.
    H2cUpgrade,
    /// HTTP/2 without TLS, joined later than its beginning.
    H2cMid,
    /// TLS through a tunnel that CONNECT made.
    ConnectTls,
}

impl App {
    pub fn name(self) -> &'static str {
        match self {
            App::None => "none",
            App::Tls => "tls",
            App::Quic => "quic",
            App::QuicMaybe => "quic?",
            App::Http1 => "http1",
            App::H2c => "h2c",
            App::H2cUpgrade => "h2c-upgrade",
            App::H2cMid => "h2c-mid",
            App::ConnectTls => "http1-connect+tls",
        }
    }
}

/// Why a connection's protocol stays unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    HelloTooLong,
    HeadMalformed,
    HeadTooLong,
    /// Neither within the bytes that are looked at.
    StreamTooLong,
    /// Segments were missing, or came in an order that no room was left for.
    Gaps,
    /// All parsers were in use.
    Crowded,
}

impl Unknown {
    pub fn name(self) -> &'static str {
        match self {
            Unknown::HelloTooLong => "hello-too-long",
            Unknown::HeadMalformed => "head-malformed",
            Unknown::HeadTooLong => "head-too-long",
            Unknown::StreamTooLong => "stream-too-long",
            Unknown::Gaps => "gaps",
            Unknown::Crowded => "crowded",
        }
    }
}

/// What a client says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    Hello,
    Requests,
    /// One or the other.
    Anything,
}
