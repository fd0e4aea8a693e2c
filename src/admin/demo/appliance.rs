//! The appliance of the demo: this program, running in its namespace.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::report;
use super::topology::{self, Topology, UNSHAPED_PIPELINE};
use crate::lab::{Process, wait_for};
use nix::sys::signal::Signal;

const START_LIMIT: Duration = Duration::from_secs(10);
const STOP_LIMIT: Duration = Duration::from_secs(10);

pub struct Appliance {
    process: Option<Process>,
    program: PathBuf,
    socket: PathBuf,
}

impl Appliance {
    /// Writes the configuration, starts the program and waits until it answers.
    ///
    /// # Errors
    /// It does not start: what it said is in the error.
    pub fn start(topology: &Topology, qos: bool, dir: &Path) -> Result<Appliance> {
        let program = std::env::current_exe().context("finding this program")?;
        let socket = dir.join("tidegate.sock");
        let file = dir.join("tidegate.toml");
        std::fs::write(&file, topology::config(qos, &socket.to_string_lossy()))?;
        std::fs::write(dir.join("unshaped.toml"), UNSHAPED_PIPELINE)?;
        let mut command = Command::new(&program);
        command.args(["run", "--log-level", "warn", "-c"]).arg(&file);
        let mut process = topology.appliance.spawn(command)?;
        let mut appliance = Appliance { process: None, program, socket };
        let up = wait_for(START_LIMIT, "the appliance to answer", || {
            !process.is_running() || appliance.show("counters").is_ok()
        });
        if up.is_err() || !process.is_running() {
            bail!("the appliance did not start:\n{}", process.kill_and_read_stderr());
        }
        appliance.process = Some(process);
        Ok(appliance)
    }

    fn show(&self, what: &str) -> Result<Value> {
        let out = Command::new(&self.program)
            .args(["show", what, "--json", "--socket"])
            .arg(&self.socket)
            .output()?;
        if !out.status.success() {
            bail!("show {what}: {}", String::from_utf8_lossy(&out.stderr));
        }
        Ok(serde_json::from_slice(&out.stdout)?)
    }

    /// Bytes sent on the wan port since the start.
    pub fn sent_to_users(&self) -> Result<u64> {
        let ports = self.show("ports")?;
        let wan = rows(&ports, "ports").iter().find(|p| p["name"] == "wan");
        wan.and_then(|p| p["tx_bytes"].as_u64()).context("no wan port in `show ports`")
    }

    /// Where the packets went.
    pub fn figures(&self) -> Result<report::Appliance> {
        let counters = self.show("counters")?;
        let drops = self.show("drops")?;
        let ports = self.show("ports")?;
        let total = |key: &str| counters["total"][key].as_u64().unwrap_or(0);
        Ok(report::Appliance {
            rx_packets: total("rx_packets"),
            tx_packets: total("tx_packets"),
            drops: rows(&drops, "drops")
                .iter()
                .filter_map(|d| Some((d["reason"].as_str()?.to_string(), d["packets"].as_u64()?)))
                .filter(|(_, n)| *n > 0)
                .collect(),
            ports: rows(&ports, "ports")
                .iter()
                .map(|p| {
                    let text = |k: &str| p[k].as_str().unwrap_or("?").to_string();
                    format!("{} {} {}", text("name"), text("attach"), text("copy"))
                })
                .collect(),
        })
    }

    /// Asks it to end and waits.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        process.signal(Signal::SIGTERM)?;
        let status = process.wait(STOP_LIMIT)?;
        if !status.success() {
            bail!("it ended with {status}: {}", process.kill_and_read_stderr());
        }
        Ok(())
    }
}

fn rows<'a>(answer: &'a Value, key: &str) -> &'a [Value] {
    answer[key].as_array().map_or(&[], Vec::as_slice)
}
