"""Composition root of a worker."""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from sealane import telemetry
from sealane.clock import SystemClock
from sealane.compat.openinference.v2 import openinference_pb2
from sealane.compat.tfserving.v1 import tfserving_pb2
from sealane.errors import InvalidArgument
from sealane.inference.v1 import sealed_inference_service_pb2
from sealane.protocols.foreign import FOREIGN_SERVICES
from sealane.rpc import host, middleware, order, sync_server
from sealane.rpc.channel import connect
from sealane.rpc.dispatch import Dispatcher, Served
from sealane.rpc.failover import Turn
from sealane.rpc.fairness import FairShare
from sealane.rpc.health import Health
from sealane.rpc.metrics_page import token_of
from sealane.rpc.places import Admission
from sealane.rpc.quota import QuotaLimits
from sealane.rpc.quota_shares import SharedQuotas
from sealane.rpc.reflection import Reflection, SyncReflectionServicer
from sealane.security import enroll, suites, tls
from sealane.security.key_file import KeyFile
from sealane.security.membership import Membership, Place
from sealane.security.opener import Opener
from sealane.telemetry import Telemetry
from sealane_worker import express, front, front_tfserving, sealed
from sealane_worker.agent import Agent, Hooks
from sealane_worker.artifacts import Artifacts
from sealane_worker.assignments import Assignments
from sealane_worker.batch_task import BatchWork
from sealane_worker.cache import ArtifactCache, Cache
from sealane_worker.cache_encrypted import EncryptedCache, memory_folder
from sealane_worker.check_task import CheckWork
from sealane_worker.config import Config
from sealane_worker.engine import Engine
from sealane_worker.introduction import Introduction
from sealane_worker.lane_session import LaneWork
from sealane_worker.lanes import Lanes
from sealane_worker.machine import memory_limit_bytes
from sealane_worker.measure_tasks import BenchmarkWork, EvaluateWork
from sealane_worker.memory import protect_memory, raise_descriptor_limit
from sealane_worker.metrics import MetricsListener
from sealane_worker.model import confine
from sealane_worker.native_server import NativeServer
from sealane_worker.offer import offered
from sealane_worker.optimise_task import OptimiseWork
from sealane_worker.parking import Parking
from sealane_worker.pool import Host
from sealane_worker.preparation import Preparation
from sealane_worker.row_data import ShardReader
from sealane_worker.runner import Runner, Work, by_kind
from sealane_worker.sandbox import check_data_folder
from sealane_worker.sealing import SealingKey
from sealane_worker.serving import Serving
from sealane_worker.signers import trusted_keys
from sealane_worker.spec import HostPolicy
from sealane_worker.streams import Streams
from sealane_worker.task_models import TaskModels
from sealane_worker.worker import Parts, Worker, take_desired

AUDIENCE = "sealane-inference"
HEALTH = "grpc.health.v1.Health"
NODE_PREFIX = "spiffe://sealane/node/"
#: Streams whose messages are calls of their own.
RAW = frozenset({"ModelStreamInfer", "SealedInferStream"})
#: Calls from the listener and the lanes together; more are refused.
MAX_IN_FLIGHT = 48
THREADS = 64
#: Files that no deployment has wanted for so long are removed: a rollback within it fetches nothing.
UNUSED_SECONDS = 24 * 3600.0


def services(serving: Serving, sealed_: sealed.SealedServicer, health: Health, streams: Streams) -> list[Served]:
    """Everything that the listener and the lanes serve."""
    oip = openinference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    tfs = tfserving_pb2.DESCRIPTOR.services_by_name
    sealed_service = sealed_inference_service_pb2.DESCRIPTOR.services_by_name["SealedInferenceService"]
    reflection = Reflection(
        (sealed_inference_service_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR),
        (*FOREIGN_SERVICES.values(), sealed_service.full_name, HEALTH),
    )
    servicers = (
        (front.OpenInferenceServicer(serving, health, streams), oip),
        (front_tfserving.PredictionServicer(serving), tfs["PredictionService"]),
        (front_tfserving.ModelServicer(serving), tfs["ModelService"]),
        (sealed_, sealed_service),
        (SyncReflectionServicer(reflection), reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]),
    )
    served = [Served(item, service, FOREIGN_SERVICES.get(service.full_name, ""), RAW) for item, service in servicers]
    return [*served, health.served_sync()]


def _dispatcher(
    serving: Serving, sealed_: sealed.SealedServicer, health: Health, chain: middleware.Chain
) -> Dispatcher:
    streams = Streams(MAX_IN_FLIGHT)
    dispatcher = Dispatcher(services(serving, sealed_, health, streams), chain)
    streams.attach(dispatcher)
    sealed_.attach(dispatcher)
    return dispatcher


def _dial(identity: tls.PeerIdentity, service: str, address: str) -> Callable[[], grpc.Channel]:
    """Makes channels to a service's mesh port, with the certificate of the moment."""
    turn = Turn()
    return lambda: connect(enroll.mesh_target(identity, service, address, turn))


def build(config: Config, member: Membership) -> tuple[Worker, int]:
    """A worker that is bound to its port and does nothing yet, and the port."""
    identity, clock = member.identity, SystemClock()
    dial = functools.partial(_dial, identity)
    telemetry_ = _telemetry(config)
    native = express.wanted(config.front)
    models_host, cache = _host(config, native=native), _cache(config)
    engine = Engine(host=models_host)
    sealing = SealingKey(_key_pair(config), dial("auth", config.auth_mesh), clock)
    front_ = express.Express(engine, clock, MAX_IN_FLIGHT, sealing) if native else None
    member.revocations.subscribe(sealing.again)  # the key that signed the statement may be the one revoked
    to_scheduler = member.channel("scheduler", config.scheduler_mesh)
    quotas = QuotaLimits(clock, shares := SharedQuotas(to_scheduler, clock))
    chain = _chain(member, clock, telemetry_, quotas, front_.places if front_ is not None else None)
    introduction = _introduction(config, identity, sealing, chain)
    health = Health(tuple(FOREIGN_SERVICES.values()))
    serving = Serving(engine, telemetry_, introduction.node, front_.learn if front_ is not None else None)
    opener, carried = (front_.opener, front_.carried) if front_ else (Opener(sealing.pair, clock), None)
    sealed_ = sealed.SealedServicer(serving, opener, introduction, telemetry_, carried)
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="lane-call")
    dispatcher = _dispatcher(serving, sealed_, health, middleware.Chain(chain))
    work = LaneWork(dispatcher, engine, pool, MAX_IN_FLIGHT, introduction.meter)
    to_registry = member.channel("registry", config.registry_mesh)
    prepare = _preparation(config, cache, Artifacts(to_registry, identity.spiffe_id, introduction.meter), introduction)
    assignments = Assignments(
        engine,
        prepare,
        config.data_dir / "assignments.json",
        lambda report: agent.report(report),
        tidy=lambda digests: cache.keep_only({digest.removeprefix("sha256:") for digest in digests}, UNUSED_SECONDS),
        check=prepare.check_policy,
    )
    parts = Parts(
        engine=engine,
        server=_server(dispatcher, front_, member),
        health=health,
        pool=pool,
        introduction=introduction,
        sealing=sealing,
        keys=member.keys,
        quotas=quotas,
        shares=shares,
        lanes=Lanes(work, lambda address: dial("inference", _pairs(config.reach).get(address, address))()),
        assignments=assignments,
        parking=Parking(introduction.limits.take_counts, engine.processes) if config.parking else None,
        runner=Runner(to_scheduler, _work(prepare, introduction, engine, models_host.policy or HostPolicy())),
        metrics=_metrics(config, engine, identity),
        cache=cache,
    )
    hooks = Hooks(
        ready=sealing.wait,
        register=introduction.register,
        serving=assignments.reports,
        heartbeat=introduction.heartbeat,
        desired=lambda desired: take_desired(parts, desired),
    )
    agent = Agent(dial("scheduler", config.scheduler_mesh), hooks, config.scheduler_mesh.count(",") + 1)
    port = _bind(parts.server, config, identity, telemetry_)
    introduction.endpoint = config.advertise or f"{config.listen.rpartition(':')[0]}:{port}"
    return Worker(parts, agent), port


def _server(dispatcher: Dispatcher, front_: express.Express | None, member: Membership) -> grpc.Server | NativeServer:
    if front_ is None:
        return sync_server.build(dispatcher, threads=THREADS)
    server = NativeServer(dispatcher, front_, threads=THREADS)
    member.revocations.subscribe(server.forget)
    return server


def _bind(server: grpc.Server | NativeServer, config: Config, identity: tls.PeerIdentity, telemetry_: Telemetry) -> int:
    if isinstance(server, NativeServer):
        return server.bind(config.listen, identity, telemetry_.sample_ratio)
    return server.add_secure_port(config.listen, tls.server_credentials(identity, mesh=False))


def _cache(config: Config) -> Cache:
    """Where artifacts lie.

    Raises:
        FailedPrecondition: the folder for models in memory is none (NOT_IN_MEMORY), or the key file no key file.
    """
    root = config.data_dir / "artifacts"
    if not config.encrypted_cache:
        return ArtifactCache(root, config.data_dir / "scratch")
    key_file = KeyFile.at(config.cache_key_file, create=True) if config.cache_key_file is not None else None
    return EncryptedCache(root, memory_folder(config.memory_dir, root), key_file)


def _preparation(config: Config, cache: Cache, artifacts: Artifacts, introduction: Introduction) -> Preparation:
    return Preparation(
        cache,
        artifacts,
        config.threads,
        {name: offer.info for name, offer in introduction.runtimes.items()},
        introduction.sealing.facts,
        trusted_keys(config.trusted_signers),
    )


def _work(prepare: Preparation, introduction: Introduction, engine: Engine, policy: HostPolicy) -> Work:
    """What is done for each kind of task."""
    shards, artifacts = ShardReader(prepare.cache), prepare.artifacts
    models = TaskModels(prepare, engine.pool, shards.forget)
    return by_kind(
        {
            "optimise": OptimiseWork(prepare.cache, artifacts, prepare.trusted),
            "check": CheckWork(prepare, introduction.runtimes, policy),
            "batch": BatchWork(models, shards, artifacts),
            "evaluate": EvaluateWork(models, shards, artifacts),
            "benchmark": BenchmarkWork(models, shards, artifacts, policy),
        }
    )


def _metrics(config: Config, engine: Engine, identity: tls.PeerIdentity) -> MetricsListener | None:
    if not config.metrics_listen:
        return None
    token = token_of(config.metrics_listen, config.metrics_token_file, "SEALANE_WORKER_METRICS_TOKEN_FILE")
    return MetricsListener(engine, config.metrics_listen, token, identity)


def _telemetry(config: Config) -> Telemetry:
    return telemetry.configure(
        telemetry.TelemetryConfig("worker", config.trace_file, config.otlp_endpoint, config.sample_ratio)
    )


def _key_pair(config: Config) -> suites.KeyPair:
    return suites.generate(suites.number_of(config.suite) if config.suite else suites.best_available())


def _chain(
    member: Membership,
    clock: SystemClock,
    telemetry_: Telemetry,
    quotas: QuotaLimits,
    places: Admission | None,
) -> list[middleware.Middleware]:
    return order.standard(
        telemetry_=telemetry_,
        guard=member.guard(clock, quota=[quotas, FairShare(MAX_IN_FLIGHT, places)]),
        max_in_flight=MAX_IN_FLIGHT,
        raw=sealed.RAW,
        every_call=False,
        places=places,
    )


def _introduction(
    config: Config, identity: tls.PeerIdentity, sealing: SealingKey, chain: list[middleware.Middleware]
) -> Introduction:
    return Introduction(
        node=identity.spiffe_id.removeprefix(NODE_PREFIX),
        data_dir=config.data_dir,
        runtimes=offered(config.runtimes, _pairs(config.pythons), executable=config.executable),
        price_per_hour=config.price_per_hour,
        labels=config.labels,
        sealing=sealing,
        limits=next(item for item in chain if isinstance(item, middleware.Limits)),
        sandbox=confine.available(),
        egress_per_gib=config.egress_per_gib,
        watts=config.watts,
    )


def _host(config: Config, *, native: bool) -> Host:
    """What all models have in common.

    Raises:
        InvalidArgument: a sandbox level that does not exist, or one that this kernel does not give.
    """
    if config.sandbox not in confine.LEVELS:
        raise InvalidArgument(
            f"SEALANE_WORKER_SANDBOX is {config.sandbox!r}, it must be one of {', '.join(confine.LEVELS)}",
            reason="SETTING_INVALID",
        )
    if confine.LEVELS.index(confine.available()) < confine.LEVELS.index(config.sandbox):
        raise InvalidArgument(
            f"SEALANE_WORKER_SANDBOX is {config.sandbox!r} and this kernel gives {confine.available()!r}; "
            "use a kernel with seccomp and Landlock (5.13 or later) or lower the setting",
            reason="SANDBOX_LEVEL",
        )
    budget = config.memory_mib << 20 or memory_limit_bytes() * 4 // 5
    endpoints = {f"endpoint.{name}": address.replace("|", ",") for name, address in _pairs(config.endpoints).items()}
    policy = HostPolicy(
        sandbox=config.sandbox,
        executable=config.executable,
        settings=endpoints,
        memory_limit_bytes=config.model_memory_mib << 20 or budget,
        pythons=_pairs(config.pythons),
        native=native,
    )
    check_data_folder(config.data_dir, policy)
    return Host(policy=policy, budget_bytes=budget)


def _pairs(settings: tuple[str, ...]) -> dict[str, str]:
    return {name: value for name, _, value in (setting.partition("=") for setting in settings)}


def run(config: Config) -> None:
    """Serve until SIGTERM, then drain."""
    protect_memory()
    raise_descriptor_limit()
    config.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    place = Place(config.data_dir, config.auth, config.auth_mesh, config.trust_bundle, config.join_token)
    member = Membership.join(place, AUDIENCE, SystemClock())
    worker, port = build(config, member)
    terminated = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: terminated.set())
    worker.start()
    member.start()
    host.announce(config.data_dir, {"client": port})
    terminated.wait()
    host.withdraw(config.data_dir)
    member.stop()
    worker.stop()
