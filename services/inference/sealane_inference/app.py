"""Wires the gateway together."""

from __future__ import annotations

import asyncio

from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from sealane import collector, telemetry
from sealane.clock import SystemClock
from sealane.compat.openinference.v2 import openinference_pb2
from sealane.compat.tfserving.v1 import tfserving_pb2
from sealane.inference.v1 import lane_service_pb2, sealed_inference_service_pb2
from sealane.protocols.foreign import FOREIGN_SERVICES
from sealane.rpc import host, limits, middleware, order
from sealane.rpc.async_dispatch import AsyncDispatcher
from sealane.rpc.call_metrics import CallMetrics
from sealane.rpc.dispatch import Served, routes_of
from sealane.rpc.failover import Turn
from sealane.rpc.metrics_page import token_of
from sealane.rpc.quota import QuotaLimits
from sealane.rpc.quota_shares import SharedQuotas
from sealane.rpc.reflection import Reflection, ReflectionServicer
from sealane.scheduler.v1 import routing_service_pb2
from sealane.security import enroll
from sealane.security.membership import Membership, Place
from sealane_inference import foreign_openinference, foreign_tfserving, sealed
from sealane_inference.certificate_tokens import CertificateTokens
from sealane_inference.chains import Chains
from sealane_inference.config import Config
from sealane_inference.forward import Forwarder
from sealane_inference.http_face import Face
from sealane_inference.http_listeners import HttpServer
from sealane_inference.http_metrics import MetricsFace
from sealane_inference.lane_servicer import LaneServicer
from sealane_inference.loads import Loads
from sealane_inference.present import Present
from sealane_inference.repository import Repository
from sealane_inference.streams import Streams
from sealane_inference.watch import Watch
from sealane_inference.way import Way

AUDIENCE = "sealane-inference"
HEALTH = "grpc.health.v1.Health"
#: Streams whose messages are calls of their own.
RAW = frozenset({"ModelStreamInfer", "SealedInferStream"})


def services(way: Way) -> list[Served]:
    """Everything that both listeners serve, health aside."""
    oip = openinference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    tfs = tfserving_pb2.DESCRIPTOR.services_by_name
    sealed_service = sealed_inference_service_pb2.DESCRIPTOR.services_by_name["SealedInferenceService"]
    lane_service = lane_service_pb2.DESCRIPTOR.services_by_name["LaneService"]
    reflection = Reflection(
        (sealed_inference_service_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR),
        (*FOREIGN_SERVICES.values(), sealed_service.full_name, HEALTH),
    )
    servicers = (
        (foreign_openinference.OpenInferenceServicer(way), oip),
        (foreign_tfserving.PredictionServicer(way), tfs["PredictionService"]),
        (foreign_tfserving.ModelServicer(way), tfs["ModelService"]),
        (way.sealed, sealed_service),
        (LaneServicer(way.present, way.loads), lane_service),
        (ReflectionServicer(reflection), reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]),
    )
    return [
        Served(servicer, descriptor, FOREIGN_SERVICES.get(descriptor.full_name, ""), RAW)
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
    usual = order.standard(
        telemetry_=telemetry_,
        guard=member.guard(clock, certificates=certificates, quota=[quotas or QuotaLimits(clock)]),
        max_in_flight=config.max_in_flight,
        raw=foreign_openinference.RAW | foreign_tfserving.RAW | sealed.RAW,
        every_call=False,
    )
    metrics = CallMetrics()
    chain = middleware.Chain([metrics, *usual])
    repository = Repository(member.channel("scheduler", config.scheduler_mesh), present)
    forwarder = Forwarder(present, loads, telemetry_)
    way = Way(
        present,
        loads,
        forwarder,
        Chains(present, forwarder),
        repository,
        Streams(),
        sealed.SealedServicer(present, loads, forwarder),
    )
    served = services(way)
    dispatcher = AsyncDispatcher(routes_of(served), chain)
    way.streams.attach(dispatcher)
    way.sealed.attach(dispatcher)
    listeners = host.Listeners(config.listen, config.mesh_listen, limits.DATA_MESSAGE_BYTES)
    faces = [HttpServer("http", config.http_listen, Face(dispatcher, present, config.hosts))]
    if config.metrics_listen:
        token = token_of(config.metrics_listen, config.metrics_token_file, "SEALANE_INFERENCE_METRICS_TOKEN_FILE")
        faces.append(HttpServer("metrics", config.metrics_listen, MetricsFace(metrics, present, token)))
    return host.Host(served, chain, listeners, faces)


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
    turn = Turn()
    watch = Watch(
        lambda: enroll.mesh_target(identity, "scheduler", config.scheduler_mesh, turn),
        routing_service_pb2.WatchRoutesRequest(gateway=config.name, lane_address=advertised, takes_changes=True),
        present,
    )
    member.start()
    watch.start(asyncio.get_running_loop())
    shares.start(quotas.take_demand)
    gateway.health.set(True)
    collector.settle()
    host.announce(config.data_dir, ports)
    try:
        await host.until_terminated(gateway)
    finally:
        host.withdraw(config.data_dir)
        watch.stop()
        shares.stop()
        member.stop()
        await gateway.stop()
