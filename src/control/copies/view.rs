//! What is told of shadows and files.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::Copies;
use super::told::Cut;
use crate::config::Config;
use crate::control::latency::times;
use crate::control::view::{FilesView, ShadowView};

impl Copies {
    /// Of all services that are shadowed now.
    pub fn shadows(&self, config: &Config) -> Vec<ShadowView> {
        let shadowed = config.forward.services.iter().filter_map(|s| Some((s, s.shadow?)));
        let view = |(service, shadow): (_, crate::forward::spec::ShadowSpec)| {
            let service: &crate::forward::spec::ServiceSpec = service;
            let told = self.told.get(&service.name)?;
            let told = told.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let pool = config.forward.pools.get(usize::from(shadow.pool.0));
            Some(ShadowView {
                service: service.name.clone(),
                pool: pool.map(|pool| pool.name.clone()).unwrap_or_default(),
                percent: f64::from(shadow.share) / 100.0,
                cut: Cut::NAMES.map(String::from).into_iter().zip(told.cuts).collect(),
                original_first: times(&told.first[0]),
                shadow_first: times(&told.first[1]),
                ..told.counts
            })
        };
        shadowed.filter_map(view).collect()
    }

    /// Of all collectors that keep files now.
    pub fn files(&self, config: &Config) -> Vec<FilesView> {
        let view = |spec: &crate::config::FilesSpec| {
            let told = self.files.get(&spec.id)?;
            Some(FilesView {
                collector: spec.name.clone(),
                dir: spec.dir.display().to_string(),
                packets: told.packets.load(Ordering::Relaxed),
                failed: told.failed.load(Ordering::Relaxed),
            })
        };
        config.files.iter().filter_map(view).collect()
    }
}
