//! One check of one backend.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, TE, USER_AGENT};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::config::health::{BODY_BYTES_MAX, Check, HttpCheck, TlsCheck};

const GRPC_PATH: &str = "/grpc.health.v1.Health/Check";
const AGENT: &str = concat!("tidegate/", env!("CARGO_PKG_VERSION"));
/// What `https` means without a port.
const HTTPS_PORT: u16 = 443;
/// `ServingStatus.SERVING` of grpc/health/v1/health.proto.
const SERVING: u64 = 1;

/// A check made ready.
pub struct Probe<'a> {
    check: &'a Check,
    tls: Option<TlsConnector>,
}

impl Probe<'_> {
    pub fn new(check: &Check) -> Probe<'_> {
        let (tls, alpn) = match check {
            Check::Tcp => (None, None),
            Check::Tls(tls) => (Some(tls), None),
            Check::Http(http) => {
                (http.tls.as_ref(), Some(if http.http2 { "h2" } else { "http/1.1" }))
            }
            Check::Grpc { tls, .. } => (tls.as_ref(), Some("h2")),
        };
        Probe { check, tls: tls.map(|_| connector(alpn)) }
    }

    /// Whether the backend at the connection's other end is well; why not, for the operator. Takes
    /// as long as it takes.
    ///
    /// # Errors
    /// What was not as it should be.
    pub async fn talk(&self, stream: TcpStream, end: SocketAddr) -> Result<(), String> {
        match self.check {
            Check::Tcp => Ok(()),
            Check::Tls(tls) => handshake(stream, Some(tls), self.tls.as_ref(), end).await.map(drop),
            Check::Http(http) => {
                let stream = handshake(stream, http.tls.as_ref(), self.tls.as_ref(), end).await?;
                let bytes_max = if http.body.is_some() { BODY_BYTES_MAX } else { 0 };
                let answer = exchange(stream, http.http2, get(http, end)?, bytes_max).await?;
                judge_http(http, &answer)
            }
            Check::Grpc { service, tls } => {
                let stream = handshake(stream, tls.as_ref(), self.tls.as_ref(), end).await?;
                let asked = ask_health(service, tls.as_ref(), end)?;
                judge_grpc(&exchange(stream, true, asked, BODY_BYTES_MAX).await?)
            }
        }
    }
}

async fn handshake(
    stream: TcpStream,
    tls: Option<&TlsCheck>,
    connector: Option<&TlsConnector>,
    end: SocketAddr,
) -> Result<Box<dyn Stream>, String> {
    let (Some(tls), Some(connector)) = (tls, connector) else { return Ok(Box::new(stream)) };
    let name = match &tls.sni {
        Some(name) => ServerName::try_from(name.clone()).map_err(|e| told("tls", &e))?,
        // An address is no name to ask for (RFC 6066): none is sent.
        None => ServerName::IpAddress(end.ip().into()),
    };
    let stream = connector.connect(name, stream).await.map_err(|e| told("tls", &e))?;
    Ok(Box::new(stream))
}

/// A page that is read again and again.
pub struct Page {
    http: HttpCheck,
    tls: Option<TlsConnector>,
}

/// Bytes of a page at most: vLLM's has some 100 KB.
const PAGE_BYTES_MAX: usize = 1 << 20;

impl Page {
    pub fn new(tls: bool, path: &str) -> Page {
        let check = tls.then_some(TlsCheck { sni: None });
        let http = HttpCheck {
            http2: false,
            tls: check,
            host: None,
            path: path.to_string(),
            status: vec![200..=200],
            body: None,
        };
        Page { http, tls: tls.then(|| connector(Some("http/1.1"))) }
    }

    /// Takes as long as it takes.
    ///
    /// # Errors
    /// Why there is no such page.
    pub async fn fetch(&self, end: SocketAddr) -> Result<String, String> {
        let stream = TcpStream::connect(end).await.map_err(|e| told("connect", &e))?;
        let stream = handshake(stream, self.http.tls.as_ref(), self.tls.as_ref(), end).await?;
        let answer = exchange(stream, false, get(&self.http, end)?, PAGE_BYTES_MAX).await?;
        judge_http(&self.http, &answer)?;
        match answer.body.len() < PAGE_BYTES_MAX {
            true => Ok(String::from_utf8_lossy(&answer.body).into_owned()),
            false => Err(format!("http: the page has {PAGE_BYTES_MAX} bytes or more")),
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// What came back.
struct Answer {
    status: u16,
    head: HeaderMap,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
}

fn get(http: &HttpCheck, end: SocketAddr) -> Result<Request<Full<Bytes>>, String> {
    let authority = http.host.clone().unwrap_or_else(|| authority(http.tls.as_ref(), end));
    let request = match http.http2 {
        true => Request::get(format!("{}://{authority}{}", scheme(http.tls.is_some()), http.path)),
        false => Request::get(http.path.as_str()).header(HOST, authority),
    };
    let request = request.header(USER_AGENT, AGENT).body(Full::default());
    request.map_err(|e| told("request", &e))
}

/// `HealthCheckRequest { service }`, in a frame of gRPC's.
fn ask_health(
    service: &str,
    tls: Option<&TlsCheck>,
    end: SocketAddr,
) -> Result<Request<Full<Bytes>>, String> {
    let mut message = Vec::new();
    if !service.is_empty() {
        // Field 1, a string; the configuration keeps its length below 128.
        message.extend([0x0a, service.len() as u8]);
        message.extend(service.as_bytes());
    }
    let mut frame = vec![0];
    frame.extend((message.len() as u32).to_be_bytes());
    frame.extend(message);
    let (scheme, authority) = (scheme(tls.is_some()), authority(tls, end));
    Request::post(format!("{scheme}://{authority}{GRPC_PATH}"))
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .header(USER_AGENT, AGENT)
        .body(Full::from(frame))
        .map_err(|e| told("request", &e))
}

/// Who is asked: by the name of the handshake, where it has one. Servers refuse another
/// (RFC 9110, section 15.5.20).
fn authority(tls: Option<&TlsCheck>, end: SocketAddr) -> String {
    match tls.and_then(|tls| tls.sni.as_ref()) {
        Some(name) if end.port() == HTTPS_PORT => name.clone(),
        Some(name) => format!("{name}:{}", end.port()),
        None => end.to_string(),
    }
}

fn scheme(tls: bool) -> &'static str {
    if tls { "https" } else { "http" }
}

/// One request, and its answer up to the limit.
async fn exchange(
    stream: Box<dyn Stream>,
    http2: bool,
    request: Request<Full<Bytes>>,
    bytes_max: usize,
) -> Result<Answer, String> {
    let io = TokioIo::new(stream);
    let failed = |e: hyper::Error| told("http", &e);
    if http2 {
        let executor = TokioExecutor::new();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(executor, io).await.map_err(failed)?;
        let answer =
            async { read(sender.send_request(request).await.map_err(failed)?, bytes_max).await };
        beside(connection, answer).await
    } else {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(io).await.map_err(failed)?;
        let answer =
            async { read(sender.send_request(request).await.map_err(failed)?, bytes_max).await };
        beside(connection, answer).await
    }
}

/// Drives a connection until the answer is there.
async fn beside<C: Future<Output = Result<(), hyper::Error>>>(
    connection: C,
    answer: impl Future<Output = Result<Answer, String>>,
) -> Result<Answer, String> {
    let (mut connection, mut answer) = (std::pin::pin!(connection), std::pin::pin!(answer));
    let mut driven = true;
    loop {
        tokio::select! {
            answer = &mut answer => return answer,
            _ = &mut connection, if driven => driven = false,
        }
    }
}

/// Reads an answer, and as much of its body as matters: it may never end.
async fn read(response: Response<Incoming>, bytes_max: usize) -> Result<Answer, String> {
    let (head, mut body) = response.into_parts();
    let status = head.status.as_u16();
    let mut answer = Answer { status, head: head.headers, body: Vec::new(), trailers: None };
    while answer.body.len() < bytes_max
        && let Some(frame) = body.frame().await
    {
        match frame.map_err(|e| told("body", &e))?.into_data() {
            Ok(data) => answer.body.extend_from_slice(&data),
            Err(frame) => answer.trailers = frame.into_trailers().ok(),
        }
    }
    answer.body.truncate(bytes_max);
    Ok(answer)
}

fn judge_http(http: &HttpCheck, answer: &Answer) -> Result<(), String> {
    if !http.status.iter().any(|range| range.contains(&answer.status)) {
        return Err(format!("http: status {}", answer.status));
    }
    match &http.body {
        Some(wanted) if memchr::memmem::find(&answer.body, wanted.as_bytes()).is_none() => {
            Err(format!("http: status {}, but the body does not hold `{wanted}`", answer.status))
        }
        _ => Ok(()),
    }
}

fn judge_grpc(answer: &Answer) -> Result<(), String> {
    if answer.status != 200 {
        return Err(format!("grpc: http status {}", answer.status));
    }
    let of = |map: &HeaderMap| {
        map.get("grpc-status").and_then(|v| v.to_str().ok()).map(ToString::to_string)
    };
    // An answer without a message has its status in the head.
    let status = answer.trailers.as_ref().and_then(of).or_else(|| of(&answer.head));
    match status.as_deref() {
        Some("0") => {}
        Some(code) => return Err(format!("grpc: status {code}")),
        None => return Err("grpc: no status".to_string()),
    }
    match serving_status(&answer.body) {
        Some(SERVING) => Ok(()),
        Some(other) => {
            let names = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];
            let name = usize::try_from(other).ok().and_then(|i| names.get(i));
            Err(format!("grpc: {}", name.unwrap_or(&"a status of no name")))
        }
        None => Err("grpc: not a health message".to_string()),
    }
}

/// `HealthCheckResponse.status` of a frame: its only field, 0 where it is left out.
fn serving_status(frame: &[u8]) -> Option<u64> {
    let (compressed, rest) = frame.split_first()?;
    let (length, message) = rest.split_first_chunk::<4>()?;
    let message = message.get(..u32::from_be_bytes(*length) as usize)?;
    match (compressed, message) {
        (0, []) => Some(0),
        (0, [0x08, status]) if *status < 0x80 => Some(u64::from(*status)),
        _ => None,
    }
}

/// An error with its causes, in one line.
pub fn told(step: &str, error: &(dyn Error + 'static)) -> String {
    let mut text = format!("{step}: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

fn connector(alpn: Option<&str>) -> TlsConnector {
    let verifier = Arc::new(AnyCertificate(rustls::crypto::ring::default_provider()));
    let config = ClientConfig::builder().dangerous().with_custom_certificate_verifier(verifier);
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

/// Takes any certificate whose key the server has: whom to trust is the clients' business, and a
/// check sends nothing that is secret.
#[derive(Debug)]
struct AnyCertificate(CryptoProvider);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
