//! `tidegate drain` and `tidegate undrain`.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use super::cli::{DrainArgs, DrainKind};
use super::client;
use super::commands::{Failure, print_json, print_text};
use super::protocol::Ask;
use crate::control::DrainTarget;
use crate::control::view::DrainView;

/// How often the flows that are left are counted.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// What the command line names.
///
/// # Errors
/// One sentence on how it is written.
pub fn target(args: DrainArgs) -> Result<DrainTarget, String> {
    Ok(match (args.kind, args.name) {
        (DrainKind::Appliance, None) => DrainTarget::Appliance,
        (DrainKind::Appliance, Some(name)) => {
            return Err(format!("`appliance` takes no name, but `{name}` is given"));
        }
        (_, None) => return Err("a name is missing".to_string()),
        (DrainKind::Pool, Some(name)) => DrainTarget::Pool(name),
        (DrainKind::Service, Some(name)) => DrainTarget::Service(name),
        (DrainKind::Backend, Some(text)) => match text.split_once('/') {
            Some((pool, name)) => DrainTarget::Backend { pool: pool.into(), name: name.into() },
            None => return Err(format!("a backend is written POOL/NAME, unlike `{text}`")),
        },
    })
}

/// Drains, or ends it; waits until no flow is left, if that is asked for.
pub fn run(
    socket: &Path,
    target: DrainTarget,
    drained: bool,
    (wait, flush): (bool, bool),
    json: bool,
) -> Result<(), Failure> {
    let asked = |ask| {
        let answer = client::ask(socket, ask)?;
        serde_json::from_value::<DrainView>(answer)
            .map_err(|e| Failure::Failed(format!("the appliance is of another version: {e}")))
    };
    let mut view = asked(Ask::Drain { target: target.clone(), drained, flush })?;
    let (cut, mut told) = (view.cut, None);
    while wait && view.flows > 0 {
        if told != Some(view.flows) {
            let _ = writeln!(std::io::stderr(), "{}: flows left: {}", view.target, view.flows);
            told = Some(view.flows);
        }
        std::thread::sleep(PROGRESS_EVERY);
        view = DrainView { cut, ..asked(Ask::Drained { target: target.clone() })? };
        if view.drained != drained {
            let DrainView { target, flows, .. } = view;
            let words = format!("{target} is no longer drained, by another's word: {flows} left");
            return Err(Failure::Failed(words));
        }
    }
    match json {
        true => print_json(&serde_json::json!(view)),
        false => print_text(&sentence(&view)),
    }
}

fn sentence(view: &DrainView) -> String {
    let DrainView { target, flows, .. } = view;
    if let (true, Some(cut)) = (view.drained, view.cut) {
        return format!("{target}: no new flows, {cut} cut, {flows} left\n");
    }
    match view.drained {
        true => format!("{target}: no new flows, {flows} left\n"),
        false if view.still_drained.is_empty() => {
            format!("{target}: no longer drained, has {flows} flows\n")
        }
        false => {
            let others = view.still_drained.join(", ");
            format!(
                "{target}: no longer drained itself, has {flows} flows; still drained: {others}\n"
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_still_drained_is_named() {
        let mut view = DrainView { target: "pool gpu".into(), flows: 3, ..DrainView::default() };
        assert_eq!(sentence(&view), "pool gpu: no longer drained, has 3 flows\n");
        view.still_drained = vec!["backend gpu/a".into(), "the appliance".into()];
        let told = "pool gpu: no longer drained itself, has 3 flows; still drained: backend gpu/a, \
                    the appliance\n";
        assert_eq!(sentence(&view), told);
    }

    #[test]
    fn targets_are_read_as_documented() {
        let read =
            |kind, name: Option<&str>| target(DrainArgs { kind, name: name.map(Into::into) });
        let backend = DrainTarget::Backend { pool: "gpu".into(), name: "10.0.0.1:80".into() };
        assert_eq!(read(DrainKind::Backend, Some("gpu/10.0.0.1:80")), Ok(backend));
        assert_eq!(read(DrainKind::Pool, Some("gpu")), Ok(DrainTarget::Pool("gpu".into())));
        assert_eq!(read(DrainKind::Appliance, None), Ok(DrainTarget::Appliance));
        assert!(read(DrainKind::Appliance, Some("x")).is_err());
        assert!(read(DrainKind::Backend, Some("gpu")).is_err());
        assert!(read(DrainKind::Service, None).is_err());
    }
}
