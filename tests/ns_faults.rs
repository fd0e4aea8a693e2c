//! Every fault of a backend under every delayed binding: once it is detected no client notices, and
//! those that had it already are the only ones to lose anything.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::{HTTP, HTTPS, NAT4, Net, SERVERS4, VIP4, make_certificate, pool};
use nix::sys::signal::Signal;
use tidegate::lab::{Process, wait_for};

/// For what takes a few seconds on a machine of its own.
const SOON: Duration = Duration::from_secs(60);
const REQUESTS: &str = "600";
const INTERVAL: Duration = Duration::from_millis(200);
const TIMEOUT: Duration = Duration::from_secs(2);
const IN_A_ROW: u32 = 2;

/// What may befall a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The process is gone: the kernel refuses connections.
    Killed,
    /// As where a process listens no more but lives: connections are refused, and those that there
    /// are go on.
    Refusing,
    /// The process stands still: the kernel accepts connections, and nobody answers.
    Hung,
    /// The host is gone: nothing comes back.
    Gone,
    /// Each answer is 500.
    Failing,
    /// An answer takes minutes.
    Slow,
}

/// Three nginx, one of which gets into trouble.
struct Site {
    net: Net,
    servers: [Process; 3],
    _edge: Process,
}

fn config(net: &Net) -> String {
    let mut text = net.config_head("llm-edge", "");
    text += &format!("[nat]\naddresses = [\"{NAT4}\"]\n");
    for (name, port, server_port, bind) in
        [("tls", 443, HTTPS, "hello"), ("clear", 80, HTTP, "request")]
    {
        text += &format!(
            "[service.{name}]\nvip = \"{VIP4}\"\nport = {port}\npool = \"{name}\"\n\
             bind = \"{bind}\"\n{}\
             [pool.{name}.health]\ntype = \"http\"\ntls = {}\npath = \"/health\"\n\
             interval = \"{INTERVAL:?}\"\ntimeout = \"{TIMEOUT:?}\"\n\
             fall = {IN_A_ROW}\nrise = {IN_A_ROW}\nflap_window = \"0s\"\n",
            pool(name, SERVERS4, server_port),
            name == "tls",
        );
    }
    text
}

/// An nginx on one of the servers' addresses. It fails while a file `sick-ADDRESS` exists, and
/// crawls while there is a `slow-ADDRESS`.
fn nginx(net: &Net, address: &str) -> Process {
    net.run_nginx(&nginx_files(net, address), address)
}

/// Its directory, with its configuration.
fn nginx_files(net: &Net, address: &str) -> PathBuf {
    let dir = net.path(address);
    std::fs::create_dir_all(&dir).expect("mkdir");
    if !dir.join("cert.pem").exists() {
        make_certificate(&dir);
    }
    let d = dir.display();
    let (sick, slow) = (net.path(&format!("sick-{address}")), net.path(&format!("slow-{address}")));
    let text = format!(
        "user root;\nmaster_process off;\npid {d}/nginx.pid;\nerror_log stderr warn;\n\
         events {{ worker_connections 1024; }}\nhttp {{\n access_log off;\n\
         keepalive_requests 1000000;\n keepalive_timeout 3600;\n client_body_temp_path {d}/body;\n\
         proxy_temp_path {d}/proxy;\n fastcgi_temp_path {d}/fcgi;\n\
         uwsgi_temp_path {d}/uwsgi;\n scgi_temp_path {d}/scgi;\n\
         server {{\n listen {address}:{HTTP};\n listen {address}:{HTTPS} ssl http2;\n\
         ssl_certificate {d}/cert.pem;\n ssl_certificate_key {d}/key.pem;\n root {d};\n\
         if (-f {}) {{ return 500; }}\n if (-f {}) {{ set $limit_rate 1; }}\n\
         location = /health {{ return 200 \"well\\n\"; }}\n\
         location = / {{ return 200 \"{address}\\n\"; }}\n }}\n}}\n",
        sick.display(),
        slow.display(),
    );
    std::fs::write(dir.join("nginx.conf"), text).expect("write");
    dir
}

impl Site {
    fn new() -> Site {
        let net = Net::new(1);
        // An address that goes is not to take the others along.
        net.server.sysctl("net.ipv4.conf.eth0.promote_secondaries", "1").expect("sysctl");
        let servers = SERVERS4.map(|address| nginx(&net, address));
        let edge = net.start(&config(&net));
        let site = Site { net, servers, _edge: edge };
        site.until_up(&SERVERS4);
        site
    }

    fn befall(&mut self, server: usize, fault: Fault) {
        let address = SERVERS4[server];
        match fault {
            Fault::Killed => self.servers[server].signal(Signal::SIGKILL).expect("kill"),
            Fault::Refusing => self.refuse(address),
            Fault::Hung => self.servers[server].signal(Signal::SIGSTOP).expect("stop"),
            Fault::Gone => {
                self.net.server.ip(&format!("addr del {address}/24 dev eth0")).expect("ip");
            }
            Fault::Failing => drop(self.net.write(&format!("sick-{address}"), "")),
            Fault::Slow => drop(self.net.write(&format!("slow-{address}"), "")),
        }
    }

    fn mend(&mut self, server: usize, fault: Fault) {
        let address = SERVERS4[server];
        let remove =
            |file: String| std::fs::remove_file(self.net.path(&file)).expect("it is there");
        match fault {
            Fault::Killed => self.servers[server] = nginx(&self.net, address),
            Fault::Refusing => {
                self.net.server.run("nft", &["delete table ip refusing"]).expect("nft");
            }
            Fault::Hung => self.servers[server].signal(Signal::SIGCONT).expect("continue"),
            Fault::Gone => {
                self.net.server.ip(&format!("addr add {address}/24 dev eth0")).expect("ip");
            }
            Fault::Failing => remove(format!("sick-{address}")),
            Fault::Slow => remove(format!("slow-{address}")),
        }
    }

    /// Has a server's host answer what begins a connection as if nobody listened.
    fn refuse(&self, address: &str) {
        for words in [
            "add table ip refusing".to_string(),
            "add chain ip refusing input { type filter hook input priority 0; }".to_string(),
            format!(
                "add rule ip refusing input ip daddr {address} \
                 tcp flags & (fin | syn | rst | ack) == syn reject with tcp reset"
            ),
        ] {
            self.net.server.run("nft", &[&words]).expect("nft");
        }
    }

    /// Waits until exactly these are up, in both pools; how long that took.
    fn until_up(&self, wanted: &[&str]) -> Duration {
        let start = Instant::now();
        let mut last = serde_json::Value::Null;
        let agreed = wait_for(SOON, "the checks to agree", || {
            last = self.net.ask_json(&["show", "backends"]);
            last["backends"].as_array().expect("backends").iter().all(|b| {
                let is_up = b["health"]["checks"].as_u64() > Some(0) && b["health"]["up"] == true;
                is_up == wanted.iter().any(|address| b["address"] == **address)
            })
        });
        assert!(agreed.is_ok(), "{last:#}");
        start.elapsed()
    }

    /// No request of many new connections fails, of either service.
    fn nobody_notices(&self, when: &str) {
        for url in [format!("https://{VIP4}/"), format!("http://{VIP4}/")] {
            let args = ["--h1", "-n", REQUESTS, "-c", REQUESTS, "-r", "200", &url];
            let out = self.net.client.run("h2load", &args).expect("h2load");
            let all = format!("{REQUESTS} succeeded, 0 failed, 0 errored, 0 timeout");
            let well = format!("status codes: {REQUESTS} 2xx");
            assert!(out.contains(&all) && out.contains(&well), "{when}, {url}: {out}");
        }
    }

    /// A connection that stays, and who serves it.
    fn connect(&self) -> (String, TcpStream) {
        let connect = || TcpStream::connect((VIP4, 80)).expect("connect");
        let mut stream = self.net.client.enter(connect).expect("thread");
        stream.set_read_timeout(Some(SOON)).expect("a limit");
        (ask(&mut stream), stream)
    }
}

fn ask(stream: &mut TcpStream) -> String {
    stream.write_all(format!("GET / HTTP/1.1\r\nhost: {VIP4}\r\n\r\n").as_bytes()).expect("sent");
    let mut answer = String::new();
    while !answer.split_once("\r\n\r\n").is_some_and(|(_, body)| body.ends_with('\n')) {
        let mut part = [0; 1024];
        let length = stream.read(&mut part).expect("an answer");
        assert!(length > 0, "cut after {answer:?}");
        answer.push_str(&String::from_utf8_lossy(&part[..length]));
    }
    answer.lines().last().unwrap_or_default().to_string()
}

#[test]
fn each_fault_is_found_and_survived() {
    let mut site = Site::new();
    let [a, b, c] = SERVERS4;
    use Fault::{Failing, Gone, Hung, Killed, Refusing, Slow};
    for fault in [Killed, Refusing, Hung, Gone, Failing, Slow] {
        let mut held: Vec<(String, TcpStream)> = (0..9).map(|_| site.connect()).collect();
        site.befall(0, fault);
        if fault == Killed {
            // A backend that refuses is followed by another: before any check has failed.
            site.nobody_notices("not found yet");
        }
        let found = site.until_up(&[b, c]);
        site.nobody_notices(&format!("{fault:?}"));
        let lives = |server: &str| server != a || fault == Refusing;
        for (server, stream) in held.iter_mut().filter(|(server, _)| lives(server)) {
            assert_eq!(ask(stream), *server, "{fault:?}: its server is well");
        }
        drop(held);
        site.mend(0, fault);
        let back = site.until_up(&[a, b, c]);
        site.nobody_notices(&format!("after {fault:?}"));
        println!(
            "{fault:?}: found after {found:?}, back after {back:?}; configured: {:?} at \
             most and {:?}",
            (INTERVAL + TIMEOUT) * IN_A_ROW,
            INTERVAL * IN_A_ROW,
        );
    }
}

#[test]
fn faults_that_come_together_leave_the_one_that_is_well() {
    let mut site = Site::new();
    let [a, b, c] = SERVERS4;
    for (first, second) in [(Fault::Killed, Fault::Hung), (Fault::Slow, Fault::Refusing)] {
        site.befall(0, first);
        site.befall(1, second);
        site.until_up(&[c]);
        site.nobody_notices(&format!("{first:?} and {second:?}"));
        site.mend(0, first);
        site.mend(1, second);
        site.until_up(&[a, b, c]);
    }
    site.nobody_notices("all are well");
}
