//! HPACK stories of several encoders and single HTTP/2 frames, where `TIDEGATE_CORPUS` names a
//! directory that holds them. Nothing is tested without it.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use serde_json::Value;
use tidegate::inspect::fields::{NameId, Sink, Wanted};
use tidegate::inspect::h2::frame::{FRAME_BYTES_MAX, Frames, Part};
use tidegate::inspect::hpack::{Decoder, TABLE_BYTES};

/// The JSON files of a folder by name.
fn stories(folder: &str) -> Vec<(String, Value)> {
    let Some(corpus) = std::env::var_os("TIDEGATE_CORPUS").map(PathBuf::from) else {
        return Vec::new();
    };
    let entries = std::fs::read_dir(corpus.join(folder)).expect("a folder");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    let read = |path: &PathBuf| {
        let file = GzDecoder::new(File::open(path).expect("a file"));
        (name(path), serde_json::from_reader(file).expect("JSON"))
    };
    paths.iter().map(read).collect()
}

fn name(path: &Path) -> String {
    path.file_name().expect("a name").to_string_lossy().into_owned()
}

fn hex(text: &Value) -> Vec<u8> {
    let text = text.as_str().expect("hex digits");
    let digits = (0..text.len()).step_by(2).map(|at| &text[at..at + 2]);
    digits.map(|pair| u8::from_str_radix(pair, 16).expect("hex digits")).collect()
}

/// All fields in order.
#[derive(Default)]
struct Told(Vec<(NameId, Vec<u8>)>);

impl Sink for Told {
    fn clear(&mut self) {
        self.0.clear();
    }

    fn begin(&mut self, name: NameId) {
        self.0.push((name, Vec::new()));
    }

    fn value(&mut self, piece: &[u8]) {
        self.0.last_mut().expect("a field").1.extend_from_slice(piece);
    }

    fn end(&mut self) {}
}

/// Name and value of each field of a case.
fn expected(case: &Value) -> Vec<(&str, &str)> {
    let fields = case["headers"].as_array().expect("fields").iter();
    fields
        .flat_map(|field| field.as_object().expect("a field"))
        .map(|(name, value)| (&**name, value.as_str().expect("a value")))
        .collect()
}

#[test]
fn stories_of_other_encoders() {
    let mut blocks = 0;
    for (file, story) in stories("hpack") {
        let cases = story["cases"].as_array().expect("cases");
        let names: BTreeSet<&str> = cases.iter().flat_map(expected).map(|(name, _)| name).collect();
        let wanted = Wanted::new(names).expect("names");
        for piece in [usize::MAX, 1] {
            let mut decoder = Decoder::new(TABLE_BYTES);
            for case in cases {
                if let Some(size) = case.get("header_table_size").and_then(Value::as_u64) {
                    decoder.set_limit(size as u32);
                }
                let (block, mut told) = (hex(&case["wire"]), Told::default());
                decoder.begin_block();
                for piece in block.chunks(piece) {
                    decoder.feed(piece, &wanted, &mut told).expect(&file);
                }
                decoder.end_block().expect(&file);
                let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
                let told = told
                    .0
                    .iter()
                    .map(|(id, value)| (text(wanted.name(*id).unwrap_or(b"?")), text(value)));
                let told: Vec<_> = told.collect();
                let told: Vec<_> = told.iter().map(|(n, v)| (&**n, &**v)).collect();
                assert_eq!(told, expected(case), "{file} {}", case["seqno"]);
                blocks += 1;
            }
        }
    }
    eprintln!("{blocks} blocks");
    assert!(blocks > 40_000 || std::env::var_os("TIDEGATE_CORPUS").is_none(), "{blocks} blocks");
}

/// What a frame holds, in the terms of the corpus.
fn payload(parts: &[Part<'_>]) -> Vec<(&'static str, Value)> {
    let mut told: Vec<(&str, Value)> = Vec::new();
    let (mut text, mut settings) = (Vec::new(), Vec::new());
    for part in parts {
        match *part {
            Part::Priority { exclusive, depends_on, weight } => {
                told.push(("exclusive", exclusive.into()));
                told.push(("stream_dependency", depends_on.into()));
                told.push(("weight", weight.into()));
            }
            Part::Promised { stream } => told.push(("promised_stream_id", stream.into())),
            Part::Setting { id, value } => settings.push(Value::from(vec![u32::from(id), value])),
            Part::Reset { code } => told.push(("error_code", code.into())),
            Part::Ping(data) => told.push(("opaque_data", String::from_utf8_lossy(&data).into())),
            Part::GoAway { last_stream, code } => {
                told.push(("last_stream_id", last_stream.into()));
                told.push(("error_code", code.into()));
            }
            Part::WindowUpdate { increment } => {
                told.push(("window_size_increment", increment.into()));
            }
            Part::Payload(piece) => text.extend_from_slice(piece),
            Part::Head(_) | Part::StreamFault(_) | Part::End(_) => {}
        }
    }
    let text = Value::from(String::from_utf8_lossy(&text));
    match parts.first() {
        Some(Part::Head(head)) if head.kind == 0 => told.push(("data", text)),
        Some(Part::Head(head)) if head.is_block() => told.push(("header_block_fragment", text)),
        Some(Part::Head(head)) if head.kind == 7 => told.push(("additional_debug_data", text)),
        Some(Part::Head(head)) if head.kind == 4 => told.push(("settings", settings.into())),
        _ => {}
    }
    told
}

#[test]
fn single_frames() {
    for (file, case) in stories("h2frames") {
        let wire = hex(&case["wire"]);
        let (mut input, mut frames, mut parts) = (&wire[..], Frames::new(false), Vec::new());
        let error = loop {
            match frames.next(&mut input, FRAME_BYTES_MAX) {
                Ok(Some(Part::StreamFault(code))) => break Some(code.0),
                Ok(Some(part)) => parts.push(part),
                Ok(None) => break None,
                Err(code) => break Some(code.0),
            }
        };
        if let Some(codes) = case["error"].as_array() {
            assert!(error.is_some_and(|code| codes.contains(&code.into())), "{file}: {error:?}");
            continue;
        }
        let (Some(Part::Head(head)), Some(Part::End(_))) = (parts.first(), parts.last()) else {
            panic!("{file}: {error:?} {parts:?}")
        };
        let frame = &case["frame"];
        for (key, value) in [
            ("length", head.length),
            ("type", head.kind.into()),
            ("flags", head.flags.into()),
            ("stream_identifier", head.stream),
        ] {
            assert_eq!(frame[key], value, "{file}: {key}");
        }
        let told = payload(&parts);
        for (key, value) in frame["frame_payload"].as_object().expect("a payload") {
            // Padding is passed over.
            let told = told.iter().find(|(k, _)| k == key).map(|(_, value)| value);
            let passed_over = value.is_null() || key.starts_with("padding");
            assert!(told == Some(value) || passed_over, "{file}: {key} {value} {told:?}");
        }
    }
}
