//! Files moved into directories, through inotify.
//!
//! A file that is replaced whole is moved into place: that event, and no write
//! to a file, says that the content is complete.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

/// Watched directories. Readable, as a descriptor, when something happened.
#[derive(Debug)]
pub struct MoveWatch(Inotify);

/// One watched directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WatchId(WatchDescriptor);

/// Something was moved into a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Where to; `None` when events were lost and anything may have happened.
    pub directory: Option<WatchId>,
    /// Name of the entry.
    pub name: OsString,
}

impl MoveWatch {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// When the kernel has no instance left for this user.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?))
    }

    /// Watches `directory`; adding one twice gives the same id.
    ///
    /// # Errors
    /// When it is not there or not a directory.
    pub fn add(&self, directory: &Path) -> io::Result<WatchId> {
        let flags = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ONLYDIR;
        Ok(WatchId(self.0.add_watch(directory, flags)?))
    }

    /// What happened since the last call.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when nothing did.
    pub fn read(&self) -> io::Result<Vec<Moved>> {
        let events = self.0.read_events()?.into_iter().filter_map(|event| {
            if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                return Some(Moved { directory: None, name: OsString::new() });
            }
            Some(Moved { directory: Some(WatchId(event.wd)), name: event.name? })
        });
        Ok(events.collect())
    }
}

impl AsRawFd for MoveWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_is_seen_and_a_write_is_not() {
        let dir = tempfile::tempdir().expect("directory");
        let watch = MoveWatch::new().expect("an instance");
        let id = watch.add(dir.path()).expect("watched");
        let next = dir.path().join("next");
        std::fs::write(&next, "1").expect("written");
        let quiet = watch.read().expect_err("nothing was moved");
        assert_eq!(quiet.kind(), io::ErrorKind::WouldBlock);
        std::fs::rename(&next, dir.path().join("file")).expect("moved");
        let moved = watch.read().expect("moved");
        assert_eq!(moved, [Moved { directory: Some(id), name: "file".into() }]);
        assert!(watch.add(&dir.path().join("file")).is_err(), "not a directory");
    }
}
