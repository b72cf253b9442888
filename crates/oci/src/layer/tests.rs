use std::io::{Cursor, Read, Write};

use super::*;

const ALL: [Compression; 4] = [
    Compression::None,
    Compression::Gzip { level: 1 },
    Compression::DEFAULT_GZIP,
    Compression::DEFAULT_ZSTD,
];

/// Text-like bytes, different everywhere, that compress somewhat.
fn sample(n: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut bytes = Vec::with_capacity(n + 16);
    while bytes.len() < n {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bytes.extend_from_slice(format!("{} ", state >> 20).as_bytes());
    }
    bytes.truncate(n);
    bytes
}

fn written(
    input: &[u8],
    compression: Compression,
    n_threads: usize,
    cut: usize,
) -> (Layer, Vec<u8>) {
    let mut writer = LayerWriter::new(Vec::new(), compression, n_threads).unwrap();
    for piece in input.chunks(cut) {
        writer.write_all(piece).unwrap();
        writer.flush().unwrap();
    }
    writer.finish().unwrap()
}

fn unpacked(blob: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut out = Vec::new();
    decompress(Cursor::new(blob), Limits::default())?.read_to_end(&mut out)?;
    Ok(out)
}

#[test]
fn a_layer_has_the_digests_of_both_forms_and_unpacks_to_what_was_written() {
    for compression in ALL {
        for n in [
            0,
            1,
            511,
            32 << 10,
            (1 << 20) - 1,
            1 << 20,
            (1 << 20) + 1,
            5_000_000,
        ] {
            let input = sample(n);
            let (layer, blob) = written(&input, compression, 2, 70_000);
            assert_eq!(layer.diff_id, Digest::sha256(&input));
            assert_eq!(layer.digest, Digest::sha256(&blob));
            assert_eq!(layer.size_bytes, blob.len() as u64);
            assert_eq!(layer.uncompressed_size_bytes, n as u64);
            assert!(unpacked(&blob).unwrap() == input, "{compression:?} {n}");
        }
    }
}

#[test]
fn neither_threads_nor_the_cut_of_the_input_change_a_layer() {
    let input = sample(6_000_000);
    for compression in ALL {
        let (expected, _) = written(&input, compression, 1, 6_000_000);
        for (n_threads, cut) in [
            (0, 1 << 20),
            (1, 4096),
            (2, 333_333),
            (3, 6_000_000),
            (8, 512),
        ] {
            let (layer, _) = written(&input, compression, n_threads, cut);
            assert_eq!(layer, expected, "{compression:?} {n_threads} {cut}");
        }
    }
}

#[test]
fn gzip_layers_are_members_without_time_or_name() {
    let input = sample(5_000_000);
    let (_, blob) = written(&input, Compression::DEFAULT_GZIP, 2, 4096);
    let (mut rest, mut out, mut n_members) = (&blob[..], Vec::new(), 0);
    while !rest.is_empty() {
        // Deflate, no flags, no time.
        assert_eq!(rest[..8], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0]);
        let mut member = flate2::bufread::GzDecoder::new(rest);
        member.read_to_end(&mut out).unwrap();
        rest = member.into_inner();
        n_members += 1;
    }
    assert!(out == input);
    assert_eq!(n_members, 3);
}

#[test]
fn nothing_is_a_member_too() {
    let (_, blob) = written(b"", Compression::DEFAULT_GZIP, 2, 1);
    assert_eq!(unpacked(&blob).unwrap(), b"");
}

#[test]
fn gzip_layers_are_read_by_gzip() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layer.gz");
    let input = sample(3_000_000);
    let (_, blob) = written(&input, Compression::DEFAULT_GZIP, 2, 4096);
    std::fs::write(&path, blob).unwrap();
    let output = std::process::Command::new("gzip")
        .args(["-dc"])
        .arg(&path)
        .output()
        .expect("gzip runs (Debian package gzip)");
    assert!(output.status.success());
    assert!(output.stdout == input);
}

#[test]
fn several_members_or_frames_are_one_archive() {
    for compression in &ALL[1..] {
        let (_, mut blob) = written(b"one ", *compression, 1, 99);
        blob.extend(written(b"two", *compression, 1, 99).1);
        assert_eq!(unpacked(&blob).unwrap(), b"one two", "{compression:?}");
    }
}

#[test]
fn damage_truncation_and_trailing_junk_are_errors() {
    for compression in &ALL[1..] {
        let (_, blob) = written(&sample(100_000), *compression, 1, 4096);
        for cut in [1, 2, 5, blob.len() / 2] {
            assert!(
                unpacked(&blob[..blob.len() - cut]).is_err(),
                "{compression:?} -{cut}"
            );
        }
        for junk in [
            &b"junk and more junk"[..],
            b"\0",
            b"\0\0\0\0\0\0\0\0\0\0\0\0",
        ] {
            let long = [&blob[..], junk].concat();
            assert!(unpacked(&long).is_err(), "{compression:?} {junk:?}");
        }
        let mut damaged = blob.clone();
        let at = blob.len() - 3;
        damaged[at] ^= 1;
        assert!(unpacked(&damaged).is_err(), "{compression:?}");
    }
}

#[test]
fn bombs_are_stopped_by_ratio_and_by_size() {
    let limits = Limits {
        archive_bytes: 40 << 20,
        ratio: 50,
        ratio_floor_bytes: 4 << 20,
    };
    let bytes_of = |blob: &[u8]| {
        let mut out = Vec::new();
        let end = decompress(Cursor::new(blob), limits)
            .unwrap()
            .read_to_end(&mut out);
        (end.map_err(|error| error.to_string()), out.len())
    };
    for compression in &ALL[1..] {
        let (_, small) = written(&vec![0; 3 << 20], *compression, 1, 1 << 20);
        assert_eq!(bytes_of(&small).0, Ok(3 << 20));
        let (_, blob) = written(&vec![0; 32 << 20], *compression, 1, 1 << 20);
        let (end, n) = bytes_of(&blob);
        assert_eq!(
            end.unwrap_err(),
            "layer unpacks to more than 50 times its size"
        );
        assert!(n < 8 << 20, "{compression:?} unpacked {n}");
    }
    let (end, _) = bytes_of(&vec![b'x'; 41 << 20]);
    assert_eq!(
        end.unwrap_err(),
        "layer unpacks to more than 41943040 bytes"
    );
}

#[test]
fn a_zstd_window_of_two_gibibytes_is_refused() {
    // Magic, a frame header that asks for a window of 2 GiB, one raw block of one byte.
    let blob = [0x28, 0xb5, 0x2f, 0xfd, 0, 21 << 3, 9, 0, 0, b'x'];
    let error = unpacked(&blob).unwrap_err().to_string();
    assert!(
        error.contains("memory") || error.contains("window"),
        "{error}"
    );
}

#[test]
fn layers_in_bzip2_and_xz_are_refused_by_name() {
    for (magic, name) in [(&b"BZh91AY"[..], "bzip2"), (b"\xfd7zXZ\0\0", "xz")] {
        let error = decompress(Cursor::new(magic), Limits::default()).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("layers are not packed with {name}")
        );
    }
}

/// Packs with a program of this machine.
fn packed(program: &str, package: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), input).unwrap();
    let output = std::process::Command::new(program)
        .args(args)
        .arg("--stdout")
        .arg(file.path())
        .output()
        .unwrap_or_else(|_| panic!("{program} is missing; it is in the Debian package {package}"));
    assert!(output.status.success(), "{program}: {output:?}");
    output.stdout
}

fn unpacked_any(packed: &[u8], limits: Limits) -> std::io::Result<Vec<u8>> {
    let mut out = Vec::new();
    decompress_any(Cursor::new(packed), limits)?.read_to_end(&mut out)?;
    Ok(out)
}

#[test]
fn archives_come_in_bzip2_and_xz_too_and_in_several_streams() {
    let input = sample(1_500_000);
    let (start, end) = input.split_at(700_000);
    for (program, package, args) in [
        ("bzip2", "bzip2", &["-9"][..]),
        ("xz", "xz-utils", &["-1"]),
        ("xz", "xz-utils", &["-9e", "--check=crc32"]),
        ("xz", "xz-utils", &["--block-size=100000", "--check=sha256"]),
        ("xz", "xz-utils", &["--x86", "--lzma2=preset=6"]),
    ] {
        let pack = |input: &[u8]| packed(program, package, args, input);
        let whole = pack(&input);
        assert_eq!(unpacked_any(&whole, Limits::default()).unwrap(), input);
        let twice = [pack(start), pack(end)].concat();
        assert_eq!(unpacked_any(&twice, Limits::default()).unwrap(), input);
        let cut = &whole[..whole.len() - 9];
        assert!(unpacked_any(cut, Limits::default()).is_err(), "{program}");
        let mut damaged = whole.clone();
        damaged[whole.len() / 2] ^= 0x55;
        assert!(
            unpacked_any(&damaged, Limits::default()).is_err(),
            "{program}"
        );
    }
}

#[test]
fn bombs_in_bzip2_and_xz_are_stopped_and_so_is_their_memory() {
    let limits = Limits {
        ratio: 50,
        ratio_floor_bytes: 4 << 20,
        ..Limits::default()
    };
    let zeros = vec![0; 32 << 20];
    for (program, package) in [("bzip2", "bzip2"), ("xz", "xz-utils")] {
        let error = unpacked_any(&packed(program, package, &[], &zeros), limits).unwrap_err();
        assert_eq!(
            error.to_string(),
            "archive unpacks to more than 50 times its size"
        );
    }
    let greedy = packed("xz", "xz-utils", &["--lzma2=dict=512MiB"], b"x");
    let error = unpacked_any(&greedy, Limits::default()).unwrap_err();
    assert!(error.to_string().contains("mem"), "{error}");
}

#[test]
fn levels_that_do_not_exist_are_refused() {
    for compression in [
        Compression::Gzip { level: 0 },
        Compression::Gzip { level: 10 },
        Compression::Zstd { level: 0 },
        Compression::Zstd { level: 20 },
    ] {
        assert!(LayerWriter::new(Vec::new(), compression, 1).is_err());
    }
}

/// What is hardest for a fast compressor: text of few words in no order.
fn prose(size: usize) -> Vec<u8> {
    const WORDS: [&str; 16] = [
        "let ", "mut ", "value", " = ", "self", ".", "result", "();\n", "if ", "else ", "return ",
        "{ ", "}\n", "for ", "name", "0x",
    ];
    let (mut state, mut text) = (1_u64, Vec::new());
    while text.len() < size {
        state = state.wrapping_mul(6_364_136_223_846_793_005);
        state = state.wrapping_add(1_442_695_040_888_963_407);
        text.extend(WORDS[usize::try_from(state >> 60).unwrap()].bytes());
        if state.is_multiple_of(7) {
            write!(text, "{:x}", state >> 40).unwrap();
        }
    }
    text
}

#[test]
fn layers_of_text_are_at_most_an_eighth_larger_than_those_of_zlibs_default() {
    let text = prose(3_000_000);
    let (ours, _) = written(&text, Compression::DEFAULT_GZIP, 1, text.len());
    let mut usual = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    usual.write_all(&text).unwrap();
    let usual = usual.finish().unwrap().len() as u64;
    let is_small = |size| size <= usual + usual / 8;
    assert!(is_small(ours.size_bytes), "{} of {usual}", ours.size_bytes);
    // The level below would not do.
    let (lower, _) = written(&text, Compression::Gzip { level: 2 }, 1, text.len());
    assert!(
        !is_small(lower.size_bytes),
        "{} of {usual}",
        lower.size_bytes
    );
}

#[test]
fn a_writer_that_is_dropped_ends_its_threads() {
    let mut writer = LayerWriter::new(Vec::new(), Compression::DEFAULT_GZIP, 4).unwrap();
    writer.write_all(&sample(3_000_000)).unwrap();
    drop(writer);
}

#[test]
fn media_types_follow_flavour_and_compression() {
    let (layer, _) = written(b"x", Compression::DEFAULT_GZIP, 1, 1);
    let oci = layer.descriptor(Flavour::Oci);
    assert_eq!(oci.media_type, media_type::OCI_LAYER_GZIP);
    assert_eq!(oci.digest, layer.digest);
    assert_eq!(
        layer.media_type(Flavour::Docker),
        media_type::DOCKER_LAYER_GZIP
    );
}
