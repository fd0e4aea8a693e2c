//! Class names: the same name under several ports is one class.

use std::collections::HashMap;

use crate::packet::ClassId;

/// Ids have 16 bits, and some of them stand for no class: see [`ClassId`].
pub const CLASSES_MAX: usize = 65_000;

/// Names of classes, numbered in the order in which they are first met.
#[derive(Debug, Default)]
pub struct Classes {
    names: Vec<String>,
    ids: HashMap<String, ClassId>,
    /// By id: whether it has children under some port, so that it carries no packets.
    inner: Vec<bool>,
}

impl Classes {
    /// The id of `name`, a new one if it is not known yet.
    pub fn intern(&mut self, name: &str) -> ClassId {
        if let Some(id) = self.ids.get(name) {
            return *id;
        }
        let id = ClassId(super::id16(self.names.len()));
        self.names.push(name.to_string());
        self.ids.insert(name.to_string(), id);
        self.inner.push(false);
        id
    }

    pub fn id(&self, name: &str) -> Option<ClassId> {
        self.ids.get(name).copied()
    }

    pub fn mark_inner(&mut self, id: ClassId) {
        // Of too many classes the last ones share an id.
        let id = usize::from(id.0);
        if let Some(inner) = self.inner.get_mut(id).filter(|_| id < CLASSES_MAX) {
            *inner = true;
        }
    }

    pub fn is_inner(&self, id: ClassId) -> bool {
        self.inner.get(usize::from(id.0)).copied().unwrap_or(false)
    }

    /// Names of the classes that carry packets.
    pub fn leaves(&self) -> impl Iterator<Item = &str> {
        self.names.iter().zip(&self.inner).filter(|(_, inner)| !**inner).map(|(n, _)| n.as_str())
    }

    pub fn len(&self) -> usize {
        self.names.len()
    }

    pub fn into_names(self) -> Vec<String> {
        self.names
    }
}
