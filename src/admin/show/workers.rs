//! Which thread runs which worker, and how busy they are.

use serde::{Deserialize, Serialize};

use crate::admin::table::{Table, grouped};
use crate::control::view::{Overview, WorkerView};

/// `show workers`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkersAnswer {
    pub threads: Vec<ThreadLine>,
    pub workers: Vec<WorkerLine>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ThreadLine {
    pub thread: u16,
    /// The core that it is pinned to.
    pub core: Option<usize>,
    /// The one that it was to have; another one where that can't be had.
    #[serde(default)]
    pub core_wanted: Option<usize>,
    pub workers: Vec<u16>,
    /// Of the last second: in turns that moved packets, of all its workers.
    pub busy_percent: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerLine {
    pub worker: u16,
    pub thread: u16,
    /// Of the last second, as above.
    pub busy_percent: f64,
    pub flows: u64,
    pub flows_max: u64,
    pub frames_available: u64,
    /// Of its share.
    pub frames_owned: u64,
}

impl WorkersAnswer {
    pub fn of(overview: &Overview) -> WorkersAnswer {
        let mut threads: Vec<ThreadLine> = Vec::new();
        for w in &overview.workers {
            match threads.iter_mut().find(|line| line.thread == w.thread) {
                Some(line) => {
                    line.workers.push(w.worker);
                    line.busy_percent += w.busy_percent;
                }
                None => threads.push(ThreadLine {
                    thread: w.thread,
                    core: w.core,
                    core_wanted: w.core_wanted,
                    workers: vec![w.worker],
                    busy_percent: w.busy_percent,
                }),
            }
        }
        threads.sort_by_key(|line| line.thread);
        WorkersAnswer { threads, workers: overview.workers.iter().map(WorkerLine::of).collect() }
    }
}

impl WorkerLine {
    fn of(w: &WorkerView) -> WorkerLine {
        let gauge = |name| w.gauges.get(name).copied().unwrap_or_default();
        WorkerLine {
            worker: w.worker,
            thread: w.thread,
            busy_percent: w.busy_percent,
            flows: gauge("flows"),
            flows_max: gauge("flows_max"),
            frames_available: gauge("frames_available"),
            frames_owned: gauge("frames_owned"),
        }
    }
}

pub(super) fn workers(answer: &WorkersAnswer) -> String {
    let mut threads = Table::new(&[">thread", ">core", ">busy", "workers"]);
    for line in &answer.threads {
        let list: Vec<_> = line.workers.iter().map(u16::to_string).collect();
        let mut core = line.core.map_or("any".into(), |core| core.to_string());
        if let Some(wanted) = line.core_wanted.filter(|_| line.core_wanted != line.core) {
            core = format!("{core}, not {wanted}");
        }
        threads.row([line.thread.to_string(), core, percent(line.busy_percent), list.join(", ")]);
    }
    let headings = [">worker", ">thread", ">busy", ">flows", ">of", ">frames free", ">of"];
    let mut workers = Table::new(&headings);
    for line in &answer.workers {
        workers.row([
            line.worker.to_string(),
            line.thread.to_string(),
            percent(line.busy_percent),
            grouped(line.flows),
            grouped(line.flows_max),
            grouped(line.frames_available),
            grouped(line.frames_owned),
        ]);
    }
    format!("{threads}\n{workers}")
}

fn percent(share: f64) -> String {
    format!("{share:.1} %")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_have_their_workers_and_what_these_are_busy_with() {
        let worker = |worker, thread, core, busy_percent| WorkerView {
            worker,
            thread,
            core,
            busy_percent,
            gauges: [("flows".to_string(), 1_234)].into(),
            ..WorkerView::default()
        };
        let workers_of =
            vec![worker(0, 1, None, 12.5), worker(1, 0, Some(3), 1.0), worker(2, 1, None, 30.0)];
        let answer = WorkersAnswer::of(&Overview { workers: workers_of, ..Overview::default() });
        let lines: Vec<_> =
            answer.threads.iter().map(|t| (t.thread, t.core, &t.workers[..])).collect();
        assert_eq!(lines, [(0, Some(3), &[1][..]), (1, None, &[0, 2])]);
        let shown = workers(&answer);
        assert!(shown.contains("42.5 %  0, 2\n") && shown.contains("1 234"), "{shown}");
    }

    #[test]
    fn a_core_that_could_not_be_had_is_shown_beside_the_one_that_was() {
        let shown = |core, core_wanted| {
            let worker = WorkerView { core, core_wanted, ..WorkerView::default() };
            let overview = Overview { workers: vec![worker], ..Overview::default() };
            let shown = workers(&WorkersAnswer::of(&overview));
            shown.lines().nth(1).expect("a thread").to_string()
        };
        assert!(shown(Some(1), Some(1)).contains("1  0.0 %"), "{}", shown(Some(1), Some(1)));
        assert!(shown(None, Some(99)).contains("any, not 99"), "{}", shown(None, Some(99)));
        assert!(shown(Some(1), Some(99)).contains("1, not 99"));
        assert!(shown(None, None).contains("any  0.0 %"));
    }
}
