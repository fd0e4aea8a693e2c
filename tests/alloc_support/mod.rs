//! What boxes are configured with whose allocations are watched: a class tree, meters, limits.

use tidegate::packet::{ClassId, PortId};
use tidegate::qos::dscp::Remap;
use tidegate::qos::limits::{ClientsSpec, Excess, LimitSpec, LimitsSpec};
use tidegate::qos::meter::{MeterSpec, Second};
use tidegate::qos::meters::{Action, ClassMeterSpec, MeteringSpec};
use tidegate::qos::spec::{ClassSpec, PortQosSpec};
use tidegate::qos::tokens::Pace;

pub fn qos(port: u16) -> PortQosSpec {
    let rate = |text: &str| text.parse().expect("a rate");
    let class = |id: u16| ClassSpec {
        id: ClassId(id),
        name: format!("c{id}"),
        parent: None,
        rate: rate("10Mbit/s"),
        ceil: rate("50Mbit/s"),
        burst: 20_000,
        cburst: 20_000,
        priority: id as u8,
        weight: 1,
        quantum: None,
        overhead: None,
        mpu: None,
        flow_rate: None,
        limit: 50_000,
        queue: Default::default(),
    };
    PortQosSpec {
        port: PortId(port),
        rate: rate("50Mbit/s"),
        burst: 20_000,
        overhead: 24,
        mpu: 84,
        mtu: 1_514,
        default_class: ClassId(1),
        classes: (0..2).map(class).collect(),
    }
}

/// A meter for each class, one by each RFC, and ports that trust nothing.
pub fn metering() -> MeteringSpec {
    let rate = |text: &str| text.parse().expect("a rate");
    let peak = Second::Peak { rate: rate("40Mbit/s"), burst: 4_000 };
    let both = [Second::Excess { burst: 4_000 }, peak].into_iter().enumerate();
    let meters = both.map(|(i, second)| ClassMeterSpec {
        name: format!("m{i}"),
        meter: MeterSpec { rate: rate("20Mbit/s"), burst: 4_000, second, is_colour_aware: true },
        classes: vec![ClassId(i as u16)],
        port: None,
        actions: [Action::Pass, Action::Precedence, Action::Dscp(8)],
    });
    MeteringSpec { meters: meters.collect(), trust: vec![Remap::all_to(10); 2] }
}

/// Limits for each service, one of each client and one of all, by rules and by clients too.
pub fn limits() -> LimitsSpec {
    let pace = |count, burst| Some(Pace { count, per_ns: 1_000_000_000, burst });
    let clients = Some(ClientsSpec { v4_len: 28, v6_len: 60, max: 16 });
    let limit = |name: &str, clients, excess| LimitSpec {
        name: name.into(),
        connections: pace(1_000, 10),
        requests: pace(10, 2),
        clients,
        excess,
    };
    LimitsSpec {
        limits: vec![limit("each", clients, Excess::Drop), limit("all", None, Excess::Reset)],
        of_rule: vec![Some(0), Some(1)],
        of_service: vec![Some(1), Some(0)],
        of_clients: vec![("10.0.0.0/8".parse().expect("a prefix"), 0)],
    }
}
