//! Every fault of a backend under every delayed binding: once it is detected no client notices, and
//! those that had it already are the only ones to lose anything.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use common::{HTTP, HTTPS, NAT4, Net, SERVERS4, VIP4, make_certificate, pool};
use nix::sys::signal::Signal;
use tidegate::lab::{Process, wait_for};

/// For what takes a few seconds on a machine of its own.
const SOON: Duration = Duration::from_secs(60);
const REQUESTS: &str = "300";
/// Clients of a round, a connection and a request each.
const ROUND: &str = "30";
const INTERVAL: Duration = Duration::from_millis(200);
const TIMEOUT: Duration = Duration::from_secs(2);
const IN_A_ROW: u32 = 2;
/// What a busy machine may add to the times that are configured.
const SLACK: Duration = Duration::from_secs(20);

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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Nginx,
    Haproxy,
}

/// Three servers, of which some get into trouble.
struct Site {
    net: Net,
    kinds: [Kind; 3],
    servers: [Mutex<Process>; 3],
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

/// The same of an HAProxy: it fails, or holds what is asked, by the word of [`tell_haproxy`].
fn haproxy(net: &Net, address: &str) -> Process {
    let dir = net.path(address);
    std::fs::create_dir_all(&dir).expect("mkdir");
    make_certificate(&dir);
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).expect("made");
    std::fs::write(dir.join("both.pem"), read("cert.pem") + &read("key.pem")).expect("write");
    for fault in ["sick", "slow"] {
        std::fs::write(dir.join(fault), "").expect("write");
    }
    let d = dir.display();
    let text = format!(
        "global\n stats socket {d}/socket level admin\n maxconn 4000\ndefaults\n mode http\n\
         timeout connect 5s\n timeout client 1h\n timeout server 1h\n\
         timeout http-keep-alive 1h\n timeout tarpit 10m\nfrontend all\n\
         bind {address}:{HTTP}\n bind {address}:{HTTPS} ssl crt {d}/both.pem alpn h2,http/1.1\n\
         http-request return status 500 if {{ str(x) -m str -f {d}/sick }}\n\
         http-request tarpit if {{ str(x) -m str -f {d}/slow }}\n\
         http-request return status 200 content-type text/plain string \"{address}\\n\"\n"
    );
    let file = dir.join("haproxy.cfg");
    std::fs::write(&file, text).expect("write");
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(file);
    let mut process = net.server.spawn(command).expect("haproxy");
    let url = format!("http://{address}:{HTTP}/");
    let up = wait_for(SOON, "haproxy", || {
        !process.is_running() || net.server.run("curl", &["-sf", &url]).is_ok()
    });
    if up.is_err() || !process.is_running() {
        panic!("haproxy did not start: {}", process.kill_and_read_stderr());
    }
    process
}

/// Has an HAProxy have a fault, `sick` or `slow`, or not.
fn tell_haproxy(net: &Net, address: &str, fault: &str, has: bool) {
    let dir = net.path(address);
    let verb = if has { "add" } else { "del" };
    let mut socket = UnixStream::connect(dir.join("socket")).expect("its socket");
    socket.set_read_timeout(Some(SOON)).expect("a limit");
    writeln!(socket, "{verb} acl {} x", dir.join(fault).display()).expect("told");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("an answer");
    assert_eq!(answer.trim(), "", "{verb} {fault}");
}

impl Kind {
    fn start(self, net: &Net, address: &str) -> Process {
        match self {
            Kind::Nginx => nginx(net, address),
            Kind::Haproxy => haproxy(net, address),
        }
    }
}

impl Site {
    fn new(kinds: [Kind; 3]) -> Site {
        let net = Net::new(1);
        // An address that goes is not to take the others along.
        net.server.sysctl("net.ipv4.conf.eth0.promote_secondaries", "1").expect("sysctl");
        let servers = [0, 1, 2].map(|i| Mutex::new(kinds[i].start(&net, SERVERS4[i])));
        let edge = net.start(&config(&net));
        let site = Site { net, kinds, servers, _edge: edge };
        site.until_up(&SERVERS4);
        site
    }

    fn process(&self, server: usize) -> MutexGuard<'_, Process> {
        self.servers[server].lock().expect("no panic")
    }

    fn befall(&self, server: usize, fault: Fault) {
        let address = SERVERS4[server];
        match fault {
            Fault::Killed => self.process(server).signal(Signal::SIGKILL).expect("kill"),
            Fault::Refusing => self.refuse(address),
            Fault::Hung => self.process(server).signal(Signal::SIGSTOP).expect("stop"),
            Fault::Gone => {
                self.net.server.ip(&format!("addr del {address}/24 dev eth0")).expect("ip");
            }
            Fault::Failing => self.has(server, "sick", true),
            Fault::Slow => self.has(server, "slow", true),
        }
    }

    fn mend(&self, server: usize, fault: Fault) {
        let address = SERVERS4[server];
        match fault {
            Fault::Killed => {
                *self.process(server) = self.kinds[server].start(&self.net, address);
            }
            Fault::Refusing => {
                self.net.server.run("nft", &["delete table ip refusing"]).expect("nft");
            }
            Fault::Hung => self.process(server).signal(Signal::SIGCONT).expect("continue"),
            Fault::Gone => {
                self.net.server.ip(&format!("addr add {address}/24 dev eth0")).expect("ip");
            }
            Fault::Failing => self.has(server, "sick", false),
            Fault::Slow => self.has(server, "slow", false),
        }
    }

    /// Whether a server fails, or crawls.
    fn has(&self, server: usize, fault: &str, has: bool) {
        let address = SERVERS4[server];
        let file = format!("{fault}-{address}");
        match (self.kinds[server], has) {
            (Kind::Nginx, true) => drop(self.net.write(&file, "")),
            (Kind::Nginx, false) => std::fs::remove_file(self.net.path(&file)).expect("there"),
            (Kind::Haproxy, _) => tell_haproxy(&self.net, address, fault, has),
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

    /// Has clients come all the time while something is done. Those that come after the instant
    /// that it returns, when a fault was found, have nothing to complain of.
    fn under_load(&self, what: &str, done: impl FnOnce() -> Instant) {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let load = scope.spawn(|| self.load(&over));
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(done));
            over.store(true, Ordering::Relaxed);
            let rounds = load.join().expect("h2load");
            let found = done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let late: Vec<_> = rounds.iter().filter(|(begun, _)| *begun > found).collect();
            assert!(
                !late.is_empty() && late.len() < rounds.len(),
                "{what}: clients come before and after"
            );
            for (_, out) in late {
                let all = format!("{ROUND} succeeded, 0 failed, 0 errored, 0 timeout");
                let well = format!("status codes: {ROUND} 2xx");
                assert!(out.contains(&all) && out.contains(&well), "{what}, once found: {out}");
            }
        });
    }

    /// When each round of clients began, and what became of it.
    fn load(&self, over: &AtomicBool) -> Vec<(Instant, String)> {
        let urls = [format!("https://{VIP4}/"), format!("http://{VIP4}/")];
        let mut rounds = Vec::new();
        for url in urls.iter().cycle() {
            let begun = Instant::now();
            // Neither who says nothing nor who says a byte a second holds a round up.
            let args = ["--h1", "-n", ROUND, "-c", ROUND, "-N", "10s", "-T", "10s", url];
            rounds.push((begun, self.net.client.run("h2load", &args).expect("h2load")));
            if over.load(Ordering::Relaxed) {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        rounds
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

/// Each fault befalls the first server, while clients come all the time.
fn each_fault(kinds: [Kind; 3]) {
    let site = Site::new(kinds);
    let [a, b, c] = SERVERS4;
    use Fault::{Failing, Gone, Hung, Killed, Refusing, Slow};
    for fault in [Killed, Refusing, Hung, Gone, Failing, Slow] {
        let mut held: Vec<(String, TcpStream)> = (0..9).map(|_| site.connect()).collect();
        let (mut found, mut back) = (Duration::ZERO, Duration::ZERO);
        site.under_load(&format!("{fault:?} of {:?}", kinds[0]), || {
            site.befall(0, fault);
            if fault == Killed {
                // A backend that refuses is followed by another: before any check has failed.
                site.nobody_notices("not found yet");
            }
            found = site.until_up(&[b, c]);
            let at = Instant::now();
            site.nobody_notices(&format!("{fault:?}"));
            let lives = |server: &str| server != a || fault == Refusing;
            for (server, stream) in held.iter_mut().filter(|(server, _)| lives(server)) {
                assert_eq!(ask(stream), *server, "{fault:?}: its server is well");
            }
            held.clear();
            site.mend(0, fault);
            back = site.until_up(&[a, b, c]);
            at
        });
        let limits = [(INTERVAL * 11 / 10 + TIMEOUT) * IN_A_ROW, INTERVAL * 11 / 10 * IN_A_ROW];
        println!("{fault:?}: found after {found:?}, back after {back:?}; configured: {limits:?}");
        assert!(found < limits[0] + SLACK && back < limits[1] + SLACK, "{fault:?}");
    }
}

#[test]
fn each_fault_of_nginx_is_found_and_survived() {
    each_fault([Kind::Nginx, Kind::Haproxy, Kind::Nginx]);
}

#[test]
fn each_fault_of_haproxy_is_found_and_survived() {
    each_fault([Kind::Haproxy, Kind::Nginx, Kind::Nginx]);
}

#[test]
fn faults_that_come_together_leave_the_one_that_is_well() {
    let site = Site::new([Kind::Nginx, Kind::Haproxy, Kind::Nginx]);
    let [a, b, c] = SERVERS4;
    use Fault::{Failing, Gone, Hung, Killed, Refusing, Slow};
    for (first, second) in [(Killed, Hung), (Slow, Refusing), (Failing, Killed), (Gone, Failing)] {
        site.under_load(&format!("{first:?} and {second:?}"), || {
            site.befall(0, first);
            site.befall(1, second);
            site.until_up(&[c]);
            let at = Instant::now();
            site.nobody_notices(&format!("{first:?} and {second:?}"));
            site.mend(0, first);
            site.mend(1, second);
            site.until_up(&[a, b, c]);
            at
        });
    }
    site.nobody_notices("all are well");
}
