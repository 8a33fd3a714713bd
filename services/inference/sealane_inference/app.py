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
from sealane.rpc import host, limits, middleware, order
from sealane.rpc.dispatch import Served
from sealane.rpc.quota import QuotaLimits
from sealane.rpc.quota_shares import SharedQuotas
from sealane.scheduler.v1 import routing_service_pb2
from sealane.security import enroll
from sealane.security.membership import Membership, Place
from sealane_inference import foreign, sealed
from sealane_inference.certificate_tokens import CertificateTokens
from sealane_inference.config import Config
from sealane_inference.forward import Forwarder
from sealane_inference.lane_servicer import LaneServicer
from sealane_inference.loads import Loads
from sealane_inference.present import Present
from sealane_inference.reflection import ReflectionServicer
from sealane_inference.watch import Watch

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


def build(config: Config, member: Membership, present: Present, quotas: QuotaLimits | None = None) -> host.Host:
    """The two listeners and what they serve; without `quotas` this gateway is the only one to enforce them."""
    clock = SystemClock()
    telemetry_ = telemetry.configure(
        telemetry.TelemetryConfig("inference", config.trace_file, config.otlp_endpoint, config.sample_ratio)
    )
    loads = Loads(clock)
    certificates = CertificateTokens(member.channel("auth", config.auth_mesh), clock, member.revocations)
    chain = middleware.Chain(
        order.standard(
            telemetry_=telemetry_,
            guard=member.guard(clock, certificates=certificates, quota=[quotas or QuotaLimits(clock)]),
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
    clock = SystemClock()
    place = Place(config.data_dir, config.auth, config.auth_mesh, config.trust_bundle, config.join_token)
    member = await asyncio.to_thread(Membership.join, place, AUDIENCE, clock)
    identity = member.identity
    present = Present(clock)
    shares = SharedQuotas(member.channel("scheduler", config.scheduler_mesh), clock, config.name)
    quotas = QuotaLimits(clock, shares)
    gateway = build(config, member, present, quotas)
    ports = await gateway.start(identity)
    advertised = config.advertise_mesh or f"{config.mesh_listen.rpartition(':')[0]}:{ports['mesh']}"
    watch = Watch(
        lambda: enroll.mesh_target(identity, "scheduler", config.scheduler_mesh),
        routing_service_pb2.WatchRoutesRequest(gateway=config.name, lane_address=advertised),
        present,
    )
    member.start()
    watch.start(asyncio.get_running_loop())
    shares.start(quotas.take_demand)
    gateway.health.set(True)
    host.announce(config.data_dir, ports)
    try:
        await host.until_terminated(gateway)
    finally:
        host.withdraw(config.data_dir)
        watch.stop()
        shares.stop()
        member.stop()
        await gateway.stop()
