//! The clients that people use: Python's `openai` (streaming, over TLS) and `grpcio`. They come
//! from PyPI, in a folder that the tests' set-up makes.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tidegate::lab::{Process, wait_for};

use crate::common::{SERVERS4, VIP4};
use crate::site::{GRPC, GRPC_NAME, NAMES, Site};

/// What `.ci/python.sh` makes, and checks before each run.
const PYTHON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/python/bin/python");
/// gRPC without TLS.
const PLAIN: u16 = 50_052;
const PEERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/ns_binding/peers.py");

/// An event of the stream, as servers of this API send them.
fn event(word: &str) -> String {
    let delta = format!(r#"{{"role":"assistant","content":"{word} "}}"#);
    let choice = format!(r#"{{"index":0,"delta":{delta},"finish_reason":null}}"#);
    let head = r#""id":"c","object":"chat.completion.chunk","created":1,"model":"m""#;
    format!("data: {{{head},\"choices\":[{choice}]}}\n\n")
}

fn peers(site: &Site, words: &[&str]) -> String {
    assert!(std::path::Path::new(PYTHON).exists(), "run .ci/python.sh first: it makes {PYTHON}");
    let args = [&[PEERS], words].concat();
    let told = site.net.client.run(PYTHON, &args);
    told.unwrap_or_else(|e| panic!("{e}\n{:#}", site.net.ask_json(&["show", "counters"])))
}

#[test]
fn openai_streams_a_completion() {
    let site = Site::new("nat", VIP4);
    let words: Vec<String> = (0..50).map(|i| format!("w{i}")).collect();
    let mut stream: String = words.iter().map(|w| event(w)).collect();
    stream += "data: [DONE]\n\n";
    std::fs::write(site.html("chat.sse"), stream).expect("write");
    for name in &NAMES[..3] {
        let told = peers(&site, &["openai", VIP4, name]);
        assert_eq!(told.split_whitespace().collect::<Vec<_>>(), words, "{name}");
    }
    site.nothing_went_wrong(3);
}

fn start_grpc(site: &Site) -> Process {
    let dir = site.net.path("nginx");
    serve(site, SERVERS4[2], GRPC, &[dir.join("cert.pem"), dir.join("key.pem")])
}

/// A gRPC server, without TLS where there is no certificate.
fn serve(site: &Site, address: &str, port: u16, certificate: &[PathBuf]) -> Process {
    let mut command = Command::new(PYTHON);
    command.args([PEERS, "serve", &format!("{address}:{port}")]).args(certificate);
    let mut process = site.net.server.spawn(command).expect("Python");
    let probe = format!("exec 3<>/dev/tcp/{address}/{port}");
    let up = wait_for(Duration::from_secs(20), "the gRPC server", || {
        !process.is_running() || site.net.server.run("bash", &["-c", &probe]).is_ok()
    });
    if up.is_err() || !process.is_running() {
        panic!("the gRPC server did not start: {}", process.kill_and_read_stderr());
    }
    process
}

/// Unary calls and a stream of answers, each message compared in the client.
#[test]
fn grpcio_calls_and_streams() {
    let site = Site::new("nat", VIP4);
    let _server = start_grpc(&site);
    let cert = site.net.path("nginx/cert.pem");
    let told = peers(&site, &["grpc", VIP4, GRPC_NAME, cert.to_str().expect("path")]);
    assert_eq!(told.trim(), "100 calls, 1000 messages");
    site.nothing_went_wrong(1);
}

/// grpcio says nothing but its settings until it has the server's: it gets some, and the method
/// that it then calls says where to.
#[test]
fn grpcio_in_the_clear_is_told_that_it_may_ask() {
    let mut more = format!(
        "[service.plain]\nvip = \"{VIP4}\"\nport = {PLAIN}\npool = \"plain0\"\nmode = \"nat\"\n\
         bind = \"request\"\n"
    );
    for (i, server) in SERVERS4.iter().enumerate() {
        let backend =
            format!("[[pool.plain{i}.backend]]\naddress = \"{server}\"\nport = {PLAIN}\n");
        more += &backend;
    }
    for (grpc, pool) in [("inference.Echo/Call", 1), ("inference.Echo", 2)] {
        let _ =
            write!(more, "[[rule]]\nport = {PLAIN}\ngrpc = \"{grpc}\"\npool = \"plain{pool}\"\n");
    }
    let site = Site::with("nat", VIP4, &more);
    let _servers = [1, 2].map(|i| serve(&site, SERVERS4[i], PLAIN, &[]));
    for (method, i) in [("Call", 1), ("Where", 2), ("Call", 1)] {
        let told = peers(&site, &["where", &format!("{VIP4}:{PLAIN}"), method]);
        assert_eq!(told.trim(), format!("{}:{PLAIN}", SERVERS4[i]), "{method}");
    }
    site.nothing_went_wrong(3);
    let counters = site.net.ask_json(&["show", "counters"]);
    assert_eq!(counters["total"]["bindings_greeted"], 3, "{counters:#}");
}
