//! JSON formats: an object whose strings are text formats.

use std::io::Write;

use super::format::{Command, FormatError, Piece, Subject, commands, parse_pieces};

/// A compiled JSON format; prints one line.
#[derive(Debug)]
pub(super) struct JsonFormat {
    root: Node,
    omit_empty: bool,
}

#[derive(Debug)]
enum Node {
    /// Already encoded JSON.
    Constant(Box<[u8]>),
    /// One command: keeps its type, `null` when empty.
    Command(Command),
    /// Several pieces: a string, `-` for an empty command.
    Pieces(Vec<Piece>),
    Object(Vec<(Box<[u8]>, Node)>),
    Array(Vec<Node>),
}

impl Node {
    fn commands<'a>(&'a self, found: &mut Vec<&'a Command>) {
        match self {
            Self::Constant(_) => {}
            Self::Command(command) => found.push(command),
            Self::Pieces(pieces) => found.extend(commands(pieces)),
            Self::Object(fields) => fields.iter().for_each(|(_, node)| node.commands(found)),
            Self::Array(items) => items.iter().for_each(|node| node.commands(found)),
        }
    }
}

impl JsonFormat {
    pub(super) fn parse(
        format: &serde_json::Value,
        omit_empty: bool,
        sort: bool,
    ) -> Result<Self, FormatError> {
        Ok(Self { root: node(format, sort)?, omit_empty })
    }

    /// All commands within.
    pub(super) fn commands(&self) -> Vec<&Command> {
        let mut found = vec![];
        self.root.commands(&mut found);
        found
    }

    pub(super) fn write(&self, subject: &Subject<'_>, out: &mut Vec<u8>) {
        if !self.node(&self.root, subject, out) {
            out.extend_from_slice(b"{}");
        }
        out.push(b'\n');
    }

    /// Appends a node; false and nothing appended if it is empty and empty
    /// values are left out.
    fn node(&self, node: &Node, subject: &Subject<'_>, out: &mut Vec<u8>) -> bool {
        match node {
            Node::Constant(json) => out.extend_from_slice(json),
            Node::Command(command) => return self.command(command, subject, out),
            Node::Pieces(pieces) => {
                let mut text = vec![];
                for piece in pieces {
                    match piece {
                        Piece::Literal(literal) => text.extend_from_slice(literal.as_bytes()),
                        Piece::Command(command) => {
                            if !command.write(subject, &mut text) && !self.omit_empty {
                                text.push(b'-');
                            }
                        }
                    }
                }
                string(&text, out);
            }
            Node::Object(fields) => {
                out.push(b'{');
                let mut separate = false;
                for (key, value) in fields {
                    let start = out.len();
                    if separate {
                        out.push(b',');
                    }
                    out.extend_from_slice(key);
                    out.push(b':');
                    if self.node(value, subject, out) {
                        separate = true;
                    } else {
                        out.truncate(start);
                    }
                }
                out.push(b'}');
            }
            Node::Array(items) => {
                out.push(b'[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    if !self.node(item, subject, out) {
                        out.extend_from_slice(b"null");
                    }
                }
                out.push(b']');
            }
        }
        true
    }

    fn command(&self, command: &Command, subject: &Subject<'_>, out: &mut Vec<u8>) -> bool {
        if let Some(found) = command.operator.write_json(subject, out) {
            return found || self.null(out);
        }
        if command.operator.is_numeric() {
            if !command.write(subject, out) {
                return self.null(out);
            }
            return true;
        }
        let mut text = Vec::with_capacity(64);
        if !command.write(subject, &mut text) {
            return self.null(out);
        }
        string(&text, out);
        true
    }

    fn null(&self, out: &mut Vec<u8>) -> bool {
        if !self.omit_empty {
            out.extend_from_slice(b"null");
        }
        !self.omit_empty
    }
}

fn node(value: &serde_json::Value, sort: bool) -> Result<Node, FormatError> {
    Ok(match value {
        serde_json::Value::String(text) => {
            let mut pieces = parse_pieces(text)?;
            match pieces.as_slice() {
                [] => Node::Constant(b"\"\"".as_slice().into()),
                [Piece::Literal(text)] => Node::Constant(quoted(text)),
                [Piece::Command(_)] => match pieces.remove(0) {
                    Piece::Command(command) => Node::Command(command),
                    literal @ Piece::Literal(_) => Node::Pieces(vec![literal]),
                },
                _ => Node::Pieces(pieces),
            }
        }
        serde_json::Value::Object(fields) => {
            let mut compiled = vec![];
            for (key, value) in fields {
                compiled.push((quoted(key), node(value, sort)?));
            }
            if sort {
                compiled.sort_by(|a, b| a.0.cmp(&b.0));
            }
            Node::Object(compiled)
        }
        serde_json::Value::Array(items) => {
            Node::Array(items.iter().map(|item| node(item, sort)).collect::<Result<_, _>>()?)
        }
        other => Node::Constant(other.to_string().into_bytes().into()),
    })
}

fn quoted(text: &str) -> Box<[u8]> {
    let mut out = vec![];
    string(text.as_bytes(), &mut out);
    out.into()
}

/// Appends a JSON string; invalid UTF-8 becomes the replacement character.
pub(crate) fn string(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    for chunk in text.utf8_chunks() {
        for byte in chunk.valid().bytes() {
            match byte {
                b'"' => out.extend_from_slice(b"\\\""),
                b'\\' => out.extend_from_slice(b"\\\\"),
                b'\n' => out.extend_from_slice(b"\\n"),
                b'\r' => out.extend_from_slice(b"\\r"),
                b'\t' => out.extend_from_slice(b"\\t"),
                // A write to a `Vec` cannot fail.
                0..=0x1f => drop(write!(out, "\\u{byte:04x}")),
                _ => out.push(byte),
            }
        }
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
    out.push(b'"');
}
