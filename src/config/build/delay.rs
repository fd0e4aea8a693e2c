//! Delayed binding: `bind` of services, and `pool` of rules.

use std::collections::HashMap;
use std::time::Duration;

use toml::Spanned;

use super::services::TCP;
use super::splits::{parts, target};
use super::{Build, index, show};
use crate::config::Config;
use crate::config::file::{FileBind, FileConfig, FilePromise, FileService};
use crate::config::splits::FilePools;
use crate::forward::spec::{BindAt, Delay, ForwardMode, PoolSpec, Promise, ServiceSpec};
use crate::graph::spec::StageSpec;
use crate::policy::spec::RuleSpec;

const TIMEOUT: Duration = Duration::from_secs(10);
const TIMEOUT_MIN: Duration = Duration::from_millis(100);
const TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// What every host takes (RFC 9293, section 3.7.1), and jumbo frames.
const MSS: std::ops::RangeInclusive<i64> = 536..=8_960;
const WINDOW_SCALE: std::ops::RangeInclusive<i64> = 0..=14;

/// How a service delays its binding, if it does.
pub fn delay(
    b: &mut Build<'_>,
    table: &Spanned<FileService>,
    proto: u8,
    mode: ForwardMode,
) -> Option<Delay> {
    let s = table.get_ref();
    let given = s.bind.as_ref().filter(|bind| !matches!(bind.get_ref(), FileBind::Syn));
    let Some(bind) = given else {
        for (key, span) in [
            ("bind_timeout", s.bind_timeout.as_ref().map(Spanned::span)),
            ("promise", s.promise.as_ref().map(Spanned::span)),
        ] {
            if let Some(span) = span {
                b.error(
                    &span,
                    format!(
                        "`{key}` is for services with `bind = \"hello\"` or `bind = \"request\"`"
                    ),
                );
            }
        }
        return None;
    };
    let at = match bind.get_ref() {
        FileBind::Request => BindAt::Request,
        _ => BindAt::Hello,
    };
    let word = word(at);
    if proto != TCP && at == BindAt::Request {
        let what = "`bind = \"request\"` is for `protocol = \"tcp\"`: QUIC says nothing in the \
                    clear but its ClientHello, for which there is \"hello\"";
        b.error(&bind.span(), what);
    }
    if proto != TCP
        && let Some(promise) = &s.promise
    {
        let what = "`promise` is for `protocol = \"tcp\"`: with QUIC nobody is told anything \
                    before a backend is known";
        b.error(&promise.span(), what);
    }
    if mode.is_one_way() {
        let mode = mode.word();
        let what = format!(
            "`bind = \"{word}\"` can't go with `mode = \"{mode}\"`: answers would pass the \
             appliance by, and their numbers have to be translated"
        );
        b.error(&bind.span(), what);
    }
    let timeout = b.within(&s.bind_timeout, TIMEOUT_MIN..=TIMEOUT_MAX, TIMEOUT, show);
    Some(Delay {
        at,
        timeout_ms: timeout.as_millis() as u32,
        promise: promise(b, s.promise.as_ref().map(Spanned::get_ref)),
    })
}

fn word(at: BindAt) -> &'static str {
    match at {
        BindAt::Hello => "hello",
        BindAt::Request => "request",
    }
}

fn promise(b: &mut Build<'_>, given: Option<&FilePromise>) -> Promise {
    let default = Promise::default();
    let Some(p) = given else { return default };
    let scale = b.number(&p.window_scale, WINDOW_SCALE, default.window_scale.unwrap_or(0));
    Promise {
        mss: b.number(&p.mss, MSS, default.mss),
        window_scale: Some(scale),
        sack: p.sack.unwrap_or(default.sack),
        timestamps: p.timestamps.unwrap_or(default.timestamps),
    }
}

/// Names the pools that rules choose, and checks that each can serve whom it is chosen for.
pub fn rule_pools(b: &mut Build<'_>, file: &FileConfig, config: &mut Config) {
    let pools = index(&file.pool.0);
    for (i, table) in file.rule.iter().enumerate() {
        let Some(given) = &table.get_ref().pool else { continue };
        let parts = parts(b, given, &pools);
        let Some(rule) = config.rules.get_mut(i).filter(|_| !parts.is_empty()) else { continue };
        rule.pool = Some(target(b, given, &parts, &mut config.forward).0);
        let forward = &mut config.forward;
        for &(pool, _) in &parts {
            let Some(pool) = forward.pools.get(pool) else { continue };
            offer(b, given, pool, forward.services.iter_mut().filter(|s| may_match(rule, s)));
        }
        if !forward.services.iter().any(|s| may_match(rule, s)) {
            let what = "no service whose `bind` waits for what this rule asks about: others get \
                        their backend before it is known, from their own pool";
            b.error(&given.span(), what);
        }
    }
}

/// Has services know a pool that a rule may choose for them.
fn offer<'a>(
    b: &mut Build<'_>,
    given: &Spanned<FilePools>,
    pool: &PoolSpec,
    services: impl Iterator<Item = &'a mut ServiceSpec>,
) {
    let v4 = pool.backends.first().map(|backend| backend.addr.is_v4());
    for service in services {
        if v4.is_some_and(|v4| v4 != service.vip.is_v4()) {
            let what = format!(
                "pool `{}` is of another family than service `{}`, which this rule can match: \
                 narrow it by `vip`",
                pool.name, service.name,
            );
            b.error(&given.span(), what);
        }
        if service.pool != pool.id && !service.rule_pools.contains(&pool.id) {
            service.rule_pools.push(pool.id);
        }
    }
}

/// Whether connections to a service with delayed binding can match a rule.
fn may_match(rule: &RuleSpec, service: &ServiceSpec) -> bool {
    service.delay.is_some_and(|d| d.at == BindAt::Request || !rule.needs_request())
        && (rule.vip.is_empty() || rule.vip.contains(&service.vip))
        && (rule.port.is_empty() || rule.port.contains(&service.port))
}

/// Whether the pipeline can read what services wait for.
pub fn check(b: &mut Build<'_>, file: &FileConfig, config: &Config) {
    let by_name: HashMap<&str, usize> = index(&file.service.0);
    let stages = &config.pipeline.stages;
    let inspects = stages.iter().any(|s| matches!(s, StageSpec::Inspect { .. }));
    for service in config.forward.services.iter().filter(|s| s.delay.is_some()) {
        let place = by_name.get(service.name.as_str());
        let table = place.and_then(|&i| file.service.0.get(i)).map(|(_, table)| table);
        if let Some(bind) = table.and_then(|t| t.get_ref().bind.as_ref())
            && !inspects
            && !stages.is_empty()
        {
            let what = format!(
                "`bind = \"{}\"` needs a pipeline with an `inspect` stage, whose limits it \
                 shares: `{}` has none",
                word(service.delay.map_or(BindAt::Hello, |d| d.at)),
                config.pipeline.name,
            );
            b.error(&bind.span(), what);
        }
    }
}
