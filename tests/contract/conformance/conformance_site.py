"""A running suite with the models of the matrix, and what a client has to know to call it at one of two places."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import conformance_models
import grpc

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "stack"))
from light_site import CLOUD, LightSite, eventually

from sealane.client import Step, connect
from sealane.compat.tfserving.v1 import tfserving_pb2 as tfs
from sealane.errors import SealaneError
from sealane_local import plan
from sealane_local.stack import LocalStack

#: Served under this name with versions 1 and 2, and these labels.
SHELF, LABELS = "shelf", {"stable": 1, "canary": 2}
_RELOAD = "/tensorflow.serving.ModelService/HandleReloadConfigRequest"
_STATUS = "/tensorflow.serving.ModelService/GetModelStatus"


@contextmanager
def running(folder: Path) -> Iterator[LightSite]:
    """The suite with one worker that serves all models."""
    models = conformance_models.build(folder)
    options = plan.Options(folder / "site", workers=(replace(plan.CLOUD, clearance="restricted"),), sample_ratio=0.0)
    with LocalStack(options) as stack, connect(folder / "site") as client:
        site = LightSite(stack, client)
        _serve(site, models)
        yield site


def place_of(site: LightSite, place: str, folder: Path) -> dict[str, object]:
    """What a client has to know."""
    gateway = place == "gateway"
    certificate = folder / "certificate"
    if not certificate.exists():
        site.client.accounts.create("perf", roles=["invoker"])
        site.client.peers.certificate("perf", certificate)
    return {
        "place": place,
        "grpc": site.endpoints["inference"] if gateway else site.stack.worker_address(CLOUD),
        "mesh": site.endpoints["inference_mesh"] if gateway else "",
        "http": site.endpoints["inference_http"] if gateway else "",
        "ca": str(site.data / "pki" / "ca.pem"),
        "tls_name": "inference.service.sealane" if gateway else f"{CLOUD}.node.sealane",
        "token": site.client.token("sealane-inference"),
        "certificate": str(certificate),
        "labels": LABELS,
    }


def _serve(site: LightSite, models: dict[str, Path]) -> None:
    for name, path in models.items():
        version = site.client.models.push(path, name)
        if name != "spare":
            site.client.deployments.create(name, version.name, memory_bytes=1, cpu_milli=1, pinned=True)
    site.client.models.push(models["pair"], "pair", description="the same again, as a second version")
    for name in models:
        if name != "spare":
            site.client.deployments.wait(name, 100)
    steps = [
        Step("pair", {"a": "left", "b": "right"}, {"total": "sum"}),
        Step("echo-fp32", {"x": "sum"}, {"y": "again"}),
    ]
    site.client.deployments.create_chain("chain", steps)
    site.client.deployments.wait("chain", 30)
    metadata = [("authorization", f"Bearer {site.client.token('sealane-inference')}")]
    config = tfs.ModelConfig(name=SHELF, base_path="pair", version_labels=LABELS)
    config.model_version_policy.specific.versions.extend(LABELS.values())
    request = tfs.ReloadConfigRequest(config=tfs.ModelServerConfig(model_config_list={"config": [config]}))
    asked = tfs.GetModelStatusRequest(model_spec=tfs.ModelSpec(name=SHELF))
    with site.channel("inference") as channel:
        channel.unary_unary(_RELOAD)(request.SerializeToString(), timeout=30, metadata=metadata)

        def served() -> bool:
            try:
                answer = channel.unary_unary(_STATUS)(asked.SerializeToString(), timeout=5, metadata=metadata)
            except grpc.RpcError:
                return False
            states = tfs.GetModelStatusResponse.FromString(answer).model_version_status
            return [item.state for item in states] == [tfs.ModelVersionStatus.AVAILABLE] * len(LABELS)

        eventually(served, "both versions are served", 60)


def main() -> int:
    """Run until a line comes in: for work on a client."""
    folder = Path(sys.argv[1])
    with running(folder) as site:
        while True:
            for place in ("gateway", "worker"):
                (folder / f"{place}.json").write_text(json.dumps(place_of(site, place, folder)))
            print("ready", flush=True)
            if not sys.stdin.readline().strip():
                return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SealaneError as error:
        sys.exit(f"{error.kind}: {error.message}")
