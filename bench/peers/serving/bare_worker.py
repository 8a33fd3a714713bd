"""A worker's own front, engine and model processes behind a plaintext port: ``bare_worker.py FOLDER PORT``.

For the bench only: it leaves out TLS, the token, the trace, and believes every caller. What is between the socket and
the model is the worker's.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from pathlib import Path

import grpc
from bench.peers.models import MODELS
from running import described

from sealane import telemetry
from sealane.clock import SystemClock
from sealane.errors import SealaneError
from sealane.rpc import middleware, sync_server
from sealane.rpc.call import Call, Identity
from sealane.rpc.dispatch import Dispatcher
from sealane.rpc.health import Health
from sealane.security import suites
from sealane.security.opener import Opener
from sealane_worker.app import MAX_IN_FLIGHT, THREADS, services
from sealane_worker.deployment import Assignment
from sealane_worker.engine import Engine
from sealane_worker.introduction import Introduction
from sealane_worker.manifest import read_serving
from sealane_worker.sealed import RAW, SealedServicer
from sealane_worker.sealing import SealingKey
from sealane_worker.serving import Serving
from sealane_worker.spec import ModelSpec
from sealane_worker.streams import Streams


class Anyone:
    """In the place of the token's verification."""

    def before(self, call: Call) -> None:
        """Whoever it is."""
        call.identity = Identity("bench", "p", frozenset({"infer"}), "token", "")

    def after(self, call: Call, failure: SealaneError | None) -> None:
        """Nothing."""


def main() -> None:
    """Serve until told to stop."""
    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    engine, telemetry_, clock = Engine(), telemetry.disabled(), SystemClock()
    with tempfile.TemporaryDirectory() as scratch:
        for number, (name, model) in enumerate(described(str(folder)).items()):
            place = Path(scratch) / name
            place.mkdir()
            (place / "sealane.json").write_text(MODELS[name].manifest(len(os.sched_getaffinity(0))))
            runtime = "litert" if model["file"].endswith(".tflite") else "onnxruntime"
            spec = ModelSpec(runtime, folder / model["file"], serving=read_serving(place))
            digest = f"sha256:{number:064x}"
            engine.load(Assignment(f"projects/p/deployments/{name}", name, 1, "bench", digest, 1, spec))
    pair = suites.generate(suites.X25519)
    sealing = SealingKey(pair, lambda: grpc.insecure_channel("127.0.0.1:1"), clock)
    limits = middleware.Limits(MAX_IN_FLIGHT)
    about = Introduction("bench", folder, {}, 0.0, (), sealing, limits, f"127.0.0.1:{port}")
    serving = Serving(engine, telemetry_, "bench")
    streams = Streams(MAX_IN_FLIGHT)
    served = services(serving, SealedServicer(serving, Opener(pair, clock), about, telemetry_), Health(()), streams)
    dispatcher = Dispatcher(served, middleware.Chain([limits, Anyone(), middleware.Parse(RAW)]))
    server = sync_server.build(dispatcher, threads=THREADS)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    done = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: done.set())
    done.wait()
    server.stop(0)
    engine.close()


if __name__ == "__main__":
    main()
