//! Arrows between crates, and purity of the crates that only compute.
//!
//! The table of arrows is the design: a new arrow has to be added here, where
//! a reviewer sees it, and it has to point to a lower layer.

use std::process::Command;

use anyhow::{Context, ensure};
use cargo_metadata::{DependencyKind, Metadata, Package};

use super::Problem;
use super::source::Source;

struct Crate {
    name: &'static str,
    layer: u8,
    /// Crates of the workspace it may depend on.
    may_use: &'static [&'static str],
}

const CRATES: &[Crate] = &[
    Crate { name: "amime-core", layer: 0, may_use: &[] },
    Crate { name: "amime-net", layer: 0, may_use: &[] },
    Crate { name: "bookinfo", layer: 0, may_use: &[] },
    Crate { name: "xtask", layer: 0, may_use: &[] },
    Crate { name: "amime-http1", layer: 1, may_use: &[] },
    Crate { name: "amime-identity", layer: 1, may_use: &["amime-core"] },
    Crate { name: "amime-api", layer: 1, may_use: &["amime-core"] },
    Crate { name: "amime-model", layer: 2, may_use: &["amime-core", "amime-api"] },
    Crate { name: "amime-xds", layer: 2, may_use: &["amime-core"] },
    Crate { name: "amime-ca", layer: 2, may_use: &["amime-core", "amime-identity"] },
    Crate { name: "amime-telemetry", layer: 2, may_use: &["amime-core", "amime-identity"] },
    Crate {
        name: "amime-analysis",
        layer: 3,
        may_use: &["amime-core", "amime-api", "amime-model", "amime-xds"],
    },
    Crate {
        name: "amime-translate",
        layer: 3,
        may_use: &["amime-core", "amime-api", "amime-model", "amime-xds"],
    },
    Crate {
        name: "amime-rules",
        layer: 3,
        may_use: &["amime-core", "amime-identity", "amime-xds", "amime-telemetry"],
    },
    Crate {
        name: "amime-config",
        layer: 4,
        may_use: &[
            "amime-core",
            "amime-net",
            "amime-identity",
            "amime-xds",
            "amime-telemetry",
            "amime-rules",
        ],
    },
    Crate {
        name: "amime-upstream",
        layer: 5,
        may_use: &[
            "amime-core",
            "amime-net",
            "amime-identity",
            "amime-xds",
            "amime-telemetry",
            "amime-rules",
            "amime-config",
        ],
    },
    Crate {
        name: "amime-resources",
        layer: 6,
        may_use: &[
            "amime-core",
            "amime-net",
            "amime-xds",
            "amime-telemetry",
            "amime-rules",
            "amime-config",
            "amime-upstream",
        ],
    },
    Crate {
        name: "amime-engine",
        layer: 7,
        may_use: &[
            "amime-core",
            "amime-net",
            "amime-http1",
            "amime-identity",
            "amime-xds",
            "amime-telemetry",
            "amime-rules",
            "amime-config",
            "amime-upstream",
            "amime-resources",
        ],
    },
    Crate { name: "amime-inject", layer: 3, may_use: &["amime-core", "amime-api", "amime-model"] },
    Crate {
        name: "amime-control",
        layer: 8,
        may_use: &[
            "amime-core",
            "amime-identity",
            "amime-api",
            "amime-model",
            "amime-xds",
            "amime-ca",
            "amime-analysis",
            "amime-translate",
            "amime-inject",
        ],
    },
    // What a proxy does is decided in amime-translate: the crates of the
    // proxy read xDS and must not see the model behind it.
    Crate {
        name: "amime-proxy",
        layer: 8,
        may_use: &[
            "amime-core",
            "amime-net",
            "amime-identity",
            "amime-xds",
            "amime-telemetry",
            "amime-rules",
            "amime-config",
            "amime-engine",
        ],
    },
    Crate { name: "amime-console", layer: 7, may_use: &["amime-core", "amime-api"] },
    Crate {
        name: "amime-local",
        layer: 9,
        may_use: &[
            "amime-core",
            "amime-net",
            "amime-api",
            "amime-identity",
            "amime-ca",
            "amime-control",
        ],
    },
    Crate {
        name: "amime-cli",
        layer: 10,
        may_use: &[
            "amime-core",
            "amime-net",
            "amime-api",
            "amime-identity",
            "amime-model",
            "amime-xds",
            "amime-ca",
            "amime-analysis",
            "amime-translate",
            "amime-inject",
            "amime-control",
            "amime-proxy",
            "amime-console",
            "amime-local",
            "bookinfo",
        ],
    },
    Crate {
        name: "amime-bench",
        layer: 8,
        may_use: &["amime-core", "amime-identity", "amime-xds"],
    },
    Crate { name: "amime-conformance", layer: 9, may_use: &["amime-identity", "amime-proxy"] },
];

/// Crates that take values and return values.
const PURE: &[&str] = &["amime-model", "amime-analysis", "amime-translate", "amime-inject"];

/// What no pure crate may reach.
const IMPURE: &[&str] = &[
    "tokio",
    "kube",
    "kube-client",
    "hyper",
    "mio",
    "reqwest",
    "axum",
    "notify",
    "tracing-subscriber",
];

/// Crates that purity does not look behind: `envoy-types` holds Envoy's
/// messages and drags tonic in for service stubs that no pure crate calls.
const TYPE_CARRIERS: &[&str] = &["envoy-types"];

/// Parts of the standard library that are I/O, tasks, clock or environment.
const IMPURE_PATHS: &[&str] = &[
    "std::env",
    "std::fs",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
];

/// Checks arrows, lints and the dependency closure of the pure crates.
pub(crate) fn check(metadata: &Metadata) -> anyhow::Result<Vec<Problem>> {
    let mut problems = Vec::new();
    let packages = metadata.workspace_packages();
    for package in &packages {
        let manifest = manifest_of(metadata, package);
        check_arrows(package, &manifest, &mut problems);
        let text = std::fs::read_to_string(&package.manifest_path)?;
        if !text.contains("[lints]\nworkspace = true") {
            problems.push(Problem::new(&manifest, 0, "the workspace's lints are not switched on"));
        }
    }
    for name in PURE {
        if let Some(package) = packages.iter().find(|package| package.name.as_str() == *name) {
            let manifest = manifest_of(metadata, package);
            check_closure(name, &manifest, &mut problems)?;
        }
    }
    Ok(problems)
}

fn manifest_of(metadata: &Metadata, package: &Package) -> String {
    let path = &package.manifest_path;
    path.strip_prefix(&metadata.workspace_root).unwrap_or(path).to_string()
}

fn check_arrows(package: &Package, manifest: &str, problems: &mut Vec<Problem>) {
    let Some(from) = CRATES.iter().find(|c| c.name == package.name.as_str()) else {
        let message = format!("{} has no row in the table of crates", package.name);
        return problems.push(Problem::new(manifest, 0, message));
    };
    for dependency in &package.dependencies {
        if dependency.name.starts_with("kube")
            && !matches!(from.name, "amime-control" | "amime-cli")
        {
            let message = "only amime-control and amime-cli name the Kubernetes client";
            problems.push(Problem::new(manifest, 0, message));
        }
        let Some(to) = CRATES.iter().find(|c| c.name == dependency.name) else { continue };
        if let Some(message) = judge(from, to, dependency.kind) {
            problems.push(Problem::new(manifest, 0, message));
        }
    }
}

/// What is wrong with an arrow, if anything.
fn judge(from: &Crate, to: &Crate, kind: DependencyKind) -> Option<String> {
    let arrow = format!("{} (layer {}) → {} (layer {})", from.name, from.layer, to.name, to.layer);
    if kind == DependencyKind::Development {
        // Tests may put neighbours together, but nothing from above.
        return (to.layer > from.layer).then(|| format!("test dependency goes up: {arrow}"));
    }
    if to.layer >= from.layer {
        return Some(format!("dependency does not go down: {arrow}"));
    }
    (!from.may_use.contains(&to.name)).then(|| format!("new arrow, not in the table: {arrow}"))
}

fn check_closure(name: &str, manifest: &str, problems: &mut Vec<Problem>) -> anyhow::Result<()> {
    // `cargo tree -p` resolves features for this package alone; `cargo
    // metadata` would mix in what other members switch on.
    let output = Command::new(env!("CARGO"))
        .args(["tree", "-p", name, "-e", "normal", "--no-dedupe", "--prefix", "depth"])
        .args(["--format", " {p}"])
        .output()
        .context("cargo tree cannot be run")?;
    let tree = String::from_utf8(output.stdout)?;
    ensure!(output.status.success(), "cargo tree -p {name} failed");
    for reached in impure(&tree) {
        let message = format!("a pure crate reaches {reached}");
        problems.push(Problem::new(manifest, 0, message));
    }
    Ok(())
}

/// Impure packages of a printed tree (`DEPTH NAME vVERSION`), carriers cut off.
fn impure(tree: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut cut_below = usize::MAX;
    for line in tree.lines() {
        let mut words = line.split_whitespace();
        let (Some(depth), Some(name)) = (words.next(), words.next()) else { continue };
        let Ok(depth) = depth.parse::<usize>() else { continue };
        if depth > cut_below {
            continue;
        }
        cut_below = if TYPE_CARRIERS.contains(&name) { depth } else { usize::MAX };
        if IMPURE.contains(&name) && !found.iter().any(|f| f == name) {
            found.push(name.to_owned());
        }
    }
    found
}

/// Checks that pure crates name no I/O, task, clock or environment of `std`.
pub(crate) fn check_purity_of_sources(sources: &[Source]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for source in sources.iter().filter(|s| !s.is_test && PURE.contains(&s.krate.as_str())) {
        for (index, line) in source.text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let line_number = index + 1;
            if source.in_test(line_number) {
                continue;
            }
            if let Some(path) = IMPURE_PATHS.iter().find(|path| code.contains(**path)) {
                let message = format!("a pure crate names {path}");
                problems.push(Problem::new(&source.path, line_number, message));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(from: &str, to: &str, kind: DependencyKind) -> Option<String> {
        let find = |name: &str| CRATES.iter().find(|c| c.name == name).expect("in the table");
        judge(find(from), find(to), kind)
    }

    #[test]
    fn the_table_itself_points_down() {
        for from in CRATES {
            for to in from.may_use {
                assert_eq!(judged(from.name, to, DependencyKind::Normal), None);
            }
        }
    }

    #[test]
    fn arrows_up_and_arrows_not_listed_are_refused() {
        let normal = DependencyKind::Normal;
        assert!(judged("amime-model", "amime-control", normal).is_some());
        for part in [
            "amime-proxy",
            "amime-engine",
            "amime-resources",
            "amime-upstream",
            "amime-config",
            "amime-rules",
            "amime-telemetry",
        ] {
            assert!(judged(part, "amime-model", normal).is_some());
            assert!(judged(part, "amime-api", normal).is_some());
        }
        assert!(judged("amime-control", "amime-proxy", normal).is_some());
        assert_eq!(judged("amime-control", "amime-proxy", DependencyKind::Development), None);
    }

    #[test]
    fn control_plane_and_proxy_share_protocol_identity_and_core_only() {
        fn reach(from: &'static str) -> Vec<&'static str> {
            let row = CRATES.iter().find(|c| c.name == from).expect("in the table");
            let mut reached = vec![from];
            reached.extend(row.may_use.iter().flat_map(|to| reach(to)));
            reached
        }
        let control = reach("amime-control");
        let mut shared = reach("amime-proxy");
        assert!(shared.contains(&"amime-engine") && shared.contains(&"amime-telemetry"));
        shared.retain(|name| control.contains(name));
        shared.sort_unstable();
        shared.dedup();
        assert_eq!(shared, ["amime-core", "amime-identity", "amime-xds"]);
    }

    #[test]
    fn a_carrier_hides_what_is_behind_it_only() {
        let tree = "0 amime-translate v0.1.0\n1 envoy-types v0.7.7\n2 tonic v0.14.9\n3 tokio v1\n\
                    1 serde v1\n1 notify v8\n2 mio v1\n";
        assert_eq!(impure(tree), ["notify", "mio"]);
    }
}
