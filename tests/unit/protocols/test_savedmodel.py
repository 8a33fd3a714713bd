"""Signatures are read from saved_model.pb without TensorFlow."""

from __future__ import annotations

from pathlib import Path

import pytest

from sealane.compat.tfserving.v1 import tensorflow_pb2 as tf
from sealane.errors import InvalidArgument, NotFound
from sealane.protocols.savedmodel import parse_signatures, read_signatures
from sealane.protocols.tfserving_tensors import encode_signature
from sealane.tensors import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("image", "FP32", (-1, 8, 8, 1)),), (TensorSpec("probabilities", "FP32", (-1, 10)),))


def saved_model(tag: str = "serve", **signatures: tf.SignatureDef) -> bytes:
    graph = tf.MetaGraphDef(signature_def=signatures)
    graph.meta_info_def.tags.append(tag)
    return tf.SavedModel(saved_model_schema_version=1, meta_graphs=[graph]).SerializeToString()


def sparse() -> tf.SignatureDef:
    definition = encode_signature(SIGNATURE)
    definition.inputs["image"].coo_sparse.values_tensor_name = "v"
    return definition


def unknown_rank() -> tf.SignatureDef:
    definition = encode_signature(SIGNATURE)
    definition.outputs["probabilities"].tensor_shape.unknown_rank = True
    return definition


def test_reads_a_directory(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(saved_model(serving_default=encode_signature(SIGNATURE)))
    assert read_signatures(tmp_path) == (SIGNATURE,)


def test_unserved_signatures_are_left_out_beside_served_ones() -> None:
    content = saved_model(
        serving_default=encode_signature(SIGNATURE),
        sparse=sparse(),
        __saved_model_init_op=tf.SignatureDef(outputs={"op": tf.TensorInfo(name="NoOp")}),
    )
    assert parse_signatures(content) == (SIGNATURE,)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"\xff\xff", "no SavedModel"),
        (saved_model("train"), "no graph with the tag 'serve'"),
        (saved_model(), "no signature"),
        (saved_model(other=sparse()), "not dense"),
        (saved_model(serving_default=unknown_rank(), ok=encode_signature(SIGNATURE)), "unknown rank"),
    ],
)
def test_refused(content: bytes, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        parse_signatures(content)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"saved_model\.pb"):
        read_signatures(tmp_path)
