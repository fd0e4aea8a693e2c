//! From a pipeline's description to the chain that batches run through.

use super::cx::{Cx, Stage};
use super::spec::{PipelineSpec, StageSpec};
use super::stages::balance::Balance;
use super::stages::classify::Classify;
use super::stages::inspect::{Inspect, InspectLimits};
use super::stages::meter::Meter;
use super::stages::route::Route;
use super::stages::splice::{Splice, SpliceLimits};
use super::stages::tap::Tap;
use super::stages::timing::Timing;
use super::stages::trust::Trust;
use crate::base::Seed;
use crate::flow::Flow;
use crate::packet::Batch;

/// Stages in order, with all memory they need. One match a stage and batch: no vtable.
pub struct Pipeline {
    stages: Vec<StageKind>,
}

enum StageKind {
    Inspect(Box<Inspect>),
    Trust(Trust),
    Classify(Classify),
    Meter(Meter),
    Timing(Timing),
    Balance(Balance),
    Route(Route),
    Tap(Tap),
}

impl Pipeline {
    /// Compiles a description. [`StageSpec::Shape`] makes no stage: it says that egress queues are
    /// class trees, which is for whoever builds those.
    /// With `splice` the balancer can also bind connections after what their client says.
    pub fn compile(spec: &PipelineSpec, splice: Option<(SpliceLimits, Seed)>) -> Pipeline {
        let stages = spec.stages.iter().filter_map(|stage| match stage {
            StageSpec::Inspect { hello_bytes_max, flows_max, http_flows_max, headers } => {
                let limits = InspectLimits {
                    hello_bytes_max: *hello_bytes_max,
                    flows_max: *flows_max,
                    http_flows_max: *http_flows_max,
                    headers: headers.clone(),
                };
                Some(StageKind::Inspect(Box::new(Inspect::new(&limits))))
            }
            StageSpec::Classify => {
                Some(StageKind::Classify(Classify::new(!spec.stages.contains(&StageSpec::Tap))))
            }
            StageSpec::Trust => Some(StageKind::Trust(Trust)),
            StageSpec::Meter => Some(StageKind::Meter(Meter)),
            StageSpec::Timing { flows_max } => Some(StageKind::Timing(Timing::new(*flows_max))),
            StageSpec::Balance => Some(StageKind::Balance(match &splice {
                Some((limits, seed)) => Balance::with_splice(Splice::new(limits, *seed)),
                None => Balance::new(),
            })),
            StageSpec::Route => Some(StageKind::Route(Route::new())),
            StageSpec::Shape => None,
            StageSpec::Tap => Some(StageKind::Tap(Tap::new())),
        });
        Pipeline { stages: stages.collect() }
    }

    /// Runs a batch through all stages. What is still undecided afterwards nobody wants.
    #[inline]
    pub fn run(&mut self, cx: &mut Cx<'_>, batch: &mut Batch) {
        for stage in &mut self.stages {
            match stage {
                StageKind::Inspect(s) => s.process(cx, batch),
                StageKind::Trust(s) => s.process(cx, batch),
                StageKind::Classify(s) => s.process(cx, batch),
                StageKind::Meter(s) => s.process(cx, batch),
                StageKind::Timing(s) => s.process(cx, batch),
                StageKind::Balance(s) => s.process(cx, batch),
                StageKind::Route(s) => s.process(cx, batch),
                StageKind::Tap(s) => s.process(cx, batch),
            }
        }
    }

    /// A flow left the table: whatever a stage keeps for it is free.
    #[inline]
    pub fn forget(&mut self, flow: &Flow, seed: Seed) {
        for stage in &mut self.stages {
            match stage {
                StageKind::Inspect(inspect) => inspect.forget(flow),
                StageKind::Balance(balance) => balance.forget(flow, seed),
                _ => {}
            }
        }
    }

    /// Does what is due without a packet: what is made goes to `cx.replies`.
    pub fn tick(&mut self, cx: &mut Cx<'_>) {
        for stage in &mut self.stages {
            if let StageKind::Balance(balance) = stage {
                balance.tick(cx);
            }
        }
    }

    /// Connections that are being bound now.
    pub fn bindings(&self) -> usize {
        let splice = self.stages.iter().find_map(|stage| match stage {
            StageKind::Balance(balance) => balance.splice(),
            _ => None,
        });
        splice.map_or(0, Splice::bindings)
    }

    /// Takes what the stages of a pipeline that is replaced know of flows.
    pub fn take_over(&mut self, old: &mut Pipeline) {
        for stage in &mut self.stages {
            for old in &mut old.stages {
                match (&mut *stage, old) {
                    (StageKind::Inspect(inspect), StageKind::Inspect(old)) => {
                        inspect.take_over(old);
                    }
                    (StageKind::Timing(timing), StageKind::Timing(old)) => timing.take_over(old),
                    (StageKind::Balance(balance), StageKind::Balance(old)) => {
                        balance.take_over(old);
                    }
                    _ => {}
                }
            }
        }
    }
}
