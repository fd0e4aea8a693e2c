//! `tidegate pktgen`: a generator and meter of UDP packets, for the lab.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

mod flows;
mod report;
mod xdp;

use flows::{FlowSet, LATENCY_SIZE_MIN, parse_stamp, size_min};
use report::Meter;
pub use report::{Direction, Latency, Report};

use crate::base::Nanos;
use crate::nic::ethtool::Ethtool;
use crate::nic::link::{index_of, mac_of};
use crate::nic::restore::{STATE_DIR, restore_leftovers};
use crate::nic::spec::{AttachMode, CopyMode, PortSpec};
use crate::nic::steer::{Heartbeat, SHARE_ALL, VipEntry, kernel_now};
use crate::nic::xsk::XskPort;
use crate::nic::{Nic, Port, open};
use crate::packet::{Frame, FramePool, PortId};
use crate::worker::spec::{IdleStrategy, OnFailure, WorkersSpec};

/// Packets sent or received at once.
const BURST: usize = 64;
/// Packets without an answer are waited for this long after the last was sent.
const DRAIN: Duration = Duration::from_millis(300);
/// Flows at most: each has its packet ready in memory.
const FLOWS_MAX: u32 = 1_000_000;
const UDP: u8 = 17;

const EXAMPLES: &str = "\
Examples:
  As fast as possible for 5 s, 10,000 flows, to a service behind the router's MAC address:
    tidegate pktgen -i veth0 --dst 203.0.113.1:443 --dst-mac 02:00:00:00:00:01 \\
      --flows 10000 --seconds 5
  Count what arrives on the other side, as JSON:
    tidegate pktgen -i veth3 --mode rx --seconds 6 --json
  100,000 packets a second out, back in, and how long they took:
    tidegate pktgen -i veth0 --mode both --dst 10.0.0.2:9 --dst-mac 02:00:00:00:00:01 \\
      --rate 100000 --latency
  More than any forwarder takes, made in the kernel (on veth, the other end needs GRO or XDP):
    tidegate pktgen -i veth0 --engine xdp --dst 203.0.113.1:443 --dst-mac 02:00:00:00:00:01";

/// Who makes and sends the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// We, through AF_XDP sockets.
    AfXdp,
    /// The kernel, which runs a program of ours over XDP frames (Linux 5.18): several times as
    /// fast; sends only.
    Xdp,
}

/// What to do with packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Send.
    Tx,
    /// Receive and count.
    Rx,
    /// Send, and count what comes back on the same interface.
    Both,
}

/// Arguments of `tidegate pktgen`.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct PktgenArgs {
    /// Interface to send and receive on; all its queues are used.
    #[arg(short, long)]
    pub interface: String,
    #[arg(short, long, value_enum, default_value_t = Mode::Tx)]
    pub mode: Mode,
    #[arg(long, value_enum, default_value_t = Engine::AfXdp)]
    pub engine: Engine,
    /// Destination address and port, such as 203.0.113.1:443 or [2001:db8::1]:443.
    #[arg(long)]
    pub dst: Option<SocketAddr>,
    /// Destination MAC address: the next hop's.
    #[arg(long, value_parser = parse_mac)]
    pub dst_mac: Option<[u8; 6]>,
    /// Source address and port of the first flow [default: 198.18.0.1:1024 or [2001:2::1]:1024].
    #[arg(long)]
    pub src: Option<SocketAddr>,
    /// Flows, sent in turn: the source port counts up, then the source address.
    #[arg(long, default_value_t = 1)]
    pub flows: u32,
    /// Bytes of a frame without its check sequence (64 on the wire are 60 here).
    #[arg(long, default_value_t = 60)]
    pub size: u16,
    /// Packets a second; 0: as many as possible.
    #[arg(long, default_value_t = 0)]
    pub rate: u64,
    /// How long to run; 0: until the count is reached, or Ctrl-C.
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
    /// Packets to send, or to receive with --mode rx; 0: no limit.
    #[arg(long, default_value_t = 0)]
    pub count: u64,
    /// Receive only UDP packets to this address and port; without it all IP packets of the
    /// interface are taken from the kernel.
    #[arg(long)]
    pub receive: Vec<SocketAddr>,
    /// Send the time in the payload, and measure it in what is received.
    #[arg(long)]
    pub latency: bool,
    /// XDP mode.
    #[arg(long, value_enum, default_value_t = Attach::Auto)]
    pub attach: Attach,
    /// Core to run on.
    #[arg(long)]
    pub core: Option<usize>,
    /// Descriptors of each ring, a power of two.
    #[arg(long, default_value_t = 2048)]
    pub ring: u32,
    /// Print the result as JSON on standard output.
    #[arg(long)]
    pub json: bool,
    /// Print no line each second.
    #[arg(short, long)]
    pub quiet: bool,
}

/// [`AttachMode`] on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Attach {
    Auto,
    Native,
    Generic,
}

/// Runs until the time or the count is reached, or a signal comes; returns what is to be printed.
///
/// # Errors
/// Arguments that contradict each other (a [`clap::Error`]), or a port that can't be opened.
pub fn run(args: &PktgenArgs) -> anyhow::Result<String> {
    let signals = catch_signals()?;
    let report = measure(args, Some(&signals))?;
    Ok(match args.json {
        true => serde_json::to_string_pretty(&report)? + "\n",
        false => report.to_string(),
    })
}

/// As [`run`], but returns the result itself. Runs in the network namespace of the calling thread.
///
/// # Errors
/// As [`run`].
pub fn measure(args: &PktgenArgs, signals: Option<&SignalFd>) -> anyhow::Result<Report> {
    let flows = flow_set(args)?;
    if let Some(id) = args.core
        && !core_affinity::set_for_current(core_affinity::CoreId { id })
    {
        bail!("core {id}: can't be used");
    }
    if args.engine == Engine::Xdp {
        return xdp::send(args, flows, signals);
    }
    let state = Path::new(STATE_DIR);
    restore_leftovers(state).context("restoring what an earlier run has left changed")?;
    let mut nic = open_nic(args, state)?;
    let beats = (0..nic.ports.len()).map(|w| nic.steer.heartbeat(w as u16)).collect();
    let mode = &nic.modes[0];
    let meter = Meter::new(&args.interface, mode.native, mode.zero_copy, kernel_now());
    let queues = nic.ports.iter_mut().zip(&mut nic.pools);
    let queues = queues.filter_map(|(ports, pool)| Some((ports.first_mut()?, pool))).collect();
    let mut engine = Sockets { args, flows, queues, beats, meter };
    let result = engine.run(signals);
    let rx_missed = engine.close();
    result?;
    Ok(engine.meter.report(rx_missed))
}

fn parse_mac(text: &str) -> Result<[u8; 6], String> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16).ok().filter(|_| part.len() <= 2))
        .collect();
    let bytes = bytes.and_then(|b| b.try_into().ok());
    bytes.ok_or_else(|| "six bytes in hexadecimal with colons, such as 02:00:00:00:00:01".into())
}

/// An error that ends the process with status 2 where `main` lets clap report it.
fn usage(message: impl std::fmt::Display) -> anyhow::Error {
    clap::Error::raw(clap::error::ErrorKind::ValueValidation, format!("{message}\n")).into()
}

/// The packets to send; none with `--mode rx`.
fn flow_set(args: &PktgenArgs) -> anyhow::Result<Option<FlowSet>> {
    if args.mode == Mode::Rx {
        return Ok(None);
    }
    let (Some(dst), Some(dst_mac)) = (args.dst, args.dst_mac) else {
        return Err(usage("--dst and --dst-mac are needed for sending"));
    };
    let src = args.src.unwrap_or_else(|| match dst {
        // RFC 2544 and RFC 5180 set these apart for benchmarks.
        SocketAddr::V4(_) => SocketAddr::new(Ipv4Addr::new(198, 18, 0, 1).into(), 1024),
        SocketAddr::V6(_) => {
            SocketAddr::new(IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 1)), 1024)
        }
    });
    if src.is_ipv4() != dst.is_ipv4() {
        return Err(usage(format!("--src {src} and --dst {dst} are of different families")));
    }
    if !(1..=FLOWS_MAX).contains(&args.flows) {
        return Err(usage(format!("--flows {}: 1 to {FLOWS_MAX}", args.flows)));
    }
    let least = size_min(dst) + if args.latency { LATENCY_SIZE_MIN } else { 0 };
    if !(least..=1514).contains(&usize::from(args.size)) {
        let size = args.size;
        return Err(usage(format!("--size {size}: {least} to 1514 with these settings")));
    }
    let index =
        index_of(&args.interface).with_context(|| format!("interface {}", args.interface))?;
    let src_mac = mac_of(index).with_context(|| format!("interface {}", args.interface))?;
    Ok(Some(FlowSet::new([src_mac, dst_mac], src, dst, args.flows, usize::from(args.size))))
}

/// SIGINT and SIGTERM end the run instead of the process, so that the result is printed.
fn catch_signals() -> anyhow::Result<SignalFd> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGINT);
    set.add(Signal::SIGTERM);
    set.thread_block()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}

fn open_nic(args: &PktgenArgs, state: &Path) -> anyhow::Result<Nic> {
    let channels = Ethtool::open()?
        .channels(&args.interface)
        .with_context(|| format!("interface {}", args.interface))?;
    let queues = channels.receive().min(channels.transmit()).max(1) as u16;
    let port = PortSpec {
        id: PortId(0),
        name: args.interface.clone(),
        interface: args.interface.clone(),
        attach: match args.attach {
            Attach::Auto => AttachMode::Auto,
            Attach::Native => AttachMode::Native,
            Attach::Generic => AttachMode::Generic,
        },
        copy: CopyMode::Auto,
        rx_ring: args.ring,
        tx_ring: args.ring,
        busy_poll: None,
        verify_checksums: false,
        table: None,
    };
    let workers = WorkersSpec {
        // One thread drives all queues as if it were a worker for each.
        count: 1,
        count_max: queues,
        cores: Vec::new(),
        idle: IdleStrategy::Busy,
        on_failure: OnFailure::Pass,
        offload: false,
        heartbeat_limit: Duration::from_secs(1),
        frames: args.ring.saturating_mul(3).max(1024),
        frame_size: 2048,
        huge_pages: false,
        flows_max: 0,
        half_open_max: 0,
        drain_limit: Duration::ZERO,
    };
    let mut nic = open(&[port], &workers, state)?;
    if args.mode != Mode::Tx {
        if args.receive.is_empty() {
            let all = ["0.0.0.0/0", "::/0"].map(|p| p.parse().map_err(anyhow::Error::msg));
            nic.steer.set_transit(&all.into_iter().collect::<anyhow::Result<Vec<_>>>()?)?;
        }
        let wanted = args.receive.iter().map(|at| VipEntry {
            addr: at.ip().into(),
            port: at.port(),
            proto: UDP,
            canary_share: SHARE_ALL as u16,
        });
        nic.steer.set_vips(&wanted.collect::<Vec<_>>())?;
    }
    Ok(nic)
}

/// When to end, if not before.
fn end_of(args: &PktgenArgs, begin: Nanos) -> anyhow::Result<Nanos> {
    Ok(match args.seconds {
        s if s > 0.0 => begin + Duration::try_from_secs_f64(s)?,
        _ => Nanos::MAX,
    })
}

/// One thread that sends and receives on all queues of a port.
struct Sockets<'a> {
    args: &'a PktgenArgs,
    flows: Option<FlowSet>,
    queues: Vec<(&'a mut XskPort, &'a mut FramePool)>,
    beats: Vec<Heartbeat>,
    meter: Meter,
}

impl Sockets<'_> {
    fn run(&mut self, signals: Option<&SignalFd>) -> anyhow::Result<()> {
        let begin = kernel_now();
        let end = end_of(self.args, begin)?;
        let mut frames = Vec::with_capacity(BURST);
        let mut next_line = begin + Duration::from_secs(1);
        let mut stop_at = end;
        let mut queue = 0;
        loop {
            let now = kernel_now();
            if now >= stop_at {
                break;
            }
            let sending = self.flows.is_some() && now < end && !self.all_sent();
            if sending {
                self.send(queue, now.since(begin), now, &mut frames);
            } else if self.flows.is_some() && stop_at > now + DRAIN {
                stop_at = now + DRAIN;
            }
            self.receive(queue, now, &mut frames);
            if self.flows.is_none() && self.reached(self.meter.rx_packets()) {
                break;
            }
            if now >= next_line {
                next_line += Duration::from_secs(1);
                if !self.args.quiet {
                    eprintln!("{}", self.meter.line(now));
                }
                if let Some(signals) = signals
                    && signals.read_signal()?.is_some()
                {
                    break;
                }
            }
            queue = if queue + 1 == self.queues.len() { 0 } else { queue + 1 };
        }
        Ok(())
    }

    fn reached(&self, packets: u64) -> bool {
        self.args.count > 0 && packets >= self.args.count
    }

    fn all_sent(&self) -> bool {
        self.reached(self.meter.tx_packets())
    }

    /// Sends what is due by rate and count, a burst at most.
    fn send(&mut self, queue: usize, elapsed_ns: u64, now: Nanos, frames: &mut Vec<Frame>) {
        let sent = self.meter.tx_packets();
        let mut want = BURST as u64;
        if self.args.rate > 0 {
            let due = u128::from(elapsed_ns) * u128::from(self.args.rate) / 1_000_000_000;
            want = want.min(u64::try_from(due).unwrap_or(u64::MAX).saturating_sub(sent));
        }
        if self.args.count > 0 {
            want = want.min(self.args.count.saturating_sub(sent));
        }
        let Some(flows) = &mut self.flows else { return };
        let (port, pool) = &mut self.queues[queue];
        let room = port.tx_room().min(want as usize);
        for _ in 0..room {
            let Some(mut frame) = pool.take() else { break };
            let fits = frame.set_extent(pool.arena(), frame.offset(), flows.size());
            debug_assert!(fits, "frames hold 1514 bytes");
            flows.write_next(frame.bytes_mut(pool.arena()), self.args.latency.then_some(now));
            frames.push(frame);
        }
        if !frames.is_empty() {
            let n = port.tx_burst(now, pool, frames);
            self.meter.sent(now, n, n * flows.size());
            frames.drain(..).for_each(|f| pool.put(f));
        }
    }

    fn receive(&mut self, queue: usize, now: Nanos, frames: &mut Vec<Frame>) {
        self.beats[queue].beat(now);
        let (port, pool) = &mut self.queues[queue];
        port.poll(now, pool);
        if port.rx_burst(now, pool, frames, BURST) == 0 {
            return;
        }
        for frame in frames.drain(..) {
            let bytes = frame.bytes(pool.arena());
            let stamp = if self.args.latency { parse_stamp(bytes) } else { None };
            self.meter.received(now, bytes.len(), stamp.map(|at| now.since(at)));
            pool.put(frame);
        }
    }

    /// Closes all queues and returns how many packets they have missed.
    fn close(&mut self) -> u64 {
        let mut missed = 0;
        for (port, pool) in &mut self.queues {
            port.close(pool);
            missed += port.stats().rx_missed;
        }
        missed
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches, Parser};

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: PktgenArgs,
    }

    fn parse(args: &[&str]) -> Result<PktgenArgs, String> {
        let all = ["pktgen", "-i", "lo"].into_iter().chain(args.iter().copied());
        let matches = Cli::command().try_get_matches_from(all).map_err(|e| e.to_string())?;
        Cli::from_arg_matches(&matches).map(|c| c.args).map_err(|e| e.to_string())
    }

    #[test]
    fn sending_needs_a_destination_and_receiving_none() {
        assert!(parse(&["--mode", "rx"]).is_ok());
        let error = flow_set(&parse(&[]).expect("mode tx")).err().expect("no destination");
        assert_eq!(error.downcast_ref::<clap::Error>().map(clap::Error::exit_code), Some(2));
        let to = ["--dst", "10.0.0.1:9", "--dst-mac", "02:0:0:0:0:ff"];
        let args = parse(&to).expect("complete");
        assert_eq!(args.dst_mac, Some([2, 0, 0, 0, 0, 255]));
        assert!(parse(&["--dst", "10.0.0.1:9", "--dst-mac", "02:00:00:00:01"]).is_err());
        Cli::command().debug_assert();
    }

    #[test]
    fn contradictions_are_refused() {
        let refuse = |more: &[&str], wanted: &str| {
            let to = ["--dst", "10.0.0.1:9", "--dst-mac", "02:00:00:00:00:01"];
            let args = parse(&[&to[..], more].concat()).expect("well-formed");
            let error = flow_set(&args).err().expect(wanted).to_string();
            assert!(error.contains(wanted), "{error}");
        };
        refuse(&["--src", "[::1]:9"], "different families");
        refuse(&["--flows", "0"], "1 to 1000000");
        refuse(&["--size", "40"], "42 to 1514");
        refuse(&["--size", "50", "--latency"], "54 to 1514");
    }
}
