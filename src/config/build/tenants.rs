//! `[tenants.GROUP]`: what templates are filled with.

use toml::Spanned;

use super::Build;
use crate::config::file::FileConfig;
use crate::config::tenants::Group;

/// Tells what is wrong with groups of tenants; templates were filled before.
pub fn check(b: &mut Build<'_>, file: &FileConfig) {
    for (key, table) in &file.tenants.0 {
        b.name(key);
        let names = b.need(&table.span(), "names", &table.get_ref().names, "the group's tenants");
        match Group::new(table) {
            Ok(group) => {
                let place = names.map_or(table.span(), Spanned::span);
                for tenant in group.tenants {
                    b.name(&Spanned::new(place.clone(), tenant.name));
                }
            }
            Err(faults) => faults.iter().for_each(|(at, what)| b.error(at, what.as_str())),
        }
    }
}
