//! Rust sources, parsed, with the lines that belong to tests marked.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use anyhow::Context;
use syn::spanned::Spanned;
use syn::{Attribute, File, Item};

/// One Rust file.
pub(crate) struct Source {
    /// Path from the root of the repository.
    pub(crate) path: String,
    /// Package it belongs to, taken from its folder.
    pub(crate) krate: String,
    pub(crate) text: String,
    /// The syntax tree, or where and why there is none.
    pub(crate) syntax: Result<File, (usize, String)>,
    /// Whether the file as a whole is test code.
    pub(crate) is_test: bool,
    test_lines: Vec<RangeInclusive<usize>>,
}

impl Source {
    /// A file that is not test code as a whole.
    pub(crate) fn parse(path: &str, text: String) -> Self {
        let syntax = syn::parse_file(&text)
            .map_err(|error| (error.span().start().line, format!("does not parse: {error}")));
        let test_lines = syntax.as_ref().map(|file| test_items(&file.items)).unwrap_or_default();
        let krate = crate_of(path).to_owned();
        let is_test = path.split('/').any(|part| matches!(part, "tests" | "benches" | "tests.rs"));
        Self { path: path.to_owned(), krate, text, syntax, is_test, test_lines }
    }

    /// Whether a line, from 1, lies in a `#[cfg(test)]` item.
    pub(crate) fn in_test(&self, line: usize) -> bool {
        self.is_test || self.test_lines.iter().any(|range| range.contains(&line))
    }

    /// Lines outside tests.
    pub(crate) fn code_lines(&self) -> usize {
        (1..=self.text.lines().count()).filter(|line| !self.in_test(*line)).count()
    }

    /// Files of the modules that this file declares for tests only.
    fn test_modules(&self) -> Vec<String> {
        let Ok(file) = &self.syntax else { return Vec::new() };
        let own = self.path.strip_suffix(".rs").unwrap_or(&self.path);
        let (folder, stem) = own.rsplit_once('/').unwrap_or(("", own));
        let base = if matches!(stem, "mod" | "lib" | "main") { folder } else { own };
        file.items
            .iter()
            .filter_map(|item| match item {
                Item::Mod(module) if module.content.is_none() && is_cfg_test(&module.attrs) => {
                    Some(format!("{base}/{}", module.ident))
                }
                _ => None,
            })
            .collect()
    }
}

/// Reads and parses every Rust file of the list.
pub(crate) fn load(root: &Path, files: &[PathBuf]) -> anyhow::Result<Vec<Source>> {
    let mut sources = Vec::new();
    for path in files.iter().filter(|path| path.extension().is_some_and(|e| e == "rs")) {
        let name = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
        let text = std::fs::read_to_string(root.join(path)).with_context(|| name.to_owned())?;
        sources.push(Source::parse(name, text));
    }
    let test_modules: BTreeSet<String> = sources.iter().flat_map(Source::test_modules).collect();
    for source in &mut sources {
        let stem = source.path.trim_end_matches(".rs");
        source.is_test |= test_modules
            .iter()
            .any(|module| stem == module || stem.starts_with(&format!("{module}/")));
    }
    Ok(sources)
}

/// Whether an item is compiled for tests only.
pub(crate) fn is_cfg_test(attrs: &[Attribute]) -> bool {
    attrs.iter().any(|attr| {
        attr.path().is_ident("cfg")
            && attr.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
    })
}

fn test_items(items: &[Item]) -> Vec<RangeInclusive<usize>> {
    let mut lines = Vec::new();
    for item in items {
        let attrs = match item {
            Item::Mod(item) => &item.attrs,
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            _ => continue,
        };
        if is_cfg_test(attrs) {
            let span = item.span();
            lines.push(span.start().line..=span.end().line);
        } else if let Item::Mod(module) = item {
            lines.extend(module.content.as_ref().map_or_else(Vec::new, |(_, i)| test_items(i)));
        }
    }
    lines
}

fn crate_of(path: &str) -> &str {
    let mut parts = path.split('/');
    match (parts.next(), parts.next()) {
        (Some("crates" | "samples"), Some(name)) => name,
        (Some("bench"), _) => "amime-bench",
        (Some("conformance"), _) => "amime-conformance",
        (Some(first), _) => first,
        (None, _) => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_test_modules_do_not_count() {
        let text = "//! Head.\nfn a() {}\n\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\n";
        let source = Source::parse("crates/amime-core/src/lib.rs", text.to_owned());
        assert_eq!((source.code_lines(), source.krate.as_str()), (3, "amime-core"));
        assert!(source.in_test(6) && !source.in_test(2));
    }

    #[test]
    fn a_module_declared_for_tests_is_a_test_file() {
        let text = "//! Head.\n#[cfg(test)]\nmod fixtures;\n".to_owned();
        let inner = Source::parse("crates/a/src/route.rs", text.clone());
        assert_eq!(inner.test_modules(), ["crates/a/src/route/fixtures"]);
        let root = Source::parse("crates/a/src/lib.rs", text);
        assert_eq!(root.test_modules(), ["crates/a/src/fixtures"]);
    }
}
