//! `POST /v1/exec`: a command in the namespaces of a pod.
//!
//! The request's body names pod and command; the answer switches to the
//! frames of [`crate::frame`].

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONNECTION, UPGRADE};
use axum::http::{StatusCode, request::Parts};
use axum::response::Response;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use super::{Refused, find_pod};
use crate::client::ExecRequest;
use crate::cluster::Cluster;
use crate::frame::{Frame, PROTOCOL};
use crate::process::{Launch, Process};

const MAX_REQUEST_BYTES: usize = 1 << 20;
const CHUNK: usize = 32 << 10;

pub(super) async fn exec(
    State(cluster): State<Arc<Cluster>>,
    request: Request,
) -> Result<Response, Refused> {
    let bad = |message: String| Refused(StatusCode::BAD_REQUEST, message);
    let (mut parts, body) = request.into_parts();
    let upgrade = upgrade_of(&mut parts)
        .ok_or_else(|| bad(format!("exec needs an upgrade to {PROTOCOL}")))?;
    let body = axum::body::to_bytes(body, MAX_REQUEST_BYTES)
        .await
        .map_err(|error| bad(error.to_string()))?;
    let wanted: ExecRequest =
        serde_json::from_slice(&body).map_err(|error| bad(error.to_string()))?;
    let session = start(cluster, wanted).await?;
    tokio::spawn(async move {
        match upgrade.await {
            Ok(stream) => session.run(TokioIo::new(stream)).await,
            Err(error) => {
                tracing::debug!(%error, "an exec client went away");
                session.process.signal(Signal::SIGKILL);
            }
        }
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(CONNECTION, "upgrade")
        .header(UPGRADE, PROTOCOL)
        .body(Body::empty())
        .map_err(|error| bad(error.to_string()))
}

fn upgrade_of(parts: &mut Parts) -> Option<OnUpgrade> {
    let asked = parts.headers.get(UPGRADE).is_some_and(|value| value == PROTOCOL);
    parts.extensions.remove::<OnUpgrade>().filter(|_| asked)
}

async fn start(cluster: Arc<Cluster>, wanted: ExecRequest) -> Result<Session, Refused> {
    let pod = find_pod(&cluster, &wanted.namespace, &wanted.pod)?;
    let Some(container) = pod.container(wanted.container.as_deref()) else {
        let message = format!("container {:?} is not in pod {}", wanted.container, wanted.pod);
        return Err(Refused(StatusCode::BAD_REQUEST, message));
    };
    let failed = |error: io::Error| {
        let program = wanted.command.first().map_or("", String::as_str);
        Refused(
            StatusCode::BAD_REQUEST,
            format!("could not run {program:?} in {}: {error}", wanted.pod),
        )
    };
    let channel = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(io::Error::from);
    let (stdin, to_stdin) = channel().map_err(failed)?;
    let (from_stdout, stdout) = channel().map_err(failed)?;
    let (from_stderr, stderr) = channel().map_err(failed)?;
    let launch = Launch {
        argv: wanted.command.clone(),
        env: container.env(),
        working_dir: None,
        stdin: Some(stdin),
        stdout,
        stderr,
        handed_over: None,
    };
    let reaper = cluster.reaper.clone();
    let started = {
        let pod = Arc::clone(&pod);
        tokio::task::spawn_blocking(move || reaper.start(&pod.sandbox, launch)).await
    };
    let process = started.map_err(io::Error::other).and_then(|started| started).map_err(failed)?;
    Ok(Session { process, to_stdin, from_stdout, from_stderr })
}

/// A running command and its pipes.
struct Session {
    process: Process,
    to_stdin: OwnedFd,
    from_stdout: OwnedFd,
    from_stderr: OwnedFd,
}

impl Session {
    /// Carries frames until the command has ended or the client has gone.
    async fn run(self, stream: TokioIo<hyper::upgrade::Upgraded>) {
        let Self { mut process, to_stdin, from_stdout, from_stderr } = self;
        let (mut reader, mut writer) = tokio::io::split(stream);
        let (frames, outgoing) = mpsc::channel(4);
        let pipes = pipe::Receiver::from_owned_fd(from_stdout).and_then(|stdout| {
            let stderr = pipe::Receiver::from_owned_fd(from_stderr)?;
            Ok((stdout, stderr, pipe::Sender::from_owned_fd(to_stdin)?))
        });
        let Ok((stdout, stderr, stdin)) = pipes else {
            return process.signal(Signal::SIGKILL);
        };
        // They end when no process holds the pipes any more.
        tokio::spawn(pump(stdout, frames.clone(), Frame::Stdout));
        tokio::spawn(pump(stderr, frames, Frame::Stderr));
        let delivered = tokio::select! {
            delivered = forward(outgoing, &mut writer) => delivered,
            () = feed(&mut reader, stdin) => false,
        };
        if !delivered {
            process.signal(Signal::SIGKILL);
        }
        let exit = process.wait().await;
        // The client may be gone.
        let _ = Frame::Exit(exit.code()).write(&mut writer).await;
        let _ = writer.shutdown().await;
    }
}

/// Sends what the command prints; true when all of it was sent.
async fn forward(
    mut frames: mpsc::Receiver<Frame>,
    writer: &mut (impl tokio::io::AsyncWrite + Unpin),
) -> bool {
    while let Some(frame) = frames.recv().await {
        if frame.write(writer).await.is_err() {
            return false;
        }
    }
    true
}

/// Gives the client's input to the command; returns when the client is gone.
async fn feed(reader: &mut (impl tokio::io::AsyncRead + Unpin), stdin: pipe::Sender) {
    let mut stdin = Some(stdin);
    while let Ok(Some(frame)) = Frame::read(reader).await {
        let (Frame::Stdin(bytes), Some(open)) = (frame, &mut stdin) else { continue };
        if bytes.is_empty() || open.write_all(&bytes).await.is_err() {
            // Closed, for the command to see the end.
            stdin = None;
        }
    }
}

async fn pump(mut pipe: pipe::Receiver, frames: mpsc::Sender<Frame>, frame: fn(Vec<u8>) -> Frame) {
    let mut chunk = vec![0; CHUNK];
    while let Ok(read @ 1..) = pipe.read(&mut chunk).await {
        if frames.send(frame(chunk[..read].to_vec())).await.is_err() {
            return;
        }
    }
}
