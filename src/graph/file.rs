//! Pipeline files: ordered `[[stage]]` tables, each with one stage and its settings.

use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use toml::Spanned;

use crate::base::diag::{Diagnostics, Source, advice};
use crate::base::tomlfile::{self, Faulty, ROOT};
use crate::graph::spec::{PipelineSpec, StageSpec};

/// Stages of one pipeline.
pub const STAGES_MAX: usize = 16;
/// What `hello_bytes_max` may be: post-quantum hellos take several KiB.
const HELLO_BYTES: std::ops::RangeInclusive<i64> = 512..=65_536;
/// What `flows_max` may be: a flow holds its inspection slot in 16 bits.
const INSPECTED_FLOWS: std::ops::RangeInclusive<i64> = 1..=65_534;
const HELLO_BYTES_DEFAULT: i64 = 16_384;
const INSPECTED_FLOWS_DEFAULT: i64 = 8_192;
/// Unless `http_flows_max` is given, this share of `flows_max` may speak HTTP.
const FLOWS_PER_HTTP_FLOW: i64 = 2;
/// What `flows_max` of `timing` may be: a flow takes a cache line.
const TIMED_FLOWS: std::ops::RangeInclusive<i64> = 1..=4_194_304;
const TIMED_FLOWS_DEFAULT: i64 = 65_536;
/// What `one_in` may be: with more, a busy backend would be timed once in minutes.
const ONE_IN: std::ops::RangeInclusive<i64> = 1..=65_536;
const ONE_IN_DEFAULT: i64 = 1;

/// The pipelines that every binary carries, by name.
const SHIPPED: [(&str, &str); 4] = [
    ("llm-edge", include_str!("../../pipelines/llm-edge.toml")),
    ("l4-balancer", include_str!("../../pipelines/l4-balancer.toml")),
    ("router", include_str!("../../pipelines/router.toml")),
    ("tap", include_str!("../../pipelines/tap.toml")),
];

/// The text of a shipped pipeline.
pub fn shipped(name: &str) -> Option<&'static str> {
    SHIPPED.iter().find(|(n, _)| *n == name).map(|(_, text)| *text)
}

/// Names of the shipped pipelines.
pub fn shipped_names() -> impl Iterator<Item = &'static str> {
    SHIPPED.iter().map(|(name, _)| *name)
}

/// Reads a pipeline file. `None` when it has errors; all faults go to `out`.
pub fn parse(source: &Source, out: &mut Diagnostics) -> Option<PipelineSpec> {
    let mut found = Diagnostics::default();
    let spec = tomlfile::read::<FilePipeline>(source, &mut found)
        .map(|r| Checker { source, faulty: &r.faulty, out: &mut found }.pipeline(&r.value));
    let spec = spec.filter(|_| !found.has_errors());
    out.append(found);
    spec
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct FilePipeline {
    name: Option<Spanned<String>>,
    /// For whoever reads the file; nothing depends on it.
    #[serde(rename = "description")]
    _description: Option<String>,
    stage: Vec<Spanned<FileStage>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StageName {
    Trust,
    Inspect,
    Classify,
    Meter,
    Timing,
    Balance,
    Route,
    Shape,
    Tap,
}

const STAGE_NAMES: [(&str, StageName); 9] = [
    ("trust", StageName::Trust),
    ("inspect", StageName::Inspect),
    ("classify", StageName::Classify),
    ("meter", StageName::Meter),
    ("timing", StageName::Timing),
    ("balance", StageName::Balance),
    ("route", StageName::Route),
    ("shape", StageName::Shape),
    ("tap", StageName::Tap),
];

impl fmt::Display for StageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(STAGE_NAMES.iter().find(|(_, n)| n == self).map_or("", |(text, _)| text))
    }
}

impl<'de> Deserialize<'de> for StageName {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<StageName, D::Error> {
        let text = String::deserialize(d)?;
        let found = STAGE_NAMES.iter().find(|(name, _)| *name == text).map(|(_, n)| *n);
        let names = STAGE_NAMES.iter().map(|(name, _)| *name);
        found.ok_or_else(|| {
            de::Error::custom(format!("unknown stage `{text}`{}", advice(&text, names)))
        })
    }
}

/// One `[[stage]]`: a table of exactly one key, the stage's name.
#[derive(Debug, Default)]
struct FileStage {
    name: Option<Spanned<StageName>>,
    inspect: FileInspect,
    timing: FileTiming,
    /// A second stage in the same table, which is an error told at its place.
    second: Option<Spanned<StageName>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct FileInspect {
    hello_bytes_max: Option<Spanned<i64>>,
    flows_max: Option<Spanned<i64>>,
    http_flows_max: Option<Spanned<i64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct FileTiming {
    flows_max: Option<Spanned<i64>>,
    one_in: Option<Spanned<i64>>,
}

/// The settings of a stage that has none.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileNothing {}

impl<'de> Deserialize<'de> for FileStage {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<FileStage, D::Error> {
        d.deserialize_map(StageVisitor)
    }
}

/// Reads the stage's name by a type of its own, so that an unknown one is told at the name itself.
struct StageVisitor;

impl<'de> Visitor<'de> for StageVisitor {
    type Value = FileStage;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a stage such as `balance = {}`")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<FileStage, M::Error> {
        let mut stage = FileStage::default();
        while let Some(name) = map.next_key::<Spanned<StageName>>()? {
            if let Some(other) = stage.name.take() {
                // Keys come sorted by name; of two, the later in the file is the one too many.
                map.next_value::<de::IgnoredAny>()?;
                let in_order = other.span().start < name.span().start;
                let (first, second) = if in_order { (other, name) } else { (name, other) };
                (stage.name, stage.second) = (Some(first), Some(second));
                continue;
            }
            match name.get_ref() {
                StageName::Inspect => stage.inspect = map.next_value()?,
                StageName::Timing => stage.timing = map.next_value()?,
                _ => {
                    map.next_value::<FileNothing>()?;
                }
            }
            stage.name = Some(name);
        }
        Ok(stage)
    }
}

struct Checker<'a> {
    source: &'a Source,
    faulty: &'a Faulty,
    out: &'a mut Diagnostics,
}

impl Checker<'_> {
    fn pipeline(&mut self, file: &FilePipeline) -> PipelineSpec {
        let start = 0..0;
        let name = file.name.as_ref().map(|n| n.get_ref().clone()).unwrap_or_default();
        match &file.name {
            None if self.faulty.contains(&ROOT, "name") => {}
            None => self.error(&start, "`name` is missing: give the pipeline one"),
            Some(n) if n.get_ref().is_empty() => self.error(&n.span(), "the name is empty"),
            Some(_) => {}
        }
        if file.stage.len() > STAGES_MAX {
            let span = file.stage[STAGES_MAX].span();
            self.error(&span, format!("a pipeline has {STAGES_MAX} stages at most"));
        }
        let mut order: Vec<(StageName, Range<usize>)> = Vec::new();
        let mut stages = Vec::new();
        for s in &file.stage {
            if let Some((name, spec)) = self.stage(s) {
                stages.push(spec);
                order.push(name);
            }
        }
        let in_order = self.order(&order);
        // A stage that could not be read may be the one that another needs.
        let is_whole = order.len() == file.stage.len() && !self.faulty.contains(&ROOT, "stage");
        if is_whole && in_order {
            self.completeness(&order, &start);
        }
        PipelineSpec { name, stages }
    }

    fn stage(&mut self, s: &Spanned<FileStage>) -> Option<((StageName, Range<usize>), StageSpec)> {
        let stage = s.get_ref();
        let Some(name) = &stage.name else {
            if !self.faulty.any_in(&s.span()) {
                self.error(&s.span(), "an empty stage: write one such as `balance = {}` below it");
            }
            return None;
        };
        if let Some(second) = &stage.second {
            let what = format!(
                "`{}` stands in the same table as `{}`: write `[[stage]]` before each",
                second.get_ref(),
                name.get_ref(),
            );
            self.error(&second.span(), what);
            return None;
        }
        let spec = match name.get_ref() {
            StageName::Inspect => self.inspect(&stage.inspect),
            StageName::Trust => StageSpec::Trust,
            StageName::Classify => StageSpec::Classify,
            StageName::Meter => StageSpec::Meter,
            StageName::Timing => StageSpec::Timing {
                flows_max: self.number(&stage.timing.flows_max, TIMED_FLOWS, TIMED_FLOWS_DEFAULT),
                one_in: self.number(&stage.timing.one_in, ONE_IN, ONE_IN_DEFAULT),
            },
            StageName::Balance => StageSpec::Balance,
            StageName::Route => StageSpec::Route,
            StageName::Shape => StageSpec::Shape,
            StageName::Tap => StageSpec::Tap,
        };
        Some(((*name.get_ref(), name.span()), spec))
    }

    fn inspect(&mut self, file: &FileInspect) -> StageSpec {
        let flows_max = self.number(&file.flows_max, INSPECTED_FLOWS, INSPECTED_FLOWS_DEFAULT);
        let all = i64::from(flows_max).max(1);
        let share = (all / FLOWS_PER_HTTP_FLOW).max(1);
        StageSpec::Inspect {
            hello_bytes_max: self.number(&file.hello_bytes_max, HELLO_BYTES, HELLO_BYTES_DEFAULT),
            flows_max,
            http_flows_max: self.number(&file.http_flows_max, 1..=all, share),
            headers: Vec::new(),
        }
    }

    fn number(
        &mut self,
        given: &Option<Spanned<i64>>,
        range: std::ops::RangeInclusive<i64>,
        default: i64,
    ) -> u32 {
        let n = given.as_ref().map_or(default, |g| *g.get_ref());
        if let Some(g) = given
            && !range.contains(&n)
        {
            let (low, high) = (range.start(), range.end());
            self.error(&g.span(), format!("{n} is not within {low} to {high}"));
        }
        u32::try_from(n).unwrap_or_default()
    }

    /// Holds the stages to an order in which each finds what it needs; `false` where one stands
    /// there twice.
    fn order(&mut self, order: &[(StageName, Range<usize>)]) -> bool {
        use StageName::{Balance, Classify, Inspect, Meter, Route, Shape, Tap, Timing, Trust};
        let at = |name| order.iter().position(|(n, _)| *n == name);
        for (i, (name, span)) in order.iter().enumerate() {
            if at(*name) != Some(i) {
                self.error(span, format!("`{name}` stands here a second time"));
                return false;
            }
        }
        let rules: [(StageName, &[StageName], &str); 7] = [
            (Trust, &[Inspect, Classify, Balance, Route, Shape], "rules ask for code points"),
            (Inspect, &[Classify, Meter, Balance, Route, Shape], "rules ask for what it reads"),
            (Classify, &[Meter, Balance, Route, Shape], "the class is decided first"),
            (Meter, &[Balance, Route, Shape], "what it drops need not be forwarded"),
            (Timing, &[Balance, Route, Shape], "it looks at what is not yet forwarded"),
            (Balance, &[Route, Shape], "it takes what is addressed to services"),
            (Route, &[Shape], "only what is forwarded can be shaped"),
        ];
        for (first, later, why) in rules {
            let Some(i) = at(first) else { continue };
            if let Some(wrong) = later.iter().find(|l| at(**l).is_some_and(|j| j < i)) {
                let what = format!("`{first}` must stand before `{wrong}`: {why}");
                self.error(&order[i].1, what);
            }
        }
        if let (Some(i), Some(j)) =
            (at(Tap), [Meter, Balance, Route, Shape].iter().find_map(|n| at(*n)))
        {
            let what = format!(
                "`tap` transmits nothing, so it can't stand in a pipeline with `{}`",
                order[j].0
            );
            self.error(&order[i].1, what);
        } else if at(Tap).is_some_and(|i| i + 1 != order.len()) {
            self.error(&order[at(Tap).unwrap_or(0)].1, "`tap` must be the last stage");
        }
        true
    }

    /// Whether each stage has others that use what it does.
    fn completeness(&mut self, order: &[(StageName, Range<usize>)], start: &Range<usize>) {
        use StageName::{Balance, Classify, Inspect, Route, Shape, Tap};
        let at = |name| order.iter().position(|(n, _)| *n == name);
        let forwards = at(Balance).is_some() || at(Route).is_some();
        match at(Shape) {
            Some(i) if !forwards => {
                let what = "`shape` has nothing to send: put `balance` or `route` before it";
                self.error(&order[i].1, what);
            }
            _ if !forwards && at(Tap).is_none() => {
                let what =
                    "nothing becomes of the packets: add a `balance`, `route` or `tap` stage";
                self.error(order.last().map_or(start, |(_, s)| s), what);
            }
            _ => {}
        }
        if let Some(i) = at(Inspect)
            && at(Classify).is_none()
        {
            let what = "nothing uses what `inspect` finds: add a `classify` stage after it";
            self.out.warning(self.source, &order[i].1, what);
        }
    }

    fn error(&mut self, span: &Range<usize>, message: impl Into<String>) {
        self.out.error(self.source, span, message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Option<PipelineSpec>, String) {
        let mut out = Diagnostics::default();
        let spec = parse(&Source::new("p", text), &mut out);
        (spec, out.to_string())
    }

    fn inspect(flows_max: u32) -> StageSpec {
        let (http_flows_max, headers) = (flows_max / 2, Vec::new());
        StageSpec::Inspect { hello_bytes_max: 16_384, flows_max, http_flows_max, headers }
    }

    #[test]
    fn shipped_pipelines_are_what_they_say() {
        let inspect = inspect(8_192);
        let timing = StageSpec::Timing { flows_max: 65_536, one_in: 1 };
        use StageSpec::{Balance, Classify, Meter, Route, Shape, Tap, Trust};
        let edge = vec![Trust, inspect.clone(), Classify, Meter, timing.clone(), Balance, Shape];
        let expected = [
            ("llm-edge", edge),
            ("l4-balancer", vec![Balance]),
            ("router", vec![Trust, Classify, Meter, Route, Shape]),
            ("tap", vec![inspect, Classify, timing, Tap]),
        ];
        for (name, stages) in expected {
            let (spec, faults) = read(shipped(name).expect(name));
            assert_eq!(faults, "");
            assert_eq!(spec, Some(PipelineSpec { name: name.to_string(), stages }));
        }
        assert_eq!(shipped_names().count(), SHIPPED.len());
        assert_eq!(shipped("nosuch"), None);
    }

    #[test]
    fn settings_have_defaults() {
        let (spec, faults) = read(
            "name = \"x\"\n[[stage]]\ninspect = {}\n[[stage]]\nclassify = {}\n\
             [[stage]]\ntiming = {}\n[[stage]]\nroute = {}\n",
        );
        assert_eq!(faults, "");
        let inspect = inspect(8_192);
        let stages = spec.expect("valid").stages;
        assert_eq!(stages[0], inspect);
        assert_eq!(stages[2], StageSpec::Timing { flows_max: 65_536, one_in: 1 });
    }

    #[test]
    fn a_warning_does_not_refuse_the_file() {
        let (spec, faults) =
            read("name = \"x\"\n[[stage]]\ninspect = {}\n[[stage]]\nbalance = {}\n");
        assert!(spec.is_some());
        assert_eq!(
            faults,
            "p:3:1: warning: nothing uses what `inspect` finds: add a `classify` stage after it"
        );
    }
}
