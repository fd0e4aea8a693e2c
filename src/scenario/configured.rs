//! The class tree of an appliance's own configuration, in the place of one in the scenario.

use std::path::{Path, PathBuf};

use toml::Spanned;

use super::load::set_all;
use super::spec::Source;
use crate::base::diag::{self, Diagnostics};
use crate::config::{self, Config};
use crate::packet::ClassId;
use crate::qos::spec::PortQosSpec;

/// What a scenario takes over from a configuration.
pub struct Configured {
    pub tree: PortQosSpec,
    pub class_names: Vec<String>,
    pub not_simulated: NotSimulated,
}

/// What would hold packets back before they come to the class tree.
#[derive(Default)]
pub struct NotSimulated {
    limits: Vec<String>,
    meters: Vec<(String, Vec<ClassId>)>,
}

impl NotSimulated {
    fn of(config: &Config) -> NotSimulated {
        let meters = config.metering.meters.iter();
        NotSimulated {
            limits: config.limits.limits.iter().map(|l| format!("limit.{}", l.name)).collect(),
            meters: meters.map(|m| (format!("meter.{}", m.name), m.classes.clone())).collect(),
        }
    }

    /// As they stand in the file: all limits, since nothing is known of the sources' clients, and
    /// the meters of classes that sources send to.
    pub fn of_sources(self, sources: &[Source]) -> Vec<String> {
        let is_sent = |class: &ClassId| sources.iter().any(|source| source.class == *class);
        let meters = self.meters.into_iter().filter(|(_, classes)| classes.iter().any(is_sent));
        self.limits.into_iter().chain(meters.map(|(name, _)| name)).collect()
    }
}

/// The tree of a configuration's port, with `sets` in the place of what it says. `None`: a fault is
/// told.
pub fn configured(
    source: &diag::Source,
    name: &Spanned<String>,
    port: Option<&Spanned<String>>,
    sets: &[&String],
    out: &mut Diagnostics,
) -> Option<Configured> {
    let Some(port) = port else {
        out.error(source, &name.span(), "`port` is missing: whose class tree is tried");
        return None;
    };
    let path = beside(source.path(), name.get_ref());
    let config = config::read_source(&path).and_then(|mut file| {
        let mut faults = Diagnostics::default();
        set_all(&mut file, sets, &format!("qos.{:?}.", port.get_ref()), &mut faults);
        if faults.has_errors() { Err(faults) } else { config::load_source(&file) }
    });
    let config = match config {
        Ok(config) => config,
        Err(faults) => {
            out.append(faults);
            return None;
        }
    };
    let named = config.ports.iter().find(|p| p.name == *port.get_ref());
    let tree = named.and_then(|p| config.qos.iter().find(|q| q.port == p.id));
    let Some(tree) = tree else {
        let names = config.ports.iter().filter(|p| config.qos.iter().any(|q| q.port == p.id));
        let advice = diag::advice(port.get_ref(), names.map(|p| p.name.as_str()));
        let what = format!("{} has no class tree of that port{advice}", path.display());
        out.error(source, &port.span(), what);
        return None;
    };
    let not_simulated = NotSimulated::of(&config);
    Some(Configured { tree: tree.clone(), class_names: config.class_names, not_simulated })
}

/// A file that another names, relative to it.
pub fn beside(path: &Path, name: &str) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).join(name)
}
