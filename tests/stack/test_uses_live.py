"""The registry knows what is deployed: it cannot be deleted, and can be once nobody uses it."""

from __future__ import annotations

import uuid

import grpc
import pytest
from light_site import LIGHT, LightSite, eventually

from sealane.errors import SealaneError
from sealane.registry.v1 import model_service_pb2 as pb
from sealane.registry.v1 import model_service_pb2_grpc
from sealane.rpc.status import from_rpc_error


def attempt(site: LightSite, method: str, request: object) -> str:
    """Call the registry; the reason of its refusal, empty where there was none."""
    metadata = (("authorization", f"Bearer {site.client.token('sealane-registry')}"),)
    with site.channel("registry") as channel:
        try:
            getattr(model_service_pb2_grpc.ModelServiceStub(channel), method)(request, metadata=metadata, timeout=10)
        except grpc.RpcError as error:
            return from_rpc_error(error).reason
        except SealaneError as error:
            return error.reason
    return ""


def test_what_is_deployed_cannot_be_deleted_until_nobody_uses_it(site: LightSite) -> None:
    site.client.models.push(LIGHT / "litert-int8.tflite", "used", variant="litert-int8", alias="live")
    name = "projects/default/models/used"
    # The deployment does not serve: what waits for a node is in use as well.
    site.client.deployments.create("used-by", "used@live", residency=["nowhere"])
    etag = site.client.models.get_alias("used", "live").etag
    eventually(lambda: drop_alias(site, "another etag") == "ALIAS_IN_USE", "the registry knows that it is in use")
    delete = pb.DeleteModelRequest(name=name, request_id=str(uuid.uuid4()))
    assert attempt(site, "DeleteModel", delete) == "MODEL_IN_USE"
    reject = pb.RejectVersionRequest(name=f"{name}/versions/1", reason="a test", request_id=str(uuid.uuid4()))
    assert attempt(site, "RejectVersion", reject) == "VERSION_IN_USE"

    site.client.deployments.delete("used-by")
    eventually(lambda: drop_alias(site, etag) == "", "the registry knows that nobody goes by the alias")
    eventually(lambda: attempt(site, "DeleteModel", delete) == "", "the model can go")
    with pytest.raises(SealaneError):
        site.client.models.get("used")


def test_a_version_that_was_checked_can_be_rejected(site: LightSite) -> None:
    site.client.models.push(LIGHT / "litert-int8.tflite", "judged", variant="litert-int8")
    site.client.jobs.wait(site.client.jobs.check("judged@1").name, 60)
    reject = pb.RejectVersionRequest(
        name="projects/default/models/judged/versions/1", reason="not good", request_id=str(uuid.uuid4())
    )
    eventually(lambda: attempt(site, "RejectVersion", reject) == "", "the job does not hold it")


def drop_alias(site: LightSite, etag: str) -> str:
    """Try to take the alias away; with a wrong etag it stays whatever the registry knows."""
    request = pb.DeleteAliasRequest(
        name="projects/default/models/used/aliases/live", etag=etag, request_id=str(uuid.uuid4())
    )
    return attempt(site, "DeleteAlias", request)
