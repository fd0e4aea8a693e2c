//! Groups of tenants: many names with what is known of each, for templates.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use toml::Spanned;

use super::file::FileTenants;
use crate::base::tomlfile::Atom;
use crate::base::{Addr, Prefix};

/// Tenants of one group at most: as many as there may be classes.
pub const NAMES_MAX: usize = 65_000;
/// Prefixes of one tenant at most.
pub const CLIENTS_MAX: usize = 64;

/// The tenants of a group, in order, each with its clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub tenants: Vec<Tenant>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    pub name: String,
    /// Where its clients are; empty: nothing is said of that.
    pub clients: Vec<Prefix>,
}

/// A fault of a group and its place.
type Fault = (Range<usize>, String);

impl Group {
    /// # Errors
    /// All faults, at their places.
    pub fn new(table: &Spanned<FileTenants>) -> Result<Group, Vec<Fault>> {
        let t = table.get_ref();
        let mut faults = Vec::new();
        let Some(names) = &t.names else { return Err(faults) };
        let lists = names.get_ref().0.iter();
        let count: usize = lists.clone().map(Names::len).sum();
        if count > NAMES_MAX {
            let what = format!("these are {count} names; a group has {NAMES_MAX} at most");
            return Err(vec![(names.span(), what)]);
        }
        if count == 0 {
            return Err(vec![(names.span(), "the list is empty".to_string())]);
        }
        let mut known = HashSet::with_capacity(count);
        let mut tenants = Vec::with_capacity(count);
        for name in lists.flat_map(Names::iter) {
            if !known.insert(name.clone()) {
                faults.push((names.span(), format!("`{name}` stands here a second time")));
            }
            tenants.push(Tenant { name, clients: Vec::new() });
        }
        given_clients(t, &mut tenants, &mut faults);
        shared_out(t, table.span(), &mut tenants, &mut faults);
        if faults.is_empty() { Ok(Group { tenants }) } else { Err(faults) }
    }
}

/// Clients that are given by the tenant's name.
fn given_clients(t: &FileTenants, tenants: &mut [Tenant], faults: &mut Vec<Fault>) {
    let at: HashMap<String, usize> =
        tenants.iter().enumerate().map(|(i, tenant)| (tenant.name.clone(), i)).collect();
    for (name, prefixes) in &t.clients.0 {
        match at.get(name.get_ref()).and_then(|&at| tenants.get_mut(at)) {
            Some(tenant) => tenant.clients.clone_from(&prefixes.get_ref().0),
            None => {
                let what = format!("`{}` is none of the group's names", name.get_ref());
                faults.push((name.span(), what));
            }
        }
        let count = prefixes.get_ref().0.len();
        if !(1..=CLIENTS_MAX).contains(&count) {
            let what = format!("a tenant has 1 to {CLIENTS_MAX} prefixes, not {count}");
            faults.push((prefixes.span(), what));
        }
    }
}

/// Parts of one prefix, in order, for those of whom no clients are given.
fn shared_out(
    t: &FileTenants,
    table: Range<usize>,
    tenants: &mut [Tenant],
    faults: &mut Vec<Fault>,
) {
    let (whole, len) = match (&t.clients_within, &t.clients_len) {
        (None, None) => return,
        (Some(whole), Some(len)) => (whole, len),
        (Some(_), None) => {
            let what = "`clients_len` is missing: the length of each tenant's prefix";
            return faults.push((table, what.to_string()));
        }
        (None, Some(len)) => {
            let what = "`clients_within` is missing: the prefix to be shared out";
            return faults.push((len.span(), what.to_string()));
        }
    };
    let prefix = whole.get_ref().0;
    let longest = if prefix.is_v4() { 32 } else { 128 };
    let n = *len.get_ref();
    let Some(own) = u8::try_from(n).ok().filter(|n| (prefix.len()..=longest).contains(n)) else {
        let what = format!("{n} is not within {} (that of {prefix}) to {longest}", prefix.len());
        return faults.push((len.span(), what));
    };
    let wanting = tenants.iter().filter(|tenant| tenant.clients.is_empty()).count();
    let parts = 1u128.checked_shl(u32::from(own - prefix.len())).unwrap_or(u128::MAX);
    if parts < wanting as u128 {
        let what = format!("{prefix} has {parts} parts of /{n}, for {wanting} tenants");
        return faults.push((whole.span(), what));
    }
    let first = u128::from_be_bytes(prefix.addr().to_bytes());
    let tenants = tenants.iter_mut().filter(|tenant| tenant.clients.is_empty());
    for (i, tenant) in (0u128..).zip(tenants) {
        let part = i.checked_shl(u32::from(longest - own)).unwrap_or(0);
        let addr = Addr::from_v6_bytes((first + part).to_be_bytes());
        tenant.clients.extend(Prefix::new(addr, own));
    }
}

/// One name, or a range of them such as `tenant-{001..500}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    before: String,
    after: String,
    /// `None`: `before` is the name.
    numbers: Option<Numbers>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Numbers {
    first: u32,
    last: u32,
    /// Digits at least, with zeros in front.
    width: usize,
}

impl Names {
    pub fn len(&self) -> usize {
        self.numbers.map_or(1, |n| (n.last - n.first) as usize + 1)
    }

    pub fn iter(&self) -> impl Iterator<Item = String> + '_ {
        let single = self.numbers.is_none().then(|| self.before.clone());
        let many = self.numbers.into_iter().flat_map(move |Numbers { first, last, width }| {
            (first..=last).map(move |n| format!("{}{n:0width$}{}", self.before, self.after))
        });
        single.into_iter().chain(many)
    }
}

impl Atom for Names {
    const EXPECTED: &'static str = "a name such as \"acme\", or several: \"tenant-{001..500}\"";

    fn from_text(text: &str) -> Result<Names, String> {
        let Some((before, rest)) = text.split_once('{') else {
            return Ok(Names { before: text.to_string(), after: String::new(), numbers: None });
        };
        let bad =
            || format!("`{text}` is no range of names: write it as in \"tenant-{{001..500}}\"");
        let (range, after) = rest.split_once('}').ok_or_else(bad)?;
        let (from, to) = range.split_once("..").ok_or_else(bad)?;
        let is_number = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        if !is_number(from) || !is_number(to) || after.contains(['{', '}']) {
            return Err(bad());
        }
        let (first, last) = (from.parse().map_err(|_| bad())?, to.parse().map_err(|_| bad())?);
        if first > last {
            return Err(format!("`{text}`: {first} is over {last}"));
        }
        let width = if from.starts_with('0') { from.len() } else { 0 };
        let numbers = Some(Numbers { first, last, width });
        Ok(Names { before: before.to_string(), after: after.to_string(), numbers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_names() {
        let all = |text| Names::from_text(text).map(|names| names.iter().collect::<Vec<_>>());
        assert_eq!(all("acme"), Ok(vec!["acme".to_string()]));
        assert_eq!(all("t{8..10}x"), Ok(["t8x", "t9x", "t10x"].map(String::from).to_vec()));
        assert_eq!(all("t-{098..100}"), Ok(["t-098", "t-099", "t-100"].map(String::from).to_vec()));
        assert_eq!(all("{0..0}"), Ok(vec!["0".to_string()]));
        for bad in ["{", "{}", "a{1}", "{1..}", "{2..1}", "{-1..2}", "{1..9}{1..2}", "{a..b}"] {
            assert!(Names::from_text(bad).is_err(), "{bad}");
        }
        assert_eq!(Names::from_text("{0..4294967295}").map(|n| n.len()), Ok(1 << 32));
    }
}
