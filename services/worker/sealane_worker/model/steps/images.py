"""Images: encoded ones to pixels, and pixels to another size. OpenCV is imported when such a step is made."""

from __future__ import annotations

import importlib
from types import ModuleType

import numpy as np

from sealane.errors import InvalidArgument, SealaneError, Unimplemented
from sealane.tensors import Array, TensorSpec, byte_size
from sealane_worker.model.steps.image_header import BadImage, size_of
from sealane_worker.model.steps.step import Fields, Place, Specs

MOST_PIXELS = 64_000_000
#: What `cv2.resize` takes.
_PIXELS = ("UINT8", "UINT16", "INT16", "FP32", "FP64")
_MOST_CHANNELS = 512
_MOST_SIDE = 1 << 16


def opencv(place: Place) -> ModuleType:
    """The library, with its own threads off: on single images they gain nothing, and a process has `instances`.

    Raises:
        Unimplemented: not installed.
    """
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError as error:
        raise Unimplemented(
            f"step {place.name} needs OpenCV, which this worker does not have; run pip install 'sealane[images]' there",
            reason="STEP_NOT_INSTALLED",
        ) from error
    cv2.setNumThreads(0)
    return cv2


class DecodeImage:
    """JPEG or PNG in `BYTES` to `UINT8` pixels: RGB or grey, turned as EXIF says, 8 bit, without alpha.

    16 bit PNG are reduced to 8 bit, transparency is dropped and not blended, CMYK is converted. Scaled bilinearly.
    """

    def __init__(self, place: Place, fields: Fields) -> None:
        self._place = place
        self._input = fields.text("input")
        self._output = fields.text("output", self._input)
        self._channels = fields.whole("channels", 3)
        self._size = (fields.whole("height", -1, most=_MOST_SIDE), fields.whole("width", -1, most=_MOST_SIDE))
        self._most = fields.whole("max_pixels", MOST_PIXELS, most=2**40)
        if self._channels not in (1, 3):
            raise place.refuse(f"channels is {self._channels}; use 1 for grey or 3 for RGB")
        if min(self._size) < 0 < max(self._size):
            raise place.refuse("height and width go together; set both or none")
        self._cv2 = opencv(place)

    def backward(self, wanted: Specs) -> Specs:
        """Pixels to encoded images."""
        spec = self._place.rows(self._place.spec(wanted, self._output), 4, ("UINT8",))
        made = (*self._size, self._channels)
        if not all(-1 in (a, b) or a == b for a, b in zip(spec.shape[1:], made, strict=True)):
            raise self._place.refuse(
                f"it makes pixels {list(made)} and tensor {spec.name!r} is {list(spec.shape)}; set height, width and "
                "channels as the model wants them"
            )
        return self._place.replaced(wanted, spec.name, TensorSpec(self._input, "BYTES", spec.shape[:1]))

    def forward(self, given: Specs) -> Specs:
        """Encoded images to pixels."""
        spec = self._place.rows(self._place.spec(given, self._input), 1, ("BYTES",))
        pixels = TensorSpec(self._output, "UINT8", (*spec.shape, *self._size, self._channels))
        return self._place.replaced(given, spec.name, pixels)

    def run(self, arrays: dict[str, Array]) -> dict[str, Array]:
        """Decode every row."""
        result = dict(arrays)
        rows = result.pop(self._input).tolist()
        height, width = self._size
        pixels = np.empty(0, np.uint8)
        for row, data in enumerate(rows):
            image = self._decode(row, data)
            if not row:
                height, width = (height, width) if height > 0 else image.shape[:2]
                shape = (len(rows), height, width, self._channels)
                byte_size("UINT8", shape)
                pixels = np.empty(shape, np.uint8)
            if self._size[0] > 0 and image.shape[:2] != self._size:
                image = self._cv2.resize(image, (width, height), interpolation=self._cv2.INTER_LINEAR)
            if image.shape[:2] != (height, width):
                raise self._refused(row, f"it is {image.shape[1]} x {image.shape[0]}, the first {width} x {height}")
            if self._channels == 1:
                pixels[row, :, :, 0] = image
            else:
                self._cv2.cvtColor(image, self._cv2.COLOR_BGR2RGB, dst=pixels[row])
        result[self._output] = pixels
        return result

    def _decode(self, row: int, data: object) -> Array:
        encoded = data.encode() if isinstance(data, str) else data
        if not isinstance(encoded, bytes):
            raise self._refused(row, "it is not bytes")
        try:
            height, width = size_of(encoded)
        except BadImage as error:
            raise self._refused(row, str(error)) from error
        if height * width > self._most:
            raise self._refused(row, f"it has {height * width} pixels, the limit is {self._most}")
        # Neither flag ignores EXIF: both turn the image, reduce 16 bit and drop alpha.
        flag = self._cv2.IMREAD_GRAYSCALE if self._channels == 1 else self._cv2.IMREAD_COLOR
        try:
            image: Array | None = self._cv2.imdecode(np.frombuffer(encoded, np.uint8), flag)
        except self._cv2.error as error:
            raise self._refused(row, "it cannot be decoded") from error
        if image is None or image.shape[0] * image.shape[1] != height * width:
            raise self._refused(row, "it cannot be decoded")
        return image

    def _refused(self, row: int, why: str) -> SealaneError:
        return InvalidArgument(
            f"input {self._input!r}, row {row}: no image that is accepted: {why}; send JPEG or PNG",
            reason="IMAGE_REFUSED",
            field=f"inputs.{self._input}",
            row=str(row),
        )


class Resize:
    """Images to another size, bilinear (pixel centres, no smoothing first)."""

    def __init__(self, place: Place, fields: Fields) -> None:
        self._place = place
        self._tensor = fields.text("tensor")
        self._size = (fields.whole("height", 0, most=_MOST_SIDE), fields.whole("width", 0, most=_MOST_SIDE))
        if not min(self._size):
            raise place.refuse("height and width must be said; set both")
        self._cv2 = opencv(place)

    def backward(self, wanted: Specs) -> Specs:
        """Any size before."""
        spec = self._images(wanted)
        if not all(size in (-1, made) for size, made in zip(spec.shape[1:3], self._size, strict=True)):
            raise self._place.refuse(f"it makes {list(self._size)} and tensor {spec.name!r} is {list(spec.shape)}")
        free = TensorSpec(spec.name, spec.datatype, (spec.shape[0], -1, -1, spec.shape[3]))
        return self._place.replaced(wanted, spec.name, free)

    def forward(self, given: Specs) -> Specs:
        """This size after."""
        spec = self._images(given)
        made = TensorSpec(spec.name, spec.datatype, (spec.shape[0], *self._size, spec.shape[3]))
        return self._place.replaced(given, spec.name, made)

    def run(self, arrays: dict[str, Array]) -> dict[str, Array]:
        """Scale every row."""
        images = arrays[self._tensor]
        height, width = self._size
        if images.shape[1:3] == self._size:
            return arrays
        if images.shape[3] > _MOST_CHANNELS or max(images.shape[1:3]) >= _MOST_SIDE:
            raise InvalidArgument(
                f"input {self._tensor!r}: images of shape {list(images.shape[1:])} cannot be scaled; send smaller ones",
                reason="IMAGE_REFUSED",
                field=f"inputs.{self._tensor}",
            )
        made = np.empty((images.shape[0], height, width, images.shape[3]), images.dtype)
        for row, image in enumerate(images):
            scaled = self._cv2.resize(image, (width, height), interpolation=self._cv2.INTER_LINEAR)
            made[row] = scaled.reshape(made.shape[1:])
        return {**arrays, self._tensor: made}

    def _images(self, specs: Specs) -> TensorSpec:
        spec = self._place.rows(self._place.spec(specs, self._tensor), 4, _PIXELS)
        if spec.shape[3] > _MOST_CHANNELS:
            raise self._place.refuse(f"tensor {spec.name!r} has {spec.shape[3]} channels; at most {_MOST_CHANNELS}")
        return spec
