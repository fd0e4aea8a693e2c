//! The generator against itself.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use clap::Parser;
use tidegate::admin::pktgen::{PktgenArgs, Report, measure};
use tidegate::base::Seed;
use tidegate::nic::spec::AttachMode;
use tidegate::nic::steer::kernel_now;
use tidegate::packet::{PacketMeta, ParseOptions, parse};

use crate::net::{Side, with_veth};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: PktgenArgs,
}

fn run(args: &[&str]) -> Report {
    let args = ["pktgen", "--quiet", "--ring", "512"].iter().chain(args);
    let args = Cli::try_parse_from(args).expect("arguments").args;
    measure(&args, None).expect("a run")
}

#[test]
fn what_is_sent_is_received_and_timed() {
    with_veth(2, || {
        std::thread::scope(|scope| {
            // Two extra seconds, for the sender has to open its port first.
            let receive = ["-i", "v1", "--mode", "rx", "--count", "2000", "--seconds", "5"];
            let receive = [&receive[..], &["--latency", "--receive", "203.0.113.1:443"]].concat();
            let receiver = scope.spawn(move || run(&receive));
            std::thread::sleep(std::time::Duration::from_millis(500));
            let send = ["-i", "v0", "--dst", "203.0.113.1:443", "--dst-mac", "02:00:00:00:00:09"];
            let rate = ["--count", "2000", "--rate", "20000", "--flows", "100", "--latency"];
            let sent = run(&[&send[..], &rate[..]].concat());
            let received = receiver.join().expect("receiver");
            assert_eq!(sent.tx.packets, 2000);
            assert_eq!((received.rx.packets, received.rx.bytes), (2000, 120_000));
            assert_eq!(received.rx_missed, 0);
            assert!((0.08..0.5).contains(&sent.tx.seconds), "{sent}");
            let latency = received.latency.expect("stamps");
            assert_eq!(latency.packets, 2000);
            assert!(latency.p50_ns > 0 && latency.p50_ns <= latency.max_ns);
        });
    });
}

#[test]
fn what_the_kernel_sends_is_correct_and_of_all_flows() {
    // In both, ports run over and the address goes on.
    for (src, dst) in
        [("198.18.0.1:65500", "203.0.113.1:443"), ("[2001:2::1]:65500", "[2001:db8::1]:443")]
    {
        with_veth(1, || {
            let mut receiver = Side::open("v1", 1, AttachMode::Native).takes_everything();
            receiver.beats[0].beat(kernel_now());
            let send = ["-i", "v0", "--engine", "xdp", "--dst-mac", "02:00:00:00:00:09"];
            let what = ["--src", src, "--dst", dst, "--size", "80", "--flows", "100"];
            let sent = run(&[&send[..], &what, &["--count", "200"]].concat());
            assert_eq!(sent.tx.packets, 200);
            let got = receiver.receive(0, 200);
            let sources: Vec<_> = got.iter().map(|frame| source(frame)).collect();
            assert_eq!(sources.len(), 200);
            assert_eq!(sources[0], src.parse().expect("literal"));
            assert_eq!(sources[36].port(), 0);
            assert_eq!(sources[..100], sources[100..]);
            assert_eq!(sources.iter().collect::<HashSet<_>>().len(), 100);
            receiver.close();
        });
    }
}

/// Who sent it, if all its checksums are right.
fn source(frame: &[u8]) -> SocketAddr {
    let mut meta = PacketMeta::default();
    let options = ParseOptions { verify_transport_checksum: true };
    parse(frame, Seed(0), options, &mut meta).expect("a correct frame");
    SocketAddr::new(meta.key.src.to_ip(), meta.key.sport)
}

#[test]
fn a_kernel_at_work_ends_with_its_time() {
    with_veth(1, || {
        let send = ["-i", "v0", "--engine", "xdp", "--dst-mac", "02:00:00:00:00:09"];
        let start = Instant::now();
        run(&[&send[..], &["--dst", "203.0.113.1:443", "--seconds", "0.1"]].concat());
        // A billion frames of one call would take minutes.
        assert!(start.elapsed() < Duration::from_secs(30));
    });
}
