"""Signatures of models, where it counts: what is not signed is placed nowhere, and no worker loads it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf import field_mask_pb2
from light_site import LIGHT, LightSite, eventually, running

from sealane.registry.v1 import policy_service_pb2 as policy_pb
from sealane.registry.v1 import policy_service_pb2_grpc, signature_service_pb2_grpc
from sealane.registry.v1 import signature_service_pb2 as signature_pb
from sealane.registry.v1 import variant_service_pb2 as variant_pb
from sealane.scheduler.v1 import deployment_service_pb2 as deployment_pb
from sealane.security.model_signing import pem_of, sign
from sealane_local.plan import WorkerPlan

GOOD = LIGHT / "litert-int8.tflite"
PROJECTS, OPERATORS = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
VAULT = "vault"


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightSite]:
    """A suite with one more worker, in a zone of its own, whose operator trusts one key."""
    keys = tmp_path_factory.mktemp("keys")
    (keys / "operator.pem").write_bytes(pem_of(OPERATORS.public_key()))
    worker = WorkerPlan(
        "vault-1",
        "edge",
        VAULT,
        "restricted",
        0.1,
        runtimes=("litert",),
        environment={"SEALANE_WORKER_TRUSTED_SIGNERS": str(keys)},
    )
    with running(tmp_path_factory.mktemp("strict"), others=(worker,)) as site:
        yield site


class Raw:
    """The registry's stubs with the admin's token."""

    def __init__(self, site: LightSite) -> None:
        self.channel = site.channel("registry")
        self.metadata = (("authorization", f"Bearer {site.client.token('sealane-registry')}"),)

    def demand(self, requirement: policy_pb.SigningRequirement.ValueType, *signers: str) -> None:
        """Set the project's demand, with the keys of these signers; of both by default."""
        keys = [
            policy_pb.SignerKey(name=name, public_key=pem_of(key.public_key()))
            for name, key in (("release", PROJECTS), ("operator", OPERATORS))
            if not signers or name in signers
        ]
        request = policy_pb.UpdatePolicyRequest(
            name="projects/default/policy",
            policy=policy_pb.Policy(signing=requirement, signer_keys=keys),
            update_mask=field_mask_pb2.FieldMask(paths=["signing", "signer_keys"]),
            request_id=str(uuid.uuid4()),
        )
        policy_service_pb2_grpc.PolicyServiceStub(self.channel).UpdatePolicy(request, metadata=self.metadata)

    def attach(self, variant: variant_pb.Variant, key: ec.EllipticCurvePrivateKey) -> None:
        bundle = sign({file.path: file.sha256 for file in variant.files}, variant.name, key)
        request = signature_pb.AttachSignatureRequest(parent=variant.name, bundle=bundle, request_id=str(uuid.uuid4()))
        signature_service_pb2_grpc.SignatureServiceStub(self.channel).AttachSignature(request, metadata=self.metadata)


@pytest.fixture
def raw(strict: LightSite) -> Iterator[Raw]:
    made = Raw(strict)
    yield made
    made.demand(policy_pb.SIGNING_REQUIREMENT_UNSIGNED)
    made.channel.close()


def push(site: LightSite, name: str) -> variant_pb.Variant:
    """The light model under a name; its one variant."""
    (variant,) = site.client.models.push(GOOD, name, variant="litert-int8").variants
    return variant


def test_an_unsigned_variant_waits_until_it_is_signed(strict: LightSite, raw: Raw) -> None:
    variant = push(strict, "unsigned")
    raw.demand(policy_pb.SIGNING_REQUIREMENT_SIGNED)
    made = strict.client.deployments.create("unsigned", "unsigned@1", tier="cloud")
    assert made.state == deployment_pb.Deployment.STATE_PENDING and not made.placements
    explained = strict.client.deployments.explain("unsigned")[0]
    assert explained.binding_constraint == "policy"
    assert {item.filter for item in explained.rejections if "cloud-1" in item.node} == {"policy"}
    assert any("demands a signature" in item.detail for item in explained.rejections)
    (check,) = strict.client.jobs.wait(strict.client.jobs.check("unsigned@1").name, 60).checks
    assert (check.load_check.loadable, check.load_check.reason) == (False, "SIGNATURE_REQUIRED")

    raw.attach(variant, PROJECTS)
    strict.client.deployments.wait("unsigned", 30)
    assert strict.client.inference.predict("unsigned", strict.image, via="gateway")
    (check,) = strict.client.jobs.wait(strict.client.jobs.check("unsigned@1").name, 60).checks
    assert check.load_check.loadable
    strict.client.deployments.delete("unsigned")


def test_a_worker_of_a_strict_operator_loads_what_his_key_signed_alone(strict: LightSite, raw: Raw) -> None:
    variant = push(strict, "strict")
    raw.demand(policy_pb.SIGNING_REQUIREMENT_UNSIGNED)  # the registry demands nothing, as a compromised one would
    raw.attach(variant, PROJECTS)
    strict.client.deployments.create("strict", "strict@1", residency=[VAULT])

    def told() -> str:
        found = strict.client.deployments.explain("strict")
        return " ".join(item.detail for decision in found for item in decision.rejections if "vault" in item.node)

    eventually(lambda: "could not load" in told(), "the worker refuses it", 30)
    assert "SIGNER_NOT_TRUSTED" in (strict.data / "logs" / "vault-1.log").read_text()
    strict.client.deployments.delete("strict")

    # Another id: the node is not given what it could not load for a while.
    (signed,) = strict.client.models.push(LIGHT / "litert-float.tflite", "trusted", variant="litert-float").variants
    raw.attach(signed, OPERATORS)
    strict.client.deployments.create("trusted", "trusted@1", residency=[VAULT])
    strict.client.deployments.wait("trusted", 30)
    assert strict.places("trusted") and {node for node, _ in strict.places("trusted")} == {"vault-1"}
    strict.client.deployments.delete("trusted")


def test_a_key_that_is_no_longer_trusted_places_nothing_new(strict: LightSite, raw: Raw) -> None:
    variant = push(strict, "revoked")
    raw.demand(policy_pb.SIGNING_REQUIREMENT_SIGNED)
    raw.attach(variant, PROJECTS)
    plan = strict.client.deployments.plan("revoked@1", tier="cloud")
    assert plan.node
    raw.demand(policy_pb.SIGNING_REQUIREMENT_SIGNED, "operator")
    plan = strict.client.deployments.plan("revoked@1", tier="cloud")
    assert not plan.node and plan.binding_constraint == "policy"
