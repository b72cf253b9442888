//! Objects that mean harm by how they are made: a collision of names, and deltas upon deltas.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use http::{Response, StatusCode};
use source::git::{Depth, GitSource};
use testkit::background::Background;

use super::{quick, run, source_of};

/// The start that the two documents of the first public collision of SHA-1 have in common.
const COLLISION_START: &str = "255044462d312e330a25e2e3cfd30a0a0a312030206f626a0a3c3c2f57696474682032203020522f4865696768742033203020522f547970652034203020522f537562747970652035203020522f46696c7465722036203020522f436f6c6f7253706163652037203020522f4c656e6774682038203020522f42697473506572436f6d706f6e656e7420383e3e0a73747265616d0affd8fffe00245348412d3120697320646561642121212121852fec092339759c39b1a1c63c4c97e1fffe01";
/// What follows in the first, and in the second: the same hash for both.
const COLLISION_ENDS: [&str; 2] = [
    "7f46dc93a6b67e013b029aaa1db2560b45ca67d688c7f84b8c4c791fe02b3df614f86db1690901c56b45c1530afedfb76038e972722fe7ad728f0e4904e046c230570fe9d41398abe12ef5bc942be33542a4802d98b5d70f2a332ec37fac3514e74ddc0f2cc1a874cd0c78305a21566461309789606bd0bf3f98cda8044629a1",
    "7346dc9166b67e118f029ab621b2560ff9ca67cca8c7f85ba84c79030c2b3de218f86db3a90901d5df45c14f26fedfb3dc38e96ac22fe7bd728f0e45bce046d23c570feb141398bb552ef5a0a82be331fea48037b8b5d71f0e332edf93ac3500eb4ddc0decc1a864790c782c76215660dd309791d06bd0af3f98cda4bc4629b1",
];
/// How many deltas stand upon each other.
const N_DELTAS: u32 = 1_000_000;

fn from_hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    let byte = |pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.map(byte).collect()
}

fn hash(bytes: &[u8]) -> Vec<u8> {
    digest(&SHA1_FOR_LEGACY_USE_ONLY, bytes).as_ref().to_vec()
}

fn name_of(hash: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut name = String::new();
    for byte in hash {
        write!(name, "{byte:02x}").unwrap();
    }
    name
}

/// Returns `content` as zlib has what it could not make smaller.
fn stored(content: &[u8]) -> Vec<u8> {
    let size = u16::try_from(content.len()).unwrap();
    let mut bytes = vec![0x78, 0x01, 1];
    bytes.extend(size.to_le_bytes());
    bytes.extend((!size).to_le_bytes());
    bytes.extend(content);
    let (mut low, mut high) = (1_u32, 0_u32);
    for byte in content {
        low = (low + u32::from(*byte)) % 65_521;
        high = (high + low) % 65_521;
    }
    bytes.extend((high << 16 | low).to_be_bytes());
    bytes
}

/// Returns a server without git whose one branch is the commit `name`, which is the bytes `object`.
fn with_object(name: String, object: Vec<u8>) -> Background {
    let path = format!("objects/{}/{}", &name[..2], &name[2..]);
    Background::serve(Router::new().fallback(async move |request: Request| {
        let asked = request.uri().path().trim_start_matches("/x/");
        let content = match asked {
            "info/refs" => format!("{name}\trefs/heads/main\n").into_bytes(),
            "HEAD" => b"ref: refs/heads/main\n".to_vec(),
            asked if asked == path => object.clone(),
            _ => {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::NOT_FOUND;
                return response;
            }
        };
        Response::new(Body::from(content))
    }))
}

#[tokio::test]
async fn either_half_of_a_collision_of_names_is_noticed() {
    for end in COLLISION_ENDS {
        let content = [from_hex(COLLISION_START), from_hex(end)].concat();
        let name = name_of(&hash(&content));
        assert_eq!(name, "f92d74e3874587aaf443d1db961d4e26dde13e9c");
        let server = with_object(name, stored(&content));
        let source = GitSource {
            depth: Depth::Full,
            ..source_of(&format!("http://{}/x", server.address()))
        };
        let fetched = run(&source, &quick()).await;
        let said = format!("{}{}", fetched.error(), fetched.log);
        assert!(said.contains("part of a collision attack"), "{said}");
        assert!(fetched.result.is_err());
    }
}

/// Packs objects, each as git packs them.
struct Pack {
    bytes: Vec<u8>,
    /// Where the last object begins.
    last: usize,
}

impl Pack {
    fn new(n_objects: u32) -> Self {
        let bytes = [&b"PACK"[..], &2_u32.to_be_bytes(), &n_objects.to_be_bytes()].concat();
        Self { bytes, last: 0 }
    }

    fn header(&mut self, kind: u8, size: usize) {
        self.last = self.bytes.len();
        let mut rest = size >> 4;
        let low = u8::try_from(size & 15).unwrap() | kind << 4;
        self.bytes.push(if rest > 0 { low | 0x80 } else { low });
        while rest > 0 {
            let seven = u8::try_from(rest & 0x7f).unwrap();
            rest >>= 7;
            self.bytes.push(if rest > 0 { seven | 0x80 } else { seven });
        }
    }

    /// Adds an object; returns its hash.
    fn object(&mut self, kind: (u8, &str), content: &[u8]) -> Vec<u8> {
        self.header(kind.0, content.len());
        self.bytes.extend(stored(content));
        named(kind.1, content)
    }

    /// Adds a delta upon the object before.
    fn delta(&mut self, delta: &[u8]) {
        let base = self.last;
        self.header(6, delta.len());
        let distance = self.last - base;
        assert!(distance < 0x80, "one byte tells it");
        self.bytes.push(u8::try_from(distance).unwrap());
        self.bytes.extend(stored(delta));
    }

    fn finish(mut self) -> Vec<u8> {
        let hash = hash(&self.bytes);
        self.bytes.extend(hash);
        self.bytes
    }
}

fn named(kind: &str, content: &[u8]) -> Vec<u8> {
    hash(&[format!("{kind} {}\0", content.len()).as_bytes(), content].concat())
}

/// Returns a commit and its pack, in which its one file is known by `n` deltas upon each other.
fn tower(n: u32) -> (String, Vec<u8>) {
    let text = |n: u32| format!("{n:08}\n").into_bytes();
    let blob = named("blob", &text(n));
    let tree = [&b"100644 file\0"[..], &blob].concat();
    let mut pack = Pack::new(n + 3);
    let tree = pack.object((2, "tree"), &tree);
    let who = "a <a@b> 1700000000 +0000";
    let commit = format!(
        "tree {}\nauthor {who}\ncommitter {who}\n\ntower\n",
        name_of(&tree)
    );
    let commit = pack.object((1, "commit"), commit.as_bytes());
    pack.object((3, "blob"), &text(0));
    for n in 1..=n {
        // Both sizes; eight new bytes; and the one byte of the base at 8.
        let delta = [&[9, 9, 8][..], text(n).get(..8).unwrap(), &[0x91, 8, 1]].concat();
        pack.delta(&delta);
    }
    (name_of(&commit), pack.finish())
}

/// Returns bytes as a pkt-line.
fn packet(bytes: &[u8]) -> Vec<u8> {
    [format!("{:04x}", bytes.len() + 4).as_bytes(), bytes].concat()
}

/// Serves a pack to whoever asks for its commit.
fn with_pack(commit: &str, pack: &[u8]) -> Background {
    let lines = ["version 2\n", "ls-refs=unborn\n", "fetch=shallow\n"];
    let lines = lines.map(|line| packet(line.as_bytes())).concat();
    let service = packet(b"# service=git-upload-pack\n");
    let offer = [&service[..], b"0000", &lines, b"0000"].concat();
    let head = format!("{commit} HEAD symref-target:refs/heads/main\n");
    let main = format!("{commit} refs/heads/main\n");
    let refs = [
        &packet(head.as_bytes()),
        &packet(main.as_bytes())[..],
        b"0000",
    ]
    .concat();
    let shallow = packet(format!("shallow {commit}\n").as_bytes());
    let mut answer = [&packet(b"shallow-info\n"), &shallow[..], b"0001"].concat();
    answer.extend(packet(b"packfile\n"));
    for part in pack.chunks(65_000) {
        answer.extend(packet(&[&[1], part].concat()));
    }
    answer.extend(b"0000");
    Background::serve(Router::new().fallback(async move |request: Request| {
        let is_offer = request.uri().path().ends_with("/info/refs");
        let body = to_bytes(request.into_body(), 1 << 20).await.unwrap();
        let (kind, content) = if is_offer {
            ("advertisement", offer)
        } else if body.windows(13).any(|part| part == b"command=fetch") {
            ("result", answer)
        } else {
            ("result", refs)
        };
        let mut response = Response::new(Body::from(content));
        let kind = format!("application/x-git-upload-pack-{kind}");
        let headers = response.headers_mut();
        headers.insert("content-type", kind.parse().unwrap());
        response
    }))
}

#[tokio::test]
async fn a_tower_of_a_million_deltas_is_climbed_within_the_limits() {
    for n in [40, N_DELTAS] {
        let (commit, pack) = tower(n);
        let server = with_pack(&commit, &pack);
        let source = source_of(&format!("http://{}/x", server.address()));
        let fetched = run(&source, &quick()).await;
        assert!(fetched.result.is_ok(), "{}", fetched.error());
        assert_eq!(fetched.commit(), commit);
        assert_eq!(fetched.read("file"), format!("{n:08}\n"));
    }
}
