//! The generator against itself.

use clap::Parser;
use tidegate::admin::pktgen::{PktgenArgs, Report, measure};

use crate::net::with_veth;

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
