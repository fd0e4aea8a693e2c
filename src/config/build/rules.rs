//! `[[rule]]`.

use std::collections::{HashMap, HashSet};

use toml::Spanned;

use super::Build;
use super::classes::{CLASSES_MAX, Classes};
use crate::base::diag::advice;
use crate::base::tomlfile::ROOT;
use crate::config::file::{FileConfig, FileRule};
use crate::packet::ClassId;
use crate::policy::spec::{NamePattern, RuleSpec};

const RULES_MAX: usize = 65_000;

/// All rules, and the classes with those added that only rules name.
pub fn rules(
    b: &mut Build<'_>,
    file: &FileConfig,
    mut classes: Classes,
) -> (Vec<RuleSpec>, Classes) {
    if let Some(one_too_many) = file.rule.get(RULES_MAX) {
        b.error(&one_too_many.span(), format!("there are {RULES_MAX} rules at most"));
    }
    // Without a class tree a class is only a name to count under, so rules may make them up.
    let free_names = file.qos.0.is_empty() && !b.faulty.contains(&ROOT, "qos");
    let mut names: HashMap<String, u32> = HashMap::new();
    let mut catch_all: Option<String> = None;
    let mut specs = Vec::with_capacity(file.rule.len());
    for (i, table) in file.rule.iter().enumerate() {
        let class = class(b, table, &mut classes, free_names);
        let spec = rule(b, i, table, class);
        if let Some(line) = names.insert(spec.name.clone(), b.line(&table.span())) {
            let place = table.get_ref().name.as_ref().map_or(table.span(), Spanned::span);
            b.error(&place, format!("the name `{}` is taken (line {line})", spec.name));
        }
        match &catch_all {
            Some(first) => {
                let what = format!("never applies: rule `{first}` before it takes every flow");
                b.warning(&table.span(), what);
            }
            None if is_catch_all(&spec) && !b.faulty.any_in(&table.span()) => {
                catch_all = Some(spec.name.clone());
            }
            None => {}
        }
        specs.push(spec);
    }
    (specs, classes)
}

fn rule(b: &mut Build<'_>, i: usize, table: &Spanned<FileRule>, class: ClassId) -> RuleSpec {
    let r = table.get_ref();
    let at = table.span();
    if let Some(name) = &r.name {
        b.name(name);
    }
    RuleSpec {
        name: r.name.as_ref().map_or_else(|| format!("rule-{}", i + 1), |n| n.get_ref().clone()),
        sni: b.list(&at, "sni", &r.sni, |s| s.0.clone()),
        alpn: b.list(&at, "alpn", &r.alpn, |a| a.0.clone()),
        vip: b.list(&at, "vip", &r.vip, |a| *a),
        client: b.list(&at, "client", &r.client, |p| *p),
        dscp: b.list(&at, "dscp", &r.dscp, |d| d.0),
        port: b.list(&at, "port", &r.port, |p| p.0),
        class,
        pool: None,
    }
}

fn is_catch_all(r: &RuleSpec) -> bool {
    let names: &[NamePattern] = &r.sni;
    names.is_empty()
        && r.alpn.is_empty()
        && r.vip.is_empty()
        && r.client.is_empty()
        && r.dscp.is_empty()
        && r.port.is_empty()
}

fn class(
    b: &mut Build<'_>,
    table: &Spanned<FileRule>,
    classes: &mut Classes,
    free_names: bool,
) -> ClassId {
    if table.get_ref().class.is_none() && table.get_ref().pool.is_some() {
        return ClassId::UNSET;
    }
    let what = "the class of the flows that it matches";
    let Some(name) = b.need(&table.span(), "class", &table.get_ref().class, what) else {
        return ClassId::UNSET;
    };
    if free_names {
        b.name(name);
        if classes.len() >= CLASSES_MAX {
            b.error(&name.span(), format!("there are {CLASSES_MAX} classes at most"));
        }
        return classes.intern(name.get_ref());
    }
    match classes.id(name.get_ref()) {
        Some(id) if classes.is_inner(id) => {
            let what = format!(
                "class `{}` has classes below it, so it carries no packets; name one of those",
                name.get_ref()
            );
            b.error(&name.span(), what);
            id
        }
        Some(id) => id,
        None => {
            let leaves: HashSet<&str> = classes.leaves().collect();
            let mut leaves: Vec<&str> = leaves.into_iter().collect();
            leaves.sort_unstable();
            let what = format!(
                "no class is named `{0}`{1}",
                name.get_ref(),
                advice(name.get_ref(), leaves)
            );
            b.error(&name.span(), what);
            ClassId::UNSET
        }
    }
}
