//! `bind = "request"`: the backend is chosen by what the first request of a connection asks for.

use std::fmt::Write as _;

use crate::common::{H2C, HTTP, Net, SERVERS4, VIP4, nat};

/// Services for HTTP/1 and for HTTP/2 with prior knowledge, each with a pool a server.
const PORTS: [(u16, u16); 2] = [(80, HTTP), (81, H2C)];

fn config(net: &Net, mode: &str) -> String {
    let mut text = net.config_head("llm-edge", "") + &nat();
    for (port, to) in PORTS {
        let _ = write!(
            text,
            "[service.s{port}]\nvip = \"{VIP4}\"\nport = {port}\npool = \"p{port}-0\"\n\
             mode = \"{mode}\"\nbind = \"request\"\nbind_timeout = \"2s\"\n\
             [[rule]]\nport = {port}\npath = \"/whoami\"\nheader.x-team = \"red\"\n\
             pool = \"p{port}-2\"\n\
             [[rule]]\nport = {port}\nauthority = \"b.test.example\"\npool = \"p{port}-1\"\n\
             [[rule]]\nport = {port}\npath = \"/secret/*\"\nreset = true\n"
        );
        for (i, server) in SERVERS4.iter().enumerate() {
            let _ =
                write!(text, "[[pool.p{port}-{i}.backend]]\naddress = \"{server}\"\nport = {to}\n");
        }
    }
    text
}

fn curl(net: &Net, port: u16, name: &str, more: &[&str]) -> Result<String, String> {
    let resolve = format!("{name}:{port}:{VIP4}");
    let url = format!("http://{name}:{port}/whoami");
    let version = if port == 81 { "--http2-prior-knowledge" } else { "--http1.1" };
    let args = [&["-sSf", "-m", "20", version, "--resolve", &resolve][..], more, &[&url]].concat();
    net.client.run("curl", &args).map_err(|e| e.to_string())
}

fn requests_lead_to_their_servers(mode: &str) {
    let net = Net::new(1);
    let _nginx = net.start_nginx();
    let _edge = net.start(&config(&net, mode));
    for (port, _) in PORTS {
        let seen = |name, more: &[&str]| {
            curl(&net, port, name, more)
                .unwrap_or_else(|e| panic!("{e}\n{:#}", net.ask_json(&["show", "counters"])))
        };
        let long = format!("X-Filler: {}", "f".repeat(6_000));
        assert!(seen("a.test.example", &[]).starts_with(&format!("{} ", SERVERS4[0])));
        assert!(seen("b.test.example", &["-H", &long]).starts_with(&format!("{} ", SERVERS4[1])));
        let red = ["-H", "X-Team: red"];
        assert!(seen("b.test.example", &red).starts_with(&format!("{} ", SERVERS4[2])));
        let url = format!("http://{VIP4}:{port}/");
        let load = ["-n", "5000", "-c", "100", if port == 81 { "-m4" } else { "--h1" }, &url];
        let told = net.client.run("h2load", &load).expect("h2load");
        assert!(told.contains("5000 succeeded, 0 failed, 0 errored"), "{told}");
    }
    let counters = net.ask_json(&["show", "counters"]);
    let count = |name: &str| counters["total"][name].as_u64().unwrap_or(0);
    assert_eq!(count("bindings_joined"), 2 * (3 + 100), "{counters:#}");
    assert_eq!(count("bindings_unserved") + count("bindings_timed_out"), 0, "{counters:#}");

    let url = format!("http://{VIP4}:80/secret/plan");
    let refused = net.client.run("curl", &["-sS", "-m", "10", &url]).expect_err("reset");
    assert!(refused.to_string().contains("reset by peer"), "{refused}");
    // A head that isn't finished in time.
    let line = format!("exec 3<>/dev/tcp/{VIP4}/80; printf 'GET / HTTP/1.1\\r\\n' >&3; cat <&3");
    let late = net.client.run("timeout", &["20", "bash", "-c", &line]).expect_err("reset");
    assert!(late.to_string().contains("reset by peer"), "{late}");
}

#[test]
fn requests_behind_nat() {
    requests_lead_to_their_servers("nat");
}

#[test]
fn requests_behind_dnat() {
    requests_lead_to_their_servers("dnat");
}
