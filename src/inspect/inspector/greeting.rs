//! The readers of hellos that one connection has, of TLS or QUIC.

use crate::inspect::quic::InitialReader;
use crate::inspect::tls::{HelloParser, ServerHello};

/// They are most of what a connection needs that is not of HTTP.
#[derive(Debug)]
pub(super) struct Greeting {
    pub(super) hello: HelloParser,
    pub(super) answer: ServerHello,
    pub(super) initials: InitialReader,
}

impl Greeting {
    pub(super) fn new() -> Greeting {
        Greeting {
            hello: HelloParser::new(0),
            answer: ServerHello::default(),
            initials: InitialReader::new(),
        }
    }

    /// Forgets what was read before; hellos are looked at up to here from now on.
    pub(super) fn begin(&mut self, hello_bytes_max: u32) {
        self.hello = HelloParser::new(hello_bytes_max);
        self.answer = ServerHello::default();
        self.initials = InitialReader::new();
    }
}
