//! How far a long command has got: a bar on a terminal's standard error, cleared at its end.

use std::io::{IsTerminal, Write};

const BAR_COLUMNS: u64 = 40;

/// A bar, drawn anew with every percent.
pub struct Bar {
    total: u64,
    done: u64,
    drawn: u64,
    /// What the whole is.
    of: String,
}

impl Bar {
    /// `None` where nobody would see it.
    pub fn new(total: u64, of: String) -> Option<Bar> {
        let shown = total > 0 && std::io::stderr().is_terminal();
        shown.then(|| Bar { total, done: 0, drawn: u64::MAX, of })
    }

    pub fn advance(&mut self, by: u64) {
        self.reach(self.done + by);
    }

    pub fn reach(&mut self, done: u64) {
        self.done = done;
        let percent = (done.saturating_mul(100) / self.total).min(100);
        if percent != self.drawn {
            self.drawn = percent;
            let _ = write!(std::io::stderr(), "\r{}", self.line(percent));
        }
    }

    fn line(&self, percent: u64) -> String {
        let full = (percent * BAR_COLUMNS / 100) as usize;
        let (done, left) = ("#".repeat(full), " ".repeat(BAR_COLUMNS as usize - full));
        format!("[{done}{left}] {percent:>3} % of {}", self.of)
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_grows_with_what_was_read() {
        let bar = Bar { total: 100 << 20, done: 0, drawn: 0, of: "100 MB".to_string() };
        assert_eq!(bar.line(0), format!("[{}]   0 % of 100 MB", " ".repeat(40)));
        assert_eq!(bar.line(50), format!("[{}{}]  50 % of 100 MB", "#".repeat(20), " ".repeat(20)));
        assert_eq!(bar.line(100), format!("[{}] 100 % of 100 MB", "#".repeat(40)));
        std::mem::forget(bar);
    }
}
