//! From a pipeline's description to the chain that batches run through.

use super::cx::{Cx, Stage};
use super::spec::{PipelineSpec, StageSpec};
use super::stages::balance::Balance;
use super::stages::classify::Classify;
use super::stages::inspect::Inspect;
use super::stages::route::Route;
use super::stages::tap::Tap;
use crate::flow::Flow;
use crate::packet::Batch;

/// Stages in order, with all memory they need. One match a stage and batch: no vtable.
pub struct Pipeline {
    stages: Vec<StageKind>,
}

enum StageKind {
    Inspect(Box<Inspect>),
    Classify(Classify),
    Balance(Balance),
    Route(Route),
    Tap(Tap),
}

impl Pipeline {
    /// Compiles a description. [`StageSpec::Shape`] makes no stage: it says that egress queues are
    /// class trees, which is for whoever builds those.
    pub fn compile(spec: &PipelineSpec) -> Pipeline {
        let stages = spec.stages.iter().filter_map(|stage| match stage {
            StageSpec::Inspect { hello_bytes_max, flows_max } => {
                let inspect = Inspect::new(*hello_bytes_max, *flows_max);
                Some(StageKind::Inspect(Box::new(inspect)))
            }
            StageSpec::Classify => Some(StageKind::Classify(Classify::new())),
            StageSpec::Balance => Some(StageKind::Balance(Balance::new())),
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
                StageKind::Classify(s) => s.process(cx, batch),
                StageKind::Balance(s) => s.process(cx, batch),
                StageKind::Route(s) => s.process(cx, batch),
                StageKind::Tap(s) => s.process(cx, batch),
            }
        }
    }

    /// A flow left the table: whatever a stage keeps for it is free.
    #[inline]
    pub fn forget(&mut self, flow: &Flow) {
        for stage in &mut self.stages {
            if let StageKind::Inspect(inspect) = stage {
                inspect.forget(flow);
            }
        }
    }

    /// Takes what the stages of a pipeline that is replaced know of flows.
    pub fn take_over(&mut self, old: &mut Pipeline) {
        let kept = old.stages.iter_mut().find_map(|s| match s {
            StageKind::Inspect(inspect) => Some(inspect),
            _ => None,
        });
        let inspect = self.stages.iter_mut().find_map(|s| match s {
            StageKind::Inspect(inspect) => Some(inspect),
            _ => None,
        });
        if let (Some(inspect), Some(old)) = (inspect, kept) {
            inspect.take_over(old);
        }
    }
}
