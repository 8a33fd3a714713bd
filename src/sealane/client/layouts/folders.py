"""Reading folders that somebody else wrote."""

from __future__ import annotations

import os
import re
from pathlib import Path

from sealane.errors import InvalidArgument

MAX_TEXT_BYTES = 1 << 20
MAX_FILES = 100_000


def check(folder: Path) -> None:
    """Refuse a folder with a link that leaves it, or with anything else than files and folders.

    Raises:
        InvalidArgument: such an entry, or more than 100,000 of them (LAYOUT_UNSAFE).
    """
    root, seen = folder.resolve(), 0
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            seen += 1
            path = Path(where, name)
            if seen > MAX_FILES:
                raise _unsafe(f"{folder} holds more than {MAX_FILES} files; give the folder of one model")
            if path.is_symlink() and not _within(path, root):
                raise _unsafe(f"{path} is a link that leaves {folder}; put the file itself there")
            if not (path.is_file() or path.is_dir()):
                raise _unsafe(f"{path} is neither a file nor a folder; take it away")


def inside(folder: Path, name: str, what: str) -> Path:
    """The entry of a folder that a file in it names.

    Raises:
        InvalidArgument: the name leaves the folder (LAYOUT_UNSAFE), or nothing is there (LAYOUT_INVALID).
    """
    parts = Path(name).parts
    if not parts or "\0" in name or Path(name).is_absolute() or ".." in parts:
        raise _unsafe(f"{what} names {name!r}, which leaves its folder; name a file in it")
    path = folder / name
    if not path.exists():
        raise invalid(f"{what} names {name!r}, which is not in {folder}; put it there")
    if not _within(path, folder.resolve()):
        raise _unsafe(f"{what} names {name!r}, a link that leaves {folder}; put the file itself there")
    return path


def text(path: Path) -> str:
    """The content of a small file of text.

    Raises:
        InvalidArgument: it is too long, or no UTF-8.
    """
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise invalid(f"{path} has more than {MAX_TEXT_BYTES} bytes; it is not what its name says")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise invalid(f"{path} is no text in UTF-8; write it again") from error


def versions(folder: Path) -> dict[int, Path]:
    """The folders of a folder whose names are numbers, lowest first."""
    named = (item for item in folder.iterdir() if re.fullmatch(r"[0-9]{1,18}", item.name) and item.is_dir())
    found = {int(item.name): item for item in named}
    return dict(sorted(found.items()))


def chosen(there: dict[int, Path], wanted: str, folder: Path) -> dict[int, Path]:
    """Those that are asked for: ``latest``, ``all`` or a number.

    Raises:
        InvalidArgument: there is no such version.
    """
    if wanted == "all" and there:
        return there
    number = max(there, default=-1) if wanted == "latest" else int(wanted) if wanted.isdecimal() else -1
    if number not in there:
        raise invalid(f"{folder} has no version {wanted!r}; it has {list(there)}, say latest, all or one of them")
    return {number: there[number]}


def invalid(why: str) -> InvalidArgument:
    """The error for a folder that is not laid out as it should be."""
    return InvalidArgument(why, reason="LAYOUT_INVALID", field="path")


def refused(why: str) -> InvalidArgument:
    """The error for what cannot come over; `why` says what to do."""
    return InvalidArgument(why, reason="LAYOUT_NOT_SERVED", field="path")


def _within(path: Path, root: Path) -> bool:
    try:
        return path.resolve(strict=True).is_relative_to(root)
    except (OSError, RuntimeError):  # a link to nowhere, or to itself
        return False


def _unsafe(why: str) -> InvalidArgument:
    return InvalidArgument(why, reason="LAYOUT_UNSAFE", field="path")
