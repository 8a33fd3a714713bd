"""A model's weights are readable nowhere on the disks of registry and workers, and serve all the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from light_site import CAMERA_A, CLOUD, EDGE, LIGHT, LightSite, eventually, running

from sealane.client.audit import AuditFilter
from sealane.errors import SealaneError
from sealane_worker.cache_encrypted import memory_folder

pytestmark = pytest.mark.stack
IN_CLOUD = "in-cloud"
MODELS = ("litert-float.tflite", "litert-int8.tflite")


@dataclass
class Encrypted:
    site: LightSite
    keys: Path

    def disks(self) -> list[Path]:
        """Everything that is kept: of services, of workers, of uploads under way, logs too."""
        return [path for path in self.site.data.rglob("*") if path.is_file()]

    def memory(self, node: str) -> list[Path]:
        root = self.site.data / "workers" / node / "artifacts"
        return [path for path in memory_folder(Path("/dev/shm"), root).rglob("*") if path.is_file()]

    def answers(self, deployment: str) -> bool:
        outputs = self.site.client.inference.predict(deployment, self.site.image, timeout=5.0)
        return outputs["probabilities"].shape == (1, 10)


def telling(content: bytes) -> list[bytes]:
    """Parts of a model that nothing else holds: of its weights, and of its beginning."""
    parts = [content[start : start + 32] for start in range(0, len(content) - 32, 512)]
    return [part for part in parts if len(set(part)) >= 20]


NEEDLES = [part for name in MODELS for part in telling((LIGHT / name).read_bytes())]


def holding(files: Callable[[], list[Path]]) -> set[str]:
    """Files that hold any of the needles."""
    for _ in range(20):
        try:
            return {str(path) for path in files() if any(needle in path.read_bytes() for needle in NEEDLES)}
        except FileNotFoundError:  # renamed since it was listed: it may lie where nothing was searched, so all anew
            continue
    raise AssertionError("files changed their names during every search")


def stopped(site: LightSite) -> None:
    """The registry is gone."""
    site.stack.child("registry").stop()
    site.stack.child("registry").join(20)


def crashed(site: LightSite, node: str) -> None:
    """A worker was killed, and another process of it runs."""
    child = site.stack.child(node)
    before = child.pid
    child.crash()
    eventually(lambda: child.pid not in (None, before) and child.serving(), f"{node} is started again")


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    """The registry encrypts; both workers do, and the edge has a stick with a key file."""
    folder = tmp_path_factory.mktemp("encrypted")
    keys = folder / "keys"
    settings = {"registry": {"MASTER_KEY_FILE": str(keys / "master.key")}}
    environments = {
        EDGE: {"SEALANE_WORKER_ENCRYPTED_CACHE": "1", "SEALANE_WORKER_CACHE_KEY_FILE": str(keys / "edge.key")},
        CLOUD: {"SEALANE_WORKER_ENCRYPTED_CACHE": "1"},
    }
    with running(folder / "site", settings=settings, environments=environments) as site:
        version = site.push()
        site.client.deployments.create(CAMERA_A, version, data_class="restricted", residency=["site-a"])
        site.client.deployments.create(IN_CLOUD, version, residency=["eu-1"])
        for name in (CAMERA_A, IN_CLOUD):
            site.client.deployments.wait(name, 30)
        yield Encrypted(site, keys)


def test_no_disk_holds_weights_while_they_serve(encrypted: Encrypted) -> None:
    assert len(NEEDLES) > 100
    assert encrypted.answers(CAMERA_A) and encrypted.answers(IN_CLOUD)
    found = holding(encrypted.disks)
    print(f"figure: {len(NEEDLES)} parts of 2 models looked for in {len(encrypted.disks())} files: {len(found)} found")
    assert found == set()
    # What was looked at is really there, and the control: the same search finds them in memory.
    copies = [path for path in encrypted.disks() if "encrypted" in path.parts]
    assert {"registry", EDGE, CLOUD} <= {part for path in copies for part in path.parts}
    assert holding(partial(encrypted.memory, EDGE)) and holding(partial(encrypted.memory, CLOUD))


def test_each_release_of_a_key_stands_in_the_audit_log(encrypted: Encrypted) -> None:
    events = list(encrypted.site.client.audit.list("registry", AuditFilter(action="ReleaseArtifactKey")))
    who = {event.actor for event in events}
    assert {f"spiffe://sealane/node/{EDGE}", f"spiffe://sealane/node/{CLOUD}"} <= who
    digests = {hashlib.sha256((LIGHT / name).read_bytes()).hexdigest() for name in MODELS}
    assert {event.resource.rpartition("/")[2] for event in events} & digests


def test_what_is_no_longer_loaded_leaves_memory(encrypted: Encrypted) -> None:
    site = encrypted.site
    before = len(encrypted.memory(EDGE))
    site.client.deployments.create("passing", f"{site.push('other')}", residency=["site-a"], data_class="restricted")
    site.client.deployments.wait("passing", 30)
    site.client.deployments.delete("passing")
    eventually(lambda: len(encrypted.memory(EDGE)) <= before, "the files of a removed deployment are gone")
    assert holding(partial(encrypted.memory, EDGE)), "others stay"


def test_a_killed_worker_comes_back_and_only_one_with_a_key_file_without_the_registry(encrypted: Encrypted) -> None:
    site = encrypted.site
    stopped(site)
    try:
        crashed(site, EDGE)
        eventually(lambda: encrypted.answers(CAMERA_A), "the edge serves by its key file", 30)
        crashed(site, CLOUD)
        with pytest.raises(SealaneError):
            encrypted.answers(IN_CLOUD)
        assert holding(encrypted.disks) == set()
    finally:
        site.stack.child("registry").start()
    eventually(lambda: encrypted.answers(IN_CLOUD), "the cloud gets its keys again", 60)


def test_plain_downloads_and_predictions_are_as_ever(encrypted: Encrypted, tmp_path: Path) -> None:
    site = encrypted.site
    site.client.models.pull("digits@latest", tmp_path, variant="litert-float")
    pulled = {item.read_bytes() for item in tmp_path.rglob("*") if item.is_file()}
    assert (LIGHT / MODELS[0]).read_bytes() in pulled
    answers = [site.client.inference.predict(CAMERA_A, {"image": row[None]})["probabilities"] for row in site.rows[:20]]
    assert np.concatenate(answers).shape == (20, 10)


def test_a_registry_without_its_master_key_does_not_start(encrypted: Encrypted) -> None:
    site, master = encrypted.site, encrypted.keys / "master.key"
    stopped(site)
    away = master.rename(master.with_suffix(".away"))
    log = site.data / "logs" / "registry.log"
    before = log.stat().st_size
    try:
        site.stack.child("registry").start()
        missing = b"the artifacts are encrypted under it; mount"
        eventually(lambda: missing in log.read_bytes()[before:], "the log says what is missing")
    finally:
        away.rename(master)
    eventually(lambda: site.client.models.get_version("digits@latest").number > 0, "the watch starts it again", 30)
