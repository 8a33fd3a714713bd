"""Pages by key: a token is the last key of the page before."""

from __future__ import annotations

import base64
import binascii

from sealane.errors import InvalidArgument

DEFAULT_SIZE = 50
MAX_SIZE = 1000


def page_of(size: int) -> int:
    """The page size to use.

    Raises:
        InvalidArgument: a negative size.
    """
    if size < 0:
        raise InvalidArgument("page_size is negative; leave it out for 50", field="page_size")
    return min(size or DEFAULT_SIZE, MAX_SIZE)


def write_token(key: str) -> str:
    """A page token that continues after `key`; empty for the last page."""
    return base64.urlsafe_b64encode(key.encode()).decode()


def read_token(token: str) -> str:
    """The key that a page token continues after.

    Raises:
        InvalidArgument: not a token that this service gave.
    """
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise InvalidArgument("page_token is not one of ours; start without it", field="page_token") from error
