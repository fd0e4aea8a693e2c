//! Who gets copies, as it is written: `[collector.NAME]`, and `shadow` of services.

use serde::Deserialize;

use super::atoms::Bytes;
use super::file::{Noted, Plain};
use crate::base::Addr;

/// Who hears requests besides, and of which share of the connections.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileShadow {
    pub pool: Plain<String>,
    pub percent: Plain<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileCollector {
    pub address: Noted<Addr>,
    pub ring: Plain<FileRing>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileRing {
    pub dir: Plain<String>,
    pub files: Plain<i64>,
    pub size: Noted<Bytes>,
}
