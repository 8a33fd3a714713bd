"""Steps on classes: the highest scores of a row, and the words of their numbers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sealane.errors import InvalidArgument
from sealane.tensors import Array, TensorSpec
from sealane_worker.model.steps.step import FLOATS, Fields, Place, Specs

MOST_LABEL_BYTES = 16 * 1024 * 1024


class TopK:
    """The `k` highest scores of each row, descending; equal ones by lower class, NaN last."""

    def __init__(self, place: Place, fields: Fields) -> None:
        self._place = place
        self._input = fields.text("input")
        self._k = fields.whole("k", 0)
        self._scores = fields.text("scores", self._input)
        self._classes = fields.text("classes", "classes")
        if not self._k:
            raise place.refuse("k must be said; set how many scores to keep")

    def backward(self, wanted: Specs) -> Specs:
        """Never: what it makes no model takes."""
        raise self._place.refuse("it stands after the model; move it to `after`")

    def forward(self, given: Specs) -> Specs:
        """All scores to some, and their classes."""
        spec = self._place.rows(self._place.spec(given, self._input), 2, FLOATS)
        rows, classes = spec.shape
        if 0 <= classes < self._k:
            raise self._place.refuse(f"k is {self._k} and tensor {spec.name!r} has {classes} classes; lower k")
        kept = TensorSpec(self._scores, "FP32", (rows, self._k))
        return self._place.replaced(given, spec.name, kept, TensorSpec(self._classes, "INT64", (rows, self._k)))

    def run(self, arrays: dict[str, Array]) -> dict[str, Array]:
        """Replace the scores."""
        result = dict(arrays)
        scores = result.pop(self._input).astype(np.float32)
        if scores.shape[1] < self._k:
            raise InvalidArgument(
                f"the model gave {scores.shape[1]} classes and {self._k} are kept; send inputs that give more",
                reason="TOO_FEW_CLASSES",
                field="inputs",
            )
        classes = highest(scores, self._k)
        result[self._scores] = np.take_along_axis(scores, classes, axis=1)
        result[self._classes] = classes
        return result


def highest(scores: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
    """Indices of the `k` highest of each row, descending, equal ones by lower index, NaN last."""
    low = np.where(np.isnan(scores), np.float32(np.inf), -scores)
    classes = np.empty((len(scores), k), np.int64)
    # Sort only what can be among them: a fifth of the time of sorting 1000 classes.
    limits = np.partition(low, k - 1, axis=1)[:, k - 1]
    for row, limit in enumerate(limits):
        able = np.flatnonzero(low[row] <= limit)
        classes[row] = able[np.argsort(low[row, able], kind="stable")[:k]]
    return classes


class Labels:
    """Class numbers to words; a number without a word (-1 of an empty place) becomes an empty one."""

    def __init__(self, place: Place, fields: Fields) -> None:
        self._place = place
        self._input = fields.text("input")
        self._output = fields.text("output", "labels")
        words, file = fields.texts("labels"), fields.text("file", "")
        if bool(words) == bool(file):
            raise place.refuse("the words come from `labels` or from `file`; set one of them")
        encoded = [word.encode() for word in (words or _words(place, file))]
        self._words = np.array([*encoded, b""], np.object_)

    def backward(self, wanted: Specs) -> Specs:
        """Never: words are for people."""
        raise self._place.refuse("it stands after the model; move it to `after`")

    def forward(self, given: Specs) -> Specs:
        """The words as well."""
        spec = self._place.rows(self._place.spec(given, self._input), 0, ("INT64", "INT32"))
        return self._place.replaced(given, spec.name, spec, TensorSpec(self._output, "BYTES", spec.shape))

    def run(self, arrays: dict[str, Array]) -> dict[str, Array]:
        """Add the words."""
        classes = arrays[self._input].astype(np.int64)
        none = len(self._words) - 1
        known = (classes >= 0) & (classes < none)
        words: Array = np.asarray(self._words[np.where(known, classes, none)], np.object_)
        return {**arrays, self._output: words}


def _words(place: Place, file: str) -> list[str]:
    path = (place.folder / file).resolve()
    if not path.is_relative_to(place.folder.resolve()) or not path.is_file():
        raise place.refuse(f"file {file!r} is none of the variant's; push it with the model")
    if path.stat().st_size > MOST_LABEL_BYTES:
        raise place.refuse(f"file {file!r} has more than {MOST_LABEL_BYTES} bytes; shorten it")
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise place.refuse(f"file {file!r} is not UTF-8; save it as UTF-8") from error
    if not text.strip():
        raise place.refuse(f"file {file!r} is empty; write a word a line")
    return text.removesuffix("\n").split("\n")
