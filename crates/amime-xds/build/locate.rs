//! Finds the descriptor set inside the sources of `envoy-types`.
//!
//! The crate does not export the path. Registry sources lie in a known place,
//! which needs no subprocess and no network; for vendored sources and path
//! overrides cargo is asked.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const CRATE: &str = "envoy-types";
const FILE: &str = "src/generated/types.bin";

/// Path of `types.bin`.
pub(crate) fn types_bin() -> PathBuf {
    let manifest_dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    in_registry(&manifest_dir).or_else(|| by_metadata(&manifest_dir)).unwrap_or_else(|| {
        panic!("{FILE} of the crate {CRATE} not found; run `cargo fetch` and build again")
    })
}

fn in_registry(manifest_dir: &Path) -> Option<PathBuf> {
    let lock = manifest_dir.ancestors().map(|d| d.join("Cargo.lock")).find(|p| p.is_file())?;
    println!("cargo::rerun-if-changed={}", lock.display());
    let version = locked_version(&fs::read_to_string(lock).ok()?)?;
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| {
        let home = env::var_os("HOME").or_else(|| env::var_os("USERPROFILE"))?;
        Some(PathBuf::from(home).join(".cargo"))
    })?;
    let registries = fs::read_dir(cargo_home.join("registry/src")).ok()?;
    registries
        .filter_map(Result::ok)
        .map(|dir| dir.path().join(format!("{CRATE}-{version}")).join(FILE))
        .find(|path| path.is_file())
}

/// Version of a registry dependency; `None` for any other source.
fn locked_version(lock: &str) -> Option<String> {
    let entry = lock.split("[[package]]").find(|e| e.contains(&format!("name = \"{CRATE}\"\n")))?;
    if !entry.contains("source = \"registry+") {
        return None;
    }
    let line = entry.lines().find_map(|l| l.strip_prefix("version = \""))?;
    Some(line.trim_end_matches('"').to_owned())
}

fn by_metadata(manifest_dir: &Path) -> Option<PathBuf> {
    let output = Command::new(env::var_os("CARGO")?)
        .args(["metadata", "--offline", "--format-version=1", "--filter-platform"])
        .arg(env::var_os("HOST")?)
        .arg("--manifest-path")
        .arg(manifest_dir.join("Cargo.toml"))
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    // One path is all we need of the document; a JSON parser would be one more
    // crate to build before this one.
    text.split('"')
        .filter(|s| s.ends_with("Cargo.toml") && s.contains(CRATE))
        .map(|s| Path::new(s).with_file_name("").join(FILE))
        .find(|path| path.is_file())
}
