use std::io::{Read as _, Write as _};

use oci::layer::{Compression, Flavour, LayerWriter};
use oci::tar::{self, Entry, Kind, Reader, Writer};

use super::flatten::{FlattenError, flatten};
use super::*;
use crate::assemble::LayerRef;

/// A store and the layers in it.
struct Rig {
    _folder: tempfile::TempDir,
    store: Store,
    layers: Vec<LayerRef>,
}

type Member = (Entry, &'static [u8]);

fn file(path: &str, content: &'static [u8]) -> Member {
    let mut entry = Entry::new(path.as_bytes(), Kind::File);
    entry.mode = 0o644;
    entry.mtime = 12_345;
    entry.size = content.len() as u64;
    (entry, content)
}

fn of(kind: Kind, path: &str, link: &str) -> Member {
    let mut entry = Entry::new(path.as_bytes(), kind);
    entry.mode = 0o755;
    entry.mtime = 1_000;
    entry.link = link.as_bytes().to_vec();
    (entry, b"")
}

impl Rig {
    fn new(layers: &[&[Member]], compression: Compression, n_threads: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), None).unwrap();
        let layers = layers
            .iter()
            .map(|members| {
                let out = store.ingest().unwrap();
                let writer = LayerWriter::new(out, compression, n_threads).unwrap();
                let mut archive = Writer::new(writer);
                for (entry, content) in *members {
                    archive.append(entry, &mut &content[..]).unwrap();
                }
                let (layer, out) = archive.finish().unwrap().finish().unwrap();
                out.commit(Some(&layer.digest)).unwrap();
                LayerRef {
                    diff_id: layer.diff_id.clone(),
                    descriptor: layer.descriptor(Flavour::Oci),
                    origin: None,
                }
            })
            .collect();
        Self {
            _folder: folder,
            store,
            layers,
        }
    }

    fn flatten(&self, layer_bytes: u64) -> Result<(Flattened, Vec<u8>), FlattenError> {
        let (cancel, mut out) = (CancellationToken::new(), Vec::new());
        let bounds = Bounds {
            layer_bytes,
            cancel: &cancel,
        };
        let report = flatten(&self.store, &self.layers, &mut out, bounds)?;
        Ok((report, out))
    }

    fn packed(&self, format: Format) -> Vec<u8> {
        let (cancel, scratch) = (CancellationToken::new(), tempfile::tempdir().unwrap());
        let bounds = Bounds {
            layer_bytes: 1 << 20,
            cancel: &cancel,
        };
        let mut archive = |out: &mut dyn std::io::Write| {
            let mut out = out;
            flatten(&self.store, &self.layers, &mut out, bounds)
        };
        let out = self.store.ingest().unwrap();
        let (_, out) = pack::pack(format, &mut archive, out, scratch.path(), &cancel).unwrap();
        let (digest, _) = out.commit(None).unwrap();
        let mut bytes = Vec::new();
        let mut blob = self.store.open_blob(&digest).unwrap().unwrap();
        blob.read_to_end(&mut bytes).unwrap();
        bytes
    }
}

/// Returns every entry in a line: kind, mode, owner, time, path, what it links to or holds.
fn listing(archive: &[u8]) -> Vec<String> {
    let mut reader = Reader::new(archive, tar::Limits::default());
    let mut lines = Vec::new();
    while let Some(entry) = reader.next().unwrap() {
        let mut content = String::new();
        reader.read_to_string(&mut content).unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        lines.push(format!(
            "{:?} {:o} {}:{} {} {} {}{content}",
            entry.kind,
            entry.mode,
            entry.uid,
            entry.gid,
            entry.mtime,
            text(&entry.path),
            text(&entry.link)
        ));
    }
    lines
}

fn image() -> Vec<Vec<Member>> {
    let mut special = file("etc/special", b"s");
    special.0.mode = 0o6755;
    special.0.uid = 70_000;
    special.0.gid = 3;
    special
        .0
        .xattrs
        .insert(b"user.note".to_vec(), b"kept".to_vec());
    special
        .0
        .xattrs
        .insert(b"trusted.note".to_vec(), b"dropped".to_vec());
    let mut root = of(Kind::Directory, ".", "");
    root.0.mode = 0o711;
    vec![
        vec![
            root,
            of(Kind::Directory, "etc", ""),
            file("etc/one", b"first"),
            of(Kind::HardLink, "etc/two", "etc/one"),
            file("etc/gone", b"x"),
            special,
            of(Kind::Fifo, "pipe", ""),
            of(Kind::CharDevice, "dev/null", ""),
        ],
        vec![
            of(Kind::Directory, "etc", ""),
            file("etc/one", b"second"),
            file("etc/.wh.gone", b""),
            of(Kind::Symlink, "link", "etc/one"),
        ],
    ]
}

fn rig(compression: Compression, n_threads: usize) -> Rig {
    let layers = image();
    let layers: Vec<&[Member]> = layers.iter().map(Vec::as_slice).collect();
    Rig::new(&layers, compression, n_threads)
}

#[test]
fn an_image_is_flattened_with_everything_that_its_files_are() {
    let (report, archive) = rig(Compression::DEFAULT_GZIP, 1).flatten(1 << 20).unwrap();
    assert_eq!(
        listing(&archive),
        [
            "Directory 711 0:0 1000 . ",
            "Directory 755 0:0 0 dev ",
            "Directory 755 0:0 1000 etc ",
            "File 644 0:0 12345 etc/two first",
            "File 6755 70000:3 12345 etc/special s",
            "Fifo 755 0:0 1000 pipe ",
            "File 644 0:0 12345 etc/one second",
            "Symlink 777 0:0 1000 link etc/one",
        ]
        .map(|line| line.replace("Symlink 777", "Symlink 755"))
    );
    assert_eq!(
        (report.content_bytes, report.n_entries, report.n_devices),
        (12, 8, 1)
    );
    let mut reader = Reader::new(&archive[..], tar::Limits::default());
    let special =
        std::iter::from_fn(|| reader.next().unwrap()).find(|entry| entry.path == b"etc/special");
    let names: Vec<Vec<u8>> = special.unwrap().xattrs.into_keys().collect();
    assert_eq!(names, [b"user.note".to_vec()]);
}

#[test]
fn the_same_image_gives_the_same_bytes_however_it_is_compressed() {
    let (one, two) = (
        rig(Compression::DEFAULT_GZIP, 1),
        rig(Compression::DEFAULT_ZSTD, 3),
    );
    assert_eq!(
        one.flatten(1 << 20).unwrap().1,
        two.flatten(1 << 20).unwrap().1
    );
    for format in [Format::TarZstd, Format::Squashfs] {
        let (first, second) = (one.packed(format), two.packed(format));
        assert!(!first.is_empty());
        assert!(first == second, "{format} differs");
    }
}

#[test]
fn files_with_several_names_are_written_once() {
    let layer: &[Member] = &[
        file("b", b"same"),
        of(Kind::HardLink, "a", "b"),
        of(Kind::HardLink, "c", "a"),
    ];
    let (report, archive) = Rig::new(&[layer], Compression::DEFAULT_GZIP, 1)
        .flatten(100)
        .unwrap();
    let lines = listing(&archive);
    assert_eq!(
        lines[1..],
        [
            "File 644 0:0 12345 a same",
            "HardLink 644 0:0 12345 b a",
            "HardLink 644 0:0 12345 c a"
        ]
    );
    assert_eq!(report.content_bytes, 4);
}

#[test]
fn a_layer_that_is_not_what_the_image_says_is_refused() {
    let mut rig = rig(Compression::DEFAULT_GZIP, 1);
    rig.layers[1].diff_id = Digest::sha256(b"another");
    assert!(matches!(
        rig.flatten(1 << 20),
        Err(FlattenError::Content { .. })
    ));
    rig.layers[1].descriptor.digest = Digest::sha256(b"nowhere");
    assert!(matches!(
        rig.flatten(1 << 20),
        Err(FlattenError::Open { .. })
    ));
}

#[test]
fn hostile_layers_are_refused_as_their_makers_fault() {
    let escape: &[Member] = &[file("../outside", b"x")];
    let error = Rig::new(&[escape], Compression::DEFAULT_GZIP, 1)
        .flatten(100)
        .unwrap_err();
    assert!(error.is_of_image(), "{error}");
    let large: &[Member] = &[file("a", b"0123456789")];
    let error = Rig::new(&[large], Compression::DEFAULT_GZIP, 1)
        .flatten(9)
        .unwrap_err();
    assert!(matches!(error, FlattenError::TooLarge(9)));
    let rig = Rig::new(&[], Compression::DEFAULT_GZIP, 1);
    let mut out = rig.store.ingest().unwrap();
    out.write_all(b"no archive at all").unwrap();
    let (digest, size) = out.commit(None).unwrap();
    let mut layer = Rig::new(&[large], Compression::DEFAULT_GZIP, 1)
        .layers
        .remove(0);
    layer.descriptor.digest = digest;
    layer.descriptor.size = size;
    let rig = Rig {
        layers: vec![layer],
        ..rig
    };
    assert!(rig.flatten(100).unwrap_err().is_of_image());
}

#[test]
fn names_that_are_no_text_and_long_ones_survive() {
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    let mut odd = file("x", b"1");
    odd.0.path = b"caf\xe9".to_vec();
    let layer: &[Member] = &[odd, file(&long, b"2")];
    let (_, archive) = Rig::new(&[layer], Compression::DEFAULT_GZIP, 1)
        .flatten(100)
        .unwrap();
    let mut reader = Reader::new(&archive[..], tar::Limits::default());
    let names: Vec<Vec<u8>> = std::iter::from_fn(|| reader.next().unwrap())
        .map(|entry| entry.path)
        .collect();
    assert!(names.contains(&b"caf\xe9".to_vec()));
    assert!(names.contains(&long.into_bytes()));
}

#[test]
fn a_record_is_good_as_long_as_its_file_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), None).unwrap();
    let image = Digest::sha256(b"image");
    let key = key("t", &image, Format::TarZstd);
    assert_eq!(find(&store, &key).unwrap(), None);
    let digest = store.put(b"file").unwrap();
    let manifest = Manifest::new(
        &ImageConfig::default(),
        manifest::File {
            source: image.clone(),
            format: Format::TarZstd,
            digest: digest.clone(),
            size_bytes: 4,
            uncompressed_bytes: 1,
            n_entries: 1,
            n_devices: 0,
        },
    );
    let stored = Stored {
        image,
        digest: digest.clone(),
        size_bytes: 4,
        manifest,
    };
    store
        .put_record(KIND, &key, &serde_json::to_vec(&stored).unwrap())
        .unwrap();
    assert_eq!(find(&store, &key).unwrap(), Some(stored));
    store.quarantine(&digest).unwrap();
    assert_eq!(find(&store, &key).unwrap(), None);
    store.put_record(KIND, &key, b"not a document").unwrap();
    assert_eq!(find(&store, &key).unwrap(), None);
}
