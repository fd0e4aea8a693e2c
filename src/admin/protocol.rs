//! What is said on the control socket: one JSON object a line, an answer for each question.
//!
//! ```text
//! > {"version":1,"ask":{"show":{"what":"drops"}}}
//! < {"version":1,"answer":{"ok":{…}}}
//! > {"version":1,"ask":"reload"}
//! < {"version":1,"answer":{"refused":"/etc/tidegate.toml:12:1: error: …"}}
//! ```
//! Questions on one connection are answered in order; the client closes. What is under `ok` is what
//! the command prints with `--json`. A question of another version is refused in words that name
//! both.

use serde::{Deserialize, Serialize};

use crate::control::DrainTarget;

/// Raised when a question or an answer changes its meaning; new ones may be added without.
pub const VERSION: u32 = 1;
/// Bytes of one question at most; longer ones end the connection.
pub const QUESTION_BYTES_MAX: usize = 4096;
/// Flows that one answer lists at most.
pub const FLOWS_MAX: usize = 65_536;

/// A line from the client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    pub version: u32,
    pub ask: Ask,
}

/// What the client wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Ask {
    /// Is anybody there: answered with the version and the process id.
    Ping,
    Show {
        what: What,
        /// Flows to list at most.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit: Option<usize>,
    },
    Reload,
    /// A reload that is undone unless it is confirmed in so many seconds.
    Try {
        within_secs: u64,
    },
    /// What a reload would change; nothing does.
    Compare,
    /// Keeps what is being tried.
    Confirm,
    /// Give no new flows, or new flows again; answered with the flows that are left.
    Drain {
        target: DrainTarget,
        drained: bool,
        /// The flows that are left are cut.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        flush: bool,
    },
    /// How many flows are left, and whether it is still drained.
    Drained {
        target: DrainTarget,
    },
    Stop,
}

/// What can be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// Packets and bytes received, sent, handed over, parked; by worker
    Counters,
    /// Threads, the workers that each runs, and how busy they are
    Workers,
    /// Dropped packets by reason
    Drops,
    /// Flows in the workers' tables
    Flows,
    /// Virtual addresses and the pools behind them
    Services,
    /// Backends with their weights and next hops
    Backends,
    /// Pools, and what their backends are chosen by: connections, answers' times, engines' metrics
    Pools,
    /// Interfaces, the mode each got, and what the XDP program steered
    Ports,
    /// Neighbours on the appliance's interfaces
    Neighbours,
    /// Classes of each port: sent, dropped, waiting
    Qos,
    /// Limits of connections and requests: what passed, what was refused
    Limits,
    /// Time to the first record of answers and between records, from the `timing` stage
    Latency,
    /// Answers of shadows against those of the services they stand beside
    Shadow,
}

/// A line to the client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    pub version: u32,
    pub answer: Answer,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    Ok(serde_json::Value),
    /// One sentence or several lines for a person.
    Error(String),
    /// The same, where the configuration is at fault.
    Refused(String),
}

impl Question {
    pub fn new(ask: Ask) -> Question {
        Question { version: VERSION, ask }
    }

    /// Reads a line.
    ///
    /// # Errors
    /// What is wrong with it, for the answer.
    pub fn parse(line: &str) -> Result<Question, String> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        // The version first: a later one may hold what this one can't read.
        let not = |e: serde_json::Error| format!("not a question of this protocol: {e}");
        let version = serde_json::from_str::<Versioned>(line).map_err(not)?.version;
        if version != VERSION {
            return Err(format!("protocol version {version}; this tidegate speaks {VERSION}"));
        }
        serde_json::from_str(line).map_err(not)
    }
}

impl Reply {
    pub fn new(answer: Answer) -> Reply {
        Reply { version: VERSION, answer }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_replies_round_trip_in_their_documented_form() {
        let asks = [
            (Ask::Ping, r#"{"version":1,"ask":"ping"}"#),
            (
                Ask::Show { what: What::Drops, limit: None },
                r#"{"version":1,"ask":{"show":{"what":"drops"}}}"#,
            ),
            (
                Ask::Show { what: What::Flows, limit: Some(3) },
                r#"{"version":1,"ask":{"show":{"what":"flows","limit":3}}}"#,
            ),
            (Ask::Reload, r#"{"version":1,"ask":"reload"}"#),
            (Ask::Try { within_secs: 60 }, r#"{"version":1,"ask":{"try":{"within_secs":60}}}"#),
            (Ask::Compare, r#"{"version":1,"ask":"compare"}"#),
            (Ask::Confirm, r#"{"version":1,"ask":"confirm"}"#),
            (
                Ask::Drain { target: DrainTarget::Pool("gpu".into()), drained: true, flush: false },
                r#"{"version":1,"ask":{"drain":{"target":{"pool":"gpu"},"drained":true}}}"#,
            ),
            (
                Ask::Drained { target: DrainTarget::Service("web".into()) },
                r#"{"version":1,"ask":{"drained":{"target":{"service":"web"}}}}"#,
            ),
            (Ask::Stop, r#"{"version":1,"ask":"stop"}"#),
        ];
        for (ask, line) in asks {
            let question = Question::new(ask);
            assert_eq!(serde_json::to_string(&question).expect("json"), line);
            assert_eq!(Question::parse(line), Ok(question));
        }
        let reply = Reply::new(Answer::Ok(serde_json::json!({"n": 1})));
        let line = r#"{"version":1,"answer":{"ok":{"n":1}}}"#;
        assert_eq!(serde_json::to_string(&reply).expect("json"), line);
        assert_eq!(serde_json::from_str::<Reply>(line).expect("json"), reply);
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_the_reason() {
        for (line, said) in [
            ("", "not a question"),
            ("{}", "missing field `version`"),
            (r#"{"version":2,"ask":{"dance":{}}}"#, "version 2; this tidegate speaks 1"),
            (r#"{"version":1,"ask":"dance"}"#, "unknown variant `dance`"),
            (r#"{"version":1,"ask":{"show":{"what":"drops","x":1}}}"#, "unknown field `x`"),
            (r#"{"version":1,"ask":"ping","more":1}"#, "unknown field `more`"),
        ] {
            let error = Question::parse(line).expect_err(line);
            assert!(error.contains(said), "{line}: {error}");
        }
    }
}
