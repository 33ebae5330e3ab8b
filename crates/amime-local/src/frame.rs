//! Frames of an exec session: a kind, a length, that many bytes.
//!
//! After the HTTP upgrade both sides send frames on the raw stream:
//! `kind: u8, length: u32 big-endian, payload`. A closed standard input is an
//! empty frame of its kind. The server's last frame is the exit code.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Protocol name of the HTTP upgrade.
pub(crate) const PROTOCOL: &str = "amime-exec";
/// Largest payload; a larger one is a fault of the peer.
const LARGEST: usize = 1 << 20;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// To the process; empty: end of input.
    Stdin(Vec<u8>),
    /// From the process.
    Stdout(Vec<u8>),
    /// From the process.
    Stderr(Vec<u8>),
    /// The process ended.
    Exit(i32),
}

impl Frame {
    /// Reads a frame; none at the end of the stream.
    pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Self>> {
        let kind = match stream.read_u8().await {
            Ok(kind) => kind,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        };
        let length = stream.read_u32().await? as usize;
        if length > LARGEST {
            return Err(malformed());
        }
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await?;
        match (kind, payload.as_slice()) {
            (0, _) => Ok(Some(Self::Stdin(payload))),
            (1, _) => Ok(Some(Self::Stdout(payload))),
            (2, _) => Ok(Some(Self::Stderr(payload))),
            (3, &[a, b, c, d]) => Ok(Some(Self::Exit(i32::from_be_bytes([a, b, c, d])))),
            _ => Err(malformed()),
        }
    }

    /// Writes and flushes the frame.
    pub(crate) async fn write(&self, stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let code;
        let (kind, payload): (u8, &[u8]) = match self {
            Self::Stdin(bytes) => (0, bytes),
            Self::Stdout(bytes) => (1, bytes),
            Self::Stderr(bytes) => (2, bytes),
            Self::Exit(number) => {
                code = number.to_be_bytes();
                (3, &code)
            }
        };
        let length = u32::try_from(payload.len()).map_err(|_| malformed())?;
        stream.write_u8(kind).await?;
        stream.write_u32(length).await?;
        stream.write_all(payload).await?;
        stream.flush().await
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not a frame of an exec session")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_survive_the_way_and_garbage_is_refused() {
        let mut wire = Vec::new();
        let frames = [Frame::Stdin(vec![]), Frame::Stdout(b"out".to_vec()), Frame::Exit(-1)];
        for frame in &frames {
            frame.write(&mut wire).await.expect("written");
        }
        let mut stream = wire.as_slice();
        for frame in frames {
            assert_eq!(Frame::read(&mut stream).await.expect("whole"), Some(frame));
        }
        assert_eq!(Frame::read(&mut stream).await.expect("end"), None);
        for garbage in
            [&[9, 0, 0, 0, 0][..], &[1, 255, 255, 255, 255], &[3, 0, 0, 0, 1, 0], &[1, 0]]
        {
            assert!(Frame::read(&mut &*garbage).await.is_err(), "{garbage:?}");
        }
    }
}
