"""Filters, orders and pages of lists (AIP-132, 158, 160): read here, applied by stores, or to rows in memory.

A filter is comparisons joined by AND: ``state = "APPROVED" AND labels.team = vision AND create_time > "2026-01-01"``.
``=`` and ``!=`` compare, ``:`` asks whether a text holds another one, or a label is there; a time is RFC 3339. What
AIP-160 has beyond (OR, NOT, brackets, functions) is refused by name rather than half understood.
"""

from __future__ import annotations

import hashlib
import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from sealane.errors import InvalidArgument
from sealane.records.paging import page_of, read_token, write_token

TEXT, NUMBER, TIME, LABELS = "text", "number", "time", "labels"
MAX_FILTER = 2048
MAX_CONDITIONS = 16
_TERM = re.compile(r'\s*([a-z_]+)(?:\.([a-z0-9._-]+))?\s*(<=|>=|!=|=|<|>|:)\s*("(?:[^"\\]|\\.)*"|[^\s"()]+)\s*')
_AND = re.compile(r"AND\s", re.IGNORECASE)
_COMPARE: Mapping[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

Key = str | int | float


@dataclass(frozen=True, slots=True)
class Condition:
    """One comparison; `key` is that of a label."""

    field: str
    key: str
    comparison: str
    value: Key


@dataclass(frozen=True, slots=True)
class Listing:
    """What a list is asked for.

    Args:
        conditions: all of which have to hold.
        order: field to order by.
        descending: whether the highest come first.
        size: most items of the page.
        after: value of `order` and name of the item to go on behind; empty for the first page.
        asked: what the page token is bound to.
    """

    conditions: tuple[Condition, ...]
    order: str
    descending: bool
    size: int
    after: tuple[Key, ...] = ()
    asked: str = ""

    def token(self, *last: Key) -> str:
        """Token of the page behind the item whose order value and name these are."""
        return write_token(json.dumps([self.asked, *last]))

    def next_token(self, keys: Sequence[tuple[Key, ...]]) -> str:
        """Token of the next page, given the keys of one item more than the page holds; empty on the last."""
        return self.token(*keys[self.size - 1]) if len(keys) > self.size else ""


@dataclass(frozen=True, slots=True)
class Fields:
    """What a list can be filtered and ordered by.

    Args:
        kinds: kind of each field: TEXT, NUMBER, TIME or LABELS.
        orders: fields to order by; the first is the default.
        descending: whether the default order is.
    """

    kinds: Mapping[str, str]
    orders: tuple[str, ...]
    descending: bool = False


def read(fields: Fields, request: Any) -> Listing:
    """What a List request asks for; its `page_size`, `page_token`, `filter` and `order_by`.

    Raises:
        InvalidArgument: it asks for what there is not, or the token is of another list.
    """
    conditions = parse_filter(request.filter, fields.kinds)
    order, descending = _parse_order(request.order_by, fields)
    asked = hashlib.sha256(repr((conditions, order, descending)).encode()).hexdigest()[:16]
    listing = Listing(conditions, order, descending, page_of(request.page_size), (), asked)
    if not request.page_token:
        return listing
    return Listing(conditions, order, descending, listing.size, _after(request.page_token, asked), asked)


def parse_filter(text: str, kinds: Mapping[str, str]) -> tuple[Condition, ...]:
    """The comparisons of a filter.

    Raises:
        InvalidArgument: another language, or a field that there is not.
    """
    if len(text) > MAX_FILTER:
        raise _bad(f"is longer than {MAX_FILTER} characters")
    conditions: list[Condition] = []
    place = 0
    while place < len(text.rstrip()):
        if conditions:
            joint = _AND.match(text, place)
            if joint is None:
                raise _bad(
                    f"has {text[place : place + 20]!r} where AND must stand; OR, NOT and brackets are not spoken"
                )
            place = joint.end()
        term = _TERM.match(text, place)
        if term is None:
            raise _bad(f"has no comparison at {text[place : place + 20]!r}; write FIELD = VALUE")
        conditions.append(_condition(term, kinds))
        place = term.end()
        if len(conditions) > MAX_CONDITIONS:
            raise _bad(f"has more than {MAX_CONDITIONS} comparisons")
    return tuple(conditions)


def matches(conditions: Sequence[Condition], values: Mapping[str, Any]) -> bool:
    """Whether all hold for an item in memory; times are seconds since 1970, labels a mapping."""
    return all(_holds(condition, values[condition.field]) for condition in conditions)


def page_in_memory(listing: Listing, items: Sequence[tuple[Mapping[str, Any], str]]) -> tuple[list[int], str]:
    """Places of the items of a page, and the token of the next; for lists that are short by their nature.

    Args:
        listing: what was asked for.
        items: values of each item, and its name.
    """
    keyed = sorted(
        ((values[listing.order], name), place)
        for place, (values, name) in enumerate(items)
        if matches(listing.conditions, values)
    )
    if listing.descending:
        keyed.reverse()
    if listing.after:
        after = tuple(listing.after)
        keyed = [item for item in keyed if (item[0] < after if listing.descending else item[0] > after)]
    token = listing.next_token([key for key, _ in keyed[: listing.size + 1]])
    return [place for _, place in keyed[: listing.size]], token


Column = sa.ColumnElement[Any]


@dataclass(frozen=True, slots=True)
class Columns:
    """How a store answers a listing.

    Args:
        columns: column of each field but labels.
        name: column that tells items with the same order value apart.
        labels: makes the condition that a label is there, and has a value if one is given.
    """

    columns: Mapping[str, Column]
    name: Column
    labels: Callable[[str, str | None], Column] | None = None

    def apply(self, query: sa.Select[Any], listing: Listing) -> sa.Select[Any]:
        """The page's rows and one more."""
        for condition in listing.conditions:
            query = query.where(self._where(condition))
        order = self.columns[listing.order]
        keys = [order] if order is self.name else [order, self.name]
        if listing.after:
            values = [_bound(value) for value in listing.after[: len(keys)]]
            behind = operator.lt if listing.descending else operator.gt
            query = query.where(
                behind(sa.tuple_(*keys), sa.tuple_(*values)) if len(keys) > 1 else behind(order, values[0])
            )
        return query.order_by(*(key.desc() if listing.descending else key.asc() for key in keys)).limit(
            listing.size + 1
        )

    def _where(self, condition: Condition) -> Column:
        if condition.key:
            assert self.labels is not None
            if condition.comparison == "!=":
                return sa.not_(self.labels(condition.key, str(condition.value)))
            return self.labels(condition.key, None if condition.comparison == ":" else str(condition.value))
        column = self.columns[condition.field]
        if condition.comparison == ":":
            return column.contains(condition.value, autoescape=True)
        found: Column = _COMPARE[condition.comparison](column, _bound(condition.value))
        return found


def _bound(value: Key) -> Any:
    """A value for a statement: whole numbers may be larger than the column that they are compared with."""
    return sa.literal(value, sa.BigInteger) if isinstance(value, int) else value


def _condition(term: re.Match[str], kinds: Mapping[str, str]) -> Condition:
    field, key, comparison, raw = term[1], term[2] or "", term[3], term[4]
    kind = kinds.get(field)
    if kind is None or (kind == LABELS) != bool(key):
        known = sorted(f"{name}.KEY" if found == LABELS else name for name, found in kinds.items())
        raise _bad(f"names {(field + '.' + key) if key else field!r}; there are {', '.join(known)}")
    if raw in ("AND", "OR", "NOT"):
        raise _bad(f"has {raw} where a value must stand")
    value = re.sub(r"\\(.)", r"\1", raw[1:-1]) if raw.startswith('"') else raw
    allowed = {TEXT: "= != :", LABELS: "= != :"}.get(kind, "= != < <= > >=").split()
    if comparison not in allowed:
        raise _bad(f"compares {field} by {comparison}; use one of {' '.join(allowed)}")
    return Condition(field, key, comparison, _value(kind, value, field))


def _value(kind: str, text: str, field: str) -> Key:
    try:
        if kind == NUMBER:
            return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else float(text)
        if kind == TIME:
            found = datetime.fromisoformat(text)
            return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        wanted = "a number" if kind == NUMBER else 'a time such as "2026-11-27T12:00:00Z"'
        raise _bad(f"compares {field} with {text[:40]!r}, which is not {wanted}") from None
    return text


def _holds(condition: Condition, value: Any) -> bool:
    if condition.key:
        found = value.get(condition.key)
        if condition.comparison == ":":
            return found is not None
        return (found == condition.value) is (condition.comparison == "=")
    if condition.comparison == ":":
        return str(condition.value) in value
    return bool(_COMPARE[condition.comparison](value, condition.value))


def _parse_order(text: str, fields: Fields) -> tuple[str, bool]:
    if not text.strip():
        return fields.orders[0], fields.descending
    words = text.split()
    if words[0] not in fields.orders or words[1:] not in ([], ["desc"], ["asc"]):
        raise InvalidArgument(
            f"order_by {text[:40]!r} is not one of {', '.join(fields.orders)}, each with 'desc' behind it or not",
            field="order_by",
        )
    return words[0], words[1:] == ["desc"]


def _after(token: str, asked: str) -> tuple[Key, ...]:
    try:
        bound, *last = json.loads(read_token(token))
    except (ValueError, TypeError) as error:
        raise InvalidArgument("page_token is not one of ours; start without it", field="page_token") from error
    if bound != asked or not 0 < len(last) < 4 or not all(isinstance(item, str | int | float) for item in last):
        raise InvalidArgument(
            "page_token is of a list with another filter or order; start without it", field="page_token"
        )
    return tuple(last)


def _bad(what: str) -> InvalidArgument:
    return InvalidArgument(f"filter {what}", field="filter")
