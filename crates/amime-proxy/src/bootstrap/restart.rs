//! One process of the proxy takes the place of another, without a client
//! noticing.
//!
//! Owns the conversation: the new process knocks at the old one's door and is
//! sent copies of all listening sockets; once it serves by itself it says so,
//! and the old one drains and ends. Which socket is which is
//! `amime_resources`' business, how descriptors travel `amime_net`'s.
//!
//! Invariant: until the new process has said that it serves, the old one goes
//! on as before, whatever becomes of the new one.

use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use amime_engine::runtime::{Inherited, TakenSockets};
use amime_net::descriptors::{Channel, Door, MAX_DESCRIPTORS};
use serde::{Deserialize, Serialize};

use crate::admin::{Context, Server, Wish};

/// Longest time for a message of the other side.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest time in which a new process begins to serve.
const START: Duration = Duration::from_secs(600);

/// What the command line says of it.
#[derive(Clone, Debug)]
pub(crate) struct Restart {
    /// Where a process that takes over finds the one that runs.
    pub(crate) door: PathBuf,
    /// Whether there is one that runs.
    pub(crate) take_over: bool,
}

/// Why there is nobody to take over from.
#[derive(Debug, thiserror::Error)]
pub enum RestartError {
    /// No process, or not one that may be asked.
    #[error("no proxy can be taken over at {}", path.display())]
    Knock {
        /// The door.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The door for the next process.
    #[error("{} cannot be opened for a proxy that takes over", path.display())]
    Door {
        /// The door.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What the old process says makes no sense.
    #[error("the running proxy speaks another protocol")]
    Protocol,
}

/// A message of either side.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    /// Asks for all sockets.
    Take { version: u32 },
    /// Comes with some sockets of a listener.
    Sockets { listener: String, address: String },
    /// Comes with the admin server's socket.
    Admin,
    /// All have been sent.
    Sent,
    /// The new process serves.
    Serving,
}

const VERSION: u32 = 1;

/// The process before this one.
pub(crate) struct Predecessor {
    channel: Channel,
    pub(crate) sockets: Inherited,
    pub(crate) admin: Option<TcpListener>,
}

impl Predecessor {
    /// Asks the process behind the door for its sockets.
    pub(crate) fn knock(path: &Path) -> Result<Self, RestartError> {
        let failed = |source| RestartError::Knock { path: path.to_owned(), source };
        let channel = Channel::connect(path).map_err(failed)?;
        channel.patience(Some(PATIENCE)).map_err(failed)?;
        send(&channel, &Message::Take { version: VERSION }, &[]).map_err(failed)?;
        let (mut taken, mut admin) = (Vec::<TakenSockets>::new(), None);
        loop {
            let (bytes, descriptors) = channel.receive().map_err(failed)?;
            let mut sockets = descriptors.into_iter().map(TcpListener::from);
            match serde_json::from_slice(&bytes).map_err(|_| RestartError::Protocol)? {
                Message::Sockets { listener, address } => {
                    let known = taken
                        .iter_mut()
                        .find(|it| it.listener == listener && it.address == address);
                    match known {
                        Some(known) => known.sockets.extend(sockets),
                        None => {
                            let sockets = sockets.collect();
                            taken.push(TakenSockets { listener, address, sockets });
                        }
                    }
                }
                Message::Admin => admin = sockets.next(),
                Message::Sent => break,
                Message::Take { .. } | Message::Serving => return Err(RestartError::Protocol),
            }
        }
        Ok(Self { channel, sockets: Inherited::new(taken), admin })
    }

    /// Lets it go.
    pub(crate) fn relieve(self) -> io::Result<()> {
        send(&self.channel, &Message::Serving, &[])
    }
}

/// The admin server, as long as this process is the one to ask.
pub(crate) type AdminServer = Arc<Mutex<Option<Server>>>;

/// Waits for a successor in a thread of its own, and asks this process to end
/// once there is one.
pub(crate) fn await_successor(
    path: &Path,
    context: &Arc<Context>,
    admin: &AdminServer,
) -> Result<(), RestartError> {
    let failed = |source| RestartError::Door { path: path.to_owned(), source };
    let door = Door::open(path).map_err(failed)?;
    let (context, admin) = (context.clone(), admin.clone());
    let wait = move || {
        while let Ok(channel) = door.accept() {
            match hand_over(&channel, &context, &admin) {
                Ok(()) => {
                    tracing::info!("another process has taken over");
                    admin.lock().unwrap_or_else(PoisonError::into_inner).take();
                    context.wish.send_replace(Wish::Quit);
                    return;
                }
                Err(error) => tracing::warn!(%error, "another process did not take over"),
            }
        }
    };
    let thread = std::thread::Builder::new().name("restart".to_owned()).stack_size(128 * 1024);
    thread.spawn(wait).map(drop).map_err(failed)
}

/// Sends all sockets and waits until they are served.
fn hand_over(channel: &Channel, context: &Context, admin: &AdminServer) -> io::Result<()> {
    channel.patience(Some(PATIENCE))?;
    match receive(channel)? {
        Message::Take { version: VERSION } => {}
        _ => return Err(io::ErrorKind::InvalidData.into()),
    }
    for taken in context.runtime.copy_sockets()? {
        let TakenSockets { listener, address, sockets } = taken;
        let message = Message::Sockets { listener, address };
        for part in sockets.chunks(MAX_DESCRIPTORS) {
            send(channel, &message, part)?;
        }
    }
    let socket = {
        let admin = admin.lock().unwrap_or_else(PoisonError::into_inner);
        admin.as_ref().map(Server::copy_socket).transpose()?
    };
    if let Some(socket) = socket {
        send(channel, &Message::Admin, &[socket])?;
    }
    send(channel, &Message::Sent, &[])?;
    channel.patience(Some(START))?;
    match receive(channel)? {
        Message::Serving => Ok(()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn send(channel: &Channel, message: &Message, sockets: &[TcpListener]) -> io::Result<()> {
    let descriptors: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
    channel.send(&serde_json::to_vec(message)?, &descriptors)
}

fn receive(channel: &Channel) -> io::Result<Message> {
    let (bytes, _) = channel.receive()?;
    if bytes.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&bytes)?)
}
