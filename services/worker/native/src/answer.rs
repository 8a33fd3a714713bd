//! Answers from tensors, in the wire format of protobuf.

use bytes::{BufMut, Bytes, BytesMut};

use crate::layout::{Layout, Tensor};
use crate::message::{Kind, LENGTH_DELIMITED};

fn varint_size(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

pub fn put_varint(out: &mut impl BufMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// Bytes of a length-delimited field with a number below 16.
pub fn field_size(size: usize) -> usize {
    1 + varint_size(size as u64) + size
}

pub fn put_head(out: &mut impl BufMut, number: u8, size: usize) {
    out.put_u8(number << 3 | LENGTH_DELIMITED as u8);
    put_varint(out, size as u64);
}

pub fn put_field(out: &mut impl BufMut, number: u8, value: &[u8]) {
    put_head(out, number, value.len());
    out.put_slice(value);
}

/// What stands before a message on the wire: a flag, and its length.
pub const FRAME_HEAD: usize = 5;

/// The message that stands behind room for the frame's head.
pub fn framed(mut out: BytesMut) -> Option<Bytes> {
    let size = u32::try_from(out.len() - FRAME_HEAD).ok()?;
    out[..FRAME_HEAD].copy_from_slice(&[&[0][..], &size.to_be_bytes()].concat());
    Some(out.freeze())
}

/// What comes back for a request.
pub struct Answered<'a> {
    pub kind: Kind,
    /// The message without tensors and id, serialized.
    pub head: &'a [u8],
    pub id: &'a [u8],
    pub layout: &'a Layout,
    pub body: &'a [u8],
}

/// The message of an answer behind some bytes.
pub fn answer(before: &[u8], answered: &Answered<'_>) -> Option<BytesMut> {
    let Answered { kind, head, id, layout, body } = *answered;
    let size = before.len() + head.len() + id.len() + layout.size + 64 * (layout.tensors.len() + 1);
    let mut out = BytesMut::with_capacity(size);
    out.put_slice(before);
    out.put_slice(head);
    match kind {
        Kind::OpenInference => {
            if !id.is_empty() {
                put_field(&mut out, 3, id);
            }
            for tensor in &layout.tensors {
                put_output(&mut out, tensor);
            }
            for tensor in &layout.tensors {
                let content = &body[tensor.start..tensor.start + tensor.size];
                if tensor.datatype == "BYTES" {
                    elements(content, tensor)?;
                }
                put_field(&mut out, 6, content);
            }
        }
        Kind::TensorFlowServing => {
            for tensor in &layout.tensors {
                put_entry(&mut out, tensor, &body[tensor.start..tensor.start + tensor.size])?;
            }
        }
    }
    Some(out)
}

fn packed(shape: &[u64]) -> Vec<u8> {
    let mut packed = Vec::with_capacity(shape.len() * 2);
    for length in shape {
        put_varint(&mut packed, *length);
    }
    packed
}

/// `ModelInferResponse.InferOutputTensor`.
fn put_output(out: &mut BytesMut, tensor: &Tensor) {
    let shape = packed(&tensor.shape);
    let dims = if shape.is_empty() { 0 } else { field_size(shape.len()) };
    put_head(out, 5, field_size(tensor.name.len()) + field_size(tensor.datatype.len()) + dims);
    put_field(out, 1, tensor.name.as_bytes());
    put_field(out, 2, tensor.datatype.as_bytes());
    if !shape.is_empty() {
        put_field(out, 3, &shape);
    }
}

/// An entry of `PredictResponse.outputs`; None for a datatype that TensorFlow has no number for.
fn put_entry(out: &mut BytesMut, tensor: &Tensor, content: &[u8]) -> Option<()> {
    let number = data_type(&tensor.datatype)?;
    let mut shape = Vec::new();
    for length in &tensor.shape {
        let mut dim = Vec::new();
        if *length != 0 {
            dim.push(1 << 3);
            put_varint(&mut dim, *length);
        }
        put_field(&mut shape, 2, &dim);
    }
    let strings = if tensor.datatype == "BYTES" { Some(elements(content, tensor)?) } else { None };
    let contents = match &strings {
        Some(strings) => strings.iter().map(|item| field_size(item.len())).sum(),
        None if content.is_empty() => 0,
        None => field_size(content.len()),
    };
    let size = 1 + varint_size(number) + field_size(shape.len()) + contents;
    put_head(out, 1, field_size(tensor.name.len()) + field_size(size));
    put_field(out, 1, tensor.name.as_bytes());
    put_head(out, 2, size);
    out.put_u8(1 << 3);
    put_varint(out, number);
    put_field(out, 2, &shape);
    match strings {
        Some(strings) => strings.iter().for_each(|item| put_field(out, 8, item)),
        None if content.is_empty() => {}
        None => put_field(out, 4, content),
    }
    Some(())
}

/// The elements of a BYTES tensor, each behind its length; None where they are not as many as the shape says.
fn elements<'a>(mut content: &'a [u8], tensor: &Tensor) -> Option<Vec<&'a [u8]>> {
    let mut found = Vec::new();
    while !content.is_empty() {
        let size = u32::from_le_bytes(content.get(..4)?.try_into().ok()?) as usize;
        found.push(content.get(4..4 + size)?);
        content = &content[4 + size..];
    }
    let wanted = tensor.shape.iter().try_fold(1u64, |product, length| product.checked_mul(*length))?;
    (found.len() as u64 == wanted).then_some(found)
}

/// `tensorflow.DataType`, by `types.proto`.
fn data_type(datatype: &str) -> Option<u64> {
    Some(match datatype {
        "FP32" => 1,
        "FP64" => 2,
        "INT32" => 3,
        "UINT8" => 4,
        "INT16" => 5,
        "INT8" => 6,
        "BYTES" => 7,
        "INT64" => 9,
        "BOOL" => 10,
        "BF16" => 14,
        "UINT16" => 17,
        "FP16" => 19,
        "UINT32" => 22,
        "UINT64" => 23,
        _ => return None,
    })
}
