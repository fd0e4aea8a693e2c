//! One `[[rule]]`: its conditions and actions.

use toml::Spanned;

use super::Build;
use crate::base::diag::advice;
use crate::config::file::{FileRule, FileTime};
use crate::inspect::fields::NAME_BYTES_MAX;
use crate::packet::ClassId;
use crate::policy::catalogue::Catalogue;
use crate::policy::spec::{HeaderSpec, Hours, RuleSpec, TimeSpec, Weekdays};

/// The conditions of a rule; what becomes of its flows is left open.
pub fn conditions(b: &mut Build<'_>, table: &Spanned<FileRule>, catalogue: &Catalogue) -> RuleSpec {
    let r = table.get_ref();
    let at = table.span();
    RuleSpec {
        sni: b.list(&at, "sni", &r.sni, |s| s.0.clone()),
        authority: b.list(&at, "authority", &r.authority, |s| s.0.clone()),
        alpn: b.list(&at, "alpn", &r.alpn, |a| a.0.clone()),
        ja4: b.list(&at, "ja4", &r.ja4, |f| f.0.clone()),
        method: b.list(&at, "method", &r.method, |m| m.0.clone()),
        path: b.list(&at, "path", &r.path, |p| p.0.clone()),
        header: headers(b, r),
        grpc: b.list(&at, "grpc", &r.grpc, |g| g.0.clone()),
        provider: providers(b, table, catalogue),
        operation: b.list(&at, "operation", &r.operation, |o| o.0),
        vip: b.list(&at, "vip", &r.vip, |a| *a),
        client: b.list(&at, "client", &r.client, |p| *p),
        server: b.list(&at, "server", &r.server, |p| *p),
        dscp: b.list(&at, "dscp", &r.dscp, |d| d.0),
        port: b.list(&at, "port", &r.port, |p| p.0),
        bytes_over: r.bytes_over.as_ref().map(|bytes| bytes.get_ref().0.0),
        time: r.time.as_ref().and_then(|time| self::time(b, time)),
        class: ClassId::UNSET,
        ..RuleSpec::default()
    }
}

/// How a rule ends the flows that it matches, if it does.
pub fn ending(b: &mut Build<'_>, r: &FileRule) -> Option<ClassId> {
    let wanted = |given: &Option<Spanned<bool>>| {
        given.as_ref().filter(|given| *given.get_ref()).map(Spanned::span)
    };
    let (at, class) = match (wanted(&r.drop), wanted(&r.reset)) {
        (Some(_), Some(at)) => {
            b.error(&at, "`drop` and `reset` are two ends: leave one of them out");
            return Some(ClassId::RESET);
        }
        (Some(at), None) => (at, ClassId::REFUSED),
        (None, Some(at)) => (at, ClassId::RESET),
        (None, None) => return None,
    };
    let others = [
        ("class", r.class.is_some()),
        ("pool", r.pool.is_some()),
        ("set_dscp", r.set_dscp.is_some()),
        ("mirror", r.mirror.is_some()),
        ("limit", r.limit.is_some()),
    ];
    for (key, _) in others.iter().filter(|(_, given)| *given) {
        let what = format!("what is dropped has no `{key}`: leave one of the two out");
        b.error(&at, what);
    }
    Some(class)
}

fn headers(b: &mut Build<'_>, r: &FileRule) -> Vec<HeaderSpec> {
    let mut headers: Vec<HeaderSpec> = Vec::new();
    let Some(given) = &r.header else { return headers };
    if given.get_ref().0.is_empty() && !b.faulty.any_in(&given.span()) {
        b.error(&given.span(), "names no header: leave `header` out, or write `header.NAME = …`");
    }
    for (key, values) in &given.get_ref().0 {
        let name = key.get_ref().to_ascii_lowercase();
        let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(token) {
            let what = format!(
                "`{}` is not the name of a header of up to {NAME_BYTES_MAX} characters (RFC 9110, \
                 section 5.1)",
                key.get_ref()
            );
            b.error(&key.span(), what);
            continue;
        }
        if headers.iter().any(|known| known.name == name) {
            b.error(&key.span(), format!("header `{name}` stands here a second time"));
            continue;
        }
        if values.get_ref().0.is_empty() {
            let what = format!("the list is empty: write \"*\" for any value of `{name}`");
            b.error(&values.span(), what);
        }
        let values = values.get_ref().0.iter().map(|value| value.0.clone()).collect();
        headers.push(HeaderSpec { name, values });
    }
    headers
}

fn providers(b: &mut Build<'_>, table: &Spanned<FileRule>, catalogue: &Catalogue) -> Vec<String> {
    let given = &table.get_ref().provider;
    let names = b.list(&table.span(), "provider", given, |p| p.0.clone());
    if let Some(given) = given {
        for name in names.iter().filter(|name| !catalogue.has_provider(name)) {
            let mut known: Vec<&str> = catalogue.provider_names().collect();
            known.sort_unstable();
            known.dedup();
            let advice = advice(name, known);
            b.error(&given.span(), format!("the catalogue has no provider `{name}`{advice}"));
        }
    }
    names
}

fn time(b: &mut Build<'_>, table: &Spanned<FileTime>) -> Option<TimeSpec> {
    let (t, at) = (table.get_ref(), table.span());
    let zone = b.need(&at, "zone", &t.zone, "the time zone whose clock is meant");
    let days = b.list(&at, "days", &t.days, |days| days.0);
    let hours = b.list(&at, "hours", &t.hours, |hours| hours.0);
    if t.days.is_none() && t.hours.is_none() && !b.faulty.any_in(&at) {
        b.error(&at, "neither `days` nor `hours`: it would apply at all times");
    }
    let all_day = vec![Hours { from: 0, to: 0 }];
    let spec = TimeSpec {
        zone: zone?.get_ref().0.0.clone(),
        days: days.into_iter().reduce(Weekdays::or).unwrap_or(Weekdays::ALL),
        hours: if hours.is_empty() { all_day } else { hours },
    };
    if let (Some((first, second)), Some(given)) = (spec.overlap(), &t.hours) {
        let what = format!("hours {} and {} of this list overlap", first + 1, second + 1);
        b.error(&given.span(), what);
    }
    Some(spec)
}
