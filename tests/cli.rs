//! The command line as scripts see it: exit codes, what is said and where, what is left behind.
//!
//! Whatever gets as far as an interface runs in a network namespace of its own: needs root.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use tidegate::base::Addr;
use tidegate::lab::{Namespace, Process, wait_for};
use tidegate::packet::build::{TcpSpec, tcp_packet};
use tidegate::packet::tcp::flag;

const BIN: &str = env!("CARGO_BIN_EXE_tidegate");
const COMMANDS: [&str; 9] =
    ["run", "check", "show", "reload", "stop", "doctor", "inspect", "pktgen", "demo"];
const ENDS_WITHIN: Duration = Duration::from_secs(20);

fn tidegate(args: &[&str]) -> Output {
    Command::new(BIN).args(args).output().expect("the program starts")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("an exit code, not a signal")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

/// A folder that any user may write to, with a configuration in it.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777))
            .expect("chmod");
        Place { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn socket(&self) -> PathBuf {
        self.path("t.sock")
    }

    /// A good configuration, for `interface`.
    fn text(&self, interface: &str, metrics: &str) -> String {
        format!(
            "pipeline = \"router\"\n[workers]\nframes = 16384\nflows_max = 1000\n\
             [admin]\nsocket = \"{}\"\nmetrics = {metrics}\n\
             [port.only]\ninterface = \"{interface}\"\n\
             [transit]\nprefixes = [\"10.0.0.0/8\"]\n",
            self.socket().display()
        )
    }

    fn write(&self, text: &str) -> String {
        let file = self.path("edge.toml");
        std::fs::write(&file, text).expect("write");
        file.to_str().expect("UTF-8").to_string()
    }

    fn left(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path()).expect("readable");
        let name = |e: std::io::Result<std::fs::DirEntry>| e.expect("entry").file_name();
        let mut names: Vec<_> = entries.map(|e| name(e).to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

/// Runs the program in a namespace to its end.
fn run_in(ns: &Namespace, args: &[&str]) -> Output {
    finish(ns.spawn(command(args)).expect("start"))
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(BIN);
    command.args(args);
    command
}

fn finish(mut process: Process) -> Output {
    process.wait(ENDS_WITHIN).expect("it ends by itself");
    process.finish().expect("its output")
}

#[test]
fn every_command_has_help_with_an_example() {
    for name in COMMANDS {
        let output = tidegate(&[name, "--help"]);
        assert_eq!(code(&output), 0, "{name}");
        let text = stdout(&output);
        assert!(text.contains("Example"), "{name}: {text}");
        assert!(text.lines().all(|l| l.chars().count() <= 100), "{name} --help is too wide");
    }
    let all = stdout(&tidegate(&["--help"]));
    assert!(COMMANDS.iter().all(|name| all.contains(name)), "{all}");
    assert_eq!(
        stdout(&tidegate(&["--version"])),
        format!("tidegate {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn bad_usage_is_told_on_standard_error_with_code_2() {
    for args in [
        &[][..],
        &["fly"],
        &["run"],
        &["show"],
        &["show", "moods"],
        &["show", "flows", "--limit", "many"],
        &["doctor", "--nothing"],
        &["--log-level", "tidegate=nonsense", "check", "-c", "x"],
    ] {
        let output = tidegate(args);
        assert_eq!(code(&output), 2, "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}: {}", stdout(&output));
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn check_sums_a_good_file_up() {
    let place = Place::new();
    let file = place.write(&place.text("eth7", "false"));
    let output = tidegate(&["check", "-c", &file]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.starts_with(&format!("{file}: good\n")), "{text}");
    assert!(text.contains("router") && text.contains("only (eth7)"), "{text}");
    let output = tidegate(&["check", "-c", &file, "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(json["ok"], true);
    assert_eq!(json["summary"]["pipeline"], "router");
    assert_eq!(json["summary"]["transit_prefixes"], 1);
}

#[test]
fn check_tells_every_fault_with_its_place_and_code_2() {
    let place = Place::new();
    let text = place.text("eth7", "false").replace("10.0.0.0/8", "10.0.0.0/99");
    let file = place.write(&text.replace("flows_max", "flows_mox"));
    let output = tidegate(&["check", "-c", &file]);
    assert_eq!(code(&output), 2);
    assert!(output.stdout.is_empty(), "{}", stdout(&output));
    let said = stderr(&output);
    assert!(said.contains(&format!("{file}:4:1: error:")), "{said}");
    assert!(said.contains("flows_mox") && said.contains("prefix length 99"), "{said}");

    let output = tidegate(&["check", "-c", &file, "--json"]);
    assert_eq!(code(&output), 2);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(json["ok"], false);
    assert_eq!(json["errors"].as_array().map(Vec::len), Some(2), "{json}");
    assert_eq!((&json["errors"][0]["line"], &json["errors"][0]["column"]), (&4.into(), &1.into()));
    let output = tidegate(&["check", "-c", "/nowhere/edge.toml"]);
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("/nowhere/edge.toml: error: can't be read"));
}

#[test]
fn run_refuses_a_bad_file_and_leaves_nothing() {
    let place = Place::new();
    let file = place.write("pipeline = \"rooter\"\n");
    let output = tidegate(&["run", "-c", &file]);
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains(&format!("{file}:1:12: error:")), "{}", stderr(&output));
    assert_eq!(place.left(), ["edge.toml"]);
}

#[test]
fn a_missing_interface_is_named() {
    let (place, ns) = (Place::new(), Namespace::new("missing").expect("root"));
    let file = place.write(&place.text("eth7", "false"));
    let output = run_in(&ns, &["run", "-c", &file]);
    assert_eq!(code(&output), 1);
    let said = stderr(&output);
    assert!(said.contains("tidegate: interface eth7: no such interface"), "{said}");
    assert!(output.stdout.is_empty());
    assert_eq!(place.left(), ["edge.toml"], "the socket is gone");
}

#[test]
fn a_queue_that_another_socket_has_is_named() {
    let (place, ns) = (Place::new(), Namespace::new("taken").expect("root"));
    ns.ip("link add v0 type veth peer name v1").expect("veth");
    for interface in ["v0", "v1"] {
        ns.ip(&format!("link set {interface} up")).expect("up");
    }
    let bound = place.path("bound");
    let mut taker = Command::new("python3");
    taker.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/take_queue.py"));
    taker.arg("v0").arg(&bound);
    let mut taker = ns.spawn(taker).expect("python3");
    let waited = wait_for(ENDS_WITHIN, "the other socket", || bound.exists());
    assert!(waited.is_ok() && taker.is_running(), "{}", taker.kill_and_read_stderr());
    let file = place.write(&place.text("v0", "false"));
    let output = run_in(&ns, &["run", "-c", &file]);
    assert_eq!(code(&output), 1);
    let said = stderr(&output);
    let wanted = "tidegate: interface v0: queue 0 is taken by another AF_XDP socket";
    assert!(said.contains(wanted), "{said}");
    assert!(output.stdout.is_empty());
    assert_eq!(place.left(), ["bound", "edge.toml"]);
    let link = ns.ip("-d link show v0").expect("ip");
    assert!(!link.contains("xdp"), "the program is left: {link}");
}

#[test]
fn without_privileges_those_needed_are_named() {
    let (place, ns) = (Place::new(), Namespace::new("nobody").expect("root"));
    ns.ip("link add v0 type veth peer name v1").expect("veth");
    let file = place.write(&place.text("v0", "false"));
    let program = place.path("tidegate");
    std::fs::copy(BIN, &program).expect("copy");
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]);
    command.arg(&program).args(["run", "-c", &file]);
    let output = finish(ns.spawn(command).expect("start"));
    assert_eq!(code(&output), 1);
    let said = stderr(&output);
    assert!(said.contains("not permitted") && said.contains("CAP_NET_ADMIN"), "{said}");
    assert_eq!(place.left(), ["edge.toml", "tidegate"]);
}

/// Those that the message names are all that it takes.
#[test]
fn with_the_privileges_that_are_named_it_runs() {
    const NOBODY: u32 = 65534;
    let (place, ns) = (Place::new(), Namespace::new("capable").expect("root"));
    ns.ip("link add v0 type veth peer name v1").expect("veth");
    let file = place.write(&place.text("v0", "false"));
    let program = place.path("tidegate");
    std::fs::copy(BIN, &program).expect("copy");
    let folder = program.parent().expect("a folder");
    std::os::unix::fs::chown(folder, Some(NOBODY), Some(NOBODY)).expect("chown");
    std::fs::create_dir_all("/run/tidegate").expect("the folder for what is changed");
    let all = "+net_admin,+net_raw,+bpf,+perfmon,+ipc_lock";
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    command.args(["--inh-caps", all, "--ambient-caps", all, "--"]);
    command.arg(&program).args(["run", "-c", &file]);
    let mut process = ns.spawn(command).expect("start");
    let socket = place.socket();
    let socket = socket.to_str().expect("UTF-8");
    let answers = || code(&tidegate(&["show", "ports", "--socket", socket])) == 0;
    let up = wait_for(ENDS_WITHIN, "an answer", || !process.is_running() || answers());
    assert!(up.is_ok() && process.is_running(), "{}", process.kill_and_read_stderr());
    process.signal(nix::sys::signal::Signal::SIGTERM).expect("term");
    assert_eq!(code(&finish(process)), 0);
}

#[test]
fn an_old_kernel_is_named() {
    let (place, ns) = (Place::new(), Namespace::new("old").expect("root"));
    ns.ip("link add v0 type veth peer name v1").expect("veth");
    let file = place.write(&place.text("v0", "false"));
    // The kernel says that it is a 2.6 to whoever asks for that (personality(2), UNAME26).
    let mut command = Command::new("setarch");
    command.args(["--uname-2.6", BIN, "run", "-c", &file]);
    let output = finish(ns.spawn(command).expect("start"));
    assert_eq!(code(&output), 1);
    let said = stderr(&output);
    assert!(said.contains("kernel 2.6.") && said.contains("needs 5.12 or later"), "{said}");
    assert_eq!(place.left(), ["edge.toml"]);
}

#[test]
fn a_lack_of_memory_is_told_before_anything_is_changed() {
    let (place, ns) = (Place::new(), Namespace::new("memory").expect("root"));
    let text = place.text("eth7", "false").replace("flows_max = 1000\n", "flows_max = 16777216\n");
    let file = place.write(&text);
    let mut command = Command::new("prlimit");
    command.args(["--as=2000000000", BIN, "run", "-c", &file]);
    let output = finish(ns.spawn(command).expect("start"));
    assert_eq!(code(&output), 1);
    let said = stderr(&output);
    assert!(said.contains("1 x 16777216 flows") && said.contains("workers.flows_max"), "{said}");
    assert_eq!(place.left(), ["edge.toml"]);
}

#[test]
fn a_socket_in_a_folder_that_is_nowhere_makes_no_folders() {
    let (place, ns) = (Place::new(), Namespace::new("folder").expect("root"));
    let text = place.text("eth7", "false");
    let run = |socket: &str| {
        let file = place.write(&text.replace("t.sock", socket));
        let output = run_in(&ns, &["run", "-c", &file]);
        assert_eq!(code(&output), 1);
        stderr(&output)
    };
    let said = run("no/such/t.sock");
    assert!(said.contains("no/such/t.sock: its folder can't be made"), "{said}");
    assert_eq!(place.left(), ["edge.toml"]);
    // One level is made, as /run/tidegate is.
    let said = run("one/t.sock");
    assert!(said.contains("no such interface"), "{said}");
}

#[test]
fn a_socket_that_is_answered_is_not_taken() {
    let (place, ns) = (Place::new(), Namespace::new("taken").expect("root"));
    let file = place.write(&place.text("eth7", "false"));
    let _other = UnixListener::bind(place.socket()).expect("bind");
    let output = run_in(&ns, &["run", "-c", &file]);
    assert_eq!(code(&output), 1);
    let said = stderr(&output);
    assert!(said.contains("another tidegate runs"), "{said}");
    assert!(said.contains(&format!("--socket {}", place.socket().display())), "{said}");
    assert!(place.socket().exists(), "the other's socket stays");
}

#[test]
fn a_socket_of_the_dead_is_replaced() {
    let (place, ns) = (Place::new(), Namespace::new("stale").expect("root"));
    let file = place.write(&place.text("eth7", "false"));
    drop(UnixListener::bind(place.socket()).expect("bind"));
    assert!(place.socket().exists(), "closing leaves the file");
    let output = run_in(&ns, &["run", "-c", &file]);
    // It got beyond the socket, to the interface.
    assert!(stderr(&output).contains("no such interface"), "{}", stderr(&output));
    assert_eq!(place.left(), ["edge.toml"]);
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let (place, ns) = (Place::new(), Namespace::new("file").expect("root"));
    let file = place.write(&place.text("eth7", "false"));
    std::fs::write(place.socket(), "precious").expect("write");
    let output = run_in(&ns, &["run", "-c", &file]);
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("a file that is no socket"), "{}", stderr(&output));
    assert_eq!(std::fs::read_to_string(place.socket()).expect("there"), "precious");
}

#[test]
fn a_metrics_address_in_use_is_named() {
    let (place, ns) = (Place::new(), Namespace::new("metrics").expect("root"));
    let taken =
        ns.enter(|| std::net::TcpListener::bind("127.0.0.1:9898")).expect("thread").expect("bind");
    let file = place.write(&place.text("eth7", "\"127.0.0.1:9898\""));
    let output = run_in(&ns, &["run", "-c", &file]);
    assert_eq!(code(&output), 1);
    let said = stderr(&output);
    assert!(said.contains("metrics address 127.0.0.1:9898") && said.contains("in use"), "{said}");
    assert_eq!(place.left(), ["edge.toml"]);
    drop(taken);
}

#[test]
fn asking_nobody_says_so() {
    let place = Place::new();
    let socket = place.socket();
    let socket = socket.to_str().expect("UTF-8");
    for args in [&["show", "drops"][..], &["show", "flows", "--json"], &["reload"], &["stop"]] {
        let args = [args, &["--socket", socket]].concat();
        let output = tidegate(&args);
        assert_eq!(code(&output), 1, "{args:?}");
        let said = stderr(&output);
        assert!(said.contains("no tidegate runs here") && said.contains(socket), "{said}");
        assert!(output.stdout.is_empty());
    }
    drop(UnixListener::bind(place.socket()).expect("bind"));
    let output = tidegate(&["show", "drops", "--socket", socket]);
    assert!(stderr(&output).contains("nobody listens"), "{}", stderr(&output));
}

#[test]
fn the_doctor_judges_interfaces_and_exits_by_it() {
    let ns = Namespace::new("doctor").expect("root");
    ns.ip("link add v0 type veth peer name v1").expect("veth");
    let output = run_in(&ns, &["doctor", "--interface", "v0", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let findings = json["findings"].as_array().expect("a list");
    let found = |subject: &str| {
        let finding = findings.iter().find(|f| f["subject"] == subject);
        finding.unwrap_or_else(|| panic!("{subject} in {json}"))["verdict"].as_str()
    };
    assert_eq!(found("AF_XDP"), Some("ok"));
    assert_eq!(found("privileges"), Some("ok"));
    assert_eq!(found("v0: link"), Some("warn"), "it is down");
    assert_eq!(json["ready"], true, "{json}");
    assert_eq!(code(&output), 0);

    let output = run_in(&ns, &["doctor", "--interface", "eth7"]);
    assert_eq!(code(&output), 1);
    let text = stdout(&output);
    assert!(text.contains("FAIL  eth7") && text.contains("lo, v0, v1"), "{text}");
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let place = Place::new();
    let file = place.write(&place.text("eth7", "false"));
    let line = format!("{BIN} check -c {file} | true; echo ${{PIPESTATUS[0]}}");
    let output = Command::new("bash").args(["-c", &line]).output().expect("bash");
    assert_eq!(stdout(&output), "0\n", "{}", stderr(&output));
    assert!(Path::new(&file).exists());
}

#[test]
fn what_can_not_be_written_is_a_failure() {
    let place = Place::new();
    let file = place.write(&place.text("eth7", "false"));
    let capture_file = place.path("a.pcap");
    std::fs::write(&capture_file, capture()).expect("write");
    let capture_file = capture_file.to_str().expect("UTF-8");
    let scenario = concat!(env!("CARGO_MANIFEST_DIR"), "/config/scenarios/evening-rush.toml");
    for args in [
        &["check", "-c", &file][..],
        &["check", "-c", &file, "--json"],
        &["inspect", capture_file],
        &["inspect", capture_file, "--json"],
        &["simulate", scenario, "--set", "duration=1100ms"],
    ] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("a device");
        let output = command(args).stdout(full).output().expect("start");
        assert_eq!(code(&output), 1, "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("standard output: No space left"), "{args:?}");
    }
}

/// A capture of one request over IPv4, Ethernet.
fn capture() -> Vec<u8> {
    let client = (Addr::v4(0x0a00_0001), 40_000);
    let server = (Addr::v4(0x0a00_0002), 80);
    let get = b"POST /v1/messages HTTP/1.1\r\nHost: api.anthropic.com\r\n\r\n";
    let frame = tcp_packet(&TcpSpec::new(client, server, flag::ACK, get));
    let mut file = Vec::new();
    let len = frame.len() as u32;
    for n in [0xa1b2_c3d4u32, 0x0004_0002, 0, 0, 65_535, 1, 0, 0, len, len] {
        file.extend(n.to_le_bytes());
    }
    [file, frame].concat()
}

#[test]
fn a_capture_is_told_of_and_a_damaged_one_as_far_as_it_was_read() {
    let place = Place::new();
    let file = place.path("a.pcap");
    let inspect = |bytes: &[u8], more: &[&str]| {
        std::fs::write(&file, bytes).expect("write");
        tidegate(&[&["inspect", file.to_str().expect("UTF-8")][..], more].concat())
    };
    let whole = inspect(&capture(), &["--json"]);
    assert_eq!((code(&whole), &stderr(&whole)[..]), (0, ""), "no bar where nobody sees it");
    let flow: serde_json::Value = serde_json::from_str(&stdout(&whole)).expect("one object");
    for (key, value) in [
        ("app", "http1"),
        ("http_authority", "api.anthropic.com"),
        ("provider", "anthropic"),
        ("operation", "chat"),
        ("class", "interactive"),
        ("encap", "eth/ip"),
    ] {
        assert_eq!(flow[key], value, "{flow}");
    }
    let damaged = inspect(&[&capture()[..], &[7; 9]].concat(), &[]);
    assert_eq!(code(&damaged), 1);
    assert!(stdout(&damaged).contains("anthropic chat"), "{}", stdout(&damaged));
    assert!(stderr(&damaged).contains("ends within a packet"), "{}", stderr(&damaged));
    assert_eq!(code(&inspect(b"no capture", &[])), 1);
    let mut other = capture();
    other[20] = 147;
    let unknown = inspect(&other, &["--json"]);
    assert_eq!((code(&unknown), &stdout(&unknown)[..]), (1, ""));
    let why = "1 of 1 packets have an unknown link type: 147";
    assert!(stderr(&unknown).contains(why), "{}", stderr(&unknown));
    std::fs::write(&file, capture()).expect("write");
    let input = std::fs::File::open(&file).expect("written");
    let piped = command(&["inspect", "-", "--json"]).stdin(input).output().expect("start");
    assert_eq!((code(&piped), stdout(&piped)), (0, stdout(&whole)), "{}", stderr(&piped));
    let own = place.write("[provider.x]\nhost = [\"com\"]\n");
    let refused = inspect(&capture(), &["--catalogue", &own]);
    assert_eq!(code(&refused), 2);
    assert!(stderr(&refused).contains("edge.toml:2:9: error: host"), "{}", stderr(&refused));
}
