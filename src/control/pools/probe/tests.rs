//! Every kind of check against servers of this process, well and unwell.

use std::convert::Infallible;

use http_body_util::StreamBody;
use http_body_util::combinators::BoxBody;
use hyper::body::Frame;
use hyper::service::service_fn;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

type Body = BoxBody<Bytes, Infallible>;

/// Answers one connection after the other, with what `answer` says.
async fn serve(
    http2: bool,
    tls: bool,
    answer: fn(Request<Incoming>) -> Response<Body>,
) -> SocketAddr {
    serve_by(http2, tls.then(acceptor), answer).await
}

async fn serve_by(
    http2: bool,
    acceptor: Option<TlsAcceptor>,
    answer: fn(Request<Incoming>) -> Response<Body>,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let end = listener.local_addr().expect("address");
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            let stream: Box<dyn Stream> = match &acceptor {
                Some(acceptor) => match acceptor.accept(stream).await {
                    Ok(stream) => Box::new(stream),
                    Err(_) => continue,
                },
                None => Box::new(stream),
            };
            let service = service_fn(move |r| async move { Ok::<_, Infallible>(answer(r)) });
            let io = TokioIo::new(stream);
            let _ = match http2 {
                true => {
                    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    server.serve_connection(io, service).await
                }
                false => {
                    hyper::server::conn::http1::Builder::new().serve_connection(io, service).await
                }
            };
        }
    });
    end
}

fn acceptor() -> TlsAcceptor {
    let names = vec!["gpu.test.example".to_string()];
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(names).expect("a pair");
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
    let config = rustls::ServerConfig::builder().with_no_client_auth();
    let config = config.with_single_cert(vec![cert.der().clone()], key).expect("fits");
    TlsAcceptor::from(Arc::new(config))
}

/// Takes nobody in who does not ask for its name.
fn acceptor_by_name() -> TlsAcceptor {
    let names = vec!["gpu.test.example".to_string()];
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(names).expect("a pair");
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
    let config = rustls::ServerConfig::builder().with_no_client_auth();
    let provider = config.crypto_provider();
    let pair = rustls::sign::CertifiedKey::from_der(vec![cert.der().clone()], key, provider);
    let mut names = rustls::server::ResolvesServerCertUsingSni::new();
    names.add("gpu.test.example", pair.expect("fits")).expect("its name");
    TlsAcceptor::from(Arc::new(config.with_cert_resolver(Arc::new(names))))
}

fn full(text: &str) -> Body {
    Full::new(Bytes::from(text.to_string())).boxed()
}

fn answer(status: u16, body: Body) -> Response<Body> {
    Response::builder().status(status).body(body).expect("an answer")
}

/// What a client sees of a page that depends on the path and the host.
fn page(request: Request<Incoming>) -> Response<Body> {
    let host = request.headers().get(HOST).and_then(|h| h.to_str().ok());
    let host = host.or(request.uri().authority().map(|a| a.as_str())).unwrap_or_default();
    match request.uri().path() {
        "/health" => answer(200, full(&format!("ready at {host}"))),
        "/busy" => answer(503, full("later")),
        _ => answer(404, full("")),
    }
}

/// A health service whose messages end in trailers.
fn grpc(request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_string();
    let frame = |status: u8| Bytes::from(vec![0, 0, 0, 0, 2, 0x08, status]);
    let messages = |data: Bytes, code: &'static str| {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", hyper::header::HeaderValue::from_static(code));
        let frames = vec![Ok(Frame::data(data)), Ok(Frame::trailers(trailers))];
        BodyExt::boxed(StreamBody::new(futures::stream::iter(frames)))
    };
    match path.as_str() {
        GRPC_PATH => answer(200, messages(frame(SERVING as u8), "0")),
        _ => answer(404, full("")),
    }
}

/// As [`grpc`], of a server that is asked by its name only.
fn grpc_by_name(request: Request<Incoming>) -> Response<Body> {
    let uri = request.uri();
    let by = (uri.scheme_str(), uri.authority().map(|authority| authority.host()));
    match by == (Some("https"), Some("gpu.test.example")) {
        true => grpc(request),
        false => answer(421, full("")),
    }
}

fn not_serving(_: Request<Incoming>) -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", hyper::header::HeaderValue::from_static("0"));
    let data = Bytes::from(vec![0, 0, 0, 0, 2, 0x08, 2]);
    let frames = vec![Ok(Frame::data(data)), Ok(Frame::trailers(trailers))];
    answer(200, BodyExt::boxed(StreamBody::new(futures::stream::iter(frames))))
}

fn unknown_service(_: Request<Incoming>) -> Response<Body> {
    let mut whole = answer(200, full(""));
    whole.headers_mut().insert("grpc-status", hyper::header::HeaderValue::from_static("5"));
    whole
}

fn http(http2: bool, path: &str) -> HttpCheck {
    HttpCheck {
        http2,
        tls: None,
        host: None,
        path: path.into(),
        status: vec![200..=299],
        body: None,
    }
}

fn run_all(body: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(body);
}

async fn found(check: &Check, end: SocketAddr) -> Result<(), String> {
    let stream = TcpStream::connect(end).await.map_err(|e| told("connect", &e))?;
    Probe::new(check).talk(stream, end).await
}

#[test]
fn http_is_judged_by_status_and_body() {
    run_all(async {
        for (http2, tls) in [(false, false), (true, false), (false, true), (true, true)] {
            let end = serve(http2, tls, page).await;
            let sni = Some("gpu.test.example".to_string());
            let tls = tls.then_some(TlsCheck { sni });
            let base = HttpCheck { tls, ..http(http2, "/health") };
            assert_eq!(found(&Check::Http(base.clone()), end).await, Ok(()), "{base:?}");
            let host = Some("chat.example".to_string());
            let body = Some("ready at chat.example".to_string());
            let named = HttpCheck { host, body: body.clone(), ..base.clone() };
            assert_eq!(found(&Check::Http(named), end).await, Ok(()));
            let other = HttpCheck { body, ..base.clone() };
            let said = found(&Check::Http(other), end).await.expect_err("another host");
            assert!(said.contains("the body does not hold `ready at chat"), "{said}");
            let busy = HttpCheck { path: "/busy".into(), ..base };
            let said = found(&Check::Http(busy.clone()), end).await;
            assert_eq!(said, Err("http: status 503".to_string()));
            let any = HttpCheck { status: vec![200..=200, 500..=599], ..busy };
            assert_eq!(found(&Check::Http(any), end).await, Ok(()));
        }
    });
}

#[test]
fn servers_are_asked_by_the_name_of_the_handshake() {
    run_all(async {
        let tls = || Some(TlsCheck { sni: Some("gpu.test.example".to_string()) });
        for http2 in [false, true] {
            let end = serve_by(http2, Some(acceptor_by_name()), page).await;
            let body = Some(format!("ready at gpu.test.example:{}", end.port()));
            let check = HttpCheck { tls: tls(), body, ..http(http2, "/health") };
            assert_eq!(found(&Check::Http(check.clone()), end).await, Ok(()));
            let nameless = HttpCheck { tls: Some(TlsCheck { sni: None }), ..check };
            let said = found(&Check::Http(nameless), end).await.expect_err("no name");
            assert!(said.starts_with("tls: "), "{said}");
        }
        let end = serve_by(true, Some(acceptor_by_name()), grpc_by_name).await;
        let check = Check::Grpc { service: String::new(), tls: tls() };
        assert_eq!(found(&check, end).await, Ok(()));
        assert_eq!(
            authority(tls().as_ref(), "10.0.0.1:443".parse().expect("literal")),
            "gpu.test.example"
        );
    });
}

#[test]
fn grpc_is_judged_by_its_own_status() {
    run_all(async {
        let check = |service: &str| Check::Grpc { service: service.into(), tls: None };
        let well = serve(true, false, grpc).await;
        assert_eq!(found(&check(""), well).await, Ok(()));
        assert_eq!(found(&check("llm.Chat"), well).await, Ok(()));
        let tls = Check::Grpc { service: String::new(), tls: Some(TlsCheck { sni: None }) };
        assert_eq!(found(&tls, serve(true, true, grpc).await).await, Ok(()));
        for (server, said) in [
            (serve(true, false, not_serving).await, "grpc: NOT_SERVING"),
            (serve(true, false, unknown_service).await, "grpc: status 5"),
            (serve(true, false, page).await, "grpc: http status 404"),
        ] {
            assert_eq!(found(&check(""), server).await, Err(said.to_string()));
        }
    });
}

#[test]
fn connections_and_handshakes_are_judged_alone() {
    run_all(async {
        let plain = serve(false, false, page).await;
        let tls = serve(false, true, page).await;
        let handshake = Check::Tls(TlsCheck { sni: None });
        assert_eq!(found(&Check::Tcp, plain).await, Ok(()));
        assert_eq!(found(&handshake, tls).await, Ok(()));
        let said = found(&handshake, plain).await.expect_err("no TLS");
        assert!(said.starts_with("tls: "), "{said}");
        let closed = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let end = closed.local_addr().expect("address");
        drop(closed);
        let said = found(&Check::Tcp, end).await.expect_err("nobody listens");
        assert!(said.starts_with("connect: Connection refused"), "{said}");
        let said = found(&Check::Http(http(false, "/")), tls).await.expect_err("TLS");
        assert!(said.starts_with("http: "), "{said}");
    });
}

#[test]
fn messages_of_grpc_are_read_or_refused() {
    for (frame, status) in [
        (&[0, 0, 0, 0, 2, 8, 1][..], Some(1)),
        (&[0, 0, 0, 0, 0], Some(0)),
        (&[0, 0, 0, 0, 2, 8, 1, 0, 0], Some(1)),
        (&[1, 0, 0, 0, 2, 8, 1], None),
        (&[0, 0, 0, 0, 3, 8, 1], None),
        (&[0, 255, 255, 255, 255, 8, 1], None),
        (&[0, 0, 0, 0, 2, 8, 0x80], None),
        (&[0, 0, 0], None),
        (&[], None),
    ] {
        assert_eq!(serving_status(frame), status, "{frame:?}");
    }
}
