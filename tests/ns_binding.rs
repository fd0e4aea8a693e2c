//! Delayed binding with real peers: Linux's TCP on both sides, nginx, curl, openssl, h2load.

mod common;

use common::{NAT4, Net, SERVERS4, VIP4};

/// One VIP, three names, each with a server of its own; names without a rule go to the first.
const NAMES: [&str; 3] = ["a.test.example", "b.test.example", "c.test.example"];

fn config(net: &Net, mode: &str) -> String {
    let mut text = net.config_head("llm-edge", "");
    text += &format!(
        "[nat]\naddresses = [\"{NAT4}\"]\n[service.web]\nvip = \"{VIP4}\"\nport = 443\n\
         pool = \"p0\"\nmode = \"{mode}\"\nbind = \"hello\"\n"
    );
    for (i, server) in SERVERS4.iter().enumerate() {
        text += &format!("[[pool.p{i}.backend]]\naddress = \"{server}\"\nport = 8443\n");
        if i > 0 {
            text += &format!("[[rule]]\nsni = \"{}\"\npool = \"p{i}\"\n", NAMES[i]);
        }
    }
    text
}

fn curl(net: &Net, name: &str, path: &str, more: &[&str]) -> String {
    let resolve = format!("{name}:443:{VIP4}");
    let url = format!("https://{name}{path}");
    let args = [&["-sSk", "-m", "30", "--resolve", &resolve, &url][..], more].concat();
    net.client
        .run("curl", &args)
        .unwrap_or_else(|e| panic!("{name}: {e}\n{:#}", net.ask_json(&["show", "counters"])))
}

fn names_lead_to_their_servers(mode: &str) {
    let net = Net::new(1);
    let _nginx = net.start_nginx();
    let _edge = net.start(&config(&net, mode));
    for (name, server) in NAMES.iter().zip(SERVERS4) {
        for version in [&["--tls-max", "1.2"][..], &["--http1.1"], &[]] {
            let seen = curl(&net, name, "/whoami", version);
            assert!(seen.starts_with(&format!("{server} ")), "{name} {version:?}: {seen}");
        }
    }
    assert!(curl(&net, "other.example", "/whoami", &[]).starts_with(SERVERS4[0]));
    let whole = net.path("got.bin");
    let to = whole.to_str().expect("a path");
    for _ in 0..20 {
        curl(&net, NAMES[1], "/1m.bin", &["-o", to]);
        assert!(
            std::fs::read(&whole).expect("a file") == vec![0xa5; 1 << 20],
            "changed on its way"
        );
    }
    let url = format!("https://{VIP4}/");
    let load = ["-n", "5000", "-c", "200", "-m", "4", &url];
    let told = net.client.run("h2load", &load).expect("h2load");
    assert!(told.contains("5000 succeeded, 0 failed, 0 errored"), "{told}");
    let counters = net.ask_json(&["show", "counters"]);
    let count = |name: &str| counters["total"][name].as_u64().unwrap_or(0);
    assert!(count("bindings_joined") >= 230, "{counters:#}");
    assert_eq!(count("bindings_unserved") + count("bindings_timed_out"), 0, "{counters:#}");
}

#[test]
fn nat() {
    names_lead_to_their_servers("nat");
}

#[test]
fn dnat() {
    names_lead_to_their_servers("dnat");
}
