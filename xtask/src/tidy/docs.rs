//! Paths and commands named in Markdown exist.
//!
//! Looked at: relative links, words in code that begin with a folder of the
//! repository or end like one of its files, and commands of cargo, just and
//! amime. What the words mean beyond that is the reader's to judge.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use cargo_metadata::Metadata;

use super::Problem;

/// Endings that make a word in code a file of this repository.
const FILE_ENDINGS: [&str; 3] = [".rs", ".toml", ".md"];
/// Where the CLI's tests keep its list of commands.
const CLI_HELP: &str = "crates/amime-cli/tests/golden/help.txt";
const XTASKS: [&str; 1] = ["tidy"];

/// What may be named.
struct Known {
    root: PathBuf,
    top: BTreeSet<String>,
    packages: BTreeSet<String>,
    recipes: BTreeSet<String>,
    /// Empty as long as the list of commands is missing.
    cli: BTreeSet<String>,
}

/// Checks every Markdown file of the list.
pub(crate) fn check(
    root: &Path,
    files: &[PathBuf],
    metadata: &Metadata,
) -> anyhow::Result<Vec<Problem>> {
    let known = Known::new(root, files, metadata);
    let mut problems = Vec::new();
    for path in files.iter().filter(|path| path.extension().is_some_and(|e| e == "md")) {
        let text = std::fs::read_to_string(root.join(path))?;
        known.check_file(path, &text, &mut problems);
    }
    Ok(problems)
}

impl Known {
    fn new(root: &Path, files: &[PathBuf], metadata: &Metadata) -> Self {
        let read = |name: &str| std::fs::read_to_string(root.join(name)).unwrap_or_default();
        Self {
            root: root.to_owned(),
            top: files
                .iter()
                .filter(|path| path.components().count() > 1)
                .filter_map(|path| path.iter().next()?.to_str().map(str::to_owned))
                .collect(),
            packages: metadata.workspace_packages().iter().map(|p| p.name.to_string()).collect(),
            recipes: recipes(&read("justfile")),
            cli: subcommands(&read(CLI_HELP)),
        }
    }

    fn check_file(&self, path: &Path, text: &str, problems: &mut Vec<Problem>) {
        let name = path.to_string_lossy();
        let mut fenced = false;
        for (index, line) in text.lines().enumerate() {
            if line.trim_start().starts_with("```") {
                fenced = !fenced;
                continue;
            }
            let mut found = Vec::new();
            if fenced {
                self.check_code(path, line, &mut found);
            } else {
                line.split('`').skip(1).step_by(2).for_each(|code| {
                    self.check_code(path, code, &mut found);
                });
                self.check_links(path, line, &mut found);
            }
            problems.extend(found.into_iter().map(|m| Problem::new(&name, index + 1, m)));
        }
    }

    fn check_links(&self, path: &Path, line: &str, found: &mut Vec<String>) {
        for target in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = target.split('#').next().unwrap_or_default();
            if !target.is_empty() && !target.contains(':') && !self.exists(path, target) {
                found.push(format!("link to {target}, which does not exist"));
            }
        }
    }

    fn check_code(&self, path: &Path, code: &str, found: &mut Vec<String>) {
        let code = code.split(" #").next().unwrap_or_default();
        let words: Vec<&str> = code.split_whitespace().filter(|word| *word != "$").collect();
        let is_command = words.len() > 1;
        for word in &words {
            if self.is_path(word, is_command) && !self.exists(path, word) {
                found.push(format!("{word} does not exist"));
            }
        }
        if let Some(message) = self.bad_command(&words) {
            found.push(message);
        }
    }

    /// Whether a word claims to be a path of the repository.
    fn is_path(&self, word: &str, in_command: bool) -> bool {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_.-/".contains(c);
        if !word.chars().all(plain) || word.starts_with(['/', '-']) || word.starts_with("..") {
            return false;
        }
        let (first, rest) = word.split_once('/').unwrap_or((word, ""));
        if !rest.is_empty() && self.top.contains(first) {
            return true;
        }
        !in_command && FILE_ENDINGS.iter().any(|e| word.len() > e.len() && word.ends_with(e))
    }

    /// Relative to the root, or to the document.
    fn exists(&self, document: &Path, word: &str) -> bool {
        let beside = document.parent().unwrap_or(Path::new("")).join(word);
        self.root.join(word).exists() || self.root.join(beside).exists()
    }

    fn bad_command(&self, words: &[&str]) -> Option<String> {
        let (program, rest) = words.split_first()?;
        let missing = |kind: &str, name: &str| Some(format!("no {kind} called {name}"));
        match *program {
            "cargo" => match rest {
                ["xtask", task, ..] if !XTASKS.contains(task) => missing("xtask", task),
                ["run", ..] if rest.contains(&"--") && !rest.contains(&"-p") => {
                    let end = rest.iter().position(|word| *word == "--")?;
                    self.bad_cli(&rest[end + 1..])
                }
                _ => {
                    let at = rest.iter().position(|word| *word == "-p")?;
                    let package = rest.get(at + 1)?;
                    (!self.packages.contains(*package))
                        .then(|| missing("package", package))
                        .flatten()
                }
            },
            "just" => {
                let recipe = rest.first()?;
                (!self.recipes.contains(*recipe)).then(|| missing("recipe", recipe)).flatten()
            }
            "amime" | "target/release/amime" => self.bad_cli(rest),
            _ => None,
        }
    }

    fn bad_cli(&self, words: &[&str]) -> Option<String> {
        let command = words.iter().find(|word| !word.starts_with('-'))?;
        let is_name = command.chars().all(|c| c.is_ascii_lowercase() || c == '-');
        (!self.cli.is_empty() && is_name && !self.cli.contains(*command))
            .then(|| format!("no amime command called {command}"))
    }
}

/// Names of the recipes of a justfile.
fn recipes(justfile: &str) -> BTreeSet<String> {
    justfile
        .lines()
        .filter(|line| !line.starts_with([' ', '\t', '#', '@']))
        .filter(|line| !line.contains(":="))
        .filter_map(|line| line.split_once(':')?.0.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

/// Names listed under `Commands:` in a help text.
fn subcommands(help: &str) -> BTreeSet<String> {
    help.lines()
        .skip_while(|line| !line.starts_with("Commands:"))
        .skip(1)
        .take_while(|line| line.starts_with(' '))
        .filter(|line| !line.starts_with("      "))
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_text(text: &str, want: &[&str]) {
        let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
        let known = Known {
            root: PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/..")),
            top: set(&["xtask", "crates"]),
            packages: set(&["xtask"]),
            recipes: set(&["ci"]),
            cli: set(&["up", "get"]),
        };
        let mut problems = Vec::new();
        known.check_file(Path::new("README.md"), text, &mut problems);
        let got: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(got, want);
    }

    #[test]
    fn paths_in_code_exist() {
        check_text(
            "`xtask/src/main.rs` `xtask/no.rs` `crates/` `/productpage` `a/b` `no.md`",
            &["README.md:1: xtask/no.rs does not exist", "README.md:1: no.md does not exist"],
        );
    }

    #[test]
    fn links_exist() {
        check_text(
            "[a](xtask/Cargo.toml#x) [b](missing.md) [c](https://x.y/z) [d](#here)",
            &["README.md:1: link to missing.md, which does not exist"],
        );
    }

    #[test]
    fn commands_exist() {
        check_text(
            "```\ncargo xtask tidy\ncargo xtask fly\njust fly\namime up # go\namime fly\n\
             cargo run --release -- up\ncargo run -p nothing\n```\n",
            &[
                "README.md:3: no xtask called fly",
                "README.md:4: no recipe called fly",
                "README.md:6: no amime command called fly",
                "README.md:8: no package called nothing",
            ],
        );
    }

    #[test]
    fn recipes_and_commands_are_read_from_their_files() {
        let just = "set shell := ['sh']\n# note\nci: lint test\n    cargo test\nbench *ARGS:\n";
        assert_eq!(recipes(just).into_iter().collect::<Vec<_>>(), ["bench", "ci"]);
        let help = "Usage\n\nCommands:\n  up    Start\n  proxy-status  Show\n          more\n\nOptions:\n  -h\n";
        assert_eq!(subcommands(help).into_iter().collect::<Vec<_>>(), ["proxy-status", "up"]);
    }
}
