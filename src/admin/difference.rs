//! `tidegate reload --diff` and `tidegate check --against`: what would change, and what refuses it.

use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;

use super::check;
use super::commands::{Failure, ask_for, print_json, print_text};
use super::protocol::Ask;
use crate::config;
use crate::control::difference;
use crate::control::view::DifferenceView;

/// What a reload of the running appliance would change.
///
/// # Errors
/// Where it would be refused, the exit code that it would end with.
pub fn of_reload(socket: &Path, json: bool) -> Result<(), Failure> {
    let answer = ask_for(socket, Ask::Compare, json)?;
    let view: DifferenceView = serde_json::from_value(answer)
        .map_err(|e| Failure::Failed(format!("the appliance is of another version: {e}")))?;
    tell(&view, "what runs", json)?;
    match (&view.needs_restart[..], &view.refused) {
        ([], None) => Ok(()),
        ([], Some(_)) => Err(Failure::Told(1)),
        _ => Err(Failure::Told(2)),
    }
}

/// What differs between two files, and what of that a reload would refuse.
///
/// # Errors
/// Exit code 2 with a faulty file.
pub fn between(old: &Path, new: &Path, json: bool) -> Result<(), Failure> {
    let running = match config::load(old) {
        Ok(running) => running,
        Err(faults) => return Err(check::refused(&faults, json)?),
    };
    let wanted = match config::load_over(new, &running.workers) {
        Ok(wanted) => wanted,
        Err(faults) => return Err(check::refused(&faults, json)?),
    };
    let view = difference::between(&running, &wanted);
    tell(&view, &running.path.display().to_string(), json)
}

/// What differs to standard output; warnings and refusals to standard error.
fn tell(view: &DifferenceView, against: &str, json: bool) -> Result<(), Failure> {
    if json {
        return print_json(&serde_json::to_value(view).unwrap_or_default());
    }
    let mut err = std::io::stderr();
    view.warnings.iter().for_each(|warning| drop(writeln!(err, "{warning}")));
    print_text(&text(view, against))?;
    view.needs_restart.iter().for_each(|key| drop(writeln!(err, "needs a restart: {key}")));
    if let Some(words) = &view.refused {
        let _ = writeln!(err, "would be refused: {words}");
    }
    Ok(())
}

fn text(view: &DifferenceView, against: &str) -> String {
    let DifferenceView { config, changes, .. } = view;
    let mut text = match (changes.len(), view.unchanged) {
        (0, true) => format!("{config}: no difference from {against}\n"),
        (0, false) => format!("{config}: is written as {against}\n"),
        (n, true) => {
            format!("{config}: {n} written otherwise than in {against}, which means the same\n")
        }
        (n, false) => format!("{config}: {n} different from {against}\n"),
    };
    for change in changes {
        let _ = writeln!(text, "  {change}");
    }
    for (what, ports) in [("closed", &view.ports_closed), ("opened", &view.ports_opened)] {
        if !ports.is_empty() {
            let _ = writeln!(text, "ports {what}: {}", ports.join(", "));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, load_text};

    const TEXT: &str = "pipeline = \"router\"\n[workers]\nflows_max = 1000\n\
                        [port.a]\ninterface = \"e0\"\n[port.b]\ninterface = \"e1\"\n\
                        [qos.a]\nrate = \"1Gbit/s\"\ndefault = \"y\"\n\
                        [qos.a.class.x]\nrate = \"10%\"\n[qos.a.class.y]\nrate = \"20%\"\n\
                        [transit]\nprefixes = [\"10.0.0.0/8\"]\n";

    fn load(path: &str, text: &str) -> Config {
        load_text(Path::new(path), text).expect("a good file")
    }

    fn view(from: &str, to: &str) -> DifferenceView {
        assert!(TEXT.contains(from), "{from}");
        let (old, new) = (load("old.toml", TEXT), load("new.toml", &TEXT.replace(from, to)));
        difference::between(&old, &new)
    }

    #[test]
    fn files_are_told_apart_by_what_they_mean() {
        let said = |from, to| text(&view(from, to), "old.toml");
        assert_eq!(said("router", "router"), "new.toml: no difference from old.toml\n");
        assert_eq!(
            said("1Gbit/s", "1000Mbit/s"),
            "new.toml: 1 written otherwise than in old.toml, which means the same\n  \
             ~ qos.a.rate: \"1Gbit/s\" -> \"1000Mbit/s\"\n"
        );
        assert_eq!(
            said("[port.b]\ninterface = \"e1\"\n", "[port.c]\ninterface = \"e2\"\n"),
            "new.toml: 2 different from old.toml\n  - port.b: { interface = \"e1\" }\n  \
             + port.c: { interface = \"e2\" }\nports closed: b\nports opened: c\n"
        );
        // Numbers that follow from the order of names make no difference.
        let more = view("[qos.a.class.x]", "[qos.a.class.w]\nrate = \"1%\"\n[qos.a.class.x]");
        assert!(!more.unchanged && more.refused.is_none(), "{more:?}");
        assert_eq!(more.changes.len(), 1);
    }

    #[test]
    fn what_a_reload_would_refuse_is_told() {
        let other = view("flows_max = 1000", "flows_max = 2000");
        // The other's default follows from it.
        let keys = ["flows_max", "half_open_max"];
        let keys = keys.map(|key| format!("workers.{key}: 1000 runs, 2000 wanted"));
        assert_eq!((other.needs_restart.as_slice(), other.changes.len()), (&keys[..], 1));
        assert!(!other.unchanged && other.refused.is_none());
    }

    #[test]
    fn warnings_do_not_make_a_difference() {
        let pool = "[[pool.idle.backend]]\naddress = \"10.0.0.1\"\nport = 80\n";
        let old = load("old.toml", &[TEXT, pool].concat());
        let new = load("new.toml", &[TEXT, "# moved by a line\n", pool].concat());
        assert!(!old.warnings.is_empty() && old.warnings != new.warnings, "no service uses it");
        let view = difference::between(&old, &new);
        assert!(view.unchanged && view.changes.is_empty() && !view.warnings.is_empty());
    }
}
