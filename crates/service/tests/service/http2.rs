//! HTTP/2 as its known floods are written, frame by frame: each connection ends or waits, and everybody else is served.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::*;
use crate::web::get;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// What a connection is told that asks too much (RFC 9113, 7).
const ENHANCE_YOUR_CALM: u32 = 11;
const CANCEL: [u8; 4] = 8_u32.to_be_bytes();
/// What no window can be widened by.
const TOO_WIDE: [u8; 4] = 0x7fff_ffff_u32.to_be_bytes();
/// `GET http://a/` by entries of the static table, and a name.
const REQUEST: [u8; 6] = [0x82, 0x86, 0x84, 0x41, 1, b'a'];
/// How an answer begins: entries of the static table.
const OK: u8 = 0x88;
const NOT_FOUND: u8 = 0x8d;
/// Far more than any of the attacks needs.
const FLOOD_MAX_BYTES: usize = 64 << 20;
/// A connection that takes nothing for so long is waiting for its client.
const STALL: Duration = Duration::from_secs(1);

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [size[1], size[2], size[3], kind, flags];
    [&head[..], &stream.to_be_bytes(), payload].concat()
}

async fn connect(server: &Server) -> TcpStream {
    let mut stream = soon(TcpStream::connect(&server.address)).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    let settings = frame(SETTINGS, 0, 0, &[]);
    stream.write_all(&settings).await.unwrap();
    stream
}

/// Returns the frames in `bytes`: kind, stream and payload.
fn frames(mut bytes: &[u8]) -> Vec<(u8, u32, &[u8])> {
    let mut found = Vec::new();
    while bytes.len() >= 9 {
        let size = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]);
        let stream = u32::from_be_bytes([bytes[5], bytes[6], bytes[7], bytes[8]]);
        let Some(payload) = bytes.get(9..9 + usize::try_from(size).unwrap()) else {
            break;
        };
        found.push((bytes[3], stream, payload));
        bytes = &bytes[9 + payload.len()..];
    }
    found
}

/// Sends what `next` makes until the server ends the connection; returns all that it said.
async fn until_it_ends(stream: TcpStream, mut next: impl FnMut() -> Vec<u8>) -> Vec<u8> {
    let (mut from, mut to) = stream.into_split();
    let listening = tokio::spawn(async move {
        let mut said = Vec::new();
        // A connection that is reset has ended as well.
        let _reset = from.read_to_end(&mut said).await;
        said
    });
    let mut n_sent = 0;
    while !listening.is_finished() && n_sent < FLOOD_MAX_BYTES {
        let bytes = next();
        n_sent += bytes.len();
        if soon(to.write_all(&bytes)).await.is_err() {
            break;
        }
    }
    assert!(n_sent < FLOOD_MAX_BYTES, "it went on taking");
    soon(listening).await.unwrap()
}

/// Fails if the server gave another reason than that it was asked too much. It may have had no time to give one.
fn assert_calmed(said: &[u8]) {
    for (kind, _, payload) in frames(said) {
        if kind == GOAWAY {
            let reason = u32::from_be_bytes(payload[4..8].try_into().unwrap());
            assert_eq!(reason, ENHANCE_YOUR_CALM);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_reset_at_once_by_either_side_end_the_connection() {
    let world = World::new();
    let server = world.serve().await;
    // The client takes them back; or it makes the server do so, by a window that is wider than any may be.
    for (kind, payload) in [(RST_STREAM, CANCEL), (WINDOW_UPDATE, TOO_WIDE)] {
        let mut id = 1;
        let burst = || {
            let mut bytes = Vec::new();
            for _ in 0..1000 {
                bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, id, &REQUEST));
                bytes.extend(frame(kind, 0, id, &payload));
                id += 2;
            }
            bytes
        };
        let said = until_it_ends(connect(&server).await, burst).await;
        assert_calmed(&said);
    }
    assert_eq!(get(&server, "/healthz").await.0, 200);
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_go_on_for_ever_end_the_connection() {
    let world = World::new();
    let server = world.serve().await;
    // A field that is kept in no table, and nothing at all: for each, the limit is another one.
    let field = [&[0, 1, b'x', 0x7f, 0x81, 0x7e][..], &[b'y'; 16_256]].concat();
    for part in [field, Vec::new()] {
        let mut stream = connect(&server).await;
        let start = frame(HEADERS, END_STREAM, 1, &REQUEST);
        stream.write_all(&start).await.unwrap();
        let more = || frame(CONTINUATION, 0, 1, &part).repeat(16);
        let said = until_it_ends(stream, more).await;
        assert_calmed(&said);
    }
    assert_eq!(get(&server, "/healthz").await.0, 200);
    server.stopped().await;
}

/// Reads until stream `id` is answered or reset, or the connection is over; returns the answer's first byte.
async fn answer(stream: &mut TcpStream, id: u32) -> Option<u8> {
    let mut said = Vec::new();
    let mut part = [0; 4096];
    loop {
        let n = soon(stream.read(&mut part)).await.unwrap_or(0);
        said.extend(&part[..n]);
        for (kind, of, payload) in frames(&said) {
            match kind {
                HEADERS if of == id => return Some(payload[0]),
                RST_STREAM if of == id => return None,
                GOAWAY => return None,
                _ => {}
            }
        }
        if n == 0 {
            return None;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_unpack_to_more_than_they_are_reach_nobody() {
    let world = World::new();
    let server = world.serve().await;
    let mut stream = connect(&server).await;
    let plain = frame(HEADERS, END_HEADERS | END_STREAM, 1, &REQUEST);
    stream.write_all(&plain).await.unwrap();
    assert_eq!(answer(&mut stream, 1).await, Some(NOT_FOUND));
    // One field of 4 000 bytes for the table, and 8 000 times that one.
    let entry = [&[0x40, 1, b'x', 0x7f, 0xa1, 0x1e][..], &[b'y'; 4000]].concat();
    let bomb = [&REQUEST[..], &entry, &[0xbe; 8000]].concat();
    let head = frame(HEADERS, END_HEADERS | END_STREAM, 3, &bomb);
    stream.write_all(&head).await.unwrap();
    // No handler has seen it: this one would have said what it says of all such addresses.
    let answered = answer(&mut stream, 3).await;
    assert_ne!(answered, Some(NOT_FOUND));
    assert_ne!(answered, Some(OK));
    assert_eq!(get(&server, "/healthz").await.0, 200);
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_wants_answers_and_reads_none_is_not_read_any_further() {
    let world = World::new();
    let server = world.serve().await;
    for question in [frame(SETTINGS, 0, 0, &[]), frame(PING, 0, 0, b"question")] {
        let mut stream = connect(&server).await;
        let questions = question.repeat(1000);
        let mut n_sent = 0;
        // It ends the connection, or leaves the rest where it is: what it has not answered yet does not grow.
        while let Ok(Ok(())) = tokio::time::timeout(STALL, stream.write_all(&questions)).await {
            n_sent += questions.len();
            assert!(n_sent < FLOOD_MAX_BYTES, "it went on taking");
        }
        assert_eq!(get(&server, "/healthz").await.0, 200);
    }
    server.stopped().await;
}
