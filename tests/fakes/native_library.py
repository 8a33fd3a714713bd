"""The native library in the place of a worker's opener, for tests that are for both."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from sealane.clock import Clock
from sealane.inference.v1 import sealed_inference_service_pb2 as pb
from sealane.native import library
from sealane.protocols.sealed import RUNS
from sealane.rpc.call import Identity
from sealane.security.native_opening import NativeOpener
from sealane.security.opener import Opened, Opener
from sealane.security.sealed_chunks import Chunk
from sealane.security.suites import KeyPair

NEEDS_LIBRARY = pytest.mark.skipif(
    library is None, reason="the native library is not installed: make native needs Rust"
)
#: For parameters `opener`.
OPENERS = [pytest.param(Opener, id="python"), pytest.param("ThroughLibrary", id="native", marks=NEEDS_LIBRARY)]
OpenerOf = Callable[[KeyPair, Clock], Opener]


class ThroughLibrary(NativeOpener):
    """Opens through the library: that it does not open what Python does is a mistake, streams aside."""

    def open(
        self,
        request: pb.SealedInferRequest,
        caller: Identity,
        variant_digest: str,
        chunks: Sequence[Chunk] | None = None,
    ) -> Opened:
        """As in Python; whole requests go to the library first."""
        if chunks is None:
            return self.open_body(request.SerializeToString(), caller, lambda _: variant_digest)
        opened = super().open(request, caller, variant_digest, chunks)
        if not opened.end and request.HasField("session"):
            assert self._sessions.find(request.session.session_id).ordered, "Python had to open it"
        elif not opened.end:
            assert request.method not in RUNS, "Python had to open it"
        return opened


def opener_of(which: type[Opener] | str) -> OpenerOf:
    """The class that a parameter names."""
    return ThroughLibrary if which == "ThroughLibrary" else Opener
