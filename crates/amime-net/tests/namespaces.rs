//! Links, rules and original destinations with real packets, in namespaces
//! that the tests make for themselves: as root in plain ones, otherwise
//! inside of a user namespace.
//!
//! Each test executes this binary again as PID 1 of fresh namespaces and runs
//! its body there.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Duration;

use amime_net::link::{Links, Route};
use amime_net::namespace::{
    IsolatedCommand, Sandbox, SandboxSpec, SpawnError, detach_mounts, in_netns, spawn_isolated,
};
use amime_net::nft::{
    Action, BaseChain, Batch, ChainType, Family, Hook, L4, Match, Rule, UNTRACKED,
};
use amime_net::socket;

const INSIDE: &str = "AMIME_NET_TEST_INSIDE";
const ROUTER: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// Runs `body` in fresh namespaces; the test passes if it does not panic.
#[track_caller]
fn isolated(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        detach_mounts().expect("own mounts");
        Links::open().expect("socket").set_up("lo").expect("lo");
        return body();
    }
    let mut env: Vec<_> = std::env::vars_os().collect();
    env.push((INSIDE.into(), "1".into()));
    let command = IsolatedCommand {
        program: std::env::current_exe().expect("own path"),
        args: ["--exact", test, "--nocapture", "--test-threads=1"].map(Into::into).to_vec(),
        env,
        user_namespace: !nix::unistd::Uid::effective().is_root(),
        die_with_parent_thread: true,
        ..IsolatedCommand::default()
    };
    let child = spawn_isolated(&command).expect("namespaces are allowed on this machine");
    assert_eq!(child.wait().expect("waited"), 0, "{test} failed inside");
}

fn pod_address(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, 0, n)
}

/// A pod as the local platform makes it: a /32 on a routed veth pair.
fn pod(n: u8) -> Sandbox {
    let hostname = format!("pod-{n}");
    let (sandbox, _) =
        Sandbox::create(&SandboxSpec { hostname, ..SandboxSpec::default() }).expect("sandbox");
    let host_end = format!("veth{n}");
    let mut links = Links::open().expect("socket");
    links.add_veth(&host_end, "eth0", sandbox.net()).expect("veth");
    links.add_address(&host_end, ROUTER, 32).expect("address");
    links.set_up(&host_end).expect("up");
    in_netns(sandbox.net(), || {
        let mut links = Links::open().expect("socket");
        links.add_address("eth0", pod_address(n), 32).expect("address");
        links.set_up("eth0").expect("up");
        let default = Route {
            destination: (Ipv4Addr::UNSPECIFIED, 0),
            interface: "eth0",
            via: Some(ROUTER),
            source: None,
        };
        links.add_route(&default).expect("default route");
    })
    .expect("entered");
    let to_pod = Route {
        destination: (pod_address(n), 32),
        interface: &host_end,
        via: None,
        source: Some(ROUTER),
    };
    links.add_route(&to_pod).expect("route");
    sandbox
}

/// A server in the pod that answers each connection with `name`.
fn serve(pod: &Sandbox, name: &'static str, port: u16) {
    let listener = in_netns(pod.net(), || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
        .expect("entered")
        .expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.expect("accepted").write_all(name.as_bytes());
        }
    });
}

fn ask(pod: &Sandbox, address: SocketAddr) -> io::Result<String> {
    in_netns(pod.net(), || {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })
    .expect("entered")
}

fn base(name: &str, hook: Hook, priority: i32) -> BaseChain<'_> {
    BaseChain { name, kind: ChainType::Nat, hook, priority }
}

fn service_rules(vip: Ipv4Addr, targets: Vec<SocketAddrV4>) -> Batch {
    let hairpin = targets.iter().map(|target| (*target.ip(), *target.ip())).collect();
    let mut batch = Batch::replace_table(Family::Ip, "services");
    batch.base_chain(base("prerouting", Hook::Prerouting, -100));
    batch.base_chain(base("postrouting", Hook::Postrouting, 100));
    let when = vec![Match::Destination(vip, 32), Match::DestinationPort(L4::Tcp, vec![80])];
    batch.rule("prerouting", &Rule::new("echo", when, Action::Dnat(targets)).counted());
    let when = vec![Match::SourceAndDestination(hairpin)];
    batch.rule("postrouting", &Rule::new("a pod calls itself", when, Action::Masquerade));
    batch
}

#[test]
fn service_addresses_spread_over_pods_and_back_to_the_caller() {
    isolated("service_addresses_spread_over_pods_and_back_to_the_caller", || {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forwarding");
        let (a, b, client) = (pod(1), pod(2), pod(3));
        serve(&a, "a", 8080);
        serve(&b, "b", 9090);
        let direct = SocketAddr::from((pod_address(1), 8080));
        assert_eq!(ask(&client, direct).expect("routed"), "a");

        let vip = Ipv4Addr::new(10, 96, 1, 1);
        let targets =
            vec![SocketAddrV4::new(pod_address(1), 8080), SocketAddrV4::new(pod_address(2), 9090)];
        service_rules(vip, targets).commit().expect("applied");
        let service = SocketAddr::from((vip, 80));
        for asking in [&client, &a] {
            let answers: Vec<_> =
                (0..40).map(|_| ask(asking, service).expect("translated")).collect();
            assert!(answers.iter().any(|answer| answer == "a"), "{answers:?}");
            assert!(answers.iter().any(|answer| answer == "b"), "{answers:?}");
        }

        service_rules(vip, vec![SocketAddrV4::new(pod_address(2), 9090)]).commit().expect("again");
        assert!((0..10).all(|_| ask(&client, service).expect("translated") == "b"));
    });
}

fn interception(outbound: u16, inbound: u16) -> Batch {
    let mut batch = Batch::replace_table(Family::Inet, "interception");
    batch.base_chain(base("output", Hook::Output, -100));
    batch.base_chain(base("prerouting", Hook::Prerouting, -100));
    let rule = |purpose: &str, when, action| Rule::new(purpose, when, action);
    batch.rule("output", &rule("the proxy itself", vec![Match::Mark(1337)], Action::Return));
    let loopback = vec![Match::Destination(Ipv4Addr::LOCALHOST, 8)];
    batch.rule("output", &rule("loopback", loopback, Action::Return));
    let any_tcp = vec![Match::Protocol(L4::Tcp)];
    batch.rule("output", &rule("outbound", any_tcp.clone(), Action::Redirect(outbound)));
    let health = vec![Match::DestinationPort(L4::Tcp, vec![15020, 15021])];
    batch.rule("prerouting", &rule("health ports", health, Action::Return));
    batch.rule("prerouting", &rule("inbound", any_tcp, Action::Redirect(inbound)));
    batch
}

/// Leads look-ups to a proxy, whose own ones go on.
fn names(proxy: u16) -> Batch {
    let mut batch = Batch::replace_table(Family::Inet, "names");
    let raw = |name, hook| BaseChain { name, kind: ChainType::Filter, hook, priority: UNTRACKED };
    batch.base_chain(raw("asked", Hook::Output));
    batch.base_chain(raw("answered", Hook::Prerouting));
    batch.base_chain(base("output", Hook::Output, -100));
    let rule = |purpose: &str, when, action| Rule::new(purpose, when, action);
    let asks = Match::DestinationPort(L4::Udp, vec![53]);
    let own = vec![Match::Mark(1337), asks.clone()];
    batch.rule("asked", &rule("its own questions", own, Action::Untrack));
    let answers = vec![Match::SourcePort(L4::Udp, 53)];
    batch.rule("answered", &rule("answers", answers, Action::Untrack));
    batch.rule("output", &rule("the proxy itself", vec![Match::Mark(1337)], Action::Return));
    batch.rule("output", &rule("names", vec![asks], Action::Redirect(proxy)));
    batch
}

#[test]
fn a_question_is_led_to_the_proxy_from_a_port_that_the_proxy_asked_from() {
    isolated("a_question_is_led_to_the_proxy_from_a_port_that_the_proxy_asked_from", || {
        let answer = |socket: UdpSocket, name: &'static str| {
            std::thread::spawn(move || {
                let mut question = [0; 16];
                while let Ok((_, from)) = socket.recv_from(&mut question) {
                    socket.send_to(name.as_bytes(), from).expect("sent");
                }
            });
        };
        let pod = pod(1);
        answer(UdpSocket::bind((ROUTER, 53)).expect("bound"), "server");
        let ask = |mark: Option<u32>| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
            mark.map_or(Ok(()), |mark| socket::set_mark(&socket, mark))?;
            socket.bind(&SocketAddr::from(([0, 0, 0, 0], 40000)).into())?;
            let socket = UdpSocket::from(socket);
            socket.set_read_timeout(Some(Duration::from_secs(5)))?;
            socket.connect((ROUTER, 53))?;
            socket.send(b"?")?;
            let mut heard = [0; 16];
            let len = socket.recv(&mut heard)?;
            io::Result::Ok(String::from_utf8_lossy(&heard[..len]).into_owned())
        };
        let heard = in_netns(pod.net(), || {
            let proxy = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            names(proxy.local_addr()?.port()).commit().map_err(io::Error::other)?;
            answer(proxy, "proxy");
            io::Result::Ok([ask(Some(1337))?, ask(None)?, ask(Some(1337))?, ask(None)?])
        });
        let heard = heard.expect("entered").expect("answered");
        assert_eq!(heard, ["server", "proxy", "server", "proxy"]);
    });
}

#[test]
fn redirected_connections_know_where_they_were_going() {
    isolated("redirected_connections_know_where_they_were_going", || {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forwarding");
        let (app, client) = (pod(1), pod(2));
        let listen = || {
            let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
            let outbound = TcpListener::bind(any).expect("bound");
            let inbound = TcpListener::bind(any).expect("bound");
            let port = |listener: &TcpListener| listener.local_addr().expect("bound").port();
            interception(port(&outbound), port(&inbound)).commit().expect("applied");
            (outbound, inbound)
        };
        let (outbound, inbound) = in_netns(app.net(), listen).expect("entered");

        let destination = SocketAddr::from(([10, 9, 8, 7], 4321));
        let _dialed = in_netns(app.net(), || TcpStream::connect(destination))
            .expect("entered")
            .expect("redirected");
        let (accepted, _) = outbound.accept().expect("accepted");
        assert_eq!(socket::original_dst(&accepted).expect("known"), destination);

        let pod_port = SocketAddr::from((pod_address(1), 9080));
        let _dialed = in_netns(client.net(), || TcpStream::connect(pod_port))
            .expect("entered")
            .expect("redirected");
        let (accepted, from) = inbound.accept().expect("accepted");
        assert_eq!(socket::original_dst(&accepted).expect("known"), pod_port);
        assert_eq!(from.ip(), IpAddr::V4(pod_address(2)));

        let health = SocketAddr::from((pod_address(1), 15021));
        let refused = ask(&client, health).expect_err("nothing listens there");
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);

        serve(&client, "client", 7000);
        let marked = in_netns(app.net(), || {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            socket::set_mark(&socket, 1337)?;
            socket.connect(&SocketAddr::from((pod_address(2), 7000)).into())?;
            let mut answer = String::new();
            TcpStream::from(socket).read_to_string(&mut answer)?;
            io::Result::Ok(answer)
        });
        assert_eq!(marked.expect("entered").expect("not intercepted"), "client");
    });
}

#[test]
fn nft_reads_our_rules_as_we_meant_them() {
    isolated("nft_reads_our_rules_as_we_meant_them", || {
        let targets = ["10.244.0.1:8080", "10.244.0.2:9090"];
        let targets = targets.map(|target| target.parse().expect("address")).to_vec();
        service_rules(Ipv4Addr::new(10, 96, 1, 1), targets).commit().expect("services");
        interception(15001, 15006).commit().expect("interception");
        names(15053).commit().expect("names");
        // The rules are in force either way; their text can be compared only
        // where the program is installed.
        let Ok(output) = Command::new("nft").args(["list", "ruleset"]).output() else { return };
        // Releases of the program differ in this word.
        let listing = String::from_utf8_lossy(&output.stdout).replace("dnat ip to", "dnat to");
        for line in [
            "type nat hook prerouting priority dstnat; policy accept;",
            "ip daddr 10.96.1.1 tcp dport 80 counter packets 0 bytes 0 dnat to numgen random mod 2 map { 0 : 10.244.0.1 . 8080, 1 : 10.244.0.2 . 9090 } comment \"echo\"",
            "ip saddr . ip daddr { 10.244.0.1 . 10.244.0.1, 10.244.0.2 . 10.244.0.2 } masquerade comment \"a pod calls itself\"",
            "meta mark 0x00000539 return comment \"the proxy itself\"",
            "ip daddr 127.0.0.0/8 return comment \"loopback\"",
            "meta l4proto tcp redirect to :15001 comment \"outbound\"",
            "tcp dport { 15020, 15021 } return comment \"health ports\"",
            "meta l4proto tcp redirect to :15006 comment \"inbound\"",
            "meta mark 0x00000539 udp dport 53 notrack comment \"its own questions\"",
            "udp sport 53 notrack comment \"answers\"",
        ] {
            assert!(listing.contains(line), "missing {line:?} in\n{listing}");
        }
    });
}

#[test]
fn a_refused_rule_is_named_and_nothing_of_its_batch_applies() {
    isolated("a_refused_rule_is_named_and_nothing_of_its_batch_applies", || {
        let mut batch = Batch::replace_table(Family::Ip, "t");
        batch.base_chain(base("c", Hook::Prerouting, -100));
        batch.rule("c", &Rule::new("good", vec![], Action::Accept));
        batch.rule("missing", &Rule::new("lost", vec![], Action::Accept));
        let error = batch.commit().expect_err("no such chain");
        assert!(error.to_string().contains("\"lost\" to t missing"), "{error}");
        let mut probe = Batch::replace_table(Family::Ip, "t2");
        probe.base_chain(base("c", Hook::Prerouting, -100));
        probe.commit().expect("the socket still works");
        if let Ok(output) = Command::new("nft").args(["list", "tables"]).output() {
            assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "table ip t2");
        }
    });
}

#[test]
fn a_sandbox_has_its_own_name_files_and_network() {
    isolated("a_sandbox_has_its_own_name_files_and_network", || {
        let dir = tempfile::tempdir().expect("directory");
        let ours = dir.path().join("hosts");
        std::fs::write(&ours, "10.0.0.1 only-here\n").expect("written");
        let missing = dir.path().join("missing");
        let spec = SandboxSpec {
            hostname: "reviews-v1".into(),
            binds: vec![(ours.clone(), "/etc/hosts".into()), (ours, missing.clone())],
        };
        let (sandbox, skipped) = Sandbox::create(&spec).expect("sandbox");
        assert_eq!(skipped, [missing]);
        let script = "uname -n; cat /etc/hosts; cat /proc/net/dev | wc -l";
        let output = sandbox
            .enter(|| Command::new("/bin/sh").args(["-c", script]).output())
            .expect("entered")
            .expect("ran");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(text, "reviews-v1\n10.0.0.1 only-here\n3\n");
        assert!(!std::fs::read_to_string("/etc/hosts").unwrap_or_default().contains("only-here"));
    });
}

#[test]
fn the_isolated_process_is_root_and_first() {
    isolated("the_isolated_process_is_root_and_first", || {
        assert_eq!(std::process::id(), 1);
        assert!(nix::unistd::Uid::effective().is_root());
    });
}

#[test]
fn everything_dies_with_the_thread_that_started_it() {
    let (mut alive, theirs) = std::os::unix::net::UnixStream::pair().expect("pair");
    let child = std::thread::spawn(move || {
        // The grandchild holds `theirs` open as its standard input.
        let script = format!("sleep 1000 <&{} & wait", theirs.as_raw_fd());
        let command = IsolatedCommand {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            env: std::env::vars_os().collect(),
            keep: vec![theirs.as_raw_fd()],
            stderr: None,
            user_namespace: !nix::unistd::Uid::effective().is_root(),
            die_with_parent_thread: true,
        };
        spawn_isolated(&command).expect("started")
    })
    .join()
    .expect("joined");
    assert_eq!(child.wait().expect("waited"), 128 + 9);
    alive.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
    assert_eq!(alive.read(&mut [0]).expect("closed, not timed out"), 0);
}

#[test]
fn a_program_that_is_not_there_is_an_error_of_the_caller() {
    let command = IsolatedCommand {
        program: "/nonexistent".into(),
        user_namespace: !nix::unistd::Uid::effective().is_root(),
        ..IsolatedCommand::default()
    };
    let error = spawn_isolated(&command).expect_err("no program");
    assert!(matches!(error, SpawnError::Exec { .. }), "{error:?}");
}
