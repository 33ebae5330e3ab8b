//! Socket options of intercepted and transparent connections, and the
//! descriptors handed from one process to the next.
//!
//! Leaves binding policy and accept loops to the caller. Works on anything
//! that has a descriptor: std, tokio and socket2 sockets alike.

use std::ffi::{CStr, OsString};
use std::fs::Permissions;
use std::io::{self, Read, Seek, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use nix::fcntl::{FcntlArg, FdFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

/// Address that the client dialed before a REDIRECT or DNAT rule sent it here
/// (`SO_ORIGINAL_DST`).
///
/// The family asked for is the one of the socket's local address; a v6 socket
/// with a v4-mapped address is asked for the v4 destination.
///
/// # Errors
/// `ENOENT` when the connection was not translated (some kernels answer with
/// the local address instead), `ENOPROTOOPT` without conntrack.
pub fn original_dst(socket: &impl AsFd) -> io::Result<SocketAddr> {
    let socket = SockRef::from(socket);
    let local = socket.local_addr()?.as_socket();
    let wants_v4 = match local {
        Some(SocketAddr::V4(_)) => true,
        Some(SocketAddr::V6(addr)) => addr.ip().to_ipv4_mapped().is_some(),
        None => return Err(io::Error::from(io::ErrorKind::Unsupported)),
    };
    let answer = if wants_v4 { socket.original_dst_v4()? } else { socket.original_dst_v6()? };
    as_ip(&answer)
}

/// Sets `SO_MARK`, by which interception rules know the proxy's own packets.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN` (or `CAP_NET_RAW`) over the socket's
/// network namespace.
pub fn set_mark(socket: &impl AsFd, mark: u32) -> io::Result<()> {
    SockRef::from(socket).set_mark(mark)
}

/// Sets `IP_TRANSPARENT` (v4) or `IPV6_TRANSPARENT`, so that the socket may
/// bind to, and accept for, addresses that are not the machine's.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN`.
pub fn set_transparent(socket: &impl AsFd, family: Family) -> io::Result<()> {
    let socket = SockRef::from(socket);
    match family {
        Family::V4 => socket.set_ip_transparent_v4(true),
        Family::V6 => socket.set_ip_transparent_v6(true),
    }
}

/// Address family of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6 (also carrying v4-mapped peers unless it is v6-only).
    V6,
}

impl Family {
    /// Family of `addr`.
    pub fn of(addr: &SocketAddr) -> Self {
        match addr {
            SocketAddr::V4(_) => Self::V4,
            SocketAddr::V6(_) => Self::V6,
        }
    }
}

/// Options of a listening TCP socket; see [`ListenerBuilder::listen`].
#[derive(Clone, Debug)]
pub struct ListenerBuilder {
    addr: SocketAddr,
    backlog: i32,
    reuse_port: bool,
    transparent: bool,
    mark: Option<u32>,
    v6_only: bool,
    free_bind: bool,
    options: Vec<RawOption>,
}

/// A socket option as a configuration gives it: numbers that only the kernel
/// knows the meaning of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawOption {
    /// Such as `SOL_SOCKET`.
    pub level: i32,
    /// Such as `SO_RCVBUF`.
    pub name: i32,
    /// The option's value in memory.
    pub value: Vec<u8>,
    /// When it is set.
    pub when: OptionStage,
}

/// Moments in a listening socket's making.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionStage {
    /// Before `bind`.
    BeforeBind,
    /// Between `bind` and `listen`.
    Bound,
    /// After `listen`.
    Listening,
}

/// Sets an option by its numbers.
///
/// # Errors
/// What `setsockopt` reported.
pub fn set_raw_option(socket: &impl AsFd, option: &RawOption) -> io::Result<()> {
    let length = nix::libc::socklen_t::try_from(option.value.len())
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the descriptor is open while it is borrowed, and the kernel reads
    // `length` bytes of the value and keeps no pointer to it.
    let outcome = unsafe {
        nix::libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            option.level,
            option.name,
            option.value.as_ptr().cast(),
            length,
        )
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl ListenerBuilder {
    /// A listener on `addr` with a backlog of 1024 and none of the options.
    pub fn new(addr: SocketAddr) -> Self {
        Self {
            addr,
            backlog: 1024,
            reuse_port: false,
            transparent: false,
            mark: None,
            v6_only: false,
            free_bind: false,
            options: Vec::new(),
        }
    }

    /// Length of the accept queue (capped by `net.core.somaxconn`).
    #[must_use]
    pub fn backlog(mut self, connections: i32) -> Self {
        self.backlog = connections;
        self
    }

    /// `SO_REUSEPORT`: each worker has its own accept queue on the address.
    #[must_use]
    pub fn reuse_port(mut self, on: bool) -> Self {
        self.reuse_port = on;
        self
    }

    /// `IP_TRANSPARENT`, see [`set_transparent`].
    #[must_use]
    pub fn transparent(mut self, on: bool) -> Self {
        self.transparent = on;
        self
    }

    /// `SO_MARK`, inherited by the accepted sockets.
    #[must_use]
    pub fn mark(mut self, mark: Option<u32>) -> Self {
        self.mark = mark;
        self
    }

    /// Refuse v4-mapped peers on a v6 address.
    #[must_use]
    pub fn v6_only(mut self, on: bool) -> Self {
        self.v6_only = on;
        self
    }

    /// `IP_FREEBIND`: the address need not be the machine's yet.
    #[must_use]
    pub fn free_bind(mut self, on: bool) -> Self {
        self.free_bind = on;
        self
    }

    /// Options by number.
    #[must_use]
    pub fn options(mut self, options: Vec<RawOption>) -> Self {
        self.options = options;
        self
    }

    /// Binds and listens: non-blocking, close-on-exec, `SO_REUSEADDR`.
    ///
    /// # Errors
    /// What `setsockopt`, `bind` or `listen` reported.
    pub fn listen(&self) -> io::Result<TcpListener> {
        let family = Family::of(&self.addr);
        let domain = match family {
            Family::V4 => Domain::IPV4,
            Family::V6 => Domain::IPV6,
        };
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        if self.reuse_port {
            socket.set_reuse_port(true)?;
        }
        if family == Family::V6 {
            socket.set_only_v6(self.v6_only)?;
        }
        if self.transparent {
            set_transparent(&socket, family)?;
        }
        if let Some(mark) = self.mark {
            socket.set_mark(mark)?;
        }
        match (self.free_bind, family) {
            (false, _) => {}
            (true, Family::V4) => socket.set_freebind_v4(true)?,
            (true, Family::V6) => socket.set_freebind_v6(true)?,
        }
        self.set_options(&socket, OptionStage::BeforeBind)?;
        socket.bind(&SockAddr::from(self.addr))?;
        self.set_options(&socket, OptionStage::Bound)?;
        socket.listen(self.backlog)?;
        self.set_options(&socket, OptionStage::Listening)?;
        Ok(socket.into())
    }

    /// Binds a socket for datagrams, non-blocking and close-on-exec, with the
    /// options that such a socket has.
    ///
    /// # Errors
    /// What `setsockopt` or `bind` reported.
    pub fn bind_datagrams(&self) -> io::Result<UdpSocket> {
        let family = Family::of(&self.addr);
        let domain = match family {
            Family::V4 => Domain::IPV4,
            Family::V6 => Domain::IPV6,
        };
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        if self.reuse_port {
            socket.set_reuse_port(true)?;
        }
        if family == Family::V6 {
            socket.set_only_v6(self.v6_only)?;
        }
        self.set_options(&socket, OptionStage::BeforeBind)?;
        socket.bind(&SockAddr::from(self.addr))?;
        self.set_options(&socket, OptionStage::Bound)?;
        Ok(socket.into())
    }

    fn set_options(&self, socket: &Socket, stage: OptionStage) -> io::Result<()> {
        self.options
            .iter()
            .filter(|option| option.when == stage)
            .try_for_each(|option| set_raw_option(socket, option))
    }
}

/// Listens on a Unix stream socket, non-blocking and close-on-exec: at `path`,
/// or under an abstract name if it begins with `@`. A socket that another
/// process left there is replaced, any other file is not. `mode` are the
/// permissions of the file, 0 those that it gets anyway.
///
/// The result has the type of TCP listeners, which are moved and copied alike;
/// to accept, it must be a [`UnixListener`](std::os::unix::net::UnixListener)
/// again.
///
/// # Errors
/// What `bind`, `chmod` or `listen` reported.
pub fn listen_unix(path: &str, mode: u32, backlog: i32) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    let name = unix_name(path);
    let file = (!path.starts_with('@')).then_some(Path::new(&name));
    let left = file.and_then(|file| std::fs::symlink_metadata(file).ok());
    if let (Some(file), Some(left)) = (file, left)
        && left.file_type().is_socket()
    {
        std::fs::remove_file(file)?;
    }
    socket.bind(&SockAddr::unix(&name)?)?;
    if let Some(file) = file.filter(|_| mode != 0) {
        std::fs::set_permissions(file, Permissions::from_mode(mode))?;
    }
    socket.listen(backlog)?;
    Ok(OwnedFd::from(socket).into())
}

/// What the system knows a Unix socket by: abstract names begin with a zero.
pub fn unix_name(path: &str) -> OsString {
    match path.strip_prefix('@') {
        Some(name) => OsString::from(format!("\0{name}")),
        None => OsString::from(path),
    }
}

/// Takes over a descriptor that the parent process left open for this one,
/// and sets close-on-exec on it.
///
/// # Errors
/// `EBADF` when `raw` is not open, `EINVAL` for the standard streams, which
/// nobody may own.
pub fn inherited_fd(raw: RawFd) -> io::Result<OwnedFd> {
    if raw <= 2 {
        return Err(io::Error::from_raw_os_error(nix::libc::EINVAL));
    }
    // SAFETY: F_GETFD reads a flag and accepts any integer.
    if unsafe { nix::libc::fcntl(raw, nix::libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open (checked above). By the contract between
    // the two processes it was made for this one alone, so nothing else in
    // this program owns or closes it.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(fd)
}

/// Lets the next program started by this process inherit `fd` (clears
/// close-on-exec) and returns the number to tell it.
///
/// # Errors
/// What `fcntl` reported.
pub fn keep_on_exec(fd: &impl AsFd) -> io::Result<RawFd> {
    let fd = fd.as_fd();
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(fd.as_raw_fd())
}

/// An anonymous in-memory file, empty, writable and close-on-exec. It never
/// reaches a disk (unless swapped), which is why keys travel in one.
///
/// # Errors
/// What `memfd_create` reported.
pub fn memfd(name: &CStr) -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    Ok(memfd_create(name, flags)?)
}

/// A memfd with `content` that can no longer grow, shrink or be written.
///
/// # Errors
/// What `memfd_create`, `write` or sealing reported.
pub fn sealed_memfd(name: &CStr, content: &[u8]) -> io::Result<OwnedFd> {
    let fd = memfd(name)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(content)?;
    file.rewind()?;
    let fd = OwnedFd::from(file);
    let seals = SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_WRITE
        | SealFlag::F_SEAL_SEAL;
    fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(fd)
}

/// Reads a memfd (or file) from its start, at most `max_bytes` of it.
///
/// # Errors
/// `InvalidData` when there is more, otherwise what `read` reported.
pub fn read_memfd(fd: &impl AsFd, max_bytes: u64) -> io::Result<Vec<u8>> {
    let mut file = std::fs::File::from(fd.as_fd().try_clone_to_owned()?);
    file.rewind()?;
    let mut content = Vec::new();
    Read::by_ref(&mut file).take(max_bytes + 1).read_to_end(&mut content)?;
    if content.len() as u64 > max_bytes {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the file is larger than {max_bytes} bytes"),
        ));
    }
    Ok(content)
}

fn as_ip(addr: &SockAddr) -> io::Result<SocketAddr> {
    addr.as_socket().ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_reuse_port_listeners_share_an_address() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let first = ListenerBuilder::new(any).reuse_port(true).listen().expect("first");
        let addr = first.local_addr().expect("bound");
        let second = ListenerBuilder::new(addr).reuse_port(true).listen();
        assert!(second.is_ok());
        let third = ListenerBuilder::new(addr).listen();
        assert_eq!(third.expect_err("not shared").kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn options_by_number_are_set_and_refused_by_the_kernel() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let option = |name, value: i32| RawOption {
            level: nix::libc::SOL_SOCKET,
            name,
            value: value.to_ne_bytes().to_vec(),
            when: OptionStage::BeforeBind,
        };
        let priority = vec![option(nix::libc::SO_PRIORITY, 3)];
        ListenerBuilder::new(any).options(priority).listen().expect("a known option");
        let unknown = vec![option(-7, 1)];
        assert!(ListenerBuilder::new(any).options(unknown).listen().is_err());
    }

    #[test]
    fn a_memfd_is_read_back_and_bounded() {
        let fd = sealed_memfd(c"identity", b"secret").expect("memfd");
        assert_eq!(read_memfd(&fd, 6).expect("fits"), b"secret");
        assert_eq!(read_memfd(&fd, 6).expect("again"), b"secret");
        let error = read_memfd(&fd, 5).expect_err("too large");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let mut file = std::fs::File::from(fd);
        assert!(file.write_all(b"x").is_err(), "sealed");
    }

    #[test]
    fn an_inherited_descriptor_must_be_open_and_not_a_standard_stream() {
        assert!(inherited_fd(1).is_err());
        assert!(inherited_fd(1_000_000).is_err());
        let fd = memfd(c"handed-over").expect("memfd");
        let raw = keep_on_exec(&fd).expect("flag");
        std::mem::forget(fd);
        let fd = inherited_fd(raw).expect("open");
        assert_eq!(fd.as_raw_fd(), raw);
    }
}
