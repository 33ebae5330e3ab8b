//! How documents are printed: JSON and YAML, and what a terminal adds.

use std::fmt::{Display, Write as _};
use std::io::{ErrorKind, Write as _};

use anstyle::{AnsiColor, Style};
use anyhow::Context;
use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{PrettyFormatter, Serializer};

/// Machine-readable formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Document {
    Json,
    Yaml,
}

impl Document {
    /// Text of a value, ending in a newline.
    pub(crate) fn render(self, value: &Value) -> anyhow::Result<String> {
        match self {
            Self::Json => json(value),
            Self::Yaml => yaml(value),
        }
    }
}

/// JSON with four spaces of indent.
pub(crate) fn json(value: &Value) -> anyhow::Result<String> {
    let mut out = Vec::new();
    let formatter = PrettyFormatter::with_indent(b"    ");
    value.serialize(&mut Serializer::with_formatter(&mut out, formatter))?;
    let mut text = String::from_utf8(out).context("JSON is UTF-8")?;
    text.push('\n');
    Ok(text)
}

/// YAML, one document.
pub(crate) fn yaml(value: &Value) -> anyhow::Result<String> {
    let mut text = serde_saphyr::to_string(value).context("value cannot be written as YAML")?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// Prints text as it is. A reader that has gone, as in `amime get pods | head
/// -1`, ends the program quietly.
pub(crate) fn print(text: impl Display) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        written => written.context("standard output cannot be written"),
    }
}

/// Prints a line; see [`print`].
pub(crate) fn line(text: impl Display) -> anyhow::Result<()> {
    print(format_args!("{text}\n"))
}

/// Prints an error and its causes once, in the manner of kubectl.
pub(crate) fn error(error: &anyhow::Error) {
    let red = Style::new().bold().fg_color(Some(AnsiColor::Red.into()));
    anstream::eprintln!("{red}error:{red:#} {}", chain(error));
}

/// Prints a warning.
pub(crate) fn warning(text: &str) {
    let yellow = Style::new().bold().fg_color(Some(AnsiColor::Yellow.into()));
    anstream::eprintln!("{yellow}warning:{yellow:#} {text}");
}

/// The message with its causes, leaving out those that repeat it.
fn chain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            write!(text, ": {cause}").expect("writing to a String cannot fail");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_says_each_thing_once() {
        let error = anyhow::anyhow!("no such file").context("a.yaml cannot be read: no such file");
        assert_eq!(chain(&error), "a.yaml cannot be read: no such file");
        let error = anyhow::anyhow!("refused").context("cannot connect");
        assert_eq!(chain(&error), "cannot connect: refused");
    }
}
