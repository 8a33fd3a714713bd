"""Wires the gateway together."""

from __future__ import annotations

import asyncio

from grpc_reflection.v1alpha import reflection_pb2

from sealane import telemetry
from sealane.clock import SystemClock
from sealane.compat.openinference.v2 import openinference_pb2
from sealane.compat.tfserving.v1 import tfserving_pb2
from sealane.inference.v1 import lane_service_pb2, sealed_inference_service_pb2
from sealane.protocols.foreign import FOREIGN_SERVICES
from sealane.rpc import host, limits, middleware
from sealane.rpc.dispatch import Served
from sealane.scheduler.v1 import routing_service_pb2
from sealane.security import enroll, tls
from sealane.security.keys import KeySet
from sealane.security.proof import ProofVerifier
from sealane.security.tokens import TokenVerifier
from sealane_inference import foreign, sealed
from sealane_inference.config import Config
from sealane_inference.forward import Forwarder
from sealane_inference.lane_servicer import LaneServicer
from sealane_inference.loads import Loads
from sealane_inference.present import Present
from sealane_inference.reflection import ReflectionServicer
from sealane_inference.watch import Watch

ISSUER = "https://auth.service.sealane"
AUDIENCE = "sealane-inference"


def services(present: Present, loads: Loads, forwarder: Forwarder) -> list[Served]:
    """Everything that both listeners serve, health aside."""
    oip = openinference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    tfs = tfserving_pb2.DESCRIPTOR.services_by_name
    sealed_service = sealed_inference_service_pb2.DESCRIPTOR.services_by_name["SealedInferenceService"]
    lane_service = lane_service_pb2.DESCRIPTOR.services_by_name["LaneService"]
    reflection = ReflectionServicer(
        (sealed_inference_service_pb2.DESCRIPTOR,), (*FOREIGN_SERVICES.values(), sealed_service.full_name)
    )
    servicers = (
        (foreign.OpenInferenceServicer(present, forwarder), oip),
        (foreign.PredictionServicer(present, forwarder), tfs["PredictionService"]),
        (foreign.ModelServicer(present), tfs["ModelService"]),
        (sealed.SealedServicer(present, loads, forwarder), sealed_service),
        (LaneServicer(present, loads), lane_service),
        (reflection, reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]),
    )
    return [
        Served(servicer, descriptor, FOREIGN_SERVICES.get(descriptor.full_name, ""))
        for servicer, descriptor in servicers
    ]


def build(config: Config, identity: tls.PeerIdentity, present: Present) -> host.Host:
    """The two listeners and what they serve."""
    clock = SystemClock()
    telemetry_ = telemetry.configure(
        telemetry.TelemetryConfig("inference", config.trace_file, config.otlp_endpoint, config.sample_ratio)
    )
    loads = Loads(clock)
    keys = KeySet(
        enroll.fetch_keys(enroll.MeshChannel(identity, "auth", config.auth_mesh)), config.data_dir / "jwks.json"
    )
    chain = middleware.Chain(
        middleware.standard(
            telemetry_=telemetry_,
            verifier=TokenVerifier(keys, issuer=ISSUER, audience=AUDIENCE, clock=clock),
            proofs=ProofVerifier(clock),
            max_in_flight=config.max_in_flight,
            raw=foreign.RAW | sealed.RAW,
            every_call=False,
        )
    )
    listeners = host.Listeners(config.listen, config.mesh_listen, limits.DATA_MESSAGE_BYTES)
    return host.Host(services(present, loads, Forwarder(present, loads, telemetry_)), chain, listeners)


async def serve(config: Config) -> None:
    """Serve until SIGTERM, then drain."""
    config.data_dir.mkdir(parents=True, exist_ok=True)
    enrollment = enroll.EnrollConfig(
        config.data_dir / "identity", config.auth, config.auth_mesh, config.trust_bundle, config.join_token
    )
    identity = await asyncio.to_thread(enroll.ensure, enrollment)
    renewer = enroll.Renewer(enrollment, identity)
    present = Present(SystemClock())
    gateway = build(config, identity, present)
    ports = await gateway.start(identity)
    advertised = config.advertise_mesh or f"{config.mesh_listen.rpartition(':')[0]}:{ports['mesh']}"
    watch = Watch(
        lambda: enroll.mesh_target(identity, "scheduler", config.scheduler_mesh),
        routing_service_pb2.WatchRoutesRequest(gateway=config.name, lane_address=advertised),
        present,
    )
    renewer.start()
    watch.start(asyncio.get_running_loop())
    gateway.health.set(True)
    host.announce(config.data_dir, ports)
    try:
        await host.until_terminated()
    finally:
        host.withdraw(config.data_dir)
        watch.stop()
        renewer.stop()
        await gateway.stop()
