//! A catalogue of LLM APIs: from a host and a path to the provider, the operation and its class.
//!
//! Built in, and overridable by files of the same form (`builtin.toml` says which). Hosts match by
//! label, so a provider's name within somebody else's is nothing. A look-up allocates nothing.

mod file;
mod pattern;

use std::collections::HashMap;
use std::path::Path;
use std::sync::LazyLock;

use super::normal::{Scratch, normal};
use crate::base::diag::{Diagnostics, Source};
use crate::base::tomlfile;
use crate::packet::ClassId;
use pattern::{HostPattern, PathPattern, tail_of};

pub use file::{FileCatalogue, Operation};
pub use pattern::{bare_host, bare_path, without_port};

const BUILTIN: &str = include_str!("builtin.toml");

/// The built-in catalogue as written, and compiled. A test reads it: it has no faults.
static READ: LazyLock<(FileCatalogue, Catalogue)> = LazyLock::new(|| {
    let mut faults = Diagnostics::default();
    let source = Source::new(Path::new("builtin.toml"), BUILTIN);
    let read: FileCatalogue =
        tomlfile::read(&source, &mut faults).map(|read| read.value).unwrap_or_default();
    read.check_patterns(&source, &mut faults);
    read.check_apis(&source, &mut faults);
    assert!(!faults.has_errors(), "built in: {faults:?}");
    let compiled = read.clone().compile();
    (read, compiled)
});

/// Longest host that is looked up (RFC 1035, section 2.3.4).
const HOST_BYTES_MAX: usize = 255;

/// What is known of a flow by its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known<'a> {
    /// Who serves it; of a server of one's own, its kind.
    pub provider: &'a str,
    /// `None` where the path was not seen, or is none of the API's.
    pub operation: Option<Operation>,
    /// Name of the class that suits it.
    pub class: &'a str,
    /// The same by id; [`ClassId::UNSET`] where the configuration has none of that name.
    pub class_id: ClassId,
}

/// Providers and APIs, ready to be looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Catalogue {
    providers: Vec<Provider>,
    apis: Vec<Api>,
    /// Patterns of hosts by their last two labels, in lower case.
    hosts: HashMap<Box<[u8]>, Vec<(HostPattern, usize)>>,
    classes: HashMap<Operation, Class>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Provider {
    name: String,
    class: Class,
    /// Indices of its APIs, in the order in which they are tried.
    apis: Vec<usize>,
}

/// A class that suits, if there is one of its name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Class {
    name: String,
    id: ClassId,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Api {
    server: String,
    /// Tell the API on any host.
    paths: Vec<(PathPattern, Operation)>,
    /// Tell the operation on a provider's host.
    host_paths: Vec<(PathPattern, Operation)>,
}

impl Catalogue {
    /// The built-in catalogue.
    pub fn builtin() -> Catalogue {
        READ.1.clone()
    }

    /// The built-in catalogue, changed by a file: its name, and its text.
    ///
    /// # Errors
    /// All faults of the file, each at its place.
    pub fn with(file: Option<(&Path, &str)>) -> Result<Catalogue, Diagnostics> {
        let mut faults = Diagnostics::default();
        let Some((path, text)) = file else { return Ok(Catalogue::builtin()) };
        let source = Source::new(path, text);
        let more = tomlfile::read(&source, &mut faults).map(|read| read.value);
        let changed = more.map(|more| Catalogue::changed(&more, &source, &mut faults));
        match changed.filter(|_| !faults.has_errors()) {
            Some(catalogue) => Ok(catalogue),
            None => Err(faults),
        }
    }

    /// The built-in catalogue, changed by what was read from a source; what is wrong there goes to
    /// `out`, and is left out.
    pub fn changed(more: &FileCatalogue, source: &Source, out: &mut Diagnostics) -> Catalogue {
        if more.is_empty() {
            return Catalogue::builtin();
        }
        more.check_patterns(source, out);
        let mut all = READ.0.clone();
        all.extend(more.clone());
        all.check_apis(source, out);
        all.compile()
    }

    /// What is known by a host (a server name, or an authority with its port) and a path. Either
    /// may be missing.
    pub fn find(&self, host: Option<&[u8]>, path: Option<&[u8]>) -> Option<Known<'_>> {
        let mut scratch: Scratch = None;
        let path = path.map(|path| normal(bare_path(path), &mut scratch));
        if let Some(provider) = host.and_then(|host| self.provider(host)) {
            let operation = path.and_then(|path| self.operation(provider, path));
            let class = operation.and_then(|op| self.classes.get(&op)).unwrap_or(&provider.class);
            let (class, class_id) = (&class.name, class.id);
            return Some(Known { provider: &provider.name, operation, class, class_id });
        }
        let path = path?;
        let told = self.apis.iter().find_map(|api| Some((api, find(&api.paths, path)?)));
        let (api, operation) = told?;
        let class = self.classes.get(&operation);
        let (class, class_id) = class.map_or(("", ClassId::UNSET), |c| (&c.name, c.id));
        Some(Known { provider: &api.server, operation: Some(operation), class, class_id })
    }

    /// Whether a provider, or a server of one's own, goes by this name.
    pub fn has_provider(&self, name: &str) -> bool {
        self.provider_names().any(|known| known == name)
    }

    /// Names of all providers and servers.
    pub fn provider_names(&self) -> impl Iterator<Item = &str> {
        let servers = self.apis.iter().map(|api| api.server.as_str());
        self.providers.iter().map(|provider| provider.name.as_str()).chain(servers)
    }

    /// Finds the classes that are named here among those of a configuration, whose ids are their
    /// places; `false` where there is none.
    pub fn bind(&mut self, class_names: &[String]) -> bool {
        let mut any = false;
        let providers = self.providers.iter_mut().map(|provider| &mut provider.class);
        for class in providers.chain(self.classes.values_mut()) {
            let at = class_names.iter().position(|name| *name == class.name);
            class.id = at.map_or(ClassId::UNSET, |at| ClassId(at as u16));
            any |= at.is_some();
        }
        any
    }

    fn provider(&self, host: &[u8]) -> Option<&Provider> {
        let host = bare_host(host);
        let mut lower = [0; HOST_BYTES_MAX];
        let lower = lower.get_mut(..host.len())?;
        lower.copy_from_slice(host);
        lower.make_ascii_lowercase();
        let patterns = self.hosts.get(tail_of(lower))?;
        let (_, provider) = patterns.iter().find(|(pattern, _)| pattern.matches(lower))?;
        self.providers.get(*provider)
    }

    fn operation(&self, provider: &Provider, path: &[u8]) -> Option<Operation> {
        let mut apis = provider.apis.iter().filter_map(|&api| self.apis.get(api));
        apis.find_map(|api| find(&api.paths, path).or_else(|| find(&api.host_paths, path)))
    }
}

/// The longest pattern that matches: exact ones come before those that stand for many.
fn find(paths: &[(PathPattern, Operation)], path: &[u8]) -> Option<Operation> {
    paths.iter().find(|(pattern, _)| pattern.matches(path)).map(|(_, operation)| *operation)
}

#[cfg(test)]
mod tests;
