//! `[pool.NAME.health]` and `panic_percent`.

use std::ops::Range;
use std::time::Duration;

use rustls::pki_types::ServerName;
use toml::Spanned;

use super::{Build, show};
use crate::config::file::{FileCheck, FileConfig, FileHealth, FileOnDown};
use crate::config::health::{Check, HealthSpec, HttpCheck, PoolHealth, TlsCheck};

const HOUR: Duration = Duration::from_secs(3_600);
const INTERVAL_MIN: Duration = Duration::from_millis(100);
const INTERVAL_DEFAULT: Duration = Duration::from_secs(2);
const TIMEOUT_MIN: Duration = Duration::from_millis(10);
const TIMEOUT_MAX: Duration = Duration::from_secs(60);
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(1);
const FLAP_WINDOW_DEFAULT: Duration = Duration::from_secs(60);
const IN_A_ROW_MAX: i64 = 100;
/// Its length takes one byte on the wire.
const SERVICE_LEN_MAX: usize = 127;
const STATUS_DEFAULT: std::ops::RangeInclusive<u16> = 200..=399;

/// By pool, in the file's order.
pub fn health(b: &mut Build<'_>, file: &FileConfig) -> Vec<PoolHealth> {
    let mut all = Vec::with_capacity(file.pool.0.len());
    for (_, pool) in &file.pool.0 {
        let pool = pool.get_ref();
        let check = pool.health.as_ref().and_then(|table| spec(b, table));
        let judged = pool.health.is_some() || pool.outliers.is_some();
        if let (Some(percent), false) = (&pool.panic_percent, judged) {
            let what = "`panic_percent` means nothing without a `health` or an `outliers` table";
            b.error(&percent.span(), what);
        }
        if let (Some(on_down), None) = (&pool.on_down, &pool.health) {
            b.error(&on_down.span(), "`on_down` means nothing without a `health` table");
        }
        let on_down = pool.on_down.as_ref().map(|d| *d.get_ref());
        let cuts_on_down = on_down == Some(FileOnDown::Reset);
        let panic_percent = b.number(&pool.panic_percent, 0..=100, 0);
        all.push(PoolHealth { check, panic_percent, cuts_on_down });
    }
    all
}

fn spec(b: &mut Build<'_>, table: &Spanned<FileHealth>) -> Option<HealthSpec> {
    let (at, h) = (table.span(), table.get_ref());
    let what = "what is asked: tcp, tls, http, http2 or grpc";
    let kind = *b.need(&at, "type", &h.kind, what)?.get_ref();
    foreign_keys(b, h, kind);
    let interval = b.within(&h.interval, INTERVAL_MIN..=HOUR, INTERVAL_DEFAULT, show);
    let timeout = b.within(&h.timeout, TIMEOUT_MIN..=TIMEOUT_MAX, TIMEOUT_DEFAULT, show);
    if let Some(given) = &h.timeout
        && timeout > interval
        && !b.faulty.contains(&at, "interval")
    {
        let (timeout, interval) = (show(timeout), show(interval));
        let what = format!(
            "a check may last for {timeout}: the next one then comes later than after the \
             interval of {interval}"
        );
        b.warning(&given.span(), what);
    }
    Some(HealthSpec {
        check: check(b, h, kind),
        port: h.port.as_ref().map(|p| p.get_ref().0.0),
        interval,
        timeout,
        rise: b.number(&h.rise, 1..=IN_A_ROW_MAX, 2),
        fall: b.number(&h.fall, 1..=IN_A_ROW_MAX, 3),
        jitter_percent: b.number(&h.jitter_percent, 0..=50, 10),
        slow_start: b.within(&h.slow_start, Duration::ZERO..=HOUR, Duration::ZERO, show),
        flap_window: b.within(&h.flap_window, Duration::ZERO..=HOUR, FLAP_WINDOW_DEFAULT, show),
    })
}

fn check(b: &mut Build<'_>, h: &FileHealth, kind: FileCheck) -> Check {
    let with_tls = kind == FileCheck::Tls || h.tls.as_ref().is_some_and(|t| *t.get_ref());
    let sni = h.sni.as_ref().map(|name| {
        let text = name.get_ref();
        if !matches!(ServerName::try_from(text.as_str()), Ok(ServerName::DnsName(_))) {
            b.error(&name.span(), format!("`{text}` is not a name of a server"));
        } else if !with_tls && kind != FileCheck::Tcp {
            b.error(&name.span(), "`sni` means nothing without `tls = true`");
        }
        text.clone()
    });
    let tls = with_tls.then_some(TlsCheck { sni });
    match kind {
        FileCheck::Tcp => Check::Tcp,
        FileCheck::Tls => Check::Tls(tls.unwrap_or(TlsCheck { sni: None })),
        FileCheck::Http | FileCheck::Http2 => Check::Http(HttpCheck {
            http2: kind == FileCheck::Http2,
            tls,
            host: h.host.as_ref().map(|host| host_name(b, host)),
            path: h.path.as_ref().map_or_else(|| "/".to_string(), |path| request_path(b, path)),
            status: match &h.status {
                Some(list) => {
                    if list.get_ref().0.is_empty() {
                        b.error(&list.span(), "the list is empty: no answer would do");
                    }
                    list.get_ref().0.iter().map(|s| s.0.clone()).collect()
                }
                None => vec![STATUS_DEFAULT],
            },
            body: h.body.as_ref().map(|body| body.get_ref().clone()),
        }),
        FileCheck::Grpc => {
            let service = h.service.as_ref().map(|service| {
                let name = service.get_ref();
                if name.len() > SERVICE_LEN_MAX {
                    let what = format!("a service's name has {SERVICE_LEN_MAX} bytes at most");
                    b.error(&service.span(), what);
                }
                name.clone()
            });
            Check::Grpc { service: service.unwrap_or_default(), tls }
        }
    }
}

fn host_name(b: &mut Build<'_>, host: &Spanned<String>) -> String {
    let text = host.get_ref();
    if text.parse::<hyper::http::uri::Authority>().is_err() {
        b.error(&host.span(), format!("`{text}` is not a host, or a host and a port"));
    }
    text.clone()
}

/// A path as a GET has it.
pub fn request_path(b: &mut Build<'_>, path: &Spanned<String>) -> String {
    let text = path.get_ref();
    if !text.starts_with('/') || text.parse::<hyper::http::uri::PathAndQuery>().is_err() {
        b.error(&path.span(), format!("`{text}` is not a path such as \"/health\""));
    }
    text.clone()
}

/// A key, where it stands, and the checks that look at it.
type Key = (&'static str, Option<Range<usize>>, &'static [FileCheck]);

/// Keys that this kind of check does not look at would mislead who reads them.
fn foreign_keys(b: &mut Build<'_>, h: &FileHealth, kind: FileCheck) {
    use FileCheck::{Grpc, Http, Http2, Tcp, Tls};
    const HTTP: &[FileCheck] = &[Http, Http2];
    let keys: [Key; 7] = [
        ("tls", h.tls.as_ref().map(Spanned::span), &[Http, Http2, Grpc]),
        ("sni", h.sni.as_ref().map(Spanned::span), &[Tls, Http, Http2, Grpc]),
        ("host", h.host.as_ref().map(Spanned::span), HTTP),
        ("path", h.path.as_ref().map(Spanned::span), HTTP),
        ("status", h.status.as_ref().map(Spanned::span), HTTP),
        ("body", h.body.as_ref().map(Spanned::span), HTTP),
        ("service", h.service.as_ref().map(Spanned::span), &[Grpc]),
    ];
    let name = match kind {
        Tcp => "tcp",
        Tls => "tls",
        Http => "http",
        Http2 => "http2",
        Grpc => "grpc",
    };
    for (key, span, kinds) in keys {
        if let Some(span) = span
            && !kinds.contains(&kind)
        {
            b.error(&span, format!("`{key}` means nothing to a check of type `{name}`"));
        }
    }
}
