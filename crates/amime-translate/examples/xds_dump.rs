//! Prints what a proxy would be told: `xds_dump --config DIR --proxy PROXY.json`.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use amime_translate::offline::{NamedText, translate};
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn Error>> {
    let (config, proxy) = arguments()?;
    let mut files = Vec::new();
    let mut mesh = None;
    for path in yaml_files(&config)? {
        let text = fs::read_to_string(&path)?;
        if path.file_name().is_some_and(|name| name == "mesh.yaml") {
            mesh = Some((path, text));
        } else {
            files.push((path.display().to_string(), text));
        }
    }
    let texts: Vec<NamedText<'_>> =
        files.iter().map(|(name, text)| NamedText { name, text }).collect();
    let mesh = mesh.as_ref().map(|(_, text)| NamedText { name: "mesh.yaml", text });
    let translated = translate(&texts, mesh, &fs::read_to_string(proxy)?)?;
    for error in &translated.skipped {
        eprintln!("skipped: {error}");
    }
    let dump = translated.dump;
    let all = json!({
        "listeners": printed(&dump.listeners)?,
        "routes": printed(&dump.routes)?,
        "clusters": printed(&dump.clusters)?,
        "endpoints": printed(&dump.endpoints)?,
        "secrets": printed(&dump.secrets)?,
        "extensions": printed(&dump.extensions)?,
    });
    println!("{all}");
    Ok(())
}

fn arguments() -> Result<(PathBuf, PathBuf), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let after = |flag: &str| {
        let at = arguments.iter().position(|argument| argument == flag)?;
        arguments.get(at + 1).map(PathBuf::from)
    };
    after("--config").zip(after("--proxy")).ok_or_else(|| "need --config DIR --proxy FILE".into())
}

fn yaml_files(dir: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let paths = fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.path()));
    let mut paths = paths.collect::<Result<Vec<_>, _>>()?;
    paths.retain(|path| path.extension().is_some_and(|ext| ext == "yaml"));
    paths.sort();
    Ok(paths)
}

fn printed<M: prost::Message + prost::Name>(messages: &[M]) -> Result<Vec<Value>, Box<dyn Error>> {
    messages.iter().map(|message| Ok(amime_xds::json::to_json(message)?)).collect()
}
