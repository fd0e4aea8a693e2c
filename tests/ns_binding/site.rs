//! Five names on one VIP: three led to nginx on a server each, two to HAProxy.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tidegate::lab::{Process, wait_for};

use crate::common::{HTTP, HTTPS, Net, SERVERS4, SERVERS6, VIP4, VIP6, nat};

/// Names without a rule go to the first one's server.
pub const NAMES: [&str; 5] =
    ["a.test.example", "b.test.example", "c.test.example", "d.test.example", "e.test.example"];
/// HAProxy's TLS port, beside nginx's.
const HAPROXY: u16 = 9443;
/// Of [`NAMES`], those from here on are HAProxy's.
const HAPROXY_FROM: usize = 3;
/// The Python server of the gRPC test.
pub const GRPC: u16 = 50_051;
pub const GRPC_NAME: &str = "grpc.test.example";

/// Clients, appliance and servers, all running.
pub struct Site {
    pub net: Net,
    vip: &'static str,
    processes: [Process; 3],
}

impl Site {
    pub fn new(mode: &str, vip: &'static str) -> Site {
        Site::with(mode, vip, "")
    }

    /// `more` goes to the end of the configuration.
    pub fn with(mode: &str, vip: &'static str, more: &str) -> Site {
        let net = Net::new(1);
        let nginx = net.start_nginx();
        let haproxy = start_haproxy(&net);
        let edge = net.start(&(config(&net, mode) + more));
        Site { net, vip, processes: [nginx, haproxy, edge] }
    }

    /// The VIP as URLs have it.
    pub fn host(&self) -> String {
        if self.vip == VIP6 { format!("[{VIP6}]") } else { VIP4.to_string() }
    }

    /// Process number of the appliance.
    pub fn edge_id(&self) -> u32 {
        self.processes[2].id()
    }

    /// What nginx serves.
    pub fn html(&self, file: &str) -> PathBuf {
        self.net.path("nginx/html").join(file)
    }

    /// What the answer of a name's server to `/whoami` begins with.
    pub fn whoami(&self, name: &str) -> String {
        let place = NAMES.iter().position(|n| *n == name).expect("one of the five");
        let address = servers(self.vip == VIP4)[place % HAPROXY_FROM];
        if place < HAPROXY_FROM { format!("{address} ") } else { format!("haproxy {address} ") }
    }

    pub fn curl(&self, name: &str, path: &str, more: &[&str]) -> String {
        let resolve = format!("{name}:443:{}", self.host());
        let url = format!("https://{name}{path}");
        let args = [&["-sSfk", "-m", "60", "--resolve", &resolve, &url][..], more].concat();
        let told = self.net.client.run("curl", &args);
        told.unwrap_or_else(|e| {
            panic!("{name}: {e}\n{:#}", self.net.ask_json(&["show", "counters"]))
        })
    }

    /// At least so many connections were bound, and none failed.
    pub fn nothing_went_wrong(&self, bound: u64) {
        let counters = self.net.ask_json(&["show", "counters"]);
        let count = |name: &str| counters["total"][name].as_u64().unwrap_or(0);
        assert!(count("bindings_joined") >= bound, "{counters:#}");
        for failure in ["bindings_unserved", "bindings_timed_out", "bindings_crowded_out"] {
            assert_eq!(count(failure), 0, "{counters:#}");
        }
    }
}

fn servers(v4: bool) -> [&'static str; 3] {
    if v4 { SERVERS4 } else { SERVERS6 }
}

fn config(net: &Net, mode: &str) -> String {
    let mut text = net.config_head("llm-edge", "") + &nat();
    for (family, vip, v4) in [("4", VIP4, true), ("6", VIP6, false)] {
        let _ = write!(
            text,
            "[service.web{family}]\nvip = \"{vip}\"\nport = 443\npool = \"a{family}\"\n\
             mode = \"{mode}\"\nbind = \"hello\"\n"
        );
        for (i, name) in NAMES.iter().enumerate() {
            let pool = format!("{}{family}", &name[..1]);
            let port = if i < HAPROXY_FROM { HTTPS } else { HAPROXY };
            let address = servers(v4)[i % HAPROXY_FROM];
            let _ = write!(
                text,
                "[[pool.{pool}.backend]]\naddress = \"{address}\"\nport = {port}\n\
                 [[rule]]\nsni = \"{name}\"\nvip = \"{vip}\"\npool = \"{pool}\"\n"
            );
        }
    }
    let _ = write!(
        text,
        "[[pool.grpc.backend]]\naddress = \"{}\"\nport = {GRPC}\n\
         [[rule]]\nsni = \"{GRPC_NAME}\"\nvip = \"{VIP4}\"\npool = \"grpc\"\n",
        SERVERS4[2]
    );
    text
}

fn start_haproxy(net: &Net) -> Process {
    let dir = net.path("nginx");
    let pem = [dir.join("cert.pem"), dir.join("key.pem")]
        .map(|file| std::fs::read_to_string(file).expect("nginx made it"))
        .concat();
    let pem = net.write("haproxy.pem", &pem);
    let mut text = "global\n maxconn 4000\ndefaults\n mode http\n timeout connect 5s\n \
                    timeout client 60s\n timeout server 60s\nfrontend edge\n"
        .to_string();
    for address in SERVERS4.iter().take(2).chain(SERVERS6.iter().take(2)) {
        let pem = pem.display();
        let _ = writeln!(text, " bind {address}:{HAPROXY} ssl crt {pem} alpn h2,http/1.1");
    }
    let _ = write!(
        text,
        " http-request return status 200 content-type text/plain \
         lf-string \"haproxy %[dst] %[src]\\n\" if {{ path /whoami }}\n default_backend nginx\n\
         backend nginx\n server one {}:{HTTP}\n",
        SERVERS4[0]
    );
    let file = net.write("haproxy.cfg", &text);
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(file);
    let mut process = net.server.spawn(command).expect("haproxy");
    let url = format!("https://{}:{HAPROXY}/", SERVERS4[1]);
    let up = wait_for(Duration::from_secs(30), "haproxy", || {
        !process.is_running() || net.server.run("curl", &["-skf", &url]).is_ok()
    });
    if up.is_err() || !process.is_running() {
        panic!("haproxy did not start: {}", process.kill_and_read_stderr());
    }
    process
}
