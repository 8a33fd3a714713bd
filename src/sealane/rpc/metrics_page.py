"""Prometheus' text format, where scrapers look for it and who may.

The format: https://prometheus.io/docs/instrumenting/exposition_formats
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from itertools import accumulate
from pathlib import Path

from sealane.errors import FailedPrecondition
from sealane.rpc.call_metrics import BOUNDS, Series

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: Where scrapers of Triton and of TensorFlow Serving look.
PATHS = frozenset({"/metrics", "/monitoring/prometheus/metrics"})
_MIN_TOKEN = 16

Labels = Mapping[str, str]


class Page:
    """Families of samples, each family once and together."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def family(self, name: str, kind: str, text: str, samples: Iterable[tuple[str, Labels, float]]) -> None:
        """Add a family; a sample is the end of its name, its labels and its value."""
        self._lines += (f"# HELP {name} {text}", f"# TYPE {name} {kind}")
        for suffix, labels, value in samples:
            told = ",".join(f'{label}="{_escape(content)}"' for label, content in labels.items())
            number = str(int(value)) if value == int(value) else repr(value)
            self._lines.append(f"{name}{suffix}{{{told}}} {number}" if told else f"{name}{suffix} {number}")

    def text(self) -> bytes:
        """The page."""
        return ("\n".join(self._lines) + "\n").encode()


def histogram(labels: Labels, series: Series, unit: float) -> Iterable[tuple[str, Labels, float]]:
    """The samples of one series; `unit` turns its seconds into those of the family."""
    for bound, count in zip((*BOUNDS, None), accumulate(series.buckets), strict=True):
        yield "_bucket", {**labels, "le": "+Inf" if bound is None else f"{bound * unit:g}"}, count
    yield "_sum", labels, series.seconds * unit
    yield "_count", labels, series.count


def token_of(address: str, file: Path | None, setting: str) -> str:
    """The token that scrapers at `address` must send; `setting` is the one that names its file.

    Raises:
        FailedPrecondition: none, though others than this machine can reach the address; or one that can be guessed.
    """
    token = file.read_text().strip() if file is not None else ""
    if file is not None and len(token) < _MIN_TOKEN:
        raise FailedPrecondition(f"{file} holds less than {_MIN_TOKEN} characters; put a random token into it")
    if not token and not _on_loopback(address):
        raise FailedPrecondition(
            f"others can reach {address}, and the metrics name the models of all projects; "
            f"set {setting}, or listen on 127.0.0.1"
        )
    return token


def _on_loopback(address: str) -> bool:
    name = address.rpartition(":")[0].strip("[]")
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
