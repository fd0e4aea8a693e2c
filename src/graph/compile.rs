//! From a pipeline's description to the chain that batches run through.

use super::cx::{Cx, Snapshot, Stage};
use super::spec::{PipelineSpec, StageSpec};
use super::stages::balance::Balance;
use super::stages::classify::{Classify, complete, decide_anew};
use super::stages::inspect::{self, Inspect, InspectLimits};
use super::stages::meter::Meter;
use super::stages::mirror::mirror_leaving;
use super::stages::route::Route;
use super::stages::severing::cut;
use super::stages::splice::{Splice, SpliceLimits};
use super::stages::tap::Tap;
use super::stages::timing::Timing;
use super::stages::trust::Trust;
use crate::base::Seed;
use crate::flow::{Flow, FlowKind, Names};
use crate::forward::splice::Translation;
use crate::packet::{Batch, FlowKey, FlowRef, PacketMeta, tcp};

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
            StageSpec::Timing { flows_max, one_in } => {
                Some(StageKind::Timing(Timing::new(*flows_max, *one_in)))
            }
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
        self.follow_bound(cx);
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
        complete(cx);
        mirror_leaving(cx, batch);
    }

    /// Shows what was held of connections to the stages that such packets did not pass.
    #[inline]
    fn follow_bound(&mut self, cx: &mut Cx<'_>) {
        let (mut inspector, mut timers) = (None, None);
        for stage in &mut self.stages {
            match stage {
                StageKind::Inspect(inspect) => inspector = Some(&mut **inspect),
                StageKind::Timing(timing) => timers = Some(timing),
                StageKind::Balance(balance) => {
                    balance.follow_bound(cx, inspector.take(), timers.take());
                }
                _ => {}
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

    /// Cuts a flow of a service. A connection goes with a reset to both ends; what is no
    /// connection, or none yet, is forgotten, so that its next packet finds another backend.
    /// `false`: it is being bound, which ends by itself.
    pub fn cut(&mut self, cx: &mut Cx<'_>, at: FlowRef) -> bool {
        let binding = |stage: &StageKind| match stage {
            StageKind::Balance(balance) => balance.is_binding(at),
            _ => false,
        };
        let flow = cx.flows.get(at);
        if self.stages.iter().any(binding) {
            return false;
        }
        if flow.proto == tcp::PROTOCOL && !flow.tcp.is_half_open() {
            cut(cx, at);
        } else {
            self.forget(flow, cx.flows.seed());
            cx.flows.remove(at);
        }
        cx.counters.flows_cut += 1;
        true
    }

    /// Has other rules decide about a flow that is under way, as far as they can. `true`: something
    /// else is done with it from now on.
    pub fn decide_anew(&self, cx: &mut Cx<'_>, at: FlowRef) -> bool {
        let classifies = |stage: &StageKind| matches!(stage, StageKind::Classify(_));
        self.stages.iter().any(classifies) && decide_anew(cx, at)
    }

    /// Resets connections that wait for what they are bound by, so many at most; returns how many.
    pub fn cut_waiting(
        &mut self,
        cx: &mut Cx<'_>,
        of: impl Fn(&FlowKey) -> bool,
        cuts_max: usize,
    ) -> usize {
        let balance = self.stages.iter_mut().find_map(|stage| match stage {
            StageKind::Balance(balance) => Some(balance),
            _ => None,
        });
        let cut = balance.map_or(0, |balance| balance.cut_waiting(cx, of, cuts_max));
        cx.counters.flows_cut += cut as u64;
        cut
    }

    /// Does what is due without a packet: what is made goes to `cx.replies`.
    pub fn tick(&mut self, cx: &mut Cx<'_>) {
        for stage in &mut self.stages {
            if let StageKind::Balance(balance) = stage {
                balance.tick(cx);
            }
        }
    }

    /// Whether the XDP program may do what is left to do for packets like this one, which has
    /// passed all stages: nothing but to translate and to forward. What a stage does to packets
    /// of established flows stands here for each, so that none is left out unnoticed.
    pub fn lets_go(
        &self,
        snapshot: &Snapshot,
        names: &Names,
        flow: &Flow,
        meta: &PacketMeta,
    ) -> bool {
        let (in_port, meters) = (meta.in_port, &snapshot.meters);
        self.stages.iter().all(|stage| match stage {
            // Where hellos matter, a datagram may begin another connection.
            StageKind::Inspect(_) => {
                let may_begin = flow.proto != tcp::PROTOCOL && snapshot.rules.reads_hellos();
                flow.inspection == inspect::DONE && !may_begin
            }
            StageKind::Trust(_) => meters.trusts(in_port),
            // What was decided about a first packet comes to its flow when the batch is complete.
            StageKind::Classify(_) => {
                let decided = names.fates.iter().all(|fate| fate.key != flow.client_key());
                decided && flow.treatment == 0 && flow.steps == 0 && !flow.class.is_refused()
            }
            StageKind::Meter(_) => meters.of(flow.class, in_port).is_none(),
            StageKind::Timing(timing) => timing.lets_go(meta.flow, flow),
            // Of `dsr` and tunnels only what clients send is seen; what is not joined yet, or is
            // bound by its datagrams, has more done to it.
            // What shadowed connections say is copied here.
            StageKind::Balance(_) if snapshot.forward.shadows(&flow.client_key()) => false,
            StageKind::Balance(balance) => match flow.kind {
                FlowKind::Nat | FlowKind::Dnat | FlowKind::Transit => true,
                FlowKind::Spliced => {
                    flow.proto == tcp::PROTOCOL && balance.translation(meta.flow).is_some()
                }
                FlowKind::Dsr | FlowKind::Ipip | FlowKind::Gue => false,
            },
            StageKind::Route(_) => flow.kind == FlowKind::Transit || self.balances(),
            StageKind::Tap(_) => false,
        })
    }

    /// What is changed in the segments of a spliced flow, once it is joined.
    pub fn translation(&self, at: FlowRef) -> Option<Translation> {
        self.stages.iter().find_map(|stage| match stage {
            StageKind::Balance(balance) => balance.translation(at),
            _ => None,
        })
    }

    fn balances(&self) -> bool {
        self.stages.iter().any(|stage| matches!(stage, StageKind::Balance(_)))
    }

    /// Connections that are being bound now.
    pub fn bindings(&self) -> usize {
        self.splice().map_or(0, Splice::bindings)
    }

    /// Clients that have not said yet what their connections are bound by, as far as `of` has them.
    pub fn waiting(&self, of: impl Fn(&FlowKey) -> bool) -> usize {
        self.splice().map_or(0, |splice| splice.count_waiting(of))
    }

    /// As [`Splice::places`].
    pub fn binding_places(&self) -> usize {
        self.splice().map_or(0, Splice::places)
    }

    /// As [`Splice::binding_at`].
    pub fn binding_at(&self, place: usize) -> Option<&FlowKey> {
        self.splice()?.binding_at(place)
    }

    fn splice(&self) -> Option<&Splice> {
        self.stages.iter().find_map(|stage| match stage {
            StageKind::Balance(balance) => balance.splice(),
            _ => None,
        })
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::base::units::BitRate;
    use crate::base::{Addr, Nanos};
    use crate::flow::{FlowLimits, FlowTable, NewFlow, Timeouts};
    use crate::forward::{RoutesBuilder, Tables};
    use crate::packet::PortId;
    use crate::packet::{ClassId, PacketMeta};
    use crate::policy::Rules;
    use crate::policy::spec::{NamePattern, RuleSpec};
    use crate::qos::dscp::Remap;
    use crate::qos::meter::{MeterSpec, Second};
    use crate::qos::meters::{Action, ClassMeterSpec, MeteringSpec, Meters};

    const SEED: Seed = Seed(1);
    const PORT: PortId = PortId(1);

    fn snapshot(metering: &MeteringSpec) -> Snapshot {
        Snapshot {
            forward: Arc::new(Tables::build(&Default::default(), 1, SEED)),
            routes: Arc::new(RoutesBuilder::new(Vec::new(), SEED).build(1)),
            rules: Arc::new(Rules::compile(&[])),
            seed: SEED,
            worker_count: 1,
            meters: Arc::new(Meters::build(metering, None)),
            limits: Default::default(),
            shared_ports: Default::default(),
        }
    }

    fn flow(proto: u8) -> Flow {
        let limits = FlowLimits { flows_max: 1, half_open_max: 1 };
        let mut table = FlowTable::new(limits, Timeouts::default(), SEED);
        let (src, dst) = (Addr::v4(0xc633_6407), Addr::v4(0xcb00_7101));
        let key = FlowKey { src, dst, sport: 1, dport: 2, proto };
        let new = NewFlow {
            key,
            reply: Some(key.reversed()),
            kind: FlowKind::Nat,
            backend: 0,
            class: ClassId(3),
            idle_established_ms: None,
        };
        let at = table.insert(Nanos(0), &new, &PacketMeta::default()).expect("room");
        table.get(at).clone()
    }

    fn by(in_port: PortId) -> PacketMeta {
        PacketMeta { in_port, ..PacketMeta::default() }
    }

    fn pipeline(stage: StageSpec) -> Pipeline {
        Pipeline::compile(&PipelineSpec { name: String::new(), stages: vec![stage] }, None)
    }

    #[test]
    fn every_stage_says_which_flows_the_program_may_have() {
        use crate::packet::udp;
        let plain = snapshot(&MeteringSpec::default());
        let names = Names::new(4, SEED);
        let goes = |stage: &StageSpec, flow: &Flow| {
            pipeline(stage.clone()).lets_go(&plain, &names, flow, &by(PORT))
        };
        let changed = |change: fn(&mut Flow)| {
            let mut flow = flow(udp::PROTOCOL);
            change(&mut flow);
            flow
        };
        let inspect = StageSpec::Inspect {
            hello_bytes_max: 1_024,
            flows_max: 4,
            http_flows_max: 1,
            headers: Vec::new(),
        };
        assert!(!goes(&inspect, &flow(udp::PROTOCOL)), "not looked at yet");
        assert!(!goes(&inspect, &changed(|f| f.inspection = 2)), "followed");
        assert!(goes(&inspect, &changed(|f| f.inspection = inspect::DONE)));
        let sni = vec![NamePattern::Exact("a.example".into())];
        let rules = Rules::compile(&[RuleSpec { sni, ..RuleSpec::default() }]);
        let by_name = Snapshot { rules: Arc::new(rules), ..plain.clone() };
        let done = |proto| {
            let mut flow = flow(proto);
            flow.inspection = inspect::DONE;
            flow
        };
        let inspecting = pipeline(inspect.clone());
        let lets = |flow| inspecting.lets_go(&by_name, &names, &flow, &by(PORT));
        assert_eq!([udp::PROTOCOL, tcp::PROTOCOL].map(|proto| lets(done(proto))), [false, true]);
        let classify = StageSpec::Classify;
        assert!(goes(&classify, &flow(udp::PROTOCOL)));
        assert!(!goes(&classify, &changed(|f| f.treatment = 1)));
        assert!(!goes(&classify, &changed(|f| f.steps = 1)));
        assert!(!goes(&classify, &changed(|f| f.class = ClassId::RESET)));
        let timing = StageSpec::Timing { flows_max: 4, one_in: 1 };
        assert!(goes(&timing, &flow(udp::PROTOCOL)), "only TCP is timed");
        assert!(!goes(&timing, &flow(tcp::PROTOCOL)), "nothing is known of it");
        let balance = StageSpec::Balance;
        assert!(goes(&balance, &flow(tcp::PROTOCOL)));
        assert!(!goes(&balance, &changed(|f| f.kind = FlowKind::Spliced)));
        assert!(!goes(&balance, &changed(|f| f.kind = FlowKind::Dsr)));
        assert!(goes(&StageSpec::Route, &changed(|f| f.kind = FlowKind::Transit)));
        assert!(!goes(&StageSpec::Route, &flow(udp::PROTOCOL)), "a service's, not balanced");
        assert!(!goes(&StageSpec::Tap, &flow(udp::PROTOCOL)));
        assert!(goes(&StageSpec::Meter, &flow(udp::PROTOCOL)));
        assert!(goes(&StageSpec::Trust, &flow(udp::PROTOCOL)));
    }

    #[test]
    fn what_is_measured_or_mapped_stays() {
        let second = Second::Excess { burst: 100 };
        let meter = MeterSpec { rate: BitRate(8), burst: 200, second, is_colour_aware: false };
        let meter = ClassMeterSpec {
            name: "m".into(),
            meter,
            classes: vec![ClassId(3)],
            port: Some(PORT),
            actions: [Action::Pass; 3],
        };
        let trust = vec![Remap::TRUST, Remap::all_to(8)];
        let snapshot = snapshot(&MeteringSpec { meters: vec![meter], trust });
        for stage in [StageSpec::Meter, StageSpec::Trust] {
            let (pipeline, flow) = (pipeline(stage), flow(tcp::PROTOCOL));
            let goes =
                |port| pipeline.lets_go(&snapshot, &Names::new(4, SEED), &flow, &by(PortId(port)));
            assert_eq!([0, 1].map(goes), [true, false]);
        }
    }

    /// What the first packet decided is with the flow only once its batch is complete.
    #[test]
    fn a_decision_on_its_way_is_waited_for() {
        let (pipeline, flow) = (pipeline(StageSpec::Classify), flow(tcp::PROTOCOL));
        let (plain, mut names) = (snapshot(&MeteringSpec::default()), Names::new(4, SEED));
        let fate = crate::flow::Fate {
            key: flow.client_key(),
            hash: 0,
            class: ClassId::UNSET,
            treatment: 1,
            steps: 0,
            tenant: 0,
            dscp: 0,
        };
        names.fates.push(fate);
        assert!(!pipeline.lets_go(&plain, &names, &flow, &by(PORT)));
    }
}
