//! `[[rule]]`: what can be read, but can never matter.

use std::collections::HashMap;

use toml::Spanned;

use super::Build;
use crate::config::file::FileRule;
use crate::packet::ClassId;
use crate::policy::spec::{HeaderPattern, NamePattern, RuleSpec};

/// Warns of conditions that no flow meets, and of what they are easily mistaken for.
pub fn check_sense(b: &mut Build<'_>, table: &Spanned<FileRule>, spec: &RuleSpec) {
    let r = table.get_ref();
    if let (Some(hello), Some(request)) = (of_hello(spec), of_request(spec)) {
        let what = format!(
            "never applies: `{hello}` is what a ClientHello says, `{request}` what a request in \
             the clear does, and rules see one of them at a time"
        );
        b.warning(&table.span(), what);
    }
    if let Some(pool) = r.pool.as_ref().filter(|_| spec.bytes_over.is_some()) {
        let what = "has no effect: a flow of more than `bytes_over` has long had its backend";
        b.warning(&pool.span(), what);
    }
    if let Some(given) = &r.alpn {
        let lower = |name: &&String| COMMON_PROTOCOLS.contains(&&name.to_ascii_lowercase()[..]);
        for name in spec.alpn.iter().filter(lower).filter(|n| **n != n.to_ascii_lowercase()) {
            let known = name.to_ascii_lowercase();
            let what = format!("protocols are told apart by case: did you mean `{known}`?");
            b.warning(&given.span(), what);
        }
    }
    for (name, values) in r.header.iter().flat_map(|header| &header.get_ref().0) {
        for value in &values.get_ref().0 {
            if let HeaderPattern::Exact(text) = &value.0
                && text.contains('*')
            {
                let what = format!(
                    "the `*` of `{text}` stands for itself: only \"*\" alone is any value of `{}`",
                    name.get_ref()
                );
                b.warning(&values.span(), what);
            }
        }
    }
}

const COMMON_PROTOCOLS: [&str; 5] = ["h2", "h3", "http/1.1", "http/1.0", "imap"];

/// The first condition that only a ClientHello can meet.
fn of_hello(spec: &RuleSpec) -> Option<&'static str> {
    let given = [
        ("sni", !spec.sni.is_empty()),
        ("alpn", !spec.alpn.is_empty()),
        ("ja4", !spec.ja4.is_empty()),
    ];
    given.into_iter().find(|(_, given)| *given).map(|(key, _)| key)
}

/// The first condition that only a request can meet. What is asked for is in its path.
fn of_request(spec: &RuleSpec) -> Option<&'static str> {
    let given = [
        ("authority", !spec.authority.is_empty()),
        ("method", !spec.method.is_empty()),
        ("path", !spec.path.is_empty()),
        ("header", !spec.header.is_empty()),
        ("grpc", !spec.grpc.is_empty()),
        ("operation", !spec.operation.is_empty()),
    ];
    given.into_iter().find(|(_, given)| *given).map(|(key, _)| key)
}

/// Names that earlier rules take, by all their other conditions.
#[derive(Default)]
pub struct Earlier {
    taken: HashMap<String, Taken>,
}

/// Names, and the rule that takes each.
#[derive(Default)]
struct Taken {
    exact: HashMap<String, String>,
    /// `*.suffix`.
    suffixes: HashMap<String, String>,
}

impl Earlier {
    /// Warns of a rule all whose names earlier ones with the same other conditions take.
    pub fn check(&mut self, b: &mut Build<'_>, table: &Spanned<FileRule>, spec: &RuleSpec) {
        let names = match (&spec.sni[..], &spec.authority[..]) {
            (names, []) | ([], names) if !names.is_empty() => names,
            _ => return,
        };
        if b.faulty.any_in(&table.span()) {
            return;
        }
        let taken = self.taken.entry(others(spec)).or_default();
        let by: Option<Vec<&String>> = names.iter().map(|name| taken.by(name)).collect();
        if let Some(rule) = by.and_then(|rules| rules.first().copied()) {
            let what = format!("never applies: rule `{rule}` before it takes all of it");
            b.warning(&table.span(), what);
        }
        for name in names {
            let (list, name) = match name {
                NamePattern::Exact(name) => (&mut taken.exact, name),
                NamePattern::Suffix(suffix) => (&mut taken.suffixes, suffix),
            };
            list.entry(name.clone()).or_insert_with(|| spec.name.clone());
        }
    }
}

impl Taken {
    /// The rule that takes all that this stands for.
    fn by(&self, name: &NamePattern) -> Option<&String> {
        let (mut rest, known) = match name {
            NamePattern::Exact(name) => (&name[..], self.exact.get(name)),
            NamePattern::Suffix(suffix) => (&suffix[..], self.suffixes.get(suffix)),
        };
        let mut known = known;
        while let (None, Some((_, above))) = (known, rest.split_once('.')) {
            known = self.suffixes.get(above);
            rest = above;
        }
        known
    }
}

/// All conditions but the names, as text; those of hellos and of requests are told apart.
fn others(spec: &RuleSpec) -> String {
    let others = RuleSpec {
        name: String::new(),
        sni: Vec::new(),
        authority: Vec::new(),
        class: ClassId::UNSET,
        pool: None,
        tenant: None,
        mark: None,
        mirror: None,
        counts_requests: false,
        ..spec.clone()
    };
    format!("{} {others:?}", spec.sni.is_empty())
}
