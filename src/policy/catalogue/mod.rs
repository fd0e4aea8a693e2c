//! A catalogue of LLM APIs: from a host and a path to the provider, the operation and its class.
//!
//! Built in, and overridable by files of the same form (`builtin.toml` says which). Hosts match by
//! label, so a provider's name within somebody else's is nothing. A look-up allocates nothing.

mod file;
mod pattern;

use std::collections::HashMap;
use std::path::Path;

use crate::base::diag::{Diagnostics, Source};
use pattern::{HostPattern, PathPattern, bare_host, bare_path, tail_of};

pub use file::Operation;

const BUILTIN: &str = include_str!("builtin.toml");

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
}

/// Providers and APIs, ready to be looked up.
#[derive(Debug)]
pub struct Catalogue {
    providers: Vec<Provider>,
    apis: Vec<Api>,
    /// Patterns of hosts by their last two labels, in lower case.
    hosts: HashMap<Box<[u8]>, Vec<(HostPattern, usize)>>,
    classes: HashMap<Operation, String>,
}

#[derive(Debug)]
struct Provider {
    name: String,
    class: String,
    /// Indices of its APIs, in the order in which they are tried.
    apis: Vec<usize>,
}

#[derive(Debug)]
struct Api {
    server: String,
    /// Tell the API on any host.
    paths: Vec<(PathPattern, Operation)>,
    /// Tell the operation on a provider's host.
    host_paths: Vec<(PathPattern, Operation)>,
}

impl Catalogue {
    /// The built-in catalogue.
    ///
    /// # Panics
    /// Never: a test reads it.
    pub fn builtin() -> Catalogue {
        Catalogue::with(None).unwrap_or_else(|faults| panic!("built in: {faults:?}"))
    }

    /// The built-in catalogue, changed by a file: its name, and its text.
    ///
    /// # Errors
    /// All faults of the file, each at its place.
    pub fn with(file: Option<(&Path, &str)>) -> Result<Catalogue, Diagnostics> {
        let mut faults = Diagnostics::default();
        let builtin = Source::new(Path::new("builtin.toml"), BUILTIN);
        let mut all = file::read(&builtin, &mut faults).unwrap_or_default();
        if let Some((path, text)) = file {
            let source = Source::new(path, text);
            if let Some(more) = file::read(&source, &mut faults) {
                all.extend(more);
            }
            all.check(&source, &mut faults);
        }
        if faults.has_errors() { Err(faults) } else { Ok(all.compile()) }
    }

    /// What is known by a host (a server name, or an authority with its port) and a path. Either
    /// may be missing.
    pub fn find(&self, host: Option<&[u8]>, path: Option<&[u8]>) -> Option<Known<'_>> {
        let path = path.map(bare_path);
        if let Some(provider) = host.and_then(|host| self.provider(host)) {
            let operation = path.and_then(|path| self.operation(provider, path));
            let class = operation.and_then(|op| self.classes.get(&op)).unwrap_or(&provider.class);
            return Some(Known { provider: &provider.name, operation, class });
        }
        let path = path?;
        let told = self.apis.iter().find_map(|api| Some((api, find(&api.paths, path)?)));
        let (api, operation) = told?;
        let class = self.classes.get(&operation).map_or("", String::as_str);
        Some(Known { provider: &api.server, operation: Some(operation), class })
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
