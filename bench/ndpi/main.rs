//! Inspection against nDPI, over the same packets: nanoseconds a flow and a packet, bytes a flow.
//!
//! `cargo bench --bench ndpi -- [--only CASE] [--rounds N] [--json FILE] [--quick]`. The peer is
//! Debian's libndpi, called as its API asks for by `peer.c`, which is compiled here. Rounds
//! interleave the two. Both read IP packets of one flow at a time, without a table of flows:
//! headers, order of the stream, protocol, names. Neither checks checksums. Memory is that of one
//! flow at most: for nDPI its structure and what it allocates meanwhile; for us the slot, and with
//! HTTP what of the parsers the flow keeps for as long as it is followed. A head that has come in
//! part needs 4 KB more until the rest comes, of which there are fewer than flows.

#[path = "../common/mod.rs"]
mod common;

#[allow(dead_code, reason = "shared with tests")]
#[path = "../../tests/fuzz/targets/client_hello.rs"]
mod client_hello;

mod ours;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};

use clap::Parser;
use serde_json::json;
use tidegate::base::Addr;
use tidegate::packet::build::{TcpSpec, tcp_packet};
use tidegate::packet::tcp::flag::{ACK, PSH, SYN};

use client_hello::ClientHello;
use common::{Cli, Samples, machine};
use ours::Ours;

const NAME: &str = "api.openai.com";
const MSS: usize = 1_448;
const ETHERNET: usize = 14;

#[derive(Parser)]
#[command(about = "Measures inspection against nDPI")]
struct Args {
    #[command(flatten)]
    cli: Cli,
}

/// Packets of one flow.
pub struct Case {
    name: String,
    /// Only the last packet counts: that of a flow which is known. Its headers were read to find
    /// the flow, on both sides.
    again: bool,
    frames: Vec<Vec<u8>>,
    runs: u32,
}

/// What one side made of a case.
pub struct Run {
    ns: f64,
    /// The protocol was found.
    known: bool,
    /// The server's name was.
    named: bool,
    bytes: u64,
}

fn main() -> ExitCode {
    let Args { cli } = Args::parse();
    println!("{}", machine());
    let mut cases = cases();
    cases.retain(|case| cli.wants(&case.name));
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut peer = match Peer::start(dir.path(), &cases) {
        Ok(peer) => peer,
        Err(why) => {
            eprintln!("error: {why}");
            return ExitCode::FAILURE;
        }
    };
    println!("peer: nDPI {}", peer.version);
    let mut ours = Ours::new();
    let heading = ["tidegate ns", "nDPI ns", "ratio", "bytes", "nDPI bytes", "named", "by nDPI"];
    let [a, b, c, d, e, f, g] = heading;
    println!("{:<44} {a:>16} {b:>18} {c:>6} {d:>7} {e:>10} {f:>6} {g:>8}", "case");
    let mut rows = Vec::new();
    for (i, case) in cases.iter().enumerate() {
        let runs = if cli.quick { 100 } else { case.runs };
        let mut samples = [Samples::default(), Samples::default()];
        let mut last = None;
        for _ in 0..cli.rounds() {
            let both = (ours.run(case, runs), peer.run(i, case, runs));
            samples[0].add(both.0.ns);
            samples[1].add(both.1.ns);
            last = Some(both);
        }
        let Some((we, they)) = last else { continue };
        assert!(we.known && (case.again || we.named), "{}: not read", case.name);
        let ratio = samples[1].median() / samples[0].median();
        let yes = |told: bool| match told {
            _ if case.again => "-",
            true => "yes",
            false => "no",
        };
        println!(
            "{:<44} {:>16} {:>18} {ratio:>5.1}x {:>7} {:>10} {:>6} {:>8}",
            case.name,
            samples[0],
            samples[1],
            we.bytes,
            they.bytes,
            yes(we.named),
            yes(they.named)
        );
        rows.push(json!({
            "case": case.name,
            "tidegate": { "ns": samples[0].json(), "bytes": we.bytes, "named": we.named },
            "ndpi": { "ns": samples[1].json(), "bytes": they.bytes, "known": they.known,
                      "named": they.named },
            "ratio": ratio,
        }));
    }
    cli.write("ndpi", json!({ "ndpi_version": peer.version, "rows": rows }))
}

fn cases() -> Vec<Case> {
    let hello = |padding: u16| {
        let protocols: &[&[u8]] = &[b"h2", b"http/1.1"];
        let name = Some(NAME.as_bytes());
        ClientHello { name, protocols, padding, record_len: 1 << 14 }.bytes()
    };
    let (small, large) = (hello(0), hello(1_500));
    let http1 = b"POST /v1/chat/completions HTTP/1.1\r\nHost: api.openai.com\r\n\
        User-Agent: OpenAI/Python 1.55.3\r\nAccept: application/json\r\n\
        Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
    let http2 = [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"[..],
        b"\0\0\x28\x01\x05\0\0\0\x01\x83\x87\x44\x14/v1/chat/completions\x41\x0eapi.openai.com",
    ]
    .concat();
    let case = |name: String, stream: &[u8], runs| {
        let frames = frames(stream, MSS);
        Case { name, again: false, frames, runs }
    };
    let mut known = case("a packet of a known TLS flow".into(), &small, 500_000);
    known.again = true;
    known.frames.push(segment(true, 1 + small.len() as u32, &[0x17; 1_400]));
    vec![
        case(format!("flow with a hello of {} B", small.len()), &small, 20_000),
        case(format!("flow with a hello of {} B, 2 packets", large.len()), &large, 20_000),
        case("flow with an HTTP/1 request".into(), http1, 20_000),
        case("flow with an HTTP/2 request, clear text".into(), &http2, 20_000),
        known,
    ]
}

fn segment(client: bool, seq: u32, payload: &[u8]) -> Vec<u8> {
    let ends = [(Addr::v4(0x0a00_0001), 40_000), (Addr::v4(0x0a00_0002), 443)];
    let [src, dst] = if client { ends } else { [ends[1], ends[0]] };
    let mut spec = TcpSpec::new(src, dst, ACK | PSH, payload);
    (spec.seq, spec.ack) = (seq, 1);
    tcp_packet(&spec)
}

/// A handshake, and what the client sends.
fn frames(stream: &[u8], mss: usize) -> Vec<Vec<u8>> {
    let ends = [(Addr::v4(0x0a00_0001), 40_000), (Addr::v4(0x0a00_0002), 443)];
    let syn = TcpSpec::new(ends[0], ends[1], SYN, b"");
    let mut answer = TcpSpec::new(ends[1], ends[0], SYN | ACK, b"");
    let mut ack = TcpSpec::new(ends[0], ends[1], ACK, b"");
    (answer.ack, ack.seq, ack.ack) = (1, 1, 1);
    let mut frames: Vec<_> = [syn, answer, ack].iter().map(tcp_packet).collect();
    let mut seq = 1;
    for part in stream.chunks(mss) {
        frames.push(segment(true, seq, part));
        seq += part.len() as u32;
    }
    frames
}

/// The program that calls nDPI.
struct Peer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    version: String,
}

impl Peer {
    fn start(dir: &Path, cases: &[Case]) -> Result<Peer, String> {
        let program = dir.join("peer");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/ndpi/peer.c");
        let mut cc = Command::new("cc");
        cc.args(["-O2", "-o"]).arg(&program).args([source, "-lndpi"]);
        let built = cc.output().map_err(|e| format!("cc: {e}"))?;
        if !built.status.success() {
            let said = String::from_utf8_lossy(&built.stderr);
            return Err(format!("the peer can't be built (libndpi-dev?): {said}"));
        }
        let file = dir.join("cases");
        std::fs::write(&file, written(cases)).map_err(|e| e.to_string())?;
        let mut command = Command::new(&program);
        command.arg(file).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|e| e.to_string())?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (Some(input), Some(output)) = (input, output) else { return Err("no pipes".into()) };
        let version = Command::new("dpkg-query")
            .args(["-W", "-f", "${Version}", "libndpi-dev"])
            .output()
            .map_or_else(|_| "?".into(), |o| String::from_utf8_lossy(&o.stdout).into_owned());
        Ok(Peer { child, input, output: BufReader::new(output), version })
    }

    fn run(&mut self, index: usize, case: &Case, runs: u32) -> Run {
        let what = if case.again { "again" } else { "flow" };
        writeln!(self.input, "{what} {index} {runs}").expect("the peer runs");
        self.input.flush().expect("the peer runs");
        let mut line = String::new();
        self.output.read_line(&mut line).expect("the peer answers");
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |i: usize| words[i].parse::<u64>().expect("a number");
        let ns = number(0) as f64 / f64::from(runs);
        Run { ns, known: number(1) != 0, bytes: number(2), named: words[3] == NAME }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// As the peer reads them: IP packets.
fn written(cases: &[Case]) -> Vec<u8> {
    let mut out = Vec::new();
    let number = |out: &mut Vec<u8>, n: usize| out.extend((n as u32).to_ne_bytes());
    number(&mut out, cases.len());
    for case in cases {
        number(&mut out, case.frames.len());
        for frame in &case.frames {
            number(&mut out, frame.len() - ETHERNET);
            out.extend(&frame[ETHERNET..]);
        }
    }
    out
}
