//! Spelling of header names, which some old peers depend on.

use bytes::{BufMut, Bytes, BytesMut};

/// Header names of one message as their sender spelled them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderCase(Vec<Bytes>);

impl HeaderCase {
    /// Keeps a spelling; the first one of a name counts.
    pub(crate) fn keep(&mut self, name: Bytes) {
        if self.find(&name).is_none() {
            self.0.push(name);
        }
    }

    fn find(&self, name: &[u8]) -> Option<&[u8]> {
        self.0.iter().find(|kept| kept.eq_ignore_ascii_case(name)).map(|kept| &**kept)
    }
}

/// How names are spelled when they are written.
#[derive(Clone, Copy, Debug, Default)]
pub enum Casing<'a> {
    /// In lower case.
    #[default]
    Lower,
    /// `Like-This`.
    Proper,
    /// As their sender spelled them, others in lower case.
    Kept(&'a HeaderCase),
}

impl Casing<'_> {
    /// Writes a name that is in lower case.
    pub(crate) fn write(self, name: &str, out: &mut BytesMut) {
        let lower = name.as_bytes();
        match self {
            Self::Lower => out.put_slice(lower),
            Self::Kept(case) => out.put_slice(case.find(lower).unwrap_or(lower)),
            Self::Proper => {
                let mut first = true;
                for byte in lower {
                    out.put_u8(if first { byte.to_ascii_uppercase() } else { *byte });
                    first = !byte.is_ascii_alphanumeric();
                }
            }
        }
    }
}
