//! Derives two things from the descriptors that `envoy-types` ships:
//!
//! - a table of the places where messages hold maps, with which the encoder
//!   orders map entries (`canonical.rs`);
//! - with the feature `json`, a descriptor set without comments and without
//!   packages that we never read, for proto3-JSON (`descriptors.bin`).

mod locate;
mod own;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::{env, fs};

use prost::Message;
use prost_types::{FileDescriptorProto, FileDescriptorSet};

/// Packages that only annotate other files.
const ANNOTATIONS: [&str; 5] =
    ["validate", "udpa.annotations", "xds.annotations.v3", "envoy.annotations", "google.api"];

/// Packages that no configuration names; what needs them brings them back.
const UNUSED: [&str; 6] = [
    "envoy.data.",
    "envoy.service.",
    "envoy.watchdog.",
    "opentelemetry.",
    "io.prometheus.",
    "ratelimit.",
];

/// Exceptions to [`UNUSED`].
const USED: [&str; 3] =
    ["envoy.service.discovery.v3", "envoy.service.status.v3", "envoy.service.runtime.v3"];

fn main() {
    let source = locate::types_bin();
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed={}", source.display());
    let bytes = fs::read(&source).unwrap_or_else(|e| panic!("cannot read {source:?}: {e}"));
    let set = FileDescriptorSet::decode(bytes.as_slice())
        .unwrap_or_else(|e| panic!("{source:?} is not a descriptor set: {e}"));
    let mut set = strip(set);
    own::add_newer_fields(&mut set.file);
    set.file.extend(own::files());
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    write(out.join("canonical.rs"), table::generate(&set).as_bytes());
    if env::var_os("CARGO_FEATURE_JSON").is_some() {
        write(out.join("descriptors.bin"), &set.encode_to_vec());
    }
}

fn write(path: PathBuf, contents: &[u8]) {
    fs::write(&path, contents).unwrap_or_else(|e| panic!("cannot write {path:?}: {e}"));
}

fn is_annotation(file: &FileDescriptorProto) -> bool {
    ANNOTATIONS.iter().any(|p| file.package() == *p)
}

fn is_root(file: &FileDescriptorProto) -> bool {
    let package = file.package();
    USED.contains(&package) || !UNUSED.iter().any(|p| package.starts_with(p))
}

/// Keeps the files that configuration can name and what they import.
fn strip(set: FileDescriptorSet) -> FileDescriptorSet {
    let annotations: BTreeSet<_> =
        set.file.iter().filter(|f| is_annotation(f)).map(|f| f.name().to_owned()).collect();
    let by_name: BTreeMap<_, _> = set.file.iter().map(|f| (f.name(), f)).collect();
    let roots = set.file.iter().filter(|f| is_root(f) && !is_annotation(f));
    let mut queue: Vec<_> = roots.map(|f| f.name()).collect();
    let mut kept = BTreeSet::new();
    while let Some(name) = queue.pop() {
        if annotations.contains(name) || !kept.insert(name) {
            continue;
        }
        if let Some(file) = by_name.get(name) {
            queue.extend(file.dependency.iter().map(String::as_str));
        }
    }
    // The order of the set has imports before importers; it is kept.
    let files = set.file.iter().filter(|f| kept.contains(f.name()));
    FileDescriptorSet { file: files.map(|f| without_comments(f, &annotations)).collect() }
}

fn without_comments(
    file: &FileDescriptorProto,
    annotations: &BTreeSet<String>,
) -> FileDescriptorProto {
    let mut file = file.clone();
    file.source_code_info = None;
    file.options = None;
    file.service.clear();
    file.extension.clear();
    file.public_dependency.clear();
    file.weak_dependency.clear();
    file.dependency.retain(|name| !annotations.contains(name));
    file
}
