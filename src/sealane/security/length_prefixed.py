"""What is hashed and signed, so that no two things have one form: each part behind its length."""

from __future__ import annotations


def lp(*parts: bytes | str | int) -> bytes:
    """Length-prefixed concatenation: 4-byte big-endian length, then the part; ints as 8 bytes."""
    out: list[bytes] = []
    for part in parts:
        data = part.encode() if isinstance(part, str) else part.to_bytes(8, "big") if isinstance(part, int) else part
        out += (len(data).to_bytes(4, "big"), data)
    return b"".join(out)
