//! The network that the namespace tests share: a client, the appliance, servers, real programs.
//!
//! ```text
//! client 10.0.1.2 / fd00:1::2 ── wan [appliance] lan ── 10.0.2.11-13 / fd00:2::11-13 servers
//! ```
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod annex;
pub mod daemons;
pub mod probe;
pub mod stream;
pub mod tls;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tidegate::lab::{Namespace, Process, Veth, VethEnd, wait_for};

pub const CLIENT4: &str = "10.0.1.2";
pub const CLIENT6: &str = "fd00:1::2";
pub const VIP4: &str = "203.0.113.10";
pub const VIP6: &str = "2001:db8:5::10";
pub const NAT4: &str = "10.0.9.1";
pub const NAT6: &str = "fd00:9::1";
pub const SERVERS4: [&str; 3] = ["10.0.2.11", "10.0.2.12", "10.0.2.13"];
pub const SERVERS6: [&str; 3] = ["fd00:2::11", "fd00:2::12", "fd00:2::13"];
/// Port of the clear-text HTTP server, and of the TLS server.
pub const HTTP: u16 = 8080;
pub const HTTPS: u16 = 8443;
/// Port of HTTP/2 without TLS.
pub const H2C: u16 = 8082;

/// The three hosts. Programs run in them; all is gone when dropped.
pub struct Net {
    pub client: Namespace,
    pub appliance: Namespace,
    pub server: Namespace,
    pub dir: tempfile::TempDir,
    queues: u16,
}

impl Net {
    pub fn new(queues: u16) -> Net {
        let client = Namespace::new("client").expect("root is needed");
        let appliance = Namespace::new("appliance").expect("namespace");
        let server = Namespace::new("server").expect("namespace");
        let mut server_addresses = Vec::new();
        for a in SERVERS4 {
            server_addresses.push(format!("{a}/24"));
        }
        for a in SERVERS6 {
            server_addresses.push(format!("{a}/64"));
        }
        let server_addresses: Vec<&str> = server_addresses.iter().map(String::as_str).collect();
        veth(
            queues,
            (&client, "wan0", &["10.0.1.2/24", "fd00:1::2/64"]),
            (&appliance, "wan", &["10.0.1.1/24", "fd00:1::1/64"]),
        );
        veth(
            queues,
            (&server, "eth0", &server_addresses),
            (&appliance, "lan", &["10.0.2.1/24", "fd00:2::1/64"]),
        );
        for (ns, gw4, gw6) in
            [(&client, "10.0.1.1", "fd00:1::1"), (&server, "10.0.2.1", "fd00:2::1")]
        {
            ns.ip(&format!("route add default via {gw4}")).expect("route");
            ns.ip(&format!("-6 route add default via {gw6}")).expect("route");
        }
        let dir = tempfile::tempdir().expect("temporary directory");
        Net { client, appliance, server, dir, queues }
    }

    /// Lets the kernel of the appliance's namespace forward what is passed to it.
    pub fn kernel_forwards(&self, on: bool) {
        let v = if on { "1" } else { "0" };
        self.appliance.sysctl("net.ipv4.ip_forward", v).expect("sysctl");
        self.appliance.sysctl("net.ipv6.conf.all.forwarding", v).expect("sysctl");
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("tidegate.sock")
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).expect("write");
        path
    }

    /// The head of a configuration: workers, admin, both ports.
    pub fn config_head(&self, pipeline: &str, workers: &str) -> String {
        // A shared machine may keep a worker off its core for longer than the default limit.
        let patience = match workers.contains("heartbeat_limit") {
            true => "",
            false => "heartbeat_limit = \"5s\"",
        };
        format!(
            "pipeline = \"{pipeline}\"\n[workers]\nflows_max = 100000\n{workers}\n{patience}\n\
             [admin]\nsocket = \"{}\"\nmetrics = false\n\
             [port.wan]\ninterface = \"wan\"\n[port.lan]\ninterface = \"lan\"\n",
            self.socket().display()
        )
    }

    /// Starts the appliance and waits until it answers.
    pub fn start(&self, config: &str) -> Process {
        self.start_through(config, &[])
    }

    /// The same, started by another program: `nsenter`, say.
    pub fn start_through(&self, config: &str, by: &[&str]) -> Process {
        let file = self.write("tidegate.toml", config);
        let own = [env!("CARGO_BIN_EXE_tidegate"), "run", "-c", file.to_str().expect("path")];
        let words: Vec<&str> = by.iter().chain(&own).copied().collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).env("RUST_LOG", "info");
        let mut process = self.appliance.spawn(command).expect("start");
        let answers = wait_for(Duration::from_secs(60), "the appliance to answer", || {
            !process.is_running() || self.ask(&["show", "counters"]).is_ok()
        });
        if answers.is_err() || !process.is_running() {
            panic!("appliance did not start: {}", process.kill_and_read_stderr());
        }
        process
    }

    /// Asks the running appliance; gives standard output.
    pub fn ask(&self, words: &[&str]) -> Result<String, String> {
        let socket = self.socket();
        let mut args = words.to_vec();
        args.extend(["--socket", socket.to_str().expect("path")]);
        self.appliance.run(env!("CARGO_BIN_EXE_tidegate"), &args).map_err(|e| e.to_string())
    }

    pub fn ask_json(&self, words: &[&str]) -> serde_json::Value {
        let mut args = words.to_vec();
        args.push("--json");
        let text = self.ask(&args).expect("answer");
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }

    /// nginx on all server addresses and on the VIPs (for `dsr`): HTTP on 8080, HTTP/2 without TLS
    /// on 8082, and TLS with HTTP/2 on 8443.
    pub fn start_nginx(&self) -> Process {
        let dir = self.path("nginx");
        std::fs::create_dir_all(dir.join("html")).expect("mkdir");
        // Workers run as another user than the owner of the temporary directory.
        open_to_all(self.dir.path());
        open_to_all(&dir);
        std::fs::write(dir.join("html/index.html"), "hello from behind the VIP\n").expect("write");
        std::fs::write(dir.join("html/1m.bin"), vec![0xa5; 1 << 20]).expect("write");
        make_certificate(&dir);
        std::fs::write(dir.join("nginx.conf"), nginx_config(&dir)).expect("write");
        self.run_nginx(&dir, SERVERS4[0])
    }

    /// nginx by the `nginx.conf` of a directory, once it answers on an address.
    pub fn run_nginx(&self, dir: &Path, address: &str) -> Process {
        run_nginx(&self.server, dir, address)
    }
}

/// The same on some host.
pub fn run_nginx(host: &Namespace, dir: &Path, address: &str) -> Process {
    let mut command = Command::new("nginx");
    command.args(["-e", "stderr", "-g", "daemon off;", "-p"]).arg(dir);
    command.arg("-c").arg(dir.join("nginx.conf"));
    let mut process = host.spawn(command).expect("nginx");
    let url = format!("http://{address}:{HTTP}/");
    let up = wait_for(Duration::from_secs(30), "nginx", || {
        !process.is_running() || host.run("curl", &["-sf", &url]).is_ok()
    });
    if up.is_err() || !process.is_running() {
        panic!("nginx did not start: {}", process.kill_and_read_stderr());
    }
    process
}

fn open_to_all(dir: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).expect("chmod");
}

pub fn make_certificate(dir: &Path) {
    let status = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-days", "2", "-subj", "/CN=chat.test.example"])
        .args(["-addext", "subjectAltName=DNS:*.test.example", "-keyout"])
        .arg(dir.join("key.pem"))
        .arg("-out")
        .arg(dir.join("cert.pem"))
        .output()
        .expect("openssl");
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
}

fn nginx_config(dir: &Path) -> String {
    let d = dir.display();
    format!(
        "master_process off;\npid {d}/nginx.pid;\nerror_log stderr warn;\n\
         events {{ worker_connections 8192; }}\n\
         http {{\n access_log off;\n keepalive_requests 1000000;\n\
         client_body_temp_path {d}/body;\n proxy_temp_path {d}/proxy;\n\
         fastcgi_temp_path {d}/fcgi;\n uwsgi_temp_path {d}/uwsgi;\n scgi_temp_path {d}/scgi;\n\
         server {{\n  listen {HTTP} reuseport;\n  listen [::]:{HTTP} reuseport;\n\
         \x20 listen {H2C} http2 reuseport;\n  listen [::]:{H2C} http2 reuseport;\n\
         \x20 listen {HTTPS} ssl http2 reuseport;\n  listen [::]:{HTTPS} ssl http2 reuseport;\n\
         \x20 ssl_protocols TLSv1.2 TLSv1.3;\n\
         \x20 ssl_certificate {d}/cert.pem;\n  ssl_certificate_key {d}/key.pem;\n\
         \x20 root {d}/html;\n\
         \x20 location /v1/ {{ return 200 \"fine\\n\"; }}\n\
         \x20 location /put/ {{ dav_methods PUT; create_full_put_path on;\n\
         \x20  client_max_body_size 0; }}\n\
         \x20 location = /python/v1/chat/completions {{ rewrite ^ /chat.sse last; }}\n\
         \x20 location = /chat.sse {{ types {{}} default_type text/event-stream;\n\
         \x20  error_page 405 =200 /chat.sse; }}\n\
         \x20 location = /whoami {{ return 200 \"$server_addr $remote_addr\\n\"; }}\n\
         }}\n}}\n"
    )
}

fn veth(queues: u16, a: (&Namespace, &str, &[&str]), b: (&Namespace, &str, &[&str])) {
    let end = |(namespace, name, addresses)| VethEnd { namespace, name, addresses };
    Veth { a: end(a), b: end(b), queues, wire_like: true }.create().expect("veth");
}

/// Bytes that nothing compresses or repeats.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        // xorshift64 (Marsaglia 2003)
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A pool of the three servers of a family on `port`.
pub fn pool(name: &str, servers: [&str; 3], port: u16) -> String {
    let mut text = String::new();
    for s in servers {
        let _ = write!(text, "[[pool.{name}.backend]]\naddress = \"{s}\"\nport = {port}\n");
    }
    text
}

/// A service on a VIP.
pub fn service(name: &str, vip: &str, port: u16, pool: &str, mode: &str) -> String {
    format!(
        "[service.{name}]\nvip = \"{vip}\"\nport = {port}\npool = \"{pool}\"\nmode = \"{mode}\"\n"
    )
}

/// NAT addresses of both families.
pub fn nat() -> String {
    format!("[nat]\naddresses = [\"{NAT4}\", \"{NAT6}\"]\n")
}

/// Has the client fetch the file of a megabyte, and be given what it is.
#[track_caller]
pub fn fetch(net: &Net, url: &str) {
    let sum = "curl -sSfk -m 20 \"$0\" | sha256sum";
    let got = net.client.run("sh", &["-c", sum, url]).expect("served");
    let file = net.path("nginx/html/1m.bin");
    let want = net.client.run("sh", &["-c", "sha256sum < \"$0\"", file.to_str().expect("path")]);
    assert_eq!(got, want.expect("sha256sum"), "{url}");
}
