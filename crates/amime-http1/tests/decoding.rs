//! What becomes of bytes: one line for each event, compared with what Envoy
//! makes of the same bytes.

use amime_http1::{
    Event, Options, ParseError, RequestDecoder, RequestHead, ResponseDecoder, ResponseHead,
    ResponseTo, Target,
};
use bytes::BytesMut;
use http::{HeaderMap, Method};

fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

fn headers(headers: &HeaderMap) -> String {
    headers.iter().map(|(name, value)| format!(" {name}={}", text(value.as_bytes()))).collect()
}

fn request(head: &RequestHead) -> String {
    let target = match &head.target {
        Target::Path(path) => text(path),
        Target::Absolute { https, authority, path } => {
            let scheme = if *https { "https" } else { "http" };
            format!("{scheme} {} {}", text(authority), text(path))
        }
        Target::Authority(authority) => format!("to {}", text(authority)),
    };
    let keep = if head.keep_alive { "" } else { " close" };
    let more = headers(&head.headers);
    format!("{} {target} {:?}{more} {:?}{keep}", head.method, head.version, head.body)
}

fn response(head: &ResponseHead) -> String {
    let keep = if head.keep_alive { "" } else { " close" };
    let more = headers(&head.headers);
    format!("{} {:?}{more} {:?}{keep}", head.status.as_u16(), head.version, head.body)
}

fn event<H>(event: Event<H>, head: impl Fn(&H) -> String) -> String {
    match event {
        Event::Head(found) => head(&found),
        Event::Data(data) => format!("data {}", text(&data)),
        Event::Trailers(trailers) => format!("trailers{}", headers(&trailers)),
        Event::End => "end".to_owned(),
    }
}

fn requests(bytes: &[u8], options: Options) -> Result<Vec<String>, (Vec<String>, ParseError)> {
    let mut buf = BytesMut::from(bytes);
    let mut decoder = RequestDecoder::new(options);
    let mut lines = Vec::new();
    loop {
        match decoder.decode(&mut buf) {
            Ok(Some(found)) => lines.push(event(found, request)),
            Ok(None) => return Ok(lines),
            Err(error) => return Err((lines, error)),
        }
    }
}

#[track_caller]
fn check(bytes: &str, want: &[&str]) {
    let found = requests(bytes.as_bytes(), Options { trailers: true, ..Options::default() });
    assert_eq!(
        found.as_ref().map(|lines| lines.iter().map(String::as_str).collect()),
        Ok(want.to_vec())
    );
}

#[track_caller]
fn refused(bytes: &str, want: ParseError) {
    let found = requests(bytes.as_bytes(), Options { trailers: true, ..Options::default() });
    assert_eq!(found.map_err(|(_, error)| error), Err(want), "{bytes:?}");
}

/// A request with `lines` among its headers, each with its line end.
fn with(lines: &str) -> String {
    format!("POST /p HTTP/1.1\r\nhost: h\r\n{lines}\r\n")
}

#[track_caller]
fn check_response(bytes: &str, to: ResponseTo, want: Result<&[&str], ParseError>) {
    let mut buf = BytesMut::from(bytes);
    let mut decoder = ResponseDecoder::new(Options { trailers: true, ..Options::default() });
    decoder.expect(to);
    let mut lines = Vec::new();
    let found = loop {
        match decoder.decode(&mut buf) {
            Ok(Some(found)) => lines.push(event(found, response)),
            Ok(None) => break Ok(lines),
            Err(error) => break Err(error),
        }
    };
    let want = want.map(|lines| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>());
    assert_eq!(found, want, "{bytes:?}");
}

#[test]
fn requests_follow_each_other() {
    check(
        "POST /a?b HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhiGET / HTTP/1.1\r\nhost: i\r\n\r\nGE",
        &[
            "POST /a?b HTTP/1.1 host=h content-length=2 Known(2)",
            "data hi",
            "end",
            "GET / HTTP/1.1 host=i Empty",
        ],
    );
}

#[test]
fn request_lines_may_be_untidy() {
    for line in
        ["GET  / HTTP/1.1", "GET\t/  HTTP/1.1 \t", "GET / HTTP/1.1\r", "\r\n\nGET / HTTP/1.1"]
    {
        check(&format!("{line}\r\nhost: h\r\n\r\n"), &["GET / HTTP/1.1 host=h Empty"]);
    }
    check("GET / HTTP/1.1\nhost: h\n\n", &["GET / HTTP/1.1 host=h Empty"]);
}

#[test]
fn request_lines_that_are_none() {
    use ParseError as E;
    for (line, error) in [
        (" GET / HTTP/1.1", E::Method),
        ("get / HTTP/1.1", E::Method),
        ("GETX / HTTP/1.1", E::Method),
        ("GET / HTTP/1.1 x", E::Version),
        ("GET / x HTTP/1.1", E::Version),
        ("GET / http/1.1", E::Version),
        ("GET / HTTP/1.11", E::Version),
        ("GET HTTP/1.1", E::Target),
        ("GET foo HTTP/1.1", E::Target),
        ("GET /\0 HTTP/1.1", E::Characters),
        ("GET /\u{e9} HTTP/1.1", E::Target),
        ("GET * HTTP/1.1", E::Url),
        ("GET http://h:x/ HTTP/1.1", E::Url),
        ("GET http:///p HTTP/1.1", E::Url),
        ("GET http://h:65536/ HTTP/1.1", E::Url),
        ("GET ftp://h/ HTTP/1.1", E::Scheme),
        ("CONNECT h HTTP/1.1", E::Url),
        ("CONNECT / HTTP/1.1", E::Url),
    ] {
        refused(&format!("{line}\r\nhost: h\r\n\r\n"), error);
    }
}

#[test]
fn versions_other_than_1_1_count_as_1_0() {
    check("GET / HTTP/1.0\r\n\r\n", &["GET / HTTP/1.0 Empty close"]);
    check("GET / HTTP/2.0\r\nhost: h\r\n\r\n", &["GET / HTTP/1.0 host=h Empty close"]);
    // Without a version there are no headers.
    check("GET /x\r\n", &["GET /x HTTP/1.0 Empty close"]);
    let keep = "GET / HTTP/1.0\r\nconnection: Keep-Alive\r\n\r\n";
    check(keep, &["GET / HTTP/1.0 connection=Keep-Alive Empty"]);
}

#[test]
fn targets_come_in_three_forms() {
    let line = |target: &str| format!("OPTIONS {target} HTTP/1.1\r\n\r\n");
    for (target, want) in [
        ("*", "*"),
        ("/a#b?c", "/a#b?c"),
        ("HTTP://u:p@X.y:99/p?q", "http X.y:99 /p?q"),
        ("https://h", "https h /"),
        ("http://h?q", "http h ?q"),
        ("http://[::1]:80/", "http [::1]:80 /"),
    ] {
        check(&line(target), &[&format!("OPTIONS {want} HTTP/1.1 Empty")]);
    }
    check("CONNECT h:80 HTTP/1.1\r\n\r\n", &["CONNECT to h:80 HTTP/1.1 Raw"]);
}

#[test]
fn header_lines_are_joined_and_trimmed() {
    for (line, value) in [
        ("foo:\ta \t", "a"),
        ("foo:", ""),
        ("foo:: a", ": a"),
        ("foo: a\r\n b\r\n\tc", "a b\\tc"),
        ("foo:\r\n b", "b"),
        ("foo: a\rb", "ab"),
        ("foo: a\n b", "a b"),
    ] {
        let want = format!("POST /p HTTP/1.1 host=h foo={value} Empty");
        check(&with(&format!("{line}\r\n")), &[&want]);
    }
}

#[test]
fn header_lines_that_are_none() {
    use ParseError as E;
    for (line, error) in [
        ("foo", E::Header),
        ("foo : a", E::Header),
        (": a", E::Header),
        ("f\"o: a", E::Header),
        (":path: /", E::Header),
        ("f\u{e9}: a", E::Header),
        ("\rfoo: a", E::Header),
        ("foo: a\0", E::Characters),
        ("foo: a\u{7f}", E::Characters),
    ] {
        refused(&with(&format!("{line}\r\n")), error);
    }
    refused("GET / HTTP/1.1\r\n host: h\r\n\r\n", E::Header);
}

#[test]
fn lengths_that_two_readers_could_disagree_on() {
    use ParseError as E;
    for (lines, error) in [
        ("content-length: +3", E::ContentLength),
        ("content-length: 3, 3", E::ContentLength),
        ("content-length: 3\r\ncontent-length: 3", E::ContentLength),
        ("content-length:", E::ContentLength),
        ("content-length: 99999999999999999999", E::ContentLength),
        ("transfer-encoding: chunked\r\ncontent-length: 3", E::LengthAndEncoding),
        ("content-length: 3\r\ntransfer-encoding: identity", E::LengthAndEncoding),
        ("transfer-encoding: gzip, chunked", E::TransferEncoding),
        ("transfer-encoding: chunked\r\ntransfer-encoding: chunked", E::TransferEncoding),
        ("transfer-encoding:", E::TransferEncoding),
        ("transfer-encoding : chunked", E::Header),
    ] {
        refused(&with(&format!("{lines}\r\n")), error);
    }
    let connect = "CONNECT h:80 HTTP/1.1\r\ncontent-length: 3\r\n\r\n";
    refused(connect, E::BodyNotAllowed);
}

#[test]
fn a_length_beside_chunks_can_be_dropped() {
    let both = with("content-length: 9\r\ntransfer-encoding: Chunked\r\n") + "0\r\n\r\n";
    let options = Options { allow_chunked_length: true, ..Options::default() };
    let want = ["POST /p HTTP/1.1 host=h transfer-encoding=Chunked Chunked", "end"];
    assert_eq!(requests(both.as_bytes(), options), Ok(want.map(str::to_owned).to_vec()));
}

const CHUNKED: &str = "POST /p HTTP/1.1 host=h transfer-encoding=chunked Chunked";

fn chunked(body: &str) -> String {
    with("transfer-encoding: chunked\r\n") + body
}

#[test]
fn chunks_with_all_their_trimmings() {
    for body in [
        "3\r\nabc\r\n0\r\n\r\n",
        "0003 ;x=\"y\\\"z\"\r\nabc\r\n000;last\r\n\r\n",
        "3\r\nabc\n0\r\n\n",
        "3\r\nabcjunk\r\n0\r\n\r\n",
    ] {
        check(&chunked(body), &[CHUNKED, "data abc", "end"]);
    }
    let trailers = chunked("1\r\na\r\n0\r\nFoo: b\r\nx: y\r\n z\r\n\r\nGET");
    check(&trailers, &[CHUNKED, "data a", "trailers foo=b x=y z", "end"]);
    check(&chunked("FFFFFFFFFFFFFFFF\r\nabc"), &[CHUNKED, "data abc"]);
}

#[test]
fn chunks_that_are_none() {
    for body in [
        "0x3\r\n",
        " 3\r\n",
        "-3\r\n",
        "g\r\n",
        "\r\n",
        "3\n",
        "3\r\r\n",
        "3;a\rb\r\n",
        "3;a\n",
        "10000000000000000\r\n",
    ] {
        refused(&chunked(body), ParseError::Chunk);
    }
    let endless = chunked(&format!("3;{}", "x".repeat(70_000)));
    refused(&endless, ParseError::Chunk);
    refused(&chunked("0\r\nfoo\r\n\r\n"), ParseError::Header);
    refused(&chunked("0\r\nfoo: \u{1}\r\n\r\n"), ParseError::Characters);
}

#[test]
fn trailers_that_nobody_wants_are_checked() {
    let found = |body: &str| requests(chunked(body).as_bytes(), Options::default());
    let plain = found("0\r\nfoo: b\r\n\r\n").expect("trailers are dropped");
    assert_eq!(plain, [CHUNKED, "end"]);
    assert_eq!(found("0\r\nfoo\r\n\r\n").map_err(|(_, error)| error), Err(ParseError::Header));
    let long = format!("0\r\nfoo: {}\r\n\r\n", "x".repeat(70_000));
    assert_eq!(found(&long).map_err(|(_, error)| error), Err(ParseError::HeadTooLarge));
}

#[test]
fn a_head_may_be_as_long_as_the_limit() {
    let options = Options { max_head_bytes: 100, max_headers: 3, ..Options::default() };
    let head = |length: usize| {
        let begin = "GET / HTTP/1.1\r\nx: ";
        format!("{begin}{}\r\n\r\n", "x".repeat(length - begin.len() - 4))
    };
    let of = |bytes: &str| requests(bytes.as_bytes(), options).map_err(|(_, error)| error);
    assert!(of(&head(100)).is_ok_and(|lines| lines.len() == 1));
    assert_eq!(of(&head(101)), Err(ParseError::HeadTooLarge));
    // Refused as soon as it is clear, not when the rest has come.
    assert_eq!(of(&head(200)[..100]), Err(ParseError::HeadTooLarge));
    assert!(of(&with("a: 1\r\nb: 1\r\n")).is_ok());
    assert_eq!(of(&with("a: 1\r\nb: 1\r\nc: 1\r\n")), Err(ParseError::TooManyHeaders));
}

#[test]
fn upgrades_end_http() {
    let lines = "connection: keep-alive, Upgrade\r\nupgrade: websocket\r\n";
    let want = "POST /p HTTP/1.1 host=h connection=keep-alive, Upgrade upgrade=websocket Raw";
    check(&(with(lines) + "GET / HTTP/1.1\r\n\r\n"), &[want]);
    // HTTP/2 without TLS is not an upgrade that anybody makes.
    let h2c = with("connection: upgrade\r\nupgrade: h2c\r\n");
    check(&h2c, &["POST /p HTTP/1.1 host=h connection=upgrade upgrade=h2c Empty"]);
}

#[test]
fn responses_end_in_many_ways() {
    let get = ResponseTo::default();
    let head = ResponseTo { head: true, ..get };
    let upgrade = ResponseTo { upgrade: true, ..get };
    let ok = "HTTP/1.1 200 OK\r\n";
    check_response(
        &format!("{ok}content-length: 2\r\n\r\nhimore"),
        get,
        Ok(&["200 HTTP/1.1 content-length=2 Known(2)", "data hi", "end"]),
    );
    check_response(
        &format!("{ok}\r\nabc"),
        get,
        Ok(&["200 HTTP/1.1 UntilClose close", "data abc"]),
    );
    check_response(
        &format!("{ok}content-length: 2\r\n\r\n"),
        head,
        Ok(&["200 HTTP/1.1 content-length=2 Empty"]),
    );
    check_response("HTTP/1.1 304\r\n\r\n", get, Ok(&["304 HTTP/1.1 Empty"]));
    check_response("HTTP/1.0 204 x\r\n\r\n", get, Ok(&["204 HTTP/1.0 Empty close"]));
    check_response(
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        get,
        Ok(&["100 HTTP/1.1 Empty", "200 HTTP/1.1 content-length=0 Empty"]),
    );
    check_response("HTTP/1.1 101 x\r\n\r\nraw", upgrade, Ok(&["101 HTTP/1.1 Raw close"]));
    check_response("HTTP/1.1 101 x\r\n\r\nraw", get, Ok(&["101 HTTP/1.1 Empty close"]));
}

#[test]
fn responses_that_are_none() {
    use ParseError as E;
    for (bytes, error) in [
        ("garbage", E::Version),
        ("\r\nHTTP/1.1 200 OK\r\n\r\n", E::Version),
        ("HTTP/1 200 OK\r\n\r\n", E::Version),
        ("HTTP/1.1 2x0 OK\r\n\r\n", E::Status),
        ("HTTP/1.1 204 x\r\ncontent-length: 3\r\n\r\n", E::BodyNotAllowed),
        ("HTTP/1.1 100 x\r\ntransfer-encoding: chunked\r\n\r\n", E::TransferEncoding),
        ("HTTP/1.1 200 x\r\ncontent-length: 3\r\ncontent-length: 3\r\n\r\n", E::ContentLength),
        ("HTTP/1.1 200 x\r\ntransfer-encoding: identity\r\n\r\n", E::TransferEncoding),
        ("HTTP/1.1 200 x\r\nfoo\r\n\r\n", E::Header),
    ] {
        check_response(bytes, ResponseTo::default(), Err(error));
    }
}

#[test]
fn methods_are_those_that_envoy_knows() {
    let of = |method: &str| {
        requests(format!("{method} / HTTP/1.1\r\n\r\n").as_bytes(), Options::default()).is_ok()
    };
    let known = ["PATCH", "PROPFIND", "QUERY", "UNSUBSCRIBE", Method::TRACE.as_str()];
    assert!(known.into_iter().all(of));
    assert!(!["FOO", "M-SEARCH", "BASELINE-CONTROL", "PRI"].into_iter().any(of));
}
