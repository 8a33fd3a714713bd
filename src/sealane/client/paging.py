"""Walks the pages of a list."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

P = TypeVar("P", bound="Page", covariant=True)
R = TypeVar("R")


class Page(Protocol):
    """What every list response has."""

    @property
    def next_page_token(self) -> str:
        """Token of the next page; empty on the last."""
        ...


def pages(fetch: Callable[[str], P], items: Callable[[P], Sequence[R]]) -> Iterator[R]:
    """All items, page by page.

    Args:
        fetch: gets the page of a token.
        items: the items of a page.
    """
    token = ""
    while True:
        page = fetch(token)
        yield from items(page)
        token = page.next_page_token
        if not token:
            return
