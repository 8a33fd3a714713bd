"""A version whose record in the registry says nothing of the policy in its manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping

from light_site import LIGHT, LightSite

from sealane.registry.v1 import model_service_pb2 as pb
from sealane.registry.v1 import model_service_pb2_grpc, variant_service_pb2


def push_stripped(site: LightSite, model_id: str, demands: Mapping[str, object]) -> str:
    """Push it, as if the registry or the scheduler had dropped the policy; returns the version's name."""
    client = site.client
    manifest = json.dumps({"sealing": {"required": True, **demands}}).encode()
    model = (LIGHT / "litert-int8.tflite").read_bytes()
    files = [
        variant_service_pb2.ModelFile(path=path, sha256=client.artifacts.upload(content), size_bytes=len(content))
        for path, content in (("litert-int8.tflite", model), ("sealane.json", manifest))
    ]
    there = client.models.get_version("digits@1")
    request = pb.CreateVersionRequest(
        parent=f"projects/default/models/{model_id}",
        version=pb.Version(signatures=there.signatures),
        variant_id="litert-int8",
        variant=variant_service_pb2.Variant(
            format=variant_service_pb2.FORMAT_LITERT, precision=variant_service_pb2.PRECISION_INT8, files=files
        ),
    )
    metadata = (("authorization", f"Bearer {client.token('sealane-registry')}"),)
    with site.channel("registry") as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        created = pb.CreateModelRequest(parent="projects/default", model_id=model_id)
        stub.CreateModel(created, metadata=metadata, timeout=10)
        version: pb.Version = stub.CreateVersion(request, metadata=metadata, timeout=10)
    assert not version.variants[0].HasField("sealing")
    return version.name
