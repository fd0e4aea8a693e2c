//! Streams of HTTP/2 that are over.

use crate::inspect::h2;
use crate::inspect::http1::Side;

/// Streams that are known to be over: as many as may end until a reset of one of them comes.
const KNOWN: usize = 8;

/// Streams of requests that their server has ended, or that were reset, each once.
#[derive(Debug, Default)]
pub(super) struct Ended {
    count: u64,
    last: [u32; KNOWN],
    at: usize,
}

impl Ended {
    /// A server may reset what it has answered, so that no more of the request is sent (RFC 9113,
    /// section 8.1), and a client what it has the answer to.
    pub(super) fn note(&mut self, stream: u32) {
        if !self.last.contains(&stream) {
            self.last[self.at] = stream;
            self.at = (self.at + 1) % KNOWN;
            self.count += 1;
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }
}

/// The stream of a request that is over with this.
pub(super) fn by(from: Side, event: &h2::Event<'_>) -> Option<u32> {
    let stream = match *event {
        h2::Event::Headers { stream, end_stream, .. }
        | h2::Event::Data { stream, end_stream, .. } => {
            (from == Side::Server && end_stream).then_some(stream)
        }
        h2::Event::Reset { stream, .. } => Some(stream),
        h2::Event::GoAway { .. } | h2::Event::StreamError { .. } => None,
    };
    // The others are pushed.
    stream.filter(|stream| stream % 2 == 1)
}
