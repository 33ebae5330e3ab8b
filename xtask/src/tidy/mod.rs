//! The rules of the code base that the compiler and clippy do not know.
//!
//! Owns collecting and printing problems; each rule lives in its module and
//! returns what it found. All problems are printed, not just the first.

mod crates;
mod docs;
mod exceptions;
mod machine;
mod rust;
mod source;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};
use cargo_metadata::MetadataCommand;

use exceptions::Exceptions;

/// One thing to put right.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Problem {
    /// Path from the root of the repository.
    file: String,
    /// Line, from 1; 0 for the file as a whole.
    line: usize,
    message: String,
}

impl Problem {
    fn new(file: &str, line: usize, message: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line, message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line.max(1), self.message)
    }
}

/// Runs every rule; fails when one finds something.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let metadata = MetadataCommand::new().exec().context("cargo metadata failed")?;
    let root = metadata.workspace_root.clone().into_std_path_buf();
    let files = tracked_files(&root)?;
    let sources = source::load(&root, &files)?;
    let mut exceptions = Exceptions::new();

    let mut problems = crates::check(&metadata)?;
    problems.extend(rust::check(&sources, &mut exceptions));
    problems.extend(crates::check_purity_of_sources(&sources));
    problems.extend(docs::check(&root, &files, &metadata)?);
    problems.extend(machine::check(&root, &files)?);
    problems.extend(exceptions.unused());
    problems.sort();

    for problem in &problems {
        eprintln!("{problem}");
    }
    if problems.is_empty() {
        println!("tidy: {} Rust files, no problems", sources.len());
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("tidy: {} problems", problems.len());
    Ok(ExitCode::FAILURE)
}

/// Files git knows or would add, relative to the root, that still exist.
fn tracked_files(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("git cannot be run")?;
    ensure!(output.status.success(), "git ls-files failed in {}", root.display());
    let mut files: Vec<PathBuf> = String::from_utf8(output.stdout)?
        .split('\0')
        .filter(|name| !name.is_empty())
        .map(PathBuf::from)
        .filter(|path| root.join(path).is_file())
        .collect();
    files.sort();
    files.dedup();
    Ok(files)
}
