"""Step 4: what must be refused, and with which code."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np

from sealane.client import Client, ClientCredentials
from sealane.compat.openinference.v2 import openinference_pb2 as oip
from sealane.errors import SealaneError
from sealane.protocols import openinference
from sealane.protocols.call import InferenceCall
from sealane.protocols.call import Target as ModelTarget
from sealane.rpc.channel import Target, connect
from sealane_local.demo.attacker import Attacker, tampered
from sealane_local.demo.world import CAMERA_B, World

_INFER = "/inference.GRPCInferenceService/ModelInfer"


def refusals(world: World) -> None:
    """Send what must not pass."""
    report = world.report
    report.step(4, "try what must be refused")
    trust = (world.data / "pki" / "ca.pem").read_bytes()
    gateway = Target(world.endpoint("inference"), trust)
    image = {"image": world.test_x[:1]}
    body = openinference.encode_request(InferenceCall(ModelTarget(CAMERA_B), image, ())).SerializeToString()
    wire = connect(gateway).unary_unary(
        _INFER, request_serializer=lambda raw: raw, response_deserializer=oip.ModelInferResponse.FromString
    )
    account = world.client.accounts.create("reader", ["models:read"])
    reader = Client(
        world.endpoints,
        trust_bundle=trust,
        credentials=ClientCredentials(account.client_id, account.client_secret),
    )
    admin = json.loads((world.data / "admin.json").read_text())
    attacker = Attacker(Target(world.endpoint("auth"), trust), gateway)
    holder = attacker.bound_token(admin["client_id"], admin["client_secret"])
    sealed = attacker.seal(holder, CAMERA_B, body, world.client.project)
    thief = attacker.bound_token(admin["client_id"], admin["client_secret"])
    stolen = attacker.seal(thief, CAMERA_B, body, world.client.project)

    expect(world, "no_token", "UNAUTHENTICATED", lambda: wire(body))
    expect(world, "wrong_scope", "PERMISSION_DENIED", lambda: reader.inference.predict(CAMERA_B, image))
    expect(world, "tampered", "INVALID_ARGUMENT", lambda: attacker.send(tampered(sealed), holder.token))
    # The thief holds the token, not its key: neither a sealed request of his own nor a plain call passes.
    expect(world, "stolen_token", "UNAUTHENTICATED", lambda: attacker.send(stolen, holder.token))
    expect(world, "stolen_token_plain", "UNAUTHENTICATED", lambda: attacker.call_without_proof(holder.token, CAMERA_B))
    flat = {"image": np.zeros((1, 64), np.float32)}
    expect(world, "wrong_shape", "INVALID_ARGUMENT", lambda: world.client.inference.predict(CAMERA_B, flat))
    # The id of a request is used up by its first arrival, so the control needs one of its own.
    fresh = attacker.seal(holder, CAMERA_B, body, world.client.project)
    report.expect(bool(attacker.send(fresh, holder.token).chunks), "an untouched request of the rightful holder runs")
    reader.close()


def expect(world: World, name: str, code: str, attempt: Callable[[], object]) -> SealaneError | None:
    """An attempt must be refused with this code."""
    try:
        attempt()
    except SealaneError as error:
        world.report.put(f"refused.{name}", error.kind)
        world.report.expect(error.kind == code, f"{name}: {error.kind}: {error.message}")
        return error
    world.report.put(f"refused.{name}", "OK")
    world.report.expect(False, f"{name}: was not refused, {code} expected")
    return None
