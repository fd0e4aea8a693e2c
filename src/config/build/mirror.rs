//! `mirror` of rules and `[collector.NAME]`: where copies of packets go.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use toml::Spanned;

use super::services::{check_unicast, hundredths};
use super::{Build, index};
use crate::base::Seed;
use crate::base::hash::hash_bytes;
use crate::base::units::ByteSize;
use crate::config::FilesSpec;
use crate::config::atoms::Bytes;
use crate::config::copies::FileCollector;
use crate::config::file::{FileConfig, FileRule};
use crate::nic::spec::PortSpec;
use crate::packet::{CopyTo, FilesId};
use crate::policy::spec::Mirror;

/// Hosts that copies may go to, and rings of files.
const COLLECTORS_MAX: usize = 64;
/// Files of a ring: one is written while the others are kept.
const FILES: RangeInclusive<i64> = 2..=10_000;
const FILES_DEFAULT: u32 = 8;
const SIZE: RangeInclusive<Bytes> = Bytes(1 << 16)..=Bytes(1 << 40);
const SIZE_DEFAULT: Bytes = Bytes(1 << 26);
const FILES_SEED: Seed = Seed(0x6669_6c65_735f_7631);

/// What `mirror` may name.
pub struct Targets<'f> {
    names: HashMap<&'f str, usize>,
    /// By the numbers of `names`; `None` where one is at fault.
    list: Vec<Option<CopyTo>>,
}

impl<'f> Targets<'f> {
    pub fn new(b: &mut Build<'_>, file: &'f FileConfig, ports: &[PortSpec]) -> Targets<'f> {
        let mut names = index(&file.port.0);
        let mut list: Vec<_> = ports.iter().map(|p| Some(CopyTo::Port(p.id))).collect();
        list.resize(file.port.0.len(), None);
        if let Some((key, _)) = file.collector.0.get(COLLECTORS_MAX) {
            b.error(&key.span(), format!("there are {COLLECTORS_MAX} collectors at most"));
        }
        for (key, table) in &file.collector.0 {
            b.name(key);
            if names.insert(key.get_ref(), list.len()).is_some() {
                let what = format!("`{}` is a port: `mirror` could mean either", key.get_ref());
                b.error(&key.span(), what);
            }
            list.push(target(b, key.get_ref(), table));
        }
        Targets { names, list }
    }

    /// Where a rule's copies go, and of which share of its flows.
    pub fn mirror(&self, b: &mut Build<'_>, r: &FileRule) -> Option<Mirror> {
        let share = share(b, r);
        let target = b.resolve("port or collector", r.mirror.as_ref()?, &self.names)?;
        let to = self.list.get(target).copied().flatten()?;
        Some(Mirror { to, share })
    }
}

/// Where a collector's copies go.
fn target(b: &mut Build<'_>, name: &str, table: &Spanned<FileCollector>) -> Option<CopyTo> {
    let (at, c) = (table.span(), table.get_ref());
    if let Some(ring) = &c.ring {
        if c.address.is_some() {
            b.error(&ring.span(), "copies go to an `address` or into a `ring`: leave one out");
        }
        return Some(CopyTo::Files(files_id(name)));
    }
    if b.faulty.contains(&at, "ring") {
        return None;
    }
    let what = "the host that copies are sent to; or give a `ring` of files";
    let address = b.need(&at, "address", &c.address, what)?;
    check_unicast(b, address.get_ref().0, &address.span());
    Some(CopyTo::Host(address.get_ref().0))
}

/// All collectors that keep copies in files.
pub fn files(b: &mut Build<'_>, file: &FileConfig) -> Vec<FilesSpec> {
    let mut all = Vec::new();
    for (key, table) in &file.collector.0 {
        let Some(ring) = &table.get_ref().ring else { continue };
        let (at, r, name) = (ring.span(), ring.get_ref(), key.get_ref());
        if name.contains(['/', ':']) {
            b.error(&key.span(), "files are named after this collector: a name without `:`");
        }
        let dir = b.need(&at, "dir", &r.dir, "the directory of the files");
        if let Some(dir) = dir.filter(|dir| !Path::new(dir.get_ref()).is_absolute()) {
            b.error(&dir.span(), "the path of the directory must begin with `/`");
        }
        let show = |bytes: Bytes| ByteSize(bytes.0).to_string();
        all.push(FilesSpec {
            id: files_id(name),
            name: name.clone(),
            dir: dir.map(|dir| PathBuf::from(dir.get_ref())).unwrap_or_default(),
            count: b.number(&r.files, FILES, FILES_DEFAULT),
            size: b.within(&r.size, SIZE, SIZE_DEFAULT, show).0,
        });
    }
    all
}

/// The same in every configuration that has a collector of this name.
fn files_id(name: &str) -> FilesId {
    FilesId(hash_bytes(FILES_SEED, name.as_bytes()))
}

/// The share of flows that are copied.
fn share(b: &mut Build<'_>, r: &FileRule) -> u16 {
    let Some(given) = &r.mirror_percent else { return Mirror::ALL };
    if r.mirror.is_none() {
        b.error(&given.span(), "`mirror_percent` means nothing without `mirror`");
    }
    let share = hundredths(b, &r.mirror_percent);
    if share == 0 {
        b.error(&given.span(), "no flow would be copied: leave `mirror` out");
    }
    share
}
