//! Files over http, from a server in this process.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by ending"
)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Method, Response, Uri};
use source::http::{
    Algorithm, Fetched, FileUrl, FileUrlError, HttpError, HttpErrorKind, HttpOptions, Request,
    fetch,
};
use tokio_util::sync::CancellationToken;

/// Status, headers and content of an answer.
type Answer = (u16, Vec<(&'static str, String)>, Vec<u8>);

#[derive(Default)]
struct Site {
    answers: Mutex<BTreeMap<String, Vec<Answer>>>,
    asked: Mutex<Vec<HeaderMap>>,
    n_asked: AtomicUsize,
}

struct Server {
    address: String,
    site: Arc<Site>,
}

async fn serve() -> Server {
    let site = Arc::new(Site::default());
    let app = Router::new().fallback(answer).with_state(Arc::clone(&site));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    Server { address, site }
}

async fn answer(
    State(site): State<Arc<Site>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response<Body> {
    assert_eq!(method, Method::GET);
    site.n_asked.fetch_add(1, Ordering::Relaxed);
    site.asked.lock().unwrap().push(headers);
    let (status, headers, content) = {
        let mut answers = site.answers.lock().unwrap();
        match answers.get_mut(uri.path()) {
            Some(found) if found.len() > 1 => found.remove(0),
            Some(found) => found[0].clone(),
            None => (404, Vec::new(), Vec::new()),
        }
    };
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(name, value);
    }
    response.body(Body::from(content)).unwrap()
}

impl Server {
    fn on(&self, path: &str, status: u16, headers: &[(&'static str, &str)], content: &[u8]) {
        let headers = headers.iter();
        let headers = headers.map(|(name, value)| (*name, (*value).to_owned()));
        let answer = (status, headers.collect(), content.to_vec());
        let mut answers = self.site.answers.lock().unwrap();
        answers.entry(path.to_owned()).or_default().push(answer);
    }

    fn url(&self, path: &str) -> FileUrl {
        FileUrl::parse(&format!("{}{path}", self.address)).unwrap()
    }

    fn n_asked(&self) -> usize {
        self.site.n_asked.load(Ordering::Relaxed)
    }
}

fn options() -> HttpOptions {
    HttpOptions {
        max_bytes: 1000,
        attempts: 3,
        retry_pause: Duration::from_millis(1),
        proxy: None,
        no_proxy: None,
        ca_file: None,
        egress: egress::Policy::default(),
    }
}

fn plain(url: &FileUrl) -> Request<'_> {
    Request {
        url,
        tag: None,
        checksum: None,
        authorization: None,
    }
}

async fn got(request: Request<'_>) -> Result<Fetched<Vec<u8>>, HttpError> {
    let cancel = CancellationToken::new();
    fetch(&request, &options(), &mut || Ok(Vec::new()), &cancel).await
}

async fn content(request: Request<'_>) -> Vec<u8> {
    match got(request).await.unwrap() {
        Fetched::Whole { out, .. } => out,
        Fetched::Unchanged => panic!("nothing came"),
    }
}

#[tokio::test]
async fn a_file_comes_with_its_tag_and_date_and_not_again_while_it_is_the_same() {
    let server = serve().await;
    let date = "Sun, 09 Sep 2001 01:46:40 GMT";
    server.on(
        "/f",
        200,
        &[("etag", "W/\"1\""), ("last-modified", date)],
        b"one",
    );
    let url = server.url("/f");
    let Fetched::Whole { out, tag, modified } = got(plain(&url)).await.unwrap() else {
        panic!("nothing came");
    };
    assert_eq!((out, modified), (b"one".to_vec(), Some(1_000_000_000)));
    let asked = Request {
        tag: tag.as_deref(),
        ..plain(&url)
    };
    // The server sends it again, and is not listened to.
    assert!(matches!(got(asked).await.unwrap(), Fetched::Unchanged));
    server.on("/g", 304, &[], b"");
    let url = server.url("/g");
    let asked = Request {
        tag: Some("\"1\""),
        ..plain(&url)
    };
    assert!(matches!(got(asked).await.unwrap(), Fetched::Unchanged));
    let last = server.site.asked.lock().unwrap().last().unwrap().clone();
    assert_eq!(last["if-none-match"], "\"1\"");
    let outcome = got(plain(&url)).await;
    assert!(matches!(
        outcome,
        Err(HttpError::Status { status: 304, .. })
    ));
}

#[tokio::test]
async fn s06_what_comes_is_taken_as_it_is() {
    let server = serve().await;
    let packed = [0x1f, 0x8b, 8, 0];
    let headers = [
        ("content-encoding", "gzip"),
        (
            "content-disposition",
            "attachment; filename=\"../../etc/passwd\"",
        ),
        ("etag", "\"1\""),
    ];
    server.on("/f", 200, &headers, &packed);
    server.on("/g", 200, &[("last-modified", "yesterday")], b"");
    assert_eq!(content(plain(&server.url("/f"))).await, packed);
    let url = server.url("/g");
    let Fetched::Whole { modified, tag, .. } = got(plain(&url)).await.unwrap() else {
        panic!("nothing came");
    };
    assert_eq!((modified, tag), (None, None));
    let asked = server.site.asked.lock().unwrap();
    assert_eq!(asked[0]["accept-encoding"], "identity");
}

#[tokio::test]
async fn checksums_are_compared_before_anything_is_handed_out() {
    let server = serve().await;
    server.on("/f", 200, &[], b"x");
    let url = server.url("/f");
    for (algorithm, hex) in [
        (
            Algorithm::Sha256,
            "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881",
        ),
        (
            Algorithm::Sha384,
            "d752c2c51fba0e29aa190570a9d4253e44077a058d3297fa3a5630d5bd012622f97c28acaed313b5c83bb990caa7da85",
        ),
        (
            Algorithm::Sha512,
            "a4abd4448c49562d828115d13a1fccea927f52b4d5459297f8b43e42da89238bc13626e43dcb38ddb082488927ec904fb42057443983e88585179d50551afe62",
        ),
    ] {
        let asked = Request {
            checksum: Some((algorithm, hex)),
            ..plain(&url)
        };
        assert_eq!(content(asked).await, b"x");
        let wrong = hex.replace('2', "3");
        let asked = Request {
            checksum: Some((algorithm, &wrong)),
            ..plain(&url)
        };
        let error = got(asked).await.unwrap_err();
        assert!(matches!(error, HttpError::Checksum { .. }), "{error:?}");
        assert_eq!(error.kind(), HttpErrorKind::Refused);
    }
}

#[tokio::test]
async fn redirects_are_followed_a_while_and_only_where_files_are() {
    let server = serve().await;
    let to = |path: &str| format!("{}{path}", server.address);
    server.on("/a", 302, &[("location", "/b#x")], b"");
    server.on("/b", 308, &[("location", &to("/c"))], b"");
    server.on("/c", 200, &[], b"end");
    server.on("/loop", 301, &[("location", "/loop")], b"");
    server.on("/file", 302, &[("location", "file:///etc/passwd")], b"");
    server.on("/none", 302, &[], b"");
    assert_eq!(content(plain(&server.url("/a"))).await, b"end");
    for path in ["/loop", "/file", "/none"] {
        let before = server.n_asked();
        let error = got(plain(&server.url(path))).await.unwrap_err();
        assert!(matches!(error, HttpError::Redirect { .. }), "{error:?}");
        assert!(server.n_asked() - before <= 11);
    }
}

#[tokio::test]
async fn what_may_pass_is_tried_again_and_what_will_not_is_not() {
    let server = serve().await;
    server.on("/f", 503, &[], b"");
    server.on("/f", 429, &[], b"");
    server.on("/f", 200, &[], b"at last");
    assert_eq!(content(plain(&server.url("/f"))).await, b"at last");
    assert_eq!(server.n_asked(), 3);
    for (path, status) in [("/gone", 410), ("/secret", 403), ("/missing", 404)] {
        server.on(path, status, &[], b"");
        let before = server.n_asked();
        let error = got(plain(&server.url(path))).await.unwrap_err();
        assert_eq!(error.kind(), HttpErrorKind::Refused, "{error:?}");
        assert_eq!(server.n_asked() - before, 1);
    }
    let url = FileUrl::parse("http://127.0.0.1:1/x").unwrap();
    let error = got(plain(&url)).await.unwrap_err();
    assert_eq!(error.kind(), HttpErrorKind::Unavailable);
}

#[tokio::test]
async fn files_that_are_too_large_are_not_taken() {
    let server = serve().await;
    server.on("/f", 200, &[], &[0; 1001]);
    server.on("/g", 200, &[], &[0; 1000]);
    let error = got(plain(&server.url("/f"))).await.unwrap_err();
    assert!(matches!(
        error,
        HttpError::TooLarge {
            max_bytes: 1000,
            ..
        }
    ));
    assert_eq!(content(plain(&server.url("/g"))).await.len(), 1000);
}

#[tokio::test]
async fn a_body_that_ends_early_is_no_file() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let mut request = [0; 1000];
            let _ = stream.read(&mut request).await;
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf";
            let _ = stream.write_all(answer).await;
        }
    });
    let url = FileUrl::parse(&format!("http://{address}/f")).unwrap();
    let error = got(plain(&url)).await.unwrap_err();
    assert_eq!(error.kind(), HttpErrorKind::Unavailable, "{error:?}");
}

#[tokio::test]
async fn waiting_can_be_cancelled() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = FileUrl::parse(&format!("http://{}/f", listener.local_addr().unwrap())).unwrap();
    let cancel = CancellationToken::new();
    let later = cancel.clone();
    let started = Instant::now();
    tokio::spawn(async move {
        // Connected, and never answered.
        let _connection = listener.accept().await;
        later.cancel();
        std::future::pending::<()>().await;
    });
    let mut open = || Ok(Vec::new());
    let outcome = fetch(&plain(&url), &options(), &mut open, &cancel).await;
    assert!(matches!(outcome, Err(HttpError::Cancelled)));
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn passwords_are_sent_and_shown_nowhere() {
    let server = serve().await;
    let address = server.address.replace("http://", "http://me:hidden@");
    let url = FileUrl::parse(&format!("{address}/f?token=hidden")).unwrap();
    let error = got(plain(&url)).await.unwrap_err();
    let asked = server.site.asked.lock().unwrap()[0].clone();
    assert_eq!(asked["authorization"], "Basic bWU6aGlkZGVu");
    for text in [
        error.to_string(),
        format!("{error:?}"),
        url.shown(),
        format!("{url:?}"),
    ] {
        assert!(!text.contains("hidden"), "{text}");
    }
}

#[tokio::test]
async fn authorization_is_shown_to_its_own_host_only() {
    let (server, other) = (serve().await, serve().await);
    server.on("/f", 302, &[("location", "/g")], b"");
    let there = format!("{}/h", other.address);
    server.on("/g", 302, &[("location", &there)], b"");
    other.on("/h", 200, &[], b"x");
    let address = server.address.replace("http://", "http://me:other@");
    let url = FileUrl::parse(&format!("{address}/f")).unwrap();
    let asked = Request {
        authorization: Some("Bearer hidden"),
        ..plain(&url)
    };
    assert!(!format!("{asked:?}").contains("hidden"));
    assert_eq!(content(asked).await, b"x");
    for headers in server.site.asked.lock().unwrap().iter() {
        assert_eq!(headers["authorization"], "Bearer hidden");
    }
    assert!(!other.site.asked.lock().unwrap()[0].contains_key("authorization"));
    let broken = Request {
        authorization: Some("Bearer hid\nden"),
        ..plain(&url)
    };
    let error = got(broken).await.unwrap_err();
    assert!(matches!(error, HttpError::Authorization { .. }));
    assert!(!error.to_string().contains("hid\nden"));
}

#[test]
fn only_addresses_of_files_are_taken() {
    for (text, error) in [
        ("ftp://a/b", FileUrlError::Scheme),
        ("file:///etc/passwd", FileUrlError::Scheme),
        ("http://", FileUrlError::Malformed),
        ("a/b", FileUrlError::Malformed),
        ("http://[::1", FileUrlError::Malformed),
    ] {
        assert_eq!(FileUrl::parse(text), Err(error), "{text}");
    }
    let long = format!("http://a/{}", "x".repeat(9000));
    assert_eq!(FileUrl::parse(&long), Err(FileUrlError::TooLong));
}
