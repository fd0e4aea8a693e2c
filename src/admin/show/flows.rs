//! `show flows`, for people.

use std::fmt::Write;

use super::or_none;
use crate::admin::table::{Table, grouped};
use crate::control::view::{FlowView, FlowsView, SeenView};

/// Characters of a path that are shown.
const PATH_COLUMNS: usize = 40;

pub(super) fn table(a: &FlowsView) -> String {
    let mut table = Table::new(&[
        ">w",
        "kind",
        "proto",
        "client",
        "server",
        "backend",
        "class",
        "app",
        "name",
        "request",
        ">requests",
        "api",
        "state",
        "offload",
        ">packets",
        ">bytes",
        ">idle",
    ]);
    let text = |t: &Option<String>| t.clone().unwrap_or_else(|| "-".into());
    for f in &a.flows {
        table.row([
            f.worker.to_string(),
            f.kind.clone(),
            f.protocol.clone(),
            f.client.clone(),
            f.server.clone(),
            text(&f.backend),
            text(&f.class),
            app(&f.seen),
            name(f),
            request(&f.seen),
            f.seen.requests.map_or("-".into(), |n| grouped(n.into())),
            api(&f.seen),
            f.state.clone(),
            offload(f.offloaded_forward, f.offloaded_reply).into(),
            format!("{}/{}", grouped(f.packets_forward), grouped(f.packets_reply)),
            format!("{}/{}", grouped(f.bytes_forward), grouped(f.bytes_reply)),
            format!("{:.1}s", f.idle_secs),
        ]);
    }
    let shown = a.flows.len() as u64;
    let mut out = or_none(&table, "no flows");
    if shown < a.total {
        let _ = writeln!(out, "\n{shown} of {} flows; more with --limit", grouped(a.total));
    }
    out
}

/// Which directions of a flow the XDP program forwards.
fn offload(forward: bool, reply: bool) -> &'static str {
    match (forward, reply) {
        (false, false) => "-",
        (true, false) => "forward",
        (false, true) => "reply",
        (true, true) => "both",
    }
}

/// The protocol, or why it is not known.
fn app(seen: &SeenView) -> String {
    match (&seen.app, &seen.unknown) {
        (Some(app), None) => app.clone(),
        (Some(app), Some(why)) => format!("{app} ({why})"),
        (None, Some(why)) => format!("unknown ({why})"),
        (None, None) => "-".into(),
    }
}

/// Who is asked for; of an encrypted hello only the outer name is known.
fn name(flow: &FlowView) -> String {
    let outer = flow.seen.ech.as_deref().is_some_and(|ech| ech != "0");
    match (&flow.sni, &flow.seen.authority) {
        (Some(sni), _) if outer => format!("{sni} (outer)"),
        (Some(name), _) | (None, Some(name)) => name.clone(),
        (None, None) => "-".into(),
    }
}

fn request(seen: &SeenView) -> String {
    let Some(method) = &seen.method else { return "-".into() };
    let path: String = seen.path.iter().flat_map(|p| p.chars()).take(PATH_COLUMNS).collect();
    let status = seen.status.map_or(String::new(), |status| format!(" {status}"));
    format!("{method} {path}{status}")
}

fn api(seen: &SeenView) -> String {
    let parts = [&seen.provider, &seen.operation, &seen.tenant];
    let known: Vec<&str> = parts.into_iter().flatten().map(String::as_str).collect();
    if known.is_empty() { "-".into() } else { known.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outer_name_is_marked() {
        let mut flow = FlowView::default();
        assert_eq!(name(&flow), "-");
        flow.seen.authority = Some("b.example".into());
        assert_eq!(name(&flow), "b.example");
        (flow.sni, flow.seen.ech) = (Some("a.example".into()), Some("0".into()));
        assert_eq!(name(&flow), "a.example");
        flow.seen.ech = Some("1".into());
        assert_eq!(name(&flow), "a.example (outer)");
    }

    #[test]
    fn what_was_seen_is_told_in_few_words() {
        let mut seen = SeenView::default();
        assert_eq!([app(&seen), request(&seen), api(&seen)], ["-", "-", "-"]);
        seen.unknown = Some("gaps".into());
        assert_eq!(app(&seen), "unknown (gaps)");
        seen.app = Some("tls".into());
        assert_eq!(app(&seen), "tls (gaps)");
        (seen.method, seen.path) = (Some("GET".into()), Some("/x".repeat(50)));
        seen.status = Some(200);
        assert_eq!(request(&seen), format!("GET {} 200", "/x".repeat(20)));
        (seen.provider, seen.tenant) = (Some("openai".into()), Some("acme".into()));
        assert_eq!(api(&seen), "openai acme");
    }
}
