//! One blocking netlink socket: send a request or a batch, read the kernel's
//! verdicts.
//!
//! The kernel handles route and netfilter requests inside `sendmsg`, so that
//! every reply is queued when it returns; nothing here ever waits.
//!
//! Spec: <https://docs.kernel.org/userspace-api/netlink/intro.html>

use std::io;

use netlink_sys::SocketAddr;

/// `nlmsg_flags` of a request that wants an acknowledgement.
pub(crate) const REQUEST_ACK: u16 = 0x1 | 0x4;

const HEADER_LEN: usize = 16;
const TYPE_ERROR: u16 = 2;
const FLAG_CAPPED: u16 = 0x100;
const FLAG_ACK_TLVS: u16 = 0x200;
const ATTR_MESSAGE: u16 = 1;

/// The kernel refused the message with sequence number `sequence`.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) sequence: u32,
    pub(crate) source: io::Error,
    /// The kernel's own words, when it had any.
    pub(crate) detail: Option<String>,
}

/// Why a transaction did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    Socket(io::Error),
    Refused(Refused),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Socket(error)
    }
}

/// A netlink socket bound to the network namespace of the thread that
/// opened it.
pub(crate) struct Socket {
    inner: netlink_sys::Socket,
}

impl Socket {
    /// Opens a socket of one of `netlink_sys::protocols`.
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let mut inner = netlink_sys::Socket::new(protocol)?;
        inner.bind_auto()?;
        inner.connect(&SocketAddr::new(0, 0))?;
        // Both only make errors easier to read, and old kernels lack them.
        let _ = inner.set_cap_ack(true);
        let _ = inner.set_ext_ack(true);
        inner.set_non_blocking(true)?;
        Ok(Self { inner })
    }

    /// Sends `messages` (one or several, each with its header) and collects
    /// the replies. Succeeds when nothing was refused and the message with
    /// sequence number `acknowledged` was accepted.
    pub(crate) fn transact(&mut self, messages: &[u8], acknowledged: u32) -> Result<(), Failure> {
        self.inner.send(messages, 0)?;
        let mut accepted = false;
        let mut refused: Option<Refused> = None;
        loop {
            let datagram = match self.inner.recv_from_full() {
                Ok((datagram, _)) => datagram,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            for reply in replies(&datagram) {
                match reply {
                    Reply { errno: 0, sequence, .. } => accepted |= sequence == acknowledged,
                    Reply { errno, sequence, detail } => {
                        // The first refusal is the cause; the others follow.
                        let source = io::Error::from_raw_os_error(errno);
                        refused.get_or_insert(Refused { sequence, source, detail });
                    }
                }
            }
        }
        match refused {
            Some(refused) => Err(Failure::Refused(refused)),
            None if accepted => Ok(()),
            None => Err(Failure::Socket(io::Error::from(io::ErrorKind::UnexpectedEof))),
        }
    }
}

struct Reply {
    sequence: u32,
    errno: i32,
    detail: Option<String>,
}

fn replies(datagram: &[u8]) -> Vec<Reply> {
    let mut found = Vec::new();
    let mut rest = datagram;
    while let Some(len) = read_u32(rest, 0).map(|len| len as usize) {
        if len < HEADER_LEN || len > rest.len() {
            break;
        }
        if let Some(reply) = reply(&rest[..len]) {
            found.push(reply);
        }
        rest = rest.get(align(len)..).unwrap_or_default();
    }
    found
}

fn reply(message: &[u8]) -> Option<Reply> {
    if read_u16(message, 4)? != TYPE_ERROR {
        return None;
    }
    let flags = read_u16(message, 6)?;
    let errno = read_u32(message, HEADER_LEN)? as i32;
    let sequence = read_u32(message, HEADER_LEN + 4 + 8)?;
    let detail = (flags & FLAG_ACK_TLVS != 0).then(|| detail(message, flags)).flatten();
    Some(Reply { sequence, errno: -errno, detail })
}

/// The text attribute that follows the echoed request.
fn detail(message: &[u8], flags: u16) -> Option<String> {
    let echoed = if flags & FLAG_CAPPED != 0 {
        HEADER_LEN
    } else {
        align(read_u32(message, HEADER_LEN + 4)? as usize)
    };
    let mut attributes = message.get(HEADER_LEN + 4 + echoed..)?;
    while let (Some(len), Some(kind)) = (read_u16(attributes, 0), read_u16(attributes, 2)) {
        let value = attributes.get(4..usize::from(len))?;
        if kind & 0x3fff == ATTR_MESSAGE {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        attributes = attributes.get(align(usize::from(len))..)?;
    }
    None
}

/// Rounds up to netlink's 4-byte alignment.
pub(crate) fn align(len: usize) -> usize {
    len.next_multiple_of(4)
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
