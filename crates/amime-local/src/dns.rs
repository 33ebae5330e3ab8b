//! The name server of pods.
//!
//! Knows the names of services and pods; everything else does not exist,
//! because no name outside of the mesh could be reached from a pod. Sidecars
//! ask it for what they do not know themselves.
//!
//! Spec: the Kubernetes DNS specification; RFC 1035.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};

/// Seconds that an answer may be kept.
const TTL_S: u32 = 5;
/// Aliases followed within one answer.
const MOST_ALIASES: usize = 8;
/// Largest answer over UDP without EDNS.
const CLASSIC_UDP: usize = 512;
const MOST_TCP_CONNECTIONS: usize = 64;
const TCP_IDLE: Duration = Duration::from_secs(5);

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Addresses(Vec<Ipv4Addr>),
    /// Another name.
    Alias(String),
}

/// All names, lower case, without the last dot.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Names {
    names: BTreeMap<String, Answer>,
}

impl Names {
    pub(crate) fn new(names: BTreeMap<String, Answer>) -> Self {
        Self { names }
    }

    /// Addresses of a name, through aliases.
    #[cfg(test)]
    pub(crate) fn addresses(&self, name: &str) -> Option<Vec<Ipv4Addr>> {
        self.chain(name).and_then(|(_, addresses)| addresses)
    }

    /// The aliases on the way and the addresses at its end, if it has one.
    fn chain(&self, name: &str) -> Option<(Vec<&str>, Option<Vec<Ipv4Addr>>)> {
        let mut aliases = Vec::new();
        let mut answer = self.names.get(name)?;
        loop {
            match answer {
                Answer::Addresses(addresses) => return Some((aliases, Some(addresses.clone()))),
                Answer::Alias(next) => {
                    aliases.push(next.as_str());
                    match self.names.get(next) {
                        Some(found) if aliases.len() < MOST_ALIASES => answer = found,
                        _ => return Some((aliases, None)),
                    }
                }
            }
        }
    }

    /// The reply to a packet; none if it deserves none.
    fn reply(&self, packet: &[u8]) -> Option<Message> {
        let query = match Message::from_vec(packet) {
            Ok(query) => query,
            Err(_) => {
                let id = u16::from_be_bytes([*packet.first()?, *packet.get(1)?]);
                // A reply that does not parse is not answered: two servers
                // would talk for ever.
                let is_reply = packet.get(2)? & 0x80 != 0;
                let fault = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
                return (!is_reply).then_some(fault);
            }
        };
        if query.metadata.message_type != MessageType::Query {
            return None;
        }
        let mut reply = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
        reply.metadata = Metadata::response_from_request(&query.metadata);
        reply.metadata.authoritative = true;
        reply.metadata.recursion_available = true;
        if query.metadata.op_code != OpCode::Query {
            reply.metadata.response_code = ResponseCode::NotImp;
            return Some(reply);
        }
        let [question] = query.queries.as_slice() else {
            reply.metadata.response_code = ResponseCode::FormErr;
            return Some(reply);
        };
        reply.add_query(question.clone());
        let name = question.name.to_ascii().trim_end_matches('.').to_ascii_lowercase();
        let Some((aliases, addresses)) = self.chain(&name) else {
            reply.metadata.response_code = ResponseCode::NXDomain;
            return Some(reply);
        };
        let mut owner = question.name.clone();
        for alias in aliases {
            let Ok(target) = Name::from_ascii(format!("{alias}.")) else { return Some(reply) };
            let data = RData::CNAME(CNAME(target.clone()));
            reply.add_answer(Record::from_rdata(owner, TTL_S, data));
            owner = target;
        }
        if question.query_type == RecordType::A {
            for address in addresses.unwrap_or_default() {
                let data = RData::A(A(address));
                reply.add_answer(Record::from_rdata(owner.clone(), TTL_S, data));
            }
        }
        Some(reply)
    }
}

/// Answers on UDP and TCP until the task is dropped.
pub(crate) async fn serve(
    udp: UdpSocket,
    tcp: TcpListener,
    names: watch::Receiver<Arc<Names>>,
) -> io::Result<()> {
    tokio::try_join!(serve_udp(udp, names.clone()), serve_tcp(tcp, names)).map(|_| ())
}

async fn serve_udp(socket: UdpSocket, names: watch::Receiver<Arc<Names>>) -> io::Result<()> {
    let mut packet = [0; 4096];
    loop {
        // An ICMP error of an earlier answer may come up here.
        let Ok((length, from)) = socket.recv_from(&mut packet).await else { continue };
        let names = Arc::clone(&names.borrow());
        let Some(reply) = names.reply(&packet[..length]) else { continue };
        let Ok(mut bytes) = reply.to_vec() else { continue };
        if bytes.len() > CLASSIC_UDP {
            let Ok(truncated) = reply.truncate().to_vec() else { continue };
            bytes = truncated;
        }
        send(&socket, &bytes, from).await;
    }
}

async fn send(socket: &UdpSocket, bytes: &[u8], to: SocketAddr) {
    if let Err(error) = socket.send_to(bytes, to).await {
        tracing::debug!(%to, %error, "a DNS answer was not sent");
    }
}

async fn serve_tcp(listener: TcpListener, names: watch::Receiver<Arc<Names>>) -> io::Result<()> {
    let slots = Arc::new(Semaphore::new(MOST_TCP_CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return Ok(()) };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let names = names.clone();
        tokio::spawn(async move {
            let _slot = slot;
            // Clients come and go as they like.
            let _ = answer_stream(stream, names).await;
        });
    }
}

async fn answer_stream(
    mut stream: TcpStream,
    names: watch::Receiver<Arc<Names>>,
) -> io::Result<()> {
    loop {
        let length = tokio::time::timeout(TCP_IDLE, stream.read_u16()).await??;
        let mut packet = vec![0; usize::from(length)];
        tokio::time::timeout(TCP_IDLE, stream.read_exact(&mut packet)).await??;
        let names = Arc::clone(&names.borrow());
        let Some(reply) = names.reply(&packet) else { return Ok(()) };
        let bytes = reply.to_vec().map_err(io::Error::other)?;
        let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
        stream.write_u16(length).await?;
        stream.write_all(&bytes).await?;
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;

    use super::*;

    #[track_caller]
    fn check(name: &str, kind: RecordType, want: &str) {
        let address = Answer::Addresses(vec![Ipv4Addr::new(10, 96, 0, 5)]);
        let names = Names::new(BTreeMap::from([
            ("web.d.svc.cluster.local".to_owned(), address),
            ("out.d.svc.cluster.local".to_owned(), Answer::Alias("web.d.svc.cluster.local".into())),
            ("ext.d.svc.cluster.local".to_owned(), Answer::Alias("example.com".into())),
            (
                "loop.d.svc.cluster.local".to_owned(),
                Answer::Alias("loop.d.svc.cluster.local".into()),
            ),
        ]));
        let mut query = Message::new(7, MessageType::Query, OpCode::Query);
        query.add_query(Query::query(Name::from_ascii(name).expect("name"), kind));
        let reply = names.reply(&query.to_vec().expect("encoded")).expect("answered");
        assert_eq!(reply.metadata.id, 7);
        let answers: Vec<_> = reply.answers.iter().map(|record| record.to_string()).collect();
        let got = format!("{:?} {}", reply.metadata.response_code, answers.join("; "));
        assert_eq!(got, want);
    }

    #[test]
    fn names_are_found_whatever_their_case() {
        check(
            "Web.D.svc.cluster.local.",
            RecordType::A,
            "NoError Web.D.svc.cluster.local. 5 IN A 10.96.0.5",
        );
        check("web.d.svc.cluster.local.", RecordType::AAAA, "NoError ");
        check("example.com.", RecordType::A, "NXDomain ");
    }

    #[test]
    fn aliases_are_followed_but_not_in_circles() {
        check(
            "out.d.svc.cluster.local.",
            RecordType::A,
            "NoError out.d.svc.cluster.local. 5 IN CNAME web.d.svc.cluster.local.; \
             web.d.svc.cluster.local. 5 IN A 10.96.0.5",
        );
        check(
            "ext.d.svc.cluster.local.",
            RecordType::A,
            "NoError ext.d.svc.cluster.local. 5 IN CNAME example.com.",
        );
        let names = Names::new(BTreeMap::from([("a".to_owned(), Answer::Alias("a".into()))]));
        assert_eq!(names.addresses("a"), None);
    }

    #[test]
    fn garbage_is_refused_and_replies_are_not_answered() {
        let names = Names::default();
        assert!(names.reply(&[1]).is_none());
        let fault = names.reply(&[1, 2, 0, 0, 9, 9, 9, 9]).expect("a query, if a broken one");
        assert_eq!(fault.metadata.response_code, ResponseCode::FormErr);
        assert!(names.reply(&[1, 2, 0x80, 0, 9, 9, 9, 9]).is_none());
    }
}
