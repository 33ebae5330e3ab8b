//! No file names a path that exists on one machine only.

use std::path::{Path, PathBuf};

use super::Problem;

/// Folders under which a user or a build machine keeps its own things.
const ROOTS: [&str; 4] = ["home", "Users", "root", "work"];
/// Longest file looked into, in bytes; longer ones are data.
const MAX_BYTES: u64 = 1 << 20;

/// Checks every text file.
pub(crate) fn check(root: &Path, files: &[PathBuf]) -> anyhow::Result<Vec<Problem>> {
    let mut problems = Vec::new();
    for path in files {
        let full = root.join(path);
        if full.metadata()?.len() > MAX_BYTES {
            continue;
        }
        let Ok(text) = std::fs::read_to_string(&full) else { continue };
        for (index, line) in text.lines().enumerate() {
            if let Some(found) = machine_path(line) {
                let message = format!("a path of one machine: {found}");
                problems.push(Problem::new(&path.to_string_lossy(), index + 1, message));
            }
        }
    }
    Ok(problems)
}

/// The first absolute path of the line that starts in one of [`ROOTS`].
fn machine_path(line: &str) -> Option<&str> {
    line.match_indices('/').find_map(|(at, _)| {
        let before = line[..at].chars().next_back();
        // `a/home/b` and `https://home/…` are not absolute paths.
        if before.is_some_and(|c| c.is_alphanumeric() || "/.-_~}$*".contains(c)) {
            return None;
        }
        let rest = &line[at + 1..];
        let (first, after) = rest.split_once('/')?;
        let starts = after.chars().next().is_some_and(|c| c.is_alphanumeric() || c == '.');
        if !ROOTS.contains(&first) || !starts {
            return None;
        }
        let end = rest.find(|c: char| c.is_whitespace() || "\"'`)>,;".contains(c));
        Some(&line[at..at + 1 + end.unwrap_or(rest.len())])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_absolute_paths_of_a_user_count() {
        let home = ["", "home", "me", "x"].join("/");
        assert_eq!(machine_path(&format!("see {home} there")), Some(home.as_str()));
        assert_eq!(machine_path("https://example.com/home/me"), None);
        assert_eq!(machine_path("$HOME/work/x and target/root/y"), None);
        assert_eq!(machine_path("/etc/certs"), None);
    }
}
