"""Signatures of a TensorFlow SavedModel, read from its files without TensorFlow."""

from __future__ import annotations

from pathlib import Path

from google.protobuf.message import DecodeError

from sealane.compat.tfserving.v1 import tensorflow_pb2 as tf
from sealane.errors import InvalidArgument, NotFound
from sealane.protocols.call import DEFAULT_SIGNATURE
from sealane.protocols.tfserving_tensors import decode_signature
from sealane.tensors import Signature

#: The file that holds graphs and signatures.
FILE_NAME = "saved_model.pb"
#: Tag of the graph that serves.
SERVE = "serve"
#: Key under which TensorFlow keeps its initialiser beside the signatures; nobody calls it.
_INIT_OP = "__saved_model_init_op"


def read_signatures(directory: Path) -> tuple[Signature, ...]:
    """The signatures of the SavedModel in `directory`, in the order of their names.

    A signature with a tensor that cannot be served (sparse, unknown rank, unserved type) is left out,
    unless it is `serving_default` or no other remains.

    Raises:
        NotFound: no saved_model.pb there.
        InvalidArgument: no SavedModel, no graph that serves, or no signature that can be served.
    """
    try:
        content = (directory / FILE_NAME).read_bytes()
    except OSError:
        raise NotFound(
            f"{directory.name!r} holds no readable {FILE_NAME}; give the directory that model.export wrote",
            reason="NO_SAVED_MODEL",
        ) from None
    return parse_signatures(content)


def read_methods(directory: Path) -> dict[str, str]:
    """Signature name -> method, of the signatures that are a classification or a regression.

    Raises:
        NotFound, InvalidArgument: see :func:`read_signatures`.
    """
    return {signature.name: signature.method for signature in read_signatures(directory) if signature.method}


def parse_signatures(content: bytes) -> tuple[Signature, ...]:
    """The signatures in the content of a saved_model.pb; see :func:`read_signatures`."""
    try:
        model = tf.SavedModel.FromString(content)
    except DecodeError:
        raise InvalidArgument(f"{FILE_NAME} is no SavedModel; export it again", reason="NO_SAVED_MODEL") from None
    graph = next(
        (graph for graph in model.meta_graphs if SERVE in graph.meta_info_def.tags),
        None,
    )
    if graph is None:
        raise InvalidArgument(
            f"{FILE_NAME} has no graph with the tag {SERVE!r}; export the model for serving",
            reason="NO_SAVED_MODEL",
        )
    found: list[Signature] = []
    refused: list[InvalidArgument] = []
    for name in sorted(graph.signature_def):
        if name == _INIT_OP:
            continue
        try:
            found.append(decode_signature(name, graph.signature_def[name]))
        except InvalidArgument as error:
            if name == DEFAULT_SIGNATURE:
                raise
            refused.append(error)
    if found:
        return tuple(found)
    raise (
        refused[0]
        if refused
        else InvalidArgument(
            "the model has no signature; export it with one",
            reason="SIGNATURE_UNSUPPORTED",
        )
    )
