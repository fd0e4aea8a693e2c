//! Delayed binding with real peers: Linux's TCP on both sides, nginx and HAProxy behind five names
//! of one VIP; curl, openssl, h2load, rustls, and Python's openai and grpcio in front.

#[path = "../common/mod.rs"]
mod common;

mod capture;
mod crowd;
mod flood;
mod python;
mod requests;
mod site;

use std::fs;

use site::{NAMES, Site};

/// What each of the five names has to answer `/whoami` with.
fn answers_are_of_its_server(site: &Site, name: &str, more: &[&str]) {
    let seen = site.curl(name, "/whoami", more);
    let wanted = site.whoami(name);
    assert!(seen.starts_with(&wanted), "{name} {more:?}: {seen}, not {wanted}");
}

fn names_lead_to_their_servers(mode: &str) {
    for vip in [common::VIP4, common::VIP6] {
        let site = Site::new(mode, vip);
        for name in NAMES {
            for version in [&["--tls-max", "1.2"][..], &["--http1.1"], &[]] {
                answers_are_of_its_server(&site, name, version);
            }
        }
        let other = site.curl("other.example", "/whoami", &[]);
        assert!(other.starts_with(&site.whoami(NAMES[0])), "{other}");
        let url = format!("https://{}/", site.host());
        let load = ["-n", "5000", "-c", "200", "-m", "4", &url];
        let told = site.net.client.run("h2load", &load).expect("h2load");
        assert!(told.contains("5000 succeeded, 0 failed, 0 errored"), "{told}");
        site.nothing_went_wrong(5 * 3 + 1 + 200);
    }
}

#[test]
fn names_behind_nat() {
    names_lead_to_their_servers("nat");
}

#[test]
fn names_behind_dnat() {
    names_lead_to_their_servers("dnat");
}

/// A session of openssl's, kept and shown again: the second hello is another one, and has to come
/// to the same server, or it is not taken.
#[test]
fn sessions_are_resumed() {
    let site = Site::new("nat", common::VIP4);
    let file = site.net.path("session.pem");
    let file = file.to_str().expect("a path");
    for version in ["-tls1_2", "-tls1_3"] {
        for (name, more) in [(NAMES[1], ""), (NAMES[4], "")] {
            let first = s_client(&site, name, &format!("{version} -sess_out {file} {more}"));
            assert!(first.contains("New, TLSv1."), "{first}");
            let again = s_client(&site, name, &format!("{version} -sess_in {file} {more}"));
            assert!(again.contains("Reused, TLSv1."), "{name} {version}: {again}");
            assert!(again.contains(&site.whoami(name)), "{again}");
        }
    }
    site.nothing_went_wrong(8);
}

fn s_client(site: &Site, name: &str, more: &str) -> String {
    let line = format!(
        "printf 'GET /whoami HTTP/1.0\\r\\nHost: {name}\\r\\n\\r\\n' | timeout 20 openssl s_client \
         -ign_eof -connect {}:443 -servername {name} {more}",
        site.host()
    );
    site.net.client.run("sh", &["-c", &line]).expect("s_client")
}

/// 100 MB each way at once, byte for byte.
#[test]
fn large_transfers_arrive_as_they_were_sent() {
    const BYTES: usize = 100_000_000;
    let site = Site::new("nat", common::VIP4);
    let (down, up) = (common::noise(BYTES, 1), common::noise(BYTES, 2));
    fs::write(site.html("down.bin"), &down).expect("write");
    let (source, got) = (site.net.path("up.bin"), site.net.path("got.bin"));
    fs::write(&source, &up).expect("write");
    let (source, to) = (source.to_str().expect("path"), got.to_str().expect("path"));
    std::thread::scope(|threads| {
        threads.spawn(|| site.curl(NAMES[1], "/put/up.bin", &["-T", source]));
        site.curl(NAMES[1], "/down.bin", &["-o", to]);
    });
    assert!(fs::read(&got).expect("a file") == down, "changed on its way down");
    assert!(fs::read(site.html("put/up.bin")).expect("a file") == up, "changed on its way up");
    site.nothing_went_wrong(2);
}
