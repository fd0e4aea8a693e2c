//! A pipeline as its file describes it: ordered stages with their settings.

/// One stage and its settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StageSpec {
    /// Reads what new flows begin with until it is understood or out of bounds, and follows
    /// requests as far as rules need it.
    Inspect {
        /// Bytes of a ClientHello that are looked at.
        hello_bytes_max: u32,
        /// Flows of one worker that may be under inspection at once.
        flows_max: u32,
        /// Those among them that may speak HTTP.
        http_flows_max: u32,
        /// Header fields that rules ask for, in their order.
        headers: Vec<String>,
    },
    /// Trusts, maps or clears the code points that packets come with.
    Trust,
    /// Applies the rules: gives each flow its class.
    Classify,
    /// Measures the packets of classes, and drops or marks what is beyond its rate.
    Meter,
    /// Times the answers of connections.
    Timing {
        /// Connections of one worker that may be timed at once.
        flows_max: u32,
        /// Of all connections one in so many is timed.
        one_in: u32,
    },
    /// Binds flows of services to backends and rewrites their packets.
    Balance,
    /// Forwards by the routing table what no earlier stage has taken.
    Route,
    /// Sends through the egress port's class tree; without it a port is a plain FIFO.
    Shape,
    /// Follows flows and counts; transmits nothing.
    Tap,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PipelineSpec {
    pub name: String,
    pub stages: Vec<StageSpec>,
}
