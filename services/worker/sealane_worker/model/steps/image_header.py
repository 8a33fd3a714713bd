"""What an encoded image is and how large it becomes, read before any decoder sees it.

OpenCV knows two dozen formats and decodes what it is given: only JPEG and PNG are let through, and only of a size
that was allowed. PNG: W3C PNG 3rd edition, 5.2 and 11.2.1; JPEG: ITU-T T.81, B.1 and B.2.
"""

from __future__ import annotations

import struct

#: A progressive JPEG may go over all of its pixels once a scan; usual ones have about ten.
MOST_SCANS = 100

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
#: Frame headers: SOF0 to SOF15 without DHT (C4), JPG (C8) and DAC (CC).
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
#: Markers without a length: TEM, RST0 to RST7, SOI.
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})


class BadImage(ValueError):
    """Not a JPEG or PNG that is accepted; the text says why."""


def size_of(data: bytes) -> tuple[int, int]:
    """Height and width that the header declares.

    Raises:
        BadImage: another format, a header that ends early, no pixels, or too many scans.
    """
    if data.startswith(_PNG):
        height, width = _png(data)
    elif data.startswith(_JPEG):
        height, width = _jpeg(data)
    else:
        raise BadImage("it is neither JPEG nor PNG")
    if not height or not width:
        raise BadImage("it has no pixels")
    return height, width


def _png(data: bytes) -> tuple[int, int]:
    if data[12:16] != b"IHDR" or len(data) < 24:
        raise BadImage("its header is broken")
    width, height = struct.unpack_from(">II", data, 16)
    return height, width


def _jpeg(data: bytes) -> tuple[int, int]:
    # In entropy-coded data 0xFF is always followed by 0 or RSTn (B.1.1.5), so this counts scans (and, at worst, some
    # of a thumbnail in the metadata).
    if data.count(b"\xff\xda") > MOST_SCANS:
        raise BadImage(f"it has more than {MOST_SCANS} scans")
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            raise BadImage("its header is broken")
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte, B.1.1.2
            at += 1
            continue
        if marker in _BARE:
            at += 2
            continue
        if marker in (0xD9, 0xDA):  # the end, or pixels, with no frame header before
            break
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker in _FRAMES and at + 9 <= len(data):
            height, width = struct.unpack_from(">HH", data, at + 5)
            return height, width
        at += 2 + length
    raise BadImage("its header is broken")
