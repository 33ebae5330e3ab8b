//! Rules of Rust sources: sizes, headers, stubs and where `unsafe` may be.

use std::collections::BTreeMap;

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use super::Problem;
use super::exceptions::{Exceptions, Rule};
use super::source::{Source, is_cfg_test};

const MAX_FILE_LINES: usize = 600;
const MAX_FUNCTION_LINES: usize = 70;
const MAX_CRATE_LINES: usize = 15_000;

/// The one crate that talks to the kernel.
const UNSAFE_CRATE: &str = "amime-net";

/// Checks every source.
pub(crate) fn check(sources: &[Source], exceptions: &mut Exceptions) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut crate_lines = BTreeMap::<&str, usize>::new();
    for source in sources {
        check_header(source, &mut problems);
        check_tokens(source, &mut problems);
        if source.is_test {
            continue;
        }
        let lines = source.code_lines();
        *crate_lines.entry(&source.krate).or_default() += lines;
        if lines > MAX_FILE_LINES && !exceptions.lifts(Rule::FileLines, &source.path, "") {
            let message = format!("{lines} lines without tests; at most {MAX_FILE_LINES}");
            problems.push(Problem::new(&source.path, 0, message));
        }
        check_functions(source, exceptions, &mut problems);
    }
    for (krate, lines) in crate_lines.into_iter().filter(|(_, lines)| *lines > MAX_CRATE_LINES) {
        let message = format!("{krate} has {lines} lines without tests; at most {MAX_CRATE_LINES}");
        problems.push(Problem::new(&format!("crates/{krate}/Cargo.toml"), 0, message));
    }
    problems
}

fn check_header(source: &Source, problems: &mut Vec<Problem>) {
    let first = source.text.lines().next().unwrap_or_default();
    if !first.starts_with("//! ") {
        let message = "no `//!` header on the first line: what does the module own?";
        problems.push(Problem::new(&source.path, 1, message));
    } else if first.starts_with("//! Placeholder") {
        problems.push(Problem::new(&source.path, 1, "a placeholder was left"));
    }
}

fn check_tokens(source: &Source, problems: &mut Vec<Problem>) {
    if let Err((line, message)) = &source.syntax {
        return problems.push(Problem::new(&source.path, *line, message));
    }
    let Ok(tokens) = source.text.parse::<TokenStream>() else { return };
    walk(tokens, source, problems);
}

/// Tokens, not the syntax tree, so that the inside of macros is seen too.
fn walk(tokens: TokenStream, source: &Source, problems: &mut Vec<Problem>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    for (index, token) in tokens.iter().enumerate() {
        match token {
            TokenTree::Ident(ident) => {
                let bang = matches!(tokens.get(index + 1), Some(TokenTree::Punct(p)) if p.as_char() == '!');
                if let Some(message) = bad_word(&ident.to_string(), bang, source) {
                    problems.push(Problem::new(&source.path, ident.span().start().line, message));
                }
            }
            TokenTree::Group(group) => {
                let attribute = group.delimiter() == Delimiter::Bracket
                    && matches!(index.checked_sub(1).map(|i| &tokens[i]),
                        Some(TokenTree::Punct(p)) if matches!(p.as_char(), '#' | '!'));
                if attribute && let Some(message) = bad_attribute(&group.stream(), source) {
                    let line = group.span().start().line;
                    problems.push(Problem::new(&source.path, line, message));
                }
                walk(group.stream(), source, problems);
            }
            _ => {}
        }
    }
}

fn bad_word(word: &str, bang: bool, source: &Source) -> Option<String> {
    match word {
        "todo" | "unimplemented" if bang => Some(format!("a stub was left: {word}!")),
        "unsafe" if source.krate != UNSAFE_CRATE => Some(format!("unsafe outside {UNSAFE_CRATE}")),
        _ => None,
    }
}

fn bad_attribute(tokens: &TokenStream, source: &Source) -> Option<String> {
    let text: String = tokens.to_string().split_whitespace().collect();
    if text == "ignore" || text.starts_with("ignore=") {
        return Some("an ignored test shows nothing".to_owned());
    }
    let lifts = text.starts_with("allow(") || text.starts_with("expect(");
    if lifts && text.contains("unsafe_code") && source.krate != UNSAFE_CRATE {
        return Some(format!("unsafe allowed outside {UNSAFE_CRATE}"));
    }
    (lifts && text.contains("dead_code")).then(|| "dead code: delete it".to_owned())
}

fn check_functions(source: &Source, exceptions: &mut Exceptions, problems: &mut Vec<Problem>) {
    let Ok(file) = &source.syntax else { return };
    let mut functions = Functions::default();
    functions.visit_file(file);
    for (name, line, lines) in functions.found {
        if lines > MAX_FUNCTION_LINES && !exceptions.lifts(Rule::FunctionLines, &source.path, &name)
        {
            let message = format!("fn {name} has {lines} lines; at most {MAX_FUNCTION_LINES}");
            problems.push(Problem::new(&source.path, line, message));
        }
    }
}

/// Functions outside tests: name, first line, number of lines.
#[derive(Default)]
struct Functions {
    found: Vec<(String, usize, usize)>,
}

impl Functions {
    fn add(&mut self, signature: &syn::Signature, body: &syn::Block) {
        let first = signature.span().start().line;
        let last = body.span().end().line;
        self.found.push((signature.ident.to_string(), first, last - first + 1));
    }
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_cfg_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !is_cfg_test(&item.attrs) {
            self.add(&item.sig, &item.block);
            visit::visit_item_fn(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.add(&item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(body) = &item.default {
            self.add(&item.sig, body);
        }
        visit::visit_trait_item_fn(self, item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_text(path: &str, text: &str, want: &[&str]) {
        let sources = [Source::parse(path, text.to_owned())];
        let problems: Vec<String> =
            check(&sources, &mut Exceptions::new()).iter().map(ToString::to_string).collect();
        assert_eq!(problems.len(), want.len(), "{problems:?}");
        for (problem, want) in problems.iter().zip(want) {
            assert!(problem.contains(want), "{want:?} is not in {problem:?}");
        }
    }

    #[test]
    fn a_clean_file_passes() {
        check_text("crates/amime-core/src/a.rs", "//! Owns a.\nfn a() {}\n", &[]);
    }

    #[test]
    fn stubs_are_found_inside_macros_and_tests() {
        let text = "//! Owns a.\nfn a() { vec![todo!()]; }\n#[test]\n#[ignore]\nfn b() {}\n";
        check_text("crates/amime-core/src/a.rs", text, &["a.rs:2: a stub", "a.rs:4: an ignored"]);
    }

    #[test]
    fn words_in_strings_and_comments_are_not_code() {
        let text = "//! Owns a.\n// todo!() in unsafe\nconst A: &str = \"unsafe todo!()\";\n";
        check_text("crates/amime-core/src/a.rs", text, &[]);
    }

    #[test]
    fn unsafe_lives_in_one_crate() {
        let text = "//! Owns a.\nfn a() { unsafe { b() } }\n";
        check_text("crates/amime-proxy/src/a.rs", text, &["a.rs:2: unsafe outside"]);
        check_text("crates/amime-net/src/a.rs", text, &[]);
    }

    #[test]
    fn long_functions_are_named_with_their_line() {
        let body = "    b();\n".repeat(70);
        let text = format!("//! Owns a.\n\nimpl A {{\n    fn long() {{\n{body}    }}\n}}\n");
        check_text("crates/amime-core/src/a.rs", &text, &["a.rs:4: fn long has 72 lines"]);
    }

    #[test]
    fn a_missing_header_is_a_problem() {
        check_text("crates/amime-core/src/a.rs", "fn a() {}\n", &["a.rs:1: no `//!` header"]);
    }
}
