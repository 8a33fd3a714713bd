"""Wires where the registry keeps its files."""

from __future__ import annotations

from sealane.security.key_file import ensure_secret
from sealane_registry.artifact_servicer import Files
from sealane_registry.blob_folder import FolderStore
from sealane_registry.blob_store import BlobStore
from sealane_registry.blobs import Blobs, Encryption
from sealane_registry.config import Config
from sealane_registry.encrypted_copies import EncryptedForms, drop_in_the_clear
from sealane_registry.plain_copies import PlainForms
from sealane_registry.root_secret import check_apart, root_secret
from sealane_registry.spool import Spool

#: Key of the tags of chunks. Where it is lost they are made again, which reads each artifact once.
CHUNK_KEY = "chunks.key"


def files_of(config: Config) -> Files:
    """Where this registry keeps its files.

    Raises:
        InvalidArgument: an artifact store that cannot be used, or a master key beside what it encrypts.
        FailedPrecondition: what is encrypted does not open with the master key.
    """
    if config.master_key_file is not None:
        check_apart(config.master_key_file, config.data_dir)
    key, store = ensure_secret(config.data_dir / CHUNK_KEY), _store_of(config)
    root = root_secret(store, config.master_key_file, config.former_master_key_file)
    incoming = config.data_dir / "incoming"
    if root is None:
        return Files(Spool(incoming, PlainForms(key)), Blobs(store, key))
    drop_in_the_clear(incoming)
    return Files(Spool(incoming, EncryptedForms(root)), Blobs(store, key, Encryption(root, incoming)))


def _store_of(config: Config) -> BlobStore:
    if not config.artifact_store:
        return FolderStore(config.data_dir / "cas")
    from sealane_registry import blob_objects  # 15 MB that a registry with a folder does not load

    access = blob_objects.Access(
        config.artifact_store,
        config.artifact_store_endpoint,
        config.artifact_store_credentials_file,
        config.artifact_store_allow_http,
    )
    return blob_objects.BucketStore(blob_objects.open_store(access))
