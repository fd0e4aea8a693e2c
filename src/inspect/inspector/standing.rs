//! What would be lost of a connection if somebody else were read in its place.

use super::{App, Inspector, Proof, Stage};

impl Inspector {
    /// Whether a connection whose beginning was seen may as well be read anew from here: its client
    /// has said nothing, or nothing that has no answer.
    pub fn may_begin_anew(&self) -> bool {
        let between = || self.http.as_ref().is_some_and(|http| http.is_between_http1());
        match self.stage {
            _ if self.joined => false,
            Stage::Start => !self.has_parsers(),
            Stage::Http1 => self.app == App::Http1 && between(),
            // What nobody reads begins anew in a version that its server has.
            Stage::Datagrams => self.proof() < Proof::Tag && !self.went_on(),
            _ => false,
        }
    }

    /// Whether a connection of HTTP/2, which can't be read anew from here, has nothing under way.
    pub fn is_idle_http2(&self) -> bool {
        let http = self.http.as_ref().filter(|_| self.stage == Stage::Http2);
        http.is_some_and(|http| http.is_between_http2())
    }
}
