//! `--progress rawjson`: the journal, one JSON document per line.
//!
//! `{"at_ms":1,"event":{"type":"step_started",…}}` as in the journal, and `{"at_ms":2,"output":{"step":1,"stream":"stdout","data":"…"}}`
//! with the bytes in base64, because a step may write anything.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use engine::journal::{Body, Record};
use serde_json::json;

/// Returns the line of one record, with its newline.
pub(crate) fn line(record: &Record) -> String {
    let at_ms = record.at_ms;
    let document = match &record.body {
        Body::Event(event) => json!({ "at_ms": at_ms, "event": event }),
        Body::Output {
            step,
            stream,
            bytes,
        } => {
            let data = STANDARD.encode(bytes);
            let output = json!({ "step": step, "stream": stream, "data": data });
            json!({ "at_ms": at_ms, "output": output })
        }
    };
    format!("{document}\n")
}

#[cfg(test)]
mod tests {
    use engine::event::{StepId, Stream};

    use super::*;

    #[test]
    fn output_survives_whatever_its_bytes() {
        let body = Body::Output {
            step: StepId(3),
            stream: Stream::Stderr,
            bytes: vec![0, 255, b'\n'],
        };
        let line = line(&Record { at_ms: 7, body });
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(read["output"]["step"], 3);
        let data = STANDARD.decode(read["output"]["data"].as_str().unwrap());
        assert_eq!(data.unwrap(), [0, 255, b'\n']);
    }
}
