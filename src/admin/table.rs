//! Tables for people: columns as wide as their widest cell, numbers to the right.

/// Lines of cells under a heading.
#[derive(Debug)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

#[derive(Debug)]
struct Column {
    heading: &'static str,
    right: bool,
}

impl Table {
    /// Columns by their headings; those that begin with `>` are aligned to the right.
    pub fn new(headings: &[&'static str]) -> Table {
        let columns = headings.iter().map(|h| match h.strip_prefix('>') {
            Some(heading) => Column { heading, right: true },
            None => Column { heading: h, right: false },
        });
        Table { columns: columns.collect(), rows: Vec::new() }
    }

    /// Adds a line; missing cells are empty, surplus ones are not shown.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    /// As [`Table::row`], for tables whose number of columns varies.
    pub fn row_of(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let cell = |row: &[String], i: usize| row.get(i).cloned().unwrap_or_default();
        let widths: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(i, c)| {
                let cells = self.rows.iter().map(|r| r.get(i).map_or(0, |s| s.chars().count()));
                cells.max().unwrap_or(0).max(c.heading.len())
            })
            .collect();
        let headings: Vec<String> = self.columns.iter().map(|c| c.heading.to_string()).collect();
        for row in std::iter::once(&headings).chain(&self.rows) {
            let mut line = String::new();
            for (i, (column, width)) in self.columns.iter().zip(&widths).enumerate() {
                let gap = if i == 0 { "" } else { "  " };
                let text = cell(row, i);
                line += &match column.right {
                    true => format!("{gap}{text:>width$}"),
                    false => format!("{gap}{text:<width$}"),
                };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// `1234567` as `1 234 567`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut t = Table::new(&["name", ">packets", "note"]);
        t.row(["a".into(), "5".into(), String::new()]);
        t.row(["longer".into(), "1 234 567".into(), "x".into()]);
        t.row_of(vec!["é".into()]);
        let want = "name      packets  note\na               5\nlonger  1 234 567  x\né\n";
        assert_eq!(t.to_string(), want);
    }

    #[test]
    fn digits_are_grouped_by_three() {
        for (n, s) in [(0, "0"), (999, "999"), (1_000, "1 000"), (12_345_678, "12 345 678")] {
            assert_eq!(grouped(n), s);
        }
    }
}
