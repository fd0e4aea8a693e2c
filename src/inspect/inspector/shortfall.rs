//! What is missing of what a connection's client said first.

use super::{App, Inspector, Stage};

/// Why a connection's first words say less than they might.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortfall {
    /// A ClientHello that ends before it is whole.
    HelloCut,
    /// One that contradicts itself, or names what is no name.
    HelloMalformed,
    /// The head of a request that ends before it is whole.
    HeadCut,
}

impl Shortfall {
    pub fn name(self) -> &'static str {
        match self {
            Shortfall::HelloCut => "hello-cut",
            Shortfall::HelloMalformed => "hello-malformed",
            Shortfall::HeadCut => "head-cut",
        }
    }
}

impl Inspector {
    /// What is missing if nothing more comes. `None` where nothing is, or where nobody can tell.
    pub fn shortfall(&self) -> Option<Shortfall> {
        let whole = self.client_hello().is_some();
        match (self.stage, self.app()) {
            (Stage::TunnelHello, _) => {
                let begun = self.greeting.as_ref().is_some_and(|g| g.hello.has_begun());
                (begun && !whole).then_some(Shortfall::HelloCut)
            }
            (Stage::Done, App::Tls | App::ConnectTls | App::Quic) if !whole => {
                Some(Shortfall::HelloMalformed)
            }
            (Stage::Hello, App::Tls) | (Stage::Datagrams, App::Quic) if !whole => {
                Some(Shortfall::HelloCut)
            }
            (Stage::Http1, App::None) if !self.joined => {
                let begun = self.http.as_ref().is_some_and(|http| http.has_method());
                begun.then_some(Shortfall::HeadCut)
            }
            _ => None,
        }
    }

    /// Protocols offered, or a part of the first request, were longer than what is kept of them.
    pub fn is_truncated(&self) -> bool {
        let hello = self.client_hello().is_some_and(|hello| hello.alpn_truncated());
        hello || self.http.as_ref().is_some_and(|http| self.knows() && http.first_is_cut())
    }
}
