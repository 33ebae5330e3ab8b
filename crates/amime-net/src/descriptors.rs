//! Descriptors that go from one process to another over a Unix socket.
//!
//! Owns the socket and its messages, each with bytes and descriptors; what
//! they mean is the callers'.
//!
//! Invariant: only a process of the same user is talked to, and a descriptor
//! that was received is closed unless the caller keeps it.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use nix::cmsg_space;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, getsockopt, recvmsg, sendmsg,
};
use nix::unistd::geteuid;
use socket2::{Domain, SockAddr, Socket, Type};

/// Most descriptors of one message; the kernel takes 253.
pub const MAX_DESCRIPTORS: usize = 128;
/// Most bytes of one message.
const MAX_BYTES: usize = 64 * 1024;

/// Waits for processes that want descriptors.
#[derive(Debug)]
pub struct Door(Socket);

/// One end of a conversation.
#[derive(Debug)]
pub struct Channel(Socket);

impl Door {
    /// Listens at `path`, in place of whoever did before, for this user alone.
    ///
    /// # Errors
    /// What `bind`, `chmod` or `listen` reported.
    pub fn open(path: &Path) -> io::Result<Self> {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
        // Not before it listens, so that nobody finds a door that is shut.
        let next = path.with_extension(format!("{}", std::process::id()));
        let bound = socket.bind(&SockAddr::unix(&next)?).and_then(|()| {
            std::fs::set_permissions(&next, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
            socket.listen(4)?;
            std::fs::rename(&next, path)
        });
        if bound.is_err() {
            // It may not have come so far.
            let _ = std::fs::remove_file(&next);
        }
        bound.map(|()| Self(socket))
    }

    /// The next process of this user.
    ///
    /// # Errors
    /// What `accept` reported.
    pub fn accept(&self) -> io::Result<Channel> {
        loop {
            let (socket, _) = self.0.accept()?;
            let peer = getsockopt(&socket, PeerCredentials)?;
            if peer.uid() == geteuid().as_raw() || peer.uid() == 0 {
                return Ok(Channel(socket));
            }
        }
    }
}

impl Channel {
    /// Talks to the process behind the door at `path`.
    ///
    /// # Errors
    /// What `connect` reported.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
        socket.connect(&SockAddr::unix(path)?)?;
        Ok(Self(socket))
    }

    /// How long the other side may be silent; `None`: for ever.
    ///
    /// # Errors
    /// What `setsockopt` reported.
    pub fn patience(&self, limit: Option<Duration>) -> io::Result<()> {
        self.0.set_read_timeout(limit)?;
        self.0.set_write_timeout(limit)
    }

    /// Sends one message.
    ///
    /// # Errors
    /// What `sendmsg` reported; `InvalidInput` for too many descriptors.
    pub fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        if descriptors.len() > MAX_DESCRIPTORS || bytes.len() > MAX_BYTES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let raw: Vec<RawFd> = descriptors.iter().map(|one| one.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &rights[..] };
        let parts = [IoSlice::new(bytes)];
        sendmsg::<()>(self.0.as_fd().as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(())
    }

    /// Receives one message; no bytes at the end.
    ///
    /// # Errors
    /// What `recvmsg` reported; `InvalidData` for a message that was cut.
    pub fn receive(&self) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        let mut bytes = vec![0; MAX_BYTES];
        let mut space = cmsg_space!([RawFd; MAX_DESCRIPTORS]);
        let (count, cut, descriptors) = {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let fd = self.0.as_fd().as_raw_fd();
            let message = recvmsg::<()>(fd, &mut parts, Some(&mut space), flags)?;
            let mut descriptors = Vec::new();
            for control in message.cmsgs()? {
                if let ControlMessageOwned::ScmRights(received) = control {
                    // SAFETY: the kernel has just made these descriptors for
                    // this process; nobody else knows of them.
                    let owned = received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
                    descriptors.extend(owned);
                }
            }
            let cut = message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
            (message.bytes, cut, descriptors)
        };
        if cut {
            return Err(io::ErrorKind::InvalidData.into());
        }
        bytes.truncate(count);
        Ok((bytes, descriptors))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_listening_socket_goes_to_whoever_knocks() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("door");
        let door = Door::open(&path).expect("opens");
        let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = socket.local_addr().expect("an address");
        // Waits in the queue before it is handed over.
        let mut client = TcpStream::connect(address).expect("it listens");
        let knocking = Channel::connect(&path).expect("there is somebody");
        let other = door.accept().expect("somebody knocks");
        other.send(b"here", &[socket.as_fd()]).expect("sent");
        drop(socket);
        let (bytes, mut descriptors) = knocking.receive().expect("received");
        assert_eq!((bytes.as_slice(), descriptors.len()), (&b"here"[..], 1));
        let socket = TcpListener::from(descriptors.remove(0));
        drop(socket.accept().expect("the client waits"));
        assert_eq!(client.read(&mut [0; 1]).expect("closed in order"), 0);
        drop(other);
        assert!(knocking.receive().expect("the end").0.is_empty());
    }

    #[test]
    fn a_new_door_takes_the_place_of_the_old_one() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("door");
        let _old = Door::open(&path).expect("opens");
        let new = Door::open(&path).expect("opens again");
        let knocking = Channel::connect(&path).expect("there is somebody");
        knocking.send(b"hello", &[]).expect("sent");
        let (bytes, _) = new.accept().expect("somebody knocks").receive().expect("received");
        assert_eq!(bytes, b"hello");
    }
}
