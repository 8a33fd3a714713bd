"""TensorFlow and our adapter read each other's tensors and signatures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sealane.compat.tfserving.v1 import tensorflow_pb2
from sealane.protocols.elements import Budget
from sealane.protocols.savedmodel import read_signatures
from sealane.protocols.tfserving_tensors import decode_tensor, encode_tensor
from sealane.tensors import NUMPY_OF, Signature, TensorSpec

pytestmark = pytest.mark.tensorflow

NUMERIC = sorted(name for name in NUMPY_OF if name not in ("BYTES", "BF16"))


@pytest.mark.parametrize("datatype", NUMERIC)
@pytest.mark.parametrize("rows", [1, 40])
def test_numeric_tensors_both_ways(datatype: str, rows: int) -> None:
    import tensorflow as tf

    array = np.ones((rows, 3), dtype=NUMPY_OF[datatype])
    theirs = tf.make_tensor_proto(array)
    ours = tensorflow_pb2.TensorProto.FromString(theirs.SerializeToString())
    np.testing.assert_array_equal(decode_tensor(ours, Budget(), "x"), array)

    back = type(theirs).FromString(encode_tensor(array).SerializeToString())
    made = tf.make_ndarray(back)
    assert made.dtype == array.dtype
    np.testing.assert_array_equal(made, array)


def test_strings_both_ways() -> None:
    import tensorflow as tf

    array = np.array([[b"a", b"\xff\0"]], dtype=np.object_)
    theirs = tf.make_tensor_proto(array)
    ours = tensorflow_pb2.TensorProto.FromString(theirs.SerializeToString())
    assert decode_tensor(ours, Budget(), "x").tolist() == array.tolist()
    back = type(theirs).FromString(encode_tensor(array).SerializeToString())
    assert tf.make_ndarray(back).tolist() == array.tolist()


def test_scalar_fill_of_tensorflow() -> None:
    import tensorflow as tf

    theirs = tf.make_tensor_proto(5.0, shape=(2, 3))
    ours = tensorflow_pb2.TensorProto.FromString(theirs.SerializeToString())
    assert decode_tensor(ours, Budget(), "x").tolist() == [[5.0] * 3] * 2


def test_signatures_of_a_real_saved_model(tmp_path: Path) -> None:
    import tensorflow as tf

    class Doubler(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32, name="x")])  # type: ignore[untyped-decorator]
        def __call__(self, x: object) -> dict[str, object]:
            return {"y": x + x}  # type: ignore[operator]

    module = Doubler()
    tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": module.__call__})
    assert read_signatures(tmp_path) == (
        Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 4)),)),
    )
