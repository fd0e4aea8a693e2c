//! `[tenants.GROUP]`: what templates are filled with.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use toml::Spanned;

use super::Build;
use crate::base::Prefix;
use crate::config::file::{FileConfig, FileTenants};
use crate::config::tenants::Group;

/// Prefixes within others' that are told one by one.
const OVERLAPS_TOLD_MAX: usize = 8;

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

/// Warns of clients that are an earlier tenant's, too: of rules the first that matches counts. Of
/// many the first few are told, and how many there are.
fn overlaps(b: &mut Build<'_>, table: &Spanned<FileTenants>, group: &Group) {
    let mut known: HashMap<Prefix, &str> = HashMap::new();
    let mut lengths = BTreeSet::new();
    let given = table.get_ref().clients.0.iter();
    let given: HashMap<&str, Range<usize>> =
        given.map(|(name, prefixes)| (name.get_ref().as_str(), prefixes.span())).collect();
    let mut count = 0;
    for tenant in &group.tenants {
        let name = tenant.name.as_str();
        for prefix in &tenant.clients {
            let mut above = lengths.iter().filter(|len| **len <= prefix.len());
            let Some((whole, earlier)) = above.find_map(|&len| {
                let whole = Prefix::new(prefix.addr(), len).ok()?;
                known.get(&whole).map(|name| (whole, *name))
            }) else {
                continue;
            };
            count += 1;
            if count > OVERLAPS_TOLD_MAX {
                continue;
            }
            let within = &table.get_ref().clients_within;
            let place = match (given.get(name), within) {
                (Some(prefixes), _) => prefixes.clone(),
                (None, Some(whole)) => whole.span(),
                (None, None) => table.span(),
            };
            let what = format!(
                "{prefix} of `{name}` lies within {whole} of `{earlier}`, which comes before it: \
                 rules made for `{name}` never see it"
            );
            b.warning(&place, what);
        }
        for prefix in &tenant.clients {
            known.entry(*prefix).or_insert(name);
            lengths.insert(prefix.len());
        }
    }
    if let Some(more @ 1..) = count.checked_sub(OVERLAPS_TOLD_MAX) {
        let what = format!("{more} more prefixes of the group lie within earlier tenants'");
        b.warning(&table.span(), what);
    }
}
