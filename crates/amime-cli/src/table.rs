//! Tables of text: columns padded with spaces, as istioctl and kubectl print
//! them.
//!
//! Invariant: a column is as wide as its widest cell plus the padding, and
//! the last column is never padded.

use std::fmt;

/// Rows of cells under a header.
#[derive(Debug)]
pub(crate) struct Table {
    padding: usize,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with a header; `padding` spaces between columns.
    pub(crate) fn new<S: Into<String>>(
        padding: usize,
        header: impl IntoIterator<Item = S>,
    ) -> Self {
        Self { padding, rows: vec![header.into_iter().map(Into::into).collect()] }
    }

    /// A table without header.
    pub(crate) fn headless(padding: usize) -> Self {
        Self { padding, rows: Vec::new() }
    }

    /// Adds a row.
    pub(crate) fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    fn widths(&self) -> Vec<usize> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        (0..columns)
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                cells.map(|cell| cell.chars().count()).max().unwrap_or(0) + self.padding
            })
            .collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        for row in &self.rows {
            for (column, cell) in row.iter().enumerate() {
                if column + 1 == row.len() {
                    f.write_str(cell)?;
                } else {
                    write!(f, "{cell:<width$}", width = widths[column])?;
                }
            }
            f.write_str("\n")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_fit_their_widest_cell() {
        let mut table = Table::new(3, ["NAME", "AGE"]);
        table.row(["reviews-v1", "5s"]);
        table.row(["é", ""]);
        assert_eq!(table.to_string(), "NAME         AGE\nreviews-v1   5s\né            \n");
    }
}
