//! From a configuration file as written to a valid [`Config`]: names resolved, limits checked.

mod admin;
mod alone;
mod announce;
mod classes;
mod delay;
mod doubts;
mod engines;
mod fit;
mod forward;
mod health;
mod leaf;
mod limits;
mod meters;
mod mirror;
mod outliers;
mod parents;
mod ports;
mod qos;
mod rule;
mod rule_sense;
mod rules;
mod services;
mod shadow;
mod splits;
mod tenants;
mod tunnel;
mod workers;
mod zones;

use std::collections::HashMap;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::Spanned;

pub use alone::tree_alone;

use super::file::{FileConfig, Many};
use super::{Config, Written};
use crate::base::diag::{Diagnostics, Source, advice};
use crate::base::tomlfile::{Faulty, Leaf};
use crate::graph::spec::{PipelineSpec, StageSpec};
use crate::policy::catalogue::Catalogue;
use crate::policy::spec::header_names;
use crate::worker::spec::WorkersSpec;

/// Characters of a name given in the configuration: it becomes a label of metrics.
const NAME_LEN_MAX: usize = 63;

/// Builds the whole configuration around a pipeline already read. What comes out is valid only if
/// `b.out` has no errors.
pub fn build(b: &mut Build<'_>, file: &FileConfig, pipeline: PipelineSpec) -> Config {
    let ports = ports::ports(b, file);
    let workers = workers::workers(b, file, &ports);
    let forward = forward::forward(b, file, workers.count_max);
    let health = health::health(b, file);
    tenants::check(b, file);
    let metrics = engines::metrics(b, file);
    let outliers = outliers::outliers(b, file);
    let (qos, classes) = qos::qos(b, file, &ports, workers.frame_size);
    let catalogue = catalogue(b, file);
    let (mut rules, names) = rules::rules(b, file, classes, (&catalogue, &ports));
    let metering = meters::metering(b, file, &ports, &qos, &names.classes);
    catalogue_classes(b, file, &names.classes);
    let limits = limits::limits(b, file, &mut rules);
    let files = mirror::files(b, file);
    let announce = announce::announce(b, file);
    let admin = admin::admin(b, file);
    let mut config = Config {
        path: b.source.path().to_path_buf(),
        workers,
        frames_given: file.workers.as_ref().is_some_and(|w| w.get_ref().frames.is_some()),
        ports,
        forward,
        health,
        metrics,
        outliers,
        qos,
        class_names: names.classes.into_names(),
        rules,
        tenant_names: names.tenants,
        metering,
        limits,
        catalogue,
        files,
        announce,
        pipeline,
        admin,
        warnings: Vec::new(),
        written: Written::default(),
    };
    outliers::mark(&mut config);
    read_headers(&mut config);
    delay::rule_pools(b, file, &mut config);
    delay::check(b, file, &config);
    fit::check(b, file, &config);
    config
}

/// The catalogue of LLM APIs, as the file changes it.
fn catalogue(b: &mut Build<'_>, file: &FileConfig) -> Catalogue {
    Catalogue::changed(&file.catalogue, b.source, b.out)
}

/// Whether there are the classes that the file has the catalogue give.
fn catalogue_classes(b: &mut Build<'_>, file: &FileConfig, classes: &classes::Classes) {
    for name in file.catalogue.classes() {
        let text = name.get_ref();
        match classes.id(text) {
            Some(id) if classes.is_inner(id) => {
                let what = format!("class `{text}` has classes below it, so it carries no packets");
                b.error(&name.span(), what);
            }
            Some(_) => {}
            None => {
                let advice = advice(text, classes.leaves());
                b.error(&name.span(), format!("no class is named `{text}`{advice}"));
            }
        }
    }
}

/// Has the pipeline read the header fields that rules ask for.
fn read_headers(config: &mut Config) {
    let names = header_names(&config.rules);
    for stage in &mut config.pipeline.stages {
        if let StageSpec::Inspect { headers, .. } = stage {
            headers.clone_from(&names);
        }
    }
}

/// The file being built from, and where faults go.
pub struct Build<'a> {
    pub source: &'a Source,
    pub faulty: &'a Faulty,
    pub out: &'a mut Diagnostics,
    /// What runs, where this is to take its place.
    pub running: Option<&'a WorkersSpec>,
    /// Groups of tenants that there are.
    pub groups: Vec<&'a str>,
}

impl Build<'_> {
    pub fn error(&mut self, span: &Range<usize>, message: impl Into<String>) {
        self.out.error(self.source, span, message);
    }

    pub fn warning(&mut self, span: &Range<usize>, message: impl Into<String>) {
        self.out.warning(self.source, span, message);
    }

    fn line(&self, span: &Range<usize>) -> u32 {
        self.source.line_column(span.start).0
    }

    /// The value of a key that `table` can't do without.
    pub fn need<'v, T>(
        &mut self,
        table: &Range<usize>,
        key: &str,
        value: &'v Option<Spanned<T>>,
        what: &str,
    ) -> Option<&'v Spanned<T>> {
        if value.is_none() && !self.faulty.contains(table, key) {
            self.error(table, format!("`{key}` is missing: {what}"));
        }
        value.as_ref()
    }

    /// A number within its limits, or `default` when none is given.
    pub fn number<T: TryFrom<i64> + Copy>(
        &mut self,
        given: &Option<Spanned<i64>>,
        range: RangeInclusive<i64>,
        default: T,
    ) -> T {
        let Some(given) = given else { return default };
        let n = *given.get_ref();
        match T::try_from(n) {
            Ok(value) if range.contains(&n) => value,
            _ => {
                let (low, high) = (range.start(), range.end());
                self.error(&given.span(), format!("{n} is not within {low} to {high}"));
                default
            }
        }
    }

    /// A value with a notation of its own that must lie within limits, each shown as `show` says.
    pub fn within<A: Copy + PartialOrd>(
        &mut self,
        given: &Option<Spanned<Leaf<A>>>,
        range: RangeInclusive<A>,
        default: A,
        show: impl Fn(A) -> String,
    ) -> A {
        let Some(given) = given else { return default };
        let value = given.get_ref().0;
        if range.contains(&value) {
            return value;
        }
        let (v, low, high) = (show(value), show(*range.start()), show(*range.end()));
        self.error(&given.span(), format!("{v} is not within {low} to {high}"));
        default
    }

    /// The values of one key. An empty list would mean nothing to one reader, everything to
    /// another.
    fn list<A, T>(
        &mut self,
        table: &Range<usize>,
        key: &str,
        given: &Many<A>,
        value: impl Fn(&A) -> T,
    ) -> Vec<T> {
        let Some(given) = given else { return Vec::new() };
        let list = &given.get_ref().0;
        if list.is_empty() && !self.faulty.contains(table, key) {
            self.error(&given.span(), format!("the list is empty: leave `{key}` out instead"));
        }
        list.iter().map(value).collect()
    }

    /// Checks a name of the writer's choice.
    pub fn name(&mut self, name: &Spanned<String>) {
        let n = name.get_ref();
        let ok = |c: char| c.is_ascii_alphanumeric() || "_-.:[]".contains(c);
        if n.is_empty() || n.len() > NAME_LEN_MAX || !n.chars().all(ok) {
            let braced = n.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
            let what = match braced.filter(|(group, _)| !group.is_empty() && group.chars().all(ok))
            {
                Some((group, _)) if self.groups.contains(&group) => format!(
                    "`{n}` is not made for the tenants of `{group}`: templates are classes, \
                     meters, limits and rules, each of one group"
                ),
                Some((group, _)) => {
                    format!("there is no `[tenants.{group}]` that `{n}` could be a template for")
                }
                None => format!(
                    "a name has 1 to {NAME_LEN_MAX} letters, digits, `-`, `_`, `.` or `:`, unlike \
                     `{n}`"
                ),
            };
            self.error(&name.span(), what);
        }
    }

    /// The index of the `kind` named so, or an error that names the nearest.
    pub fn resolve(
        &mut self,
        kind: &str,
        name: &Spanned<String>,
        known: &HashMap<&str, usize>,
    ) -> Option<usize> {
        let found = known.get(name.get_ref().as_str()).copied();
        if found.is_none() {
            self.error(&name.span(), unknown(kind, name, known));
        }
        found
    }
}

/// That no `kind` is named so, and what is nearest.
fn unknown(kind: &str, name: &Spanned<String>, known: &HashMap<&str, usize>) -> String {
    let mut names: Vec<&str> = known.keys().copied().collect();
    names.sort_unstable();
    let advice = match names.is_empty() {
        true => format!("; there is no {kind} at all"),
        false => advice(name.get_ref(), names),
    };
    format!("no {kind} is named `{}`{advice}", name.get_ref())
}

/// A duration as limits are shown.
fn show(d: Duration) -> String {
    if d.is_zero() { "0s".to_string() } else { format!("{d:?}") }
}

/// Positions of names, in the file's order.
fn index<T>(list: &[(Spanned<String>, Spanned<T>)]) -> HashMap<&str, usize> {
    list.iter().enumerate().map(|(i, (key, _))| (key.get_ref().as_str(), i)).collect()
}

/// An index as the 16-bit id that specs use. Tables are limited so that it fits.
fn id16(index: usize) -> u16 {
    u16::try_from(index).unwrap_or(u16::MAX)
}
