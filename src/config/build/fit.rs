//! Whether pipeline and configuration fit each other: warnings, since either may be half-way
//! through a change.

use std::collections::HashSet;
use std::ops::Range;

use toml::Spanned;

use super::Build;
use crate::base::Addr;
use crate::config::Config;
use crate::config::file::{FileBalance, FileConfig, FileOutliers, FilePool, FileRule};
use crate::graph::spec::StageSpec;

pub fn check(b: &mut Build<'_>, file: &FileConfig, config: &Config) {
    let stages = &config.pipeline.stages;
    if stages.is_empty() {
        return; // it could not be read, and that was told
    }
    let Some(pipeline) = &file.pipeline else { return };
    let place = pipeline.span();
    let name = pipeline.get_ref();
    let has = |stage: &StageSpec| stages.contains(stage);
    let inspects = stages.iter().any(|s| matches!(s, StageSpec::Inspect { .. }));
    let [balances, routes] = [StageSpec::Balance, StageSpec::Route].map(|stage| has(&stage));
    let [shapes, classifies] = [StageSpec::Shape, StageSpec::Classify].map(|stage| has(&stage));
    let taps = has(&StageSpec::Tap);

    let first_service = file.service.0.first().map(|(key, _)| key.span());
    let first_qos = file.qos.0.first().map(|(key, _)| key.span());
    let first_rule = file.rule.first().map(Spanned::span);
    let first_limit = file.limit.0.first().map(|(key, _)| key.span());
    let transit = file.transit.as_ref().map(Spanned::span);

    check_unused(b, file, place, has);
    let mut warn = |condition: bool, at: Option<Range<usize>>, what: String| {
        if let (true, Some(at)) = (condition, at) {
            b.warning(&at, what);
        }
    };
    let lost = |stage: &str| format!("pipeline `{name}` has no `{stage}` stage");
    let dropped = ": packets to services would be dropped";
    let alone = !balances && !taps;
    warn(alone, first_service, lost("balance") + dropped);
    let dropped = ": packets to these prefixes would be dropped";
    warn(!routes && !taps, transit, lost("route") + dropped);
    warn(!shapes, first_qos, lost("shape") + ": the class tree has no effect");
    warn(!classifies, first_rule, lost("classify") + ": rules have no effect");
    warn(!classifies, first_limit, lost("classify") + ": nothing is limited");
    let first_meter = file.meter.0.first().map(|(key, _)| key.span());
    let none = ": nothing is measured";
    warn(!has(&StageSpec::Meter), first_meter, lost("meter") + none);
    let first_trust = file.dscp.0.first().map(|(key, _)| key.span());
    let none = ": code points stay as they come";
    warn(!has(&StageSpec::Trust), first_trust, lost("trust") + none);
    for r in &file.rule {
        let never = ": no flow has a name to match";
        warn(classifies && !inspects, content_place(r.get_ref()), lost("inspect") + never);
    }
    let of_requests = file.limit.0.iter().find(|(_, limit)| limit.get_ref().requests.is_some());
    let none = ": no request is seen that could be limited";
    warn(!inspects, of_requests.map(|(key, _)| key.span()), lost("inspect") + none);
    if !stages.iter().any(|s| matches!(s, StageSpec::Timing { .. })) {
        check_times(b, file, &lost("timing"));
    }
    if !inspects {
        check_errors(b, file, &lost("inspect"));
    }
    check_seen(b, file, config);
    check_rule_vips(b, file, config, routes || taps);
}

/// Stages that have nothing to do, as the file stands.
fn check_unused(
    b: &mut Build<'_>,
    file: &FileConfig,
    place: Range<usize>,
    has: impl Fn(&StageSpec) -> bool,
) {
    let first_service = file.service.0.first();
    let mut warn = |condition: bool, at: Option<Range<usize>>, what: String| {
        if let (true, Some(at)) = (condition, at) {
            b.warning(&at, what);
        }
    };
    let here = Some(place);
    let none = "there is no `[service.NAME]` for the `balance` stage";
    warn(has(&StageSpec::Balance) && first_service.is_none(), here.clone(), none.to_string());
    let none = "there are no `[transit]` prefixes: the `route` stage gets nothing";
    warn(has(&StageSpec::Route) && file.transit.is_none(), here.clone(), none.to_string());
    let none = "there is no `[qos.PORT]` for the `shape` stage: every port is a plain FIFO";
    warn(has(&StageSpec::Shape) && file.qos.0.is_empty(), here.clone(), none.to_string());
    let none = "there is no `[[rule]]` for the `classify` stage";
    let unused = file.rule.is_empty() && file.limit.0.is_empty();
    warn(has(&StageSpec::Classify) && unused, here.clone(), none.to_string());
    let none =
        "nothing is steered to the `tap` stage: give the observed destinations in `[transit]`";
    let steered = first_service.is_some() || file.transit.is_some();
    let taps = has(&StageSpec::Tap);
    warn(taps && !steered, here, none.to_string());

    let only = "the `tap` stage transmits nothing, copies neither: leave `mirror` out";
    warn(taps, first_mirror(file), only.to_string());
}

/// Backends that would be taken out by what they answer, which nobody reads.
fn check_errors(b: &mut Build<'_>, file: &FileConfig, lost: &str) {
    if let Some(place) = first_outlier(file, by_errors) {
        b.warning(&place, format!("{lost}{NOT_TAKEN_OUT}"));
    }
}

const NOT_TAKEN_OUT: &str = ": no backend is taken out for that";

/// Outliers of pools whose answers never come by here.
fn check_seen(b: &mut Build<'_>, file: &FileConfig, config: &Config) {
    let forward = &config.forward;
    for (name, pool) in &file.pool.0 {
        let Some(outliers) = &pool.get_ref().outliers else { continue };
        let Some(id) = forward.pools.iter().find(|p| p.name == *name.get_ref()).map(|p| p.id)
        else {
            continue;
        };
        let mut modes = forward.services.iter().filter(|s| forward.leads_to(s, id)).peekable();
        if modes.peek().is_some() && modes.all(|s| s.mode.is_one_way()) {
            let what = "answers do not come by here with `dsr`, `ipip` and `gue`: no outlier is \
                        seen, use `health`";
            b.warning(&outliers.span(), what);
        }
    }
}

/// What goes by how soon backends answer, where nobody sees that; `lost` says why.
fn check_times(b: &mut Build<'_>, file: &FileConfig, lost: &str) {
    if let Some(place) = first_by_times(file) {
        b.warning(&place, format!("{lost}: `peak-ewma` chooses by connections alone"));
    }
    if let Some(place) = first_outlier(file, by_times) {
        b.warning(&place, format!("{lost}{NOT_TAKEN_OUT}"));
    }
}

fn first_mirror(file: &FileConfig) -> Option<Range<usize>> {
    file.rule.iter().find_map(|rule| rule.get_ref().mirror.as_ref()).map(Spanned::span)
}

/// The first pool that chooses by how soon backends answer.
fn first_by_times(file: &FileConfig) -> Option<Range<usize>> {
    let by = |pool: &FilePool| matches!(pool.balance, Some(FileBalance::PeakEwma));
    file.pool.0.iter().find(|(_, pool)| by(pool.get_ref())).map(|(key, _)| key.span())
}

/// Where the first pool says that backends are to be taken out by something.
fn first_outlier(
    file: &FileConfig,
    by: impl Fn(&FileOutliers) -> Option<Range<usize>>,
) -> Option<Range<usize>> {
    let outliers = |pool: &Spanned<FilePool>| by(pool.get_ref().outliers.as_ref()?.get_ref());
    file.pool.0.iter().find_map(|(_, pool)| outliers(pool))
}

fn by_times(outliers: &FileOutliers) -> Option<Range<usize>> {
    let slower = outliers.slower_times.as_ref().map(Spanned::span);
    slower.or_else(|| outliers.silent_for.as_ref().map(Spanned::span))
}

fn by_errors(outliers: &FileOutliers) -> Option<Range<usize>> {
    outliers.error_percent.as_ref().filter(|percent| *percent.get_ref() != 0).map(Spanned::span)
}

/// Where a rule asks for what is said in a flow.
fn content_place(r: &FileRule) -> Option<Range<usize>> {
    let hello = [
        r.sni.as_ref().map(Spanned::span),
        r.alpn.as_ref().map(Spanned::span),
        r.ja4.as_ref().map(Spanned::span),
    ];
    let request = [
        r.authority.as_ref().map(Spanned::span),
        r.method.as_ref().map(Spanned::span),
        r.path.as_ref().map(Spanned::span),
        r.header.as_ref().map(Spanned::span),
        r.grpc.as_ref().map(Spanned::span),
        r.provider.as_ref().map(Spanned::span),
        r.operation.as_ref().map(Spanned::span),
    ];
    hello.into_iter().chain(request).flatten().next()
}

/// A rule for a VIP that no service has can only match routed traffic.
fn check_rule_vips(b: &mut Build<'_>, file: &FileConfig, config: &Config, sees_others: bool) {
    if sees_others {
        return;
    }
    let known: HashSet<Addr> = config.forward.services.iter().map(|s| s.vip).collect();
    for r in &file.rule {
        let Some(vips) = &r.get_ref().vip else { continue };
        for vip in &vips.get_ref().0 {
            if !known.contains(vip) {
                b.warning(&vips.span(), format!("no service has the VIP {vip}"));
            }
        }
    }
}
