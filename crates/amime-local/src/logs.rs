//! Logs of containers: what they print goes to files of bounded size.
//!
//! One file a container and one older one. A reader that follows sees whole
//! lines as soon as they are written, across rotations.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::watch;

/// Size at which the current file becomes the older one.
const ROTATE_BYTES: u64 = 4 << 20;
const PIPE_CHUNK: usize = 64 << 10;

/// The log of one container, over all its restarts.
#[derive(Clone)]
pub(crate) struct ContainerLog {
    path: Arc<PathBuf>,
    writer: Arc<Mutex<Writer>>,
    /// Bytes written so far, over all files; changes wake followers.
    written: Arc<watch::Sender<u64>>,
}

struct Writer {
    file: File,
    /// Bytes in the current file.
    size: u64,
    /// Bytes written before the current file.
    before: u64,
}

impl ContainerLog {
    /// Starts an empty log; one of an earlier run becomes the older file.
    pub(crate) fn create(path: PathBuf) -> io::Result<Self> {
        if path.exists() {
            std::fs::rename(&path, older(&path))?;
        }
        let file = File::create(&path)?;
        Ok(Self {
            path: Arc::new(path),
            writer: Arc::new(Mutex::new(Writer { file, size: 0, before: 0 })),
            written: Arc::new(watch::Sender::new(0)),
        })
    }

    /// A pipe whose other end is copied to the log until it is closed.
    pub(crate) fn pipe(&self) -> io::Result<OwnedFd> {
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let mut reader = pipe::Receiver::from_owned_fd(reader)?;
        let log = self.clone();
        tokio::spawn(async move {
            let mut chunk = vec![0; PIPE_CHUNK];
            loop {
                match reader.read(&mut chunk).await {
                    Ok(0) | Err(_) => return,
                    Ok(read) => log.append(&chunk[..read]),
                }
            }
        });
        Ok(writer)
    }

    /// Adds a line of the platform itself.
    pub(crate) fn note(&self, line: &str) {
        self.append(format!("{line}\n").as_bytes());
    }

    fn append(&self, bytes: &[u8]) {
        let mut writer = self.writer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Err(error) = writer.append(&self.path, bytes) {
            // A full disk must not stop the workload, which is why the bytes
            // are dropped.
            tracing::debug!(path = %self.path.display(), %error, "log line lost");
        }
        let total = writer.before + writer.size;
        drop(writer);
        self.written.send_replace(total);
    }

    /// The last `lines` lines (all if none), and the position behind them for
    /// [`ContainerLog::read_from`].
    pub(crate) fn tail(&self, lines: Option<usize>) -> io::Result<(Vec<u8>, u64)> {
        let writer = self.writer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut content = Vec::new();
        if writer.before > 0 {
            // The older file may be of an earlier run; only this run's counts.
            content = std::fs::read(older(&self.path)).unwrap_or_default();
        }
        File::open(&*self.path)?.read_to_end(&mut content)?;
        let end = writer.before + writer.size;
        drop(writer);
        let start = lines.map_or(0, |lines| start_of_last(&content, lines));
        Ok((content.split_off(start), end))
    }

    /// What was written since `position`, which moves on. Bytes that have
    /// been rotated away twice are lost.
    pub(crate) fn read_from(&self, position: &mut u64) -> io::Result<Vec<u8>> {
        let writer = self.writer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut content = Vec::new();
        if *position < writer.before {
            let mut file = File::open(older(&self.path))?;
            let missed = writer.before - *position;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(missed)))?;
            file.read_to_end(&mut content)?;
            *position = writer.before;
        }
        let mut file = File::open(&*self.path)?;
        file.seek(SeekFrom::Start(*position - writer.before))?;
        file.read_to_end(&mut content)?;
        *position = writer.before + writer.size;
        Ok(content)
    }

    /// Wakes up on each write.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.written.subscribe()
    }
}

impl Writer {
    fn append(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        if self.size + bytes.len() as u64 > ROTATE_BYTES && self.size > 0 {
            std::fs::rename(path, older(path))?;
            self.file = File::create(path)?;
            self.before += self.size;
            self.size = 0;
        }
        self.file.write_all(bytes)?;
        self.size += bytes.len() as u64;
        Ok(())
    }
}

fn older(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

/// Where the last `lines` lines begin.
fn start_of_last(content: &[u8], lines: usize) -> usize {
    if lines == 0 {
        return content.len();
    }
    let body = content.strip_suffix(b"\n").unwrap_or(content);
    let newlines = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    newlines.map(|(at, _)| at + 1).nth(lines - 1).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_counts_lines_and_a_follower_misses_none_over_a_rotation() {
        let dir = tempfile::tempdir().expect("directory");
        let log = ContainerLog::create(dir.path().join("c.log")).expect("created");
        for line in ["one", "two", "three"] {
            log.note(line);
        }
        let (text, mut position) = log.tail(Some(2)).expect("read");
        assert_eq!(text, b"two\nthree\n");
        let long = "x".repeat(ROTATE_BYTES as usize - 20);
        log.note(&long);
        log.note("after the rotation");
        let text = log.read_from(&mut position).expect("read");
        assert_eq!(text, format!("{long}\nafter the rotation\n").as_bytes());
        assert_eq!(log.read_from(&mut position).expect("read"), b"");
        assert!(log.tail(None).expect("read").0.starts_with(b"one\n"));
    }

    #[test]
    fn the_last_lines_of_an_unfinished_text() {
        assert_eq!(start_of_last(b"a\nb\nc", 1), 4);
        assert_eq!(start_of_last(b"a\nb\nc\n", 2), 2);
        assert_eq!(start_of_last(b"a\n", 5), 0);
        assert_eq!(start_of_last(b"a\n", 0), 2);
    }
}
