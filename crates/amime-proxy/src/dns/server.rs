//! Sockets of the DNS proxy.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use amime_xds::istio::nds::NameTable;
use arc_swap::ArcSwapOption;
use hickory_proto::op::ResponseCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::answer::{Decision, Transport, decide, failure};
use super::forward::Upstreams;
use super::table::{LookupTable, Scope};

/// Forwarded queries in flight.
const MAX_FORWARDS: usize = 256;
/// Open TCP connections.
const MAX_TCP: usize = 64;
/// Longest pause between two queries of a TCP connection.
const TCP_IDLE: Duration = Duration::from_secs(10);
/// Longest query over UDP.
const MAX_UDP_QUERY: usize = 4096;

/// Settings of [`DnsProxy`].
#[derive(Clone, Debug)]
pub(crate) struct DnsOptions {
    /// Where to listen, UDP and TCP. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Namespace of the workload, for short names.
    pub namespace: String,
    /// Domain of services, as `svc.cluster.local`.
    pub domain: String,
    /// Search domains of the workload.
    pub search: Vec<String>,
    /// Resolvers for names outside the mesh.
    pub upstreams: Vec<SocketAddr>,
    /// Mark of our own packets.
    pub mark: Option<u32>,
}

/// Why the DNS proxy does not run.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// A socket cannot be bound.
    #[error("DNS proxy cannot listen on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The running proxy; dropping it stops it.
#[derive(Debug)]
pub(crate) struct DnsProxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    table: ArcSwapOption<LookupTable>,
    scope: Scope,
    upstreams: Upstreams,
    forwards: Arc<Semaphore>,
}

impl DnsProxy {
    /// Binds and serves on the current runtime.
    ///
    /// # Errors
    /// When the address is taken.
    pub(crate) async fn start(options: DnsOptions) -> Result<Self, DnsError> {
        let (udp, tcp, address) = bind_both(options.listen)
            .await
            .map_err(|source| DnsError::Bind { address: options.listen, source })?;
        let shared = Arc::new(Shared {
            table: ArcSwapOption::empty(),
            scope: Scope {
                namespace: options.namespace,
                domain: options.domain,
                search: options.search,
            },
            upstreams: Upstreams { servers: options.upstreams, mark: options.mark },
            forwards: Arc::new(Semaphore::new(MAX_FORWARDS)),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_udp(Arc::new(udp), shared.clone()));
        tasks.spawn(serve_tcp(tcp, shared.clone()));
        Ok(Self { shared, address, _tasks: tasks })
    }

    /// The address bound.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Puts a table in force.
    pub(crate) fn set_table(&self, table: &NameTable) {
        let table = LookupTable::build(table, &self.shared.scope);
        tracing::debug!(names = table.len(), "name table in force");
        self.shared.table.store(Some(Arc::new(table)));
    }

    /// Whether a table has arrived; the agent knows it from its stream.
    #[cfg(test)]
    pub(crate) fn is_synced(&self) -> bool {
        self.shared.table.load().is_some()
    }
}

/// Binds both transports to one port. A port of the kernel's choice is free for
/// one of them only, so another is tried when the second finds it taken.
async fn bind_both(listen: SocketAddr) -> io::Result<(UdpSocket, TcpListener, SocketAddr)> {
    const TRIES: usize = 16;
    let mut tries = if listen.port() == 0 { TRIES } else { 1 };
    loop {
        let tcp = TcpListener::bind(listen).await?;
        let address = tcp.local_addr()?;
        tries -= 1;
        match UdpSocket::bind(address).await {
            Ok(udp) => return Ok((udp, tcp, address)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
            Err(error) => return Err(error),
        }
    }
}

impl Shared {
    /// The reply to a packet; `None` if it deserves none.
    async fn answer(&self, packet: &[u8], transport: Transport) -> Option<Vec<u8>> {
        match self.decide(packet, transport) {
            Decision::Reply(reply) => Some(reply),
            Decision::Drop => None,
            Decision::Forward => self.forward(packet, transport).await,
        }
    }

    fn decide(&self, packet: &[u8], transport: Transport) -> Decision {
        decide(packet, self.table.load().as_deref(), transport)
    }

    async fn forward(&self, packet: &[u8], transport: Transport) -> Option<Vec<u8>> {
        if self.upstreams.servers.is_empty() {
            // The table is all there is to know.
            return failure(packet, ResponseCode::NXDomain, transport);
        }
        let Ok(_permit) = self.forwards.try_acquire() else {
            return failure(packet, ResponseCode::ServFail, transport);
        };
        match self.upstreams.exchange(packet, transport).await {
            Ok(reply) => Some(reply),
            Err(error) => {
                tracing::debug!(%error, "upstream resolvers did not answer");
                failure(packet, ResponseCode::ServFail, transport)
            }
        }
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, shared: Arc<Shared>) {
    let mut buffer = vec![0; MAX_UDP_QUERY];
    let mut forwards = JoinSet::new();
    loop {
        while forwards.try_join_next().is_some() {}
        let (len, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // An ICMP error of an earlier reply; the socket still works.
            Err(_) => continue,
        };
        let packet = &buffer[..len];
        match shared.decide(packet, Transport::Udp) {
            Decision::Drop => {}
            Decision::Reply(reply) => send(&socket, &reply, from).await,
            Decision::Forward => {
                let (socket, shared, packet) = (socket.clone(), shared.clone(), packet.to_vec());
                forwards.spawn(async move {
                    if let Some(reply) = shared.forward(&packet, Transport::Udp).await {
                        send(&socket, &reply, from).await;
                    }
                });
            }
        }
    }
}

async fn send(socket: &UdpSocket, reply: &[u8], to: SocketAddr) {
    if let Err(error) = socket.send_to(reply, to).await {
        tracing::debug!(%error, %to, "DNS reply not sent");
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>) {
    let slots = Arc::new(Semaphore::new(MAX_TCP));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        // The semaphore is never closed.
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let shared = shared.clone();
                connections.spawn(async move {
                    // A broken connection is the client's affair.
                    let _ = serve_stream(stream, &shared).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "DNS connection not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn serve_stream(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    loop {
        let read = async {
            let len = stream.read_u16().await?;
            let mut packet = vec![0; usize::from(len)];
            stream.read_exact(&mut packet).await?;
            io::Result::Ok(packet)
        };
        let packet = timeout(TCP_IDLE, read).await.map_err(|_| io::ErrorKind::TimedOut)??;
        let Some(reply) = shared.answer(&packet, Transport::Tcp).await else {
            return Ok(());
        };
        let len = u16::try_from(reply.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        let write = async {
            stream.write_all(&len.to_be_bytes()).await?;
            stream.write_all(&reply).await
        };
        timeout(TCP_IDLE, write).await.map_err(|_| io::ErrorKind::TimedOut)??;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use amime_xds::istio::nds::NameInfo;
    use hickory_proto::op::{Message, MessageType, OpCode, Query};
    use hickory_proto::rr::{Name, RecordType};

    fn options(upstreams: Vec<SocketAddr>) -> DnsOptions {
        DnsOptions {
            listen: ([127, 0, 0, 1], 0).into(),
            namespace: "default".into(),
            domain: "svc.cluster.local".into(),
            search: vec![],
            upstreams,
            mark: None,
        }
    }

    fn table(host: &str, ip: &str) -> NameTable {
        let info = NameInfo { ips: vec![ip.into()], ..NameInfo::default() };
        NameTable { table: [(host.to_owned(), info)].into() }
    }

    async fn ask(proxy: &DnsProxy, name: &str, transport: Transport) -> (ResponseCode, String) {
        let mut query = Message::new(9, MessageType::Query, OpCode::Query);
        query.add_query(Query::query(Name::from_ascii(name).expect("name"), RecordType::A));
        let query = query.to_vec().expect("encodes");
        let upstreams = Upstreams { servers: vec![proxy.address()], mark: None };
        let reply = upstreams.exchange(&query, transport).await.expect("reply");
        let reply = Message::from_vec(&reply).expect("parses");
        assert_eq!(reply.metadata.id, 9);
        let data = reply.answers.first().map_or_else(String::new, |a| a.data.to_string());
        (reply.metadata.response_code, data)
    }

    #[tokio::test]
    async fn both_transports_answer_and_forward() {
        let upstream = DnsProxy::start(options(vec![])).await.expect("upstream starts");
        upstream.set_table(&table("example.org", "192.0.2.1"));
        let proxy = DnsProxy::start(options(vec![upstream.address()])).await.expect("starts");
        let servfail = (ResponseCode::ServFail, String::new());
        assert_eq!(ask(&proxy, "a.mesh.", Transport::Udp).await, servfail);
        assert!(!proxy.is_synced());
        proxy.set_table(&table("a.mesh", "10.0.0.1"));
        assert!(proxy.is_synced());
        for transport in [Transport::Udp, Transport::Tcp] {
            let own = ask(&proxy, "a.mesh.", transport).await;
            assert_eq!(own, (ResponseCode::NoError, "10.0.0.1".into()));
            let other = ask(&proxy, "example.org.", transport).await;
            assert_eq!(other, (ResponseCode::NoError, "192.0.2.1".into()));
            let unknown = ask(&proxy, "nowhere.test.", transport).await;
            assert_eq!(unknown.0, ResponseCode::NXDomain);
        }
    }
}
