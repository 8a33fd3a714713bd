"""Steps on images: real JPEG and PNG, what is refused before a decoder sees it, boxes."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from sealane.errors import FailedPrecondition, InvalidArgument
from sealane.tensors import Array, Signature, TensorSpec
from sealane_worker.model.steps import Steps, wrap
from sealane_worker.model.steps.boxes import MOST_CANDIDATES
from sealane_worker.model.steps.image_header import BadImage, size_of
from sealane_worker.runtimes import Runtime, RuntimeOptions

Pixels = npt.NDArray[np.uint8]


class Echo:
    """A model that gives back what it gets."""

    def load(self, path: Path, options: RuntimeOptions) -> tuple[Signature, ...]:
        raise AssertionError("loaded twice")

    def run(self, inputs: dict[str, Array], signature_name: str) -> dict[str, Array]:
        return dict(inputs)

    def close(self) -> None:
        """Nothing."""


def chain(spec: TensorSpec, *before: dict, after: tuple = ()) -> tuple[Runtime, Signature]:
    runtime, (outer,) = wrap(Echo(), (Signature((spec,), (spec,)),), Steps(before, after), Path())  # type: ignore[arg-type]
    return runtime, outer


def decoder(size: tuple[int, int] = (-1, -1), channels: int = 3, **fields: object) -> Runtime:
    runtime, outer = chain(
        TensorSpec("x", "UINT8", (-1, *size, channels)),
        {"decode_image": {"input": "photo", "output": "x", "channels": channels, **fields}},
    )
    assert outer.inputs == (TensorSpec("photo", "BYTES", (-1,)),)
    return runtime


def decode(runtime: Runtime, *images: bytes) -> Pixels:
    return runtime.run({"photo": np.array([*images, None], np.object_)[:-1]}, "serving_default")["x"]  # type: ignore[return-value]


def encoded(pixels: Array, kind: str = ".png", *options: int) -> bytes:
    done, data = cv2.imencode(kind, pixels, list(options))  # type: ignore[arg-type]
    assert done
    return data.tobytes()


def smooth(height: int = 24, width: int = 32) -> Pixels:
    """A picture in RGB whose corners differ, that JPEG keeps well."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 2], -1).astype(np.uint8)


RGB = smooth()
PNG = encoded(RGB[:, :, ::-1])
JPEG = encoded(RGB[:, :, ::-1], ".jpg", cv2.IMWRITE_JPEG_QUALITY, 98)


def test_png_comes_out_exactly_in_rgb() -> None:
    assert np.array_equal(decode(decoder(), PNG)[0], RGB)


def test_jpeg_comes_out_in_rgb() -> None:
    made = decode(decoder(), JPEG, JPEG)
    assert made.shape == (2, 24, 32, 3)
    assert np.abs(made[1].astype(int) - RGB).max() < 16


def test_grey() -> None:
    grey = RGB[:, :, 0].copy()
    runtime = decoder(channels=1)
    assert np.array_equal(decode(runtime, encoded(grey))[0, :, :, 0], grey)
    luma = RGB @ np.array([0.299, 0.587, 0.114])
    assert np.abs(decode(runtime, PNG)[0, :, :, 0] - luma).max() <= 1
    assert np.array_equal(decode(decoder(), encoded(grey))[0], np.repeat(grey[:, :, None], 3, 2))


def test_sixteen_bit_and_alpha() -> None:
    deep = RGB[:, :, ::-1].astype(np.uint16) * 257
    assert np.abs(decode(decoder(), encoded(deep))[0].astype(int) - RGB).max() <= 1
    alpha = np.dstack([RGB[:, :, ::-1], np.full(RGB.shape[:2], 7, np.uint8)])
    assert np.array_equal(decode(decoder(), encoded(alpha))[0], RGB)


def test_photos_are_turned_as_exif_says() -> None:
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    app1 = b"Exif\0\0" + tiff
    turned = JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(app1) + 2) + app1 + JPEG[2:]
    made = decode(decoder(), turned)[0]
    assert made.shape == (32, 24, 3)
    assert np.abs(made.astype(int) - np.rot90(decode(decoder(), JPEG)[0], -1)).max() == 0


def bilinear(image: Pixels, height: int, width: int) -> npt.NDArray[np.float64]:
    """Half-pixel centres, edges repeated."""
    y = np.clip((np.arange(height) + 0.5) * image.shape[0] / height - 0.5, 0, image.shape[0] - 1)
    x = np.clip((np.arange(width) + 0.5) * image.shape[1] / width - 0.5, 0, image.shape[1] - 1)
    y0, x0 = np.floor(y).astype(int), np.floor(x).astype(int)
    y1, x1 = np.minimum(y0 + 1, image.shape[0] - 1), np.minimum(x0 + 1, image.shape[1] - 1)
    fy, fx = (y - y0)[:, None, None], (x - x0)[None, :, None]
    top = image[y0][:, x0] * (1 - fx) + image[y0][:, x1] * fx
    return top * (1 - fy) + (image[y1][:, x0] * (1 - fx) + image[y1][:, x1] * fx) * fy


def test_scaled_bilinearly_while_decoding_and_after() -> None:
    wanted = bilinear(RGB, 11, 17)
    assert np.abs(decode(decoder((11, 17), height=11, width=17), PNG)[0] - wanted).max() <= 1
    spec = TensorSpec("x", "FP32", (-1, 11, 17, 3))
    runtime, outer = chain(spec, {"resize": {"tensor": "x", "height": 11, "width": 17}})
    assert outer.inputs == (TensorSpec("x", "FP32", (-1, -1, -1, 3)),)
    made = runtime.run({"x": RGB[None].astype(np.float32)}, "serving_default")["x"]
    np.testing.assert_allclose(made[0], wanted, atol=0.01)


@pytest.mark.parametrize("channels", [1, 5])
def test_resize_keeps_every_number_of_channels(channels: int) -> None:
    runtime, _ = chain(TensorSpec("x", "UINT8", (-1, 4, 4, -1)), {"resize": {"tensor": "x", "height": 4, "width": 4}})
    images = np.random.default_rng(0).integers(0, 256, (2, 9, 6, channels), np.uint8)
    made = runtime.run({"x": images}, "serving_default")["x"]
    assert np.abs(made[1] - bilinear(images[1], 4, 4)).max() <= 1


def test_photo_to_words() -> None:
    """The whole way: JPEG in, label out."""
    signature = Signature((TensorSpec("x", "FP32", (-1, 3, 8, 8)),), (TensorSpec("scores", "FP32", (-1, 3)),))

    class Brightest(Echo):
        def run(self, inputs: dict[str, Array], signature_name: str) -> dict[str, Array]:
            return {"scores": inputs["x"].mean(axis=(2, 3))}  # type: ignore[type-var]

    steps = Steps(
        before=(
            {"decode_image": {"input": "photo", "output": "x", "height": 8, "width": 8}},
            {"cast": {"tensor": "x", "datatype": "FP32"}},
            {"normalize": {"tensor": "x", "scale": 1 / 255, "channels_first": True}},
        ),
        after=(
            {"softmax": {"tensor": "scores"}},
            {"top_k": {"input": "scores", "k": 1}},
            {"labels": {"input": "classes", "labels": ["red", "green", "blue"]}},
        ),
    )
    runtime, (outer,) = wrap(Brightest(), (signature,), steps, Path())
    assert outer.inputs == (TensorSpec("photo", "BYTES", (-1,)),)
    assert [each.name for each in outer.outputs] == ["scores", "classes", "labels"]
    photos = [encoded(np.full((30, 40, 3), colour, np.uint8), ".jpg") for colour in ((0, 0, 255), (255, 0, 0))]
    made = runtime.run({"photo": np.array(photos, np.object_)}, "serving_default")
    assert made["labels"].tolist() == [[b"red"], [b"blue"]]


# -- what is refused


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (b"", "neither JPEG nor PNG"),
        (b"GIF89a" + bytes(40), "neither JPEG nor PNG"),
        (encoded(RGB, ".bmp"), "neither JPEG nor PNG"),
        (encoded(RGB, ".tiff"), "neither JPEG nor PNG"),
        (encoded(RGB, ".webp"), "neither JPEG nor PNG"),
        (PNG[:20], "its header is broken"),
        (JPEG[:40], "its header is broken"),
        (png_header(0, 5), "it has no pixels"),
        (png_header(60_000, 60_000), "3600000000 pixels, the limit is 64000000"),
        (png_header(5, 5), "cannot be decoded"),
        (JPEG[:2] + b"\xff\xda\x00\x02" * 200 + JPEG[2:], "more than 100 scans"),
        (7, "it is not bytes"),
    ],
    ids=range(12),
)
def test_what_is_no_accepted_image_names_its_row(bad: bytes, says: str) -> None:
    with pytest.raises(InvalidArgument, match="row 1") as caught:
        decode(decoder((8, 8), height=8, width=8), PNG, bad, PNG)
    assert says in caught.value.message
    assert caught.value.metadata["row"] == "1"


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = decoder(max_pixels="1000")
    assert decode(runtime, encoded(np.zeros((25, 40, 3), np.uint8))).shape == (1, 25, 40, 3)
    bomb = encoded(np.zeros((1001, 1, 3), np.uint8))
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("the decoder saw it"))
    with pytest.raises(InvalidArgument, match="1001 pixels, the limit is 1000"):
        decode(runtime, bomb)


def test_many_small_files_cannot_become_more_than_a_tensor_may_be() -> None:
    flat = encoded(np.zeros((2000, 2000, 3), np.uint8))
    assert len(flat) < 40_000
    with pytest.raises(InvalidArgument) as caught:
        decode(decoder(), *[flat] * 6)
    assert caught.value.reason == "TENSOR_TOO_LARGE"


def test_images_of_one_request_agree_in_size_where_none_is_set() -> None:
    with pytest.raises(InvalidArgument, match="row 1"):
        decode(decoder(), PNG, encoded(RGB[:10]))


def test_an_image_of_another_size_than_the_model_takes() -> None:
    with pytest.raises(InvalidArgument) as caught:
        decode(decoder((8, 8)), PNG)
    assert caught.value.reason == "INPUT_SHAPE_MISMATCH"


@pytest.mark.parametrize("image", [PNG, JPEG])
def test_cut_short_anywhere_it_is_refused_or_decoded_but_never_fails_otherwise(image: bytes) -> None:
    runtime = decoder()
    for end in range(0, len(image), 7):
        try:
            assert decode(runtime, image[:end]).shape == (1, 24, 32, 3)
        except InvalidArgument as error:
            assert error.reason == "IMAGE_REFUSED"


def test_headers_of_garbage_never_fail_otherwise() -> None:
    random = np.random.default_rng(0)
    for _ in range(2000):
        body = random.integers(0, 256, random.integers(0, 60), np.uint8).tobytes()
        try:
            height, width = size_of(random.choice([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"]) + body)  # type: ignore[arg-type]
        except BadImage:
            continue
        assert height > 0
        assert width > 0


@pytest.mark.parametrize(
    ("spec", "fields", "says"),
    [
        (TensorSpec("x", "FP32", (-1, 8, 8, 3)), {}, "is FP32, this step works on UINT8"),
        (TensorSpec("x", "UINT8", (-1, 8, 8)), {}, "needs 4 dimensions"),
        (TensorSpec("x", "UINT8", (-1, 8, 8, 1)), {}, "as the model wants them"),
        (TensorSpec("x", "UINT8", (-1, 9, 8, 3)), {}, "as the model wants them"),
        (TensorSpec("x", "UINT8", (-1, 8, 8, 4)), {"channels": 4}, "use 1 for grey or 3 for RGB"),
        (TensorSpec("x", "UINT8", (-1, 8, 8, 3)), {"width": 0}, "set both or none"),
    ],
)
def test_a_decoder_that_does_not_fit_is_refused_at_load(spec: TensorSpec, fields: dict, says: str) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        chain(spec, {"decode_image": {"input": "x", "height": 8, "width": 8, **fields}})
    assert caught.value.reason == "MANIFEST_STEPS"
    assert says in caught.value.message


# -- boxes


def overlap(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    common = float(np.prod(np.maximum(sides, 0)))
    return common / (float(np.prod(a[2:] - a[:2])) + float(np.prod(b[2:] - b[:2])) - common)


def plain(boxes: Array, scores: Array, iou: float, least: float) -> list[tuple[int, int]]:
    """(box, class) kept of one row, best first."""
    able = [(-float(scores[b, c]), b, c) for b, c in np.ndindex(scores.shape) if scores[b, c] >= least]
    kept: list[tuple[int, int]] = []
    for _, box, of_class in sorted(able):
        if all(other != of_class or overlap(boxes[box], boxes[b]) <= iou for b, other in kept):
            kept.append((box, of_class))
    return kept


def suppressor(n: int, classes: int, **fields: object) -> tuple[Runtime, Signature]:
    scores = TensorSpec("scores", "FP32", (-1, n, classes) if classes else (-1, n))
    specs = (TensorSpec("boxes", "FP32", (-1, n, 4)), scores)
    step = {"non_maximum_suppression": {"boxes": "boxes", "scores": "scores", **fields}}
    runtime, (outer,) = wrap(Echo(), (Signature(specs, specs),), Steps(after=(step,)), Path())
    return runtime, outer


@pytest.mark.parametrize(("classes", "shift"), [(3, 0), (3, -500), (1, 0)])
def test_suppression_equals_the_plain_algorithm(classes: int, shift: float) -> None:
    random = np.random.default_rng(classes)
    corner = random.uniform(0, 60, (4, 40, 2)) + shift
    boxes = np.concatenate([corner, corner + random.uniform(5, 40, (4, 40, 2))], -1).astype(np.float32)
    scores = random.uniform(-1, 1, (4, 40, classes)).astype(np.float32)
    runtime, outer = suppressor(40, classes, iou_threshold=0.3, score_threshold=-0.2, max_boxes=50)
    assert outer.outputs == (
        TensorSpec("boxes", "FP32", (-1, 50, 4)),
        TensorSpec("scores", "FP32", (-1, 50)),
        TensorSpec("classes", "INT64", (-1, 50)),
        TensorSpec("count", "INT32", (-1,)),
    )
    made = runtime.run({"boxes": boxes, "scores": scores}, "serving_default")
    assert {name: array.dtype.name for name, array in made.items()} == {
        "boxes": "float32",
        "scores": "float32",
        "classes": "int64",
        "count": "int32",
    }
    for row in range(4):
        wanted = plain(boxes[row].astype(np.float64), scores[row], 0.3, -0.2)[:50]
        found = len(wanted)
        assert made["count"][row] == found
        assert made["classes"][row].tolist() == [c for _, c in wanted] + [-1] * (50 - found)
        np.testing.assert_array_equal(made["boxes"][row, :found], boxes[row, [b for b, _ in wanted]])
        np.testing.assert_array_equal(made["scores"][row, :found], [scores[row, b, c] for b, c in wanted])
        assert not made["boxes"][row, found:].any()


def test_scores_without_classes_are_of_class_zero() -> None:
    runtime, _ = suppressor(2, 0)
    boxes = np.array([[[0, 0, 10, 10], [1, 1, 10, 10]]], np.float32)
    made = runtime.run({"boxes": boxes, "scores": np.array([[0.5, 0.6]], np.float32)}, "serving_default")
    assert made["count"].tolist() == [1]
    assert made["classes"][0, :2].tolist() == [0, -1]
    assert made["boxes"][0, 0].tolist() == [1, 1, 10, 10]


def test_boxes_that_are_none_are_dropped() -> None:
    runtime, _ = suppressor(4, 0)
    boxes = np.array([[[0, 0, np.nan, 9], [0, 0, np.inf, 9], [5, 5, 1, 9], [0, 0, 3, 3]]], np.float32)
    scores = np.array([[0.9, 0.9, 0.9, np.nan]], np.float32)
    assert runtime.run({"boxes": boxes, "scores": scores}, "serving_default")["count"].tolist() == [0]


def test_only_the_best_candidates_are_compared() -> None:
    n = MOST_CANDIDATES + 50
    runtime, _ = suppressor(n, 0, max_boxes=MOST_CANDIDATES)
    corner = np.arange(n, dtype=np.float32) * 2
    boxes = np.stack([corner, corner, corner + 1, corner + 1], -1)[None]
    made = runtime.run({"boxes": boxes, "scores": np.linspace(0.1, 1, n, dtype=np.float32)[None]}, "serving_default")
    assert made["count"].tolist() == [MOST_CANDIDATES]
    assert made["boxes"][0, 0, 0] == corner[-1]


@pytest.mark.parametrize(("boxes", "scores"), [((-1, 5, 5), (-1, 5)), ((-1, 5, 4), (-1, 6)), ((-1, 5, 4), (-1,))])
def test_boxes_and_scores_that_do_not_belong_together(boxes: tuple[int, ...], scores: tuple[int, ...]) -> None:
    specs = (TensorSpec("boxes", "FP32", boxes), TensorSpec("scores", "FP32", scores))
    step = {"non_maximum_suppression": {"boxes": "boxes", "scores": "scores"}}
    with pytest.raises(FailedPrecondition, match="it takes"):
        wrap(Echo(), (Signature(specs, specs),), Steps(after=(step,)), Path())
