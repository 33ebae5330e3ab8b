//! `tcp-echo`: answers each line with a greeting before it, on several ports.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::config::Config;
use crate::{server, stop};

/// Longest line answered; a longer one is answered in pieces.
const MAX_LINE: u64 = 64 << 10;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves the ports of the first argument (`9000,9001`) with the greeting of
/// the second until the process is told to stop.
pub(crate) async fn serve(config: &Config) -> anyhow::Result<()> {
    let ports = match config.args.first() {
        Some(list) => parse_ports(list)?,
        None => vec![config.port],
    };
    let greeting = config.args.get(1).map_or("hello", String::as_str);
    let prefix: Arc<[u8]> = format!("{greeting} ").into_bytes().into();
    let mut tasks = JoinSet::new();
    for port in ports {
        let listener = server::listen(port).await?;
        println!("listening on {}", listener.local_addr()?);
        tasks.spawn(accept(listener, Arc::clone(&prefix)));
    }
    // Dropping the set ends the accept loops and what they spawned.
    stop::requested().await
}

fn parse_ports(list: &str) -> anyhow::Result<Vec<u16>> {
    let ports = list
        .split(',')
        .map(|port| port.trim().parse().with_context(|| format!("{port:?} is not a port")))
        .collect::<anyhow::Result<Vec<u16>>>()?;
    ensure!(!ports.is_empty(), "no port to listen on");
    Ok(ports)
}

async fn accept(listener: TcpListener, prefix: Arc<[u8]>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(echo(stream, Arc::clone(&prefix)));
                }
                Err(error) => {
                    eprintln!("accept failed: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn echo(mut stream: TcpStream, prefix: Arc<[u8]>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (read, mut write) = stream.split();
    let mut lines = BufReader::new(read);
    let mut answer = Vec::new();
    loop {
        answer.clear();
        answer.extend_from_slice(&prefix);
        let read = (&mut lines).take(MAX_LINE).read_until(b'\n', &mut answer).await?;
        if read == 0 {
            return Ok(());
        }
        write.write_all(&answer).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_a_comma_list() {
        assert_eq!(parse_ports("9000, 9001").expect("parses"), [9000, 9001]);
        assert!(parse_ports("9000,x").is_err());
    }

    #[tokio::test]
    async fn each_line_comes_back_greeted() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("bound");
        let server = tokio::spawn(accept(listener, Arc::from(&b"one "[..])));
        let mut client = TcpStream::connect(address).await.expect("connects");
        client.write_all(b"a\nb\n").await.expect("writes");
        client.shutdown().await.expect("half-closes");
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.expect("reads");
        assert_eq!(answer, "one a\none b\n");
        server.abort();
    }
}
