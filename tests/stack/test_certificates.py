"""Callers by certificate, tokens bound to one, and nodes that touch nothing but their own."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from light_site import CAMERA_B, CLOUD, EDGE, LIGHT, LightSite

from sealane.auth.v1 import enrollment_service_pb2 as enroll_pb
from sealane.auth.v1 import enrollment_service_pb2_grpc, token_service_pb2_grpc
from sealane.auth.v1 import token_service_pb2 as tokens_pb
from sealane.client import NodePlace
from sealane.client.accounts import NewCredential
from sealane.client.operations import OfflineTime
from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.errors import SealaneError
from sealane.registry.v1 import artifact_service_pb2 as artifact_pb
from sealane.registry.v1 import artifact_service_pb2_grpc
from sealane.registry.v1 import model_service_pb2 as model_pb
from sealane.rpc.channel import Target, connect, dial
from sealane.rpc.status import from_rpc_error
from sealane.security import enroll, jws, offline, tls, work_grants
from sealane.security.enroll import mesh_target
from sealane.security.keys import KeySet
from sealane.security.work_grants import METADATA, WorkGrant

pytestmark = pytest.mark.stack
INFER = "/inference.GRPCInferenceService/ModelInfer"
LIST_MODELS = "/sealane.registry.v1.ModelService/ListModels"


@pytest.fixture(scope="module")
def tool(site: LightSite, tmp_path_factory: pytest.TempPathFactory) -> tls.PeerIdentity:
    """The certificate of an account that may predict and read."""
    site.client.accounts.create("tool", ("infer", "models:read"))
    return site.client.peers.certificate("tool", tmp_path_factory.mktemp("tool"))


@contextmanager
def mesh(site: LightSite, identity: tls.PeerIdentity, service: str) -> Iterator[grpc.Channel]:
    """A bare channel to a mesh port with a certificate."""
    with dial(mesh_target(identity, service, site.endpoints[f"{service}_mesh"])) as channel:
        yield channel


def node(site: LightSite, name: str) -> tls.PeerIdentity:
    found = tls.load(site.data / "workers" / name / "identity")
    assert found is not None
    return found


def request(site: LightSite) -> bytes:
    row = site.rows[:1]
    tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="FP32", shape=row.shape)
    made = oip.ModelInferRequest(model_name=CAMERA_B, inputs=[tensor], raw_input_contents=[row.tobytes()])
    return made.SerializeToString()


def refusal(call: object) -> SealaneError:
    with pytest.raises(grpc.RpcError) as caught:
        call()  # type: ignore[operator]
    return from_rpc_error(caught.value)


def test_a_tool_with_a_certificate_alone_predicts_through_the_gateway(site: LightSite, tool: tls.PeerIdentity) -> None:
    with mesh(site, tool, "inference") as channel:
        for _ in range(3):
            answer = channel.unary_unary(INFER)(request(site), timeout=10.0)
            assert oip.ModelInferResponse.FromString(answer).outputs


def test_other_services_take_no_certificate_for_a_token(site: LightSite, tool: tls.PeerIdentity) -> None:
    with mesh(site, tool, "registry") as channel:
        body = model_pb.ListModelsRequest(parent="projects/default").SerializeToString()
        failure = refusal(lambda: channel.unary_unary(LIST_MODELS)(body, timeout=10.0))
        assert (failure.kind, failure.reason) == ("UNAUTHENTICATED", "TOKEN_MISSING")


def test_a_node_predicts_nothing_by_its_certificate(site: LightSite) -> None:
    with mesh(site, node(site, EDGE), "inference") as channel:
        failure = refusal(lambda: channel.unary_unary(INFER)(request(site), timeout=10.0))
        assert (failure.kind, failure.reason) == ("UNAUTHENTICATED", "TOKEN_MISSING")


def bound_token(site: LightSite, identity: tls.PeerIdentity) -> str:
    """A token for the registry that is bound to the certificate, which is the client's only proof."""
    with connect(mesh_target(identity, "auth", site.endpoints["auth_mesh"])) as channel:
        answer = token_service_pb2_grpc.TokenServiceStub(channel).IssueToken(
            tokens_pb.IssueTokenRequest(
                grant_type="client_credentials",
                client_id="tool@default",
                audience="sealane-registry",
                certificate_bound=True,
            ),
            timeout=10.0,
        )
    return str(answer.access_token)


def test_a_bound_token_is_good_over_its_certificate_and_nowhere_else(
    site: LightSite, tool: tls.PeerIdentity, tmp_path: Path
) -> None:
    token = bound_token(site, tool)
    metadata = (("authorization", f"Bearer {token}"),)
    body = model_pb.ListModelsRequest(parent="projects/default").SerializeToString()
    with mesh(site, tool, "registry") as channel:
        answer = channel.unary_unary(LIST_MODELS)(body, timeout=10.0, metadata=metadata)
        assert model_pb.ListModelsResponse.FromString(answer).models
    other = site.client.peers.certificate("tool", tmp_path)  # the same account, another certificate
    target = Target(site.endpoints["registry"], site.trust, "registry.service.sealane")
    for where in (mesh_target(other, "registry", site.endpoints["registry_mesh"]), target):
        with dial(where) as channel:
            failure = refusal(
                lambda channel=channel: channel.unary_unary(LIST_MODELS)(body, timeout=10.0, metadata=metadata)
            )
            assert (failure.kind, failure.reason) == ("UNAUTHENTICATED", "CERTIFICATE_BINDING")


def download(site: LightSite, identity: tls.PeerIdentity, digest: str, grant: str = "") -> bytes:
    with mesh(site, identity, "registry") as channel:
        stub = artifact_service_pb2_grpc.ArtifactServiceStub(channel)
        wanted = artifact_pb.DownloadArtifactRequest(name=f"projects/default/artifacts/{digest}")
        metadata = ((METADATA, grant),) if grant else ()
        return b"".join(part.data for part in stub.DownloadArtifact(wanted, timeout=10.0, metadata=metadata))


def granted(site: LightSite, name: str, variant: str) -> str:
    """What the scheduler would sign."""
    scheduler = tls.load(site.data / "scheduler" / "identity")
    assert scheduler is not None
    return work_grants.issue(WorkGrant(name, "default", variant), scheduler, time.time())


def test_a_node_reads_the_files_of_its_work_and_no_others(site: LightSite) -> None:
    version = site.client.models.get_version("digits@1")
    serving, other = version.variants
    digest, foreign = serving.files[0].sha256, other.files[0].sha256
    edge, cloud = node(site, EDGE), node(site, CLOUD)
    grant = granted(site, EDGE, serving.name)
    assert download(site, edge, digest, grant) == (LIGHT / serving.files[0].path).read_bytes()
    for identity, wanted, shown, kind in (
        (edge, digest, "", "PERMISSION_DENIED"),
        (cloud, digest, grant, "PERMISSION_DENIED"),
        (edge, foreign, grant, "NOT_FOUND"),
        (edge, "f" * 64, grant, "NOT_FOUND"),
    ):
        failure = refusal(lambda i=identity, w=wanted, s=shown: download(site, i, w, s))
        assert failure.kind == kind, failure


def test_a_node_stores_nothing_without_a_task(site: LightSite) -> None:
    grant = granted(site, EDGE, site.client.models.get_version("digits@1").variants[0].name)
    wanted = artifact_pb.StartUploadRequest(parent="projects/default", sha256="a" * 64, size_bytes=1)
    with mesh(site, node(site, EDGE), "registry") as channel:
        stub = artifact_service_pb2_grpc.ArtifactServiceStub(channel)
        for metadata in ((), ((METADATA, grant),)):
            failure = refusal(lambda m=metadata: stub.StartUpload(wanted, timeout=10.0, metadata=m))
            assert (failure.kind, failure.reason) == ("PERMISSION_DENIED", "WORK_GRANT_REFUSED")


def test_a_token_for_some_models_sees_and_does_nothing_with_others(site: LightSite) -> None:
    """Permissions by model prefix, through registry, scheduler, gateway and worker."""
    site.client.models.push(LIGHT / "litert-int8.tflite", "fraud-eu", variant="litert-int8")
    account = site.client.accounts.create("limited", ("reflect",))
    site.client.roles.bind("limited", "publisher", model_prefix="fraud-")
    site.client.roles.bind("limited", "deployer", model_prefix="fraud-")
    site.client.roles.bind("limited", "invoker", model_prefix="fraud-")
    with site.client_of(account.client_id, account.client_secret) as limited:
        assert [model.name.rpartition("/")[2] for model in limited.models.list()] == ["fraud-eu"]
        assert list(limited.deployments.list()) == []
        limited.deployments.create("fraud", "fraud-eu@1", tier="cloud")
        limited.deployments.wait("fraud", 30)
        for via in ("direct", "gateway"):
            limited.inference.predict("fraud", site.image, via=via)  # type: ignore[arg-type]
        absent = [
            lambda: limited.models.get_version("digits@1"),
            lambda: limited.models.move_alias("digits", "latest", 1),
            lambda: limited.deployments.get(CAMERA_B),
            lambda: limited.deployments.delete(CAMERA_B),
            lambda: limited.deployments.explain(CAMERA_B),
            lambda: limited.deployments.create("other", "digits@1"),
            lambda: limited.inference.predict(CAMERA_B, site.image, via="gateway"),
            lambda: limited.inference.predict(CAMERA_B, site.image, sealed=True),
            lambda: limited.inference.predict(CAMERA_B, site.image, via="direct"),
            lambda: limited.artifacts.download(
                site.client.models.get_version("digits@1").variants[0].files[0].sha256, site.data / "stolen"
            ),
        ]
        with pytest.raises(SealaneError) as stolen:  # a file of another model, by its digest, in a version of one's own
            limited.models.add_variant("fraud-eu@1", LIGHT / "litert-float.tflite", variant="stolen")
        assert stolen.value.kind == "NOT_FOUND"
        for number, attempt in enumerate(absent):
            with pytest.raises(SealaneError) as caught:
                attempt()
            assert caught.value.kind == "NOT_FOUND", (number, caught.value)
        limited.deployments.delete("fraud")


def test_an_edge_node_gets_an_offline_grant_for_as_long_as_its_join_token_says(site: LightSite, tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    jwk = json.dumps({"kty": "OKP", "crv": "Ed25519", "x": jws.encode(key.public_key().public_bytes_raw())})
    site.client.accounts.create("lonely-camera", ("infer",), credential=NewCredential(public_key_jwk=jwk))
    name = "projects/default/serviceAccounts/lonely-camera"
    joined = site.client.join_tokens.create(
        node="edge-9", place=NodePlace("edge", "site-z"), offline=OfflineTime(3600.0, (name,))
    )
    token, trust = tmp_path / "join.token", tmp_path / "ca.pem"
    token.write_text(joined.token)
    trust.write_bytes(site.trust)
    place = enroll.EnrollConfig(tmp_path / "identity", site.endpoints["auth"], "", trust, token)
    own = Ed25519PrivateKey.generate().public_key().public_bytes_raw()

    def ask(identity: tls.PeerIdentity) -> enroll_pb.OfflineGrant:
        with connect(mesh_target(identity, "auth", site.endpoints["auth_mesh"])) as channel:
            stub = enrollment_service_pb2_grpc.EnrollmentServiceStub(channel)
            answer: enroll_pb.OfflineGrant = stub.IssueOfflineGrant(
                enroll_pb.IssueOfflineGrantRequest(public_key=own), timeout=10.0
            )
            return answer

    grant = ask(enroll.ensure(place))
    with connect(Target(site.endpoints["auth"], site.trust, "auth.service.sealane")) as channel:
        keys = KeySet(enroll.fetch_keys(lambda: channel))
        keys.refresh()
        checked = offline.verify(grant.jws, keys, time.time())
    assert (checked.node, checked.public_key, checked.attributes["zone"]) == ("edge-9", own, "site-z")
    assert {account.subject: account.public_key for account in checked.accounts.values()} == {
        name: key.public_key().public_bytes_raw()
    }
    assert checked.expires == pytest.approx(time.time() + 3600, abs=60)
    with pytest.raises(SealaneError) as caught:
        ask(node(site, EDGE))
    assert (caught.value.kind, caught.value.reason) == ("FAILED_PRECONDITION", "OFFLINE_NOT_ALLOWED")
    site.client.peers.evict("edge-9")
    with pytest.raises(SealaneError) as evicted:
        ask(enroll.ensure(place))
    assert evicted.value.reason == "PEER_EVICTED"
