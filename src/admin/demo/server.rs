//! The demo's inference servers: TLS, HTTP/1.1, a token stream and an endless download.

use std::convert::Infallible;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::TlsAcceptor;

/// Path of the token stream.
pub const CHAT_PATH: &str = "/v1/chat/completions";
/// Path of the endless download.
pub const BULK_PATH: &str = "/v1/files/dataset/content";

/// One event of the stream: about what a token costs on the wire.
pub const CHUNK_BYTES: usize = 200;
const BULK_CHUNK_BYTES: usize = 16 * 1024;

/// How the token stream runs.
#[derive(Clone, Copy, Debug)]
pub struct StreamShape {
    pub chunks: u32,
    pub interval: Duration,
}

/// A certificate for the demo's names, made for this run only.
pub struct Identity {
    pub certificate: CertificateDer<'static>,
    key: PrivatePkcs8KeyDer<'static>,
}

impl Identity {
    /// # Errors
    /// Key generation fails.
    pub fn generate(names: &[&str]) -> Result<Identity> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let made = rcgen::generate_simple_self_signed(names).context("making a certificate")?;
        Ok(Identity {
            certificate: made.cert.der().clone(),
            key: PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()),
        })
    }

    fn server_config(&self) -> Result<Arc<rustls::ServerConfig>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::Pkcs8(self.key.clone_key());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// Serves on listeners (each bound in its backend's namespace) until the runtime ends.
///
/// # Errors
/// A listener can't be made asynchronous.
pub async fn serve(
    listeners: Vec<TcpListener>,
    identity: &Identity,
    shape: StreamShape,
) -> Result<()> {
    let acceptor = TlsAcceptor::from(identity.server_config()?);
    let mut tasks = tokio::task::JoinSet::new();
    for listener in listeners {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        tasks.spawn(accept_loop(listener, acceptor.clone(), shape));
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

async fn accept_loop(listener: tokio::net::TcpListener, acceptor: TlsAcceptor, shape: StreamShape) {
    loop {
        let Ok((tcp, _)) = listener.accept().await else {
            // Out of descriptors: give connections the time to end.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            // Tokens leave as they are made; Nagle would hold them back.
            let _ = tcp.set_nodelay(true);
            let Ok(tls) = acceptor.accept(tcp).await else { return };
            let service = service_fn(move |request| answer(request, shape));
            // A client that goes away in the middle is its own business.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(tls), service)
                .await;
        });
    }
}

type Body = BoxBody<Bytes, Infallible>;

async fn answer(
    request: Request<Incoming>,
    shape: StreamShape,
) -> Result<Response<Body>, hyper::http::Error> {
    match request.uri().path() {
        CHAT_PATH => Response::builder()
            .header("content-type", "text/event-stream")
            .header("cache-control", "no-cache")
            .body(token_stream(shape)),
        BULK_PATH => {
            Response::builder().header("content-type", "application/octet-stream").body(endless())
        }
        _ => Response::builder().status(StatusCode::NOT_FOUND).body(Full::default().boxed()),
    }
}

/// `shape.chunks` events, the first at once, the rest at their interval.
fn token_stream(shape: StreamShape) -> Body {
    let events = stream::unfold(0u32, move |n| async move {
        if n == shape.chunks {
            return None;
        }
        if n > 0 {
            tokio::time::sleep(shape.interval).await;
        }
        Some((Ok(Frame::data(event(n))), n + 1))
    });
    BodyExt::boxed(StreamBody::new(events))
}

/// One server-sent event of [`CHUNK_BYTES`].
fn event(n: u32) -> Bytes {
    let head = format!("data: {{\"index\":{n},\"delta\":\"");
    let tail = "\"}\n\n";
    let fill = CHUNK_BYTES.saturating_sub(head.len() + tail.len());
    Bytes::from(format!("{head}{}{tail}", "x".repeat(fill)))
}

fn endless() -> Body {
    let block = Bytes::from(vec![0x5a; BULK_CHUNK_BYTES]);
    let blocks = stream::repeat_with(move || Ok(Frame::data(block.clone())));
    BodyExt::boxed(StreamBody::new(blocks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_their_size() {
        for n in [0, 7, 12_345] {
            assert_eq!(event(n).len(), CHUNK_BYTES);
            assert!(event(n).ends_with(b"\n\n"));
        }
    }
}
