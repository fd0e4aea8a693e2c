//! What inference engines tell of themselves, read from their pages of metrics in the text format
//! of Prometheus (exposition format 0.0.4).

use crate::forward::load::Reading;

/// An engine, told by the names of its metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Vllm,
    Sglang,
    TrtllmServe,
    Triton,
    Tgi,
}

/// What a metric tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tells {
    Running,
    Waiting,
    Cache,
}

/// A metric of an engine. Series of one name are added up, but for the cache, of which the fullest
/// counts: a server may have several models or engines.
struct Metric {
    engine: Engine,
    name: &'static str,
    /// A label that the series must have.
    label: Option<(&'static str, &'static str)>,
    tells: Tells,
}

const fn plain(engine: Engine, name: &'static str, tells: Tells) -> Metric {
    Metric { engine, name, label: None, tells }
}

const TRITON_REQUESTS: &str = "nv_trt_llm_request_metrics";
const TRITON_CACHE: &str = "nv_trt_llm_kv_cache_block_metrics";

const METRICS: [Metric; 15] = [
    plain(Engine::Vllm, "vllm:num_requests_running", Tells::Running),
    plain(Engine::Vllm, "vllm:num_requests_waiting", Tells::Waiting),
    plain(Engine::Vllm, "vllm:kv_cache_usage_perc", Tells::Cache),
    // Versions before 0.10.
    plain(Engine::Vllm, "vllm:gpu_cache_usage_perc", Tells::Cache),
    plain(Engine::Sglang, "sglang:num_running_reqs", Tells::Running),
    plain(Engine::Sglang, "sglang:num_queue_reqs", Tells::Waiting),
    plain(Engine::Sglang, "sglang:token_usage", Tells::Cache),
    plain(Engine::TrtllmServe, "trtllm_num_requests_running", Tells::Running),
    plain(Engine::TrtllmServe, "trtllm_num_requests_waiting", Tells::Waiting),
    plain(Engine::TrtllmServe, "trtllm_kv_cache_utilization", Tells::Cache),
    Metric {
        label: Some(("request_type", "scheduled")),
        ..plain(Engine::Triton, TRITON_REQUESTS, Tells::Running)
    },
    Metric {
        label: Some(("request_type", "waiting")),
        ..plain(Engine::Triton, TRITON_REQUESTS, Tells::Waiting)
    },
    Metric {
        label: Some(("kv_cache_block_type", "fraction")),
        ..plain(Engine::Triton, TRITON_CACHE, Tells::Cache)
    },
    plain(Engine::Tgi, "tgi_batch_current_size", Tells::Running),
    plain(Engine::Tgi, "tgi_queue_size", Tells::Waiting),
];

impl Engine {
    pub fn name(self) -> &'static str {
        match self {
            Engine::Vllm => "vLLM",
            Engine::Sglang => "SGLang",
            Engine::TrtllmServe => "trtllm-serve",
            Engine::Triton => "Triton",
            Engine::Tgi => "TGI",
        }
    }
}

/// What a page tells, and whose it is: the first engine of which there is a metric.
///
/// # Errors
/// Words for the operator: no engine that is known says how much it has to do.
pub fn read(page: &str) -> Result<(Engine, Reading), String> {
    let mut found: Option<(Engine, Reading)> = None;
    let (mut running, mut waiting) = (false, false);
    for line in page.lines() {
        let Some((metric, value)) = sample(line) else { continue };
        let (engine, reading) = found.get_or_insert((metric.engine, Reading::default()));
        if *engine != metric.engine {
            continue;
        }
        match metric.tells {
            Tells::Running => (reading.running, running) = (reading.running + value, true),
            Tells::Waiting => (reading.waiting, waiting) = (reading.waiting + value, true),
            Tells::Cache => reading.cache = Some(reading.cache.unwrap_or(0.0).max(value.min(1.0))),
        }
    }
    match found {
        Some(found) if running && waiting => Ok(found),
        Some((engine, _)) => Err(format!(
            "metrics of {}, but not of its running and waiting requests",
            engine.name()
        )),
        None => Err("no metrics of an engine that is known".to_string()),
    }
}

/// A line that tells something we want: `name{label="value",…} value [timestamp]`.
fn sample(line: &str) -> Option<(&'static Metric, f64)> {
    let end = line.find(['{', ' ', '\t'])?;
    let (name, rest) = line.split_at(end);
    let mut of_name = METRICS.iter().filter(|m| m.name == name).peekable();
    of_name.peek()?;
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Vec::new(), rest),
    };
    let has = |m: &&Metric| m.label.is_none_or(|(name, value)| labels.contains(&(name, value)));
    let metric = of_name.find(has)?;
    let value: f64 = rest.split_ascii_whitespace().next()?.parse().ok()?;
    (value.is_finite() && value >= 0.0).then_some((metric, value))
}

/// Labels up to the closing brace, and what follows it. Values stay as they are written: none of
/// those that are asked for has anything to unescape.
fn labels(mut rest: &str) -> Option<(Vec<(&str, &str)>, &str)> {
    let mut all = Vec::new();
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if let Some(rest) = rest.strip_prefix('}') {
            return Some((all, rest));
        }
        let (name, value) = rest.split_once('=')?;
        let value = value.trim_start().strip_prefix('"')?;
        let end = closing_quote(value)?;
        all.push((name.trim(), value.get(..end)?));
        rest = value.get(end + 1..)?;
    }
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|b| match (b, escaped) {
        (b'"', false) => true,
        _ => {
            escaped = b == b'\\' && !escaped;
            false
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    macro_rules! page {
        ($name:literal) => {
            include_str!(concat!("../../../tests/engine_metrics/", $name))
        };
    }

    #[test]
    fn pages_of_all_engines_are_read() {
        let reading = |running, waiting, cache| Reading { running, waiting, cache };
        for (page, engine, wanted) in [
            (page!("vllm-v1.txt"), Engine::Vllm, reading(12.0, 3.0, Some(0.4375))),
            (page!("vllm-v0.txt"), Engine::Vllm, reading(2.0, 0.0, Some(0.0625))),
            (page!("sglang.txt"), Engine::Sglang, reading(26.0, 9.0, Some(0.28))),
            (page!("trtllm-serve.txt"), Engine::TrtllmServe, reading(7.0, 1.0, Some(0.5))),
            (page!("triton.txt"), Engine::Triton, reading(5.0, 2.0, Some(0.125))),
            (page!("tgi.txt"), Engine::Tgi, reading(4.0, 6.0, None)),
            (page!("vllm-2025-03.txt"), Engine::Vllm, reading(0.0, 0.0, Some(0.0))),
            (page!("sglang-loaded.txt"), Engine::Sglang, reading(162.0, 2826.0, Some(0.28))),
            (page!("triton-23.11.txt"), Engine::Triton, reading(1.0, 1.0, Some(0.4875))),
        ] {
            assert_eq!(read(page), Ok((engine, wanted)), "{}", engine.name());
        }
    }

    #[test]
    fn what_is_no_page_of_an_engine_is_refused() {
        for (page, said) in [
            ("", "no metrics of an engine"),
            ("<html>404</html>", "no metrics of an engine"),
            ("vllm:num_requests_running 3\n", "not of its running and waiting"),
            ("vllm:num_requests_running NaN\nvllm:num_requests_waiting 1\n", "not of its"),
            ("vllm:num_requests_running{a=\"} 3\nvllm:num_requests_waiting 1\n", "not of its"),
        ] {
            let error = read(page).expect_err(page);
            assert!(error.contains(said), "{error}");
        }
        let odd = "vllm:num_requests_running{a=\"x\\\"} 9\", b = \"\\\\\" ,} 3 1712345678000\n\
                   vllm:num_requests_waiting\t+2\r\nvllm:num_requests_waiting -7\n";
        let wanted = Reading { running: 3.0, waiting: 2.0, cache: None };
        assert_eq!(read(odd), Ok((Engine::Vllm, wanted)));
    }

    proptest! {
        #[test]
        fn strangers_pages_do_no_harm(text in "\\PC*", cut in 0..4_000usize, at in 0..4_000usize) {
            let _ = read(&text);
            let mut page = page!("triton.txt").as_bytes().to_vec();
            page.truncate(cut.max(1));
            let at = at % page.len();
            page[at] = text.bytes().next().unwrap_or(b'"');
            if let Ok((_, reading)) = read(&String::from_utf8_lossy(&page)) {
                prop_assert!(reading.requests().is_finite());
                prop_assert!(reading.cache.is_none_or(|c| (0.0..=1.0).contains(&c)));
            }
        }
    }
}
