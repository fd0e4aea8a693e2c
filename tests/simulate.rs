//! Scenario files, and `tidegate simulate` as it is used.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tidegate::scenario::{self, Loaded};

const TREE: &str = "duration = \"300ms\"\nwarmup = \"100ms\"\n[qos]\nrate = \"80Mbit/s\"\n\
                    overhead = 0\nmpu = 0\ndefault = \"a\"\n[qos.class.a]\nrate = \"25%\"\n\
                    [qos.class.b]\nrate = \"25%\"\nweight = 3\n";
const SOURCES: &str = "[source.a]\nclass = \"a\"\ngreedy = {}\n\
                       [source.b]\nclass = \"b\"\ngreedy = {}\n";

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().expect("a folder"))
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let file = self.0.path().join(name);
        std::fs::write(&file, text).expect("written");
        file
    }
}

fn tidegate(file: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.arg("simulate").arg(file).args(args).output().expect("started")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What is wrong with a file, without the folder's name.
fn faults(text: &str, sets: &[&str]) -> Vec<String> {
    let place = Place::new();
    let file = place.write("s.toml", text);
    let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
    let faults = scenario::load(&file, &sets).expect_err("refused");
    let folder = format!("{}/", place.0.path().display());
    faults.iter().map(|f| f.to_string().replace(&folder, "")).collect()
}

#[test]
fn every_fault_is_told_at_its_place() {
    let text = format!(
        "{TREE}[workers]\ncount = 65\npoll = []\n[link]\nring = 1000\n\
         [source.x]\nclass = \"c\"\nconstant = {{ rate = \"fast\" }}\n\
         [source.y]\npacket = [64, 20]\ntokens = {{ bytes = 0 }}\ntcp = {{ rtt = \"1ns\" }}\n\
         [source.z]\nclass = \"a\"\nstart = \"2s\"\nstop = \"1s\"\n\
         [source.t]\nclass = \"a\"\ntrace = {{ file = \"none.pcap\", sped = 1 }}\n\
         [expect.d]\nrate = \"10%\"\n"
    );
    let told = faults(&text, &[]);
    let want = [
        "s.toml:14:9: error: 65 is not within 1 to 64",
        "s.toml:15:8: error: the list is empty: leave `poll` out instead",
        "s.toml:17:8: error: a link without `rate` takes all at once: it fills no ring",
        "s.toml:19:9: error: no class of this port is named `c`; did you mean `a`?",
        "s.toml:20:21: error: `fast` does not begin with a number",
        "s.toml:21:1: error: `class` is missing: whose packets it sends",
        "s.toml:22:15: error: frames have 60 to 9018 bytes, not 20",
        "s.toml:23:10: error: `every` is missing: how often each flow sends",
        "s.toml:23:20: error: 0 is not within 1 to 1048576",
        "s.toml:24:7: error: it says already how it sends: make this another source",
        "s.toml:24:15: error: 1ns is not within 10µs to 10s",
        "s.toml:25:1: error: it does not say how it sends: one of `constant`, `poisson`, `on_off`, \
         `greedy`, `tokens`, `tcp`, `trace`, as in `constant = { rate = \"20Mbit/s\" }`",
        "s.toml:27:9: warning: it sends nothing: the scenario lasts 300ms",
        "s.toml:28:8: error: 1s is not within 2s to 3600s",
        "s.toml:31:18: error: none.pcap: No such file or directory (os error 2)",
        "s.toml:31:31: error: unknown key `sped`; did you mean `speed`?",
        "s.toml:32:9: error: no class of this port is named `d`; did you mean `a`?",
    ];
    assert_eq!(told, want, "{told:#?}");
}

#[test]
fn what_is_missing_is_told() {
    let want = [
        "s.toml:1:1: error: no class tree: give it as `[qos]`, or name a `config` and its `port`",
        "s.toml:1:1: error: `duration` is missing: how long the scenario lasts",
        "s.toml:1:1: error: nothing is sent: add a `[source.NAME]`",
    ];
    assert_eq!(faults("", &[]), want.map(String::from));
    let inner = format!("{TREE}[qos.class.c]\nparent = \"a\"\nrate = \"1%\"\n{SOURCES}");
    let told = faults(&inner, &[]);
    let carries = "`a` has classes below it, so it carries no packets";
    assert!(told.iter().all(|f| f.ends_with(carries)) && told.len() == 2, "{told:?}");
    let both = format!("config = \"x.toml\"\n{TREE}{SOURCES}");
    assert_eq!(
        faults(&both, &[])[0],
        "s.toml:1:10: error: `port` is missing: whose class tree is tried"
    );
}

#[test]
fn what_would_do_nothing_is_told() {
    let a = "[source.a]\nclass = \"a\"\ngreedy = {}\n";
    let place = Place::new();
    let warnings = |start: &str| {
        let file = place.write("s.toml", &format!("{TREE}{a}start = \"{start}\"\n"));
        scenario::load(&file, &[]).expect("a scenario").warnings
    };
    let [late] = &warnings("300ms")[..] else { panic!("one warning") };
    assert_eq!(late.place, Some((16, 9)), "{late}");
    assert_eq!(late.message, "it sends nothing: the scenario lasts 300ms");
    assert_eq!(warnings("299ms"), []);
    let skew = |n: &str| format!("{TREE}{a}skew = {n}\n");
    let nobody = ["s.toml:16:8: error: no worker gets any of the flows"];
    assert_eq!(faults(&skew("[0, 0]"), &[]), nobody);
    let empty = "s.toml:16:8: error: the list is empty: leave `skew` out instead";
    assert_eq!(faults(&skew("[]"), &[]), [empty]);
    let poll = format!("{TREE}[workers]\npoll = [\"50ns\"]\n{a}");
    let want = "s.toml:14:8: error: workers look at their queues every 100ns to 1s";
    assert_eq!(faults(&poll, &[]), [want]);
    let want = "s.toml:16:1: error: nothing is expected: give a `rate`, `delay_p99_max`, \
                `dropped_max` or `marked_min`";
    assert_eq!(faults(&format!("{TREE}{a}[expect.a]\n"), &[]), [want]);
    assert_eq!(faults(&format!("{TREE}{a}[expect.a]\ntolerance_percent = 1\n"), &[]), [want]);
}

#[test]
fn what_is_set_is_held_to_the_same_rules() {
    let text = format!("{TREE}{SOURCES}");
    let told = faults(&text, &["class.b.rate=80%", "class.a.wight=3", "seed", "link.rate=5"]);
    let want = [
        "--set seed: error: a key and its value are expected, as in class.batch.rate=20%",
        "--set link.rate=5: error: a rate such as \"100Mbit/s\" or \"10%\" is expected here, not \
         the number 5",
        "--set class.b.rate=80%: error: with these 64Mbit/s the guarantees below the port come to \
         84Mbit/s, over its 80Mbit/s by 4Mbit/s",
        "--set class.a.wight=3: error: unknown key `wight`; did you mean `weight`?",
    ];
    for want in want {
        assert!(told.iter().any(|t| t == want), "{want}\nin {told:#?}");
    }
}

#[test]
fn what_is_set_must_be_there() {
    let text = format!("{TREE}{SOURCES}");
    let sets =
        ["class.bb.rate=10%", "source.aa.packet=100", "expect.a.rate=1%", "class.b.weight=2"];
    let want = [
        "--set source.aa.packet=100: error: no source is named `aa`; did you mean `a`?",
        "--set class.bb.rate=10%: error: no class is named `bb`; did you mean `b`?",
    ];
    assert_eq!(faults(&text, &sets), want);
}

#[test]
fn a_trace_that_ends_early_is_told_at_its_place() {
    let place = Place::new();
    let mut pcap = vec![0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0];
    pcap.extend([1, 0, 0, 0]);
    // A record of 60 bytes of which 10 are there.
    pcap.extend([0, 0, 0, 0, 0, 0, 0, 0, 60, 0, 0, 0, 60, 0, 0, 0]);
    pcap.extend([0; 10]);
    std::fs::write(place.0.path().join("cut.pcap"), pcap).expect("written");
    let text = format!("{TREE}[source.t]\nclass = \"a\"\ntrace = {{ file = \"cut.pcap\" }}\n");
    let out = tidegate(&place.write("s.toml", &text), &[]);
    let told = self::text(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{told}");
    assert!(told.contains("s.toml:15:18: error: ") && told.contains("cut.pcap"), "{told}");
}

#[test]
fn the_tree_may_be_that_of_a_configuration() {
    let place = Place::new();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/example-llm-edge.toml");
    let text = std::fs::read_to_string(config).expect("an example");
    place.write("edge.toml", &text);
    let text = "config = \"edge.toml\"\nport = \"wan\"\nduration = \"10ms\"\n\
                [source.a]\nclass = \"interactive\"\nconstant = { rate = \"10%\" }\n";
    let file = place.write("s.toml", text);
    let load = |sets: &[&str]| {
        let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
        scenario::load(&file, &sets).map_err(|faults| faults.to_string())
    };
    let rate = |loaded: Loaded| {
        let class = loaded.scenario.tree.classes.iter().find(|c| c.name == "interactive");
        class.expect("a class").rate.0 / 1_000_000
    };
    assert_eq!(rate(load(&[]).expect("good")), 4_000);
    assert_eq!(rate(load(&["class.interactive.rate=30%"]).expect("good")), 3_000);
    assert_eq!(rate(load(&["qos.wan.class.interactive.rate=1Gbit"]).expect("good")), 1_000);
    let told = load(&["class.interactive.rate=99%"]).expect_err("too much");
    assert!(told.contains("over its 10Gbit/s"), "{told}");
    let told = load(&["port=lann"]).expect_err("no such port");
    assert!(
        told.contains("edge.toml has no class tree of that port; did you mean `lan`?"),
        "{told}"
    );
}

#[test]
fn classes_get_what_they_should_and_the_same_each_time() {
    let place = Place::new();
    let expect = "[expect.a]\nrate = \"37.5%\"\n[expect.b]\nrate = \"62.5%\"\n";
    let file = place.write("s.toml", &format!("{TREE}{SOURCES}{expect}"));
    let json = |args: &[&str]| {
        let output = tidegate(&file, &[&["--json"], args].concat());
        (output.status.code(), text(&output.stdout))
    };
    let first = json(&["--set", "workers.count=2"]);
    assert_eq!(first.0, Some(0), "{}", first.1);
    assert_eq!(first, json(&["--set", "workers.count=2"]));
    let value: serde_json::Value = serde_json::from_str(&first.1).expect("JSON");
    assert_eq!(value["classes"][1]["name"], "b");
    assert_eq!(value["expectations"][0]["is_met"], true);
    assert_eq!(value["over_time"].as_array().map(Vec::len), Some(50));
    assert!(value["classes"][0]["delay"]["p99_us"].as_f64() > Some(0.0), "{value}");
    let (code, told) = json(&["--set", "class.b.weight=1", "--against"]);
    let value: serde_json::Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(code, Some(1), "half of it each now, which was not expected");
    assert_eq!(value["expectations"][1]["is_met"], false);
    assert_eq!(value["against"]["expectations"][1]["is_met"], true);
}

#[test]
fn tables_and_plots_are_for_people() {
    let place = Place::new();
    let file = place.write("s.toml", &format!("{TREE}{SOURCES}"));
    let plot = place.0.path().join("s.svg");
    let output = tidegate(&file, &["--plot", plot.to_str().expect("UTF-8")]);
    let told = text(&output.stdout);
    assert_eq!((output.status.code(), &*text(&output.stderr)), (Some(0), ""), "{told}");
    assert!(
        told.starts_with("s: 0.2 s after 0.1 s, 1 worker, seed 1: 80Mbit/s of 80Mbit/s used\n"),
        "{told}"
    );
    assert!(told.contains("GRANTED OVER TIME") && told.contains("▃"), "{told}");
    assert!(std::fs::read_to_string(plot).expect("drawn").starts_with("<svg"));
    let told = text(&tidegate(&file, &["--set", "class.b.weight=1", "--against"]).stdout);
    assert!(told.contains("\nagainst s: ") && told.contains("(WAS)"), "{told}");
    let output = tidegate(&file, &["--set", "class.b.weight=0"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).starts_with("--set class.b.weight=0: error: weights are 1 to"));
}

/// A capture of `count` packets, a millisecond apart, of which 100 bytes each were kept of 1000.
fn capture(count: u32) -> Vec<u8> {
    let mut file: Vec<u8> = Vec::new();
    let mut word = |n: u32| file.extend(n.to_le_bytes());
    [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65_535, 1].into_iter().for_each(&mut word);
    for i in 0..count {
        [100, i * 1_000, 100, 1_000].into_iter().for_each(&mut word);
        (0..25).for_each(|_| word(0));
    }
    file
}

#[test]
fn traces_are_played_as_they_were_captured() {
    let place = Place::new();
    std::fs::write(place.0.path().join("t.pcap"), capture(50)).expect("written");
    let run = |more: &str| {
        let text = format!(
            "{TREE}[source.t]\nclass = \"a\"\nstart = \"100ms\"\n\
             trace = {{ file = \"t.pcap\"{more} }}\n"
        );
        let file = place.write("s.toml", &text);
        let Loaded { scenario, .. } = scenario::load(&file, &[]).expect("good");
        let outcome = scenario::run(&scenario, |_| ()).expect("sound");
        (outcome.sources[0].granted_packets, outcome.sources[0].granted_bytes)
    };
    assert_eq!(run(""), (50, 50_000), "with the bytes they had");
    assert_eq!(run(", speed = 0.1"), (20, 20_000), "ten times as slowly, for 200 ms");
    // Four rounds of 49 ms and a little, and what began in the 4 ms that are left.
    assert_eq!(run(", repeat = true").0, 4 * 50 + 4);
    let damaged = [&capture(3)[..], &[1, 2, 3]].concat();
    std::fs::write(place.0.path().join("t.pcap"), damaged).expect("written");
    let output = tidegate(&place.0.path().join("s.toml"), &[]);
    assert_eq!(output.status.code(), Some(2));
    let told = text(&output.stderr);
    assert!(told.contains("s.toml:16:18: error: "), "{told}");
    assert!(told.contains("t.pcap: the capture ends within a packet"), "{told}");
}

#[test]
fn a_link_below_the_tree_is_the_limit_and_tcp_fills_it() {
    for (control, workers) in [("cubic", 1), ("reno", 2)] {
        let place = Place::new();
        let text = format!(
            "duration = \"4s\"\nwarmup = \"1s\"\n[workers]\ncount = {workers}\n\
             [link]\nrate = \"20Mbit/s\"\n[qos]\nrate = \"1Gbit/s\"\ndefault = \"a\"\n\
             [qos.class.a]\nrate = \"1%\"\n[source.s]\nclass = \"a\"\nflows = 8\necn = true\n\
             tcp = {{ rtt = \"20ms\", control = \"{control}\" }}\n"
        );
        let file = place.write("s.toml", &text);
        let outcome = scenario::run(&scenario::load(&file, &[]).expect("good").scenario, |_| ())
            .expect("run");
        let mbit = outcome.granted_bps / 1e6;
        assert!((19.5..20.1).contains(&mbit), "{control}: {mbit}");
        let class = &outcome.classes[0];
        assert!(class.marked_packets > 10, "{control}: {class:?}");
        assert_eq!(class.dropped_aqm + class.dropped_overload, 0, "{control}");
        // 5 ms are CoDel's target, 50 ms what the rings hold: a millisecond of the tree's rate.
        let p50 = class.delay.expect("sent").p50_us;
        assert!((2e3..6e4).contains(&p50), "{control}: {p50}");
    }
}

/// A class of 2 Mbit/s that holds 64 KiB in each worker, flooded by whoever always has packets.
#[test]
fn greedy_sources_keep_no_more_than_the_class_holds() {
    let place = Place::new();
    for (flows, workers, packet) in [(4, 2, 1_514), (2_000, 1, 100)] {
        let text = format!(
            "duration = \"4s\"\nwarmup = \"2s\"\n[workers]\ncount = {workers}\n\
             [qos]\nrate = \"100Mbit/s\"\ndefault = \"a\"\n[qos.class.a]\n\
             rate = \"1Mbit/s\"\nceil = \"2Mbit/s\"\nqueue = \"fifo\"\n\
             [source.a]\nclass = \"a\"\nflows = {flows}\npacket = {packet}\ngreedy = {{}}\n"
        );
        let file = place.write("s.toml", &text);
        let loaded = scenario::load(&file, &[]).expect("good");
        let outcome = scenario::run(&loaded.scenario, |_| ()).expect("run");
        let class = &outcome.classes[0];
        assert_eq!(class.dropped_overload, 0, "{flows} flows: {class:?}");
        assert!((class.offered_bps / 2e6 - 1.0).abs() < 0.05, "{flows} flows: {class:?}");
        // What the class holds, in all workers together.
        let waits_us = 65_536.0 * 8.0 / 2.0;
        let p50 = class.delay.expect("sent").p50_us;
        assert!((p50 / waits_us - 1.0).abs() < 0.05, "{p50} us, not {waits_us}");
    }
}

/// Where a worker has fewer frames than they would like.
#[test]
fn greedy_sources_do_not_push_each_other_out() {
    let sources = SOURCES.replace("greedy", "packet = 100\ngreedy");
    let file = format!("{TREE}[workers]\nframes = 64\n{sources}");
    let place = Place::new();
    let loaded = scenario::load(&place.write("s.toml", &file), &[]).expect("good");
    let outcome = scenario::run(&loaded.scenario, |_| ()).expect("run");
    for (class, share) in outcome.classes.iter().zip([0.375, 0.625]) {
        assert_eq!(class.dropped_overload, 0, "{class:?}");
        assert!((class.share - share).abs() < 0.005, "{class:?}");
    }
}

#[test]
fn more_than_the_port_may_be_sent_and_nothing_be_expected() {
    let place = Place::new();
    let run = |sent: &str, expected: &str| {
        let text = format!(
            "{TREE}[source.a]\nclass = \"a\"\nconstant = {{ rate = \"{sent}\" }}\n\
             [expect.b]\nrate = \"{expected}\"\n"
        );
        let file = place.write("s.toml", &text);
        let loaded = scenario::load(&file, &[]).map_err(|faults| faults.to_string())?;
        Ok(scenario::run(&loaded.scenario, |_| ()).expect("run"))
    };
    for expected in ["0%", "0Mbit/s", "0.0 %"] {
        let outcome = run("250%", expected).unwrap_or_else(|e: String| panic!("{e}"));
        assert!(outcome.is_as_expected(), "{outcome:?}");
        assert!((outcome.classes[0].offered_bps / 200e6 - 1.0).abs() < 0.01, "{outcome:?}");
    }
    assert!(!run("250%", "1%").expect("good").is_as_expected());
    for (sent, expected, told) in [
        ("0%", "0%", "`0%` is not a share above 0% and up to 10000%"),
        ("10001%", "0%", "`10001%` is not a share above 0% and up to 10000%"),
        ("1%", "0parsec", "is not a rate"),
        ("1%", "101%", "`101%` is not a share above 0% and up to 100%"),
    ] {
        let got = run(sent, expected).expect_err("refused");
        assert!(got.contains(told), "{got}");
    }
}

#[test]
fn what_of_a_configuration_is_not_simulated_is_told() {
    let place = Place::new();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/example-llm-edge.toml");
    let mut text = std::fs::read_to_string(config).expect("an example");
    text += "[limit.each]\nconnections = \"100/s\"\n\
             [meter.some]\nclasses = [\"interactive\"]\nrate = \"46Mbit/s\"\nburst = 2048\n";
    place.write("edge.toml", &text);
    for (class, names) in [("interactive", "limit.each, meter.some"), ("bulk", "limit.each")] {
        let text = format!(
            "config = \"edge.toml\"\nport = \"wan\"\nduration = \"10ms\"\n\
             [source.a]\nclass = \"{class}\"\nconstant = {{ rate = \"10%\" }}\n"
        );
        let file = place.write("s.toml", &text);
        let told = self::text(&tidegate(&file, &[]).stdout);
        let line = format!("\nnot simulated: {names}; what sources send is what those let pass\n");
        assert!(told.contains(&line), "{told}");
        let json = self::text(&tidegate(&file, &["--json"]).stdout);
        let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        let list = json["not_simulated"].as_array().expect("a list");
        assert_eq!(list.len(), names.split(", ").count(), "{json}");
    }
}
