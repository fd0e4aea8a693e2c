//! Templates: one table of a file that stands for many, one for each tenant of a group.
//!
//! A class, a meter, a limit or a rule in which `{GROUP}` stands is made once for each name of that
//! group, before the file is read into types. All that were made have the template's place, so that
//! faults are told there.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue, ValueDeserializer};

use super::file::FileTenants;
use super::tenants::{Group, Tenant};
use crate::base::Prefix;
use crate::base::diag::{Diagnostics, Source};
use crate::base::tomlfile::Named;

/// Tables that the templates of a file make at most: as many as there may be classes and rules.
const MADE_MAX: usize = 130_000;

/// Puts what templates make in their place.
pub fn expand(root: &mut DeTable<'_>, source: &Source, out: &mut Diagnostics) {
    let Some(tenants) = root.get("tenants") else { return };
    let read = Named::<FileTenants>::deserialize(ValueDeserializer::from(tenants.clone()));
    // Faults of groups are told when the file is read; their templates then make nothing.
    let tables = read.map(|read| read.0).unwrap_or_default();
    let mut groups = BTreeMap::new();
    if let DeValue::Table(named) = tenants.get_ref() {
        groups.extend(named.keys().map(|name| (name.get_ref().to_string(), Vec::new())));
    }
    groups.extend(tables.iter().map(|(name, table)| {
        (name.get_ref().clone(), Group::new(table).ok().map(|g| g.tenants).unwrap_or_default())
    }));
    let mut maker = Maker { groups, made: 0, source, out };
    if let Some(ports) = root.get_mut("qos").and_then(|v| table_of(v.get_mut())) {
        for (_, port) in ports.iter_mut() {
            let classes = table_of(port.get_mut()).and_then(|port| port.get_mut("class"));
            if let Some(classes) = classes.and_then(|v| table_of(v.get_mut())) {
                maker.named(classes, None);
            }
        }
    }
    for kind in ["meter", "limit"] {
        if let Some(tables) = root.get_mut(kind).and_then(|v| table_of(v.get_mut())) {
            maker.named(tables, (kind == "limit").then_some("clients"));
        }
    }
    if let Some(DeValue::Array(rules)) = root.get_mut("rule").map(Spanned::get_mut) {
        maker.rules(rules);
    }
}

struct Maker<'a> {
    groups: BTreeMap<String, Vec<Tenant>>,
    /// Tables that were made.
    made: usize,
    source: &'a Source,
    out: &'a mut Diagnostics,
}

impl Maker<'_> {
    /// Tables whose keys are names. Where `clients` is a key of theirs, those that lack it get the
    /// tenant's.
    fn named(&mut self, tables: &mut DeTable<'_>, clients: Option<&'static str>) {
        let mut made = DeTable::new();
        for (key, value) in std::mem::take(tables) {
            let Some(group) = self.group_in(key.get_ref()) else {
                made.insert(key, value);
                continue;
            };
            let tenants = self.groups.get(&group).cloned().unwrap_or_default();
            if !self.has_room(&key.span(), tenants.len()) {
                continue;
            }
            for tenant in &tenants {
                let name: Cow<'_, str> = Cow::Owned(filled(key.get_ref(), &group, &tenant.name));
                let mut value = value.clone();
                fill(value.get_mut(), &group, &tenant.name);
                if let Some(key) = clients
                    && !tenant.clients.is_empty()
                    && !has_key(value.get_ref(), key)
                {
                    add_clients(&mut value, key, tenant);
                }
                if made.contains_key(name.as_ref()) {
                    let what = format!("`{name}` is there already");
                    self.out.error(self.source, &key.span(), what);
                    continue;
                }
                made.insert(Spanned::new(key.span(), name), value);
            }
        }
        *tables = made;
    }

    fn rules(&mut self, rules: &mut DeArray<'_>) {
        let mut made = Vec::with_capacity(rules.len());
        for (i, rule) in rules.iter().cloned().enumerate() {
            let group = self.groups.keys().find(|group| mentions(rule.get_ref(), group)).cloned();
            let Some(group) = group else {
                made.push(named_rule(rule, &format!("rule-{}", i + 1)));
                continue;
            };
            let tenants = self.groups.get(&group).cloned().unwrap_or_default();
            if !self.has_room(&rule.span(), tenants.len()) {
                continue;
            }
            let has_clients = has_key(rule.get_ref(), "client");
            let lacks = |tenant: &Tenant| tenant.clients.is_empty();
            if !is_told_apart(rule.get_ref(), &group) && (has_clients || tenants.iter().any(lacks))
            {
                let what = format!(
                    "matches the same flows for each of `{group}`: give the group `clients` and \
                     the rule none, or the rule a condition with `{{{group}}}`"
                );
                self.out.error(self.source, &rule.span(), what);
            }
            for tenant in &tenants {
                let mut rule = rule.clone();
                fill(rule.get_mut(), &group, &tenant.name);
                if !has_clients && !tenant.clients.is_empty() {
                    add_clients(&mut rule, "client", tenant);
                }
                made.push(named_rule(rule, &format!("rule-{}.{}", i + 1, tenant.name)));
            }
        }
        *rules = made.into_iter().collect();
    }

    fn group_in(&self, text: &str) -> Option<String> {
        self.groups.keys().find(|group| text.contains(&placeholder(group))).cloned()
    }

    /// Whether so many more may be made.
    fn has_room(&mut self, at: &Range<usize>, count: usize) -> bool {
        self.made += count;
        if self.made > MADE_MAX {
            let what = format!("with these {count} templates make more than {MADE_MAX}");
            self.out.error(self.source, at, what);
        }
        self.made <= MADE_MAX
    }
}

/// What a rule does, as against what it asks for.
const ACTIONS: [&str; 5] = ["name", "class", "tenant", "pool", "limit"];

/// Whether some condition of a rule has the tenant's name in it.
fn is_told_apart(rule: &DeValue<'_>, group: &str) -> bool {
    let DeValue::Table(table) = rule else { return false };
    let is_condition = |key: &str| !ACTIONS.contains(&key);
    table.iter().any(|(key, v)| is_condition(key.get_ref()) && mentions(v.get_ref(), group))
}

fn has_key(value: &DeValue<'_>, key: &str) -> bool {
    matches!(value, DeValue::Table(table) if table.contains_key(key))
}

fn table_of<'v, 'i>(value: &'v mut DeValue<'i>) -> Option<&'v mut DeTable<'i>> {
    if let DeValue::Table(table) = value { Some(table) } else { None }
}

fn placeholder(group: &str) -> String {
    format!("{{{group}}}")
}

fn filled(text: &str, group: &str, name: &str) -> String {
    text.replace(&placeholder(group), name)
}

/// Whether `{GROUP}` stands in any string of a value.
fn mentions(value: &DeValue<'_>, group: &str) -> bool {
    match value {
        DeValue::String(text) => text.contains(&placeholder(group)),
        DeValue::Array(list) => list.iter().any(|v| mentions(v.get_ref(), group)),
        DeValue::Table(table) => table.iter().any(|(_, v)| mentions(v.get_ref(), group)),
        _ => false,
    }
}

/// Puts a name in the place of `{GROUP}` in all strings of a value.
fn fill(value: &mut DeValue<'_>, group: &str, name: &str) {
    match value {
        DeValue::String(text) => *text = Cow::Owned(filled(text, group, name)),
        DeValue::Array(list) => list.iter_mut().for_each(|v| fill(v.get_mut(), group, name)),
        DeValue::Table(table) => table.iter_mut().for_each(|(_, v)| fill(v.get_mut(), group, name)),
        _ => {}
    }
}

/// Gives a rule a name if it has none: numbers of rules are not to change with the number of
/// tenants.
fn named_rule<'i>(mut rule: Spanned<DeValue<'i>>, name: &str) -> Spanned<DeValue<'i>> {
    let at = rule.span();
    if let Some(table) = table_of(rule.get_mut())
        && !table.contains_key("name")
    {
        let value = DeValue::String(Cow::Owned(name.to_string()));
        table.insert(Spanned::new(at.clone(), Cow::Borrowed("name")), Spanned::new(at, value));
    }
    rule
}

/// Says that clients are the tenant's.
fn add_clients(made: &mut Spanned<DeValue<'_>>, key: &'static str, tenant: &Tenant) {
    let at = made.span();
    let Some(table) = table_of(made.get_mut()) else { return };
    let text = |prefix: &Prefix| DeValue::String(Cow::Owned(prefix.to_string()));
    let list = tenant.clients.iter().map(|prefix| Spanned::new(at.clone(), text(prefix))).collect();
    table.insert(
        Spanned::new(at.clone(), Cow::Borrowed(key)),
        Spanned::new(at, DeValue::Array(list)),
    );
}
