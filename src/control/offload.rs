//! By which ports the XDP programs forward flows themselves, and what they leave to the workers and
//! why: nothing falls back silently.

use super::appliance::Appliance;
use crate::config::Config;
use crate::graph::spec::StageSpec;
use crate::nic::spec::PortSpec;
use crate::nic::steer::NO_TARGET;
use crate::qos::dscp::Remap;

impl Appliance {
    /// Sees by which ports the XDP programs may send, and says what has changed.
    pub(super) fn refresh_offload(&mut self) {
        if let Err(error) = self.steering.refresh_targets() {
            return tracing::error!(%error, "offload to a port can't be set");
        }
        let steer = self.steering.steer();
        for (port, of) in self.config.ports.iter().zip(&mut self.ports) {
            let Some(of) = of.as_mut().filter(|_| !port.is_vacant()) else { continue };
            let state = state(&self.config, port, steer.is_target(usize::from(port.id.0)));
            match &of.offload {
                None if state == OFF => {}
                Some(before) if *before == state => {}
                _ if state.starts_with(NO) => {
                    tracing::warn!(
                        port = port.name,
                        "no flows are offloaded to it: {}",
                        &state[NO.len()..]
                    );
                }
                _ => tracing::info!(port = port.name, offload = state, "flows are offloaded to it"),
            }
            of.offload = Some(state);
        }
    }

    /// Has the programs forget what they were told: workers tell it anew, by what they have been
    /// given before this.
    pub(super) fn renew_offload(&mut self) {
        if self.config.workers.offload {
            self.reroute();
        }
    }
}

const OFF: &str = "off";
const YES: &str = "yes";
const NO: &str = "no: ";

/// Whether flows are offloaded to a port, as shown.
fn state(config: &Config, port: &PortSpec, takes_frames: bool) -> String {
    if !config.workers.offload {
        return OFF.into();
    }
    if let Some(reason) = refused(config, port, takes_frames) {
        return format!("{NO}{reason}");
    }
    let kept = kept(config, port);
    if kept.is_empty() { YES.into() } else { format!("{YES}, but not {}", kept.join(", not ")) }
}

/// Why nothing can go out by a port but what a worker sends.
fn refused(config: &Config, port: &PortSpec, takes_frames: bool) -> Option<&'static str> {
    let has = |stage| config.pipeline.stages.contains(&stage);
    if has(StageSpec::Tap) {
        return Some("the pipeline transmits nothing");
    }
    if has(StageSpec::Shape) && config.qos.iter().any(|qos| qos.port == port.id) {
        return Some("`[qos]` shapes what leaves by it");
    }
    (!takes_frames).then_some(NO_TARGET)
}

/// What stays with the workers all the same, besides connections that are just beginning or ending
/// and packets out of the ordinary.
fn kept(config: &Config, port: &PortSpec) -> Vec<String> {
    let trust = config.metering.trust.get(usize::from(port.id.0));
    let by_stage = config.pipeline.stages.iter().filter_map(|stage| match stage {
        StageSpec::Inspect { .. } => Some("flows that are inspected".into()),
        StageSpec::Trust => trust
            .is_some_and(|remap| *remap != Remap::TRUST)
            .then(|| format!("what comes in by it (`[dscp.{}]`)", port.name)),
        StageSpec::Classify => (!config.rules.is_empty())
            .then(|| "flows that rules mark, mirror or follow by size".into()),
        StageSpec::Meter => {
            (!config.metering.meters.is_empty()).then(|| "what meters measure".into())
        }
        StageSpec::Timing { one_in: 1, .. } => {
            Some("TLS and HTTP over TCP (stage `timing`)".into())
        }
        StageSpec::Timing { one_in, .. } => {
            Some(format!("one in {one_in} connections of TLS and HTTP (stage `timing`)"))
        }
        StageSpec::Balance => Some("`dsr` and QUIC with delayed binding".into()),
        StageSpec::Route | StageSpec::Shape | StageSpec::Tap => None,
    });
    let mut all: Vec<_> = by_stage.collect();
    if port.verify_checksums {
        all.push("what comes in by it (`verify_checksums`)".into());
    }
    all
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn shown(text: &str, takes_frames: bool) -> Vec<String> {
        let config = crate::config::load_text(Path::new("t.toml"), text).expect("a good file");
        config.ports.iter().map(|port| state(&config, port, takes_frames)).collect()
    }

    fn text(pipeline: &str, offload: &str, more: &str) -> String {
        format!(
            "pipeline = \"{pipeline}\"\n[workers]\noffload = \"{offload}\"\n\
             [port.a]\ninterface = \"a\"\n[port.b]\ninterface = \"b\"\nverify_checksums = true\n\
             [transit]\nprefixes = [\"10.0.0.0/8\"]\n{more}"
        )
    }

    #[test]
    fn each_reason_is_named() {
        let off = shown(&text("router", "off", ""), true);
        assert_eq!(off, ["off", "off"]);
        let checks = "yes, but not what comes in by it (`verify_checksums`)";
        assert_eq!(shown(&text("router", "auto", ""), true), ["yes", checks]);
        let no = shown(&text("router", "auto", ""), false);
        assert!(no.iter().all(|s| s.starts_with("no: its device takes no frames")), "{no:?}");
        let qos = "[qos.a]\nrate = \"1Gbit/s\"\ndefault = \"c\"\n[qos.a.class.c]\nrate = \"10%\"\n\
                   [dscp.b]\ntrust = false\n";
        let mixed = shown(&text("router", "auto", qos), true);
        assert_eq!(mixed[0], "no: `[qos]` shapes what leaves by it");
        assert!(mixed[1].starts_with("yes, but not what comes in by it (`[dscp.b]`), not "));
        let tap = shown(&text("tap", "auto", ""), true);
        assert_eq!(tap, ["no: the pipeline transmits nothing"; 2]);
    }
}
