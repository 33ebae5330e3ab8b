//! What routes change in requests and answers, and answers of their own.

use anyhow::ensure;

use super::to;
use crate::Test;
use crate::mesh::Mesh;

pub(super) const TESTS: &[Test] = &[
    ("paths and authorities are rewritten", rewrites),
    ("redirects name the new place", redirects),
    ("routes answer themselves", answers),
    ("headers change on the way there and back, on all levels", headers),
    ("browsers of other origins get what the policy allows", cors),
];

const REWRITES: &str = r"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: rewrites}
spec:
  hosts: [rewrites.test]
  http:
  - match: [{uri: {prefix: /v1/}}]
    rewrite: {uri: /v2/}
    route: [{destination: {host: one}}]
  - match: [{uri: {prefix: /strip}}]
    rewrite: {uri: /}
    route: [{destination: {host: one}}]
  - match: [{uri: {exact: /exact}}]
    rewrite: {uri: /full, authority: new.test}
    route: [{destination: {host: one}}]
  - match: [{uri: {prefix: /service}}]
    rewrite:
      uriRegexRewrite: {match: '^/service/([^/]+)(/.*)$', rewrite: '\2/instance/\1'}
    route: [{destination: {host: one}}]
  - match: [{uri: {regex: '/regex/.*'}}]
    rewrite: {uriRegexRewrite: {match: '/regex/', rewrite: /}}
    route: [{destination: {host: one}}]
";

fn rewrites(mesh: &Mesh) {
    mesh.apply(REWRITES);
    mesh.until(|| {
        let answer = to(mesh, "rewrites.test", "/v1/").try_send()?;
        ensure!(answer.status == 200 && answer.said("path") == "/v2/", "{answer:?}");
        Ok(())
    });
    for (path, want) in [
        ("/v1/a?b=c", "/v2/a?b=c"),
        ("/strip", "/"),
        // Of the prefix alone; the slash behind it stays.
        ("/strip/a", "//a"),
        ("/strip?x", "/?x"),
        ("/exact?q=1", "/full?q=1"),
        ("/service/foo/v1/api?x=y", "/v1/api/instance/foo?x=y"),
        ("/service/foo", "/service/foo"),
        ("/regex/a/b", "/a/b"),
    ] {
        let answer = to(mesh, "rewrites.test", path).send();
        assert_eq!(answer.said("path"), want, "{path}");
        assert_eq!(answer.saw("x-envoy-original-path").as_deref(), Some(path), "{path}");
    }
    assert_eq!(to(mesh, "rewrites.test", "/exact").send().said("authority"), "new.test");
    assert_eq!(to(mesh, "rewrites.test", "/v1/").send().said("authority"), "rewrites.test");
}

const REDIRECTS: &str = r"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: redirects}
spec:
  hosts: [redirects.test]
  http:
  - match: [{uri: {exact: /uri}}]
    redirect: {uri: /there}
  - match: [{uri: {exact: /authority}}]
    redirect: {authority: other.test, redirectCode: 308}
  - match: [{uri: {exact: /scheme}}]
    redirect: {scheme: https}
  - match: [{uri: {exact: /port}}]
    redirect: {port: 9999, redirectCode: 302}
  - match: [{uri: {exact: /derived}}]
    redirect: {scheme: https, authority: d.test, derivePort: FROM_PROTOCOL_DEFAULT, redirectCode: 307}
  - match: [{uri: {exact: /kept}}]
    redirect: {authority: k.test, derivePort: FROM_REQUEST_PORT, redirectCode: 303}
  - match: [{uri: {prefix: /prefix}}]
    redirect: {uri: '%PREFIX()%/new'}
";

fn redirects(mesh: &Mesh) {
    mesh.apply(REDIRECTS);
    mesh.until(|| {
        let answer = to(mesh, "redirects.test", "/uri").try_send()?;
        ensure!(answer.status == 301, "{answer:?}");
        Ok(())
    });
    for (host, path, code, location) in [
        ("redirects.test", "/uri?a=b", 301, "http://redirects.test/there?a=b"),
        ("redirects.test", "/authority?a", 308, "http://other.test/authority?a"),
        ("redirects.test", "/scheme", 301, "https://redirects.test/scheme"),
        ("redirects.test", "/port", 302, "http://redirects.test:9999/port"),
        ("redirects.test", "/derived", 307, "https://d.test/derived"),
        ("redirects.test:80", "/kept", 303, "http://k.test/kept"),
    ] {
        let answer = to(mesh, host, path).send();
        assert_eq!((answer.status, answer.header("location")), (code, Some(location)), "{path}");
    }
}

const ANSWERS: &str = r"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: answers}
spec:
  hosts: [answers.test]
  http:
  - match: [{uri: {exact: /text}}]
    directResponse: {status: 418, body: {string: 'I am a teapot'}}
    headers: {response: {set: {x-kind: teapot}}}
  - match: [{uri: {exact: /bytes}}]
    directResponse: {status: 200, body: {bytes: 'aGVsbG8='}}
  - directResponse: {status: 503}
";

fn answers(mesh: &Mesh) {
    mesh.apply(ANSWERS);
    let answer = mesh.until(|| {
        let answer = to(mesh, "answers.test", "/text").try_send()?;
        ensure!(answer.status == 418, "{answer:?}");
        Ok(answer)
    });
    assert_eq!((answer.body.as_str(), answer.header("x-kind")), ("I am a teapot", Some("teapot")));
    let bytes = to(mesh, "answers.test", "/bytes").send();
    assert_eq!((bytes.status, bytes.body.as_str()), (200, "hello"));
    let none = to(mesh, "answers.test", "/none").send();
    assert_eq!((none.status, none.body.as_str()), (503, ""));
    mesh.logged("default", "client", &["/none", "503 - direct_response"]);
}

const HEADERS: &str = r"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: changed-headers}
spec:
  hosts: [changed-headers.test]
  http:
  - match: [{uri: {exact: /host}}]
    headers: {request: {set: {Host: set.test}}}
    route: [{destination: {host: one}}]
  - match: [{uri: {exact: /shared}}]
    headers: {request: {add: {x-add: route}}, response: {add: {x-add: route}}}
    route:
    - destination: {host: one, port: {number: 80}}
      weight: 100
      headers: {request: {add: {x-add: destination}}, response: {add: {x-add: destination}}}
    - {destination: {host: two, port: {number: 80}}, weight: 0}
  - headers:
      request:
        set: {x-set: route, x-port: '%DOWNSTREAM_LOCAL_PORT%'}
        add: {x-add: route}
        remove: [x-gone]
      response:
        set: {x-set: route}
        add: {x-add: route}
        remove: [x-gone]
    route:
    - destination: {host: one}
      headers:
        request:
          set: {x-inner: destination}
          add: {x-add: destination}
          remove: [x-gone-too]
        response:
          set: {x-inner: destination}
          add: {x-add: destination}
          remove: [x-gone-too]
";

fn headers(mesh: &Mesh) {
    mesh.apply(HEADERS);
    let ask = to(mesh, "changed-headers.test", "/")
        .header("x-set", "client")
        .header("x-add", "client")
        .header("x-gone", "1")
        .header("x-gone-too", "1")
        .header("x-stays", "1")
        .order("x-set=server x-add=server x-gone=1 x-gone-too=1 x-stays=1");
    let answer = mesh.until(|| {
        let answer = ask.clone().try_send()?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(answer)
    });
    let saw = |name| answer.saw(name);
    assert_eq!(saw("x-set").as_deref(), Some("route"));
    assert_eq!(saw("x-port").as_deref(), Some("80"));
    assert_eq!(saw("x-inner").as_deref(), Some("destination"));
    assert_eq!(saw("x-add").as_deref(), Some("client,route,destination"));
    assert_eq!((saw("x-gone"), saw("x-gone-too")), (None, None));
    assert_eq!(saw("x-stays").as_deref(), Some("1"));
    // Within the mesh nobody adds the client's address.
    assert_eq!(saw("x-forwarded-for"), None);
    let all = |name: &str| -> Vec<_> {
        answer.headers.get_all(name).iter().map(|v| v.to_str().expect("text")).collect()
    };
    assert_eq!(all("x-set"), ["route"]);
    assert_eq!(all("x-inner"), ["destination"]);
    assert_eq!(all("x-add"), ["server", "route", "destination"]);
    assert_eq!((all("x-gone").len(), all("x-gone-too").len()), (0, 0));
    assert_eq!(all("x-stays"), ["1"]);
    // One destination of several is more specific than the route.
    let shared = to(mesh, "changed-headers.test", "/shared").header("x-add", "client").send();
    assert_eq!(shared.saw("x-add").as_deref(), Some("client,destination,route"));
    let host = to(mesh, "changed-headers.test", "/host").send();
    assert_eq!(host.said("authority"), "set.test");
}

const CORS: &str = r"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: cors}
spec:
  hosts: [cors.test]
  http:
  - match: [{uri: {exact: /ignored}}]
    corsPolicy:
      allowOrigins: [{exact: 'https://a.test'}]
      allowMethods: [GET]
      unmatchedPreflights: IGNORE
    route: [{destination: {host: one}}]
  - corsPolicy:
      allowOrigins: [{exact: 'https://a.test'}, {prefix: 'https://p.'}, {regex: 'https://r[0-9]\.test'}]
      allowMethods: [GET, PUT]
      allowHeaders: [x-one, x-two]
      exposeHeaders: [x-shown]
      maxAge: 24h
      allowCredentials: true
    route: [{destination: {host: one}}]
";

fn cors(mesh: &Mesh) {
    mesh.apply(CORS);
    let preflight = |path: &str, origin: &str| {
        let ask = to(mesh, "cors.test", path).method("OPTIONS").header("origin", origin);
        ask.header("access-control-request-method", "PUT")
    };
    let answer = mesh.until(|| {
        let answer = preflight("/", "https://a.test").try_send()?;
        ensure!(answer.status == 200 && answer.pod().is_none(), "{answer:?}");
        Ok(answer)
    });
    let header = |name| answer.header(name).unwrap_or_default().to_owned();
    assert_eq!(header("access-control-allow-origin"), "https://a.test");
    assert_eq!(header("access-control-allow-methods"), "GET,PUT");
    assert_eq!(header("access-control-allow-headers"), "x-one,x-two");
    assert_eq!(header("access-control-max-age"), "86400");
    assert_eq!(header("access-control-allow-credentials"), "true");
    let allowed = |origin: &str| {
        let answer = to(mesh, "cors.test", "/").header("origin", origin).send();
        assert_eq!(answer.pod().as_deref(), Some("app-v1"), "the request is served");
        let shown = answer.header("access-control-expose-headers").map(str::to_owned);
        (answer.header("access-control-allow-origin").map(str::to_owned), shown)
    };
    for origin in ["https://a.test", "https://p.anything", "https://r7.test"] {
        assert_eq!(allowed(origin), (Some(origin.to_owned()), Some("x-shown".to_owned())));
    }
    assert_eq!(allowed("https://b.test"), (None, None));
    // Who is not allowed gets the server's own answer, or none from it.
    let forwarded = preflight("/", "https://b.test").send();
    assert_eq!(forwarded.pod().as_deref(), Some("app-v1"));
    let ignored = preflight("/ignored", "https://b.test").send();
    assert_eq!((ignored.status, ignored.pod()), (200, None), "{ignored:?}");
    assert_eq!(ignored.header("access-control-allow-origin"), None);
}
