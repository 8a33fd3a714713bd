"""The rules' tests once more, on PostgreSQL as well as on SQLite: one store, one suite."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

UNIT = Path(__file__).parents[2] / "unit" / "registry"
#: Those that go through the `store` or `site` fixture.
MODULES = ("test_catalog", "test_catalog_more", "test_gates", "test_alias_history", "test_datasets", "test_collection")


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, UNIT / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(name, module)
    spec.loader.exec_module(module)
    return module


for _name in MODULES:
    for _attribute, _value in vars(_load(_name)).items():
        if _attribute.startswith("test_") and callable(_value):
            globals()[f"{_attribute}__{_name.removeprefix('test_')}"] = _value
        elif _attribute in ("five", "rules"):
            globals()[_attribute] = _value
