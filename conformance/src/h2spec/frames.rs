//! HTTP/2 frames as bytes, right or wrong as a case wants them.
//!
//! Spec: <https://www.rfc-editor.org/rfc/rfc9113>

use tokio::io::{AsyncRead, AsyncReadExt};

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

/// Also the acknowledgement of SETTINGS and PING.
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
pub(super) const PADDED: u8 = 8;
pub(super) const WITH_PRIORITY: u8 = 0x20;

const NAMES: [&str; 10] = [
    "DATA",
    "HEADERS",
    "PRIORITY",
    "RST_STREAM",
    "SETTINGS",
    "PUSH_PROMISE",
    "PING",
    "GOAWAY",
    "WINDOW_UPDATE",
    "CONTINUATION",
];

/// Error codes by number.
pub(super) const CODES: [&str; 14] = [
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
];

/// A received frame.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) payload: Vec<u8>,
}

impl Frame {
    /// Reads one; none when the connection has ended.
    pub(super) async fn read<R: AsyncRead + Unpin>(from: &mut R) -> Option<Self> {
        let mut head = [0; 9];
        from.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).ok()?];
        from.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
        Some(Self { kind: head[3], flags: head[4], stream, payload })
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Error code of a frame that carries one.
    pub(super) fn code(&self) -> Option<&'static str> {
        let at = match self.kind {
            RST_STREAM => 0,
            GOAWAY => 4,
            _ => return None,
        };
        let bytes = self.payload.get(at..at + 4)?.try_into().ok()?;
        let number = usize::try_from(u32::from_be_bytes(bytes)).ok()?;
        Some(CODES.get(number).copied().unwrap_or("unknown"))
    }

    /// Identifiers and values of SETTINGS.
    pub(super) fn settings(&self) -> impl Iterator<Item = (u16, u32)> {
        self.payload.chunks_exact(6).map(|one| {
            let id = u16::from_be_bytes([one[0], one[1]]);
            (id, u32::from_be_bytes([one[2], one[3], one[4], one[5]]))
        })
    }

    pub(super) fn describe(&self) -> String {
        let name = NAMES.get(usize::from(self.kind)).copied().unwrap_or("unknown frame");
        let code = self.code().map(|code| format!(" {code}")).unwrap_or_default();
        let Self { flags, stream, .. } = self;
        format!("{name}{code} (stream {stream}, flags {flags:#x}, {} bytes)", self.payload.len())
    }
}

/// A frame to be sent.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or_default().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// SETTINGS with these parameters.
pub(super) fn settings(parameters: &[(u16, u32)]) -> Vec<u8> {
    let mut payload = vec![];
    for (id, value) in parameters {
        payload.extend(id.to_be_bytes());
        payload.extend(value.to_be_bytes());
    }
    frame(SETTINGS, 0, 0, &payload)
}

/// A field as a literal without indexing and without Huffman's code.
pub(super) fn field(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        integer(&mut bytes, 0, 7, text.len());
        bytes.extend(text.as_bytes());
    }
    bytes
}

/// A change of the size of the dynamic table.
pub(super) fn table_size(size: u32) -> Vec<u8> {
    let mut bytes = vec![];
    integer(&mut bytes, 0x20, 5, usize::try_from(size).unwrap_or_default());
    bytes
}

/// An integer of HPACK behind some leading bits.
fn integer(bytes: &mut Vec<u8>, lead: u8, prefix: u8, value: usize) {
    let most = (1_usize << prefix) - 1;
    let byte = |value: usize| u8::try_from(value & 0xff).unwrap_or_default();
    if value < most {
        return bytes.push(lead | byte(value));
    }
    bytes.push(lead | byte(most));
    let mut rest = value - most;
    while rest >= 128 {
        bytes.push(0x80 | byte(rest & 0x7f));
        rest >>= 7;
    }
    bytes.push(byte(rest));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_follow_the_examples_of_the_specification() {
        let encoded = |lead, prefix, value| {
            let mut bytes = vec![];
            integer(&mut bytes, lead, prefix, value);
            bytes
        };
        assert_eq!(encoded(0, 5, 10), [10]);
        assert_eq!(encoded(0, 5, 1337), [31, 154, 10]);
        assert_eq!(table_size(128), [0x3f, 0x61]);
    }
}
