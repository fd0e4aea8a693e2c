//! Flows as workers list them when they are asked.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::oneshot;

use super::appliance::Appliance;
use super::run::Control;
use super::view::{FlowView, FlowsView, SeenView, protocol_text};
use crate::base::text::printable;
use crate::base::{Addr, Nanos};
use crate::config::Config;
use crate::flow::{Flow, FlowKind, Note, TcpState};
use crate::inspect::AlpnList;
use crate::packet::{ClassId, CopyTo, FlowKey};
use crate::worker::WorkerCommand;
use crate::worker::command::{FlowList, FlowRow};

/// Workers that have not listed their flows by then hang: the others' are shown.
const LISTED_WITHIN: Duration = Duration::from_secs(2);
/// Listings of flows that wait for the one under way.
const WAITING_MAX: usize = 16;
/// Flows asked of one worker at once: the list is memory of ours that the worker fills.
const PART_FLOWS: usize = 16_384;

/// A listing of flows under way, and those that wait for it.
#[derive(Default)]
pub(super) struct Listing {
    now: Option<UnderWay>,
    waiting: Vec<(usize, oneshot::Sender<FlowsView>)>,
}

struct UnderWay {
    limit: usize,
    reply: oneshot::Sender<FlowsView>,
    awaited: BTreeSet<u16>,
    deadline: Nanos,
    flows: Vec<FlowView>,
}

impl Control {
    pub(super) fn list_flows(&mut self, limit: usize, reply: oneshot::Sender<FlowsView>) {
        if self.listing.now.is_some() {
            if self.listing.waiting.len() < WAITING_MAX {
                self.listing.waiting.push((limit, reply));
            }
            return;
        }
        let a = &mut self.appliance;
        for seat in &mut a.crew.seats {
            let rows = Vec::with_capacity(limit.clamp(1, PART_FLOWS));
            seat.send(WorkerCommand::ListFlows(FlowList { cursor: 0, rows }));
        }
        self.listing.now = Some(UnderWay {
            limit,
            reply,
            awaited: a.crew.seats.iter().map(|s| s.id).collect(),
            deadline: a.clock.now() + LISTED_WITHIN,
            flows: Vec::new(),
        });
    }

    /// A worker has listed some of its flows; it is asked for more while there is need.
    pub(super) fn flows_listed(&mut self, worker: u16, list: FlowList) {
        let a = &mut self.appliance;
        let Some(now) = &mut self.listing.now else { return };
        let clock = a.clock.now();
        let room = now.limit.saturating_sub(now.flows.len());
        let rows = list.rows.iter().take(room);
        now.flows.extend(rows.map(|row| flow_view(worker, row, clock, &a.config)));
        if list.cursor != 0
            && now.flows.len() < now.limit
            && let Some(seat) = a.crew.seats.iter_mut().find(|s| s.id == worker)
        {
            seat.send(WorkerCommand::ListFlows(list));
            return;
        }
        now.awaited.remove(&worker);
    }
}

impl Control {
    /// Answers when all workers have listed their flows, or one hangs; then the next may ask.
    pub(super) fn check_listing(&mut self) {
        let time = self.appliance.clock.now();
        let over = |u: &mut UnderWay| u.awaited.is_empty() || time >= u.deadline;
        let Some(done) = self.listing.now.take_if(over) else { return };
        let total = total_flows(&self.appliance);
        let _ = done.reply.send(FlowsView { flows: done.flows, total });
        if !self.listing.waiting.is_empty() {
            let (limit, reply) = self.listing.waiting.remove(0);
            self.list_flows(limit, reply);
        }
    }
}

fn total_flows(appliance: &Appliance) -> u64 {
    appliance.crew.seats.iter().map(|s| s.stats().gauges.flows).sum()
}

fn flow_view(worker: u16, row: &FlowRow, now: Nanos, config: &Config) -> FlowView {
    let flow = &row.flow;
    let key = &flow.client_key();
    let name = printable(row.name());
    let class = config.class_names.get(usize::from(flow.class.0));
    FlowView {
        worker,
        kind: kind_text(flow.kind).into(),
        protocol: protocol_text(key.proto),
        client: endpoint(key.src, key.sport),
        server: endpoint(key.dst, key.dport),
        service: service_name(config, key),
        backend: backend(flow),
        class: class.filter(|_| flow.class != ClassId::UNSET).cloned(),
        sni: Some(name).filter(|n| !n.is_empty()),
        seen: seen_view(row, config),
        state: state_text(flow.tcp).into(),
        packets_forward: flow.packets()[0].into(),
        packets_reply: flow.packets()[1].into(),
        bytes_forward: flow.bytes()[0],
        bytes_reply: flow.bytes()[1],
        offloaded_forward: row.offloaded[0],
        offloaded_reply: row.offloaded[1],
        idle_secs: now.since(flow.last_seen()) as f64 / 1e9,
    }
}

fn seen_view(row: &FlowRow, config: &Config) -> SeenView {
    let text = |bytes: &[u8]| (!bytes.is_empty()).then(|| printable(bytes));
    let default = Note::default();
    let note = row.note.as_ref().unwrap_or(&default);
    let (authority, path) = (note.authority.get(), note.path.get());
    let some = |bytes| Some(bytes).filter(|bytes: &&[u8]| !bytes.is_empty());
    let host = some(row.name()).or(some(authority));
    let known = config.catalogue.find(host, some(path));
    let operation = known.and_then(|known| known.operation);
    let tenant = row.note.as_ref().and_then(|n| config.tenant_names.get(usize::from(n.tenant)));
    SeenView {
        app: text(note.app.as_bytes()),
        unknown: text(note.unknown.as_bytes()),
        alpn: AlpnList::from_wire(note.alpn.get()).iter().map(printable).collect(),
        alpn_chosen: text(note.alpn_chosen.get()),
        tls_version: (note.tls_version > 0).then(|| format!("{:04x}", note.tls_version)),
        tls_versions: numbers(&note.hello.versions),
        ja4: text(note.ja4.get()),
        ech: note.hello.encrypted.map(|kind| kind.to_string()),
        pq: numbers(&note.hello.groups),
        quic_version: some_version(note.hello.quic_version),
        resumed: note.hello.resumed,
        early_data: note.hello.early_data,
        conflicts: note.conflicts,
        authority: text(authority),
        method: text(note.method.get()),
        path: text(path),
        requests: (note.requests > 0).then_some(note.requests),
        status: (note.status > 0).then_some(note.status),
        grpc_status: note.grpc_status,
        event_stream: note.event_stream,
        provider: known.map(|known| known.provider.to_owned()),
        operation: operation.map(|operation| operation.name().to_owned()),
        tenant: tenant.cloned(),
        set_dscp: row.treatment.dscp,
        mirror: row.treatment.mirror.and_then(|to| copies_name(config, to)),
    }
}

/// In hexadecimal, up to the first that is none.
fn numbers(list: &[u16]) -> Vec<String> {
    list.iter().take_while(|&&n| n != 0).map(|n| format!("{n:04x}")).collect()
}

fn some_version(version: u32) -> Option<String> {
    (version != 0).then(|| format!("{version:08x}"))
}

/// A port's name, that of a collector that keeps files, or another's address: its name may have
/// changed since.
fn copies_name(config: &Config, to: CopyTo) -> Option<String> {
    match to {
        CopyTo::Port(id) => config.ports.iter().find(|p| p.id == id).map(|p| p.name.clone()),
        CopyTo::Host(host) => Some(host.to_string()),
        CopyTo::Files(id) => config.files.iter().find(|f| f.id == id).map(|f| f.name.clone()),
    }
}

fn kind_text(kind: FlowKind) -> &'static str {
    match kind {
        FlowKind::Transit => "transit",
        FlowKind::Nat => "nat",
        FlowKind::Dnat => "dnat",
        FlowKind::Dsr => "dsr",
        FlowKind::Ipip => "ipip",
        FlowKind::Gue => "gue",
        FlowKind::Spliced => "spliced",
    }
}

fn endpoint(addr: Addr, port: u16) -> String {
    std::net::SocketAddr::new(addr.to_ip(), port).to_string()
}

/// By address: numbers of services may have moved since the flow was opened.
fn service_name(config: &Config, key: &FlowKey) -> Option<String> {
    let at = |s: &&crate::forward::spec::ServiceSpec| {
        (s.vip, s.port, s.proto) == (key.dst, key.dport, key.proto)
    };
    config.forward.services.iter().find(at).map(|s| s.name.clone())
}

/// Where packets go, if not to where the client has sent them.
fn backend(flow: &Flow) -> Option<String> {
    let reply = &flow.server_key();
    (flow.kind != FlowKind::Transit).then(|| endpoint(reply.src, reply.sport))
}

/// In the words of RFC 9293, where it has any.
fn state_text(state: TcpState) -> &'static str {
    match state {
        TcpState::Vacant => "vacant",
        TcpState::SynSent => "syn-sent",
        TcpState::SynReceived => "syn-received",
        TcpState::OneWay => "one-way",
        TcpState::Established => "established",
        TcpState::FinForward => "fin-from-client",
        TcpState::FinReply => "fin-from-server",
        TcpState::TimeWait => "time-wait",
        TcpState::LastAck => "last-ack",
        TcpState::Reset => "reset",
        TcpState::Cut => "cut",
    }
}
