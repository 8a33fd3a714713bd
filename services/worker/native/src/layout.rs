//! What the body of a reply holds: the JSON of `docs/worker.md`, checked as `sealane_worker/wire.py` does.

use serde_json::Value;

const ALIGNMENT: usize = 64;

pub fn padding(size: usize) -> usize {
    size.wrapping_neg() % ALIGNMENT
}

pub struct Tensor {
    pub name: String,
    pub datatype: String,
    pub shape: Vec<u64>,
    /// Where it lies in the body.
    pub start: usize,
    pub size: usize,
}

pub struct Layout {
    pub tensors: Vec<Tensor>,
    pub size: usize,
}

fn item_bytes(datatype: &str) -> Option<u64> {
    Some(match datatype {
        "BOOL" | "UINT8" | "INT8" => 1,
        "UINT16" | "INT16" | "FP16" | "BF16" => 2,
        "UINT32" | "INT32" | "FP32" => 4,
        "UINT64" | "INT64" | "FP64" => 8,
        _ => return None,
    })
}

impl Layout {
    /// None where it is no layout, or its sizes do not fit together.
    pub fn parse(encoded: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(encoded).ok()?;
        let (mut tensors, mut size) = (Vec::new(), 0usize);
        for item in value.get("t")?.as_array()? {
            let [name, datatype, shape, count] = item.as_array()?.as_slice() else { return None };
            let (name, datatype, count) = (name.as_str()?, datatype.as_str()?, count.as_u64()?);
            let shape: Vec<u64> = shape.as_array()?.iter().map(Value::as_u64).collect::<Option<_>>()?;
            let elements = shape.iter().try_fold(1u64, |product, length| product.checked_mul(*length))?;
            if datatype != "BYTES" && elements.checked_mul(item_bytes(datatype)?)? != count {
                return None;
            }
            let bytes = usize::try_from(count).ok().filter(|bytes| *bytes <= 1 << 40)?;
            tensors.push(Tensor { name: name.into(), datatype: datatype.into(), shape, start: size, size: bytes });
            size = size.checked_add(bytes)?.checked_add(padding(bytes))?;
        }
        Some(Self { tensors, size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_stand_on_multiples_of_64() {
        let layout = Layout::parse(br#"{"t":[["a","FP32",[1,10],40],["b","INT64",[2],16]]}"#).unwrap();
        assert_eq!(layout.size, 128);
        assert_eq!((layout.tensors[1].start, layout.tensors[1].size), (64, 16));
    }

    #[test]
    fn sizes_that_lie_are_refused() {
        for text in [
            r#"{"t":[["a","FP32",[1,10],41]]}"#,
            r#"{"t":[["a","FP32",[-1],4]]}"#,
            r#"{"t":[["a","FP99",[1],4]]}"#,
            r#"{"t":[["a","FP32",[4294967296,4294967296,4294967296],4]]}"#,
            r#"{"t":[["a","FP32",[1]]]}"#,
            r#"{"t":7}"#,
            "[]",
        ] {
            assert!(Layout::parse(text.as_bytes()).is_none(), "{text}");
        }
    }
}
