//! A network namespace for a test's thread, and the mirror of its kernel.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::process::Command;
use std::time::Duration;

use tidegate::base::Addr;
use tidegate::control::netlink::{Mirror, Netlink, NetlinkOptions};

pub const LIMIT: Duration = Duration::from_secs(30);

/// Runs `test` on a thread in a fresh network namespace, on a current-thread runtime.
pub fn in_namespace<F>(test: impl FnOnce() -> F + Send + 'static)
where
    F: Future<Output = ()>,
{
    let body = move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
            .expect("a network namespace: these tests need root");
        ip("link set lo up");
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime")
            .block_on(test());
    };
    if let Err(panic) = std::thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip ARGS` in the calling thread's namespace.
pub fn ip(args: &str) {
    let output = Command::new("ip").args(args.split_whitespace()).output().expect("ip to start");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {args}: {error}");
}

/// `ip` with a line each.
pub fn ip_batch(lines: &str) {
    use std::io::Write;
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("ip to start");
    child.stdin.take().expect("stdin").write_all(lines.as_bytes()).expect("ip to read");
    assert!(child.wait().expect("ip to end").success());
}

/// `v0` with addresses, and its other end, `v1`.
pub fn veth() {
    ip("link add v0 type veth peer name v1");
    ip("link set v0 up");
    ip("link set v1 up");
    ip("addr add 192.0.2.1/24 dev v0");
    ip("addr add 2001:db8::1/64 dev v0 nodad");
}

pub fn addr(s: &str) -> Addr {
    s.parse().expect("literal")
}

pub async fn connect() -> Netlink {
    Netlink::connect(NetlinkOptions::default()).await.expect("netlink")
}

/// Waits for changes until `seen` holds of the mirror.
pub async fn until(netlink: &mut Netlink, what: &str, seen: impl Fn(&Mirror) -> bool) {
    let wait = async {
        while !seen(netlink.mirror()) {
            netlink.changed().await.expect("netlink");
        }
    };
    if tokio::time::timeout(LIMIT, wait).await.is_err() {
        panic!("not seen: {what}; the mirror: {:#?}", netlink.mirror());
    }
}

/// The same for what may happen without a change that is told of.
pub async fn until_quietly(netlink: &mut Netlink, what: &str, seen: impl Fn(&Mirror) -> bool) {
    let wait = async {
        while !seen(netlink.mirror()) {
            let _ = tokio::time::timeout(Duration::from_millis(20), netlink.changed()).await;
        }
    };
    if tokio::time::timeout(LIMIT, wait).await.is_err() {
        panic!("not seen: {what}; the mirror: {:#?}", netlink.mirror());
    }
}
