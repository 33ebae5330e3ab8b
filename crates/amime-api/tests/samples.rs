//! Upstream Istio samples of four releases decode unchanged.

use std::path::{Path, PathBuf};

use amime_api::decode::decode;

/// Folder of real inputs that live beside the repository.
fn shared() -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    std::env::var_os("AMIME_SHARED").map_or_else(default, PathBuf::from)
}

fn yaml_files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|error| {
        panic!("{} must hold upstream samples ({error}); set AMIME_SHARED", dir.display())
    });
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("readable folder").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    files
}

#[track_caller]
fn check(path: &Path) {
    let text = std::fs::read_to_string(path)
        .unwrap_or_else(|error| panic!("{} must be readable ({error})", path.display()));
    let decoded = decode(&path.to_string_lossy(), &text);
    let errors: Vec<String> = decoded.errors.iter().map(ToString::to_string).collect();
    assert!(errors.is_empty(), "{}", errors.join("\n"));
    assert!(!decoded.resources.is_empty(), "{} holds objects", path.display());
}

#[test]
fn bookinfo_of_every_release_decodes() {
    for release in ["current", "1.6.4", "1.1.0", "1.0.0"] {
        let bookinfo = shared().join("data/istio-samples").join(release).join("bookinfo");
        check(&bookinfo.join("platform/kube/bookinfo.yaml"));
        let files = yaml_files(&bookinfo.join("networking"));
        assert!(files.len() >= 20, "{release} has all its networking files");
        files.iter().for_each(|path| check(path));
    }
}
