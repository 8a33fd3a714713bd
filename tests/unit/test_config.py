"""Settings: good ones are read, strange ones stop the start and are named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from sealane.config import read
from sealane.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Settings:
    data_dir: Path
    ratio: float = 0.5
    names: tuple[str, ...] = ()
    on: bool = False
    token: Path | None = None
    count: int = 3


def test_values_are_read_by_type() -> None:
    environment = {"X_DATA_DIR": "/d", "X_NAMES": "a,b", "X_ON": "true", "X_TOKEN": "", "OTHER": "ignored"}
    assert read(Settings, "X_", environment) == Settings(Path("/d"), names=("a", "b"), on=True)


BAD = {
    "near": ({"X_DATA_DIR": "/d", "X_RATOI": "1"}, "did you mean X_RATIO"),
    "far": ({"X_DATA_DIR": "/d", "X_ZZZZZZ": "1"}, "known are"),
    "missing": ({}, "X_DATA_DIR is not set"),
    "number": ({"X_DATA_DIR": "/d", "X_COUNT": "many"}, "X_COUNT='many' is no int"),
    "flag": ({"X_DATA_DIR": "/d", "X_ON": "maybe"}, "is no bool"),
}


@pytest.mark.parametrize(("environment", "words"), BAD.values(), ids=BAD)
def test_a_strange_setting_is_named(environment: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        read(Settings, "X_", environment)
