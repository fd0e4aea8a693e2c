//! Where new flows go, as it is written: `pool = "NAME"`, or `pool = { NAME = 90, OTHER = 10 }`.

use std::fmt;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use toml::Spanned;

use crate::base::tomlfile::Named;

/// A pool, or several with their shares.
#[derive(Clone, Debug)]
pub enum FilePools {
    One(String),
    Shares(Named<i64>),
}

impl FilePools {
    /// Each pool that is named.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let (one, shares) = match self {
            FilePools::One(name) => (Some(name.as_str()), [].as_slice()),
            FilePools::Shares(shares) => (None, shares.0.as_slice()),
        };
        one.into_iter()
            .chain(shares.iter().map(|(name, _): &(Spanned<String>, _)| &**name.get_ref()))
    }
}

impl<'de> Deserialize<'de> for FilePools {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<FilePools, D::Error> {
        d.deserialize_any(PoolsVisitor)
    }
}

struct PoolsVisitor;

impl<'de> Visitor<'de> for PoolsVisitor {
    type Value = FilePools;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a pool's name, or a table of pools with their shares,")
    }

    fn visit_str<E: de::Error>(self, v: &str) -> Result<FilePools, E> {
        Ok(FilePools::One(v.to_owned()))
    }

    fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<FilePools, M::Error> {
        Named::deserialize(MapAccessDeserializer::new(map)).map(FilePools::Shares)
    }
}
