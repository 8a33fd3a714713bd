"""Which digests and file names may become paths."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from pathlib import PurePosixPath

from sealane.errors import InvalidArgument

MAX_NAME_BYTES = 512
MAX_DEPTH = 16
_DIGEST = re.compile(r"[0-9a-f]{64}")


def check_digest(digest: str) -> None:
    """Refuse what is not 64 lower-case hex digits: it becomes a path.

    Raises:
        InvalidArgument: it is not.
    """
    if not _DIGEST.fullmatch(digest):
        raise InvalidArgument("a digest is 64 lower-case hex digits of SHA-256", reason="DIGEST_MALFORMED")


def check_paths(files: Collection[str]) -> None:
    """Refuse manifests whose paths could leave their folder or mean another file elsewhere (SECURITY 2.8).

    Raises:
        InvalidArgument: which path, and why.
    """
    if not files:
        raise InvalidArgument("a manifest without files cannot be loaded", reason="MANIFEST_EMPTY", field="files")
    seen: dict[str, str] = {}
    for path in files:
        problem = _path_problem(path)
        if problem:
            raise InvalidArgument(
                f"file name {path[:80]!r} {problem}; rename it and push again",
                reason="FILE_NAME_REFUSED",
                field="files",
            )
        folded = unicodedata.normalize("NFC", path).casefold()
        if folded in seen:
            raise InvalidArgument(
                f"file names {seen[folded][:80]!r} and {path[:80]!r} are one file on some machines; rename one",
                reason="FILE_NAME_REFUSED",
                field="files",
            )
        seen[folded] = path
    for path in files:
        for parent in PurePosixPath(path).parents:
            if str(parent) in files:
                raise InvalidArgument(
                    f"{str(parent)[:80]!r} is both a file and a folder; rename one",
                    reason="FILE_NAME_REFUSED",
                    field="files",
                )


def _path_problem(path: str) -> str:
    parts = path.split("/")
    if not path or len(path.encode(errors="replace")) > MAX_NAME_BYTES or len(parts) > MAX_DEPTH:
        return "is empty, too long or too deep"
    if "\\" in path or "%" in path or not path.isprintable():
        return "has a backslash, a per cent sign or a control character"
    if path.startswith("/") or ":" in path:
        return "is absolute"
    if any(part in ("", ".", "..") or part[-1] in ". " or part[0] == " " for part in parts):
        return "has a part that is empty, is '..', or begins or ends with a space or ends with a dot"
    return ""
