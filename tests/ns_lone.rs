//! A lone packet with nothing behind it must come through at once: no wake-up may be lost.

mod common;

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use common::probe::Echo;
use common::{Net, SERVERS4, SERVERS6};

const EXCHANGES: usize = 60;
const LIMIT: Duration = Duration::from_millis(500);
/// The exchanges take several times as long: a worker whose heart does not beat is noticed, as the
/// kernel of this namespace does not forward what it is passed.
const HEARTBEAT_LIMIT: &str = "heartbeat_limit = \"500ms\"";

#[test]
fn lone_datagrams_come_through() {
    let net = Net::new(1);
    net.kernel_forwards(false);
    let config = [
        net.config_head("router", HEARTBEAT_LIMIT),
        "[transit]\nprefixes = [\"10.0.0.0/8\", \"fd00::/16\"]\n".to_string(),
    ]
    .concat();
    let _edge = net.start(&config);
    let targets: Vec<SocketAddr> = vec![
        format!("{}:7007", SERVERS4[0]).parse().expect("address"),
        format!("[{}]:7007", SERVERS6[0]).parse().expect("address"),
    ];
    let _echo = Echo::start(&net.server, &targets);
    let client = net
        .client
        .thread("lone", move || {
            let mut late = Vec::new();
            for round in 0..EXCHANGES {
                let target = targets[round % 2];
                // A socket of its own: each exchange is a flow's first packet and its answer.
                let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = UdpSocket::bind(any).expect("bind");
                socket.set_read_timeout(Some(LIMIT)).expect("timeout");
                let start = Instant::now();
                socket.send_to(b"lone", target).expect("send");
                if socket.recv(&mut [0; 8]).is_err() {
                    late.push((round, target, start.elapsed()));
                }
                std::thread::sleep(Duration::from_millis(15 * (round as u64 % 5)));
            }
            late
        })
        .expect("thread");
    let late = client.join().expect("client");
    let drops = net.ask(&["show", "ports"]).expect("ports");
    assert!(late.is_empty(), "{late:?}\n{drops}");
}
