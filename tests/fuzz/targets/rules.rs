//! Any text as rules, and flows that they decide about: what all rules say together is what the
//! first of them says that says anything alone.

use std::fmt::Write;
use std::path::Path;

use tidegate::base::Addr;
use tidegate::config::load_text;
use tidegate::inspect::AlpnList;
use tidegate::inspect::fields::{Fields, Sink};
use tidegate::inspect::inspector::Request;
use tidegate::packet::{ClassId, FlowKey};
use tidegate::policy::spec::RuleSpec;
use tidegate::policy::{Decision, Facts, Rules};

/// Rules that are also compiled one by one.
const RULES_MAX: usize = 24;
const FLOWS_MAX: usize = 8;
/// What stands before the text.
const HEAD: &str = "pipeline = \"tap\"\n[port.a]\ninterface = \"a0\"\n[transit]\n\
                    prefixes = [\"0.0.0.0/0\", \"::/0\"]\n";
/// 1970, and a Wednesday in the morning and in the evening (UTC).
const TIMES: [i64; 3] = [0, 1_768_378_000, 1_768_420_000];

/// Input: the text of `[[rule]]` and `[catalogue]`, and behind a line of `---` flows: a line each,
/// of words that say what is known of it.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (rules, flows) = text.split_once("\n---\n").unwrap_or((text, ""));
    // The pipeline is ours.
    let Ok(config) = load_text(Path::new("fuzzed/tidegate.toml"), &format!("{HEAD}{rules}")) else {
        return;
    };
    let compile = |specs: &[RuleSpec]| {
        Rules::compile(specs).with_catalogue(config.catalogue.clone(), &config.class_names)
    };
    let all = compile(&config.rules);
    let single: Vec<Rules> = config
        .rules
        .iter()
        .take(RULES_MAX)
        .map(|spec| compile(std::slice::from_ref(spec)))
        .collect();
    for line in flows.lines().take(FLOWS_MAX) {
        let flow = Flow::parse(line);
        for time in TIMES {
            all.set_time(time);
            single.iter().for_each(|rules| rules.set_time(time));
            flow.check(&all, &single, &config.rules);
        }
    }
    assert_eq!(all.len(), config.rules.len());
    assert!(config.rules.iter().all(|rule| !rule.name.is_empty()));
}

/// What is known of a flow, as `key=value` words.
#[derive(Default)]
struct Flow<'a> {
    sni: Option<&'a str>,
    alpn: Vec<u8>,
    ja4: Option<&'a str>,
    method: Option<&'a str>,
    authority: Option<&'a str>,
    path: Option<&'a str>,
    fields: Vec<(&'a str, &'a str)>,
    key: FlowKey,
    dscp: u8,
    bytes: u64,
}

impl<'a> Flow<'a> {
    fn parse(line: &'a str) -> Flow<'a> {
        let mut flow = Flow::default();
        flow.key.proto = 6;
        for (key, value) in line.split(' ').filter_map(|word| word.split_once('=')) {
            match key {
                "sni" => flow.sni = Some(value),
                "alpn" => {
                    let value = &value.as_bytes()[..value.len().min(20)];
                    flow.alpn.push(value.len() as u8);
                    flow.alpn.extend(value);
                }
                "ja4" => flow.ja4 = Some(value),
                "method" => flow.method = Some(value),
                "authority" => flow.authority = Some(value),
                "path" => flow.path = Some(value),
                "src" => flow.key.src = value.parse().unwrap_or(Addr::UNSPECIFIED),
                "dst" => flow.key.dst = value.parse().unwrap_or(Addr::UNSPECIFIED),
                "port" => flow.key.dport = value.parse().unwrap_or_default(),
                "dscp" => flow.dscp = value.parse().unwrap_or_default(),
                "bytes" => flow.bytes = value.parse().unwrap_or_default(),
                name => flow.fields.push((name, value)),
            }
        }
        flow
    }

    fn decide(&self, rules: &Rules, bytes: u64) -> Decision {
        let wanted = rules.wanted();
        let mut fields = Fields::new(wanted, 64);
        for (name, value) in &self.fields {
            fields.begin(wanted.id(name.as_bytes()));
            fields.value(value.as_bytes());
            fields.end();
        }
        let request = self.method.map(|method| Request {
            method: method.as_bytes(),
            authority: self.authority.map(str::as_bytes),
            path: self.path.map(str::as_bytes),
            fields: Some(&fields),
        });
        let facts = Facts {
            bytes,
            sni: self.sni.map(str::as_bytes),
            alpn: AlpnList::from_wire(&self.alpn),
            ja4: self.ja4.map(str::as_bytes),
            request,
            ..Facts::of(&self.key, self.dscp)
        };
        let decision = rules.decide(&facts);
        for (size, step) in rules.steps(&facts).iter() {
            assert!(size >= bytes, "a step that is behind");
            assert_eq!(step, rules.decide(&Facts { bytes: size + 1, ..facts }));
        }
        decision
    }

    fn check(&self, all: &Rules, single: &[Rules], specs: &[RuleSpec]) {
        let decision = self.decide(all, self.bytes);
        // What was too long to be read is refused, whatever a rule by itself would say.
        if decision.class == ClassId::TOO_LONG {
            return;
        }
        let first = single.iter().position(|rules| self.decide(rules, self.bytes).rule.is_some());
        match first {
            Some(first) => {
                assert_eq!(decision.rule, Some(first as u16));
                let spec = &specs[first];
                assert_eq!((decision.pool, decision.mark), (spec.pool, spec.mark));
                assert!(spec.class == ClassId::UNSET || spec.class == decision.class);
            }
            None => assert!(decision.rule.is_none_or(|rule| usize::from(rule) >= single.len())),
        }
    }
}

/// Rules of every kind, and flows that match them and don't.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let conditions = [
        ("sni", "sni = [\"api.openai.com\", \"*.example.com\"]"),
        ("authority", "authority = \"*.example.com\"\nmethod = \"POST\""),
        ("path", "path = [\"/v1/{what}/completions\", \"/v1/*\", \"/v2\"]"),
        ("header", "header.x-tenant = [\"a\", \"b\"]\nheader.x-any = \"*\""),
        ("grpc", "grpc = [\"inference.Service\", \"a.B/Call\"]"),
        ("known", "provider = \"openai\"\noperation = [\"chat\", \"batch\"]"),
        ("hello", "alpn = \"h2\"\nja4 = \"t13d1516h2_8daaf6152771_e5627efa2ab1\""),
        ("addresses", "client = \"10.0.0.0/8\"\nserver = \"2001:db8::/32\""),
        ("numbers", "vip = \"192.0.2.1\"\nport = [80, 443]\ndscp = [\"ef\", 0]"),
        ("size", "bytes_over = \"10KB\""),
        (
            "time",
            "time = { zone = \"Europe/Berlin\", days = \"mon-fri\", hours = \"08:00-18:00\" }",
        ),
    ];
    let actions = ["class = \"chat\"", "drop = true", "reset = true", "set_dscp = \"af11\""];
    let mut whole = String::new();
    let mut seeds = Vec::new();
    for (i, (name, condition)) in conditions.iter().enumerate() {
        let action = actions[if i < 4 { i } else { 0 }];
        let rule = format!("[[rule]]\n{condition}\n{action}\n");
        seeds.push((name.to_string(), format!("{rule}---\n{FLOWS}").into_bytes()));
        let _ = write!(whole, "[[rule]]\n{condition}\nclass = \"c{i}\"\n");
    }
    whole += "[catalogue.provider.mine]\nhost = [\"llm.example\"]\napi = [\"openai\"]\n";
    seeds.push(("all".into(), format!("{whole}---\n{FLOWS}").into_bytes()));
    seeds
}

const FLOWS: &str = "sni=API.OpenAI.com. alpn=h2 alpn=http/1.1 src=10.1.2.3 port=443\n\
    method=POST authority=a.example.com:80 path=/v1/chat/completions?x x-tenant=b x-any= bytes=10001\n\
    method=POST path=/a.B/Call content-type=application/grpc authority=b dscp=46 dst=192.0.2.1\n\
    ja4=t13d1516h2_8daaf6152771_e5627efa2ab1 alpn=h2 dst=2001:db8::1 src=10.0.0.1\n\
    method=GET path=/v2 authority=llm.example dst=192.0.2.1 port=80 dscp=0 bytes=99999999\n";
