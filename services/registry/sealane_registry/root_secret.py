"""The secret that the keys of encrypted copies come from: it lies in the artifact store, under the master key.

Another master key means that these few bytes are encrypted anew, and no artifact is.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from sealane.errors import FailedPrecondition, InvalidArgument
from sealane.security.encrypted_blob import KEY_BYTES
from sealane.security.key_file import KeyFile
from sealane_registry.blob_store import BlobStore, read_all

log = logging.getLogger("sealane.registry.root_secret")

PLACE = "keys/root"
_NAME = "sealane/artifact-root/v1"
_WHAT = "the artifacts"


def root_secret(store: BlobStore, master: Path | None, former: Path | None = None) -> bytes | None:
    """The secret, 32 bytes; None where artifacts lie in the clear.

    Args:
        store: where artifacts lie.
        master: file of the master key; made where nothing is encrypted yet.
        former: file of the master key before, for a start that changes it.

    Raises:
        FailedPrecondition: artifacts are encrypted and no master key is named (ARTIFACTS_ENCRYPTED), its file is
            missing (KEY_FILE_MISSING), or it is another one (KEY_FILE_INVALID).
    """
    kept = read_all(store, PLACE)
    if master is None:
        if kept is not None:
            raise FailedPrecondition(
                "the artifacts are encrypted; set SEALANE_REGISTRY_MASTER_KEY_FILE to the file of their master key",
                reason="ARTIFACTS_ENCRYPTED",
            )
        return None
    key = KeyFile.at(master, create=kept is None or former is not None, what=_WHAT)
    if kept is None:
        root = os.urandom(KEY_BYTES)
        store.put_bytes(PLACE, key.seal(_NAME, root))
        return root
    try:
        return key.open(_NAME, kept)
    except FailedPrecondition:
        if former is None:
            raise
    root = KeyFile.at(former, create=False, what=_WHAT).open(_NAME, kept)
    store.put_bytes(PLACE, key.seal(_NAME, root))
    log.info("the artifacts' keys are under another master key now")
    return root


def check_apart(master: Path, data_dir: Path) -> None:
    """Refuse a master key that lies beside what it encrypts: whoever has the disk would have both.

    Raises:
        InvalidArgument: so it is.
    """
    if master.resolve().is_relative_to(data_dir.resolve()):
        raise InvalidArgument(
            f"the master key {master} lies in the data directory that it is to protect; keep it on another medium",
            reason="SETTING_INVALID",
        )
