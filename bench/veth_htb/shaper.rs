//! The two shapers, each with the tree.

use anyhow::Context;
use tempfile::TempDir;
use tidegate::lab::Process;

use crate::bed::{Bed, GENERATOR_CORE, ROUTER_CORE, VIP_PORT};
use crate::kernel::{self, Placement};
use crate::work;

/// Where nothing is to be held back: more than any core forwards.
const OPEN: u64 = 100_000_000_000;
/// Two tenants under the port, two leaves each, in percent of the one above. All packets are of the
/// second tenant's first leaf, whose ceil is the port's rate.
const TENANTS: [u64; 2] = [40, 60];
const LEAVES: [u64; 2] = [70, 30];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Tidegate,
    Htb(Placement),
}

impl Kind {
    pub const ALL: [Kind; 4] = [
        Kind::Tidegate,
        Kind::Htb(Placement::Threaded),
        Kind::Htb(Placement::Rps),
        Kind::Htb(Placement::SameCore),
    ];

    pub fn name(self) -> String {
        match self {
            Kind::Tidegate => "tidegate".to_owned(),
            Kind::Htb(placement) => format!("Linux HTB, {}", placement.name()),
        }
    }
}

/// A shaper at work, until dropped.
pub struct Shaper {
    _process: Option<Process>,
    /// Its configuration and socket.
    _dir: TempDir,
}

impl Shaper {
    /// `rate` in bit/s, of the frames without their check sequence; `None`: nothing is held back.
    ///
    /// # Errors
    /// A program that is not installed or does not start.
    pub fn start(bed: &Bed, kind: Kind, rate: Option<u64>) -> anyhow::Result<Shaper> {
        let rate = rate.unwrap_or(OPEN);
        let dir = tempfile::tempdir()?;
        let process = match kind {
            Kind::Tidegate => {
                Some(work::start_tidegate(&bed.router, &config(rate), dir.path(), GENERATOR_CORE)?)
            }
            Kind::Htb(placement) => {
                kernel::forward(&bed.router, placement, false)?;
                for words in htb(rate) {
                    let words: Vec<&str> = words.split(' ').collect();
                    bed.router.run("tc", &words).context("`tc` is of the package iproute2")?;
                }
                None
            }
        };
        Ok(Shaper { _process: process, _dir: dir })
    }
}

fn htb(rate: u64) -> Vec<String> {
    let class = |parent: &str, id: String, of: u64| {
        format!(
            "class add dev lan parent {parent} classid 1:{id} htb rate {of}bit ceil {rate}bit \
             quantum 20000"
        )
    };
    let mut all = vec!["qdisc add dev lan root handle 1: htb default 21".to_owned()];
    all.push(class("1:", "1".to_owned(), rate));
    for (t, tenant) in TENANTS.into_iter().enumerate() {
        let (id, of) = (10 * (t + 1), rate * tenant / 100);
        all.push(class("1:1", id.to_string(), of));
        for (l, leaf) in LEAVES.into_iter().enumerate() {
            all.push(class(&format!("1:{id}"), (id + l + 1).to_string(), of * leaf / 100));
        }
    }
    all.push(format!(
        "filter add dev lan parent 1: protocol ip prio 1 u32 match ip dport {VIP_PORT} 0xffff \
         flowid 1:21"
    ));
    all
}

fn config(rate: u64) -> String {
    let mut text = format!(
        "pipeline = \"router\"\n\
         [workers]\ncores = [{ROUTER_CORE}]\nidle = \"busy\"\nflows_max = 100000\n\
         heartbeat_limit = \"5s\"\n\
         [port.wan]\ninterface = \"wan\"\n[port.lan]\ninterface = \"lan\"\n\
         [transit]\nprefixes = [\"0.0.0.0/0\"]\n\
         [qos.lan]\nrate = \"{rate}bit/s\"\noverhead = 0\nmpu = 0\ndefault = \"c00\"\n"
    );
    for (t, tenant) in TENANTS.into_iter().enumerate() {
        text += &format!("[qos.lan.class.t{t}]\nrate = \"{tenant}%\"\n");
        for (l, leaf) in LEAVES.into_iter().enumerate() {
            text += &format!("[qos.lan.class.c{t}{l}]\nparent = \"t{t}\"\nrate = \"{leaf}%\"\n");
        }
    }
    text + &format!("[[rule]]\nname = \"flood\"\nport = [{VIP_PORT}]\nclass = \"c10\"\n")
}
