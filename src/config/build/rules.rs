//! `[[rule]]`, all of them.

use std::collections::{HashMap, HashSet};

use toml::Spanned;

use super::classes::{CLASSES_MAX, Classes};
use super::mirror::Targets;
use super::rule::{conditions, ending};
use super::rule_sense::{Earlier, check_sense};
use super::{Build, id16};
use crate::base::diag::advice;
use crate::base::tomlfile::ROOT;
use crate::config::file::{FileConfig, FileRule};
use crate::nic::spec::PortSpec;
use crate::packet::ClassId;
use crate::policy::catalogue::Catalogue;
use crate::policy::spec::{
    HEADERS_MAX, Mirror, OUTCOMES_MAX, RuleSpec, SHAPES_MAX, SIZES_MAX, TIMES_MAX, header_names,
    shapes,
};

const RULES_MAX: usize = 65_000;
const TENANTS_MAX: usize = 65_000;

/// Names that rules give.
pub struct Names {
    /// With those added that only rules name.
    pub classes: Classes,
    pub tenants: Vec<String>,
}

/// All rules.
pub fn rules(
    b: &mut Build<'_>,
    file: &FileConfig,
    mut classes: Classes,
    (catalogue, ports): (&Catalogue, &[PortSpec]),
) -> (Vec<RuleSpec>, Names) {
    if let Some(one_too_many) = file.rule.get(RULES_MAX) {
        b.error(&one_too_many.span(), format!("there are {RULES_MAX} rules at most"));
    }
    // Without a class tree a class is only a name to count under, so rules may make them up.
    let free_names = file.qos.0.is_empty() && !b.faulty.contains(&ROOT, "qos");
    let copies = Targets::new(b, file, ports);
    let mut names: HashMap<String, u32> = HashMap::new();
    let mut tenants = Tenants::default();
    let mut catch_all: Option<String> = None;
    let mut earlier = Earlier::default();
    let mut specs: Vec<RuleSpec> = Vec::with_capacity(file.rule.len());
    for (i, table) in file.rule.iter().enumerate() {
        let r = table.get_ref();
        let mut spec = conditions(b, table, catalogue);
        spec.name = name(b, i, r);
        spec.class = match ending(b, r) {
            Some(ending) => ending,
            None => class(b, table, &mut classes, free_names),
        };
        spec.tenant = r.tenant.as_ref().map(|tenant| tenants.number(b, tenant));
        spec.mirror = copies.mirror(b, r);
        spec.mark = r.set_dscp.as_ref().map(|dscp| dscp.get_ref().0.0);
        if let Some(line) = names.insert(spec.name.clone(), b.line(&table.span())) {
            let place = r.name.as_ref().map_or(table.span(), Spanned::span);
            b.error(&place, format!("the name `{}` is taken (line {line})", spec.name));
        }
        match &catch_all {
            Some(first) => {
                let what = format!("never applies: rule `{first}` before it takes every flow");
                b.warning(&table.span(), what);
            }
            None if spec.is_catch_all() && is_whole(b, table) => {
                catch_all = Some(spec.name.clone());
            }
            None => {
                check_sense(b, table, &spec);
                earlier.check(b, table, &spec);
            }
        }
        if spec.class.is_refused() && !spec.reads_content() {
            check_order(b, table, &specs);
        }
        specs.push(spec);
    }
    check_limits(b, file, &specs);
    (specs, Names { classes, tenants: tenants.names })
}

#[derive(Default)]
struct Tenants {
    names: Vec<String>,
    numbers: HashMap<String, u16>,
}

impl Tenants {
    fn number(&mut self, b: &mut Build<'_>, name: &Spanned<String>) -> u16 {
        if let Some(&known) = self.numbers.get(name.get_ref()) {
            return known;
        }
        b.name(name);
        if self.names.len() >= TENANTS_MAX {
            b.error(&name.span(), format!("there are {TENANTS_MAX} tenants at most"));
        }
        let number = id16(self.names.len());
        self.names.push(name.get_ref().clone());
        self.numbers.insert(name.get_ref().clone(), number);
        number
    }
}

fn name(b: &mut Build<'_>, i: usize, r: &FileRule) -> String {
    let Some(name) = &r.name else { return format!("rule-{}", i + 1) };
    b.name(name);
    name.get_ref().clone()
}

/// Whether all of a rule could be read.
fn is_whole(b: &Build<'_>, table: &Spanned<FileRule>) -> bool {
    let r = table.get_ref();
    !b.faulty.any_in(&table.span()) && r.time.is_none() && r.header.is_none()
}

/// A flow's first packet says nothing of its content, so what it decides can't depend on it.
fn check_order(b: &mut Build<'_>, table: &Spanned<FileRule>, before: &[RuleSpec]) {
    if let Some(later) = before.iter().find(|spec| spec.reads_content()) {
        let what = format!(
            "drops a flow's first packet, when it is not known whether rule `{}` before it \
             matches: put it before that rule, or give it a condition on content too",
            later.name
        );
        b.error(&table.span(), what);
    }
}

/// Whether rules are within a limit.
type Fits<'a> = &'a dyn Fn(&[RuleSpec]) -> bool;

/// What all rules together may be; each fault is told at the rule that is the first beyond.
fn check_limits(b: &mut Build<'_>, file: &FileConfig, specs: &[RuleSpec]) {
    let rules_until = |fits: Fits<'_>| {
        // What is counted only grows, so the first rule beyond can be searched for.
        (!fits(specs)).then(|| {
            let counts: Vec<usize> = (1..=specs.len()).collect();
            counts.partition_point(|&n| fits(&specs[..n]))
        })
    };
    let headers = |specs: &[RuleSpec]| header_names(specs).len() <= HEADERS_MAX;
    let sizes = |specs: &[RuleSpec]| {
        specs.iter().filter_map(|s| s.bytes_over).collect::<HashSet<_>>().len() <= SIZES_MAX
    };
    let outcomes = |specs: &[RuleSpec]| {
        let grown = specs.iter().filter(|s| s.bytes_over.is_some());
        // Flows that are not among the share have one of their own.
        let outcomes = grown.flat_map(|s| {
            let of = |mirror| (s.bytes_over, s.class, s.mark, mirror, s.tenant);
            let to = s.mirror.map(|mirror| mirror.to);
            let all = s.mirror.is_none_or(|mirror| mirror.share == Mirror::ALL);
            [of(to), if all { of(to) } else { of(None) }]
        });
        outcomes.collect::<HashSet<_>>().len() <= OUTCOMES_MAX
    };
    let paths = |specs: &[RuleSpec]| shapes(specs.iter().flat_map(|s| &s.path)).len() <= SHAPES_MAX;
    let times = |specs: &[RuleSpec]| {
        let mut times = Vec::new();
        for time in specs.iter().filter_map(|s| s.time.as_ref()) {
            if !times.contains(&time) {
                times.push(time);
            }
        }
        times.len() <= TIMES_MAX
    };
    let limits: [(Fits<'_>, String); 5] = [
        (&headers, format!("rules name {HEADERS_MAX} different headers at most")),
        (&sizes, format!("rules name {SIZES_MAX} different sizes in `bytes_over` at most")),
        (
            &outcomes,
            format!(
                "rules with `bytes_over` have {OUTCOMES_MAX} different results at most: size, \
                 class, tenant, code point and mirror"
            ),
        ),
        (
            &paths,
            format!(
                "paths with `{{…}}` or `*` are of {SHAPES_MAX} different shapes at most: so many \
                 segments, these of them of any value"
            ),
        ),
        (&times, format!("rules name {TIMES_MAX} different times at most")),
    ];
    for (fits, what) in limits {
        if let Some(rule) = rules_until(fits).and_then(|n| file.rule.get(n)) {
            b.error(&rule.span(), what);
        }
    }
}

/// What a rule may do with the flows that it matches.
const ACTIONS: [&str; 8] =
    ["class", "pool", "tenant", "limit", "set_dscp", "mirror", "drop", "reset"];

fn class(
    b: &mut Build<'_>,
    table: &Spanned<FileRule>,
    classes: &mut Classes,
    free_names: bool,
) -> ClassId {
    let r = table.get_ref();
    let acts = r.pool.is_some() || r.tenant.is_some() || r.limit.is_some();
    let acts = acts || r.set_dscp.is_some() || r.mirror.is_some();
    // One that could not be read is told already.
    let told = ACTIONS.iter().any(|action| b.faulty.contains(&table.span(), action));
    if r.class.is_none() && (acts || told) {
        return ClassId::UNSET;
    }
    let what = "the class of the flows that it matches";
    let Some(name) = b.need(&table.span(), "class", &r.class, what) else {
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
