//! The catalogue's file: read, checked, compiled.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::pattern::{HostPattern, PathPattern};
use super::{Api, Catalogue, Class, Provider};
use crate::base::diag::{Diagnostics, Source};
use crate::base::tomlfile::{Texts, texts};
use crate::packet::ClassId;

/// Class of a provider's connections whose operation is not seen, unless the file says otherwise.
const CLASS_DEFAULT: &str = "interactive";

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// Messages in, a message out.
    Chat,
    /// Text in, text out.
    Completion,
    Embedding,
    Rerank,
    Image,
    Audio,
    /// Work to be done later.
    Batch,
    Files,
    /// What there is, and what is loaded.
    Models,
}

impl Operation {
    pub const ALL: [Operation; 9] = [
        Operation::Chat,
        Operation::Completion,
        Operation::Embedding,
        Operation::Rerank,
        Operation::Image,
        Operation::Audio,
        Operation::Batch,
        Operation::Files,
        Operation::Models,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Operation::Chat => "chat",
            Operation::Completion => "completion",
            Operation::Embedding => "embedding",
            Operation::Rerank => "rerank",
            Operation::Image => "image",
            Operation::Audio => "audio",
            Operation::Batch => "batch",
            Operation::Files => "files",
            Operation::Models => "models",
        }
    }
}

/// A catalogue as it is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileCatalogue {
    class: BTreeMap<Operation, Spanned<String>>,
    api: BTreeMap<String, FileApi>,
    provider: BTreeMap<String, Spanned<FileProvider>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct FileApi {
    server: String,
    path: BTreeMap<String, Spanned<Operation>>,
    host_path: BTreeMap<String, Spanned<Operation>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct FileProvider {
    host: Option<Spanned<Texts>>,
    api: Option<Spanned<Texts>>,
    class: Option<Spanned<String>>,
}

impl FileCatalogue {
    pub(super) fn is_empty(&self) -> bool {
        self.class.is_empty() && self.api.is_empty() && self.provider.is_empty()
    }

    pub(super) fn check_patterns(&self, source: &Source, faults: &mut Diagnostics) {
        for api in self.api.values() {
            for (path, operation) in api.path.iter().chain(&api.host_path) {
                if let Err(what) = PathPattern::new(path) {
                    faults.error(source, &operation.span(), format!("path {path:?} {what}"));
                }
            }
        }
        for provider in self.provider.values() {
            let host = &provider.get_ref().host;
            if host.as_ref().is_none_or(|given| given.get_ref().is_empty()) {
                let at = host.as_ref().map_or(provider.span(), Spanned::span);
                faults.error(source, &at, "`host` is missing: names of its servers");
            }
        }
        for host in self.provider.values().flat_map(|provider| texts(&provider.get_ref().host)) {
            if let Err(what) = HostPattern::new(host.as_ref()) {
                faults.error(source, &host.span(), format!("host {:?} {what}", host.as_ref()));
            }
        }
    }

    /// Names of classes, where they stand.
    pub fn classes(&self) -> impl Iterator<Item = &Spanned<String>> {
        let of_providers = self.provider.values().filter_map(|p| p.get_ref().class.as_ref());
        self.class.values().chain(of_providers)
    }

    /// What `more` names anew takes the place of what is here.
    pub(super) fn extend(&mut self, more: FileCatalogue) {
        self.class.extend(more.class);
        self.api.extend(more.api);
        self.provider.extend(more.provider);
    }

    /// Whether the APIs that providers name are there; `source` is the file read last.
    pub(super) fn check_apis(&self, source: &Source, faults: &mut Diagnostics) {
        for api in self.provider.values().flat_map(|provider| texts(&provider.get_ref().api)) {
            if !self.api.contains_key(api.as_ref()) {
                let known: Vec<&str> = self.api.keys().map(String::as_str).collect();
                let what = format!("unknown API {:?}; known: {}", api.as_ref(), known.join(", "));
                faults.error(source, &api.span(), what);
            }
        }
    }

    /// Patterns that are none were reported and are left out.
    pub(super) fn compile(self) -> Catalogue {
        let index = |name: &str| self.api.keys().position(|known| known == name);
        let (mut providers, mut hosts) = (Vec::new(), HashMap::<Box<[u8]>, Vec<_>>::new());
        for (name, provider) in &self.provider {
            let provider = provider.get_ref();
            let hosts_of = texts(&provider.host);
            let patterns = hosts_of.iter().map(|host| HostPattern::new(host.as_ref()));
            for pattern in patterns.flatten() {
                hosts.entry(pattern.tail()).or_default().push((pattern, providers.len()));
            }
            providers.push(Provider {
                name: name.clone(),
                class: class(provider.class.as_ref().map_or(CLASS_DEFAULT, |c| c.get_ref())),
                apis: texts(&provider.api).iter().filter_map(|api| index(api.as_ref())).collect(),
            });
        }
        hosts.values_mut().for_each(|patterns| patterns.sort_by_key(|(p, _)| p.looseness()));
        let apis = self.api.iter().map(|(name, api)| Api {
            server: if api.server.is_empty() { name.clone() } else { api.server.clone() },
            paths: compile_paths(&api.path),
            host_paths: compile_paths(&api.host_path),
        });
        let apis = apis.collect();
        let classes =
            self.class.into_iter().map(|(operation, name)| (operation, class(name.get_ref())));
        Catalogue { providers, apis, hosts, classes: classes.collect() }
    }
}

fn class(name: &str) -> Class {
    Class { name: name.to_owned(), id: ClassId::UNSET }
}

fn compile_paths(paths: &BTreeMap<String, Spanned<Operation>>) -> Vec<(PathPattern, Operation)> {
    let compiled = paths
        .iter()
        .filter_map(|(path, operation)| Some((PathPattern::new(path).ok()?, *operation.as_ref())));
    let mut compiled: Vec<_> = compiled.collect();
    compiled.sort_by_key(|(pattern, _)| pattern.looseness());
    compiled
}
