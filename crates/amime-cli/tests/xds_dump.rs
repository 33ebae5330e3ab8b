//! `xds-dump` as a user runs it.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const SHOP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/bookinfo/");
const SIDECAR: &str = r#"{
    "type": "sidecar", "ips": ["10.0.0.5"], "id": "productpage-v1.default",
    "dns_domain": "default.svc.cluster.local", "config_namespace": "default",
    "labels": {"app": "productpage", "version": "v1"}, "metadata": {}
}"#;

fn dump(folder: &Path, more: &[&str]) -> Output {
    let proxy = folder.join("proxy.json");
    std::fs::write(&proxy, SIDECAR).expect("file is written");
    Command::new(env!("CARGO_BIN_EXE_amime"))
        .args(["xds-dump", "--config"])
        .arg(folder.join("config"))
        .arg("--proxy")
        .arg(proxy)
        .args(more)
        .output()
        .expect("the program starts")
}

/// A folder with the shop, a few rules and `extra`.
fn config(extra: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("temporary folder");
    let config = folder.path().join("config");
    std::fs::create_dir(&config).expect("folder is created");
    for file in
        ["bookinfo.yaml", "networking/destination-rules.yaml", "networking/reviews-80-20.yaml"]
    {
        let name = file.rsplit('/').next().expect("a name");
        std::fs::copy(format!("{SHOP}{file}"), config.join(name)).expect("file is copied");
    }
    if !extra.is_empty() {
        std::fs::write(config.join("extra.yaml"), extra).expect("file is written");
    }
    folder
}

fn names(document: &Value, list: &str) -> Vec<String> {
    let items = document[list].as_array().expect("a list");
    items.iter().map(|item| item["name"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn a_folder_becomes_the_configuration_of_a_proxy() {
    let folder = config("");
    let output = dump(folder.path(), &["--strict"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let document: Value = serde_json::from_slice(&output.stdout).expect("is JSON");
    assert!(names(&document, "listeners").contains(&"virtualOutbound".to_owned()));
    assert!(names(&document, "routes").contains(&"9080".to_owned()));
    let clusters = names(&document, "clusters");
    let v2 = "outbound|9080|v2|reviews.default.svc.cluster.local".to_owned();
    assert!(clusters.contains(&v2), "{clusters:?}");
    assert!(document["endpoints"].is_array() && document["secrets"].is_array());
}

#[test]
fn an_object_that_cannot_be_read_is_told_and_left_out() {
    let folder = config("apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {prots: []}\n");
    let lax = dump(folder.path(), &[]);
    assert!(lax.status.success());
    assert!(String::from_utf8_lossy(&lax.stderr).contains("prots"));
    let strict = dump(folder.path(), &["--strict"]);
    assert_eq!(strict.status.code(), Some(1));
}

#[test]
fn a_missing_folder_is_an_error() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let output = dump(folder.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot be read"));
}
