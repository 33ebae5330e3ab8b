//! Manifests named on the command line: files, folders, standard input.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

/// Longest file read, in bytes.
const MAX_BYTES: u64 = 16 << 20;
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];

/// One manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    /// Name for messages.
    pub(crate) name: String,
    pub(crate) text: String,
}

/// Reads what was named, in that order; a folder's files by name. All faults
/// are collected.
pub(crate) fn read(paths: &[PathBuf]) -> anyhow::Result<Vec<Manifest>> {
    let mut manifests = Vec::new();
    let mut faults = Vec::new();
    for path in paths {
        match read_one(path) {
            Ok(found) => manifests.extend(found),
            Err(fault) => faults.push(format!("{fault:#}")),
        }
    }
    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }
    Ok(manifests)
}

fn read_one(path: &Path) -> anyhow::Result<Vec<Manifest>> {
    if path.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin()
            .take(MAX_BYTES)
            .read_to_string(&mut text)
            .context("standard input cannot be read")?;
        return Ok(vec![Manifest { name: "stdin".to_owned(), text }]);
    }
    if path.is_dir() {
        return read_folder(path);
    }
    Ok(vec![read_file(path)?])
}

fn read_folder(folder: &Path) -> anyhow::Result<Vec<Manifest>> {
    let entries =
        folder.read_dir().with_context(|| format!("{} cannot be read", folder.display()))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().and_then(|e| e.to_str()).is_some_and(is_manifest))
        .collect();
    files.sort();
    ensure!(!files.is_empty(), "{} has no .yaml, .yml or .json file", folder.display());
    files.iter().map(|file| read_file(file)).collect()
}

fn is_manifest(ending: &str) -> bool {
    ENDINGS.contains(&ending)
}

fn read_file(path: &Path) -> anyhow::Result<Manifest> {
    let name = path.display().to_string();
    let length = path.metadata().with_context(|| format!("{name} cannot be read"))?.len();
    ensure!(length <= MAX_BYTES, "{name} is larger than {} MiB", MAX_BYTES >> 20);
    let bytes = std::fs::read(path).with_context(|| format!("{name} cannot be read"))?;
    let text = String::from_utf8(bytes).with_context(|| format!("{name} is not text"))?;
    Ok(Manifest { name, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_gives_its_manifests_by_name() {
        let dir = tempfile::tempdir().expect("temporary folder");
        for name in ["b.yaml", "a.json", "c.txt"] {
            std::fs::write(dir.path().join(name), name).expect("file is written");
        }
        let texts: Vec<String> = read(&[dir.path().to_owned()])
            .expect("folder is read")
            .into_iter()
            .map(|manifest| manifest.text)
            .collect();
        assert_eq!(texts, ["a.json", "b.yaml"]);
    }

    #[test]
    fn every_fault_is_told() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let binary = dir.path().join("x.yaml");
        std::fs::write(&binary, [0xff, 0xfe]).expect("file is written");
        let missing = dir.path().join("missing.yaml");
        let error = read(&[missing, binary]).expect_err("both are faulty").to_string();
        assert!(error.contains("missing.yaml cannot be read"), "{error}");
        assert!(error.contains("x.yaml is not text"), "{error}");
    }

    #[test]
    fn an_empty_folder_is_a_fault() {
        let dir = tempfile::tempdir().expect("temporary folder");
        assert!(read(&[dir.path().to_owned()]).is_err());
    }
}
