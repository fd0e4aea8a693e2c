//! A class tree that stands alone, outside of a configuration.

use toml::Spanned;

use super::Build;
use super::classes::Classes;
use super::qos::port_tree;
use crate::config::file::FileQos;
use crate::packet::PortId;
use crate::qos::spec::PortQosSpec;

/// Frames of any size that may be configured fit.
const FRAME_SIZE: u32 = 4_096;

/// The tree of a table that is written as a `[qos.PORT]` is, and the names of its classes by
/// [`crate::packet::ClassId`]. Valid only if `b.out` has no errors.
pub fn tree_alone(b: &mut Build<'_>, table: &Spanned<FileQos>) -> (PortQosSpec, Vec<String>) {
    let mut classes = Classes::default();
    for (name, _) in &table.get_ref().class.0 {
        b.name(name);
        classes.intern(name.get_ref());
    }
    let spec = port_tree(b, PortId(0), table, FRAME_SIZE, &mut classes);
    (spec, classes.into_names())
}
