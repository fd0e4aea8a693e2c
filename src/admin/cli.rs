//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use super::demo::DemoArgs;
use super::logs::LogFormat;
use super::pktgen::PktgenArgs;
use super::protocol::What;
use super::simulate::SimulateArgs;
use crate::base::units::parse_duration;

/// Where the control socket is unless the configuration or `--socket` says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/tidegate/tidegate.sock";

/// A userspace packet router and QoS scheduler for the edge of an LLM inference cluster.
#[derive(Debug, Parser)]
#[command(
    name = "tidegate",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 success, 1 failure, 2 bad usage or configuration.\n\
                  Errors and logs go to standard error."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,

    /// What is logged: error, warn, info, debug, trace, or a filter as in RUST_LOG [default:
    /// RUST_LOG, else info]
    #[arg(long, global = true, value_name = "LEVEL")]
    pub log_level: Option<String>,

    /// Form of log lines
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the appliance until it is stopped
    #[command(after_help = "Examples:\n  \
        tidegate run -c /etc/tidegate/tidegate.toml\n  \
        tidegate run -c edge.toml --log-format json\n\n\
        SIGHUP reloads the configuration; SIGTERM and SIGINT drain within `drain_limit` and end.")]
    Run(ConfigArgs),

    /// Validate a configuration and its pipeline; every error with file:line:column
    #[command(after_help = "Examples:\n  \
        tidegate check -c edge.toml\n  \
        tidegate check -c edge.toml --json | jq .errors\n  \
        tidegate check -c new.toml --against edge.toml")]
    Check {
        #[command(flatten)]
        config: ConfigArgs,
        /// Tell what differs from this configuration, and what of that needs a restart
        #[arg(long, value_name = "FILE")]
        against: Option<PathBuf>,
        #[command(flatten)]
        output: OutputArgs,
    },

    /// Show what a running appliance does
    #[command(after_help = "Examples:\n  \
        tidegate show drops\n  \
        tidegate show flows --limit 50\n  \
        tidegate show ports --json | jq '.ports[].attach'")]
    Show {
        #[arg(value_enum)]
        what: What,
        /// Flows to list at most
        #[arg(long, value_name = "N", default_value_t = 1000)]
        limit: usize,
        #[command(flatten)]
        socket: SocketArgs,
        #[command(flatten)]
        output: OutputArgs,
    },

    /// Have a running appliance load its configuration anew, without losing a flow
    #[command(after_help = "Examples:\n  \
        tidegate check -c edge.toml && tidegate reload\n  \
        tidegate reload --diff\n  \
        tidegate reload --confirm 60s && curl -sf https://edge/health && tidegate confirm\n\n\
        A configuration that is refused changes nothing.")]
    Reload {
        /// Only tell what would change, and whether it would be refused
        #[arg(long, conflicts_with = "confirm")]
        diff: bool,
        /// Go back to what runs now unless `tidegate confirm` comes within this time
        #[arg(long, value_name = "TIME", value_parser = confirm_time)]
        confirm: Option<Duration>,
        #[command(flatten)]
        socket: SocketArgs,
        #[command(flatten)]
        output: OutputArgs,
    },

    /// Keep the configuration that `reload --confirm` has taken over for a time
    #[command(after_help = "Examples:\n  \
        tidegate reload --confirm 5min\n  \
        tidegate confirm")]
    Confirm {
        #[command(flatten)]
        socket: SocketArgs,
    },

    /// Give a backend, a pool, a service or all services no new flows; old ones finish
    #[command(after_help = "Examples:\n  \
        tidegate drain backend gpu/10.0.1.1:8443 --wait\n  \
        tidegate drain backend gpu/10.0.1.1:8443 --flush\n  \
        tidegate drain service chat\n  \
        tidegate drain appliance --wait\n\n\
        Holds until `undrain` or the end of the process; a reload does not end it. Tells how many \
        flows are left.")]
    Drain {
        #[command(flatten)]
        what: DrainArgs,
        /// Cut the flows that are left: both ends get a reset
        #[arg(long)]
        flush: bool,
        /// Return when no flow is left
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        socket: SocketArgs,
        #[command(flatten)]
        output: OutputArgs,
    },

    /// Give what was drained new flows again
    #[command(after_help = "Examples:\n  \
        tidegate undrain backend gpu/10.0.1.1:8443\n  \
        tidegate undrain appliance")]
    Undrain {
        #[command(flatten)]
        what: DrainArgs,
        #[command(flatten)]
        socket: SocketArgs,
        #[command(flatten)]
        output: OutputArgs,
    },

    /// Drain and end a running appliance; returns when the interfaces are released
    #[command(after_help = "Examples:\n  \
        tidegate stop\n  \
        tidegate stop --socket /run/tidegate/edge.sock")]
    Stop {
        #[command(flatten)]
        socket: SocketArgs,
    },

    /// What this box can do, what to change, and why
    #[command(after_help = "Examples:\n  \
        tidegate doctor\n  \
        tidegate doctor --interface eth1 --interface eth2\n  \
        tidegate doctor --restore\n\n\
        Also sets back offloads that a killed run left switched off. Exits 1 if something is \
        missing that the appliance needs.")]
    Doctor {
        /// An interface meant to be a port of the appliance; may be given several times
        #[arg(long, value_name = "IF")]
        interface: Vec<String>,
        /// Also remove XDP programs that a killed run with on_failure = "drop" left to drop its
        /// traffic: from then on the kernel forwards it
        #[arg(long)]
        restore: bool,
        #[command(flatten)]
        output: OutputArgs,
    },

    /// Tell what the connections of a capture are: names, protocols, requests
    #[command(after_help = "Examples:\n  \
        tidegate inspect trace.pcapng\n  \
        tidegate inspect trace.pcap.gz --json | jq 'select(.provider == \"openai\")'\n\n\
        Reads pcap and pcapng, gzipped too, and looks through VLAN, MPLS, PPPoE, GRE, VXLAN, \
        Geneve,\nGTP-U and IP-in-IP. A damaged capture ends with what was read, and exit code 1.")]
    Inspect {
        /// The capture; `-` reads standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Providers and APIs besides those that are built in, or in place of them (TOML)
        #[arg(long, value_name = "FILE")]
        catalogue: Option<PathBuf>,
        /// Tell providers and classes as an appliance with this configuration does (TOML)
        #[arg(short, long, value_name = "FILE", conflicts_with = "catalogue")]
        config: Option<PathBuf>,
        #[command(flatten)]
        output: OutputArgs,
    },

    /// Try a class tree on given traffic, on a virtual clock: what each class gets, and how long
    /// its packets wait
    Simulate(SimulateArgs),

    /// Generate and measure packets over AF_XDP, for the lab
    Pktgen(PktgenArgs),

    /// Show what QoS does for token streams, in a lab on this machine
    Demo(DemoArgs),
}

/// A time that a configuration may be tried for.
fn confirm_time(text: &str) -> Result<Duration, String> {
    const DAY: Duration = Duration::from_secs(86_400);
    let time = parse_duration(text)?;
    match (Duration::from_secs(1)..=DAY).contains(&time) {
        true => Ok(time),
        false => Err("it must be within 1s to 1d".to_string()),
    }
}

#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// The configuration file (TOML)
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
}

#[derive(Debug, Args)]
pub struct DrainArgs {
    #[arg(value_enum)]
    pub kind: DrainKind,
    /// Its name: POOL/BACKEND, as `show backends` has them, or that of the pool or the service
    #[arg(value_name = "NAME", required_if_eq_any = [
        ("kind", "backend"), ("kind", "pool"), ("kind", "service"),
    ])]
    pub name: Option<String>,
}

/// What is drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DrainKind {
    Backend,
    Pool,
    Service,
    /// All services
    Appliance,
}

#[derive(Debug, Args)]
pub struct SocketArgs {
    /// Control socket of the appliance
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
}

#[derive(Debug, Args)]
pub struct OutputArgs {
    /// Print JSON, for programs
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_is_sound_and_every_command_has_an_example() {
        let mut command = Cli::command();
        command.build();
        for sub in command.get_subcommands().filter(|s| s.get_name() != "help") {
            let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Examples:\n"), "{}: {help}", sub.get_name());
            assert!(help.contains(&format!("tidegate {}", sub.get_name())), "{help}");
        }
    }

    #[test]
    fn commands_are_read_as_documented() {
        let cli = parse("tidegate run -c a.toml --log-format json").expect("run");
        assert_eq!(cli.log_format, LogFormat::Json);
        assert!(matches!(cli.command, Command::Run(c) if c.config.as_os_str() == "a.toml"));
        let cli = parse("tidegate show flows --limit 5 --json --socket /s").expect("show");
        let Command::Show { what, limit, socket, output } = cli.command else { panic!("show") };
        assert_eq!((what, limit, output.json), (What::Flows, 5, true));
        assert_eq!(socket.socket.as_os_str(), "/s");
        let cli = parse("tidegate reload --confirm 90s").expect("reload");
        let Command::Reload { confirm, .. } = cli.command else { panic!("reload") };
        assert_eq!(confirm, Some(Duration::from_secs(90)));
        let cli = parse("tidegate reload --diff").expect("reload");
        assert!(matches!(cli.command, Command::Reload { diff: true, confirm: None, .. }));
        let cli = parse("tidegate stop").expect("stop");
        assert!(matches!(cli.command, Command::Stop { socket } if
            socket.socket.as_os_str() == DEFAULT_SOCKET));
        let cli = parse("tidegate doctor --interface a --interface b").expect("doctor");
        assert!(matches!(cli.command, Command::Doctor { interface, .. } if
            interface == ["a", "b"]));
    }

    #[test]
    fn a_capture_is_inspected() {
        let cli = parse("tidegate inspect a.pcap --json --catalogue own.toml").expect("inspect");
        let Command::Inspect { file, catalogue, config, output } = cli.command else {
            panic!("inspect")
        };
        assert!(file.as_os_str() == "a.pcap" && output.json);
        assert_eq!((catalogue, config), (Some("own.toml".into()), None));
        assert!(parse("tidegate inspect a.pcap --config a.toml").is_ok());
        assert!(parse("tidegate inspect a.pcap --config a.toml --catalogue b.toml").is_err());
    }

    #[test]
    fn a_scenario_is_simulated() {
        let line = "tidegate simulate a.toml --set x=1 --set y=2 --against --plot b.svg --json";
        let Command::Simulate(args) = parse(line).expect("simulate").command else { panic!() };
        assert_eq!((args.scenario, args.set), ("a.toml".into(), vec!["x=1".into(), "y=2".into()]));
        assert_eq!(args.against, Some(None), "the same file without what is set");
        assert_eq!((args.plot, args.output.json), (Some("b.svg".into()), true));
        let Command::Simulate(args) =
            parse("tidegate simulate a.toml --against b.toml --seed 7").expect("simulate").command
        else {
            panic!()
        };
        assert_eq!((args.against, args.seed), (Some(Some("b.toml".into())), Some(7)));
    }

    #[test]
    fn the_default_socket_is_that_of_the_configuration() {
        let text =
            "pipeline = \"router\"\n[port.a]\ninterface = \"a\"\n[transit]\nprefixes = \"::/0\"\n";
        let config = crate::config::load_text("x.toml".as_ref(), text).expect("a good file");
        assert_eq!(config.admin.socket.as_os_str(), DEFAULT_SOCKET);
    }

    #[test]
    fn bad_usage_exits_with_2() {
        for (line, kind) in [
            ("tidegate", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand),
            ("tidegate run", ErrorKind::MissingRequiredArgument),
            ("tidegate show", ErrorKind::MissingRequiredArgument),
            ("tidegate show moods", ErrorKind::InvalidValue),
            ("tidegate fly", ErrorKind::InvalidSubcommand),
            ("tidegate reload --confirm 100ms", ErrorKind::ValueValidation),
            ("tidegate reload --diff --confirm 60s", ErrorKind::ArgumentConflict),
            ("tidegate drain pool", ErrorKind::MissingRequiredArgument),
            ("tidegate drain moon x", ErrorKind::InvalidValue),
            ("tidegate show drops --limit x", ErrorKind::ValueValidation),
        ] {
            let error = parse(line).expect_err(line);
            assert_eq!(error.kind(), kind, "{line}");
            assert_eq!(error.exit_code(), 2, "{line}");
        }
        assert_eq!(parse("tidegate --help").expect_err("help").exit_code(), 0);
    }
}
