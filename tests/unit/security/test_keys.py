"""The cached keys of auth: who comes while they are fetched waits for them."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealane.errors import Unavailable
from sealane.security import jws
from sealane.security.keys import KeySet, Published

KEY = jws.encode(Ed25519PrivateKey.generate().public_key().public_bytes_raw())


def test_all_who_come_with_an_unknown_key_at_once_get_it_by_one_fetch() -> None:
    fetches, begun, go = [0], threading.Event(), threading.Event()

    def fetch() -> Published:
        fetches[0] += 1
        begun.set()
        assert go.wait(5)
        return Published({"k": KEY})

    keys = KeySet(fetch)

    def verify() -> bool:
        if keys.get("k") is None and keys.stale("k"):
            keys.refresh()
        return keys.get("k") is not None

    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(verify)
        assert begun.wait(5)
        others = [pool.submit(verify) for _ in range(7)]
        time.sleep(0.05)
        assert not any(item.done() for item in others), "they wait"
        go.set()
        assert all(item.result(5) for item in (first, *others))
    assert fetches == [1]


def test_an_unknown_key_is_asked_for_once_in_a_while() -> None:
    fetches = [0]

    def fetch() -> Published:
        fetches[0] += 1
        raise Unavailable("away")

    keys = KeySet(fetch)
    for _ in range(20):
        if keys.stale("nobody"):
            keys.refresh()
    assert fetches == [1]
