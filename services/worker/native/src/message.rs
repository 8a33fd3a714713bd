//! Requests without their tensors, in the wire format of protobuf.
//!
//! A request is cut in two: the **contents** of its tensors (and its id, which is only echoed), and all the rest. What
//! the rest means is never found out here. Python decoded, checked and placed a request with the very same rest; then
//! one that differs in nothing but the contents means the same, and those of a fixed size cannot be wrong.

use crate::rope::Rope;

/// Which message it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `inference.ModelInferRequest`.
    OpenInference,
    /// `tensorflow.serving.PredictRequest`.
    TensorFlowServing,
}

/// Contents of one tensor, as a range of the message; the name where the message has it beside them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    pub start: usize,
    pub size: usize,
    pub name: Vec<u8>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// All but contents and id. Contents leave their tag and length, so no two requests that differ have one rest.
    pub rest: Vec<u8>,
    pub contents: Vec<Content>,
    /// The id, where there is one.
    pub id: Option<String>,
}

pub const LENGTH_DELIMITED: u64 = 2;
/// Requests whose rest is larger are nobody's daily call.
pub const MAX_REST: usize = 4096;
/// A TensorProto has fewer fields, and typed values are left to Python.
const MAX_FIELDS: usize = 16;

/// Reads the fields of a message, or of a part of one.
pub struct Reader<'a> {
    message: &'a Rope<'a>,
    at: usize,
    end: usize,
}

/// The value of a field.
#[derive(Clone, Copy)]
pub enum Value {
    Number(u64),
    Range(usize, usize),
    /// Of 4 or 8 bytes.
    Fixed,
}

impl Value {
    pub fn number(self) -> Option<u64> {
        match self {
            Self::Number(number) => Some(number),
            _ => None,
        }
    }

    pub fn range(self) -> Option<(usize, usize)> {
        match self {
            Self::Range(start, end) => Some((start, end)),
            _ => None,
        }
    }

    pub fn bytes(self, message: &Rope<'_>) -> Option<Vec<u8>> {
        self.range().map(|(start, end)| message.to_vec(start, end))
    }

    pub fn text(self, message: &Rope<'_>) -> Option<String> {
        String::from_utf8(self.bytes(message)?).ok()
    }
}

impl<'a> Reader<'a> {
    pub fn new(message: &'a Rope<'a>, start: usize, end: usize) -> Self {
        Self { message, at: start, end }
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.message.get(self.at).filter(|_| self.at < self.end)?;
            self.at += 1;
            if shift == 63 && byte > 1 {
                return None; // more than 64 bits
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    /// A tag or a length: at most 32 bits in at most five bytes, as protobuf reads them.
    fn short(&mut self) -> Option<u64> {
        let from = self.at;
        let value = self.varint()?;
        (self.at - from <= 5 && u32::try_from(value).is_ok()).then_some(value)
    }

    /// The range of the next length-delimited value.
    fn value(&mut self) -> Option<(usize, usize)> {
        let size = usize::try_from(self.short()?).ok()?;
        let start = self.at;
        self.at = start.checked_add(size).filter(|end| *end <= self.end)?;
        Some((start, self.at))
    }

    /// Number and value of the next field.
    pub fn next(&mut self) -> Option<Option<(u64, Value)>> {
        if self.at == self.end {
            return Some(None);
        }
        let tag = self.short()?;
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.skip(8)?,
            LENGTH_DELIMITED => {
                let (start, end) = self.value()?;
                Value::Range(start, end)
            }
            5 => self.skip(4)?,
            _ => return None, // groups
        };
        Some(Some((tag >> 3, value)))
    }

    /// The number of the next field, and the range of its value where it is length-delimited.
    fn field(&mut self) -> Option<Option<(u64, (usize, usize))>> {
        // A number of an unexpected kind is an unknown field to protobuf: none of those that are looked for.
        let field = self.next()?;
        Some(field.map(|(number, value)| value.range().map_or((0, (0, 0)), |range| (number, range))))
    }

    fn skip(&mut self, size: usize) -> Option<Value> {
        self.at = self.at.checked_add(size).filter(|end| *end <= self.end)?;
        Some(Value::Fixed)
    }
}

/// Cut a request in two; None where that is not worth it, or not possible: Python will say why.
pub fn cut(kind: Kind, message: &Rope<'_>) -> Option<Cut> {
    match kind {
        Kind::OpenInference => cut_open_inference(message),
        Kind::TensorFlowServing => cut_tensorflow_serving(message),
    }
}

fn cut_open_inference(message: &Rope<'_>) -> Option<Cut> {
    const ID: u64 = 3;
    const RAW_INPUT_CONTENTS: u64 = 7;
    let mut reader = Reader::new(message, 0, message.len());
    let mut cut = Cut::default();
    let mut kept = 0;
    loop {
        let from = reader.at;
        let Some((number, (start, end))) = reader.field()? else { break };
        match number {
            ID => {
                // Its tag and length go too: ids of any length are the same request.
                if cut.id.is_some() {
                    return None;
                }
                cut.id = Some(String::from_utf8(message.to_vec(start, end)).ok()?);
                message.copy(kept, from, &mut cut.rest);
                kept = end;
            }
            RAW_INPUT_CONTENTS => {
                message.copy(kept, start, &mut cut.rest);
                cut.contents.push(Content { start, size: end - start, name: Vec::new() });
                kept = end;
            }
            _ => {}
        }
        if reader.at - kept + cut.rest.len() > MAX_REST {
            return None;
        }
    }
    finish(message, kept, cut)
}

fn cut_tensorflow_serving(message: &Rope<'_>) -> Option<Cut> {
    const INPUTS: u64 = 2;
    let mut reader = Reader::new(message, 0, message.len());
    let mut cut = Cut::default();
    let mut kept = 0;
    loop {
        if reader.at - kept + cut.rest.len() > MAX_REST {
            return None; // before more of it is looked at
        }
        let Some((number, (start, end))) = reader.field()? else { break };
        if number != INPUTS {
            continue;
        }
        let content = content_of_entry(message, start, end)?;
        if cut.contents.iter().any(|known| known.name == content.name) {
            return None; // which of the two counts is for protobuf to say
        }
        message.copy(kept, content.start, &mut cut.rest);
        kept = content.start + content.size;
        cut.contents.push(content);
    }
    finish(message, kept, cut)
}

/// The tensor_content in an entry of the map of inputs; None where there is not exactly one.
fn content_of_entry(message: &Rope<'_>, start: usize, end: usize) -> Option<Content> {
    const KEY: u64 = 1;
    const VALUE: u64 = 2;
    const TENSOR_CONTENT: u64 = 4;
    let mut entry = Reader::new(message, start, end);
    let (mut name, mut value) = (None, None);
    let mut fields = 0;
    while let Some((number, range)) = entry.field()? {
        let place = match number {
            KEY => &mut name,
            VALUE => &mut value,
            _ => return None,
        };
        if place.replace(range).is_some() {
            return None;
        }
    }
    let (name, (start, end)) = (name?, value?);
    let mut tensor = Reader::new(message, start, end);
    let mut content = None;
    while let Some((number, range)) = tensor.field()? {
        fields += 1;
        if (number == TENSOR_CONTENT && content.replace(range).is_some()) || fields > MAX_FIELDS {
            return None;
        }
    }
    content.map(|(start, end)| Content { start, size: end - start, name: message.to_vec(name.0, name.1) })
}

fn finish(message: &Rope<'_>, kept: usize, mut cut: Cut) -> Option<Cut> {
    message.copy(kept, message.len(), &mut cut.rest);
    (cut.rest.len() <= MAX_REST).then_some(cut)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::answer::put_field;

    fn cut(kind: Kind, message: &[u8]) -> Option<Cut> {
        // In pieces of seven: nothing may depend on where one ends.
        let chunks: Vec<Bytes> = message.chunks(7).map(Bytes::copy_from_slice).collect();
        super::cut(kind, &Rope::new(&chunks, 0))
    }

    fn field(number: u8, value: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        put_field(&mut out, number, value);
        out
    }

    #[test]
    fn tags_and_lengths_are_read_as_protobuf_reads_them() {
        let read = |bytes: &[u8]| Reader::new(&Rope::of(bytes), 0, bytes.len()).next().is_some();
        assert!(read(&[0x0a, 0x01, b'x']) && read(&[0x8a, 0x80, 0x00, 0x81, 0x00, b'x']));
        assert!(!read(&[0x8a, 0x80, 0x80, 0x80, 0x80, 0x00, 0x01, b'x']), "a tag of six bytes");
        assert!(!read(&[0x0a, 0x81, 0x80, 0x80, 0x80, 0x80, 0x00, b'x']), "a length of six bytes");
        assert!(read(&[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]));
        assert!(!read(&[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02]), "more than 64 bits");
    }

    #[test]
    fn contents_and_id_make_no_difference_and_all_else_does() {
        let of = |model: &[u8], id: &[u8], content: &[u8]| {
            let message = [field(1, model), field(3, id), field(5, b"\x0a\x01x"), field(7, content)].concat();
            (cut(Kind::OpenInference, &message).unwrap(), message)
        };
        let (one, message) = of(b"digits", b"1", b"12345678");
        let (other, _) = of(b"digits", b"a longer one", b"abcdefgh");
        assert_eq!(one.rest, other.rest);
        assert_eq!(one.id.as_deref(), Some("1"));
        assert_eq!(&message[one.contents[0].start..][..one.contents[0].size], b"12345678");
        assert_ne!(one.rest, of(b"digitz", b"1", b"12345678").0.rest);
        assert_ne!(one.rest, of(b"digits", b"1", b"1234567").0.rest, "another size is another request");
    }

    #[test]
    fn a_tensor_content_is_cut_out_with_its_name() {
        let tensor = [vec![8, 1], field(4, b"12345678")].concat();
        let message = [field(1, b"\x0a\x01m"), field(2, &[field(1, b"x"), field(2, &tensor)].concat())].concat();
        let found = cut(Kind::TensorFlowServing, &message).unwrap();
        assert_eq!(found.contents.len(), 1);
        assert_eq!(found.contents[0].name, b"x");
        assert_eq!(found.rest.len(), message.len() - 8);
    }

    #[test]
    fn typed_values_are_left_to_python() {
        let tensor = [vec![8, 1], field(5, &[0; 8])].concat();
        let message = field(2, &[field(1, b"x"), field(2, &tensor)].concat());
        assert!(cut(Kind::TensorFlowServing, &message).is_none());
    }

    #[test]
    fn what_protobuf_would_have_to_decide_is_left_to_it() {
        let twice = [field(3, b"a"), field(3, b"b")].concat();
        assert!(cut(Kind::OpenInference, &twice).is_none());
        assert!(cut(Kind::OpenInference, &field(3, b"\xff")).is_none(), "no UTF-8");
        let tensor = [field(4, b"1"), field(4, b"2")].concat();
        let message = field(2, &[field(1, b"x"), field(2, &tensor)].concat());
        assert!(cut(Kind::TensorFlowServing, &message).is_none());
        for broken in [&b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f"[..], b"\x3a\x05ab", b"\x0b", b"\xff"] {
            assert!(cut(Kind::OpenInference, broken).is_none(), "{broken:?}");
            assert!(cut(Kind::TensorFlowServing, broken).is_none(), "{broken:?}");
        }
    }

    #[test]
    fn what_is_endless_is_given_up_early() {
        let many = [0x78, 0].repeat(2 << 20);
        let tensor = field(2, &[field(1, b"x"), field(2, &many)].concat());
        let entry = field(2, &[field(1, b"x"), field(2, b""), many.clone()].concat());
        for message in [many, tensor, entry] {
            let begun = std::time::Instant::now();
            let chunks = [Bytes::from(message)];
            assert!(super::cut(Kind::OpenInference, &Rope::new(&chunks, 0)).is_none());
            assert!(super::cut(Kind::TensorFlowServing, &Rope::new(&chunks, 0)).is_none());
            assert!(begun.elapsed().as_millis() < 100, "two millions of fields are not looked at");
        }
    }

    #[test]
    fn any_bytes_are_cut_without_harm() {
        let mut state = 1u64;
        for _ in 0..20_000 {
            let mut message = Vec::new();
            for _ in 0..(state % 40) {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                message.push((state >> 33) as u8);
            }
            state = state.wrapping_add(1);
            for kind in [Kind::OpenInference, Kind::TensorFlowServing] {
                if let Some(found) = cut(kind, &message) {
                    let cut_out: usize = found.contents.iter().map(|content| content.size).sum();
                    assert!(found.rest.len() + cut_out <= message.len());
                }
            }
        }
    }
}
