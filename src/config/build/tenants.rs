//! `[tenants.GROUP]`: what templates are filled with.

use std::collections::{BTreeSet, HashMap};

use toml::Spanned;

use super::Build;
use crate::base::Prefix;
use crate::config::file::{FileConfig, FileTenants};
use crate::config::tenants::Group;

/// Tells what is wrong with groups of tenants; templates were filled before.
pub fn check(b: &mut Build<'_>, file: &FileConfig) {
    for (key, table) in &file.tenants.0 {
        b.name(key);
        let names = b.need(&table.span(), "names", &table.get_ref().names, "the group's tenants");
        match Group::new(table) {
            Ok(group) => {
                let place = names.map_or(table.span(), Spanned::span);
                overlaps(b, table, &group);
                for tenant in group.tenants {
                    b.name(&Spanned::new(place.clone(), tenant.name));
                }
            }
            Err(faults) => {
                for (at, what) in &faults {
                    // Of a list in which something can't be read nothing may be left.
                    let is_list = names.is_some_and(|names| names.span() == *at);
                    if !is_list || !b.out.tells_within(b.source, at) {
                        b.error(at, what.as_str());
                    }
                }
            }
        }
    }
}

/// Warns of clients that are an earlier tenant's, too: of rules the first that matches counts.
fn overlaps(b: &mut Build<'_>, table: &Spanned<FileTenants>, group: &Group) {
    let mut known: HashMap<Prefix, &str> = HashMap::new();
    let mut lengths = BTreeSet::new();
    for tenant in &group.tenants {
        for prefix in &tenant.clients {
            let mut above = lengths.iter().filter(|len| **len <= prefix.len());
            let Some(other) = above.find_map(|&len| {
                let whole = Prefix::new(prefix.addr(), len).ok()?;
                known.get(&whole).map(|name| (whole, *name))
            }) else {
                continue;
            };
            let t = table.get_ref();
            let given = t.clients.0.iter().find(|(name, _)| *name.get_ref() == tenant.name);
            let place = match (given, &t.clients_within) {
                (Some((_, prefixes)), _) => prefixes.span(),
                (None, Some(whole)) => whole.span(),
                (None, None) => table.span(),
            };
            let (name, (whole, earlier)) = (&tenant.name, other);
            let what = format!(
                "{prefix} of `{name}` lies within {whole} of `{earlier}`, which comes before it: \
                 rules made for `{name}` never see it"
            );
            b.warning(&place, what);
        }
        for prefix in &tenant.clients {
            known.entry(*prefix).or_insert(&tenant.name);
            lengths.insert(prefix.len());
        }
    }
}
