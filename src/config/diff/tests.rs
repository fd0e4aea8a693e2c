//! Pairs of files, and what is told of them.

use proptest::prelude::*;

use super::*;

fn written(text: &str) -> Written {
    Written::new(text.parse().expect("TOML"), Table::new())
}

fn lines(old: &str, new: &str) -> Vec<String> {
    written(old).differences(&written(new)).iter().map(ToString::to_string).collect()
}

const RULES: &str = r#"
[[rule]]
client = "10.0.0.0/8"
class = "fast"
[[rule]]
name = "bulk"
path = ["/v1/batches", "/v1/files"]
class = "slow"
[[rule]]
drop = true
port = 9
"#;

const POOL: &str = r#"
[service.chat]
vip = "203.0.113.1"
pool = "gpu"
[pool.gpu]
[[pool.gpu.backend]]
address = "10.0.0.1"
port = 8443
[[pool.gpu.backend]]
address = "fd00::2"
port = 8443
weight = 3
"#;

#[test]
fn each_difference_is_told_by_its_place() {
    let bulk = "[[rule]]\nname = \"bulk\"\npath = [\"/v1/batches\", \"/v1/files\"]\n\
                class = \"slow\"\n";
    let cases: &[(&str, &str, &str, &[&str])] = &[
        (RULES, "", "", &[]),
        (RULES, "\"fast\"", "\"slow\"", &[r#"~ rule[1].class: "fast" -> "slow""#]),
        (RULES, "\"/v1/batches\", ", "", &[r#"- rule[2 bulk].path: "/v1/batches""#]),
        (
            RULES,
            "\"/v1/batches\", ",
            "\"/v1/models\", \"/v1/batches\", ",
            &[r#"+ rule[2 bulk].path: "/v1/models""#],
        ),
        (RULES, "\"bulk\"", "\"batch\"", &[r#"~ rule[2 batch].name: "bulk" -> "batch""#]),
        (
            RULES,
            bulk,
            "",
            &[concat!(
                r#"- rule[2 bulk]: { class = "slow", name = "bulk", "#,
                r#"path = ["/v1/batches", "/v1/files"] }"#
            )],
        ),
        (
            RULES,
            bulk,
            &[bulk, "[[rule]]\nreset = true\n[rule.header]\nAuthorization = \"x\"\nx = \"y\"\n"]
                .concat(),
            &[
                "+ rule[3]: { reset = true }",
                r#"+ rule[3].header: { Authorization = "***", x = "y" }"#,
            ],
        ),
        (
            POOL,
            "weight = 3",
            "weight = 4",
            &["~ pool.gpu.backend[2 [fd00::2]:8443].weight: 3 -> 4"],
        ),
        (POOL, "weight = 3\n", "", &["- pool.gpu.backend[2 [fd00::2]:8443].weight: 3"]),
        (
            POOL,
            "\"gpu\"",
            "{ gpu = 95, next = 5 }",
            &[r#"~ service.chat.pool: "gpu" -> { gpu = 95, next = 5 }"#],
        ),
        (
            POOL,
            "[pool.gpu]\n",
            "[pool.gpu]\nhealth = { type = \"http\" }\n",
            &[r#"+ pool.gpu.health: { type = "http" }"#],
        ),
        (
            POOL,
            "[service.chat]",
            "[service.\"a.b\"]",
            &[
                r#"+ service."a.b": { pool = "gpu", vip = "203.0.113.1" }"#,
                r#"- service.chat: { pool = "gpu", vip = "203.0.113.1" }"#,
            ],
        ),
    ];
    for (text, from, to, said) in cases {
        assert!(text.contains(from), "{from}");
        assert_eq!(lines(text, &text.replacen(from, to, 1)), *said, "{from} -> {to}");
    }
}

#[test]
fn a_whole_section_is_told_part_by_part() {
    assert_eq!(
        lines("", POOL),
        [
            r#"+ pool.gpu.backend[1 10.0.0.1:8443]: { address = "10.0.0.1", port = 8443 }"#,
            concat!(
                "+ pool.gpu.backend[2 [fd00::2]:8443]: ",
                r#"{ address = "fd00::2", port = 8443, weight = 3 }"#
            ),
            r#"+ service.chat: { pool = "gpu", vip = "203.0.113.1" }"#,
        ]
    );
    assert!(lines(POOL, "").iter().all(|line| line.starts_with("- ")));
    assert_eq!(lines("[pool.a]\n", "[pool.b]\n"), ["- pool.a: {}", "+ pool.b: {}"]);
}

/// As of a pool whose services have the port.
#[test]
fn a_backend_without_a_port_is_known_by_its_address() {
    let pool = |more: &str| format!("[[pool.a.backend]]\naddress = \"10.0.0.2\"\n{more}");
    assert_eq!(
        lines(&pool(""), &pool("weight = 3\nzone = \"x\"\n")),
        ["+ pool.a.backend[1 10.0.0.2].weight: 3", "+ pool.a.backend[1 10.0.0.2].zone: \"x\""]
    );
}

#[test]
fn what_changes_places_is_moved() {
    let rule = |name: &str, dscp: u32| format!("[[rule]]\nname = \"{name}\"\nset_dscp = {dscp}\n");
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| rule(name, 1));
    let old = [&*a, &b, &c, &d].concat();
    assert_eq!(lines(&old, &[&*d, &a, &b, &c].concat()), ["> rule[1 d]: place 4 -> 1"]);
    assert_eq!(
        lines(&old, &[&*a, &c, &rule("b", 2)].concat()),
        [
            "> rule[3 b]: place 2 -> 3",
            "~ rule[3 b].set_dscp: 1 -> 2",
            r#"- rule[4 d]: { name = "d", set_dscp = 1 }"#,
        ]
    );
    let twice = [&*a, &a].concat();
    assert_eq!(lines(&twice, &a), [r#"- rule[2 a]: { name = "a", set_dscp = 1 }"#]);
}

#[test]
fn values_of_credentials_are_not_told() {
    let rule = |key: &str| format!("[[rule]]\ndrop = true\nheader = {{ x-api-key = \"{key}\" }}\n");
    assert_eq!(
        lines(&rule("old"), &rule("new")),
        [r#"~ rule[1].header.x-api-key: "***" -> "***""#]
    );
    let many = rule("one").replace("\"one\"", "[\"one\", \"two\"]");
    for all in [lines(&many, &many.replace("two", "three")), lines("", &many), lines(&many, "")] {
        assert!(!all.is_empty(), "told");
        assert!(
            all.iter().all(|l| !["one", "two", "three"].iter().any(|key| l.contains(key))),
            "{all:?}"
        );
    }
}

#[test]
fn pipelines_differ_by_their_stages() {
    let of = |description: &str, stages: &[&str]| {
        let stages: String = stages.iter().map(|stage| format!("[[stage]]\n{stage}\n")).collect();
        let text = format!("description = \"{description}\"\n{stages}");
        Written::new(Table::new(), text.parse().expect("TOML"))
    };
    let old = of("first", &["inspect = {}", "route = {}"]);
    let new = of("second", &["inspect = { flows_max = 9 }", "meter = {}", "route = {}"]);
    let all: Vec<_> = old.differences(&new).iter().map(ToString::to_string).collect();
    assert_eq!(
        all,
        ["+ pipeline.stage[1 inspect].inspect.flows_max: 9", "+ pipeline.stage[2 meter].meter: {}",]
    );
    assert_eq!(old, new, "what they mean is for others to say");
}

proptest! {
    /// Nothing that differs is left out, and nothing is told of that does not.
    #[test]
    fn lists_differ_where_something_is_told(
        old in prop::collection::vec((0..5u8, 0..3u8), 0..9),
        new in prop::collection::vec((0..5u8, 0..3u8), 0..9),
    ) {
        let list = |entries: &[(u8, u8)]| {
            let entry = |(name, dscp): &(u8, u8)| match name {
                0 => format!("[[rule]]\nset_dscp = {dscp}\n"),
                name => format!("[[rule]]\nname = \"{name}\"\nset_dscp = {dscp}\n"),
            };
            written(&entries.iter().map(entry).collect::<String>())
        };
        let told = list(&old).differences(&list(&new));
        prop_assert_eq!(told.is_empty(), old == new, "{:?}", told);
        let whole = || told.iter().filter(|d| d.at.ends_with(']') || d.at == "rule");
        let count = |change| whole().filter(|d| d.change == change).count();
        // Of a rule that has become another, both are told of or neither.
        let (added, removed) = (count(Change::Added), count(Change::Removed));
        prop_assert_eq!(old.len() + added, new.len() + removed, "{:?}", told);
    }
}
