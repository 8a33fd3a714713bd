"""Overlapping boxes to the best of them, by OpenCV's non-maximum suppression."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

from sealane.tensors import Array, TensorSpec
from sealane_worker.model.steps.images import opencv
from sealane_worker.model.steps.step import Fields, Place, Specs

#: Best candidates of a row that are compared; the comparison takes the square of their number.
MOST_CANDIDATES = 4096

Floats = npt.NDArray[np.float32]


class NonMaximumSuppression:
    """Per row and class, drops boxes that overlap a better one; the best of all classes are kept, descending.

    Boxes with a side that is negative or not finite are dropped, as are scores of NaN. Equal scores: the earlier box.
    """

    def __init__(self, place: Place, fields: Fields) -> None:
        self._place = place
        self._boxes = fields.text("boxes")
        self._scores = fields.text("scores")
        self._overlap = fields.number("iou_threshold", 0.5, least=0.0, most=1.0)
        self._least = fields.number("score_threshold", 0.0)
        self._most = fields.whole("max_boxes", 100, most=MOST_CANDIDATES)
        self._dnn = opencv(place).dnn

    def backward(self, wanted: Specs) -> Specs:
        """Never: what it makes no model takes."""
        raise self._place.refuse("it stands after the model; move it to `after`")

    def forward(self, given: Specs) -> Specs:
        """All boxes to the best, with their classes and their number."""
        boxes = self._place.rows(self._place.spec(given, self._boxes), 3, ("FP32",))
        scores = self._place.rows(self._place.spec(given, self._scores), 0, ("FP32",))
        fits = len(scores.shape) in (2, 3) and all(
            -1 in (a, b) or a == b for a, b in zip(boxes.shape[:2], scores.shape, strict=False)
        )
        if boxes.shape[2] not in (-1, 4) or not fits:
            raise self._place.refuse(
                f"tensor {boxes.name!r} is {list(boxes.shape)} and {scores.name!r} {list(scores.shape)}; it takes "
                "[-1, n, 4] and [-1, n] or [-1, n, classes]"
            )
        rows = boxes.shape[0]
        made = self._place.replaced(given, boxes.name, TensorSpec(boxes.name, "FP32", (rows, self._most, 4)))
        return self._place.replaced(
            made,
            scores.name,
            TensorSpec(scores.name, "FP32", (rows, self._most)),
            TensorSpec("classes", "INT64", (rows, self._most)),
            TensorSpec("count", "INT32", (rows,)),
        )

    def run(self, arrays: dict[str, Array]) -> dict[str, Array]:
        """Row by row."""
        boxes, scores = cast(Floats, arrays[self._boxes]), cast(Floats, arrays[self._scores])
        if boxes.shape[:2] != scores.shape[:2] or boxes.shape[2] != 4:
            raise self._place.refuse(f"the model gave boxes {list(boxes.shape)} and scores {list(scores.shape)}")
        rows = len(boxes)
        kept_boxes = np.zeros((rows, self._most, 4), np.float32)
        kept_scores = np.zeros((rows, self._most), np.float32)
        classes = np.full((rows, self._most), -1, np.int64)
        count = np.zeros(rows, np.int32)
        for row in range(rows):
            box, of_class = self._keep(boxes[row], scores[row].reshape(len(scores[row]), -1))
            found = len(box)
            kept_boxes[row, :found] = boxes[row, box]
            kept_scores[row, :found] = scores[row].reshape(scores.shape[1], -1)[box, of_class]
            classes[row, :found] = of_class
            count[row] = found
        made: dict[str, Array] = {
            self._boxes: kept_boxes,
            self._scores: kept_scores,
            "classes": classes,
            "count": count,
        }
        return {**arrays, **made}

    def _keep(self, boxes: Floats, scores: Floats) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Boxes kept of one row and the class of each; `scores` is [n, classes]."""
        corners = boxes.astype(np.float64)
        sides = corners[:, 2:] - corners[:, :2]
        sound = np.logical_and(np.isfinite(corners), np.tile(sides >= 0, 2)).all(axis=1)
        box, of_class = np.nonzero((scores >= self._least) & sound.reshape(-1, 1))
        best = np.argsort(-scores[box, of_class], kind="stable")[:MOST_CANDIDATES]
        box, of_class = box[best], of_class[best]
        if not len(box):
            return box, of_class
        # Moved so that none is negative: the library tells classes apart by moving them by the greatest coordinate.
        # Ranks stand for the scores, which may be negative or equal: it takes neither.
        placed = np.hstack([corners[box, :2] - corners[box, :2].min(axis=0), sides[box]])
        ranks = np.arange(len(box), 0, -1, dtype=np.float32)
        kept = self._dnn.NMSBoxesBatched(placed, ranks, of_class.astype(np.int32), 0.0, self._overlap)
        chosen = np.sort(np.asarray(kept, np.intp))[: self._most]
        return box[chosen], of_class[chosen]
