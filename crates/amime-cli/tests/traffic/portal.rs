//! The program of the suite's pods: a door between a pod's network and the
//! test process.
//!
//! It dials from within the pod what the test asks for over a Unix socket,
//! and hands over to the test each connection that comes to the pod's ports.
//! So clients and servers are the test's own code, while their bytes go
//! through the network of pods.
//!
//! Invariant: it passes on bytes and ends of streams and knows no protocol.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};

/// First argument that makes the test program a portal.
pub(crate) const ARGUMENT: &str = "portal";
/// Longest line before the bytes of a connection.
const LONGEST_LINE: usize = 1024;

/// Socket on which the portal of a pod takes orders.
pub(crate) fn socket_of(dir: &Path, pod: &str) -> PathBuf {
    dir.join(format!("{pod}.sock"))
}

/// Socket on which the test takes connections of all pods.
pub(crate) fn servers_socket(dir: &Path) -> PathBuf {
    dir.join("servers")
}

/// Runs until it is killed; `args` are the folder, the pod's name and its ports.
pub(crate) fn run(args: &[String]) -> ExitCode {
    let [dir, pod, ports @ ..] = args else { return ExitCode::FAILURE };
    let ports = ports.first().map_or("", String::as_str);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    match runtime.block_on(serve(Path::new(dir), pod, ports)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(dir: &Path, pod: &str, ports: &str) -> anyhow::Result<()> {
    for port in ports.split(',').filter(|port| !port.is_empty()) {
        let port: u16 = port.trim().parse().context("ports are numbers")?;
        let listener = TcpListener::bind(("0.0.0.0", port)).await?;
        let (servers, pod) = (servers_socket(dir), pod.to_owned());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(hand_over(stream, servers.clone(), pod.clone()));
            }
        });
    }
    // As applications do that let requests end: who sends more has time to
    // learn that the pod is going. The kubelet kills it in the end.
    let mut told_to_end = signal(SignalKind::terminate())?;
    tokio::spawn(async move { while told_to_end.recv().await.is_some() {} });
    let socket = socket_of(dir, pod);
    // A container that starts anew finds the socket of the one before.
    std::fs::remove_file(&socket).ok();
    let orders = UnixListener::bind(&socket)?;
    loop {
        let (stream, _) = orders.accept().await?;
        tokio::spawn(async move { obey(stream).await.ok() });
    }
}

async fn hand_over(mut stream: TcpStream, servers: PathBuf, pod: String) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let (local, peer) = (stream.local_addr()?, stream.peer_addr()?);
    let mut server = UnixStream::connect(servers).await?;
    server.write_all(format!("{pod} {local} {peer}\n").as_bytes()).await?;
    tokio::io::copy_bidirectional(&mut stream, &mut server).await?;
    Ok(())
}

/// `dial HOST:PORT` connects; `resolve HOST` answers with addresses.
async fn obey(mut order: UnixStream) -> anyhow::Result<()> {
    let line = read_line(&mut order).await?;
    match line.split_once(' ') {
        Some(("resolve", host)) => {
            let answer = match tokio::net::lookup_host((host, 0)).await {
                Ok(found) => {
                    let found: Vec<_> = found.map(|address| address.ip().to_string()).collect();
                    format!("ok {}\n", found.join(" "))
                }
                Err(error) => format!("failed {error}\n"),
            };
            order.write_all(answer.as_bytes()).await?;
        }
        Some(("dial", target)) => match TcpStream::connect(target).await {
            Ok(mut stream) => {
                stream.set_nodelay(true)?;
                let (local, peer) = (stream.local_addr()?, stream.peer_addr()?);
                order.write_all(format!("ok {local} {peer}\n").as_bytes()).await?;
                tokio::io::copy_bidirectional(&mut order, &mut stream).await?;
            }
            Err(error) => order.write_all(format!("failed {error}\n").as_bytes()).await?,
        },
        _ => order.write_all(b"failed unknown order\n").await?,
    }
    Ok(())
}

/// The first line, and not a byte more.
pub(crate) async fn read_line(stream: &mut (impl AsyncRead + Unpin)) -> anyhow::Result<String> {
    let mut line = Vec::new();
    loop {
        match stream.read_u8().await? {
            b'\n' => return Ok(String::from_utf8(line)?),
            byte if line.len() < LONGEST_LINE => line.push(byte),
            _ => anyhow::bail!("a line without end"),
        }
    }
}
